//! The plan of a run, before it: a training step on a blank device, which takes and counts everything and computes nothing.
//! It must never know how a plan is shown.

use super::step::{Setup, SetupError, Trainer};
use crate::device::{Counters, Device, Ledger};
use crate::model::Micro;
use crate::store::{Placement, Spill};

/// What steps would run, in closed form.
#[derive(Clone, Debug)]
pub struct Counted {
    /// The first step: what was never updated is made up from its formula there.
    pub first: Ledger,
    /// Every step after it.
    pub later: Ledger,
    /// What a device would have counted in a later step; its levels of memory are those of the whole run.
    pub counters: Counters,
}

/// Counts the steps of a trainer on a blank device. A store on a disk is counted as one in host memory, whose panels take the
/// same slots.
///
/// # Errors
/// As [`Trainer::new`]: what a run would be refused for.
///
/// # Panics
/// On a device that is not blank, whose results would be of no use.
pub fn count(blank: &Device, setup: &Setup) -> Result<Counted, SetupError> {
    assert!(blank.is_blank(), "a plan is made on a blank device");
    let mut setup = setup.clone();
    let spill = setup.spill();
    if setup.placement == Placement::Disk {
        setup.placement = Placement::Ram;
        setup.spill = Some(if spill == Spill::Disk { Spill::Ram } else { spill });
    }
    let (shape, vocabulary) = (setup.shape, setup.model.vocab_size as u32);
    let mut trainer = Trainer::new(blank.clone(), setup)?;
    let ids = |shift: u32| (0..shape.rows() as u32).map(|i| (i + shift) % vocabulary).collect::<Vec<_>>();
    let batches = vec![Micro { inputs: ids(0), targets: ids(1) }; shape.micro_batches];
    blank.take_ledger();
    trainer.step(1, 1e-3, &batches)?;
    let (first, before) = (blank.take_ledger(), blank.counters());
    trainer.step(2, 1e-3, &batches)?;
    Ok(Counted { first, later: blank.take_ledger(), counters: blank.counters().since(&before) })
}
