//! Devices: memory, launches, transfers. The only part of the crate that names wgpu.
//!
//! A [`Device`] is one of: a GPU or a software adapter through wgpu, the embedded `host` (native code on CPU threads),
//! the oracle (the references at f64), the plain f32 references, or blank: a plan of any of them. All take the same
//! [`Launch`]; none knows a program by name. Work is queued in order; [`Device::download`] waits for what it reads. Every error comes back typed.

mod adapter;
mod blank;
mod buffer;
mod counters;
mod error;
mod gpu;
mod kernel;
mod ledger;
mod native;
mod shader;

pub use adapter::{AdapterInfo, list};
pub use buffer::{Buffer, Elem, Transfer, View};
pub use counters::Counters;
pub use error::DeviceError;
pub use kernel::{
    ALL_CLASSES, Access, Args, Binding, Class, Held, Kernel, Lane, Launch, NativeFn, ParamWord, Variant, Word, read,
    write,
};
pub use ledger::{Entry, Ledger, Run, Span};
pub use native::Real;
pub use shader::{SramUse, expand, workgroup_bytes, workgroup_variables};

use adapter::Choice;
use buffer::{Inner, Storage};
use counters::Account;
use std::sync::Arc;

/// Result of a device call.
pub type Result<T> = std::result::Result<T, DeviceError>;

/// What a program may hold on a tile unless a tile of another size is asked for: see [`Device::with_tile_sram`].
pub const DEFAULT_TILE_SRAM: u32 = crate::wafer::WSE2_TILE_SRAM;

/// Parameter words of a kernel, beside `groups`: 128 bytes in all, which every adapter passes.
pub const MAX_WORDS: usize = 31;

/// What a device can do, read back from it.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes that one binding may cover.
    pub binding_bytes: u64,
    /// Bytes that one buffer may have.
    pub buffer_bytes: u64,
    /// Bytes of workgroup memory.
    pub workgroup_bytes: u32,
    /// Invocations of a workgroup.
    pub invocations: u32,
    /// Workgroups in one dimension of a dispatch.
    pub groups_per_dimension: u32,
    /// Elements that the start of a view must be a multiple of.
    pub view_alignment: usize,
    /// SRAM of a tile in bytes: workgroup memory, accumulators and saved state of a program must fit it together.
    pub tile_sram: u32,
    /// Threads of a native device (0 for adapters).
    pub threads: usize,
}

/// A device, open.
#[derive(Clone)]
pub struct Device(Arc<Shared>);

struct Shared {
    name: String,
    why: String,
    class: Class,
    limits: Limits,
    backend: Backend,
    account: Account,
    book: Option<ledger::Book>,
}

enum Backend {
    Blank(blank::Blank),
    Gpu(Box<gpu::Gpu>),
    Host(native::Native<f32>),
    Oracle(native::Native<f64>),
}

macro_rules! on {
    ($self:expr, $b:ident => $e:expr) => {
        match &$self.0.backend {
            Backend::Blank($b) => $e,
            Backend::Gpu($b) => $e,
            Backend::Host($b) => $e,
            Backend::Oracle($b) => $e,
        }
    };
}

impl Device {
    /// Opens a device by name: `gpu`, `gpu:NAME`, `software`, `host`, `oracle` or `auto` (a hardware GPU where there is
    /// one, else `host`). `threads` is for native devices; 0 means all cores. WGSL runs with every run-time check.
    ///
    /// # Errors
    /// [`DeviceError::NotFound`] lists what is there; [`DeviceError::Open`] carries the driver's words.
    pub fn open(name: &str, threads: usize) -> Result<Device> {
        Device::choose(name, threads, false)
    }

