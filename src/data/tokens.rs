//! A long row of tokens that is read in windows: in memory, or in mapped files of 16 or 32-bit ids, which the system
//! brings in as they are read. It must never know where the files came from.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use memmap2::Mmap;
use rayon::prelude::*;

/// Tokens; a clone or a part of them shares their storage.
#[derive(Clone, Debug)]
pub struct Tokens {
    pieces: Arc<Vec<Piece>>,
    /// Number of tokens before each piece.
    starts: Arc<Vec<usize>>,
    range: Range<usize>,
}

/// Tokens that lie in one place.
#[derive(Debug)]
pub(super) enum Piece {
    Memory(Vec<u32>),
    Mapped(Mapped),
}

/// A file of ids behind a header.
#[derive(Debug)]
pub(super) struct Mapped {
    map: Mmap,
    header: usize,
    width: Width,
}

/// Bytes of an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    Two,
    Four,
}

impl Width {
    /// The least that holds every id of a vocabulary.
    pub fn of(vocabulary: usize) -> Width {
        if vocabulary <= 1 << 16 { Width::Two } else { Width::Four }
    }

    pub fn bytes(self) -> usize {
        match self {
            Width::Two => 2,
            Width::Four => 4,
        }
    }

    /// Appends the bytes of an id, least first.
    pub fn write(self, id: u32, out: &mut Vec<u8>) {
        out.extend_from_slice(&id.to_le_bytes()[..self.bytes()]);
    }

    /// The ids of bytes.
    pub fn read(self, bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
        let two = self == Width::Two;
        bytes.chunks_exact(self.bytes()).map(move |b| match two {
            true => u16::from_le_bytes([b[0], b[1]]).into(),
            false => u32::from_le_bytes([b[0], b[1], b[2], b[3]]),
        })
    }
}

impl Mapped {
    /// Maps a file whose ids follow `header` bytes, to its end.
    pub fn open(file: &File, header: usize, width: Width) -> io::Result<Mapped> {
        // Safety: the map is only read, and as bytes, of which every value is valid. That another program shortens the
        // file meanwhile is the one thing no reader of a mapped file can exclude; the documentation of `gaufre prepare`
        // asks to leave the folder alone while it is in use.
        let map = unsafe { Mmap::map(file)? };
        if map.len() < header {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it ends inside its header"));
        }
        Ok(Mapped { map, header, width })
    }

    /// The bytes before the ids.
    pub fn header(&self) -> &[u8] {
        &self.map[..self.header]
    }

    /// The bytes of the ids.
    pub fn payload(&self) -> &[u8] {
        &self.map[self.header..]
    }

    fn len(&self) -> usize {
        self.payload().len() / self.width.bytes()
    }

    /// Index and value of the first id outside a vocabulary.
    pub fn beyond(&self, vocabulary: usize) -> Option<(usize, u32)> {
        const TOGETHER: usize = 1 << 20;
        let chunks = self.payload().par_chunks(TOGETHER).enumerate();
        chunks.find_map_first(|(i, bytes)| {
            let found = self.width.read(bytes).enumerate().find(|(_, id)| *id as usize >= vocabulary)?;
            Some((i * (TOGETHER / self.width.bytes()) + found.0, found.1))
        })
    }
}

impl Piece {
    pub fn len(&self) -> usize {
        match self {
            Piece::Memory(ids) => ids.len(),
            Piece::Mapped(mapped) => mapped.len(),
        }
    }

    fn extend(&self, range: Range<usize>, out: &mut Vec<u32>) {
        match self {
            Piece::Memory(ids) => out.extend_from_slice(&ids[range]),
            Piece::Mapped(m) => {
                let width = m.width.bytes();
                out.extend(m.width.read(&m.payload()[range.start * width..range.end * width]));
            }
        }
    }
}

impl Tokens {
    /// The tokens of pieces, one after the other.
    pub(super) fn join(pieces: Vec<Piece>) -> Tokens {
        let mut starts = Vec::with_capacity(pieces.len());
        let mut len = 0;
        for piece in &pieces {
            starts.push(len);
            len += piece.len();
        }
        Tokens { pieces: Arc::new(pieces), starts: Arc::new(starts), range: 0..len }
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// The tokens before `at`, and the others.
    ///
    /// # Panics
    /// When there are fewer than `at`.
    pub fn split_at(&self, at: usize) -> (Tokens, Tokens) {
        assert!(at <= self.len(), "{at} of {}", self.len());
        let middle = self.range.start + at;
        let part = |range| Tokens { range, ..self.clone() };
        (part(self.range.start..middle), part(middle..self.range.end))
    }

    /// Appends `len` tokens from `start` on.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn extend(&self, start: usize, len: usize, out: &mut Vec<u32>) {
        assert!(start <= self.len() && len <= self.len() - start, "{start} and {len} more of {}", self.len());
        let (mut at, end) = (self.range.start + start, self.range.start + start + len);
        // The last piece that starts at `at` or before it; empty ones may share its start.
        let mut piece = self.starts.partition_point(|s| *s <= at).saturating_sub(1);
        while at < end {
            let first = at - self.starts[piece];
            let taken = (self.pieces[piece].len() - first).min(end - at);
            self.pieces[piece].extend(first..first + taken, out);
            at += taken;
            piece += 1;
        }
    }

    /// All tokens, for texts that are known to be short.
    pub fn to_vec(&self) -> Vec<u32> {
        let mut out = Vec::with_capacity(self.len());
        self.extend(0, self.len(), &mut out);
        out
    }
}

impl From<Vec<u32>> for Tokens {
    fn from(ids: Vec<u32>) -> Tokens {
        Tokens::join(vec![Piece::Memory(ids)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_go_over_the_ends_of_pieces() {
        let lens = [3, 0, 4, 1, 0];
        let mut next = 0..8u32;
        let pieces = lens.map(|n| Piece::Memory(next.by_ref().take(n).collect())).into();
        let (head, tail) = Tokens::join(pieces).split_at(2);
        assert_eq!((head.to_vec(), tail.to_vec()), (vec![0, 1], vec![2, 3, 4, 5, 6, 7]));
        for start in 0..=6 {
            for len in 0..=6 - start {
                let mut window = Vec::new();
                tail.extend(start, len, &mut window);
                assert_eq!(window, (2 + start as u32..2 + (start + len) as u32).collect::<Vec<_>>());
            }
        }
    }
}
