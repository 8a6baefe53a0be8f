//! layer_norm.
