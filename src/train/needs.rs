//! What a run needs of device, host memory and disk, held against what there is before anything is made: what cannot fit is
//! refused with the cure. It must never know how a step is computed.

use std::path::{Path, PathBuf};

use super::config::{Algorithm, Config, Home};
use super::optimizer::Clip;
use super::peaks;
use super::run;
use super::step::{Setup, SetupError};
use crate::data::Shape;
use crate::device::{Class, Device};
use crate::model::{Config as Model, Gpt, Recompute, Table};
use crate::program::Matrix;
use crate::report;
use crate::store::disk::{gradient_bytes, lasting_bytes};
use crate::store::durable::{Disk, RealDisk};
use crate::store::plan::{Kept, Need, Plan};
use crate::store::role::{self, ROLES, Role};
use crate::store::{Format, Placement, Spill, StoreError};
use crate::wafer::Wafer;

/// Bytes needed, and bytes there are where that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes {
    /// Needed.
    pub needed: u64,
    /// There, or allowed.
    pub available: Option<u64>,
}

impl Bytes {
    /// Whether there is room, as far as is known.
    pub fn fit(self) -> bool {
        self.available.is_none_or(|available| self.needed <= available)
    }
}

/// What a run needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Parameters of the model.
    pub parameters: u64,
    /// On the device, where `--device-memory` bounds it.
    pub device: Bytes,
    /// Of host memory, that of a native device included.
    pub ram: Bytes,
    /// On the disk of the store.
    pub disk: Bytes,
    /// That pass between memory and disk in a step.
    pub traffic: u64,
}

/// Why a run cannot be.
#[derive(Debug, thiserror::Error)]
pub enum NeedsError {
    /// More host memory than there is.
    #[error("{needed} bytes of memory are needed and {available} are free; {cure}")]
    Ram {
        /// Bytes needed.
        needed: u64,
        /// Bytes there are.
        available: u64,
        /// What takes fewer.
        cure: &'static str,
    },
    /// More disk than there is.
    #[error("--store disk: {needed} bytes are needed and {available} are free in {}; {cure}", path.display())]
    Disk {
        /// The folder.
        path: PathBuf,
        /// Bytes needed.
        needed: u64,
        /// Bytes there are.
        available: u64,
        /// What takes fewer.
        cure: &'static str,
    },
    /// The device is too small for what is beside the store.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The device is too small for the store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Needs {
    /// The same for a person, with what a step will take: `seconds` of computing where nothing is computed twice, and as
    /// much of reading and writing as the disk of `folder` is measured to do.
    pub fn told(&self, config: &Config, seconds: f64, folder: &Path) -> report::Needs {
        let of = |bytes: Bytes| (bytes.needed, bytes.available);
        // A pass forward again is 2 of 6 parts more.
        let computing = seconds * if config.recompute == Recompute::None { 1.0 } else { 4.0 / 3.0 };
        let stream =
            if self.traffic > 0 { peaks::disk(folder).map_or(0.0, |rate| self.traffic as f64 / rate) } else { 0.0 };
        report::Needs {
            device: of(self.device),
            ram: of(self.ram),
            disk: of(self.disk),
            step_seconds: (computing, stream),
        }
    }
}

/// What a run needs, and what there is.
///
/// # Errors
/// [`StoreError::TooSmall`] where the smallest plan exceeds the device memory allowed.
pub fn needs(config: &Config, setup: &Setup, device: &Device) -> Result<Needs, NeedsError> {
    let tensors = Gpt::tensors(&setup.model, setup.seed);
    let budget = setup.budget(&tensors)?;
    let plan = Plan::new(
        device.limits(),
        &tensors,
        Need {
            placement: setup.placement,
            weights: setup.param_dtype,
            training: Some(setup.optimizer.training(setup.master)),
            budget,
        },
    )?;
    let packed = |roles: &dyn Fn(Role) -> bool| -> u64 {
        let roles: Vec<Role> = role::ALL.into_iter().filter(|role| roles(*role)).collect();
        let array = |kept: &[Kept; ROLES]| -> u64 {
            let bytes = |role: &Role| kept[*role as usize].map_or(0, |(a, _)| a.format.bytes(a.rows, a.cols) as u64);
            roles.iter().map(bytes).sum()
        };
        plan.arrays.iter().map(array).sum()
    };
    let on_device = setup.fixed_bytes(&tensors) + plan.slots.bytes();
    let native = if device.class() == Class::Native { on_device } else { 0 };
    let lasting = packed(&|role| role.lasts());
    let off_device = match setup.placement {
        Placement::Resident => 0,
        Placement::Ram => packed(&|_| true) + if setup.spill() == Spill::Ram { spilled(setup) } else { 0 },
        Placement::Disk => 2 * config.stream_memory,
    };
    let disk = match setup.placement {
        Placement::Disk if setup.dry => scratch_bytes(setup, config.in_place),
        Placement::Disk => {
            lasting_bytes(&tensors, &plan.arrays, config.in_place) + scratch_bytes(setup, config.in_place)
        }
        _ => 0,
    };
    let folder = folder(config);
    let free = (setup.placement == Placement::Disk).then(|| RealDisk.available(&folder).ok()).flatten();
    Ok(Needs {
        parameters: Table::new(&setup.model).count(),
        device: Bytes { needed: on_device, available: setup.device_memory },
        ram: Bytes { needed: native + off_device, available: free_memory() },
        disk: Bytes { needed: disk, available: free },
        // Weights are read twice, the rest once; what is in place is written twice.
        traffic: match setup.placement {
            Placement::Disk if !setup.dry => {
                packed(&|role| role == Role::Weight) + lasting * if config.in_place { 3 } else { 2 }
            }
            _ => 0,
        },
    })
}

