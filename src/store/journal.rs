//! The journal of a store that is updated in place: what a step is about to replace, and all that the rest of the step needs,
//! on the disk before the first byte is replaced. After a crash it is played again, which changes nothing that it had done
//! already, and the step goes on from there. It must never know what the words of a mark mean.
//!
//! File: magic, length of the header (u64), header (JSON), words of the mark; blocks, each from the next page on; XXH3 (128
//! bits) of all that but the padding. It takes its place by a rename once it is durable, so there is never half of one.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use super::block::Block;
use super::direct::PAGE_BYTES;
use super::disk::DiskError;
use super::durable::{self, Access, Disk, ReadError, WriteError};

const MAGIC: &[u8; 8] = b"GAUFREJ1";
/// Longest header that is read.
const HEADER_BYTES: u64 = 1 << 28;

/// How far a step is: what a caller needs to go on with it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mark {
    /// Number of the step, from 1.
    pub step: u64,
    /// The caller's own words.
    pub note: serde_json::Value,
    /// Numbers, by their bits.
    pub words: Vec<Vec<u32>>,
}

/// A step that was cut short after it began to replace what it read.
#[derive(Clone, Debug, PartialEq)]
pub struct Interrupted {
    /// How far it was.
    pub mark: Mark,
    /// Tensors whose gradients are waiting on the disk.
    pub waiting: Vec<usize>,
}

/// Rows of an array, and what they become.
pub struct Replacement {
    /// Name of the array, the prefix of its role included.
    pub array: String,
    /// First row.
    pub first_row: usize,
    /// Number of rows.
    pub rows: usize,
    /// Their new values, packed.
    pub block: Arc<Block>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    step: u64,
    note: serde_json::Value,
    /// Lengths of the words.
    words: Vec<usize>,
    /// Numbers of the tensors whose gradients wait.
    waiting: Vec<usize>,
    /// Arrays that are on the disk once this journal was played.
    present: BTreeSet<String>,
    entries: Vec<Entry>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    array: String,
    first_row: usize,
    rows: usize,
    bytes: usize,
}

/// A journal in memory.
pub struct Journal {
    header: Header,
    words: Vec<Vec<u32>>,
    blocks: Vec<Arc<Block>>,
}

impl Journal {
    /// What is to be replaced at `mark`.
    pub fn new(mark: Mark, waiting: Vec<usize>, present: BTreeSet<String>, replacements: Vec<Replacement>) -> Journal {
        let entry = |r: &Replacement| Entry {
            array: r.array.clone(),
            first_row: r.first_row,
            rows: r.rows,
            bytes: r.block.len(),
        };
        let header = Header {
            step: mark.step,
            note: mark.note,
            words: mark.words.iter().map(Vec::len).collect(),
            waiting,
            present,
            entries: replacements.iter().map(entry).collect(),
        };
        Journal { header, words: mark.words, blocks: replacements.into_iter().map(|r| r.block).collect() }
    }

    /// Puts it in the place of the one before.
    ///
    /// # Errors
    /// [`WriteError`]; the one before is then whole.
    pub fn write(&self, disk: &dyn Disk, path: &Path) -> Result<(), WriteError> {
        let part = durable::part(path);
        let done = self
            .write_part(disk, &part)
            .and_then(|()| disk.rename(&part, path))
            .and_then(|()| disk.sync_folder(durable::parent(path)));
        done.map_err(|source| {
            // The error that matters is the first; a part that cannot be removed is only litter.
            let _ = disk.remove_file(&part);
            WriteError { path: path.into(), source }
        })
    }

    /// Every block begins on a page, so that it passes the page cache by.
    fn write_part(&self, disk: &dyn Disk, part: &Path) -> io::Result<()> {
        let header = serde_json::to_vec(&self.header)?;
        let words = self.words.iter().flat_map(|words| bytemuck::cast_slice::<u32, u8>(words));
        let mut head = [MAGIC, &(header.len() as u64).to_le_bytes()[..], &header].concat();
        head.extend(words);
        let (file, mut hash, mut end) = (disk.open(part, Access::Create)?, Xxh3::new(), 0);
        let mut put = |bytes: &[u8]| {
            hash.update(bytes);
            file.write_at(end, bytes)?;
            end += padded(bytes.len() as u64);
            Ok::<_, io::Error>(())
        };
        put(&Block::of(&head))?;
        self.blocks.iter().try_for_each(|block| put(block))?;
        file.write_at(end, &Block::of(&hash.digest128().to_le_bytes()))?;
        file.sync()
    }
}