    /// The same, with WGSL compiled without bounds checks of arrays and bounds on loops. Results have the same bits.
    ///
    /// # Safety
    /// Each kernel launched on the device must stay inside its views and its workgroup arrays, and its loops must end,
    /// for the parameters it is launched with. The programs of this crate, launched through their own functions, do:
    /// the test-suite runs each between sentinels with the checks on.
    ///
    /// # Errors
    /// As [`Device::open`].
    pub unsafe fn open_trusted(name: &str, threads: usize) -> Result<Device> {
        Device::choose(name, threads, true)
    }

    fn choose(name: &str, threads: usize, trusted: bool) -> Result<Device> {
        let (choice, reason) = adapter::choose(name)?;
        let mut device = match choice {
            Choice::Host => Device::host(threads)?,
            Choice::Oracle => Device::oracle()?,
            Choice::Adapter(found) => {
                let (gpu, limits) = gpu::Gpu::open(&found, trusted)?;
                let class = if found.is_cpu() { Class::Software } else { Class::Gpu };
                Device::new(found.title(), class, limits, Backend::Gpu(Box::new(gpu)), Account::default())
            }
        };
        if let Some(shared) = Arc::get_mut(&mut device.0) {
            shared.why = format!("{reason}, so {}", shared.name);
        }
        Ok(device)
    }

    /// The embedded device on `threads` threads (0: all cores).
    ///
    /// # Errors
    /// [`DeviceError::Open`] when the threads cannot be had.
    pub fn host(threads: usize) -> Result<Device> {
        let native = native::host(threads)?;
        let threads = native.pool.current_num_threads();
        Ok(Device::new(
            format!("host ({threads} threads)"),
            Class::Native,
            native_limits(threads),
            Backend::Host(native),
            Account::default(),
        ))
    }

    /// The f64 oracle.
    ///
    /// # Errors
    /// As [`Device::host`].
    pub fn oracle() -> Result<Device> {
        Ok(Device::new(
            "oracle (f64)".into(),
            Class::Native,
            native_limits(1),
            Backend::Oracle(native::oracle()?),
            Account::default(),
        ))
    }

    /// The references at f32: the yardstick of plain arithmetic, slow.
    ///
    /// # Errors
    /// As [`Device::host`].
    pub fn reference() -> Result<Device> {
        Ok(Device::new(
            "reference (f32)".into(),
            Class::Native,
            native_limits(1),
            Backend::Host(native::reference()?),
            Account::default(),
        ))
    }

    fn new(name: String, class: Class, limits: Limits, backend: Backend, account: Account) -> Device {
        let why = format!("{name} was asked for");
        Device(Arc::new(Shared { name, why, class, limits, backend, account, book: None }))
    }

    /// The same kind of device with another amount of SRAM on a tile. Buffers are not shared between the two.
    ///
    /// # Panics
    /// When there is a clone of the device, or a buffer was made by one.
    pub fn with_tile_sram(self, bytes: u32) -> Device {
        self.altered(|shared| shared.limits.tile_sram = bytes)
    }

    /// The device, altered before it is shared.
    fn altered(self, alter: impl FnOnce(&mut Shared)) -> Device {
        match Arc::try_unwrap(self.0) {
            Ok(mut shared) => {
                alter(&mut shared);
                Device(Arc::new(shared))
            }
            Err(_) => panic!("a device is altered before it is shared"),
        }
    }

    /// What a person would call it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Which device was opened and why, in one line.
    pub fn why(&self) -> &str {
        &self.0.why
    }

    /// Which variants of a kernel it takes.
    pub fn class(&self) -> Class {
        self.0.class
    }

    /// What it can do.
    pub fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// What it has counted so far.
    pub fn counters(&self) -> Counters {
        self.0.account.read()
    }

