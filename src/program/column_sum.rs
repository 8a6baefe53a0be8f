//! Placeholder: column_sum.
use super::Program;
/// Programs of this file.
pub static PROGRAMS: [&Program; 0] = [];
