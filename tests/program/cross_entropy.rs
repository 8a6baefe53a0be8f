//! cross_entropy.
