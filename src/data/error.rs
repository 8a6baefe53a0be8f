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
    /// A saved tokenizer that is none.
    #[error("{}: not a saved tokenizer: {reason}; give the folder of a finished run", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}
