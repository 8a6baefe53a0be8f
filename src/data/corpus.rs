//! The corpus: all text of a run as tokens, split into what is trained on and what is held out.

use std::path::PathBuf;

use super::files::{self, Source};
use super::{DataError, Tokenizer, TokenizerKind};

/// The text of a run.
#[derive(Debug)]
pub struct Corpus {
    /// Made from the whole text, so that the held out part has no unknown character.
    pub tokenizer: Tokenizer,
    /// Tokens to train on: the start of the text.
    pub train: Vec<u32>,
    /// Tokens held out: the end of the text; empty where `val_split` is 0.
    pub validation: Vec<u32>,
    /// Binary files in the given folders, which were left out.
    pub skipped: Vec<PathBuf>,
}

impl Corpus {
    /// Reads files and folders (text files in them, by name, recursively), joined in the order given, and keeps the last
    /// `val_split` of the tokens for validation. Each split that is there must have `min_len` tokens: a sequence and the
    /// token after it.
    ///
    /// # Errors
    /// [`DataError`] names the file, the offset or the split, and the cure.
    pub fn load(paths: &[PathBuf], kind: TokenizerKind, val_split: f64, min_len: usize) -> Result<Corpus, DataError> {
        if !(0.0..1.0).contains(&val_split) {
            return Err(DataError::Split { value: val_split });
        }
        let found = files::read(paths)?;
        if found.sources.iter().all(|s| s.bytes.is_empty()) {
            let paths = paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ");
            return Err(DataError::Empty { paths });
        }
        let (tokenizer, mut train) = match kind {
            TokenizerKind::Byte => {
                (Tokenizer::byte(), found.sources.iter().flat_map(|s| &s.bytes).map(|&b| b.into()).collect())
            }
            TokenizerKind::Char => characters(found.sources)?,
        };
        let kept = (train.len() as f64 * (1.0 - val_split)) as usize;
        let validation = train.split_off(kept);
        let corpus = Corpus { tokenizer, train, validation, skipped: found.skipped };
        corpus.expect(min_len, val_split)?;
        Ok(corpus)
    }

    /// The tokens of files and folders by a tokenizer that is there already, and the bytes they stand for.
    ///
    /// # Errors
    /// As [`Corpus::load`]; also where the tokenizer has no id for a character.
    pub fn read(paths: &[PathBuf], tokenizer: &Tokenizer) -> Result<(Vec<u32>, u64), DataError> {
        let (mut tokens, mut total) = (Vec::new(), 0);
        for Source { path, bytes } in files::read(paths)?.sources {
            total += bytes.len() as u64;
            if *tokenizer == Tokenizer::byte() {
                tokens.extend(bytes.into_iter().map(u32::from));
                continue;
            }
            let text = std::str::from_utf8(&bytes).map_err(|e| DataError::NotText { path, offset: e.valid_up_to() })?;
            tokens.extend(tokenizer.encode(text)?);
        }
        Ok((tokens, total))
    }

    fn expect(&self, needed: usize, val_split: f64) -> Result<(), DataError> {
        let short = |split, tokens, cure| Err(DataError::TooShort { split, tokens, needed, cure });
        if self.train.len() < needed {
            return short("training", self.train.len(), "give more text or a smaller --seq-len");
        }
        if val_split > 0.0 && self.validation.len() < needed {
            let cure = "give more text, a larger --val-split, a smaller --seq-len, or --val-split 0 --eval-every 0";
            return short("validation", self.validation.len(), cure);
        }
        Ok(())
    }
}

/// The tokens of all characters. Each file is UTF-8 on its own: a character does not go over from one to the next.
fn characters(sources: Vec<Source>) -> Result<(Tokenizer, Vec<u32>), DataError> {
    let mut text = String::new();
    for Source { path, bytes } in sources {
        let part = std::str::from_utf8(&bytes).map_err(|e| DataError::NotText { path, offset: e.valid_up_to() })?;
        text.push_str(part);
    }
    let tokenizer = Tokenizer::characters(&text);
    let tokens = tokenizer.encode(&text)?;
    Ok((tokenizer, tokens))
}
