//! Random access to a file of this machine, past its page cache where the system allows: a model that streams through
//! would otherwise push everything else out of memory, and be copied once more on its way. On Linux whole pages of
//! [`PAGE_BYTES`] in aligned memory go direct (`O_DIRECT`) where the file system has it; all else is buffered, and large
//! ranges of it are dropped from the cache again. It must never know what the bytes are.
//!
//! Direct and buffered requests may meet in one file, never in one page at the same time as long as each range is always
//! read and written by the same bounds; Linux keeps the two coherent for requests that follow one another.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::durable::{Access, RandomFile};

/// What offsets, lengths and addresses of direct requests are multiples of.
pub const PAGE_BYTES: usize = 4096;

/// Buffered requests from this size on do not stay in the cache. Smaller ones may: there are few bytes in them, and they
/// come again.
const DROPPED_BYTES: usize = 1 << 20;

/// A file of this machine.
pub struct RealFile {
    buffered: File,
    /// The same file, opened for direct requests.
    direct: Option<File>,
    /// Set once the file system took the flag and then refused a request.
    refused: AtomicBool,
}

impl RealFile {
    /// Opens a file.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(path: &Path, access: Access) -> io::Result<RealFile> {
        let mut options = OpenOptions::new();
        options.read(true).write(access != Access::Read);
        let create = access == Access::Create;
        let buffered = options.clone().create(create).truncate(create).open(path)?;
        uncached(&buffered);
        Ok(RealFile { buffered, direct: open_direct(&mut options, path)?, refused: AtomicBool::new(false) })
    }

    /// Moves all of a range, direct where it can be. `step` moves some bytes of a file from `done` on and says how many.
    fn transfer(
        &self,
        address: usize,
        length: usize,
        offset: u64,
        mut step: impl FnMut(&File, usize, usize) -> io::Result<usize>,
    ) -> io::Result<()> {
        let (mut done, mut through_cache) = (0, 0);
        while done < length {
            let whole = match (address + done).is_multiple_of(PAGE_BYTES)
                && (offset + done as u64).is_multiple_of(PAGE_BYTES as u64)
            {
                true => (length - done) / PAGE_BYTES * PAGE_BYTES,
                false => 0,
            };
            let direct = self.direct.as_ref().filter(|_| whole > 0 && !self.refused.load(Ordering::Relaxed));
            let (file, wanted) = direct.map_or((&self.buffered, length - done), |file| (file, whole));
            match step(file, done, wanted) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(moved) => {
                    done += moved;
                    through_cache += if direct.is_none() { moved } else { 0 };
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if direct.is_some() && error.kind() == io::ErrorKind::InvalidInput => {
                    self.refused.store(true, Ordering::Relaxed);
                }
                Err(error) => return Err(error),
            }
        }
        if through_cache >= DROPPED_BYTES {
            forget(&self.buffered, offset, length as u64);
        }
        Ok(())
    }
}

impl RandomFile for RealFile {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let (address, length) = (bytes.as_ptr() as usize, bytes.len());
        self.transfer(address, length, offset, |file, done, wanted| {
            read_some(file, &mut bytes[done..][..wanted], offset + done as u64)
        })
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.transfer(bytes.as_ptr() as usize, bytes.len(), offset, |file, done, wanted| {
            write_some(file, &bytes[done..][..wanted], offset + done as u64)
        })
    }

    fn file_bytes(&self) -> io::Result<u64> {
        Ok(self.buffered.metadata()?.len())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.buffered.set_len(bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.buffered.sync_all()?;
        // Only now is what was written through the cache clean, and can leave it.
        forget(&self.buffered, 0, 0);
        Ok(())
    }
}

#[cfg(unix)]
fn read_some(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, bytes, offset)
}

#[cfg(unix)]
fn write_some(file: &File, bytes: &[u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::write_at(file, bytes, offset)
}

#[cfg(windows)]
fn read_some(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, bytes, offset)
}

#[cfg(windows)]
fn write_some(file: &File, bytes: &[u8], offset: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_write(file, bytes, offset)
}

