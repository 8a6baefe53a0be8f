//! Gaufre trains transformers on an emulated wafer-scale engine.
//!
//! Tiles are WGSL workgroups whose shared memory is the tile's SRAM, a host scheduler emulates the fabric by exchanging
//! boundary buffers between dispatches, and weights stream through the wafer panel by panel, so that a model may be far
//! larger than the memory of the device. Every result is checked against an f64 reference.
//!
//! # Training
//!
//! A [`Trainer`](train::Trainer) owns a model on a device. A step takes micro-batches of token ids and a learning rate, and
//! says what the loss was:
//!
//! ```
//! use gaufre::{device::Device, model::{Config, Micro, Shape}, train::{Setup, Trainer}};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = Config::parse("tiny", "layers = 1\nheads = 2\nd_model = 16\ncontext = 8\nvocab_size = 11")?;
//! let shape = Shape { batch: 1, seq_len: 8, micro_batches: 1 };
//! let mut trainer = Trainer::new(Device::open("host", 0)?, Setup::new(model, shape))?;
//! let count = Micro { inputs: vec![0, 1, 2, 3, 4, 5, 6, 7], targets: vec![1, 2, 3, 4, 5, 6, 7, 8] };
//! let first = trainer.step(1, 1e-2, &[count.clone()])?.loss;
//! # for step in 2..20 {
//! #     trainer.step(step, 1e-2, &[count.clone()])?;
//! # }
//! # assert!(trainer.evaluate(&[count])? < 0.5 * first);
//! # Ok(())
//! # }
//! ```
//!
//! [`data`] makes micro-batches of text, [`Trainer::live`](train::Trainer::live) writes text with what was learnt so far,
//! and [`train::run()`] does it all as `gaufre train` does: a folder with metrics, checkpoint and tokenizer.
//!
//! # Tile programs as a backend
//!
//! Beneath the model stand programs over matrices, each a function that queues its work and returns:
//!
//! ```
//! use gaufre::device::Device;
//! use gaufre::program::matmul::{self, Form, Matmul};
//! use gaufre::program::schedule::{Fabric, Schedule};
//! use gaufre::program::Matrix;
//! use gaufre::wafer::Wafer;
//!
//! # fn main() -> gaufre::device::Result<()> {
//! let device = Device::open("host", 0)?;
//! let fabric = Fabric::new(device.clone(), Schedule::Fused, Wafer::new(8, 8));
//! let (a, b) = (Matrix::new(&device, "a", 2, 3)?, Matrix::new(&device, "b", 2, 3)?);
//! let c = Matrix::new(&device, "c", 2, 2)?;
//! a.upload(&device, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])?;
//! b.upload(&device, &[1.0, 0.0, 0.0, 0.0, 1.0, 0.0])?;
//! matmul::run(&fabric, &Matmul { form: Form::NT, a: &a, b: &b, c: &c, bias: None, accumulate: false })?;
//! assert_eq!(c.download(&device)?, [1.0, 2.0, 4.0, 5.0]);
//! # Ok(())
//! # }
//! ```
//!
//! A program of one's own is a [`Program`](program::Program): a [`Kernel`](device::Kernel) (WGSL, and native references from
//! which a device without WGSL and the f64 oracle run it) with the bound and the cases by which [`program::check`] proves it.
//! The folder `examples` leads there in five steps: one tile, two tiles that talk, a product, a training, a program.
//!
//! # Layers
//!
//! Each may use only what stands below it (see ARCHITECTURE.md): `cli > train > {data, model, store} > program > device >
//! wafer`, with `report` beside them, used by cli and train.
//!
//! What holds everywhere: equal seed, device and configuration give equal bits, whatever the number of threads; work is
//! queued in order and an error comes back typed, naming what is wrong and the cure; nothing falls back in silence.

// `params!` names this crate from inside and from outside by one path.
extern crate self as gaufre;

#[doc(hidden)]
pub use bytemuck;

pub mod wafer;

pub mod device;

pub mod program;

pub mod store;

pub mod model;

pub mod data;

pub mod report;

pub mod train;

pub mod cli;