    /// A new buffer of `len` elements, all zero.
    ///
    /// # Errors
    /// [`DeviceError::TooLarge`] beyond the binding limit, [`DeviceError::OutOfMemory`].
    pub fn buffer(&self, label: impl Into<String>, elem: Elem, len: usize) -> Result<Buffer> {
        let label = label.into();
        let bytes = len as u64 * 4;
        let limit = self.limits().binding_bytes.min(self.limits().buffer_bytes);
        if bytes > limit {
            return Err(DeviceError::TooLarge { label, bytes, limit });
        }
        let storage = match &self.0.backend {
            Backend::Blank(_) => Storage::Blank,
            Backend::Gpu(b) => Storage::Gpu(b.create(&label, len)?),
            Backend::Host(b) => b.create(elem, len),
            Backend::Oracle(b) => b.create(elem, len),
        };
        let account = self.0.account.clone();
        account.allocated(bytes);
        Ok(Buffer(Arc::new(Inner { label, elem, len, storage, account })))
    }

    /// Copies `data` into a view of the same length, after all work queued before.
    ///
    /// # Errors
    /// [`DeviceError::Usage`] when the lengths differ or the buffer is of another device; what the driver says.
    pub fn upload<T: bytemuck::NoUninit>(&self, view: &View, data: &[T]) -> Result<()> {
        let words: &[u32] = bytemuck::cast_slice(data);
        if words.len() != view.len {
            return Err(DeviceError::Usage(format!("upload of {} elements into {view:?}", words.len())));
        }
        self.0.account.uploaded(view.len as u64 * 4);
        on!(self, b => b.write(view, words))
    }

    /// Waits for all work on a view of floats and copies it out, rounded to f32 on the oracle.
    ///
    /// # Errors
    /// [`DeviceError::Usage`] when the view holds integers; what the driver says of this transfer and of the work before it.
    pub fn download(&self, view: &View) -> Result<Vec<f32>> {
        view.expect_elem(Elem::F32)?;
        self.0.account.downloaded(view.len as u64 * 4);
        Ok(bytemuck::cast_vec(on!(self, b => b.read(view))?))
    }

    /// The same for integers.
    ///
    /// # Errors
    /// As [`Device::download`], for a view of floats.
    pub fn download_ids(&self, view: &View) -> Result<Vec<u32>> {
        view.expect_elem(Elem::U32)?;
        self.0.account.downloaded(view.len as u64 * 4);
        on!(self, b => b.read(view))
    }

    /// The floats of a view at the precision the device keeps them (f64 on the oracle), widened exactly.
    ///
    /// # Errors
    /// As [`Device::download`].
    pub fn download_f64(&self, view: &View) -> Result<Vec<f64>> {
        view.expect_elem(Elem::F32)?;
        self.0.account.downloaded(view.len as u64 * 4);
        match &self.0.backend {
            Backend::Blank(b) => Ok(vec![0.0; b.read(view)?.len()]),
            Backend::Gpu(b) => Ok(b.read(view)?.into_iter().map(|w| f32::from_bits(w) as f64).collect()),
            Backend::Host(b) => b.read_f64(view),
            Backend::Oracle(b) => b.read_f64(view),
        }
    }

    /// Lets `fill` write all floats of a view, after all work queued before: where the device computes in f32 on the memory
    /// of the host, no copy is made beside it. A blank device has nothing to be written, and does not call it.
    ///
    /// # Errors
    /// [`DeviceError::Usage`] when the view holds integers; what the driver says.
    pub fn upload_with(&self, view: &View, fill: &mut dyn FnMut(&mut [f32])) -> Result<()> {
        view.expect_elem(Elem::F32)?;
        self.0.account.uploaded(view.len as u64 * 4);
        let done = match &self.0.backend {
            Backend::Blank(b) => b.write(view, &[]).map(|()| true)?,
            Backend::Gpu(_) => false,
            Backend::Host(b) => b.fill(view, fill)?,
            Backend::Oracle(b) => b.fill(view, fill)?,
        };
        if done {
            return Ok(());
        }
        let mut values = vec![0.0f32; view.len];
        fill(&mut values);
        on!(self, b => b.write(view, bytemuck::cast_slice(&values)))
    }

