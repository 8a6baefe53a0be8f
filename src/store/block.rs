//! Blocks: bytes in whole pages of memory at page addresses, so that a disk can move them without a copy, and a pool that
//! lends them out again: fresh memory costs a page fault every few kilobytes, which at the speed of a disk is most of the
//! work. It must never know what the bytes are.

use std::collections::VecDeque;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard};

use bytemuck::{Pod, Zeroable};

use super::direct::PAGE_BYTES;

/// A page of memory at an address that is a multiple of its size.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(4096))]
struct Page([u8; PAGE_BYTES]);

/// So many bytes at the start of a page of memory. They begin as zeros, or as whatever a pool's block held before.
pub struct Block {
    pages: Vec<Page>,
    bytes: usize,
    /// Where the pages go in the end.
    home: Option<Pool>,
}

impl Block {
    /// A block of zeros, of no pool.
    pub fn new(bytes: usize) -> Block {
        Block { pages: vec![Page::zeroed(); bytes.div_ceil(PAGE_BYTES)], bytes, home: None }
    }

    /// A block of no pool that holds a copy of `bytes`.
    pub fn of(bytes: &[u8]) -> Block {
        let mut block = Block::new(bytes.len());
        block.copy_from_slice(bytes);
        block
    }

    /// Bytes of memory that it takes: a multiple of a page.
    pub fn capacity(&self) -> usize {
        self.pages.len() * PAGE_BYTES
    }
}

impl Deref for Block {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.pages)[..self.bytes]
    }
}

impl DerefMut for Block {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.pages)[..self.bytes]
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block of {} bytes", self.bytes)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Some(pool) = self.home.take() {
            pool.give_back(std::mem::take(&mut self.pages));
        }
    }
}

/// A pool of blocks; its clones are the same pool. What it lends comes back when it is dropped.
#[derive(Clone)]
pub struct Pool(Arc<Shared>);

struct Shared {
    /// Bytes that it may hold, lent and free together. What is lent beyond them is freed when it comes back.
    most: usize,
    stock: Mutex<Stock>,
}

#[derive(Default)]
struct Stock {
    /// The pages of blocks that came back, the longest ago first.
    free: VecDeque<Vec<Page>>,
    free_bytes: usize,
    lent_bytes: usize,
}

impl Stock {
    /// Frees the longest unused until at most so many bytes are held, lent and free together.
    fn shrink(&mut self, most: usize) {
        while self.lent_bytes + self.free_bytes > most {
            let Some(pages) = self.free.pop_front() else { return };
            self.free_bytes -= pages.len() * PAGE_BYTES;
        }
    }
}

impl Pool {
    /// A pool that keeps what comes back as long as it holds no more than `most` bytes, lent and free together.
    pub fn new(most: usize) -> Pool {
        Pool(Arc::new(Shared { most, stock: Mutex::default() }))
    }

    /// A block of so many bytes. What it holds is undefined: zeros, or what another block held.
    pub fn take(&self, bytes: usize) -> Block {
        let pages = bytes.div_ceil(PAGE_BYTES);
        let used = {
            let mut stock = self.stock();
            // Panels come in a few sizes, so a block of just this size is the rule, and none is torn up for another.
            let found = stock.free.iter().rposition(|free| free.len() == pages);
            let used = found.and_then(|at| stock.free.remove(at));
            stock.lent_bytes += pages * PAGE_BYTES;
            stock.free_bytes -= used.as_ref().map_or(0, |_| pages * PAGE_BYTES);
            stock.shrink(self.0.most);
            used
        };
        let pages = used.unwrap_or_else(|| vec![Page::zeroed(); pages]);
        Block { pages, bytes, home: Some(self.clone()) }
    }

    /// Bytes lent, and bytes free to be lent again.
    pub fn held(&self) -> (usize, usize) {
        let stock = self.stock();
        (stock.lent_bytes, stock.free_bytes)
    }

    fn give_back(&self, pages: Vec<Page>) {
        let mut stock = self.stock();
        let bytes = pages.len() * PAGE_BYTES;
        stock.lent_bytes -= bytes;
        stock.free_bytes += bytes;
        stock.free.push_back(pages);
        stock.shrink(self.0.most);
    }

    fn stock(&self) -> MutexGuard<'_, Stock> {
        self.0.stock.lock().expect("nothing panics while it holds the stock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_lie_on_pages_and_have_their_own_length() {
        for bytes in [0, 1, 4095, 4096, 4097, 100_000] {
            let mut block = Block::new(bytes);
            assert_eq!((block.len(), block.capacity()), (bytes, bytes.next_multiple_of(PAGE_BYTES)));
            assert!(block.iter().all(|&b| b == 0) && (block.as_ptr() as usize).is_multiple_of(PAGE_BYTES));
            block.fill(7);
            assert_eq!(*Block::of(&block), *block);
        }
    }

    #[test]
    fn a_pool_lends_the_same_memory_again_and_keeps_to_its_bound() {
        let pool = Pool::new(10 * PAGE_BYTES);
        let (first, second) = (pool.take(4 * PAGE_BYTES), pool.take(3 * PAGE_BYTES + 1));
        let address = first.as_ptr() as usize;
        assert_eq!(pool.held(), (8 * PAGE_BYTES, 0));
        drop(first);
        assert_eq!(pool.held(), (4 * PAGE_BYTES, 4 * PAGE_BYTES));
        let again = pool.take(4 * PAGE_BYTES - 5);
        assert_eq!((again.as_ptr() as usize, again.len()), (address, 4 * PAGE_BYTES - 5));
        // Beyond the bound it lends all the same, and keeps nothing.
        let large = pool.take(9 * PAGE_BYTES);
        drop((again, second));
        assert_eq!(pool.held(), (9 * PAGE_BYTES, 0));
        drop(large);
        assert_eq!(pool.held(), (0, 9 * PAGE_BYTES));
        // Another size needs room: what was free goes.
        let other = pool.take(2 * PAGE_BYTES);
        assert_eq!(pool.held(), (2 * PAGE_BYTES, 0));
        drop(other);
        assert_eq!(pool.held(), (0, 2 * PAGE_BYTES));
    }
}
