//! Block-wise quantisation: the same bits on every device, for every cut and number of threads; the nearest value of the
//! grid; quantised twice is quantised once, over all exponents; what is stored is what is computed.

use crate::rig;
use gaufre::device::Device;
use gaufre::program::quantize::{self, BLOCK, TINY, Table};
use gaufre::program::{Matrix, check, initial};
use proptest::prelude::*;

const TABLES: [Table; 2] = [Table::Signed, Table::Unsigned];

#[test]
fn within_bound_on_every_device() {
    for device in rig::devices("quantize") {
        check::assert_within_bound(&quantize::QUANTIZE, &device);
    }
}

fn quantized(device: &Device, table: Table, cols: usize, values: &[f32], cuts: &[usize]) -> Vec<f32> {
    let matrix = Matrix::new(device, "panel", values.len() / cols, cols).expect("buffer");
    matrix.upload(device, values).expect("upload");
    let mut from = 0;
    for cut in cuts {
        quantize::run(device, table, &matrix.rows(from, *cut)).expect("run");
        from += cut;
    }
    assert_eq!(from, matrix.rows, "the cuts cover the matrix");
    let all = device.download(&matrix.view).expect("download");
    let padding = all.chunks(matrix.stride).flat_map(|row| &row[cols..]);
    assert!(padding.into_iter().all(|x| x.to_bits() == 0), "padding on {}", device.name());
    matrix.download(device).expect("download")
}

