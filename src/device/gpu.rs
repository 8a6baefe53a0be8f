//! Adapters through wgpu: a queue of launches and copies, recorded in order and submitted in batches.
//!
//! Consecutive launches share one compute pass; the pass is closed for a copy, and the batch is submitted when it is
//! long enough, on a flush or for a download. Everything that can fail lies in an error scope. It must never know a
//! program by name, nor hand out a number that was not computed.

mod faults;
mod pipeline;
mod staging;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::adapter::Found;
use super::buffer::{Buffer, Storage, Transfer, View};
use super::kernel::{Kernel, Launch, Variant};
use super::{DEFAULT_TILE_SRAM, DeviceError, Limits, MAX_WORDS, Result};
use faults::Faults;
use pipeline::{BindGroups, Compiler, Pipelines};
use staging::{CHUNK, CHUNKS, Downloads, Uploads};

/// Commands of a batch. Long enough that a submission costs nothing per launch, short enough that the device starts
/// while the rest is recorded.
const BATCH: u32 = 256;
/// Submissions that may be under way: recording waits for the oldest beyond that, which bounds the memory of commands.
const IN_FLIGHT: usize = 4;
/// Words passed at a launch: `groups` and the parameters.
const WORDS: usize = 1 + MAX_WORDS;

/// Memory of one buffer on an adapter.
pub struct GpuBuffer {
    raw: wgpu::Buffer,
    number: u64,
    gone: Arc<Gone>,
}

/// Numbers of dropped buffers, whose bind groups are to be forgotten.
type Gone = Mutex<Vec<u64>>;

impl Drop for GpuBuffer {
    fn drop(&mut self) {
        locked(&self.gone).push(self.number);
    }
}

/// An open adapter.
pub struct Gpu {
    // Dropped first: a pass holds on to its encoder, and both to the device.
    recorder: Mutex<Recorder>,
    compiler: Compiler,
    queue: wgpu::Queue,
    faults: Arc<Faults>,
    gone: Arc<Gone>,
    next: AtomicU64,
    patience: Duration,
}

/// What is recorded and not yet submitted, and everything that recording keeps.
#[derive(Default)]
struct Recorder {
    pass: Option<wgpu::ComputePass<'static>>,
    encoder: Option<wgpu::CommandEncoder>,
    /// Pipeline and bind group that the open pass has set.
    set: Option<(Arc<pipeline::Pipeline>, wgpu::BindGroup)>,
    commands: u32,
    /// Distinct names of what was recorded, for errors.
    names: Vec<&'static str>,
    in_flight: VecDeque<wgpu::SubmissionIndex>,
    pipelines: Pipelines,
    groups: BindGroups,
    uploads: Uploads,
    downloads: Downloads,
}

impl Gpu {
    /// Opens an adapter with all that it offers.
    ///
    /// # Errors
    /// [`DeviceError::Open`] with the driver's words, or with the limit that is too small.
    pub fn open(found: &Found, trusted: bool) -> Result<(Gpu, Limits)> {
        let fail = |reason: String| DeviceError::Open { adapter: found.title(), reason };
        let limits = found.adapter.limits();
        let words = 4 * WORDS as u32;
        if !found.adapter.features().contains(wgpu::Features::IMMEDIATES) || limits.max_immediate_size < words {
            return Err(fail(format!("it has no {words} bytes of immediates (push constants)")));
        }
        let (device, queue) = pollster::block_on(found.adapter.request_device(&wgpu::DeviceDescriptor {
            label: Some("gaufre"),
            required_features: wgpu::Features::IMMEDIATES,
            required_limits: limits.clone(),
            experimental_features: wgpu::ExperimentalFeatures::disabled(),
            // Large buffers have memory of their own in any case; blocks for the small ones need not be large.
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            trace: wgpu::Trace::Off,
        }))
        .map_err(|e| fail(e.to_string()))?;
        let faults = Faults::watch(&device);
        let max_bindings = limits.max_storage_buffers_per_shader_stage;
        let gpu = Gpu {
            recorder: Mutex::default(),
            compiler: Compiler { device, faults: faults.clone(), max_bindings, trusted },
            queue,
            faults,
            gone: Arc::default(),
            next: AtomicU64::new(0),
            // A CPU works through a batch in its own time; a GPU that is silent for a minute is hung.
            patience: Duration::from_secs(if found.is_cpu() { 3600 } else { 60 }),
        };
        Ok((gpu, read_back(&limits)))
    }

