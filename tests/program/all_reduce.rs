//! All-reduce: each superstep within the bound on every device; whole runs on random grids against exact integers, f64 and
//! the declared order; what tiles and device count is the closed form; no tile reads a message that was not just sent to it.

use crate::rig;
use gaufre::device::{Counters, Device};
use gaufre::program::all_reduce::{self, TALLIES, Tiles};
use gaufre::program::{check, initial};
use gaufre::wafer::{AllReduce, Cost, Grid, Tile};
use proptest::prelude::*;

#[test]
fn within_bound_on_every_device() {
    for device in rig::devices("all_reduce") {
        check::assert_within_bound(&all_reduce::SUPERSTEP, &device);
    }
}

/// What came of a run.
#[derive(Clone)]
struct Outcome {
    sums: Vec<f32>,
    tally: Vec<u32>,
    /// Messages that lay in outboxes after each superstep, all together.
    seen: u64,
    counted: Counters,
}

/// Every superstep begins with nothing but NaN where new messages go: a stale one that is read shows in the sum.
fn run(device: &Device, wafer: Grid, values: &[f32]) -> Outcome {
    let mut tiles = Tiles::new(device, wafer).unwrap();
    tiles.load(values).unwrap();
    device.upload(&tiles.sums(), &vec![f32::NAN; values.len()]).unwrap();
    let nothing = vec![f32::NAN; tiles.sent().len];
    device.upload(&tiles.sent(), &nothing).unwrap();
    let (before, mut seen) = (device.counters(), 0);
    loop {
        device.upload(&tiles.spent(), &nothing).unwrap();
        if tiles.step().unwrap().is_none() {
            break;
        }
        seen += device.download(&tiles.sent()).unwrap().iter().filter(|x| !x.is_nan()).count() as u64;
    }
    let counted = device.counters().since(&before);
    let sums = device.download(&tiles.sums()).unwrap();
    Outcome { sums, tally: device.download_ids(&tiles.tally()).unwrap(), seen, counted }
}

fn normal(tiles: u32, seed: u64) -> Vec<f32> {
    (0..u64::from(tiles)).map(|i| initial::normal(seed, i) as f32).collect()
}

/// What is wrong with an outcome, if anything.
fn judge(wafer: Grid, values: &[f32], outcome: &Outcome) -> Result<(), String> {
    let all = AllReduce { wafer };
    let plain: f32 = all_reduce::plain_sum(wafer, values);
    if outcome.sums.len() != values.len() || outcome.sums.iter().any(|sum| sum.to_bits() != plain.to_bits()) {
        return Err(format!("not all tiles have {plain}: {:?}", outcome.sums));
    }
    let (exact, bound) = (values.iter().map(|&x| f64::from(x)).sum::<f64>(), all_reduce::sum_bound(wafer, values));
    // The f64 sum itself is off by its own roundings.
    let slack = f64::EPSILON * values.len() as f64 * values.iter().map(|x| f64::from(x.abs())).sum::<f64>();
    if !((f64::from(plain) - exact).abs() <= bound + slack) {
        return Err(format!("{plain} is not {exact} within {bound}"));
    }
    for (at, tally) in outcome.tally.chunks(TALLIES).enumerate() {
        let tile = Tile { x: at as u32 % wafer.width, y: at as u32 / wafer.width };
        let want = [all.runs(tile), all.sends(tile)];
        if tally.iter().map(|&n| u64::from(n)).ne(want) {
            return Err(format!("{tile:?} ran and sent {tally:?} times, not {want:?}"));
        }
    }
    let Cost { dispatches, messages, .. } = all.cost();
    if (outcome.counted.dispatches, outcome.seen) != (dispatches, messages) {
        return Err(format!("{} dispatches and {} messages", outcome.counted.dispatches, outcome.seen));
    }
    Ok(())
}

