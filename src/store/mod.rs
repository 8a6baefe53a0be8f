//! Where parameters live: a store hands out panels in device slots and keeps the rest in host memory or on a disk.
//!
//! There is one path for every size. A cell is one panel of one tensor in one [`Role`]; it lies in a device slot, in host
//! memory, on a disk, or nowhere at all while it is still its formula (`initial values`, or zero). `resident` gives every
//! cell a slot of its own, `ram` and `disk` make them take turns; none can change a bit of any result. The store knows
//! tensors by number; it must never know a model or a training step.

pub mod block;
mod cells;
pub mod checkpoint;
mod direct;
pub mod disk;
pub mod durable;
pub mod export;
pub mod format;
pub mod import;
pub mod journal;
mod manifest;
mod moves;
pub mod order;
mod panel;
pub mod plan;
pub mod role;
pub mod safetensors;
pub mod shards;
mod slots;
pub mod spill;
pub mod stream;
pub mod volume;

pub use disk::{Archive, DiskError};
pub use format::Format;
pub use panel::{Cut, PANEL_BYTES, Panel};
pub use role::{Array, Role, Training};
pub use slots::SlotPlan;
pub use spill::Spill;

use crate::device::{Device, DeviceError};
use crate::program::Matrix;
use crate::program::initial::{self, Initial, Kind};
use crate::program::round;
use cells::Cells;
use disk::DiskStore;
use journal::{Interrupted, Mark};
use plan::{Kept, Need, Plan};
use slots::Slots;

/// One tensor to be stored.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Name in checkpoints.
    pub name: String,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// True for tensors of one dimension (one row).
    pub vector: bool,
    /// What it holds before its first update.
    pub initial: Initial,
    /// Tensors of one group are used together: on a disk they share a file.
    pub group: usize,
    /// Whether another group adds to its gradient too, long before its own does: a table that is also the head.
    pub shared: bool,
}

/// Where panels stay between visits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// On the device.
    Resident,
    /// In host memory; device slots hold what is in use.
    Ram,
    /// On a disk, which is the checkpoint too; device slots hold what is in use.
    Disk,
}

/// What a store is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Where panels stay. [`Placement::Disk`] is opened with [`Store::on_disk`].
    pub placement: Placement,
    /// Device memory for slots in bytes; `None`: as much as it takes.
    pub budget: Option<u64>,
    /// How weights rest off the device; what is not f32 is rounded on the device.
    pub weights: Format,
    /// What is kept beside weights; `None` where nothing is trained.
    pub training: Option<Training>,
}

impl Options {
    /// For a model that is only asked: f32 weights, on the device.
    pub const WEIGHTS: Options =
        Options { placement: Placement::Resident, budget: None, weights: Format::F32, training: None };
}

/// Errors of a store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The panels in flight do not fit the device memory that was allowed.
    #[error(
        "--device-memory leaves {available} bytes for panels, {needed} are needed; raise it, or lower --batch-size or --seq-len"
    )]
    TooSmall {
        /// Bytes the smallest plan takes.
        needed: u64,
        /// Bytes there are.
        available: u64,
    },
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The disk failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// Result of a store call.
pub type Result<T> = std::result::Result<T, StoreError>;

/// The panels that an update takes together.
pub struct Update {
    /// Parameters.
    pub weight: Matrix,
    /// Gradient.
    pub gradient: Matrix,
    /// States of the optimiser that are cut as the tensor is.
    pub states: [Option<Matrix>; 2],
    /// Parameters at full precision, where the weights are rounded.
    pub master: Option<Matrix>,
}

impl Update {
    /// What the optimiser moves: the master where there is one.
    pub fn target(&self) -> &Matrix {
        self.master.as_ref().unwrap_or(&self.weight)
    }
}

/// The parameters of a model with their gradients and states.
pub struct Store {
    device: Device,
    tensors: Vec<Tensor>,
    options: Options,
    cells: Cells,
    slots: Slots,
    plan: Plan,
    disk: Option<DiskStore>,
    spilled: spill::Spilled,
}

