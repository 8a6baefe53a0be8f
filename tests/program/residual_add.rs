//! residual_add.
