//! grad_norm.
