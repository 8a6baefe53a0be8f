//! What a device counts by itself: dispatches, exchanged and transferred bytes, bytes allocated now and at the peak.
//!
//! Counted where the work is done, never in a scheduler, so that a test can hold a scheduler's claim against it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::wafer::Cost;

/// A reading of a device's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Kernels launched.
    pub dispatches: u64,
    /// Blocks moved by [`Device::exchange`](super::Device::exchange).
    pub messages: u64,
    /// Bytes moved by [`Device::exchange`](super::Device::exchange).
    pub exchanged_bytes: u64,
    /// Links crossed by blocks: see [`Device::cross`](super::Device::cross).
    pub hops: u64,
    /// Bytes that crossed a link, once for each link.
    pub link_bytes: u64,
    /// Bytes uploaded from host memory.
    pub uploaded_bytes: u64,
    /// Bytes downloaded to host memory.
    pub downloaded_bytes: u64,
    /// Buffers created since the device was opened.
    pub allocations: u64,
    /// Bytes of the buffers that live now (4 per element, on every device).
    pub allocated_bytes: u64,
    /// The largest `allocated_bytes` there has been.
    pub peak_bytes: u64,
}

impl Counters {
    /// What was counted since an earlier reading (the two levels of memory are kept as they are now).
    pub fn since(&self, earlier: &Counters) -> Counters {
        Counters {
            dispatches: self.dispatches - earlier.dispatches,
            messages: self.messages - earlier.messages,
            exchanged_bytes: self.exchanged_bytes - earlier.exchanged_bytes,
            hops: self.hops - earlier.hops,
            link_bytes: self.link_bytes - earlier.link_bytes,
            uploaded_bytes: self.uploaded_bytes - earlier.uploaded_bytes,
            downloaded_bytes: self.downloaded_bytes - earlier.downloaded_bytes,
            allocations: self.allocations - earlier.allocations,
            ..*self
        }
    }
}

/// The shared cells behind [`Counters`].
#[derive(Clone, Default)]
pub(super) struct Account(Arc<Cells>);

#[derive(Default)]
struct Cells {
    dispatches: AtomicU64,
    messages: AtomicU64,
    exchanged: AtomicU64,
    hops: AtomicU64,
    crossed: AtomicU64,
    uploaded: AtomicU64,
    downloaded: AtomicU64,
    allocations: AtomicU64,
    allocated: AtomicU64,
    peak: AtomicU64,
}

impl Account {
    pub fn dispatched(&self) {
        self.0.dispatches.fetch_add(1, Relaxed);
    }

    pub fn exchanged(&self, bytes: u64) {
        self.0.messages.fetch_add(1, Relaxed);
        self.0.exchanged.fetch_add(bytes, Relaxed);
    }

    pub fn crossed(&self, bytes: u64) {
        self.0.hops.fetch_add(1, Relaxed);
        self.0.crossed.fetch_add(bytes, Relaxed);
    }

    /// What a program would have counted, where none runs.
    pub fn claimed(&self, cost: &Cost) {
        self.0.dispatches.fetch_add(cost.dispatches, Relaxed);
        self.0.messages.fetch_add(cost.messages, Relaxed);
        self.0.exchanged.fetch_add(cost.exchanged_bytes, Relaxed);
    }

    pub fn uploaded(&self, bytes: u64) {
        self.0.uploaded.fetch_add(bytes, Relaxed);
    }

    pub fn downloaded(&self, bytes: u64) {
        self.0.downloaded.fetch_add(bytes, Relaxed);
    }

    pub fn allocated(&self, bytes: u64) {
        self.0.allocations.fetch_add(1, Relaxed);
        let now = self.0.allocated.fetch_add(bytes, Relaxed) + bytes;
        self.0.peak.fetch_max(now, Relaxed);
    }

    pub fn freed(&self, bytes: u64) {
        self.0.allocated.fetch_sub(bytes, Relaxed);
    }

    pub fn read(&self) -> Counters {
        Counters {
            dispatches: self.0.dispatches.load(Relaxed),
            messages: self.0.messages.load(Relaxed),
            exchanged_bytes: self.0.exchanged.load(Relaxed),
            hops: self.0.hops.load(Relaxed),
            link_bytes: self.0.crossed.load(Relaxed),
            uploaded_bytes: self.0.uploaded.load(Relaxed),
            downloaded_bytes: self.0.downloaded.load(Relaxed),
            allocations: self.0.allocations.load(Relaxed),
            allocated_bytes: self.0.allocated.load(Relaxed),
            peak_bytes: self.0.peak.load(Relaxed),
        }
    }
}
