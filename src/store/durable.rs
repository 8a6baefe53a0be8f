//! Files that are whole or not there: written beside their place, synced, moved into it, and the folder synced too, so
//! that neither a crash nor a full disk can spoil what was good before. It must never know what a file holds.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// A file that could not be written. What stood in its place before is untouched.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {source}; choose a folder that can be written and has room", path.display())]
pub struct WriteError {
    /// The file.
    pub path: PathBuf,
    /// What the system says.
    pub source: io::Error,
}

/// Writes a file whole.
///
/// # Errors
/// [`WriteError`]; the file is then as it was before.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), WriteError> {
    write_with(path, |file| file.write_all(bytes))
}

/// Writes a file whole, its bytes given piece by piece by `fill`.
///
/// # Errors
/// [`WriteError`], also where `fill` fails; the file is then as it was before.
pub fn write_with(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> Result<(), WriteError> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.part", std::process::id()));
    let part = path.with_file_name(name);
    replace(path, &part, fill).map_err(|source| {
        // The error that matters is the first; a part that cannot be removed is only litter.
        let _ = fs::remove_file(&part);
        WriteError { path: path.into(), source }
    })
}

fn replace(path: &Path, part: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(part)?);
    fill(&mut file)?;
    file.into_inner().map_err(|e| e.into_error())?.sync_all()?;
    fs::rename(part, path)?;
    sync_folder(path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))
}

/// Makes the names in a folder durable. Only Unix can open a folder; elsewhere the rename itself is durable enough.
fn sync_folder(folder: &Path) -> io::Result<()> {
    match cfg!(unix) {
        true => File::open(folder)?.sync_all(),
        false => Ok(()),
    }
}