impl Store {
    /// Opens a store on a device and allocates its slots.
    ///
    /// # Errors
    /// [`StoreError::TooSmall`] when the smallest plan exceeds the budget; what the device says.
    ///
    /// # Panics
    /// For [`Placement::Disk`].
    pub fn new(device: &Device, tensors: Vec<Tensor>, options: Options) -> Result<Store> {
        assert!(options.placement != Placement::Disk, "a store on a disk has a folder");
        let plan = Store::plan_for(device, &tensors, options)?;
        Store::with(device, tensors, options, plan, None)
    }

    /// Opens a store whose panels lie in a folder, as they are there; what is not there yet is its formula. Where the last
    /// step was interrupted after it began to replace what it read, that step is to be completed: see [`Interrupted`].
    ///
    /// # Errors
    /// As [`Store::new`]; [`DiskError`] where the folder is not of these tensors, damaged, or too small a disk.
    pub fn on_disk(
        device: &Device,
        tensors: Vec<Tensor>,
        options: Options,
        archive: &Archive,
    ) -> Result<(Store, disk::Opened)> {
        let plan = Store::plan_for(device, &tensors, options)?;
        let (disk, opened) = DiskStore::open(archive, &tensors, &plan.arrays)?;
        let mut store = Store::with(device, tensors, options, plan, Some(disk))?;
        store.cells.settle_on_disk(&opened.present);
        Ok((store, opened))
    }

    fn plan_for(device: &Device, tensors: &[Tensor], options: Options) -> Result<Plan> {
        let Options { placement, budget, weights, training } = options;
        Plan::new(device.limits(), tensors, Need { placement, weights, training, budget })
    }

    fn with(
        device: &Device,
        tensors: Vec<Tensor>,
        options: Options,
        plan: Plan,
        disk: Option<DiskStore>,
    ) -> Result<Store> {
        Ok(Store {
            device: device.clone(),
            cells: Cells::new(&plan.arrays),
            slots: Slots::new(device, &plan.slots)?,
            spilled: spill::Spilled::default(),
            tensors,
            options,
            plan,
            disk,
        })
    }

    /// The tensors, by number.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The device slots.
    pub fn plan(&self) -> &SlotPlan {
        &self.plan.slots
    }

    /// How it was opened.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// What is kept of a tensor in a role.
    pub fn array(&self, tensor: usize, role: Role) -> Option<Array> {
        self.kept(tensor, role).map(|(array, _)| array)
    }

    fn kept(&self, tensor: usize, role: Role) -> Kept {
        self.plan.arrays[tensor][role as usize]
    }

    /// The panels of a tensor, in order.
    pub fn panels(&self, tensor: usize) -> impl Iterator<Item = Panel> + use<> {
        self.panels_of(tensor, Role::Weight)
    }

    fn panels_of(&self, tensor: usize, role: Role) -> impl Iterator<Item = Panel> + use<> {
        self.kept(tensor, role).into_iter().flat_map(|(_, cut)| cut.panels())
    }

    /// Begins a step: all gradients are zero again.
    pub fn begin_step(&mut self) {
        self.cells.forget_gradients();
        if let Some(disk) = &mut self.disk {
            disk.begin_step();
        }
    }

    /// Begins a visit to the tensors `now`; those of the visit after it, `next`, are fetched ahead: from a disk as far as its
    /// read-ahead reaches, from host memory as far as slots are free.
    ///
    /// # Errors
    /// What the device or the disk says.
    pub fn begin_visit(&mut self, now: &[usize], next: &[usize]) -> Result<()> {
        self.slots.begin_visit();
        for &tensor in now {
            for panel in self.panels(tensor) {
                if let Some(place) = self.cells.at(tensor, Role::Weight, panel.index).place {
                    self.slots.touch(place);
                }
            }
        }
        if let Some(disk) = &mut self.disk {
            for &tensor in now.iter().chain(next) {
                disk.ahead(&self.cells, &self.plan.arrays, tensor, Role::Weight)?;
            }
            return Ok(());
        }
        for &tensor in next {
            self.fetch_ahead(tensor)?;
        }
        Ok(())
    }

