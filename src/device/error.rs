//! What can go wrong on a device, typed: each variant names the program or the buffer and, where one is known, the cure.

use crate::wafer::{Port, Tile};

/// An error of a device.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// No device answers to the name; the text lists what is there.
    #[error("no device {wanted:?} here; there is: {found} (see `gaufre devices`)")]
    NotFound {
        /// What was asked for.
        wanted: String,
        /// What could be had.
        found: String,
    },
    /// The driver would not open a device.
    #[error("{adapter}: the driver did not open a device: {reason}")]
    Open {
        /// The adapter's name.
        adapter: String,
        /// The driver's words.
        reason: String,
    },
    /// A program does not compile or does not pass validation.
    #[error("{program}: the program was refused: {reason}")]
    Program {
        /// The kernel's name.
        program: String,
        /// naga's or the driver's words.
        reason: String,
    },
    /// A program needs more memory on a tile than there is.
    #[error("{program}: needs {needed} bytes of {what}, {available} are available")]
    Sram {
        /// The kernel's name.
        program: String,
        /// Which memory.
        what: String,
        /// Bytes the program needs.
        needed: u64,
        /// Bytes there are.
        available: u64,
    },
    /// A message between two tiles did not arrive whole.
    #[error(
        "superstep {superstep}: a message to tile ({}, {}) at its {port} port is {what}; the fabric cannot be trusted, start again from the last checkpoint",
        tile.x, tile.y
    )]
    Message {
        /// The tile that waits for it, by its place on the wafer.
        tile: Tile,
        /// The port at which it was to come.
        port: Port,
        /// The exchange, from 1.
        superstep: u64,
        /// Missing or damaged.
        what: &'static str,
    },
    /// The device refused a launch, a copy or a submission.
    #[error("{place}: refused by the device: {reason}")]
    Validation {
        /// The kernel or the copy.
        place: String,
        /// The device's words.
        reason: String,
    },
    /// No memory left on the device.
    #[error(
        "{place}: out of device memory, {bytes} bytes wanted; use a smaller --batch-size, --recompute layer, or --store ram with --device-memory"
    )]
    OutOfMemory {
        /// The buffer or the kernel.
        place: String,
        /// Bytes wanted by the call that failed (0 where the driver does not say).
        bytes: u64,
    },
    /// A buffer larger than the device can bind.
    #[error("{label}: {bytes} bytes exceed what the device binds at once ({limit} bytes)")]
    TooLarge {
        /// The buffer.
        label: String,
        /// Its bytes.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The device is gone (reset, unplugged, driver crash).
    #[error("{place}: the device was lost: {reason}; start again, the last checkpoint is whole")]
    Lost {
        /// What ran.
        place: String,
        /// The driver's words.
        reason: String,
    },
    /// The caller broke the contract of the device: an error in this crate or in a program outside it.
    #[error("wrong use of the device: {0}")]
    Usage(String),
}
