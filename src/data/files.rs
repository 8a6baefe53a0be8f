//! Which files a list of paths stands for, and their bytes. It must never know what the bytes mean.
//!
//! A file that is named is always taken. In a folder, files are taken in the order of their names, folders in them
//! likewise, but hidden entries and binary files (a NUL byte near the start) are not.

use std::fs;
use std::path::{Path, PathBuf};

use super::DataError;

/// Bytes at the start of a file in which a NUL makes it binary.
const SNIFFED: usize = 8000;

/// One file, read.
pub(super) struct Source {
    pub path: PathBuf,
    pub bytes: Vec<u8>,
}

/// What was found.
#[derive(Default)]
pub(super) struct Found {
    pub sources: Vec<Source>,
    /// Binary files met in folders.
    pub skipped: Vec<PathBuf>,
}

/// Reads all files that the paths stand for, in order.
pub(super) fn read(paths: &[PathBuf]) -> Result<Found, DataError> {
    let mut found = Found::default();
    for path in paths {
        let about = fs::metadata(path).map_err(failed(path))?;
        if about.is_dir() {
            walk(path, &mut Vec::new(), &mut found)?;
        } else {
            let bytes = fs::read(path).map_err(failed(path))?;
            found.sources.push(Source { path: path.clone(), bytes });
        }
    }
    Ok(found)
}

/// Reads a folder. `above` holds the real paths of the folders it lies in, so that a link to one of them ends the walk.
fn walk(folder: &Path, above: &mut Vec<PathBuf>, found: &mut Found) -> Result<(), DataError> {
    let real = folder.canonicalize().map_err(failed(folder))?;
    if above.contains(&real) {
        return Ok(());
    }
    above.push(real);
    let mut entries = fs::read_dir(folder)
        .and_then(|entries| entries.map(|e| e.map(|e| e.path())).collect::<Result<Vec<_>, _>>())
        .map_err(failed(folder))?;
    entries.retain(|p| !p.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b".")));
    entries.sort();
    for path in entries {
        let about = fs::metadata(&path).map_err(failed(&path))?;
        if about.is_dir() {
            walk(&path, above, found)?;
        } else if about.is_file() {
            let bytes = fs::read(&path).map_err(failed(&path))?;
            match bytes[..bytes.len().min(SNIFFED)].contains(&0) {
                true => found.skipped.push(path),
                false => found.sources.push(Source { path, bytes }),
            }
        }
    }
    above.pop();
    Ok(())
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> DataError {
    |source| DataError::Read { path: path.into(), source }
}
