//! Superstep against fused: one stepwise program, played on the same device by both schedules, on several grids of tiles,
//! must give equal bits, and so must a whole training step. Knows two fabrics and lists of floats; what a program computes
//! is its own affair.

use super::{Part, Row};
use crate::device::Device;
use crate::program::schedule::{Fabric, Schedule};
use crate::wafer::Wafer;

/// Runs one program on a fabric, on inputs of its own, and gives every output.
pub type Play<'a> = &'a dyn Fn(&Fabric) -> anyhow::Result<Vec<f32>>;

/// Grids of tiles (width, height): one tile that plays all, a small one of unequal sides, one larger than the program.
const GRIDS: [(u32, u32); 3] = [(1, 1), (2, 3), (9, 7)];

/// Plays a program fused, then in supersteps on each grid, and compares the bits.
pub fn compare_schedules(name: &str, device: &Device, play: Play<'_>) -> Row {
    compare(device, play).map_or_else(
        |error| Row::failed(Part::Schedule, name, format!("{error:#}")),
        |(elements, fault)| {
            let worst = if fault.is_some() { f64::INFINITY } else { 0.0 };
            let grids = GRIDS.map(|(width, height)| format!("{width} x {height}")).join(", ");
            let place = fault.unwrap_or_else(|| format!("equal bits on {grids} tiles"));
            Row::new(Part::Schedule, name, GRIDS.len(), elements, worst, place)
        },
    )
}

fn compare(device: &Device, play: Play<'_>) -> anyhow::Result<(usize, Option<String>)> {
    let fused = fused(device, play)?;
    for (width, height) in GRIDS {
        let before = device.counters();
        let stepped = play(&Fabric::new(device.clone(), Schedule::Superstep, Wafer::new(width, height)))?;
        let moved = device.counters().since(&before).exchanged_bytes;
        let fault = match moved {
            0 => Some("nothing was exchanged between tiles".into()),
            _ => same_bits(&fused, &stepped).err(),
        };
        if let Some(fault) = fault {
            return Ok((fused.len(), Some(format!("on {width} x {height} tiles: {fault}"))));
        }
    }
    Ok((fused.len() * GRIDS.len(), None))
}

/// The outputs of a program played fused.
pub(super) fn fused(device: &Device, play: Play<'_>) -> anyhow::Result<Vec<f32>> {
    play(&Fabric::new(device.clone(), Schedule::Fused, Wafer::new(GRIDS[0].0, GRIDS[0].1)))
}

/// Holds two results equal bit for bit.
///
/// # Errors
/// The first difference. Results that are empty, all zero or not finite are refused: two runs that both failed would be
/// equal.
pub fn same_bits(fused: &[f32], superstep: &[f32]) -> std::result::Result<(), String> {
    if fused.len() != superstep.len() {
        return Err(format!("{} elements fused, {} in supersteps", fused.len(), superstep.len()));
    }
    if let Some(at) = fused.iter().position(|x| !x.is_finite()) {
        return Err(format!("element {at} is {}", fused[at]));
    }
    if fused.iter().all(|x| *x == 0.0) {
        return Err("nothing was computed".into());
    }
    match fused.iter().zip(superstep).position(|(a, b)| a.to_bits() != b.to_bits()) {
        Some(at) => Err(format!("element {at} is {:e} fused and {:e} in supersteps", fused[at], superstep[at])),
        None => Ok(()),
    }
}
