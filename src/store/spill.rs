//! Layer inputs off the device: what the backward pass needs again and the device cannot hold. They rest in host memory or
//! on the disk, bit for bit, and are forgotten with the step. It must never know which layer a number stands for.

use std::collections::HashMap;

use super::Result;
use super::disk::DiskStore;
use crate::device::Device;
use crate::program::Matrix;

/// Where matrices go that the device cannot hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Spill {
    /// Nowhere: the device holds them.
    None,
    /// To host memory.
    Ram,
    /// To the disk of the store.
    Disk,
}

/// What was spilled.
#[derive(Default)]
pub struct Spilled {
    memory: HashMap<usize, Vec<f32>>,
}

impl Spilled {
    /// Keeps a matrix under a number.
    ///
    /// # Errors
    /// What the device or the disk says.
    ///
    /// # Panics
    /// For the disk of a store that has none.
    pub fn keep(
        &mut self,
        device: &Device,
        disk: Option<&mut DiskStore>,
        spill: Spill,
        number: usize,
        matrix: &Matrix,
    ) -> Result<()> {
        match spill {
            Spill::None => {}
            Spill::Ram => {
                let kept = self.memory.entry(number).or_default();
                // On a blank device there are no values to be kept.
                kept.resize(if device.is_blank() { 0 } else { matrix.view.len }, 0.0);
                device.download_with(&matrix.view, &mut |values| kept.copy_from_slice(values))?;
            }
            Spill::Disk => {
                let disk = disk.expect("layer inputs go to the disk of the store");
                let mut block = disk.block(matrix.view.len * 4);
                let mut copy = |values: &[f32]| block.copy_from_slice(bytemuck::cast_slice(values));
                device.download_with(&matrix.view, &mut copy)?;
                disk.spill(number, block)?;
            }
        }
        Ok(())
    }

    /// Begins to read what was kept under a number.
    ///
    /// # Errors
    /// What the disk says.
    pub fn ahead(&mut self, disk: Option<&mut DiskStore>, number: usize) -> Result<()> {
        match disk {
            Some(disk) if !self.memory.contains_key(&number) => Ok(disk.spilled_ahead(number)?),
            _ => Ok(()),
        }
    }

    /// Fills a matrix with what was kept under a number.
    ///
    /// # Errors
    /// What the device or the disk says.
    ///
    /// # Panics
    /// When nothing was.
    pub fn bring(
        &mut self,
        device: &Device,
        disk: Option<&mut DiskStore>,
        number: usize,
        matrix: &Matrix,
    ) -> Result<()> {
        if let Some(kept) = self.memory.get(&number) {
            return Ok(device.upload_with(&matrix.view, &mut |out| out.copy_from_slice(kept))?);
        }
        let block = disk.expect("what was not kept in memory was kept on the disk").spilled(number)?;
        Ok(device.upload_with(&matrix.view, &mut |out| out.copy_from_slice(bytemuck::cast_slice(&block)))?)
    }
}
