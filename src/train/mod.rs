//! Training: here only what `gaufre check` needs of it.
pub mod conformance;
