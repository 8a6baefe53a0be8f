//! The cells of a store: which array and panel each is, where it lies and where it rests. Pure bookkeeping; it must never
//! move a value.

use super::panel::Cut;
use super::plan::Kept;
use super::role::{self, Array, ROLES, Role};
use super::slots::{Place, Slots};
use crate::program::Matrix;

/// Where the values of a cell are when they are in no slot, or were when they came into one.
pub enum Rest {
    /// Nowhere: they follow from seed, tensor and index, or are zero.
    Formula,
    /// In host memory, packed.
    Ram(Vec<u8>),
    /// On the disk, or on their way there.
    Disk,
}

/// One panel of one tensor in one role.
pub struct Cell {
    tensor: usize,
    role: Role,
    panel: usize,
    /// Where its values rest.
    pub rest: Rest,
    /// The slot that it is in.
    pub place: Option<Place>,
    /// A gradient that nothing was added to in this step.
    pub fresh: bool,
}

/// A cell as a disk sees it.
#[derive(Clone, Copy, Debug)]
pub struct Spot {
    /// Number of the cell.
    pub key: u64,
    /// Number of the tensor.
    pub tensor: usize,
    /// What it is to the tensor.
    pub role: Role,
    /// The array it is a panel of.
    pub array: Array,
    /// First row in the array.
    pub first_row: usize,
    /// Number of rows.
    pub rows: usize,
}

impl Spot {
    /// Elements from one row to the next on the device.
    pub fn stride(&self) -> usize {
        Matrix::stride_for(self.array.cols)
    }

    /// Bytes off the device.
    pub fn bytes(&self) -> usize {
        self.array.format.bytes(self.rows, self.array.cols)
    }
}

/// All cells of a store.
pub struct Cells {
    /// By number.
    pub all: Vec<Cell>,
    first: Vec<[usize; ROLES]>,
}

impl Cells {
    /// The cells of arrays, all still their formula.
    pub fn new(arrays: &[[Kept; ROLES]]) -> Cells {
        let (mut all, mut first) = (Vec::new(), Vec::with_capacity(arrays.len()));
        for (tensor, roles) in arrays.iter().enumerate() {
            first.push(role::ALL.map(|role| {
                let begin = all.len();
                let panels = roles[role as usize].map_or(0, |(_, cut)| cut.count());
                let cell = |panel| Cell { tensor, role, panel, rest: Rest::Formula, place: None, fresh: true };
                all.extend((0..panels).map(cell));
                begin
            }));
        }
        Cells { all, first }
    }

    /// Number of a cell.
    pub fn index(&self, tensor: usize, role: Role, panel: usize) -> usize {
        self.first[tensor][role as usize] + panel
    }

    /// A cell.
    pub fn at(&self, tensor: usize, role: Role, panel: usize) -> &Cell {
        &self.all[self.index(tensor, role, panel)]
    }

    /// A cell as a disk sees it.
    ///
    /// # Panics
    /// When the arrays are not those it was made of.
    pub fn spot(&self, cell: usize, arrays: &[[Kept; ROLES]]) -> Spot {
        let Cell { tensor, role, panel, .. } = self.all[cell];
        let (array, cut): (Array, Cut) = arrays[tensor][role as usize].expect("a cell is a panel of an array");
        let panel = cut.panel(panel);
        Spot { key: cell as u64, tensor, role, array, first_row: panel.first_row, rows: panel.rows }
    }

    /// Nothing was added to any gradient.
    pub fn forget_gradients(&mut self) {
        for cell in self.all.iter_mut().filter(|cell| cell.role == Role::Gradient) {
            cell.fresh = true;
        }
    }

    /// The gradients that something was added to in this step.
    pub fn waiting(&self) -> Vec<usize> {
        (0..self.all.len()).filter(|&c| self.all[c].role == Role::Gradient && !self.all[c].fresh).collect()
    }

    /// The tensors of cells, each once.
    pub fn tensors_of(&self, cells: &[usize]) -> Vec<usize> {
        let mut tensors: Vec<usize> = cells.iter().map(|&cell| self.all[cell].tensor).collect();
        tensors.dedup();
        tensors
    }

    /// The cells that must outlast the step and are newer in their slots.
    pub fn changed(&self, slots: &Slots) -> Vec<usize> {
        let newer = |cell: &Cell| cell.role.lasts() && cell.place.is_some_and(|place| slots.at(place).dirty);
        (0..self.all.len()).filter(|&c| newer(&self.all[c])).collect()
    }

    /// The arrays that are `present`, by tensor and role, rest on the disk.
    pub fn settle_on_disk(&mut self, present: &[[bool; ROLES]]) {
        for cell in &mut self.all {
            if present[cell.tensor][cell.role as usize] {
                cell.rest = Rest::Disk;
            }
        }
    }

    /// The gradients of tensors rest on the disk, and are not fresh.
    pub fn settle_gradients(&mut self, tensors: &[usize]) {
        for cell in self.all.iter_mut().filter(|c| c.role == Role::Gradient && tensors.contains(&c.tensor)) {
            (cell.rest, cell.fresh) = (Rest::Disk, false);
        }
    }
}
