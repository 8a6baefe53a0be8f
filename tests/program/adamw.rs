//! adamw.
