//! Files that are whole or not there: written beside their place, synced, moved into it, and the folder synced too, so
//! that neither a crash nor a full disk can spoil what was good before. Whole folders likewise. Every operation that
//! changes a disk goes through [`Disk`], and so does random access to files that are too large to be written whole, so
//! that a test can let any one of them fail. It must never know what a file holds.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::direct::RealFile;

/// A file or folder that could not be written. What stood in its place before is untouched.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {source}; choose a folder that can be written and has room", path.display())]
pub struct WriteError {
    /// The file or folder.
    pub path: PathBuf,
    /// What the system says.
    pub source: io::Error,
}

/// A file that could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}: {source}; see that the file is whole and its disk works, or choose another folder", path.display())]
pub struct ReadError {
    /// The file.
    pub path: PathBuf,
    /// What the system says.
    pub source: io::Error,
}

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To read a file that is there.
    Read,
    /// To read and write a file that is there.
    Write,
    /// To read and write a file that is created, or emptied where it is there.
    Create,
}

/// What may change a disk, and random access to what is on it.
pub trait Disk: Send + Sync {
    /// Creates a file, or empties the one that is there.
    ///
    /// # Errors
    /// Here and below: what the system says.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Creates a folder and those above it, where they are not there.
    ///
    /// # Errors
    /// As [`Disk::create`].
    fn create_folder(&self, path: &Path) -> io::Result<()>;
    /// Gives a file or folder another name, in the place of a file that has it.
    ///
    /// # Errors
    /// As [`Disk::create`].
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes the names in a folder durable.
    ///
    /// # Errors
    /// As [`Disk::create`].
    fn sync_folder(&self, path: &Path) -> io::Result<()>;
    /// Removes a file.
    ///
    /// # Errors
    /// As [`Disk::create`].
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes a folder and what is in it.
    ///
    /// # Errors
    /// As [`Disk::create`].
    fn remove_folder(&self, path: &Path) -> io::Result<()>;
    /// Opens a file for random access.
    ///
    /// # Errors
    /// As [`Disk::create`].
    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn RandomFile>>;
    /// Bytes that may still be written where `path` is, which must be there.
    ///
    /// # Errors
    /// As [`Disk::create`].
    fn available(&self, path: &Path) -> io::Result<u64>;
    /// The same disk, for work in the background.
    fn share(&self) -> Arc<dyn Disk>;
}

/// A file that is read and written at any place, by several threads at once.
pub trait RandomFile: Send + Sync {
    /// Fills `bytes` from an offset on. What was never written is zeros.
    ///
    /// # Errors
    /// Here and below: what the system says; [`io::ErrorKind::UnexpectedEof`] where the file ends before.
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()>;
    /// Writes all of `bytes` at an offset.
    ///
    /// # Errors
    /// As [`RandomFile::read_at`].
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Bytes of the file.
    ///
    /// # Errors
    /// As [`RandomFile::read_at`].
    fn file_bytes(&self) -> io::Result<u64>;
    /// Cuts the file, or makes it longer by a hole, which takes no room where the file system has holes.
    ///
    /// # Errors
    /// As [`RandomFile::read_at`].
    fn set_len(&self, bytes: u64) -> io::Result<()>;
    /// Makes its contents durable.
    ///
    /// # Errors
    /// As [`RandomFile::read_at`].
    fn sync(&self) -> io::Result<()>;
}

/// A file being written.
pub trait DiskFile: Write + Send {
    /// Makes its contents durable.
    ///
    /// # Errors
    /// What the system says.
    fn sync(&mut self) -> io::Result<()>;
}

/// The disk of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(File::create(path)?))
    }

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    /// Only Unix can open a folder; elsewhere the rename itself is durable enough.
    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        match cfg!(unix) {
            true => File::open(path)?.sync_all(),
            false => Ok(()),
        }
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn RandomFile>> {
        Ok(Box::new(RealFile::open(path, access)?))
    }

    fn available(&self, path: &Path) -> io::Result<u64> {
        fs4::available_space(path)
    }

    fn share(&self) -> Arc<dyn Disk> {
        Arc::new(RealDisk)
    }
}

impl DiskFile for File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

/// Writes a file whole, on the disk of this machine.
///
/// # Errors
/// [`WriteError`]; the file is then as it was before.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), WriteError> {
    write_with(path, |file| file.write_all(bytes))
}

/// The same, the bytes given piece by piece by `fill`.
///
/// # Errors
/// [`WriteError`], also where `fill` fails; the file is then as it was before.
pub fn write_with(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), WriteError> {
    write_on(&RealDisk, path, fill)
}

/// The same, on any disk.
///
/// # Errors
/// As [`write_with`].
pub fn write_on(
    disk: &dyn Disk,
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), WriteError> {
    let part = part(path);
    let done = write_through(disk, &part, fill)
        .and_then(|()| disk.rename(&part, path))
        .and_then(|()| disk.sync_folder(parent(path)));
    done.map_err(|source| {
        // The error that matters is the first; a part that cannot be removed is only litter.
        let _ = disk.remove_file(&part);
        WriteError { path: path.into(), source }
    })
}

/// Writes a folder whole: `fill` writes the files, with [`write_through`], into the folder that it is given. A folder
/// that was there is replaced once the new one is durable.
///
/// # Errors
/// What `fill` says, or [`WriteError`] as it is; a folder that was there is then whole, here or under [`part`]'s name.
pub fn write_folder<E: From<WriteError>>(
    disk: &dyn Disk,
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let part = part(path);
    let failed = |source| E::from(WriteError { path: path.into(), source });
    let begin = || {
        if part.exists() {
            disk.remove_folder(&part)?;
        }
        disk.create_folder(&part)
    };
    let end = || {
        disk.sync_folder(&part)?;
        if path.exists() {
            remove_folder(disk, path)?;
        }
        disk.rename(&part, path)?;
        disk.sync_folder(parent(path))
    };
    let done = begin().map_err(failed).and_then(|()| fill(&part)).and_then(|()| end().map_err(failed));
    if done.is_err() {
        // As above: only litter, which the next writer removes.
        let _ = disk.remove_folder(&part);
    }
    done
}

/// Writes a new file and makes its contents, not yet its name, durable.
///
/// # Errors
/// What the system or `fill` says.
pub fn write_through(
    disk: &dyn Disk,
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let mut file = BufWriter::with_capacity(1 << 18, disk.create(path)?);
    fill(&mut file)?;
    file.into_inner().map_err(|e| e.into_error())?.sync()
}

/// Removes a folder so that none with its name is ever there in part.
///
/// # Errors
/// What the system says.
pub fn remove_folder(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    let mut old = path.as_os_str().to_os_string();
    old.push(".old.part");
    disk.rename(path, Path::new(&old))?;
    disk.remove_folder(Path::new(&old))
}

/// Where a file or folder is until it is whole. Names with this ending are litter to every reader.
pub fn part(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.part", std::process::id()));
    path.with_file_name(name)
}

/// The folder that a file is in.
pub fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