    /// A buffer of `len` elements, zero.
    pub fn create(&self, label: &str, len: usize) -> Result<GpuBuffer> {
        let raw = match self.try_create(label, len) {
            // Buffers that were dropped live on while queued work names them.
            Err(DeviceError::OutOfMemory { .. }) => {
                self.wait()?;
                self.try_create(label, len)?
            }
            other => other?,
        };
        Ok(GpuBuffer { raw, number: self.next.fetch_add(1, Ordering::Relaxed), gone: self.gone.clone() })
    }

    fn try_create(&self, label: &str, len: usize) -> Result<wgpu::Buffer> {
        self.recorder().forget(&self.gone);
        let bytes = (len as u64 * 4).max(4);
        let device = &self.compiler.device;
        self.faults.scoped(
            device,
            |error| faults::typed(label, bytes, error),
            || {
                device.create_buffer(&wgpu::BufferDescriptor {
                    label: Some(label),
                    size: bytes,
                    usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
                    mapped_at_creation: false,
                })
            },
        )
    }

    /// Queues the copy of `words` into a view of as many elements.
    pub fn write(&self, view: &View, words: &[u32]) -> Result<()> {
        self.faults.check()?;
        let target = &self.own(&view.buffer, "upload")?.raw;
        let mut recorder = self.recorder();
        for (i, words) in words.chunks(CHUNK / 4).enumerate() {
            let piece = loop {
                if let Some(piece) = recorder.uploads.put(&self.compiler.device, &self.faults, words)? {
                    break piece;
                }
                // Every chunk is on its way: the oldest submission frees some.
                self.submit(&mut recorder)?;
                let oldest = recorder.in_flight.pop_front();
                self.wait_for(oldest, "upload")?;
            };
            let (to, bytes) = ((view.offset + i * CHUNK / 4) as u64 * 4, words.len() as u64 * 4);
            recorder.encoder(&self.compiler.device).copy_buffer_to_buffer(
                &piece.buffer,
                piece.offset,
                target,
                to,
                bytes,
            );
            recorder.note("upload", 1);
        }
        self.submit_if_long(&mut recorder)
    }

    /// Waits for all work on a view and copies it out.
    pub fn read(&self, view: &View) -> Result<Vec<u32>> {
        let source = &self.own(&view.buffer, "download")?.raw;
        let place = || format!("download of {:?}", view.buffer.label());
        let mut out = vec![0u32; view.len];
        for (i, batch) in out.chunks_mut(CHUNKS * CHUNK / 4).enumerate() {
            let from = (view.offset + i * CHUNKS * CHUNK / 4) as u64 * 4;
            let (index, pieces) = self.fetch(source, from, batch.len())?;
            for buffer in &pieces {
                // The outcome is seen when the range is asked for below.
                buffer.map_async(wgpu::MapMode::Read, .., |_| {});
            }
            self.wait_for(index, &place())?;
            for (words, buffer) in batch.chunks_mut(CHUNK / 4).zip(pieces) {
                let mapped = buffer
                    .get_mapped_range(..words.len() as u64 * 4)
                    .map_err(|e| DeviceError::Validation { place: place(), reason: e.to_string() })?;
                bytemuck::cast_slice_mut(words).copy_from_slice(&mapped);
                drop(mapped);
                buffer.unmap();
                self.recorder().downloads.give(buffer);
            }
        }
        Ok(out)
    }

    /// Submits copies of `len` elements from byte `from` on into staging buffers.
    fn fetch(
        &self,
        source: &wgpu::Buffer,
        from: u64,
        len: usize,
    ) -> Result<(Option<wgpu::SubmissionIndex>, Vec<wgpu::Buffer>)> {
        let device = &self.compiler.device;
        let mut recorder = self.recorder();
        let mut pieces = Vec::new();
        for start in (0..len * 4).step_by(CHUNK) {
            let bytes = CHUNK.min(len * 4 - start);
            let buffer = recorder.downloads.take(device, &self.faults, bytes)?;
            recorder.encoder(device).copy_buffer_to_buffer(source, from + start as u64, &buffer, 0, bytes as u64);
            recorder.note("download", 1);
            pieces.push(buffer);
        }
        self.submit(&mut recorder)?;
        Ok((recorder.in_flight.back().cloned(), pieces))
    }

