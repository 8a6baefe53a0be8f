//! The corpus: all text of a run as tokens, split into what is trained on and what is held out. It must never know how
//! large a model is.

use std::path::{Path, PathBuf};

use super::documents::{self, Reading};
use super::files::{self, Kind};
use super::prepare::{Inputs, Plan};
use super::tokens::{Piece, Tokens};
use super::{DataError, Tokenizer, TokenizerKind, ids, shards};

/// Tokens of a shard that is made on the fly.
const SHARD_TOKENS: usize = 100_000_000;

/// Bytes of text whose tokens are held in memory where they are read once: four times as many.
const IN_MEMORY: u64 = 16 << 20;

/// The text of a run.
#[derive(Debug)]
pub struct Corpus {
    /// What made the tokens.
    pub tokenizer: Tokenizer,
    /// Tokens to train on.
    pub train: Tokens,
    /// Tokens held out; there may be none.
    pub validation: Tokens,
    /// Binary files in the given folders, which were left out.
    pub skipped: Vec<PathBuf>,
}

/// What a run asks for.
#[derive(Clone, Debug)]
pub struct Request {
    /// What to read; or in `data` one folder of prepared data, which is then opened as it is.
    pub plan: Plan,
    /// Whether the tokenizer was chosen, rather than taken for want of a choice.
    pub tokenizer_chosen: bool,
    /// Folder in which text that is tokenised now is kept for later runs, by its content.
    pub cache: PathBuf,
}

impl Corpus {
    /// Opens the data: prepared, or ids that other programs made, where they lie; text as prepared data in the cache,
    /// which is made where it is not there yet. Each split that is there must have `min_len` tokens: a sequence and the
    /// token after it.
    ///
    /// # Errors
    /// [`DataError`] names the file, the offset or the split, and the cure.
    pub fn load(request: &Request, min_len: usize) -> Result<Corpus, DataError> {
        let plan = &request.plan;
        let prepared = plan.data.iter().chain(&plan.val_data).find(|path| shards::is_prepared(path));
        let corpus = match prepared {
            Some(folder) => Corpus::prepared(request, folder)?,
            None => {
                let inputs = Inputs::find(plan)?;
                let tokenizer = inputs.tokenizer(plan)?;
                match inputs.only_ids() {
                    true => Corpus::ids(plan, inputs, tokenizer)?,
                    false => Corpus::cached(request, inputs, tokenizer)?,
                }
            }
        };
        corpus.expect(min_len)?;
        Ok(corpus)
    }

    /// The tokens of data of any kind by a tokenizer that is there already, one document right after the other, and the
    /// bytes that they stand for. Text of more than 16 MiB is prepared in the folder `cache` and read from there, as
    /// [`Corpus::load`] does it.
    ///
    /// # Errors
    /// As [`Corpus::load`]; also where the tokenizer has no id for a character.
    pub fn read(
        paths: &[PathBuf],
        tokenizer: &Tokenizer,
        field: &str,
        cache: &Path,
    ) -> Result<(Tokens, u64), DataError> {
        if let [folder] = paths
            && shards::is_prepared(folder)
        {
            let (index, made_by, tokens) = shards::open(folder)?;
            if made_by != *tokenizer {
                let reason = "was made by another tokenizer than that of the run".into();
                return Err(DataError::Prepared { path: folder.clone(), reason });
            }
            return Ok((tokens, index.source_bytes));
        }
        let sources = files::find(paths)?.sources;
        let text = sources.iter().filter(|source| source.kind != Kind::Ids);
        let sizes = text.map(|source| std::fs::metadata(&source.path).map_err(files::failed(&source.path)));
        let size = sizes.map(|about| Ok(about?.len())).sum::<Result<u64, DataError>>()?;
        if size > IN_MEMORY {
            let inputs = Inputs { train: sources, validation: Vec::new(), skipped: Vec::new() };
            return Corpus::prepared_now(inputs, tokenizer, field, cache);
        }
        let (mut pieces, mut bytes) = (Vec::new(), 0);
        for source in sources {
            if source.kind == Kind::Ids {
                let piece = Piece::Mapped(ids::open(&source.path, tokenizer)?);
                bytes += 2 * piece.len() as u64;
                pieces.push(piece);
                continue;
            }
            let mut all = Vec::new();
            let reading = Reading { field, text: !tokenizer.takes_bytes() };
            documents::read(&source, reading, &mut |block| {
                bytes += block.bytes.len() as u64;
                all.extend(tokenizer.encode_bytes(&block.bytes)?);
                Ok(())
            })?;
            pieces.push(Piece::Memory(all));
        }
        Ok((Tokens::join(pieces), bytes))
    }

