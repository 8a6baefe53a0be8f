//! The tokenizers of Hugging Face's `tokenizer.json`, through the crate that defines the format, and the making of new
//! ones. It must never know where a text is from.

use std::path::PathBuf;
use std::sync::mpsc;

use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, NormalizerWrapper, PostProcessorWrapper, TokenizerImpl};

use super::documents::{self, Reading};
use super::files::{self, Kind, Source};
use super::{DataError, Tokenizer};

/// The token that GPT-2 and its kin put between documents.
pub(super) const END_OF_TEXT: &str = "<|endoftext|>";

/// A tokenizer of a `tokenizer.json`.
pub(super) struct Bpe {
    /// The file as it was read.
    pub json: String,
    inner: tokenizers::Tokenizer,
    /// The largest id and one.
    pub vocab_size: usize,
}

impl std::fmt::Debug for Bpe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bpe").field("vocab_size", &self.vocab_size).finish_non_exhaustive()
    }
}

impl Bpe {
    /// Reads the text of a `tokenizer.json`; an error says what is wrong with it.
    pub fn parse(json: String) -> Result<Bpe, String> {
        // The crate panics on escapes that stand for no character; what is read here before has none of them.
        serde_json::from_str::<serde_json::Value>(&json).map_err(|e| e.to_string())?;
        let mut inner = tokenizers::Tokenizer::from_bytes(json.as_bytes()).map_err(|e| e.to_string())?;
        // A text that spells a special token is text: it must not be able to end a document.
        inner.set_encode_special_tokens(true);
        inner.with_truncation(None).map_err(|e| e.to_string())?;
        inner.with_padding(None);
        let largest = inner.get_vocab(true).into_values().max().ok_or("it has no token")?;
        Ok(Bpe { json, inner, vocab_size: largest as usize + 1 })
    }

    /// The ids of a text, without any token that a post-processor would add.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        let encoding = self.inner.encode_fast(text, false);
        Ok(encoding.map_err(|e| DataError::Encode { reason: e.to_string() })?.get_ids().to_vec())
    }

    /// The text of ids.
    pub fn decode(&self, ids: &[u32]) -> Result<String, DataError> {
        self.inner.decode(ids, false).map_err(|e| DataError::Encode { reason: e.to_string() })
    }

    /// The id of a token that is spelled so.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }
}

impl Tokenizer {
    /// Learns a byte-level BPE of `vocab_size` ids, of which the first is `<|endoftext|>`, from files and folders; the
    /// fields of JSON lines are read as in `gaufre prepare`. A text with few words gives fewer ids.
    ///
    /// # Errors
    /// [`DataError`] names the file or the size.
    pub fn learn(paths: &[PathBuf], field: &str, vocab_size: usize) -> Result<Tokenizer, DataError> {
        const LEAST: usize = 257;
        const MOST: usize = 1 << 20;
        if !(LEAST..=MOST).contains(&vocab_size) {
            let cure =
                format!("must be {LEAST} (all bytes and {END_OF_TEXT}) to {MOST}; 8192 is usual for a small text");
            return Err(DataError::Conflict { flag: "--vocab-size", value: vocab_size.to_string(), cure });
        }
        let found = files::find(paths)?;
        if let Some(ids) = found.sources.iter().find(|s| s.kind == Kind::Ids) {
            return Err(DataError::Ids { path: ids.path.clone(), reason: "holds ids, not text to learn from".into() });
        }
        let failed = |e: tokenizers::Error| DataError::Encode { reason: e.to_string() };
        let mut trainer = BpeTrainer::builder()
            .vocab_size(vocab_size)
            .show_progress(false)
            .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build();
        let level = ByteLevel::new(false, true, true);
        let mut inner = Untrained::new(BPE::default());
        inner.with_pre_tokenizer(Some(level)).with_decoder(Some(level));
        // Blocks are read on one thread while the crate counts their words on the others.
        let (sender, blocks) = mpsc::sync_channel::<String>(AHEAD);
        let reading = Reading { field, text: true };
        std::thread::scope(|scope| {
            let reader = scope.spawn(move || send_blocks(&found.sources, reading, &sender));
            inner.train(&mut trainer, blocks.into_iter()).map_err(failed)?;
            reader.join().expect("the reader does not panic")
        })?;
        if trainer.get_word_count() == 0 {
            return Err(DataError::empty(paths));
        }
        Tokenizer::from_json(inner.to_string(false).map_err(failed)?).map_err(|reason| DataError::Encode { reason })
    }
}

type Untrained = TokenizerImpl<BPE, NormalizerWrapper, ByteLevel, PostProcessorWrapper, ByteLevel>;

/// Blocks that are read ahead of those that are worked on.
const AHEAD: usize = 16;

/// Sends the text of all files. Where nobody receives any more, the receiver has its own error to tell.
fn send_blocks(sources: &[Source], reading: Reading<'_>, sender: &mpsc::SyncSender<String>) -> Result<(), DataError> {
    for source in sources {
        documents::read(source, reading, &mut |block| {
            // The reader has checked that it is UTF-8.
            let _ = sender.send(String::from_utf8_lossy(&block.bytes).into_owned());
            Ok(())
        })?;
    }
    Ok(())
}