    /// Waits for all work on a view of floats and shows them to `take`, rounded to f32 on the oracle; no copy is made where
    /// the device computes in f32 on the memory of the host. A blank device has nothing to show, and does not call it.
    ///
    /// # Errors
    /// As [`Device::download`].
    pub fn download_with(&self, view: &View, take: &mut dyn FnMut(&[f32])) -> Result<()> {
        view.expect_elem(Elem::F32)?;
        self.0.account.downloaded(view.len as u64 * 4);
        let done = match &self.0.backend {
            Backend::Blank(b) => b.write(view, &[]).map(|()| true)?,
            Backend::Gpu(_) => false,
            Backend::Host(b) => b.show(view, take)?,
            Backend::Oracle(b) => b.show(view, take)?,
        };
        if !done {
            take(bytemuck::cast_slice(&on!(self, b => b.read(view))?));
        }
        Ok(())
    }

    /// Queues one launch.
    ///
    /// # Errors
    /// [`DeviceError::Usage`] when views, types or words do not fit the declaration; [`DeviceError::Sram`] when the
    /// program does not fit a tile; what the driver says otherwise.
    pub fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        check_launch(launch, self.limits())?;
        if launch.groups == 0 {
            return Ok(());
        }
        self.noted(launch, || {
            self.0.account.dispatched();
            match &self.0.backend {
                Backend::Blank(b) => b.launch(launch),
                Backend::Gpu(b) => b.launch(launch, self.limits()),
                Backend::Host(b) => b.launch(launch),
                Backend::Oracle(b) => b.launch(launch),
            }
        })
    }

    /// Moves blocks between buffers, after all work queued before: the exchange between two supersteps. Source and
    /// target of a transfer must be different buffers. Counted as traffic of the fabric.
    ///
    /// # Errors
    /// As [`Device::copy`].
    pub fn exchange(&self, transfers: &[Transfer]) -> Result<()> {
        for t in transfers.iter().filter(|t| t.rows > 0 && t.cols > 0) {
            self.copy(t)?;
            self.0.account.exchanged((t.rows * t.cols) as u64 * 4);
        }
        Ok(())
    }

    /// Copies blocks into the outboxes of the links that they cross, after all work queued before. Counted as hops.
    ///
    /// # Errors
    /// As [`Device::copy`].
    pub fn cross(&self, transfers: &[Transfer]) -> Result<()> {
        for t in transfers.iter().filter(|t| t.rows > 0 && t.cols > 0) {
            self.copy(t)?;
            self.0.account.crossed((t.rows * t.cols) as u64 * 4);
        }
        Ok(())
    }

    /// Copies one block within the memory of the device, after all work queued before; no traffic of the fabric.
    ///
    /// # Errors
    /// [`DeviceError::Usage`] when a block leaves its buffer, or the buffers are one and the same or of different types.
    pub fn copy(&self, t: &Transfer) -> Result<()> {
        if t.rows == 0 || t.cols == 0 {
            return Ok(());
        }
        if Arc::ptr_eq(&t.source.0, &t.target.0) || t.source.elem() != t.target.elem() {
            return Err(DeviceError::Usage(format!("copy within one buffer or between types: {t:?}")));
        }
        let reach = |offset: usize, stride: usize| offset + (t.rows - 1) * stride + t.cols;
        if reach(t.source_offset, t.source_stride) > t.source.len()
            || reach(t.target_offset, t.target_stride) > t.target.len()
        {
            return Err(DeviceError::Usage(format!("copy leaves its buffers: {t:?}")));
        }
        on!(self, b => b.transfer(t))
    }

    /// Hands queued work to the device without waiting.
    ///
    /// # Errors
    /// What the driver says of the work handed over.
    pub fn flush(&self) -> Result<()> {
        match &self.0.backend {
            Backend::Gpu(b) => b.flush(),
            _ => Ok(()),
        }
    }

    /// Waits until all queued work is done and reports what went wrong in it.
    ///
    /// # Errors
    /// What the driver says of any work before this call.
    pub fn wait(&self) -> Result<()> {
        match &self.0.backend {
            Backend::Gpu(b) => b.wait(),
            _ => Ok(()),
        }
    }

    /// Runs `f` where launches cost least: on a native device, inside its thread pool.
    pub fn run<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        match &self.0.backend {
            Backend::Blank(_) | Backend::Gpu(_) => f(),
            Backend::Host(b) => b.pool.install(f),
            Backend::Oracle(b) => b.pool.install(f),
        }
    }

    /// What a kernel takes of a tile's SRAM.
    ///
    /// # Errors
    /// [`DeviceError::Program`] when its WGSL does not compile, [`DeviceError::Sram`] when it does not fit this device.
    pub fn sram(&self, kernel: &Kernel, variant: &Variant) -> Result<SramUse> {
        let used = SramUse::of(kernel, variant, &expand(kernel, variant)?)?;
        used.check(kernel.name, self.limits())?;
        Ok(used)
    }

    /// Compiles a kernel now, so that its first launch does not wait for it.
    ///
    /// # Errors
    /// [`DeviceError::Program`] when its WGSL does not compile, [`DeviceError::Sram`] when it does not fit a tile or the device.
    pub fn prepare(&self, kernel: &'static Kernel, variant: &'static Variant) -> Result<()> {
        match &self.0.backend {
            Backend::Gpu(b) => b.prepare(kernel, variant, self.limits()),
            _ => Ok(()),
        }
    }
}

