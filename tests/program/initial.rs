//! initial.