    /// Announces that tensors will soon be updated: what an update reads beside weights and gradients is fetched ahead.
    ///
    /// # Errors
    /// What the disk says.
    pub fn expect_update(&mut self, tensors: &[usize]) -> Result<()> {
        let Some(disk) = &mut self.disk else { return Ok(()) };
        for &tensor in tensors {
            for role in [Role::State1, Role::State2, Role::Master] {
                disk.ahead(&self.cells, &self.plan.arrays, tensor, role)?;
            }
        }
        Ok(())
    }

    fn fetch_ahead(&mut self, tensor: usize) -> Result<()> {
        let Some((_, cut)) = self.kept(tensor, Role::Weight) else { return Ok(()) };
        let class = self.plan.class(&cut);
        if self.plan.slots.classes[class].1 <= self.plan.per_operation {
            return Ok(());
        }
        for panel in cut.panels() {
            let cell = self.cells.index(tensor, Role::Weight, panel.index);
            if self.cells.all[cell].place.is_some() {
                continue;
            }
            let Some(place) = self.slots.spare(class) else { break };
            self.occupy(place, cell)?;
            self.load(cell, place)?;
        }
        Ok(())
    }

    /// Begins an operation: panels handed out before may be displaced from now on.
    pub fn begin_operation(&mut self) {
        self.slots.begin_operation();
    }

    /// The values of a panel, to read.
    ///
    /// # Errors
    /// What the device or the disk says.
    pub fn weight(&mut self, tensor: usize, panel: Panel) -> Result<Matrix> {
        self.fetch(tensor, panel.index, Role::Weight, false)
    }

    /// The gradient of a panel, to add to; `true` when nothing was added in this step: its contents are then undefined
    /// and the caller must write all of it.
    ///
    /// # Errors
    /// What the device or the disk says.
    pub fn gradient(&mut self, tensor: usize, panel: Panel) -> Result<(Matrix, bool)> {
        let fresh = self.cells.at(tensor, Role::Gradient, panel.index).fresh;
        Ok((self.fetch(tensor, panel.index, Role::Gradient, true)?, fresh))
    }

    /// The gradient of a panel, zeroed where nothing was added in this step.
    ///
    /// # Errors
    /// What the device or the disk says.
    pub fn whole_gradient(&mut self, tensor: usize, panel: Panel) -> Result<Matrix> {
        if !self.cells.at(tensor, Role::Gradient, panel.index).fresh {
            return self.fetch(tensor, panel.index, Role::Gradient, false);
        }
        let matrix = self.fetch(tensor, panel.index, Role::Gradient, true)?;
        let zero = Initial { kind: Kind::Zero, ..self.tensors[tensor].initial };
        initial::run(&self.device, &zero, &matrix, panel.first_row)?;
        Ok(matrix)
    }

    /// The gradient of a panel, to write where the whole panel is not written at once: zeroed where nothing was added yet.
    ///
    /// # Errors
    /// What the device or the disk says.
    pub fn gradient_to_add(&mut self, tensor: usize, panel: Panel) -> Result<Matrix> {
        self.whole_gradient(tensor, panel)?;
        self.fetch(tensor, panel.index, Role::Gradient, true)
    }

    /// Drops the gradient of a panel: it was used and will not be asked for again in this step.
    pub fn drop_gradient(&mut self, tensor: usize, panel: Panel) {
        let cell = self.cells.index(tensor, Role::Gradient, panel.index);
        self.cells.all[cell].fresh = true;
        if let Some(place) = self.cells.all[cell].place.take() {
            self.slots.empty(place);
        }
    }

    /// Everything that is kept of a panel and cut as the tensor is, to write.
    ///
    /// # Errors
    /// What the device or the disk says.
    pub fn update(&mut self, tensor: usize, panel: Panel) -> Result<Update> {
        self.begin_operation();
        let gradient = self.whole_gradient(tensor, panel)?;
        let mut cut = |role: Role| match self.kept(tensor, role) {
            Some((array, _)) if array.cut => self.fetch(tensor, panel.index, role, true).map(Some),
            _ => Ok(None),
        };
        let (weight, states) = (cut(Role::Weight)?, [cut(Role::State1)?, cut(Role::State2)?]);
        let master = cut(Role::Master)?;
        Ok(Update { gradient, weight: weight.expect("every tensor has weights"), states, master })
    }

