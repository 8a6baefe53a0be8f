//! The blank device: it takes everything and does nothing. Buffers have no memory, but are counted; launches and copies are
//! held against their declarations and counted; what is read back is zero. A step on it is the plan of a step. It must never
//! know what it is asked to compute.

use super::buffer::{Buffer, Storage, Transfer, View};
use super::counters::Account;
use super::ledger::Book;
use super::{Backend, Class, Device, DeviceError, Launch, Limits, Result};
use crate::wafer::Cost;

/// Nothing but a device's manners.
pub(super) struct Blank;

impl Device {
    /// A blank device that takes the variants of a class and holds launches against limits. It has a ledger.
    pub fn blank(class: Class, limits: Limits) -> Device {
        let device = Device::new("blank".into(), class, limits, Backend::Blank(Blank), Account::default());
        device.altered(|shared| shared.book = Some(Book::open()))
    }

    /// A blank device that plans for this one.
    pub fn blank_like(&self) -> Device {
        Device::blank(self.class(), self.limits().clone())
    }

    /// Whether it is blank.
    pub fn is_blank(&self) -> bool {
        matches!(self.0.backend, Backend::Blank(_))
    }

    /// Counts what a program would, by its closed form, in place of running it.
    ///
    /// # Panics
    /// On a device that runs programs: it counts what it does.
    pub fn count(&self, cost: &Cost) {
        assert!(self.is_blank(), "{} counts what it does", self.name());
        self.0.account.claimed(cost);
    }
}

impl Blank {
    pub fn write(&self, view: &View, _: &[u32]) -> Result<()> {
        own(&view.buffer, "upload")
    }

    pub fn read(&self, view: &View) -> Result<Vec<u32>> {
        own(&view.buffer, "download")?;
        Ok(vec![0; view.len])
    }

    pub fn transfer(&self, t: &Transfer) -> Result<()> {
        own(&t.source, "copy").and_then(|()| own(&t.target, "copy"))
    }

    pub fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        launch.views.iter().try_for_each(|view| own(&view.buffer, launch.kernel.name))
    }
}

fn own(buffer: &Buffer, place: &str) -> Result<()> {
    match &buffer.0.storage {
        Storage::Blank => Ok(()),
        _ => Err(DeviceError::Usage(format!("{place}: buffer {:?} belongs to another device", buffer.label()))),
    }
}
