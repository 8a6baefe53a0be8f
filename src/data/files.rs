//! Which files a list of paths stands for, and of what kind each is. It must never know what the bytes mean.
//!
//! A file that is named is always taken; a name with `*`, `?` or `[` that no file has is a pattern. In a folder, files are
//! taken in the order of their names, folders in them likewise, but hidden entries and binary files (a NUL byte near the
//! start) are not.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::DataError;

/// Bytes at the start of a file in which a NUL makes it binary.
const SNIFFED: u64 = 8000;

/// What a file holds, as its name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// One document.
    Text,
    /// A document a line, in a field of an object: `.jsonl`, `.ndjson`.
    JsonLines,
    /// Ids of tokens, of nanoGPT or llm.c: `.bin`.
    Ids,
}

/// One file.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub path: PathBuf,
    pub kind: Kind,
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub sources: Vec<Source>,
    /// Binary files met in folders.
    pub skipped: Vec<PathBuf>,
}

/// All files that the paths stand for, in order.
pub(super) fn find(paths: &[PathBuf]) -> Result<Found, DataError> {
    let mut found = Found::default();
    for path in paths {
        match fs::metadata(path) {
            Ok(about) if about.is_dir() => walk(path, &mut Vec::new(), &mut found)?,
            Ok(_) => found.take(path.clone()),
            Err(source) => match matches(path) {
                Some(files) if !files.is_empty() => files.into_iter().for_each(|file| found.take(file)),
                _ => return Err(failed(path)(source)),
            },
        }
    }
    Ok(found)
}

impl Found {
    fn take(&mut self, path: PathBuf) {
        let ends = |end: &str| path.extension().is_some_and(|e| e.eq_ignore_ascii_case(end));
        let kind = match () {
            () if ends("jsonl") || ends("ndjson") => Kind::JsonLines,
            () if ends("bin") => Kind::Ids,
            () => Kind::Text,
        };
        self.sources.push(Source { path, kind });
    }
}

/// The files of a pattern, by name; `None` where the path is none.
fn matches(path: &Path) -> Option<Vec<PathBuf>> {
    let pattern = path.to_str().filter(|p| p.contains(['*', '?', '[']))?;
    let found = glob::glob(pattern).ok()?;
    Some(found.filter_map(Result::ok).filter(|p| p.is_file()).collect())
}

/// Goes through a folder. `above` holds the real paths of the folders it lies in, so that a link to one of them ends the
/// walk.
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
            match binary(&path).map_err(failed(&path))? {
                true => found.skipped.push(path),
                false => found.take(path),
            }
        }
    }
    above.pop();
    Ok(())
}

fn binary(path: &Path) -> std::io::Result<bool> {
    let mut start = Vec::new();
    File::open(path)?.take(SNIFFED).read_to_end(&mut start)?;
    Ok(start.contains(&0))
}

/// An error of reading a file or folder.
pub(super) fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> DataError {
    |source| DataError::Read { path: path.into(), source }
}