    /// A state that is not cut as its tensor is, to write.
    ///
    /// # Errors
    /// What the device or the disk says.
    ///
    /// # Panics
    /// When there is no such state.
    pub fn state(&mut self, tensor: usize, role: Role) -> Result<Matrix> {
        self.fetch(tensor, 0, role, true)
    }

    /// All values of a tensor in a role, row-major without padding.
    ///
    /// # Errors
    /// What the device or the disk says.
    pub fn read(&mut self, tensor: usize, role: Role) -> Result<Vec<f32>> {
        self.collect(tensor, role, |matrix, device| matrix.download(device))
    }

    /// The same at the precision that the device keeps.
    ///
    /// # Errors
    /// What the device or the disk says.
    pub fn read_f64(&mut self, tensor: usize, role: Role) -> Result<Vec<f64>> {
        self.collect(tensor, role, |matrix, device| matrix.download_f64(device))
    }

    /// The values of a panel, row-major without padding.
    ///
    /// # Errors
    /// What the device or the disk says.
    pub fn read_panel(&mut self, tensor: usize, panel: Panel) -> Result<Vec<f32>> {
        self.begin_operation();
        Ok(self.weight(tensor, panel)?.download(&self.device)?)
    }

    /// Replaces all values of a tensor in a role. Where that keeps rounded values, they must be.
    ///
    /// # Errors
    /// What the device or the disk says.
    ///
    /// # Panics
    /// When `values` has another length than the array.
    pub fn write(&mut self, tensor: usize, role: Role, values: &[f32]) -> Result<()> {
        let Array { rows, cols, .. } = self.array(tensor, role).expect("a role that is kept");
        assert_eq!(values.len(), rows * cols, "values of {}", self.tensors[tensor].name);
        for panel in self.panels_of(tensor, role) {
            self.put(tensor, role, panel, &values[panel.first_row * cols..][..panel.rows * cols])?;
        }
        Ok(())
    }

    fn put(&mut self, tensor: usize, role: Role, panel: Panel, values: &[f32]) -> Result<()> {
        self.begin_operation();
        let matrix = self.blank(tensor, panel.index, role)?;
        Ok(matrix.upload(&self.device, values)?)
    }

    /// Gives a parameter another value: it and, where one is kept, its master. It is rounded to what its format holds. The
    /// values come in pieces, however large the tensor: `rows(first, count, out)` appends those of `count` rows.
    ///
    /// # Errors
    /// What the device or the disk says.
    ///
    /// # Panics
    /// When `rows` appends another number of values.
    pub fn set(&mut self, tensor: usize, rows: &mut dyn FnMut(usize, usize, &mut Vec<f32>)) -> Result<()> {
        let mut values = Vec::new();
        for role in [Role::Master, Role::Weight] {
            let Some(Array { cols, format, .. }) = self.array(tensor, role) else { continue };
            for panel in self.panels_of(tensor, role) {
                values.clear();
                rows(panel.first_row, panel.rows, &mut values);
                assert_eq!(values.len(), panel.rows * cols, "values of {}", self.tensors[tensor].name);
                if format == Format::Bf16 {
                    values.iter_mut().for_each(|x| *x = round::bf16_nearest(*x));
                }
                self.put(tensor, role, panel, &values)?;
            }
        }
        Ok(())
    }

    fn collect<T>(
        &mut self,
        tensor: usize,
        role: Role,
        download: impl Fn(&Matrix, &Device) -> crate::device::Result<Vec<T>>,
    ) -> Result<Vec<T>> {
        let Array { rows, cols, .. } = self.array(tensor, role).expect("a role that is kept");
        let mut values = Vec::with_capacity(rows * cols);
        for panel in self.panels_of(tensor, role) {
            self.begin_operation();
            let matrix = match role {
                Role::Gradient => self.whole_gradient(tensor, panel)?,
                _ => self.fetch(tensor, panel.index, role, false)?,
            };
            values.extend(download(&matrix, &self.device)?);
        }
        Ok(values)
    }
}

