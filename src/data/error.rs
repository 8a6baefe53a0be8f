//! What can be wrong with data, typed: each variant names the file or the value, and the cure.

use std::path::PathBuf;

/// An error of the data.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file or folder cannot be read.
    #[error("data {}: {source}; give a text file, or a folder of them, that can be read", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Nothing was found to read.
    #[error("data {paths}: no text in it; give text files, or folders that hold some")]
    Empty {
        /// All paths that were given.
        paths: String,
    },
    /// Bytes that are not UTF-8 where characters are wanted.
    #[error("data {}: not UTF-8 text at byte {offset}; give text, or use --tokenizer byte", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// The first byte that is not UTF-8.
        offset: usize,
    },
    /// A split that does not hold one context.
    #[error("the {split} text has {tokens} tokens, one sequence needs {needed}; {cure}")]
    TooShort {
        /// `training` or `validation`.
        split: &'static str,
        /// Tokens it has.
        tokens: usize,
        /// Tokens it needs.
        needed: usize,
        /// What would help.
        cure: &'static str,
    },
    /// A share of validation text that cannot be.
    #[error("--val-split {value}: must be at least 0 and less than 1; 0.1 keeps the last tenth for validation")]
    Split {
        /// What was asked for.
        value: f64,
    },
    /// A character that the tokenizer has no id for.
    #[error(
        "character {character:?} at byte {offset} is not in the {known} characters of the training text; leave it out"
    )]
    UnknownCharacter {
        /// The character.
        character: char,
        /// Its first byte in the text.
        offset: usize,
        /// Size of the vocabulary.
        known: usize,
    },
    /// An id outside the vocabulary.
    #[error("token {token} is not in the vocabulary of {vocabulary}; the tokenizer is not the one of this model")]
    UnknownToken {
        /// The id.
        token: u32,
        /// Size of the vocabulary.
        vocabulary: usize,
    },
    /// A file of ids that is none, or is broken.
    #[error("data {}: {reason}", path.display())]
    Ids {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what would do.
        reason: String,
    },
    /// An id in a file that the vocabulary does not have.
    #[error(
        "data {}: id {token} at byte {offset} is beyond the vocabulary of {vocabulary}; give --tokenizer the one that made it",
        path.display()
    )]
    Beyond {
        /// The file.
        path: PathBuf,
        /// The first byte of the id.
        offset: u64,
        /// The id.
        token: u32,
        /// Size of the vocabulary.
        vocabulary: usize,
    },
    /// A line of JSON that gives no document.
    #[error("data {} line {line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong, and what would do.
        reason: String,
    },
    /// Prepared data that is broken or does not fit.
    #[error("prepared data {}: {reason}; prepare it again with `gaufre prepare`", path.display())]
    Prepared {
        /// The folder or the file in it.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Things that were asked for and exclude each other.
    #[error("{flag} {value}: {cure}")]
    Conflict {
        /// The flag.
        flag: &'static str,
        /// Its value.
        value: String,
        /// Why not, and what would do.
        cure: String,
    },
    /// A folder that cannot be written.
    #[error("cannot write {}: {source}; choose a folder that can be written and has room, with --out or --cache", path.display())]
    Write {
        /// Folder or file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// What the tokenizer itself says.
    #[error("the tokenizer cannot do it: {reason}; use another --tokenizer")]
    Encode {
        /// Its words.
        reason: String,
    },
    /// A saved tokenizer that is none.
    #[error("{}: not a saved tokenizer: {reason}; give byte, char, or a tokenizer.json of Hugging Face or of a run", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// What a parser says, in one line: it repeats words of the file, which may hold anything.
pub(super) fn one_line(said: impl std::fmt::Display) -> String {
    said.to_string().replace(char::is_control, " ")
}

impl DataError {
    /// Nothing to read in paths.
    pub(super) fn empty(paths: &[PathBuf]) -> DataError {
        DataError::Empty { paths: paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ") }
    }
}
