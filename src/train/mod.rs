//! Training: the configuration of a run, its folder, rates, the step and the loop, and sampling from what was trained.
//!
//! This layer owns the clock and joins data, model and store. It must never know a flag's spelling or a terminal.

pub mod config;
pub mod conformance;
pub mod evaluate;
pub mod folder;
pub mod generate;
pub mod guard;
pub mod hugging_face;
pub mod live;
pub mod logits;
pub mod needs;
pub mod optimizer;
pub mod peaks;
pub mod plan;
pub mod rates;
pub mod resume;
pub mod run;
mod samples;
pub mod saved;
mod session;
pub mod step;
mod tiles;
mod values;

pub use generate::{Generation, NextLogits, Sampling};
pub use live::Live;
pub use optimizer::Optimizer;
pub use run::{Control, Summary, TrainError, resume, run, start};
pub use saved::Saved;
pub use step::{Setup, StepResult, Trainer};
