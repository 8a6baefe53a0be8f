//! The devices that are native code: `host` (f32 on CPU threads) and the oracle (the references at f64).
//!
//! One implementation, generic over the float: memory is plain vectors behind locks that enforce WebGPU's rule (a buffer
//! is either read by any number of bindings of a launch, or written by one), and a launch is a call of the kernel's
//! function. It must never know what any kernel computes.

use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::buffer::{Buffer, Elem, Storage, Transfer, View};
use super::kernel::{Access, Args, Launch, NativeFn, Slot};
use super::{DeviceError, Kernel};

/// The floats that native devices compute with.
pub trait Real:
    num_traits::Float + num_traits::NumAssign + std::iter::Sum + Send + Sync + std::fmt::Debug + 'static
{
    /// The float nearest to an `f64`.
    fn of(x: f64) -> Self;
    /// The value as `f64`, exactly.
    fn wide(self) -> f64;
    /// The complementary error function.
    fn erfc(self) -> Self;
    /// The slice itself where these floats are f32: what passes between host and device then needs no copy beside it.
    fn singles(slice: &[Self]) -> Option<&[f32]>;
    /// The same, to write.
    fn singles_mut(slice: &mut [Self]) -> Option<&mut [f32]>;
}

impl Real for f32 {
    fn singles(slice: &[f32]) -> Option<&[f32]> {
        Some(slice)
    }
    fn singles_mut(slice: &mut [f32]) -> Option<&mut [f32]> {
        Some(slice)
    }
    fn of(x: f64) -> f32 {
        x as f32
    }
    fn wide(self) -> f64 {
        self as f64
    }
    fn erfc(self) -> f32 {
        libm::erfcf(self)
    }
}

impl Real for f64 {
    fn singles(_: &[f64]) -> Option<&[f32]> {
        None
    }
    fn singles_mut(_: &mut [f64]) -> Option<&mut [f32]> {
        None
    }
    fn of(x: f64) -> f64 {
        x
    }
    fn wide(self) -> f64 {
        self
    }
    fn erfc(self) -> f64 {
        libm::erfc(self)
    }
}

/// Memory of one buffer.
pub(super) enum Cells<F> {
    Float(RwLock<Aligned<F>>),
    Uint(RwLock<Vec<u32>>),
}

/// A vector whose first element lies on a 64-byte line: a vector load that straddles two lines costs twice.
pub(super) struct Aligned<F> {
    cells: Vec<F>,
    start: usize,
    len: usize,
}

impl<F: Real> Aligned<F> {
    fn zeroed(len: usize) -> Self {
        let cells = vec![F::zero(); len + 64 / size_of::<F>()];
        let start = cells.as_ptr().align_offset(64).min(64 / size_of::<F>());
        Self { cells, start, len }
    }

    fn slice(&self) -> &[F] {
        &self.cells[self.start..self.start + self.len]
    }

    fn slice_mut(&mut self) -> &mut [F] {
        &mut self.cells[self.start..self.start + self.len]
    }
}