    /// The tokens of a text that is too long to be held, by way of the cache.
    fn prepared_now(
        inputs: Inputs,
        tokenizer: &Tokenizer,
        field: &str,
        cache: &Path,
    ) -> Result<(Tokens, u64), DataError> {
        let plan = Plan {
            data: Vec::new(),
            val_data: Vec::new(),
            // What the tokenizer is has been said already.
            tokenizer: TokenizerKind::Byte,
            val_split: Some(0.0),
            field: field.into(),
            separator: Some(String::new()),
        };
        let (index, _, tokens) = Corpus::through(&plan, &inputs, tokenizer, cache)?;
        Ok((tokens, index.source_bytes))
    }

    fn prepared(request: &Request, folder: &Path) -> Result<Corpus, DataError> {
        let plan = &request.plan;
        let conflict = |flag, value: String, cure: String| Err(DataError::Conflict { flag, value, cure });
        if plan.data.len() != 1 || !plan.val_data.is_empty() {
            let cure = "is prepared data, which comes alone; give no other --data and no --val-data".into();
            return conflict("--data", folder.display().to_string(), cure);
        }
        if let Some(split) = plan.val_split {
            let cure = format!("{} was split when it was prepared; leave --val-split out", folder.display());
            return conflict("--val-split", split.to_string(), cure);
        }
        let (index, tokenizer, tokens) = shards::open(folder)?;
        let fits = match &plan.tokenizer {
            _ if !request.tokenizer_chosen => true,
            TokenizerKind::File(path) => Tokenizer::load(path)? == tokenizer,
            kind => kind.to_string() == tokenizer.kind(),
        };
        if !fits {
            let made = tokenizer.kind();
            let cure = format!("{} was prepared with another ({made}); leave --tokenizer out", folder.display());
            return conflict("--tokenizer", plan.tokenizer.to_string(), cure);
        }
        let (train, validation) = tokens.split_at(index.train_tokens);
        Ok(Corpus { tokenizer, train, validation, skipped: Vec::new() })
    }

    fn ids(plan: &Plan, inputs: Inputs, tokenizer: Tokenizer) -> Result<Corpus, DataError> {
        let open = |s: &super::files::Source| Ok(Piece::Mapped(ids::open(&s.path, &tokenizer)?));
        let mut pieces = inputs.train.iter().map(open).collect::<Result<Vec<_>, DataError>>()?;
        let given: usize = pieces.iter().map(Piece::len).sum();
        for source in &inputs.validation {
            pieces.push(open(source)?);
        }
        let tokens = Tokens::join(pieces);
        let (train, validation) = tokens.split_at(inputs.split(plan, given, tokens.len()));
        Ok(Corpus { tokenizer, train, validation, skipped: inputs.skipped })
    }

    fn cached(request: &Request, inputs: Inputs, tokenizer: Tokenizer) -> Result<Corpus, DataError> {
        let plan = &request.plan;
        let (index, tokenizer, tokens) = Corpus::through(plan, &inputs, &tokenizer, &request.cache)?;
        // The text is the same as when it was cached, the split need not be.
        let given = if inputs.validation.is_empty() { tokens.len() } else { index.train_tokens };
        let (train, validation) = tokens.split_at(inputs.split(plan, given, tokens.len()));
        Ok(Corpus { tokenizer, train, validation, skipped: inputs.skipped })
    }

    /// The prepared data of a text, out of the cache or newly made there.
    fn through(
        plan: &Plan,
        inputs: &Inputs,
        tokenizer: &Tokenizer,
        cache: &Path,
    ) -> Result<(shards::Index, Tokenizer, Tokens), DataError> {
        let folder = cache.join(format!("{:016x}", inputs.key(plan, tokenizer)?));
        let found = folder.exists().then(|| shards::open(&folder));
        match found {
            Some(Ok(found)) => Ok(found),
            other => {
                if other.is_some() {
                    // It is broken, and nothing in it is precious: it is made anew.
                    let _ = std::fs::remove_dir_all(&folder);
                }
                inputs.write(plan, tokenizer, &folder, SHARD_TOKENS)?;
                shards::open(&folder)
            }
        }
    }

    fn expect(&self, needed: usize) -> Result<(), DataError> {
        let short = |split, tokens, cure| Err(DataError::TooShort { split, tokens, needed, cure });
        if self.train.len() < needed {
            return short("training", self.train.len(), "give more text or a smaller --seq-len");
        }
        if !self.validation.is_empty() && self.validation.len() < needed {
            let cure = "give more text, a larger --val-split, a smaller --seq-len, or --val-split 0 --eval-every 0";
            return short("validation", self.validation.len(), cure);
        }
        Ok(())
    }
}