/// What is stored of each row, and read again.
fn stored(table: Table, cols: usize, values: &[f32]) -> Vec<f32> {
    let (mut codes, mut scales) = (vec![0u8; cols], vec![0.0f32; quantize::blocks(cols)]);
    let row = |row: &[f32]| {
        let mut again = vec![0.0; cols];
        quantize::encode_row(table, row, &mut codes, &mut scales);
        quantize::decode_row(table, &codes, &scales, &mut again);
        again
    };
    values.chunks(cols).flat_map(row).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Values of either sign over some octaves around `size`; squares for the unsigned table.
fn values(table: Table, n: usize, size: f32) -> Vec<f32> {
    let value = |i: u64| {
        let x = size * initial::normal(3, i) as f32 * (initial::normal(4, i) * 4.0).exp2() as f32;
        if table == Table::Unsigned { x.abs() } else { x }
    };
    (0..n as u64).map(value).collect()
}

#[test]
fn tables_are_ascending_and_hold_zero_and_one() {
    for table in TABLES {
        let values = table.values();
        let strictly = if table == Table::Signed { &values[..255] } else { &values[..] };
        assert!(strictly.windows(2).all(|pair| pair[0] < pair[1]), "{table:?}");
        assert!(values.iter().all(|x| x.to_bits() & 0x0007_ffff == 0), "at most 5 significant bits: {table:?}");
        assert!(values.contains(&0.0) && values[255] == 1.0);
        let least = values.iter().filter(|x| **x > 0.0).fold(1.0f32, |least, x| least.min(*x));
        let decades = -f64::from(least).log10();
        assert!(decades > if table == Table::Signed { 4.6 } else { 7.1 }, "{decades} decades");
    }
    assert_eq!(Table::Signed.values()[0], -1.0);
    assert!((0..255).all(|i| Table::Signed.values()[i] == -Table::Signed.values()[254 - i]));
}

#[test]
fn equal_bits_on_every_device_and_cut_and_as_stored() {
    let oracle = Device::oracle().expect("oracle");
    for table in TABLES {
        for (rows, cols) in [(9, 77), (9, 256), (70, 600), (1, 40_000)] {
            let x = values(table, rows * cols, 0.1);
            let want = bits(&quantized(&oracle, table, cols, &x, &[rows]));
            assert!(bits(&stored(table, cols, &x)) == want, "{table:?} {rows}x{cols} as stored");
            let hosts = [1, 2, 3].map(|n| Device::host(n).expect("host"));
            for device in hosts.into_iter().chain(rig::devices("quantize")) {
                for cuts in [vec![rows], vec![1; rows]] {
                    let found = bits(&quantized(&device, table, cols, &x, &cuts));
                    assert!(found == want, "{table:?} {rows}x{cols}, {} panels on {}", cuts.len(), device.name());
                }
            }
        }
    }
}

#[test]
fn quantised_twice_is_quantised_once_over_all_exponents() {
    for table in TABLES {
        for exponent in -149..=127 {
            // The grid itself, at scales of many mantissas, and other values.
            let size = 2f64.powi(exponent) as f32;
            let mut x = values(table, 16 * BLOCK, 0.01);
            for (i, block) in x.chunks_mut(BLOCK).enumerate() {
                let scale = size * (1.0 + i as f32 / 16.37);
                if i % 2 == 0 {
                    block.iter_mut().zip(table.values()).for_each(|(x, value)| *x = value * scale);
                } else {
                    block.iter_mut().for_each(|x| *x = x.clamp(-1.0, 1.0) * scale);
                }
            }
            let device = rig::host();
            let once = quantized(&device, table, BLOCK, &x, &[16]);
            let twice = quantized(&device, table, BLOCK, &once, &[16]);
            assert!(bits(&once) == bits(&twice), "{table:?} at 2^{exponent}");
            assert!(bits(&stored(table, BLOCK, &once)) == bits(&once), "{table:?} at 2^{exponent}");
            for (i, (once, x)) in once.chunks(BLOCK).zip(x.chunks(BLOCK)).enumerate() {
                let largest = x.iter().fold(0.0f32, |most, x| most.max(x.abs()));
                let grid = i % 2 == 0 && largest >= TINY;
                assert!(!grid || bits(once) == bits(x), "{table:?} at 2^{exponent}: the grid is its own");
                assert!(largest >= TINY || once.iter().all(|x| x.to_bits() == 0), "{table:?} at 2^{exponent}: tiny");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Any finite bits: equal to the reference, as stored, once as twice, and no other value of the grid is nearer.
    #[test]
    fn any_row_becomes_the_nearest_of_its_grid(
        words in prop::collection::vec(any::<u32>(), 1..600),
        exponents in 1u32..40,
        base in 0u32..254,
    ) {
        let (device, oracle) = (rig::host(), Device::oracle().expect("oracle"));
        for table in TABLES {
            let value = |word: &u32| {
                let exponent = (base.saturating_sub(word >> 8 & 0xff) % exponents + base.saturating_sub(exponents)).min(254);
                f32::from_bits(word & 0x807f_ffff | exponent << 23)
            };
            let x: Vec<f32> = words.iter().map(value).collect();
            let cols = x.len();
            let found = quantized(&device, table, cols, &x, &[1]);
            prop_assert_eq!(bits(&found), bits(&quantized(&oracle, table, cols, &x, &[1])));
            prop_assert_eq!(bits(&found), bits(&stored(table, cols, &x)));
            prop_assert_eq!(bits(&found), bits(&quantized(&device, table, cols, &found, &[1])));
            for (found, x) in found.chunks(BLOCK).zip(x.chunks(BLOCK)) {
                let size = |x: f32| if table == Table::Unsigned { x.max(0.0) } else { x };
                let scale = x.iter().fold(0.0f32, |most, x| most.max(size(*x).abs()));
                if scale < TINY {
                    continue;
                }
                for (found, x) in found.iter().zip(x) {
                    let distance = |y: f64| (y - f64::from(size(*x))).abs();
                    let grid = table.values().iter().map(|value| f64::from(*value) * f64::from(scale));
                    let least = grid.map(distance).fold(f64::INFINITY, f64::min);
                    // The value and the middle are rounded to f32 each.
                    let slack = 2.0 * gaufre::program::EPS * f64::from(x.abs()).max(least);
                    prop_assert!(distance(f64::from(*found)) <= least + 2.0 * slack, "{} of {}", found, x);
                }
            }
        }
    }
}

#[test]
fn a_block_that_is_not_finite_stays_and_is_stored_as_nan() {
    for device in rig::devices("quantize").into_iter().chain([Device::oracle().expect("oracle")]) {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for table in TABLES {
                let mut x = values(table, 2 * BLOCK, 1.0);
                x[7] = bad;
                let found = quantized(&device, table, 2 * BLOCK, &x, &[1]);
                let same = found[..BLOCK].iter().zip(&x).all(|(f, x)| f == x || f.is_nan() && x.is_nan());
                assert!(same, "{bad} on {}", device.name());
                let again = stored(table, 2 * BLOCK, &x);
                assert!(again[..BLOCK].iter().all(|x| x.is_nan()));
                assert_eq!(bits(&again[BLOCK..]), bits(&found[BLOCK..]), "{bad} on {}", device.name());
            }
        }
    }
}
