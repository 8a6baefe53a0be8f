//! Text to prepared data, in constant memory: blocks of documents are read, encoded on all cores and written in order. It
//! must never know who asked for it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use xxhash_rust::xxh3::Xxh3;

use super::documents::{self, Block, Reading};
use super::files::{self, Kind, Source};
use super::shards::{self, Writer};
use super::tokens::{Piece, Tokens};
use super::{DataError, Tokenizer, TokenizerKind, ids};

/// What is to be prepared.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Files, folders and patterns.
    pub data: Vec<PathBuf>,
    /// The same, for validation.
    pub val_data: Vec<PathBuf>,
    /// How text becomes tokens.
    pub tokenizer: TokenizerKind,
    /// Share of the tokens, at their end, that is for validation; `None`: a tenth of text, nothing of `.bin` files and
    /// where there is `val_data`.
    pub val_split: Option<f64>,
    /// The field of JSON lines that holds the text.
    pub field: String,
    /// What stands between two documents; `None`: `<|endoftext|>` where the tokenizer has that, else nothing.
    pub separator: Option<String>,
}

/// What was prepared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// Documents; a file of ids counts as one.
    pub documents: u64,
    /// Tokens to train on.
    pub train_tokens: usize,
    /// Tokens for validation.
    pub validation_tokens: usize,
    /// Size of the vocabulary.
    pub vocab_size: usize,
    /// Bytes that were read.
    pub source_bytes: u64,
    /// Binary files in the given folders, which were left out.
    pub skipped: Vec<PathBuf>,
}

/// Share of a text that is held out when nothing is said.
pub const VAL_SPLIT: f64 = 0.1;

/// Bytes that are encoded together: enough for all cores, and a bound of the memory.
const TOGETHER: usize = 8 << 20;

/// Prepares data into a folder that is not there yet, or is empty; it appears whole or not at all.
///
/// # Errors
/// [`DataError`] names the file and the place in it, or the folder.
pub fn prepare(plan: &Plan, out: &Path, shard_tokens: usize) -> Result<Prepared, DataError> {
    if shard_tokens == 0 {
        let cure = "must be 1 or more; 100000000 is usual".into();
        return Err(DataError::Conflict { flag: "--shard-tokens", value: "0".into(), cure });
    }
    if std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) {
        let cure = "holds something already; choose another folder, or remove it".into();
        return Err(DataError::Conflict { flag: "--out", value: out.display().to_string(), cure });
    }
    let inputs = Inputs::find(plan)?;
    let tokenizer = inputs.tokenizer(plan)?;
    inputs.write(plan, &tokenizer, out, shard_tokens)
}

/// The files of a plan.
pub(super) struct Inputs {
    pub train: Vec<Source>,
    pub validation: Vec<Source>,
    pub skipped: Vec<PathBuf>,
}

impl Inputs {
    pub fn find(plan: &Plan) -> Result<Inputs, DataError> {
        plan.check()?;
        let (train, validation) = (files::find(&plan.data)?, files::find(&plan.val_data)?);
        for (found, paths) in [(&train, &plan.data), (&validation, &plan.val_data)] {
            if found.sources.is_empty() && !paths.is_empty() {
                return Err(DataError::empty(paths));
            }
        }
        let skipped = [train.skipped, validation.skipped].concat();
        Ok(Inputs { train: train.sources, validation: validation.sources, skipped })
    }

    fn all(&self) -> impl Iterator<Item = &Source> {
        self.train.iter().chain(&self.validation)
    }

    /// Whether all are files of ids.
    pub fn only_ids(&self) -> bool {
        self.all().all(|s| s.kind == Kind::Ids)
    }

    /// The share held out when nothing else was said.
    fn val_split(&self, plan: &Plan) -> f64 {
        let default = if self.only_ids() || !self.validation.is_empty() { 0.0 } else { VAL_SPLIT };
        plan.val_split.unwrap_or(default)
    }

    /// How many of the tokens are to train on, when `given` of `total` came from the data that is not for validation.
    pub fn split(&self, plan: &Plan, given: usize, total: usize) -> usize {
        match self.validation.is_empty() {
            true => (total as f64 * (1.0 - self.val_split(plan))) as usize,
            false => given,
        }
    }

    /// The tokenizer of a plan. `char` is made from all the text, so that what is held out has no unknown character.
    pub fn tokenizer(&self, plan: &Plan) -> Result<Tokenizer, DataError> {
        match &plan.tokenizer {
            TokenizerKind::Byte => Ok(Tokenizer::byte()),
            TokenizerKind::File(path) => Tokenizer::load(path),
            TokenizerKind::Char => {
                if let Some(ids) = self.all().find(|s| s.kind == Kind::Ids) {
                    let reason =
                        "holds ids, not characters; give --tokenizer byte or the tokenizer.json that made them";
                    return Err(DataError::Ids { path: ids.path.clone(), reason: reason.into() });
                }
                let mut seen = vec![false; char::MAX as usize + 1];
                let mut note = |text: &str| text.chars().for_each(|c| seen[c as usize] = true);
                plan.separator.iter().for_each(|s| note(s));
                for source in self.all() {
                    documents::read(source, plan.reading(true), &mut |block| {
                        note(&String::from_utf8_lossy(&block.bytes));
                        Ok(())
                    })?;
                }
                let characters: BTreeSet<char> = ('\0'..=char::MAX).filter(|c| seen[*c as usize]).collect();
                match characters.is_empty() {
                    true => Err(DataError::empty(&plan.data)),
                    false => Ok(Tokenizer::of_characters(characters)),
                }
            }
        }
    }

