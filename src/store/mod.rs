//! Where the parameters of a model live, and how files are made durable.

pub mod durable;