/// Opens a file once more for direct requests; `None` where its file system has none.
#[cfg(target_os = "linux")]
fn open_direct(options: &mut OpenOptions, path: &Path) -> io::Result<Option<File>> {
    use std::os::unix::fs::OpenOptionsExt;
    match options.custom_flags(rustix::fs::OFlags::DIRECT.bits() as i32).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(not(target_os = "linux"))]
fn open_direct(_: &mut OpenOptions, _: &Path) -> io::Result<Option<File>> {
    Ok(None)
}

/// Lets the clean pages of a range leave the cache; of the whole file where `bytes` is 0. Advice: nothing depends on it.
#[cfg(target_os = "linux")]
fn forget(file: &File, offset: u64, bytes: u64) {
    let _ = rustix::fs::fadvise(file, offset, std::num::NonZeroU64::new(bytes), rustix::fs::Advice::DontNeed);
}

#[cfg(not(target_os = "linux"))]
fn forget(_: &File, _: u64, _: u64) {}

/// macOS has no direct requests, but files that it does not cache. Advice: nothing depends on it.
#[cfg(target_os = "macos")]
fn uncached(file: &File) {
    let _ = rustix::fs::fcntl_nocache(file, true);
}

#[cfg(not(target_os = "macos"))]
fn uncached(_: &File) {}

#[cfg(test)]
mod tests {
    use super::super::durable::{Disk, RealDisk};
    use super::*;

    /// Bytes at an address that is a multiple of a page, moved by `shift`.
    fn at_address(memory: &mut [u8], shift: usize, length: usize) -> &mut [u8] {
        let start = memory.as_ptr().align_offset(PAGE_BYTES) + shift;
        &mut memory[start..start + length]
    }

    #[test]
    fn direct_and_buffered_ranges_give_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let file = RealDisk.open(&path, Access::Create).unwrap();
        let pattern: Vec<u8> = (0..100_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        file.set_len(100_000).unwrap();
        let mut memory = vec![0u8; 120_000];
        // Aligned with a tail, aligned memory at an odd offset, odd memory at an aligned offset, both odd.
        for (offset, length, shift) in [(0, 50_000, 0), (50_000, 9_000, 0), (61_440, 8_192, 1), (59_000, 2_440, 5)] {
            let bytes = at_address(&mut memory, shift, length);
            bytes.copy_from_slice(&pattern[offset..offset + length]);
            file.write_at(offset as u64, bytes).unwrap();
        }
        file.write_at(69_632, &pattern[69_632..]).unwrap();
        file.sync().unwrap();
        assert_eq!(file.file_bytes().unwrap(), 100_000);
        for (offset, length, shift) in [(0, 100_000, 0), (4096, 8192, 0), (4096, 8192, 3), (777, 65_536, 0)] {
            let bytes = at_address(&mut memory, shift, length);
            bytes.fill(0);
            file.read_at(offset as u64, bytes).unwrap();
            assert!(*bytes == pattern[offset..offset + length], "{length} bytes at {offset}, memory at {shift}");
        }
        assert!(std::fs::read(&path).unwrap() == pattern);
    }

    #[test]
    fn what_is_not_there_is_an_error_and_holes_are_zeros() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        assert_eq!(RealDisk.open(&path, Access::Write).err().unwrap().kind(), io::ErrorKind::NotFound);
        RealDisk.open(&path, Access::Create).unwrap().set_len(10_000).unwrap();
        let file = RealDisk.open(&path, Access::Read).unwrap();
        let mut memory = vec![1u8; 20_000];
        let bytes = at_address(&mut memory, 0, 10_000);
        file.read_at(0, bytes).unwrap();
        assert!(bytes.iter().all(|&b| b == 0));
        for offset in [4096, 8192, 12_288] {
            let error = file.read_at(offset, at_address(&mut memory, 0, 8192)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "at {offset}");
        }
        assert!(file.write_at(0, &[1]).is_err(), "opened to read");
        assert!(RealDisk.available(folder.path()).unwrap() > 0);
    }
}