/// Integers whose sum f32 holds in any order.
fn integers(tiles: u32, seed: u64) -> (Vec<f32>, u64) {
    let words: Vec<u64> = (0..u64::from(tiles)).map(|i| (initial::normal(seed, i).abs() * 100.0) as u64).collect();
    (words.iter().map(|&n| n as f32).collect(), words.iter().sum())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn random_grids_hold_on_host(width in 1u32..24, height in 1u32..24, seed in 0u64..1000) {
        let (device, wafer) = (rig::host(), Grid::new(width, height));
        let values = normal(width * height, seed);
        prop_assert_eq!(judge(wafer, &values, &run(&device, wafer, &values)), Ok(()));
        let (values, exact) = integers(width * height, seed);
        let outcome = run(&device, wafer, &values);
        prop_assert_eq!(judge(wafer, &values, &outcome), Ok(()));
        prop_assert_eq!(outcome.sums[0], exact as f32);
    }
}

#[test]
fn odd_and_even_grids_hold_on_every_device() {
    for device in rig::devices("all_reduce grids") {
        for (width, height) in [(1, 1), (2, 1), (1, 2), (2, 2), (1, 9), (8, 1), (3, 2), (2, 3), (13, 8), (10, 11)] {
            let wafer = Grid::new(width, height);
            let values = normal(width * height, 3);
            assert_eq!(judge(wafer, &values, &run(&device, wafer, &values)), Ok(()), "{}", device.name());
        }
    }
}

/// At f64 nothing of the f32 bound is left, and tiles still agree.
#[test]
fn the_oracle_gives_the_plain_sum_at_f64() {
    let (device, wafer) = (Device::oracle().unwrap(), Grid::new(12, 7));
    let values = normal(12 * 7, 9);
    let mut tiles = Tiles::new(&device, wafer).unwrap();
    tiles.load(&values).unwrap();
    tiles.run(&mut |_| {}).unwrap();
    let plain: f64 = all_reduce::plain_sum(wafer, &values);
    assert!(device.download_f64(&tiles.sums()).unwrap().iter().all(|sum| sum.to_bits() == plain.to_bits()));
}

#[test]
fn a_second_load_begins_anew() {
    let (device, wafer) = (rig::host(), Grid::new(5, 6));
    let mut tiles = Tiles::new(&device, wafer).unwrap();
    for seed in [1, 2] {
        let values = normal(30, seed);
        tiles.load(&values).unwrap();
        let mut runs = 0;
        tiles.run(&mut |step| runs += u64::from(step.count())).unwrap();
        let plain: f32 = all_reduce::plain_sum(wafer, &values);
        assert_eq!(device.download(&tiles.sums()).unwrap(), vec![plain; 30]);
        assert_eq!(runs, AllReduce { wafer }.all_runs());
        let tally = device.download_ids(&tiles.tally()).unwrap();
        assert_eq!(tally.iter().step_by(TALLIES).map(|&n| u64::from(n)).sum::<u64>(), runs);
    }
    assert!(tiles.load(&[1.0; 29]).is_err(), "a number is missing");
}

#[test]
fn what_is_wrong_is_found() {
    let (device, wafer) = (rig::host(), Grid::new(9, 6));
    let values = normal(54, 5);
    let sound = run(&device, wafer, &values);
    assert_eq!(judge(wafer, &values, &sound), Ok(()));
    let edited = |edit: fn(&mut Outcome)| {
        let mut wrong = sound.clone();
        edit(&mut wrong);
        wrong
    };
    for wrong in [
        edited(|o| o.sums[53] = f32::from_bits(o.sums[53].to_bits() ^ 1)),
        edited(|o| o.sums[0] = f32::NAN),
        edited(|o| o.sums.truncate(53)),
        edited(|o| o.tally[0] += 1),
        edited(|o| o.tally[107] += 1),
        edited(|o| o.seen -= 1),
        edited(|o| o.counted.dispatches += 1),
    ] {
        assert!(judge(wafer, &values, &wrong).is_err());
    }
    // One number of another tile in its place, and one lost.
    for (at, value) in [(30, values[31]), (0, 0.0), (53, f32::NAN)] {
        let mut other = values.clone();
        other[at] = value;
        assert!(judge(wafer, &values, &run(&device, wafer, &other)).is_err(), "tile {at}");
    }
}
