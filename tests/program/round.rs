//! Rounding to bf16: the same bits on every device, for every cut and number of threads; nearest as the `half` crate has
//! it; stochastic rounding to a neighbour, without bias; what is special stays what it is.

use crate::rig;
use gaufre::device::Device;
use gaufre::program::round::{self, Mode, Round};
use gaufre::program::{Matrix, check, initial};

const STOCHASTIC: Mode = Mode::Stochastic { seed: 0x0123_4567_89ab_cdef, step: 5 << 32 | 9, stream: 11 };

#[test]
fn within_bound_on_every_device() {
    for device in rig::devices("round") {
        for program in round::PROGRAMS {
            check::assert_within_bound(program, &device);
        }
    }
}

fn rounded(device: &Device, mode: Mode, cols: usize, values: &[f32], first_row: usize, cuts: &[usize]) -> Vec<u32> {
    let matrix = Matrix::new(device, "panel", values.len() / cols, cols).expect("buffer");
    matrix.upload(device, values).expect("upload");
    let mut from = 0;
    for cut in cuts {
        round::run(device, &Round { mode }, &matrix.rows(from, *cut), first_row + from).expect("run");
        from += cut;
    }
    assert_eq!(from, matrix.rows, "the cuts cover the matrix");
    let all = device.download(&matrix.view).expect("download");
    let padding = all.chunks(matrix.stride).flat_map(|row| &row[cols..]);
    assert!(padding.into_iter().all(|x| x.to_bits() == 0), "padding on {}", device.name());
    matrix.download(device).expect("download").iter().map(|x| x.to_bits()).collect()
}

fn values(n: usize) -> Vec<f32> {
    (0..n as u64).map(|i| (initial::normal(3, i) * (initial::normal(4, i) * 20.0).exp2()) as f32).collect()
}

#[test]
fn equal_bits_on_every_device_and_cut() {
    // The oracle goes element by element and knows no runs.
    let oracle = Device::oracle().expect("oracle");
    for cols in [77, 5, 640, 24] {
        let x = values(9 * cols);
        for (mode, first_row) in [(Mode::Nearest, 0), (STOCHASTIC, 0), (STOCHASTIC, 1 << 32)] {
            let want = rounded(&oracle, mode, cols, &x, first_row, &[9]);
            let hosts = [1, 2, 3].map(|n| Device::host(n).expect("host"));
            for device in hosts.into_iter().chain(rig::devices("round")) {
                for cuts in [&[9][..], &[4, 1, 4], &[1, 8]] {
                    let found = rounded(&device, mode, cols, &x, first_row, cuts);
                    assert!(found == want, "{mode:?}, {cols} columns, {cuts:?} on {}", device.name());
                }
            }
        }
    }
}

#[test]
fn many_tasks_give_the_bits_of_one() {
    for cols in [1000, 1003] {
        let x = values(70 * cols);
        let want = rounded(&Device::oracle().expect("oracle"), STOCHASTIC, cols, &x, 3, &[70]);
        for threads in [1, 2, 3] {
            let device = Device::host(threads).expect("host");
            assert!(rounded(&device, STOCHASTIC, cols, &x, 3, &[70]) == want, "{threads} threads, {cols} columns");
        }
    }
}

#[test]
fn nearest_is_that_of_the_half_crate() {
    // Every high half with the low halves around each place where a rounding turns.
    for high in 0..=0xffffu32 {
        for low in [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
            let x = f32::from_bits(high << 16 | low);
            let (found, want) = (round::bf16_nearest(x), half::bf16::from_f32(x).to_f32());
            assert!(found.to_bits() == want.to_bits(), "{x:e} ({:#x}): {found:e}, {want:e}", x.to_bits());
        }
    }
}