/// A journal on the disk, found whole.
pub struct Found {
    header: Header,
    words: Vec<Vec<u32>>,
    path: PathBuf,
    /// Bytes before the padding that the first block follows.
    head: u64,
}

impl Found {
    /// Opens a journal; `None` where there is none.
    ///
    /// # Errors
    /// [`DiskError::Damaged`] where it is not what was written.
    pub fn open(path: &Path) -> Result<Option<Found>, DiskError> {
        let read = |source| DiskError::from(ReadError { path: path.into(), source });
        let damaged = |reason: String| DiskError::Damaged { path: path.into(), reason };
        if !path.exists() {
            return Ok(None);
        }
        let mut file = BufReader::with_capacity(1 << 20, File::open(path).map_err(read)?);
        let mut start = [0; 16];
        file.read_exact(&mut start).map_err(read)?;
        let length = u64::from_le_bytes(start[8..].try_into().expect("eight bytes"));
        if &start[..8] != MAGIC || length > HEADER_BYTES {
            return Err(damaged("not a journal".into()));
        }
        let mut text = vec![0; length as usize];
        file.read_exact(&mut text).map_err(read)?;
        let header: Header = serde_json::from_slice(&text).map_err(|e| damaged(e.to_string()))?;
        let mut words = Vec::with_capacity(header.words.len());
        for &len in &header.words {
            let mut some = vec![0u32; len];
            file.read_exact(bytemuck::cast_slice_mut(&mut some)).map_err(read)?;
            words.push(some);
        }
        let head = 16 + length + 4 * header.words.iter().sum::<usize>() as u64;
        let found = Found { header, words, path: path.into(), head };
        match found.is_whole().map_err(read)? {
            true => Ok(Some(found)),
            false => Err(damaged("its hash is not that of what it holds".into())),
        }
    }

    /// The step that it belongs to.
    pub fn step(&self) -> u64 {
        self.header.step
    }

    /// Hands out each replacement in turn, as `play(array, first row, rows, bytes)`, and gives what the rest of the step
    /// needs, and the arrays that are on the disk then.
    ///
    /// # Errors
    /// What `play` says; [`DiskError::Read`].
    pub fn play(
        self,
        mut play: impl FnMut(&str, usize, usize, Block) -> Result<(), DiskError>,
    ) -> Result<(Interrupted, BTreeSet<String>), DiskError> {
        let read = |source| ReadError { path: self.path.clone(), source };
        let mut file = File::open(&self.path).map_err(read)?;
        let mut at = padded(self.head);
        for Entry { array, first_row, rows, bytes } in &self.header.entries {
            let mut block = Block::new(*bytes);
            file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut block)).map_err(read)?;
            at += padded(*bytes as u64);
            play(array, *first_row, *rows, block)?;
        }
        let Header { step, note, waiting, present, .. } = self.header;
        Ok((Interrupted { mark: Mark { step, note, words: self.words }, waiting }, present))
    }

    /// Whether it ends in the hash of what stands before, padding left out.
    fn is_whole(&self) -> io::Result<bool> {
        let mut file = File::open(&self.path)?;
        let pieces = std::iter::once(self.head).chain(self.header.entries.iter().map(|entry| entry.bytes as u64));
        let end = pieces.clone().map(padded).sum::<u64>();
        if file.metadata()?.len() != end + 16 {
            return Ok(false);
        }
        let (mut hash, mut at, mut some) = (Xxh3::new(), 0, vec![0; 1 << 20]);
        for bytes in pieces {
            file.seek(SeekFrom::Start(at))?;
            let mut left = bytes;
            while left > 0 {
                let n = some.len().min(left as usize);
                file.read_exact(&mut some[..n])?;
                hash.update(&some[..n]);
                left -= n as u64;
            }
            at += padded(bytes);
        }
        let mut last = [0; 16];
        file.seek(SeekFrom::Start(end))?;
        file.read_exact(&mut last)?;
        Ok(hash.digest128().to_le_bytes() == last)
    }
}

/// Bytes with the padding that follows them.
fn padded(bytes: u64) -> u64 {
    bytes.next_multiple_of(PAGE_BYTES as u64)
}
