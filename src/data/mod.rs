//! Text to tokens to `batch(seed, step)`: tokenizers, the corpus and its two splits, and the order of the batches.
//!
//! It knows files of text and numbers of tokens; it must never know a model, a device, or the clock.

mod batches;
mod bpe;
mod corpus;
mod documents;
mod error;
mod files;
mod ids;
mod prepare;
mod shards;
mod tokenizer;
mod tokens;

pub use batches::{Batch, Batches, Order, Shape};
pub use corpus::{Corpus, Request};
pub use error::DataError;
pub use prepare::{Plan, Prepared, VAL_SPLIT, prepare};
pub use tokenizer::{TextStream, Tokenizer, TokenizerKind};
pub use tokens::Tokens;