#[test]
fn stochastic_picks_a_neighbour_and_keeps_what_is_special() {
    let special = [
        (0x7f80_0000, 0x7f80_0000),
        (0xff80_0000, 0xff80_0000),
        (0x7f7f_ffff, 0x7f7f_0000),
        (0xff7f_ffff, 0xff7f_0000),
        (0x7f7f_0000, 0x7f7f_0000),
        (0x8000_0000, 0x8000_0000),
        (0x0001_0000, 0x0001_0000),
        (0x7fc0_0000, 0x7fc0_0000),
        (0x7f80_0001, 0x7fc0_0000),
        (0xffff_ffff, 0xffff_0000u32),
    ];
    let x: Vec<f32> = special.iter().map(|(x, _)| f32::from_bits(*x)).cycle().take(400).collect();
    for device in rig::devices("round") {
        let found = rounded(&device, STOCHASTIC, 20, &x, 0, &[20]);
        for (found, (x, want)) in found.iter().zip(special.iter().cycle()) {
            assert_eq!(found, want, "{x:#x} on {}", device.name());
        }
        let x = values(4000);
        for (found, x) in rounded(&device, STOCHASTIC, 40, &x, 0, &[100]).iter().zip(x) {
            let down = x.to_bits() & 0xffff_0000;
            assert!(found & 0xffff == 0 && (*found == down || *found == down + 0x1_0000), "{x:e} to {found:#x}");
        }
    }
}

/// Each element of a large panel is a rounding of its own. A fraction f of the step is added with probability f exactly,
/// so the mean of n roundings lies within five standard errors of the value, each of sqrt(f (1 - f) / n) steps.
#[test]
fn stochastic_rounding_has_no_bias() {
    let device = rig::host();
    let (rows, cols) = (512, 512);
    let n = (rows * cols) as f64;
    for low in [0x0001u32, 0x1000, 0x7fff, 0x8000, 0xc123, 0xffff] {
        let x = f32::from_bits(0x3f80_0000 | low);
        let found = rounded(&device, STOCHASTIC, cols, &vec![x; rows * cols], 0, &[rows]);
        let up = found.iter().filter(|bits| **bits == 0x3f81_0000).count() as f64;
        let f = f64::from(low) / 65536.0;
        assert!((up / n - f).abs() <= 5.0 * (f * (1.0 - f) / n).sqrt(), "{low:#x}: {} of {f}", up / n);
    }
}

#[test]
fn seed_step_stream_and_place_pick_other_bits() {
    let device = rig::host();
    let x = vec![f32::from_bits(0x3f80_8000); 64 * 64];
    let of = |mode, first_row| rounded(&device, mode, 64, &x, first_row, &[64]);
    let want = of(STOCHASTIC, 0);
    let Mode::Stochastic { seed, step, stream } = STOCHASTIC else { unreachable!() };
    let others = [
        of(Mode::Stochastic { seed: seed ^ 1 << 63, step, stream }, 0),
        of(Mode::Stochastic { seed: seed ^ 1, step, stream }, 0),
        of(Mode::Stochastic { seed, step: step + 1, stream }, 0),
        of(Mode::Stochastic { seed, step: step ^ 1 << 33, stream }, 0),
        of(Mode::Stochastic { seed, step, stream: stream + 1 }, 0),
        of(STOCHASTIC, 1 << 30),
        want[1..].iter().chain(&want[..1]).copied().collect(),
    ];
    for (i, other) in others.iter().enumerate() {
        let equal = want.iter().zip(other).filter(|(a, b)| a == b).count() as f64;
        // A coin thrown 4096 times: five standard errors.
        assert!((equal / 4096.0 - 0.5).abs() <= 5.0 * 0.5 / 64.0, "{i}: {equal} of 4096 equal");
    }
}

#[test]
fn what_is_out_of_range_is_refused() {
    let device = rig::host();
    let panel = Matrix::new(&device, "panel", 4, 8).expect("buffer");
    let run = |mode, first_row| round::run(&device, &Round { mode }, &panel, first_row);
    assert!(run(Mode::Stochastic { seed: 1, step: 1 << 48, stream: 0 }, 0).is_err());
    assert!(run(STOCHASTIC, 1 << 40).is_err());
    assert!(run(Mode::Nearest, 1 << 40).is_ok());
}
