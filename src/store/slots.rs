//! Device slots: buffers of a few sizes that panels take turns in, the least recently used first out.
//!
//! A slot remembers which cell it holds and whether the device's copy is newer. It must never know what a cell means.

use std::collections::BTreeSet;

use crate::device::{Buffer, Device, Elem, Result};

/// Sizes and numbers of the slots of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotPlan {
    /// For each size class: elements of a slot, and slots.
    pub classes: Vec<(usize, usize)>,
}

impl SlotPlan {
    /// Bytes of all slots.
    pub fn bytes(&self) -> u64 {
        self.classes.iter().map(|(elements, slots)| (elements * slots * 4) as u64).sum()
    }
}

/// One buffer and what it holds.
pub struct Slot {
    /// The memory.
    pub buffer: Buffer,
    /// The cell whose values are in it.
    pub cell: Option<usize>,
    /// True when they are newer than the cell's copy in host memory.
    pub dirty: bool,
    used: u64,
}

/// All slots of a store.
pub struct Slots {
    classes: Vec<Vec<Slot>>,
    /// Of each class, the slots that hold nothing, by when they were used last: found at once, however many there are.
    empty: Vec<BTreeSet<(u64, usize)>>,
    clock: u64,
    operation: u64,
    visit: u64,
}

/// Where a slot is: class and number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    class: usize,
    number: usize,
}

impl Slots {
    /// Allocates every slot of a plan.
    ///
    /// # Errors
    /// What the device says.
    pub fn new(device: &Device, plan: &SlotPlan) -> Result<Slots> {
        let slot = |elements| -> Result<Slot> {
            let buffer = device.buffer(format!("panel slot of {elements}"), Elem::F32, elements)?;
            Ok(Slot { buffer, cell: None, dirty: false, used: 0 })
        };
        let class = |&(elements, slots): &(usize, usize)| (0..slots).map(|_| slot(elements)).collect();
        let classes = plan.classes.iter().map(class).collect::<Result<Vec<_>>>()?;
        let empty = plan.classes.iter().map(|&(_, slots)| (0..slots).map(|number| (0, number)).collect()).collect();
        Ok(Slots { classes, empty, clock: 1, operation: 0, visit: 0 })
    }

    /// Begins an operation: slots used from now on are safe until the next one begins.
    pub fn begin_operation(&mut self) {
        self.clock += 1;
        self.operation = self.clock;
    }

    /// Begins a visit: prefetching spares the slots used from now on.
    pub fn begin_visit(&mut self) {
        self.begin_operation();
        self.visit = self.operation;
    }

    /// The slot at a place, marked as used. One that holds nothing is about to.
    pub fn touch(&mut self, place: Place) -> &mut Slot {
        self.clock += 1;
        let slot = &mut self.classes[place.class][place.number];
        if slot.cell.is_none() {
            self.empty[place.class].remove(&(slot.used, place.number));
        }
        slot.used = self.clock;
        slot
    }

    /// The slot at a place.
    pub fn at(&self, place: Place) -> &Slot {
        &self.classes[place.class][place.number]
    }

    /// Empties a slot: the first to be given to something else.
    pub fn empty(&mut self, place: Place) {
        let slot = &mut self.classes[place.class][place.number];
        (slot.cell, slot.dirty) = (None, false);
        self.empty[place.class].insert((slot.used, place.number));
    }

    /// A slot of a class to put something else in: empty, or the least recently used one that the current operation
    /// does not use.
    ///
    /// # Panics
    /// When the operation itself uses every slot of the class: the plan gives each class more than an operation needs.
    pub fn victim(&self, class: usize) -> Place {
        self.oldest(class, self.operation, |_| true).expect("the plan leaves a slot for every operand of an operation")
    }

    /// The same for a prefetch: only a slot that costs nothing to give up and that the current visit has not used.
    pub fn spare(&self, class: usize) -> Option<Place> {
        self.oldest(class, self.visit, |slot| !slot.dirty)
    }

    fn oldest(&self, class: usize, before: u64, fit: impl Fn(&Slot) -> bool) -> Option<Place> {
        if let Some(&(_, number)) = self.empty[class].first() {
            return Some(Place { class, number });
        }
        let slots = self.classes[class].iter().enumerate();
        let (number, _) = slots.filter(|(_, s)| fit(s) && s.used < before).min_by_key(|(_, s)| s.used)?;
        Some(Place { class, number })
    }
}
