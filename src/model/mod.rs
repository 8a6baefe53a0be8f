//! The model: configuration, table of parameters, visits, and the forward and backward pass of each visit.
//!
//! A model is a list of visits (embed, layer i, head). Each takes its parameters from the store panel by panel and its
//! activations from buffers allocated once. This layer queues work in order; it must never know an optimiser, a clock, a
//! file or which device runs it.

mod activations;
mod config;
mod decode;
mod gpt;
mod head;
pub mod hugging_face;
mod layer;
mod linear;
mod masks;
mod presets;
mod table;

pub use activations::{Activations, Recompute, Shape};
pub use config::{Config, ModelError, Norm, Residual, Rotation};
pub use decode::Decoder;
pub use gpt::{Gpt, Micro, Told};
pub use presets::{PRESETS, nearest, preset};
pub use table::{Parameter, Pass, Table, Visit};
