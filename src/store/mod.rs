//! Where parameters live: a store hands out panels in device slots and keeps the rest in host memory.
//!
//! There is one path for every size. A cell is one panel of one tensor in one [`Role`]; it lies in a device slot, in host
//! memory, or nowhere at all while it is still its formula (`initial values`, or zero). `resident` gives every cell a slot
//! of its own, `ram` makes them take turns; neither can change a bit of any result. The store knows tensors by number; it
//! must never know a model or a training step.

pub mod block;
pub mod checkpoint;
mod direct;
pub mod durable;
pub mod export;
pub mod format;
pub mod import;
mod panel;
pub mod safetensors;
pub mod shards;
mod slots;
pub mod stream;
pub mod volume;

pub use panel::{Cut, PANEL_BYTES, Panel};
pub use slots::SlotPlan;

use crate::device::{Device, DeviceError};
use crate::program::initial::{self, Initial, Kind};
use crate::program::{Matrix, initial::run as fill};
use slots::{Place, Slots};

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
}

/// Where panels stay between visits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// On the device.
    Resident,
    /// In host memory; device slots hold what is in use.
    Ram,
}

/// What a store is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Where panels stay.
    pub placement: Placement,
    /// Device memory for slots in bytes; `None`: as much as it takes.
    pub budget: Option<u64>,
    /// Whether gradients and moments will be asked for, beside weights.
    pub training: bool,
}

/// What a cell is to its tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The parameter.
    Weight,
    /// Its gradient of this step.
    Gradient,
    /// First moment of AdamW.
    Moment1,
    /// Second moment of AdamW.
    Moment2,
}

const ROLES: usize = 4;
/// Slots that one operation may need of one size: the four roles of a panel.
const PER_OPERATION: usize = 4;

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
}

/// Result of a store call.
pub type Result<T> = std::result::Result<T, StoreError>;

/// The four panels that an update takes together.
pub struct Update {
    /// Parameters.
    pub weight: Matrix,
    /// Gradient.
    pub gradient: Matrix,
    /// First moment.
    pub moment1: Matrix,
    /// Second moment.
    pub moment2: Matrix,
}

struct Cell {
    /// Values in host memory, padded as on the device; `None` while the cell is its formula.
    host: Option<Vec<f32>>,
    place: Option<Place>,
    /// A gradient that nothing was added to in this step.
    fresh: bool,
}

/// The parameters of a model with their gradients and moments.
pub struct Store {
    device: Device,
    tensors: Vec<Tensor>,
    cuts: Vec<Cut>,
    classes: Vec<usize>,
    first_cell: Vec<usize>,
    cells: Vec<Cell>,
    slots: Slots,
    plan: SlotPlan,
}

impl Store {
    /// Opens a store on a device and allocates its slots.
    ///
    /// # Errors
    /// [`StoreError::TooSmall`] when the smallest plan exceeds the budget; what the device says.
    pub fn new(device: &Device, tensors: Vec<Tensor>, options: Options) -> Result<Store> {
        let (cuts, plan) = plan(device, &tensors, options)?;
        let class = |cut: &Cut| plan.classes.iter().position(|(e, _)| *e == cut.elements()).expect("planned above");
        let classes = cuts.iter().map(class).collect();
        let mut first_cell = Vec::with_capacity(cuts.len());
        let mut cells = 0;
        for cut in &cuts {
            first_cell.push(cells);
            cells += cut.count() * ROLES;
        }
        let cells = (0..cells).map(|_| Cell { host: None, place: None, fresh: true }).collect();
        let slots = Slots::new(device, &plan)?;
        Ok(Store { device: device.clone(), tensors, cuts, classes, first_cell, cells, slots, plan })
    }

    /// The tensors, by number.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The device slots.
    pub fn plan(&self) -> &SlotPlan {
        &self.plan
    }

    /// The panels of a tensor, in order.
    pub fn panels(&self, tensor: usize) -> impl Iterator<Item = Panel> + use<> {
        self.cuts[tensor].panels()
    }

    /// Begins a step: all gradients are zero again.
    pub fn begin_step(&mut self) {
        for gradient in self.cells.iter_mut().skip(Role::Gradient as usize).step_by(ROLES) {
            gradient.fresh = true;
        }
    }

