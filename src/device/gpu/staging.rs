//! Mapped memory that uploads and downloads pass through, made once and used again: `Queue::write_buffer` would
//! allocate at each call and run before the work queued ahead of it. It must never grow with the length of a run.

use std::sync::{Arc, Mutex, PoisonError};

use super::faults::{self, Faults};
use crate::device::Result;

/// Bytes of one staging buffer; longer transfers pass through in pieces.
pub const CHUNK: usize = 4 << 20;
/// Staging buffers of one direction: 64 MiB at most, the size of a panel.
pub const CHUNKS: usize = 16;
/// Starts of pieces within a chunk: mapping wants 8 bytes, a cache line is better.
const ALIGNMENT: usize = 64;

/// A piece of mapped memory, written and ready to be copied from.
pub struct Piece {
    pub buffer: wgpu::Buffer,
    pub offset: u64,
}

/// The ring of buffers that uploads pass through.
#[derive(Default)]
pub struct Uploads {
    made: usize,
    /// Mapped and partly written: the buffer and its used bytes. Copies from it wait in the open encoder.
    filling: Vec<(wgpu::Buffer, usize)>,
    /// Mapped again after the device has read them.
    free: Arc<Mutex<Vec<wgpu::Buffer>>>,
}

impl Uploads {
    /// Writes `words` (at most [`CHUNK`] bytes) to a chunk; `None` when every chunk is still on its way.
    pub fn put(&mut self, device: &wgpu::Device, faults: &Faults, words: &[u32]) -> Result<Option<Piece>> {
        let bytes: &[u8] = bytemuck::cast_slice(words);
        if self.filling.last().is_none_or(|(_, used)| used + bytes.len() > CHUNK) {
            match self.take(device, faults)? {
                Some(chunk) => self.filling.push((chunk, 0)),
                None => return Ok(None),
            }
        }
        let Some((buffer, used)) = self.filling.last_mut() else { return Ok(None) };
        let offset = *used as u64;
        let mut mapped = buffer.get_mapped_range_mut(offset..offset + bytes.len() as u64).map_err(|error| {
            crate::device::DeviceError::Validation { place: "upload".into(), reason: error.to_string() }
        })?;
        mapped.copy_from_slice(bytes);
        *used = (*used + bytes.len()).next_multiple_of(ALIGNMENT);
        Ok(Some(Piece { buffer: buffer.clone(), offset }))
    }

    fn take(&mut self, device: &wgpu::Device, faults: &Faults) -> Result<Option<wgpu::Buffer>> {
        let pop = || self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(chunk) = pop() {
            return Ok(Some(chunk));
        }
        // Runs the callbacks of what has arrived meanwhile; a lost device is reported by the next wait.
        let _ = device.poll(wgpu::PollType::Poll);
        if let Some(chunk) = pop() {
            return Ok(Some(chunk));
        }
        if self.made == CHUNKS {
            return Ok(None);
        }
        let chunk = create(device, faults, "upload staging", CHUNK, wgpu::BufferUsages::MAP_WRITE, true)?;
        self.made += 1;
        Ok(Some(chunk))
    }

    /// Unmaps what was written: must precede the submission that reads it.
    pub fn unmap(&self) {
        self.filling.iter().for_each(|(chunk, _)| chunk.unmap());
    }

    /// Maps it again once the submission is done.
    pub fn recycle(&mut self) {
        for (chunk, _) in self.filling.drain(..) {
            let (free, mapped) = (self.free.clone(), chunk.clone());
            chunk.map_async(wgpu::MapMode::Write, .., move |outcome| {
                // Fails when the device is lost, which is reported by itself.
                if outcome.is_ok() {
                    free.lock().unwrap_or_else(PoisonError::into_inner).push(mapped);
                }
            });
        }
    }
}

/// The buffers that downloads pass through.
#[derive(Default)]
pub struct Downloads(Vec<wgpu::Buffer>);

impl Downloads {
    /// A buffer of at least `bytes` (at most [`CHUNK`]).
    pub fn take(&mut self, device: &wgpu::Device, faults: &Faults, bytes: usize) -> Result<wgpu::Buffer> {
        if let Some(at) = self.0.iter().position(|b| b.size() >= bytes as u64) {
            return Ok(self.0.swap_remove(at));
        }
        let bytes = if bytes <= CHUNK / 64 { CHUNK / 64 } else { CHUNK };
        create(device, faults, "download staging", bytes, wgpu::BufferUsages::MAP_READ, false)
    }

    /// Takes an unmapped buffer back.
    pub fn give(&mut self, buffer: wgpu::Buffer) {
        if self.0.len() < CHUNKS {
            self.0.push(buffer);
        }
    }
}

fn create(
    device: &wgpu::Device,
    faults: &Faults,
    label: &str,
    bytes: usize,
    map: wgpu::BufferUsages,
    mapped_at_creation: bool,
) -> Result<wgpu::Buffer> {
    let other =
        if map == wgpu::BufferUsages::MAP_READ { wgpu::BufferUsages::COPY_DST } else { wgpu::BufferUsages::COPY_SRC };
    faults.scoped(
        device,
        |error| faults::typed(label, bytes as u64, error),
        || {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size: bytes as u64,
                usage: map | other,
                mapped_at_creation,
            })
        },
    )
}