/// What a store on a disk does beside: nothing of it does anything elsewhere.
impl Store {
    /// Ends the update of tensors: what it wrote leaves for the disk. `mark` says how far the step is, for a store that is
    /// updated in place.
    ///
    /// # Errors
    /// What the device or the disk says.
    pub fn settle(&mut self, tensors: &[usize], mark: &mut dyn FnMut() -> Result<Mark>) -> Result<()> {
        if self.disk.is_none() {
            return Ok(());
        }
        for &tensor in tensors {
            for role in role::ALL.into_iter().filter(|role| role.lasts()) {
                for panel in self.panels_of(tensor, role) {
                    self.flush(self.cells.index(tensor, role, panel.index))?;
                }
            }
        }
        let in_place = self.disk.as_ref().is_some_and(DiskStore::in_place);
        if !in_place {
            return Ok(());
        }
        // What a step that was cut short cannot compute again must lie on the disk before anything is replaced.
        let waiting = self.cells.waiting();
        for &cell in &waiting {
            self.flush(cell)?;
        }
        let waiting = self.cells.tensors_of(&waiting);
        let mark = mark()?;
        match &mut self.disk {
            Some(disk) => Ok(disk.replace(mark, waiting)?),
            None => Ok(()),
        }
    }

    /// Takes up a step that was interrupted: the gradients that had been waiting are on the disk.
    pub fn take_up(&mut self, interrupted: &Interrupted) {
        self.cells.settle_gradients(&interrupted.waiting);
        if let Some(disk) = &mut self.disk {
            disk.take_up();
        }
    }

    /// Makes all that was updated since the last call the checkpoint after `step` steps, with a caller's `state` beside it.
    /// It becomes durable in the background, in order.
    ///
    /// # Errors
    /// What the device or the disk says, also of earlier work in the background.
    pub fn commit(&mut self, step: u64, state: &impl serde::Serialize) -> Result<()> {
        if self.disk.is_none() {
            return Ok(());
        }
        for cell in self.cells.changed(&self.slots) {
            self.flush(cell)?;
        }
        match &mut self.disk {
            Some(disk) => {
                let state = serde_json::to_value(state).map_err(|e| DiskError::State { reason: e.to_string() })?;
                Ok(disk.commit(step, state)?)
            }
            None => Ok(()),
        }
    }

    /// Waits until all that was committed is durable.
    ///
    /// # Errors
    /// What the disk says.
    pub fn drain(&mut self) -> Result<()> {
        match &mut self.disk {
            Some(disk) => Ok(disk.drain()?),
            None => Ok(()),
        }
    }

    /// What passed between memory and disk since the last call; `None` where there is no disk.
    pub fn traffic(&mut self) -> Option<stream::Stats> {
        self.disk.as_ref().map(DiskStore::traffic)
    }

    /// Keeps a matrix off the device under a number.
    ///
    /// # Errors
    /// What the device or the disk says.
    pub fn spill(&mut self, spill: Spill, number: usize, matrix: &Matrix) -> Result<()> {
        self.spilled.keep(&self.device, self.disk.as_mut(), spill, number, matrix)
    }

    /// Begins to read what was kept under a number.
    ///
    /// # Errors
    /// What the disk says.
    pub fn spill_ahead(&mut self, number: usize) -> Result<()> {
        self.spilled.ahead(self.disk.as_mut(), number)
    }

    /// Brings back what was kept under a number.
    ///
    /// # Errors
    /// What the device or the disk says.
    ///
    /// # Panics
    /// When nothing was.
    pub fn unspill(&mut self, number: usize, matrix: &Matrix) -> Result<()> {
        self.spilled.bring(&self.device, self.disk.as_mut(), number, matrix)
    }
}