    /// Queues a launch.
    pub fn launch(&self, launch: &Launch<'_>, limits: &Limits) -> Result<()> {
        self.faults.check()?;
        let name = launch.kernel.name;
        let buffers = launch.views.iter().map(|v| self.own(&v.buffer, name)).collect::<Result<Vec<_>>>()?;
        let (x, y) = fold(launch, limits.groups_per_dimension)?;
        let mut words = [0u32; WORDS];
        words[0] = launch.groups;
        words[1..=launch.params.len()].copy_from_slice(launch.params);
        let mut recorder = self.recorder();
        let recorder = &mut *recorder;
        recorder.forget(&self.gone);
        let known = recorder.pipelines.len();
        let pipeline = recorder.pipelines.get(&self.compiler, launch.kernel, launch.variant, limits)?;
        let fresh = recorder.pipelines.len() > known;
        let group = recorder.groups.get(&self.compiler, &pipeline, launch, &buffers)?;
        recorder.open_pass(&self.compiler.device);
        if let Some(pass) = &mut recorder.pass {
            let set = recorder.set.as_ref();
            if set.is_none_or(|(p, _)| !Arc::ptr_eq(p, &pipeline)) {
                pass.set_pipeline(&pipeline.raw);
            }
            if set.is_none_or(|(_, g)| *g != group) {
                pass.set_bind_group(0, &group, &[]);
            }
            pass.set_immediates(0, bytemuck::cast_slice(&words[..=launch.params.len()]));
            pass.dispatch_workgroups(x, y, 1);
        }
        recorder.set = Some((pipeline, group));
        recorder.note(name, 1);
        // Some drivers finish a pipeline when it first runs: let this one do so while the next program is translated.
        if fresh { self.submit(recorder) } else { self.submit_if_long(recorder) }
    }

    /// Queues a block copy: one copy where the block is contiguous in both buffers, else one for each row.
    pub fn transfer(&self, t: &Transfer) -> Result<()> {
        self.faults.check()?;
        let (source, target) = (&self.own(&t.source, "exchange")?.raw, &self.own(&t.target, "exchange")?.raw);
        let whole = t.rows == 1 || (t.cols == t.source_stride && t.cols == t.target_stride);
        let (rows, cols) = if whole { (1, t.rows * t.cols) } else { (t.rows, t.cols) };
        let mut recorder = self.recorder();
        let encoder = recorder.encoder(&self.compiler.device);
        for row in 0..rows {
            let from = (t.source_offset + row * t.source_stride) as u64 * 4;
            let to = (t.target_offset + row * t.target_stride) as u64 * 4;
            encoder.copy_buffer_to_buffer(source, from, target, to, cols as u64 * 4);
        }
        recorder.note("exchange", rows as u32);
        self.submit_if_long(&mut recorder)
    }

    /// Submits what is recorded.
    pub fn flush(&self) -> Result<()> {
        self.submit(&mut self.recorder())?;
        // Lets the callbacks of finished work run, those of a lost device among them.
        let _ = self.compiler.device.poll(wgpu::PollType::Poll);
        self.faults.check()
    }

    /// Submits what is recorded and waits until all is done.
    pub fn wait(&self) -> Result<()> {
        self.submit(&mut self.recorder())?;
        self.wait_for(None, "wait")
    }

    /// Compiles a kernel.
    pub fn prepare(&self, kernel: &'static Kernel, variant: &'static Variant, limits: &Limits) -> Result<()> {
        self.faults.check()?;
        self.recorder().pipelines.get(&self.compiler, kernel, variant, limits).map(|_| ())
    }

    fn submit_if_long(&self, recorder: &mut Recorder) -> Result<()> {
        if recorder.commands >= BATCH { self.submit(recorder) } else { Ok(()) }
    }

    fn submit(&self, recorder: &mut Recorder) -> Result<()> {
        self.faults.check()?;
        let Some(encoder) = recorder.encoder.take() else { return Ok(()) };
        let place = recorder.names.join(", ");
        self.faults.submitted(&place);
        recorder.names.clear();
        recorder.commands = 0;
        recorder.set = None;
        let pass = recorder.pass.take();
        let uploads = &mut recorder.uploads;
        let index = self.faults.scoped(
            &self.compiler.device,
            |error| faults::typed(&place, 0, error),
            || {
                drop(pass);
                uploads.unmap();
                let index = self.queue.submit([encoder.finish()]);
                uploads.recycle();
                index
            },
        )?;
        recorder.in_flight.push_back(index);
        if recorder.in_flight.len() > IN_FLIGHT {
            let oldest = recorder.in_flight.pop_front();
            self.wait_for(oldest, "submission")?;
        }
        Ok(())
    }

