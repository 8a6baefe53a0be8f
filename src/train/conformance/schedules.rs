//! Superstep against fused: one stepwise program, played on the same device by both schedules, on several grids of tiles,
//! must give equal bits, and so must a whole training step. Knows two fabrics and lists of floats; what a program computes
//! is its own affair.

use super::{Part, Row};
use crate::device::Device;
use crate::program::schedule::{Fabric, Routing, Schedule};
use crate::wafer::{Defects, Wafer};

/// Runs one program on a fabric, on inputs of its own, and gives every output.
pub type Play<'a> = &'a dyn Fn(&Fabric) -> anyhow::Result<Vec<f32>>;

/// Grids of tiles (width, height): one tile that plays all, a small one of unequal sides, one larger than most programs.
const GRIDS: [(u32, u32); 3] = [(1, 1), (2, 3), (8, 8)];

/// A map of a wafer of 5 x 4, four tiles of a row of which work.
const DEFECTS: &str = "tile 1 0\ntile 4 2\nlink 2 1 3 1\nlink 0 2 0 3";

/// The wafers on which a program is played, and by which route products go: each grid, one with defects by either route.
fn wafers() -> Vec<(String, Wafer, Routing)> {
    let whole =
        GRIDS.map(|(width, height)| (format!("{width} x {height}"), Wafer::new(width, height), Routing::Broadcast));
    let map = Defects::parse(DEFECTS, "map").and_then(|map| Wafer::with_defects(5, 4, &map));
    let scratched = map.expect("a map of that wafer");
    let routes = [(Routing::Broadcast, ""), (Routing::WeightStream, ", weights streamed")];
    let scratched = routes.map(|(route, how)| (format!("4 x 4 with defects{how}"), scratched.clone(), route));
    whole.into_iter().chain(scratched).collect()
}

/// Plays a program fused, then in supersteps on each grid, and compares the bits.
pub fn compare_schedules(name: &str, device: &Device, play: Play<'_>) -> Row {
    compare(device, play).map_or_else(
        |error| Row::failed(Part::Schedule, name, format!("{error:#}")),
        |(elements, fault)| {
            let worst = if fault.is_some() { f64::INFINITY } else { 0.0 };
            let wafers: Vec<String> = wafers().into_iter().map(|(name, ..)| name).collect();
            let place = fault.unwrap_or_else(|| format!("equal bits on {} tiles", wafers.join(", ")));
            Row::new(Part::Schedule, name, wafers.len(), elements, worst, place)
        },
    )
}

fn compare(device: &Device, play: Play<'_>) -> anyhow::Result<(usize, Option<String>)> {
    let fused = fused(device, play)?;
    let wafers = wafers();
    for (name, wafer, routing) in &wafers {
        let before = device.counters();
        let fabric = Fabric::new(device.clone(), Schedule::Superstep, wafer.clone()).with_routing(*routing);
        let stepped = play(&fabric)?;
        let moved = device.counters().since(&before).exchanged_bytes;
        let fault = match moved {
            0 => Some("nothing was exchanged between tiles".into()),
            _ => same_bits(&fused, &stepped).err(),
        };
        if let Some(fault) = fault {
            return Ok((fused.len(), Some(format!("on {name} tiles: {fault}"))));
        }
    }
    Ok((fused.len() * wafers.len(), None))
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
