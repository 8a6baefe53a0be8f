//! The whole wafer: a scalar all-reduce over every tile of a CS-2 (757 x 996) and of a CS-1 (602 x 595), every hop a superstep,
//! only tiles with a message at work. Integers must come out exact, other numbers within their bound of an f64 sum and with
//! the bits of the declared order; all tiles must agree in every bit, and what they counted must be the closed form. The
//! time on the fabric, a cycle a hop, is held against what was published for a CS-1.
//!
//! `cargo run --release --example 06_wafer_allreduce -- [DEVICE] [--wafer 64x48]`; without a device: on `host`, and on an
//! adapter where there is one.

use std::time::Instant;

use gaufre::device::Device;
use gaufre::program::all_reduce::{self, Phase, Superstep, TALLIES, Tiles};
use gaufre::program::initial;
use gaufre::wafer::{AllReduce, Cost, Grid};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Cycles a microsecond in Cerebras' own examples for a CS-2; that of a CS-1 was not published.
const CLOCK: f64 = 850.0;
/// Rocki et al., SC20 (arXiv 2010.03660): tiles of a CS-1, less than so many us, about so many times the diameter.
const PUBLISHED: (Grid, f64, f64) = (Grid { width: 602, height: 595 }, 1.5, 1.1);

/// What the fabric would take, and whether it fits what was published.
fn model(wafer: Grid) -> Outcome<()> {
    let all = AllReduce { wafer };
    let (cycles, diameter) = (all.hops() as f64, all.diameter() as f64);
    println!("\n{} x {}: {} tiles", wafer.width, wafer.height, wafer.width * wafer.height);
    println!("  model: {cycles} cycles, a hop each, {:.2} us at {CLOCK} MHz; diameter {diameter}", cycles / CLOCK);
    println!("  rooted in a corner: {} cycles", all.hops_from_a_corner());
    let (of, most_us, most_diameters) = PUBLISHED;
    if wafer == of {
        let measured = most_diameters * diameter;
        println!(
            "  published: < {most_us} us, about {measured:.0} cycles; model / published = {:.2}",
            cycles / measured
        );
        if !(cycles >= diameter && cycles <= measured && cycles / CLOCK < most_us) {
            return Err("the model does not fit what was published".into());
        }
    }
    Ok(())
}

/// The tiles at work in one superstep of each phase and in one more, on a small map.
fn picture(wafer: Grid) {
    const COLUMNS: u32 = 18;
    const ROWS: u32 = 9;
    let (across, down) = AllReduce { wafer }.reach();
    let inward = across + down;
    let moments = [across / 2, across + down / 2, inward + inward / 4, inward + inward * 5 / 8];
    let frames = moments.map(|number| {
        let mut frame = vec![vec!['.'; COLUMNS as usize]; ROWS as usize];
        let step = Superstep::of(wafer, number);
        let place = |at: u32, len: u32, cells: u32| (u64::from(at) * u64::from(cells) / u64::from(len)) as usize;
        for tile in step.tiles() {
            frame[place(tile.y, wafer.height, ROWS)][place(tile.x, wafer.width, COLUMNS)] = '#';
        }
        let title = match step.phase {
            Phase::Rows => "rows",
            Phase::Column => "column",
            Phase::Outward => "outward",
        };
        (format!("{title} {number}"), frame)
    });
    println!("  {}", frames.each_ref().map(|(title, _)| format!("{title:<18}")).join("  "));
    for row in 0..ROWS as usize {
        println!("  {}", frames.each_ref().map(|(_, frame)| frame[row].iter().collect::<String>()).join("  "));
    }
}

