//! Training: the configuration of a run, its folder, rates, and sampling from what was trained.

pub mod config;
pub mod folder;
pub mod generate;
pub mod rates;
pub mod run;

pub use run::{Summary, TrainError, decoder, run};
