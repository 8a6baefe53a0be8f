//! Gaufre trains transformers on an emulated wafer-scale engine.
//!
//! Tiles are WGSL workgroups whose shared memory is the tile's SRAM, a host scheduler emulates the fabric by exchanging
//! boundary buffers between dispatches, and weights stream through the wafer panel by panel, so that a model may be far
//! larger than the memory of the device. Every result is checked against an f64 reference.
//!
//! Layers, each of which may use only what stands below it (see ARCHITECTURE.md):
//! `cli > train > {data, model, store} > program > device > wafer`, with `report` beside them, used by cli and train.

pub mod wafer;

pub mod device;

pub mod program;

pub mod train;

pub mod cli;