/// One all-reduce; gives the sum that all tiles have, and the seconds it took.
fn play(device: &Device, wafer: Grid, values: &[f32]) -> Outcome<(f32, f64)> {
    let all = AllReduce { wafer };
    let mut tiles = Tiles::new(device, wafer)?;
    tiles.load(values)?;
    device.wait()?;
    let (before, start) = (device.counters(), Instant::now());
    // Seen on a terminal only.
    let bar = indicatif::ProgressBar::new(all.supersteps());
    tiles.run(&mut |step| {
        bar.set_message(format!("{:?}: {} tiles", step.phase, step.count()));
        bar.inc(1);
    })?;
    device.wait()?;
    let seconds = start.elapsed().as_secs_f64();
    bar.finish_and_clear();

    let (sums, tally) = (device.download(&tiles.sums())?, device.download_ids(&tiles.tally())?);
    if sums.len() != values.len() || sums.iter().any(|sum| sum.to_bits() != sums[0].to_bits()) {
        return Err("tiles do not agree".into());
    }
    let counted = |at| tally.iter().skip(at).step_by(TALLIES).map(|&n| u64::from(n)).sum::<u64>();
    let supersteps = device.counters().since(&before).dispatches;
    let Cost { dispatches, messages, .. } = all.cost();
    if (supersteps, counted(0), counted(1)) != (dispatches, all.all_runs(), messages) {
        return Err(format!("{supersteps} supersteps, {} runs, {} messages", counted(0), counted(1)).into());
    }
    Ok((sums[0], seconds))
}

/// Integers, then other numbers; a line of the table: seconds and sum are of the first, error and bound of the others.
fn hold(device: &Device, wafer: Grid) -> Outcome<()> {
    let tiles = u64::from(wafer.width) * u64::from(wafer.height);
    // Their sum is below 2^24, so that f32 holds it exactly, whatever the order.
    let below = (1 << 24) / tiles;
    let integers: Vec<u64> = (0..tiles).map(|i| (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) % below).collect();
    let (sum, seconds) = play(device, wafer, &integers.iter().map(|&n| n as f32).collect::<Vec<f32>>())?;
    let exact = integers.iter().sum::<u64>();
    if sum as u64 != exact || sum.fract() != 0.0 {
        return Err(format!("{sum}, exactly {exact}").into());
    }
    let values: Vec<f32> = (0..tiles).map(|i| initial::normal(6, i) as f32).collect();
    let (other, _) = play(device, wafer, &values)?;
    let truth = values.iter().map(|&x| f64::from(x)).sum::<f64>();
    let (error, bound) = ((f64::from(other) - truth).abs(), all_reduce::sum_bound(wafer, &values));
    let plain: f32 = all_reduce::plain_sum(wafer, &values);
    if !(error <= bound && other.to_bits() == plain.to_bits()) {
        return Err(format!("{other}, in plain f32 {plain}, at f64 {truth} within {bound}").into());
    }
    let all = AllReduce { wafer };
    let Cost { dispatches, messages, exchanged_bytes } = all.cost();
    let counts = [dispatches, all.all_runs(), messages, exchanged_bytes].map(|n| n.to_string());
    let found = [format!("{seconds:.2}"), sum.to_string(), format!("{error:.1e}"), format!("{bound:.1e}")];
    row(device.name(), &[counts, found].concat());
    Ok(())
}

/// A line of the table of devices.
fn row(device: &str, cells: &[String]) {
    println!("  {device:<52}{}", cells.iter().map(|cell| format!("{cell:>11}")).collect::<String>());
}

fn main() -> Outcome<()> {
    let (mut devices, mut wafers) = (Vec::new(), vec![Grid::new(757, 996), PUBLISHED.0]);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--wafer" => {
                let size = arguments.next().unwrap_or_default();
                let (width, height) = size.split_once('x').ok_or("--wafer wants a size, as in 64x48")?;
                let (width, height): (u32, u32) = (width.parse()?, height.parse()?);
                if !(1..=1 << 24).contains(&(u64::from(width) * u64::from(height))) {
                    return Err("--wafer wants between one tile and 2^24".into());
                }
                wafers = vec![Grid::new(width, height)];
            }
            "--device" => devices.push(Device::open(&arguments.next().ok_or("--device wants a name")?, 0)?),
            name => devices.push(Device::open(name, 0)?),
        }
    }
    if devices.is_empty() {
        devices.push(Device::host(0)?);
        match Device::open("gpu", 0).or_else(|_| Device::open("software", 0)) {
            Ok(adapter) => devices.push(adapter),
            Err(error) => println!("on host alone: {error}"),
        }
    }
    for wafer in wafers {
        model(wafer)?;
        picture(wafer);
        let heads = ["supersteps", "runs", "messages", "bytes", "seconds", "sum", "error", "bound"];
        row("device", &heads.map(String::from));
        devices.iter().try_for_each(|device| hold(device, wafer))?;
    }
    println!("ok: every tile has the sum, exact for integers, in as many supersteps, runs and messages as predicted");
    Ok(())
}
