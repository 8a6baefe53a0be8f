//! Placeholder: adamw.
use super::Program;
/// Programs of this file.
pub static PROGRAMS: [&Program; 0] = [];
