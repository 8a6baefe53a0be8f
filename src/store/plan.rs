//! How a store is laid out on a device before anything is allocated: where tensors are cut into panels, and how many slots
//! of each size there are. It cuts finer and counts fewer until the plan fits the memory allowed. Pure arithmetic; it must
//! never know where a panel lies.

use super::panel::{Cut, PANEL_BYTES};
use super::role::{self, ROLES, Role, Training};
use super::slots::SlotPlan;
use super::{Array, Format, Placement, StoreError, Tensor};
use crate::device::Limits;

/// Cells of one size that an operation of the model may use together, with some to spare.
const LEAST: usize = 4;

/// What a plan is made for.
#[derive(Clone, Copy, Debug)]
pub struct Need {
    /// Where panels stay.
    pub placement: Placement,
    /// How weights rest off the device.
    pub weights: Format,
    /// What is kept beside weights.
    pub training: Option<Training>,
    /// Bytes for slots; `None`: as many as it takes.
    pub budget: Option<u64>,
}

/// What is kept of a tensor in one role, and how it is cut.
pub type Kept = Option<(Array, Cut)>;

/// A plan.
#[derive(Clone, Debug)]
pub struct Plan {
    /// For each tensor, its arrays by role.
    pub arrays: Vec<[Kept; ROLES]>,
    /// The slots.
    pub slots: SlotPlan,
    /// Cells of one size that one operation may use together: an update takes all that is kept of a panel.
    pub per_operation: usize,
}

impl Plan {
    /// Cuts tensors and counts slots.
    ///
    /// # Errors
    /// [`StoreError::TooSmall`] when the smallest plan exceeds the budget.
    pub fn new(limits: &Limits, tensors: &[Tensor], need: Need) -> Result<Plan, StoreError> {
        let kept = |t: &Tensor| arrays(std::slice::from_ref(t), need, 1)[0].iter().flatten().count();
        let per_operation = tensors.iter().map(kept).max().unwrap_or(0).max(LEAST);
        let mut bytes = PANEL_BYTES.min(limits.binding_bytes).min(limits.buffer_bytes);
        let available = need.budget.unwrap_or(u64::MAX);
        if need.placement == Placement::Resident {
            let arrays = arrays(tensors, need, bytes);
            let slots = slots(&arrays, usize::MAX);
            let needed = slots.bytes();
            return if needed <= available {
                Ok(Plan { arrays, slots, per_operation })
            } else {
                Err(StoreError::TooSmall { needed, available })
            };
        }
        loop {
            let arrays = arrays(tensors, need, bytes);
            let smallest = slots(&arrays, per_operation);
            if smallest.bytes() <= available {
                let slots = grown(&arrays, tensors, per_operation, smallest, need.budget);
                return Ok(Plan { arrays, slots, per_operation });
            }
            bytes /= 2;
            if bytes == 0 {
                return Err(StoreError::TooSmall { needed: smallest.bytes(), available });
            }
        }
    }

    /// The size class of an array.
    pub fn class(&self, cut: &Cut) -> usize {
        self.slots.classes.iter().position(|(elements, _)| *elements == cut.elements()).expect("every size was planned")
    }
}

fn arrays(tensors: &[Tensor], need: Need, bytes: u64) -> Vec<[Kept; ROLES]> {
    let kept = |t: &Tensor, role: Role| {
        let array = role::array(role, t.rows, t.cols, t.vector, need.weights, need.training)?;
        Some((array, Cut::new(array.rows, array.cols, bytes)))
    };
    tensors.iter().map(|t| role::ALL.map(|role| kept(t, role))).collect()
}

/// Parts of a visit's cells that slots are counted in.
const PARTS: usize = 64;

/// As many slots of each size as the budget allows, every size having the same share of what a visit uses of it. Without a
/// budget, twice what an operation needs, so that a visit can be fetched ahead.
fn grown(
    arrays: &[[Kept; ROLES]],
    tensors: &[Tensor],
    least: usize,
    smallest: SlotPlan,
    budget: Option<u64>,
) -> SlotPlan {
    let Some(budget) = budget else { return slots(arrays, 2 * least) };
    let all = slots(arrays, usize::MAX);
    let groups = tensors.iter().map(|t| t.group + 1).max().unwrap_or(0);
    let most = |elements: usize| {
        let mut used = vec![0; groups];
        for (tensor, kept) in tensors.iter().zip(arrays) {
            let cuts = kept.iter().flatten().filter(|(_, cut)| cut.elements() == elements);
            used[tensor.group] += cuts.map(|(_, cut)| cut.count()).sum::<usize>();
        }
        used.into_iter().max().unwrap_or(0)
    };
    let used: Vec<usize> = all.classes.iter().map(|(elements, _)| most(*elements)).collect();
    let share = |parts: usize| SlotPlan {
        classes: all
            .classes
            .iter()
            .zip(&used)
            .map(|(&(elements, cells), used)| (elements, (parts * used / PARTS).max(least).min(cells)))
            .collect(),
    };
    // At `fits` parts the budget holds, at `fails` it does not, or there is nothing more to hold.
    let (mut fits, mut fails, mut best) = (0, PARTS * groups + 1, smallest);
    while fits + 1 < fails {
        let middle = fits + (fails - fits) / 2;
        let plan = share(middle);
        if plan.bytes() <= budget {
            (fits, best) = (middle, plan);
        } else {
            fails = middle;
        }
    }
    best
}

/// At most `most` slots of each size, and never more than there are cells of it.
fn slots(arrays: &[[Kept; ROLES]], most: usize) -> SlotPlan {
    let mut classes: Vec<(usize, usize)> = Vec::new();
    for (_, cut) in arrays.iter().flatten().flatten() {
        match classes.iter_mut().find(|(elements, _)| *elements == cut.elements()) {
            Some((_, slots)) => *slots += cut.count(),
            None => classes.push((cut.elements(), cut.count())),
        }
    }
    classes.iter_mut().for_each(|(_, slots)| *slots = (*slots).min(most));
    SlotPlan { classes }
}