enum Guard<'a, F> {
    Read(RwLockReadGuard<'a, Aligned<F>>),
    Write(RwLockWriteGuard<'a, Aligned<F>>),
    ReadIds(RwLockReadGuard<'a, Vec<u32>>),
    WriteIds(RwLockWriteGuard<'a, Vec<u32>>),
}

/// A native device.
pub(super) struct Native<F> {
    /// Threads that kernels may use.
    pub pool: rayon::ThreadPool,
    function: fn(&Kernel) -> NativeFn<F>,
    cells: fn(&Storage) -> Option<&Cells<F>>,
    wrap: fn(Cells<F>) -> Storage,
}

/// The embedded device: host kernels where a program has one, else its reference.
pub(super) fn host(threads: usize) -> Result<Native<f32>, DeviceError> {
    Ok(Native {
        pool: pool("host", threads)?,
        function: |k| k.host.unwrap_or(k.reference_f32),
        cells: |s| if let Storage::Host(c) = s { Some(c) } else { None },
        wrap: Storage::Host,
    })
}

/// The references at f32, without any host kernel: how far plain f32 arithmetic lies from the oracle.
pub(super) fn reference() -> Result<Native<f32>, DeviceError> {
    Ok(Native { function: |k| k.reference_f32, ..host(1)? })
}

/// The references at f64.
pub(super) fn oracle() -> Result<Native<f64>, DeviceError> {
    Ok(Native {
        pool: pool("oracle", 1)?,
        function: |k| k.reference_f64,
        cells: |s| if let Storage::Oracle(c) = s { Some(c) } else { None },
        wrap: Storage::Oracle,
    })
}

fn pool(name: &'static str, threads: usize) -> Result<rayon::ThreadPool, DeviceError> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(move |i| format!("gaufre-{name}-{i}"))
        .build()
        .map_err(|e| DeviceError::Open { adapter: name.into(), reason: e.to_string() })
}

impl<F: Real> Native<F> {
    pub fn create(&self, elem: Elem, len: usize) -> Storage {
        (self.wrap)(match elem {
            Elem::F32 => Cells::Float(RwLock::new(Aligned::zeroed(len))),
            Elem::U32 => Cells::Uint(RwLock::new(vec![0; len])),
        })
    }

    pub fn write(&self, view: &View, words: &[u32]) -> Result<(), DeviceError> {
        match self.guard(&view.buffer, Access::Write, "upload")? {
            Guard::Write(mut g) => {
                for (cell, &word) in g.slice_mut()[view.offset..][..view.len].iter_mut().zip(words) {
                    *cell = F::of(f32::from_bits(word) as f64);
                }
            }
            Guard::WriteIds(mut g) => g[view.offset..][..view.len].copy_from_slice(words),
            _ => unreachable!("guard() gives a write guard for a write"),
        }
        Ok(())
    }

    pub fn read(&self, view: &View) -> Result<Vec<u32>, DeviceError> {
        Ok(match self.guard(&view.buffer, Access::Read, "download")? {
            Guard::Read(g) => {
                g.slice()[view.offset..][..view.len].iter().map(|x| (x.wide() as f32).to_bits()).collect()
            }
            Guard::ReadIds(g) => g[view.offset..][..view.len].to_vec(),
            _ => unreachable!("guard() gives a read guard for a read"),
        })
    }

    /// Lets `fill` write the floats of a view where they lie; false where they are not f32.
    pub fn fill(&self, view: &View, fill: &mut dyn FnMut(&mut [f32])) -> Result<bool, DeviceError> {
        match self.guard(&view.buffer, Access::Write, "upload")? {
            Guard::Write(mut g) => {
                let singles = F::singles_mut(&mut g.slice_mut()[view.offset..][..view.len]);
                Ok(singles.map(fill).is_some())
            }
            _ => Err(DeviceError::Usage(format!("{:?} does not hold floats", view.buffer.label()))),
        }
    }

    /// Shows the floats of a view where they lie; false where they are not f32.
    pub fn show(&self, view: &View, take: &mut dyn FnMut(&[f32])) -> Result<bool, DeviceError> {
        match self.guard(&view.buffer, Access::Read, "download")? {
            Guard::Read(g) => Ok(F::singles(&g.slice()[view.offset..][..view.len]).map(take).is_some()),
            _ => Err(DeviceError::Usage(format!("{:?} does not hold floats", view.buffer.label()))),
        }
    }

    pub fn read_f64(&self, view: &View) -> Result<Vec<f64>, DeviceError> {
        match self.guard(&view.buffer, Access::Read, "download")? {
            Guard::Read(g) => Ok(g.slice()[view.offset..][..view.len].iter().map(|x| x.wide()).collect()),
            _ => Err(DeviceError::Usage(format!("{:?} does not hold floats", view.buffer.label()))),
        }
    }

    pub fn launch(&self, launch: &Launch<'_>) -> Result<(), DeviceError> {
        let kernel = launch.kernel;
        let mut guards = Vec::with_capacity(launch.views.len());
        for (view, binding) in launch.views.iter().zip(kernel.bindings) {
            guards.push(self.guard(&view.buffer, binding.access, kernel.name)?);
        }
        let slots = guards
            .iter_mut()
            .zip(launch.views)
            .map(|(guard, v)| match guard {
                Guard::Read(g) => Slot::Read(&g.slice()[v.offset..][..v.len]),
                Guard::Write(g) => Slot::Write(&mut g.slice_mut()[v.offset..][..v.len]),
                Guard::ReadIds(g) => Slot::ReadIds(&g[v.offset..][..v.len]),
                Guard::WriteIds(g) => Slot::WriteIds(&mut g[v.offset..][..v.len]),
            })
            .collect();
        let mut args = Args { groups: launch.groups, variant: launch.variant, words: launch.params, slots };
        let function = (self.function)(kernel);
        self.pool.install(|| function(&mut args));
        Ok(())
    }

    pub fn transfer(&self, t: &Transfer) -> Result<(), DeviceError> {
        let source = self.guard(&t.source, Access::Read, "exchange")?;
        let target = self.guard(&t.target, Access::Write, "exchange")?;
        match (source, target) {
            (Guard::Read(s), Guard::Write(mut d)) => move_rows(t, s.slice(), d.slice_mut()),
            (Guard::ReadIds(s), Guard::WriteIds(mut d)) => move_rows(t, &s, &mut d),
            _ => return Err(DeviceError::Usage("exchange between buffers of different elements".into())),
        }
        Ok(())
    }

    fn guard<'a>(&self, buffer: &'a Buffer, access: Access, place: &str) -> Result<Guard<'a, F>, DeviceError> {
        let clash = || {
            DeviceError::Usage(format!(
                "{place}: buffer {:?} is bound for writing and bound a second time",
                buffer.label()
            ))
        };
        let cells = (self.cells)(&buffer.0.storage).ok_or_else(|| {
            DeviceError::Usage(format!("{place}: buffer {:?} belongs to another device", buffer.label()))
        })?;
        Ok(match (cells, access) {
            (Cells::Float(c), Access::Read) => Guard::Read(c.try_read().map_err(|_| clash())?),
            (Cells::Float(c), Access::Write) => Guard::Write(c.try_write().map_err(|_| clash())?),
            (Cells::Uint(c), Access::Read) => Guard::ReadIds(c.try_read().map_err(|_| clash())?),
            (Cells::Uint(c), Access::Write) => Guard::WriteIds(c.try_write().map_err(|_| clash())?),
        })
    }
}

fn move_rows<T: Copy>(t: &Transfer, source: &[T], target: &mut [T]) {
    for row in 0..t.rows {
        let from = &source[t.source_offset + row * t.source_stride..][..t.cols];
        target[t.target_offset + row * t.target_stride..][..t.cols].copy_from_slice(from);
    }
}