    /// Waits for a submission, or for all.
    fn wait_for(&self, index: Option<wgpu::SubmissionIndex>, place: &str) -> Result<()> {
        let patience = wgpu::PollType::Wait { submission_index: index, timeout: Some(self.patience) };
        let outcome = self.compiler.device.poll(patience);
        self.faults.check()?;
        outcome.map(|_| ()).map_err(|error| match error {
            wgpu::PollError::Timeout => {
                let reason = format!("no answer for {} seconds", self.patience.as_secs());
                DeviceError::Lost { place: place.into(), reason }
            }
            error => DeviceError::Validation { place: place.into(), reason: error.to_string() },
        })
    }

    /// The memory of a buffer of this device.
    fn own<'a>(&self, buffer: &'a Buffer, place: &str) -> Result<&'a GpuBuffer> {
        match &buffer.0.storage {
            Storage::Gpu(b) if Arc::ptr_eq(&b.gone, &self.gone) => Ok(b),
            _ => Err(DeviceError::Usage(format!("{place}: buffer {:?} belongs to another device", buffer.label()))),
        }
    }

    fn recorder(&self) -> MutexGuard<'_, Recorder> {
        locked(&self.recorder)
    }
}

impl Recorder {
    /// The encoder, with no pass open in it.
    fn encoder(&mut self, device: &wgpu::Device) -> &mut wgpu::CommandEncoder {
        self.pass = None;
        self.set = None;
        self.encoder.get_or_insert_with(|| device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default()))
    }

    fn open_pass(&mut self, device: &wgpu::Device) {
        if self.pass.is_none() {
            let pass = self.encoder(device).begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            // The lifetime would borrow the encoder that lies beside it; wgpu refuses copies while it is open.
            self.pass = Some(pass.forget_lifetime());
        }
    }

    fn note(&mut self, name: &'static str, commands: u32) {
        self.commands += commands;
        if !self.names.contains(&name) {
            self.names.push(name);
        }
    }

    fn forget(&mut self, gone: &Gone) {
        let gone = std::mem::take(&mut *locked(gone));
        if !gone.is_empty() {
            self.groups.forget(&gone);
            self.set = None;
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Workgroups in x and y that hold at least the groups of a launch; the surplus returns at once.
fn fold(launch: &Launch<'_>, limit: u32) -> Result<(u32, u32)> {
    let y = launch.groups.div_ceil(limit);
    if y > limit {
        return Err(DeviceError::Usage(format!("{}: {} workgroups", launch.kernel.name, launch.groups)));
    }
    Ok((launch.groups.div_ceil(y), y))
}

fn read_back(limits: &wgpu::Limits) -> Limits {
    Limits {
        binding_bytes: limits.max_storage_buffer_binding_size / 4 * 4,
        buffer_bytes: limits.max_buffer_size / 4 * 4,
        workgroup_bytes: limits.max_compute_workgroup_storage_size,
        invocations: limits.max_compute_invocations_per_workgroup,
        groups_per_dimension: limits.max_compute_workgroups_per_dimension,
        view_alignment: (limits.min_storage_buffer_offset_alignment as usize / 4).max(1),
        tile_sram: DEFAULT_TILE_SRAM,
        threads: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Backend, Device, Elem};

    /// Calls on a lost device are silent in wgpu; here no number may come back from one.
    #[test]
    fn a_lost_device_is_a_typed_error() {
        let Ok(device) = Device::open("gpu", 0).or_else(|_| Device::open("software", 0)) else {
            eprintln!("NOT RUN on an adapter: a_lost_device_is_a_typed_error");
            return;
        };
        let buffer = device.buffer("kept", Elem::U32, 64).expect("room for a small buffer");
        device.upload(&buffer.all(), &[7; 64]).expect("the device is there");
        if let Backend::Gpu(gpu) = &device.0.backend {
            gpu.compiler.device.destroy();
        }
        let lost = |result: Result<()>| assert!(matches!(result, Err(DeviceError::Lost { .. })), "{result:?}");
        lost(device.download_ids(&buffer.all()).map(|_| ()));
        lost(device.upload(&buffer.all(), &[8; 64]));
        lost(device.wait());
        lost(device.buffer("new", Elem::U32, 64).map(|_| ()));
    }
}