fn native_limits(threads: usize) -> Limits {
    Limits {
        binding_bytes: u64::MAX,
        buffer_bytes: u64::MAX,
        workgroup_bytes: u32::MAX,
        invocations: u32::MAX,
        groups_per_dimension: u32::MAX,
        view_alignment: 1,
        tile_sram: DEFAULT_TILE_SRAM,
        threads,
    }
}

fn check_launch(launch: &Launch<'_>, limits: &Limits) -> Result<()> {
    let kernel = launch.kernel;
    let fail = |what: String| Err(DeviceError::Usage(format!("{}: {what}", kernel.name)));
    if launch.views.len() != kernel.bindings.len() {
        return fail(format!("{} views for {} bindings", launch.views.len(), kernel.bindings.len()));
    }
    if launch.params.len() != kernel.params.len() {
        return fail(format!("{} words for {} parameters", launch.params.len(), kernel.params.len()));
    }
    if kernel.params.len() > MAX_WORDS {
        return fail(format!("{} parameter words, at most {MAX_WORDS} are passed", kernel.params.len()));
    }
    for (view, binding) in launch.views.iter().zip(kernel.bindings) {
        if view.buffer.elem() != binding.lane.elem() {
            return fail(format!("{} is bound to {:?}", binding.name, view.buffer));
        }
        if view.len == 0 || view.offset % limits.view_alignment != 0 {
            return fail(format!(
                "{}: {view:?} is empty or not aligned to {} elements",
                binding.name, limits.view_alignment
            ));
        }
        if binding.lane == Lane::Vec4 && (view.offset % 4 != 0 || view.len % 4 != 0) {
            return fail(format!("{}: {view:?} is not a whole number of vec4", binding.name));
        }
    }
    for (i, (view, binding)) in launch.views.iter().zip(kernel.bindings).enumerate() {
        let twice = |(other, b): (&View, &Binding)| {
            Arc::ptr_eq(&view.buffer.0, &other.buffer.0)
                && (binding.access == Access::Write || b.access == Access::Write)
        };
        if launch.views[..i].iter().zip(kernel.bindings).any(twice) {
            return fail(format!("{:?} is bound for writing and bound a second time", view.buffer));
        }
    }
    let held = (kernel.held)(launch.variant);
    if held.total() > limits.tile_sram {
        return Err(DeviceError::Sram {
            program: kernel.name.into(),
            what: format!("tile SRAM ({} of accumulators, {} of saved state)", held.accumulators, held.state),
            needed: held.total().into(),
            available: limits.tile_sram.into(),
        });
    }
    Ok(())
}
