//! Buffers and views: how the rest of the crate names memory on a device.
//!
//! A [`Buffer`] is a run of 4-byte elements with a role given by its label. A [`View`] is a range of it, counted in
//! elements. Neither knows what is stored in it (no shapes, no strides) nor which device keeps it.

use std::sync::Arc;

use super::counters::Account;
use super::{DeviceError, gpu, native};

/// What the 4-byte elements of a buffer are. On the f64 oracle, `F32` elements are kept as `f64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Elem {
    /// Floating point: activations, parameters, gradients, optimiser state.
    F32,
    /// Unsigned integers: token ids, indices.
    U32,
}

/// Memory on one device, zero when created, freed when the last clone is dropped.
#[derive(Clone)]
pub struct Buffer(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub label: String,
    pub elem: Elem,
    pub len: usize,
    pub storage: Storage,
    pub account: Account,
}

pub(super) enum Storage {
    Blank,
    Gpu(gpu::GpuBuffer),
    Host(native::Cells<f32>),
    Oracle(native::Cells<f64>),
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.account.freed(self.len as u64 * 4);
    }
}

impl Buffer {
    /// Number of 4-byte elements.
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// True for a buffer of no elements.
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// The role the buffer was created for.
    pub fn label(&self) -> &str {
        &self.0.label
    }

    /// What its elements are.
    pub fn elem(&self) -> Elem {
        self.0.elem
    }

    /// Tells it from every other buffer that is alive.
    pub fn id(&self) -> usize {
        Arc::as_ptr(&self.0) as usize
    }

    /// The whole buffer.
    pub fn all(&self) -> View {
        View { buffer: self.clone(), offset: 0, len: self.0.len }
    }

    /// Elements `offset .. offset + len`.
    ///
    /// # Panics
    /// When the range leaves the buffer: that is an error of the caller, not of the world.
    pub fn view(&self, offset: usize, len: usize) -> View {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.0.len),
            "view {offset}+{len} leaves buffer {:?} of {} elements",
            self.0.label,
            self.0.len
        );
        View { buffer: self.clone(), offset, len }
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({:?}, {:?} x {})", self.0.label, self.0.elem, self.0.len)
    }
}

/// A range of a [`Buffer`], in elements.
#[derive(Clone, Debug)]
pub struct View {
    /// The buffer it lies in.
    pub buffer: Buffer,
    /// First element.
    pub offset: usize,
    /// Number of elements.
    pub len: usize,
}

impl View {
    /// A part of this view.
    ///
    /// # Panics
    /// When the range leaves the view.
    pub fn part(&self, offset: usize, len: usize) -> View {
        assert!(offset + len <= self.len, "part {offset}+{len} leaves {self:?}");
        View { buffer: self.buffer.clone(), offset: self.offset + offset, len }
    }

    /// True for the same elements of the same buffer.
    pub fn is_same(&self, other: &View) -> bool {
        Arc::ptr_eq(&self.buffer.0, &other.buffer.0) && (self.offset, self.len) == (other.offset, other.len)
    }

    pub(super) fn expect_elem(&self, elem: Elem) -> Result<(), DeviceError> {
        if self.buffer.elem() == elem {
            return Ok(());
        }
        Err(DeviceError::Usage(format!("{:?} holds {:?}, not {elem:?}", self.buffer.label(), self.buffer.elem())))
    }
}

/// One block moved from a buffer to another: `rows` rows of `cols` elements. The fabric of the emulated wafer is made of these.
#[derive(Clone, Debug)]
pub struct Transfer {
    /// Where the block is read.
    pub source: Buffer,
    /// First element of the block in `source`.
    pub source_offset: usize,
    /// Elements from one row to the next in `source`.
    pub source_stride: usize,
    /// Where the block is written.
    pub target: Buffer,
    /// First element of the block in `target`.
    pub target_offset: usize,
    /// Elements from one row to the next in `target`.
    pub target_stride: usize,
    /// Number of rows.
    pub rows: usize,
    /// Elements of a row.
    pub cols: usize,
}
