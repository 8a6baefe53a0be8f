//! Text to tokens to `batch(seed, step)`: tokenizers, the corpus and its two splits, and the order of the batches.
//!
//! It knows files of text and numbers of tokens; it must never know a model, a device, or the clock.

mod batches;
mod corpus;
mod error;
mod files;
mod tokenizer;

pub use batches::{Batch, Batches, Order, Shape};
pub use corpus::Corpus;
pub use error::DataError;
pub use tokenizer::{TextStream, Tokenizer, TokenizerKind};