    /// Begins a visit to the tensors `now`; those of the visit after it, `next`, are fetched ahead as far as slots are free.
    ///
    /// # Errors
    /// What the device says.
    pub fn begin_visit(&mut self, now: &[usize], next: &[usize]) -> Result<()> {
        self.slots.begin_visit();
        for &tensor in now {
            for panel in self.cuts[tensor].panels() {
                if let Some(place) = self.cells[self.cell(tensor, panel.index, Role::Weight)].place {
                    self.slots.touch(place);
                }
            }
        }
        for &tensor in next {
            let class = self.classes[tensor];
            if self.plan.classes[class].1 <= PER_OPERATION {
                continue;
            }
            for panel in self.cuts[tensor].panels() {
                let cell = self.cell(tensor, panel.index, Role::Weight);
                if self.cells[cell].place.is_some() {
                    continue;
                }
                let Some(place) = self.slots.spare(class) else { break };
                self.occupy(place, cell)?;
                self.load(tensor, panel, Role::Weight, place)?;
            }
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
    /// What the device says.
    pub fn weight(&mut self, tensor: usize, panel: Panel) -> Result<Matrix> {
        self.fetch(tensor, panel, Role::Weight, false)
    }

    /// The gradient of a panel, to add to; `true` when nothing was added in this step: its contents are then undefined
    /// and the caller must write all of it.
    ///
    /// # Errors
    /// What the device says.
    pub fn gradient(&mut self, tensor: usize, panel: Panel) -> Result<(Matrix, bool)> {
        let cell = self.cell(tensor, panel.index, Role::Gradient);
        let fresh = self.cells[cell].fresh;
        Ok((self.fetch(tensor, panel, Role::Gradient, true)?, fresh))
    }

    /// The gradient of a panel, zeroed where nothing was added in this step.
    ///
    /// # Errors
    /// What the device says.
    pub fn whole_gradient(&mut self, tensor: usize, panel: Panel) -> Result<Matrix> {
        let (matrix, fresh) = self.gradient(tensor, panel)?;
        if fresh {
            fill(
                &self.device,
                &Initial { kind: Kind::Zero, ..self.tensors[tensor].initial },
                &matrix,
                panel.first_row,
            )?;
        }
        Ok(matrix)
    }

    /// Everything an update of a panel needs, to write.
    ///
    /// # Errors
    /// What the device says.
    pub fn update(&mut self, tensor: usize, panel: Panel) -> Result<Update> {
        self.begin_operation();
        Ok(Update {
            gradient: self.whole_gradient(tensor, panel)?,
            weight: self.fetch(tensor, panel, Role::Weight, true)?,
            moment1: self.fetch(tensor, panel, Role::Moment1, true)?,
            moment2: self.fetch(tensor, panel, Role::Moment2, true)?,
        })
    }

    /// All values of a tensor, row-major without padding.
    ///
    /// # Errors
    /// What the device says.
    pub fn read(&mut self, tensor: usize, role: Role) -> Result<Vec<f32>> {
        self.collect(tensor, role, |matrix, device| matrix.download(device))
    }

    /// The same at the precision that the device keeps.
    ///
    /// # Errors
    /// What the device says.
    pub fn read_f64(&mut self, tensor: usize, role: Role) -> Result<Vec<f64>> {
        self.collect(tensor, role, |matrix, device| matrix.download_f64(device))
    }

    /// Replaces all values of a tensor.
    ///
    /// # Errors
    /// What the device says.
    ///
    /// # Panics
    /// When `values` has another length than the tensor.
    pub fn write(&mut self, tensor: usize, role: Role, values: &[f32]) -> Result<()> {
        let cols = self.tensors[tensor].cols;
        assert_eq!(values.len(), self.tensors[tensor].rows * cols, "values of {}", self.tensors[tensor].name);
        for panel in self.panels(tensor) {
            self.begin_operation();
            let matrix = self.fetch(tensor, panel, role, true)?;
            matrix.upload(&self.device, &values[panel.first_row * cols..][..panel.rows * cols])?;
        }
        Ok(())
    }

    fn collect<T>(
        &mut self,
        tensor: usize,
        role: Role,
        download: impl Fn(&Matrix, &Device) -> crate::device::Result<Vec<T>>,
    ) -> Result<Vec<T>> {
        let mut values = Vec::with_capacity(self.tensors[tensor].rows * self.tensors[tensor].cols);
        for panel in self.panels(tensor) {
            self.begin_operation();
            let matrix = match role {
                Role::Gradient => self.whole_gradient(tensor, panel)?,
                _ => self.fetch(tensor, panel, role, false)?,
            };
            values.extend(download(&matrix, &self.device)?);
        }
        Ok(values)
    }

    fn cell(&self, tensor: usize, panel: usize, role: Role) -> usize {
        self.first_cell[tensor] + panel * ROLES + role as usize
    }

    fn fetch(&mut self, tensor: usize, panel: Panel, role: Role, dirty: bool) -> Result<Matrix> {
        let cell = self.cell(tensor, panel.index, role);
        let place = match self.cells[cell].place {
            Some(place) => place,
            None => {
                let place = self.slots.victim(self.classes[tensor]);
                self.occupy(place, cell)?;
                self.load(tensor, panel, role, place)?;
                place
            }
        };
        if dirty {
            self.cells[cell].fresh = false;
        }
        let slot = self.slots.touch(place);
        slot.dirty |= dirty;
        Ok(Matrix::over(&slot.buffer, panel.rows, self.tensors[tensor].cols))
    }

    /// Gives a slot to a cell; what it held goes to host memory if it is newer there.
    fn occupy(&mut self, place: Place, cell: usize) -> Result<()> {
        let slot = self.slots.touch(place);
        if let Some(previous) = slot.cell.replace(cell) {
            let previous = &mut self.cells[previous];
            previous.place = None;
            if slot.dirty && !previous.fresh {
                previous.host = Some(self.device.download(&slot.buffer.all())?);
            }
        }
        slot.dirty = false;
        self.cells[cell].place = Some(place);
        Ok(())
    }

    /// Fills a slot with the values of its cell.
    fn load(&mut self, tensor: usize, panel: Panel, role: Role, place: Place) -> Result<()> {
        let cell = &self.cells[self.cell(tensor, panel.index, role)];
        let slot = self.slots.touch(place);
        match &cell.host {
            _ if role == Role::Gradient && cell.fresh => {}
            Some(values) => self.device.upload(&slot.buffer.view(0, values.len()), values)?,
            None => {
                let Tensor { initial, cols, .. } = &self.tensors[tensor];
                let kind = if role == Role::Weight { initial.kind } else { Kind::Zero };
                let matrix = Matrix::over(&slot.buffer, panel.rows, *cols);
                initial::run(&self.device, &Initial { kind, ..*initial }, &matrix, panel.first_row)?;
            }
        }
        Ok(())
    }
}

/// Cuts tensors and counts slots. The panels become smaller, and the slots fewer, until they fit the budget.
fn plan(device: &Device, tensors: &[Tensor], options: Options) -> Result<(Vec<Cut>, SlotPlan)> {
    let limits = device.limits();
    let mut bytes = PANEL_BYTES.min(limits.binding_bytes).min(limits.buffer_bytes);
    let available = options.budget.unwrap_or(u64::MAX);
    let roles = if options.training { ROLES } else { 1 };
    let cut = |bytes| -> Vec<Cut> { tensors.iter().map(|t| Cut::new(t.rows, t.cols, bytes)).collect() };
    if options.placement == Placement::Resident {
        let (cuts, plan) = (cut(bytes), slot_plan(&cut(bytes), roles, usize::MAX));
        let needed = plan.bytes();
        return if needed <= available { Ok((cuts, plan)) } else { Err(StoreError::TooSmall { needed, available }) };
    }
    loop {
        let cuts = cut(bytes);
        let smallest = slot_plan(&cuts, roles, PER_OPERATION);
        if smallest.bytes() <= available {
            let plan = grow(&cuts, roles, smallest, options.budget);
            return Ok((cuts, plan));
        }
        bytes /= 2;
        if bytes == 0 {
            return Err(StoreError::TooSmall { needed: smallest.bytes(), available });
        }
    }
}

/// Doubles the slots of every size while the budget allows. Without a budget, one doubling lets a visit be fetched ahead.
fn grow(cuts: &[Cut], roles: usize, smallest: SlotPlan, budget: Option<u64>) -> SlotPlan {
    let Some(budget) = budget else { return slot_plan(cuts, roles, 2 * PER_OPERATION) };
    let (mut best, mut slots) = (smallest, PER_OPERATION);
    loop {
        slots *= 2;
        let next = slot_plan(cuts, roles, slots);
        if next.bytes() > budget || next == best {
            return best;
        }
        best = next;
    }
}

/// At most `most` slots of each size, and never more than there are cells of it.
fn slot_plan(cuts: &[Cut], roles: usize, most: usize) -> SlotPlan {
    let mut classes: Vec<(usize, usize)> = Vec::new();
    for cut in cuts {
        let cells = cut.count() * roles;
        match classes.iter_mut().find(|(elements, _)| *elements == cut.elements()) {
            Some((_, slots)) => *slots += cells,
            None => classes.push((cut.elements(), cells)),
        }
    }
    classes.iter_mut().for_each(|(_, slots)| *slots = (*slots).min(most));
    SlotPlan { classes }
}