    /// A checksum of all that the prepared data follows from, but for the split.
    pub fn key(&self, plan: &Plan, tokenizer: &Tokenizer) -> Result<u64, DataError> {
        let mut hash = Xxh3::new();
        hash.update(&shards::VERSION.to_le_bytes());
        hash.update(format!("{:?}{}", plan.separator, tokenizer.to_json()).as_bytes());
        for (part, sources) in [&self.train, &self.validation].into_iter().enumerate() {
            for source in sources {
                hash.update(&[part as u8, u8::from(source.kind == Kind::Ids)]);
                documents::read(source, plan.reading(false), &mut |block| {
                    hash.update(&(block.bytes.len() as u64).to_le_bytes());
                    hash.update(&[u8::from(block.first)]);
                    hash.update(&block.bytes);
                    Ok(())
                })?;
            }
        }
        Ok(hash.digest())
    }

    /// Writes prepared data.
    pub fn write(
        &self,
        plan: &Plan,
        tokenizer: &Tokenizer,
        out: &Path,
        shard_tokens: usize,
    ) -> Result<Prepared, DataError> {
        let separator = match &plan.separator {
            Some(text) => tokenizer.separator(text)?,
            None => tokenizer.end_of_text().into_iter().collect(),
        };
        let writer = Writer::new(out, tokenizer, shard_tokens)?;
        let reading = plan.reading(!tokenizer.takes_bytes());
        let batch = Batch { blocks: Vec::new(), bytes: 0 };
        let mut run = Run { tokenizer, separator, writer, batch, begun: false, documents: 0, source_bytes: 0 };
        run.read(&self.train, reading)?;
        let given = run.writer.tokens();
        run.begun = false;
        run.read(&self.validation, reading)?;
        let total = run.writer.tokens();
        if given == 0 {
            return Err(DataError::empty(&plan.data));
        }
        if total == given && !self.validation.is_empty() {
            return Err(DataError::empty(&plan.val_data));
        }
        let train_tokens = self.split(plan, given, total);
        let Run { writer, documents, source_bytes, .. } = run;
        writer.finish(|index| {
            index.documents = documents;
            index.train_tokens = train_tokens;
            index.source_bytes = source_bytes;
        })?;
        Ok(Prepared {
            documents,
            train_tokens,
            validation_tokens: total - train_tokens,
            vocab_size: tokenizer.vocab_size(),
            source_bytes,
            skipped: self.skipped.clone(),
        })
    }
}

impl Plan {
    fn reading(&self, text: bool) -> Reading<'_> {
        Reading { field: &self.field, text }
    }

    fn check(&self) -> Result<(), DataError> {
        match self.val_split {
            Some(value) if !(0.0..1.0).contains(&value) => Err(DataError::Split { value }),
            Some(value) if !self.val_data.is_empty() => {
                let cure = "goes with no --val-data, which is all held out; leave one out".into();
                Err(DataError::Conflict { flag: "--val-split", value: value.to_string(), cure })
            }
            _ => Ok(()),
        }
    }
}

/// Blocks that wait to be encoded.
struct Batch {
    blocks: Vec<Block>,
    bytes: usize,
}

/// A preparation under way.
struct Run<'a> {
    tokenizer: &'a Tokenizer,
    separator: Vec<u32>,
    writer: Writer,
    batch: Batch,
    /// Whether a document stands before the next one.
    begun: bool,
    documents: u64,
    source_bytes: u64,
}

impl Run<'_> {
    fn read(&mut self, sources: &[Source], reading: Reading<'_>) -> Result<(), DataError> {
        for source in sources {
            if source.kind == Kind::Ids {
                self.flush()?;
                self.ids(source)?;
                continue;
            }
            documents::read(source, reading, &mut |block| {
                self.batch.bytes += block.bytes.len();
                self.batch.blocks.push(block);
                // Many tiny documents count too: each has its own overhead.
                match self.batch.bytes >= TOGETHER || self.batch.blocks.len() >= TOGETHER / 64 {
                    true => self.flush(),
                    false => Ok(()),
                }
            })?;
        }
        self.flush()
    }

    /// Encodes the blocks that wait and writes them.
    fn flush(&mut self) -> Result<(), DataError> {
        let blocks = std::mem::take(&mut self.batch.blocks);
        self.source_bytes += std::mem::take(&mut self.batch.bytes) as u64;
        let tokenizer = self.tokenizer;
        let encode = |block: &Block| tokenizer.encode_bytes(&block.bytes);
        let encoded: Vec<Vec<u32>> = blocks.par_iter().map(encode).collect::<Result<_, _>>()?;
        for (block, ids) in blocks.iter().zip(&encoded) {
            if block.first {
                self.separate()?;
            }
            self.writer.push(ids)?;
        }
        Ok(())
    }

    /// A document begins.
    fn separate(&mut self) -> Result<(), DataError> {
        self.documents += 1;
        match std::mem::replace(&mut self.begun, true) {
            true => self.writer.push(&self.separator),
            false => Ok(()),
        }
    }

    /// Copies a file of ids, which has its own separators.
    fn ids(&mut self, source: &Source) -> Result<(), DataError> {
        let tokens = Tokens::join(vec![Piece::Mapped(ids::open(&source.path, self.tokenizer)?)]);
        self.documents += 1;
        let mut some = Vec::new();
        for start in (0..tokens.len()).step_by(TOGETHER) {
            some.clear();
            tokens.extend(start, TOGETHER.min(tokens.len() - start), &mut some);
            self.writer.push(&some)?;
            self.source_bytes += 2 * some.len() as u64;
        }
        self.begun = false;
        Ok(())
    }
}