/// The two ways to train a model that are far apart: all in memory, in f32 with AdamW, and on a disk, in bf16 with Adafactor,
/// in place, a layer at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ways {
    /// All in memory.
    pub resident: Needs,
    /// From a disk.
    pub streamed: Needs,
}

/// Which way there is room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// All in memory.
    Resident,
    /// From a disk.
    Streamed,
    /// The disk is too small.
    NoDisk,
    /// What passes at once is too large for the memory.
    NoMemory,
}

impl Ways {
    /// The first way that there is room for.
    pub fn room(&self) -> Room {
        match (self.resident.ram.fit(), self.streamed.ram.fit(), self.streamed.disk.fit()) {
            (true, ..) => Room::Resident,
            (_, true, true) => Room::Streamed,
            (_, true, false) => Room::NoDisk,
            (_, false, _) => Room::NoMemory,
        }
    }
}

/// Tokens of the one sequence that [`of_model`] counts with, where the model's context is not shorter.
pub const SEQUENCE: usize = 1024;

/// What a model needs to be trained on a device, with one sequence of its context or of [`SEQUENCE`] tokens a step, in the
/// folder where runs go by default.
///
/// # Errors
/// [`StoreError`] where no plan can be made.
pub fn of_model(model: &Model, device: &Device) -> Result<Ways, NeedsError> {
    let shape = Shape { batch_size: 1, seq_len: model.context.min(SEQUENCE), grad_accum: 1 };
    let streamed = Config {
        store: Home::Disk(None),
        in_place: true,
        param_dtype: Format::Bf16,
        optimizer: Algorithm::Adafactor,
        clip: Clip::Layer,
        recompute: Recompute::Layer,
        ..Config::default()
    };
    let least = |config: &Config| {
        let setup = Setup { spare: None, ..run::setup(config, model.clone(), shape, Wafer::new(8, 8), device) };
        needs(config, &setup, device)
    };
    Ok(Ways { resident: least(&Config::default())?, streamed: least(&streamed)? })
}

/// What a run needs, where it fits; `resumed`: its store is there already.
///
/// # Errors
/// [`NeedsError`] with the cure.
pub fn check(config: &Config, setup: &Setup, device: &Device, resumed: bool) -> Result<Needs, NeedsError> {
    let needs = needs(config, setup, device)?;
    if let (false, Some(available)) = (needs.ram.fit(), needs.ram.available) {
        let cure = match setup.placement {
            Placement::Disk => "lower --device-memory or --stream-memory",
            _ => "use --store disk --device-memory BYTES",
        };
        return Err(NeedsError::Ram { needed: needs.ram.needed, available, cure });
    }
    if let (false, false, Some(available)) = (resumed, needs.disk.fit(), needs.disk.available) {
        let cure = match (config.in_place, setup.param_dtype) {
            (false, _) => "use --in-place, or another disk with --store disk:FOLDER",
            (true, Format::F32) => "use --param-dtype bf16, or another disk with --store disk:FOLDER",
            _ => "use --optimizer adafactor --clip layer, or another disk with --store disk:FOLDER",
        };
        return Err(NeedsError::Disk { path: place(config), needed: needs.disk.needed, available, cure });
    }
    Ok(needs)
}

/// Bytes of gradients and layer inputs that may have to wait on the disk.
pub fn scratch_bytes(setup: &Setup, in_place: bool) -> u64 {
    let tensors = Gpt::tensors(&setup.model, setup.seed);
    let wait = gradients_wait(setup);
    // A step that was interrupted in place leaves what its journal counts on, and goes on beside it.
    let places = if in_place && !wait { 2 } else { 1 };
    places * gradient_bytes(&tensors, wait) + if setup.spill() == Spill::Disk { spilled(setup) } else { 0 }
}

/// Whether all gradients of a step wait for its end: where layers are updated at once, or nothing is, they do not.
pub fn gradients_wait(setup: &Setup) -> bool {
    setup.optimizer.clip == Clip::Global && !setup.dry
}

/// Bytes of one spilled layer input.
pub fn spill_bytes(setup: &Setup) -> u64 {
    (setup.shape.rows() * Matrix::stride_for(setup.model.d_model) * 4) as u64
}

fn spilled(setup: &Setup) -> u64 {
    ((setup.model.layers + 1) * setup.shape.micro_batches) as u64 * spill_bytes(setup)
}

/// The folder whose disk the store will be on.
fn place(config: &Config) -> PathBuf {
    match &config.store {
        Home::Disk(Some(path)) => path.clone(),
        _ => config.out.clone().unwrap_or_else(|| "runs".into()),
    }
}

/// A folder that is there, on the disk that the store will be on.
pub fn folder(config: &Config) -> PathBuf {
    nearest(&place(config))
}

/// The nearest folder above a path that is there.
fn nearest(path: &Path) -> PathBuf {
    let there = path.ancestors().find(|p| p.is_dir());
    there.map_or_else(|| ".".into(), Path::to_path_buf)
}

/// What slots of a store on a disk may take where nothing bounds them: half of the memory that is free, on a device whose
/// memory is that of the host. How much an adapter has is told by none.
pub fn spare(config: &Config, device: &Device) -> Option<u64> {
    let host = device.class() == Class::Native && config.store.placement() == Placement::Disk;
    free_memory().filter(|_| host).map(|bytes| bytes / 2)
}

/// Memory that the system can give without swapping, where it tells (Linux).
fn free_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}
