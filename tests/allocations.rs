//! What a piece of code holds in memory at most, measured by thread, so that a parser which believes a number in a file is
//! found out. It must never know what is measured.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    /// Bytes that this thread has allocated and not freed; what another thread frees stays counted.
    static HELD: Cell<isize> = const { Cell::new(0) };
    /// The most of them since the measurement began.
    static MOST: Cell<isize> = const { Cell::new(0) };
}

/// The system's allocator, counting.
struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

fn count(bytes: isize) {
    // A thread that ends may free what it holds after its counters are gone.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        let _ = MOST.try_with(|most| most.set(most.get().max(held.get())));
    });
}

// Safety: every call goes to the system's allocator unchanged; the counters are plain cells that never allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // Safety: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // Safety: as the caller promised.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // Safety: as the caller promised.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // Safety: as the caller promised.
        unsafe { System.dealloc(at, layout) }
    }
}

/// What `work` returns, and the most bytes that it held on this thread.
pub fn measured<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.get();
    MOST.set(before);
    let found = work();
    (found, (MOST.get() - before) as usize)
}

#[test]
fn the_most_that_is_held_is_counted() {
    let (len, most) = measured(|| {
        drop(vec![1u8; 3 << 20]);
        vec![0u64; 1 << 17].len() + vec![2u8; 10].len()
    });
    assert_eq!(len, (1 << 17) + 10);
    assert!((3 << 20..(3 << 20) + 4096).contains(&most), "{most}");
}
