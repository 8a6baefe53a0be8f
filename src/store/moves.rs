//! The way of a panel between its device slot and where it rests: formula, host memory or disk. It must never decide what is
//! needed, only how it gets there.

use super::cells::{Rest, Spot};
use super::role::Role;
use super::slots::Place;
use super::{Format, Result, Store};
use crate::program::Matrix;
use crate::program::initial::{self, Initial, Kind};
use crate::program::round::{self, Mode, Round};

impl Store {
    /// A panel in a slot, to read or, `dirty`, to write.
    pub(super) fn fetch(&mut self, tensor: usize, panel: usize, role: Role, dirty: bool) -> Result<Matrix> {
        self.seat(tensor, panel, role, true, dirty)
    }

    /// A panel in a slot, to write all of: what it held is not fetched, and undefined.
    pub(super) fn blank(&mut self, tensor: usize, panel: usize, role: Role) -> Result<Matrix> {
        self.seat(tensor, panel, role, false, true)
    }

    fn seat(&mut self, tensor: usize, panel: usize, role: Role, filled: bool, dirty: bool) -> Result<Matrix> {
        let cell = self.cells.index(tensor, role, panel);
        let (array, cut) = self.kept(tensor, role).expect("a role that is kept");
        let place = match self.cells.all[cell].place {
            Some(place) => place,
            None => {
                let place = self.slots.victim(self.plan.class(&cut));
                self.occupy(place, cell)?;
                if filled {
                    self.load(cell, place)?;
                }
                place
            }
        };
        if dirty {
            self.cells.all[cell].fresh = false;
        }
        let slot = self.slots.touch(place);
        slot.dirty |= dirty;
        Ok(Matrix::over(&slot.buffer, cut.panel(panel).rows, array.cols))
    }

    /// Gives a slot to a cell; what it held rests elsewhere if it is newer in the slot.
    pub(super) fn occupy(&mut self, place: Place, cell: usize) -> Result<()> {
        if let Some(previous) = self.slots.touch(place).cell {
            if !self.cells.all[previous].fresh {
                self.flush(previous)?;
            }
            self.cells.all[previous].place = None;
        }
        let slot = self.slots.touch(place);
        slot.cell = Some(cell);
        slot.dirty = false;
        self.cells.all[cell].place = Some(place);
        Ok(())
    }

    /// Puts a cell where it rests, if it is newer in its slot. It stays in the slot.
    pub(super) fn flush(&mut self, cell: usize) -> Result<()> {
        let Some(place) = self.cells.all[cell].place else { return Ok(()) };
        if !std::mem::take(&mut self.slots.touch(place).dirty) {
            return Ok(());
        }
        let spot = self.cells.spot(cell, &self.plan.arrays);
        let view = self.slots.touch(place).buffer.view(0, spot.rows * spot.stride());
        let encode = |values: &[f32], out: &mut [u8]| {
            spot.array.format.encode(values, spot.rows, spot.array.cols, spot.stride(), out);
        };
        match &mut self.disk {
            Some(disk) => {
                let mut block = disk.block(spot.bytes());
                self.device.download_with(&view, &mut |values| encode(values, &mut block))?;
                disk.put(&spot, block)?;
                self.cells.all[cell].rest = Rest::Disk;
            }
            None => {
                let mut bytes = match std::mem::replace(&mut self.cells.all[cell].rest, Rest::Formula) {
                    Rest::Ram(bytes) => bytes,
                    // On a blank device there are no values to be kept.
                    _ => vec![0; if self.device.is_blank() { 0 } else { spot.bytes() }],
                };
                self.device.download_with(&view, &mut |values| encode(values, &mut bytes))?;
                self.cells.all[cell].rest = Rest::Ram(bytes);
            }
        }
        Ok(())
    }

    /// Fills a slot with the values of its cell.
    pub(super) fn load(&mut self, cell: usize, place: Place) -> Result<()> {
        let spot = self.cells.spot(cell, &self.plan.arrays);
        let (rows, cols, stride) = (spot.rows, spot.array.cols, spot.stride());
        let buffer = self.slots.touch(place).buffer.clone();
        let view = buffer.view(0, rows * stride);
        let decode = |bytes: &[u8], out: &mut [f32]| spot.array.format.decode(bytes, rows, cols, stride, out);
        let cell = &self.cells.all[cell];
        match (&cell.rest, &mut self.disk) {
            _ if spot.role == Role::Gradient && cell.fresh => {}
            (Rest::Ram(bytes), _) => self.device.upload_with(&view, &mut |out| decode(bytes, out))?,
            (Rest::Disk, Some(disk)) => {
                let block = disk.get(&spot)?;
                self.device.upload_with(&view, &mut |out| decode(&block, out))?;
            }
            _ => self.formula(&spot, &Matrix::over(&buffer, rows, cols))?,
        }
        Ok(())
    }

    /// What a cell holds before its first update.
    fn formula(&self, spot: &Spot, matrix: &Matrix) -> Result<()> {
        let initial = self.tensors[spot.tensor].initial;
        let kind = if matches!(spot.role, Role::Weight | Role::Master) { initial.kind } else { Kind::Zero };
        initial::run(&self.device, &Initial { kind, ..initial }, matrix, spot.first_row)?;
        if spot.role == Role::Weight && spot.array.format == Format::Bf16 {
            round::run(&self.device, &Round { mode: Mode::Nearest }, matrix, spot.first_row)?;
        }
        Ok(())
    }
}
