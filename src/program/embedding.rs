//! Placeholder: embedding.
use super::Program;
/// Programs of this file.
pub static PROGRAMS: [&Program; 0] = [];
