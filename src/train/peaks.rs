//! What a machine does at most, measured: floating point operations a second in a product of f32 matrices, the memory of
//! the process; and the operations that a step takes by the usual formula. It must never know what a run computes.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::data::Shape;
use crate::device::{Device, Result};
use crate::model::{Config, Table};
use crate::program::Matrix;
use crate::program::matmul::{Form, Matmul, run};
use crate::program::schedule::{Fabric, Schedule};
use crate::store::block::Block;
use crate::store::durable::{Access, Disk, RealDisk};
use crate::wafer::Wafer;

/// How long a peak is measured.
const MEASURED: Duration = Duration::from_millis(50);
/// Sides of the matrices: the first whose product takes long enough to be timed is taken.
const SIDES: [usize; 5] = [64, 128, 256, 512, 1024];
/// Long enough.
const TIMED: Duration = Duration::from_millis(4);

/// Floating point operations a second of the device in a product of square f32 matrices.
///
/// # Errors
/// What the device says.
pub fn flops(device: &Device) -> Result<f64> {
    let fabric = Fabric::new(device.clone(), Schedule::Fused, Wafer::new(8, 8));
    let mut best = 0.0f64;
    for side in SIDES {
        let matrix = |label: &str| Matrix::new(device, label, side, side);
        let (a, b, c) = (matrix("peak a")?, matrix("peak b")?, matrix("peak c")?);
        let product = Matmul { form: Form::NT, a: &a, b: &b, c: &c, bias: None, accumulate: false };
        let once = || {
            let clock = Instant::now();
            run(&fabric, &product)?;
            device.wait()?;
            Ok(clock.elapsed())
        };
        // The first compiles.
        once()?;
        let rate = |time: Duration| 2.0 * (side as f64).powi(3) / time.as_secs_f64().max(1e-9);
        let first = once()?;
        best = best.max(rate(first));
        if first >= TIMED || side == SIDES[SIDES.len() - 1] {
            let begun = Instant::now();
            while begun.elapsed() < MEASURED {
                best = best.max(rate(once()?));
            }
            break;
        }
    }
    Ok(best)
}

/// Seconds of a block that moves from tile to tile, with its share of the launches between: of a product in supersteps, less
/// the same product fused.
///
/// # Errors
/// What the device says.
pub fn message(device: &Device) -> Result<f64> {
    let side = 256;
    let matrix = |label: &str| Matrix::new(device, label, side, side);
    let (a, b, c) = (matrix("peak a")?, matrix("peak b")?, matrix("peak c")?);
    let product = Matmul { form: Form::NT, a: &a, b: &b, c: &c, bias: None, accumulate: false };
    let timed = |schedule: Schedule| {
        let fabric = Fabric::new(device.clone(), schedule, Wafer::new(4, 4));
        let (mut best, mut moved) = (f64::INFINITY, 0);
        // The first compiles, and makes inboxes.
        for _ in 0..5 {
            let (clock, before) = (Instant::now(), device.counters());
            run(&fabric, &product)?;
            device.wait()?;
            (best, moved) = (best.min(clock.elapsed().as_secs_f64()), device.counters().since(&before).messages);
        }
        Ok((best, moved))
    };
    let ((stepped, messages), (fused, _)) = (timed(Schedule::Superstep)?, timed(Schedule::Fused)?);
    Ok((stepped - fused).max(0.0) / messages.max(1) as f64)
}

/// Bytes a second that the disk of a folder writes and reads past the page cache; `None` where it cannot be tried.
pub fn disk(folder: &Path) -> Option<f64> {
    const BYTES: usize = 64 << 20;
    let (path, mut block) = (folder.join("speed.part"), Block::new(BYTES));
    let clock = Instant::now();
    let tried = RealDisk.open(&path, Access::Create).and_then(|file| {
        file.write_at(0, &block)?;
        file.sync()?;
        file.read_at(0, &mut block)
    });
    let seconds = clock.elapsed().as_secs_f64();
    // What cannot be removed is litter, which the next run clears.
    let _ = RealDisk.remove_file(&path);
    tried.ok().map(|()| 2.0 * BYTES as f64 / seconds)
}

/// Floating point operations of a step, forward and backward: 6 for each parameter and token, tables that are only looked up
/// in left out, and `12 * layers * width of the queries * keys` a token for attention (Chowdhery et al. 2022, appendix B).
pub fn step_flops(config: &Config, shape: &Shape) -> f64 {
    let table = Table::new(config);
    let count = |row: usize| table.parameters[row].count();
    let looked_up = table.positions.map_or(0, count) + if config.tied { 0 } else { count(table.tokens) };
    let parameters = (table.count() - looked_up) as f64;
    let keys = shape.seq_len.min(config.window.unwrap_or(usize::MAX));
    let attention = 12.0 * (config.layers * config.qkv_widths()[0]) as f64 * keys as f64;
    (6.0 * parameters + attention) * (shape.batch_size * shape.seq_len * shape.grad_accum) as f64
}

/// The most memory that the process has had, in bytes, where the system tells (Linux).
pub fn process_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_is_a_number_and_memory_is_used() {
        let device = Device::host(1).unwrap();
        let rate = device.run(|| flops(&device)).unwrap();
        assert!(rate.is_finite() && rate > 1e6, "{rate}");
        assert!(!cfg!(target_os = "linux") || process_bytes().is_some_and(|bytes| bytes > 1 << 16));
    }

    #[test]
    fn gpt2_takes_what_the_formula_says() {
        let gpt2 = crate::model::preset("gpt2").unwrap();
        let shape = Shape { batch_size: 1, seq_len: 1024, grad_accum: 1 };
        // 6 * 123,653,376 parameters without positions, and 12 * 12 * 768 * 1024 for attention.
        assert_eq!(step_flops(&gpt2, &shape), 1024.0 * (741_920_256.0 + 113_246_208.0));
    }
}
