//! Column sum: within the bound on every device; it is the transpose of adding a row to every row, in f64; equal bits for
//! any number of host threads; and down lines of tiles.

use crate::fabric::relay::{Example, Operand, assert_is_sound, fused};
use crate::program::matmul;
use crate::rig;
use gaufre::device::Device;
use gaufre::program::{Matrix, check, column_sum, initial};

#[test]
fn within_bound_on_every_device() {
    for device in rig::devices("column_sum") {
        check::assert_within_bound(&column_sum::SUM, &device);
    }
}

fn normal(len: usize, seed: u64) -> Vec<f32> {
    (0..len).map(|i| initial::normal(seed, i as u64) as f32).collect()
}

fn sum(device: &Device, dy: &[f32], cols: usize, before: Option<&[f32]>) -> Matrix {
    let matrix = Matrix::new(device, "dy", dy.len() / cols, cols).unwrap();
    matrix.upload(device, dy).unwrap();
    let out = Matrix::new(device, "out", 1, cols).unwrap();
    if let Some(before) = before {
        out.upload(device, before).unwrap();
    }
    column_sum::run(&fused(device), &matrix, &out, before.is_some()).unwrap();
    out
}

/// Adding a bias to every row is linear, so its gradient along any direction is exact without a step: the sum over all
/// elements of cotangent * direction.
#[test]
fn is_the_gradient_of_a_bias() {
    let (oracle, rows, cols) = (Device::oracle().unwrap(), 37, 84);
    let (cotangent, direction, before) = (normal(rows * cols, 1), normal(cols, 2), normal(cols, 3));
    for accumulated in [None, Some(before.as_slice())] {
        let gradient = sum(&oracle, &cotangent, cols, accumulated).download_f64(&oracle).unwrap();
        let along = |row: &[f64]| row.iter().zip(&direction).map(|(g, &d)| g * f64::from(d)).sum::<f64>();
        let old: Vec<f64> = accumulated.unwrap_or(&vec![0.0; cols]).iter().map(|&x| f64::from(x)).collect();
        let terms = || cotangent.iter().enumerate().map(|(i, &dy)| f64::from(dy) * f64::from(direction[i % cols]));
        let allowed = f64::EPSILON * (rows * cols) as f64 * terms().map(f64::abs).sum::<f64>();
        assert!((along(&gradient) - along(&old) - terms().sum::<f64>()).abs() <= allowed);
    }
}

#[test]
fn bits_do_not_depend_on_threads() {
    let dy = normal(300 * 84, 5);
    let run = |threads: usize| {
        let device = Device::host(threads).unwrap();
        sum(&device, &dy, 84, Some(&dy[..84])).download(&device).unwrap()
    };
    assert_eq!(run(1), run(2));
    assert_eq!(run(1), run(3));
}

#[test]
fn is_a_relay_down_its_columns() {
    let block = column_sum::BLOCK_ROWS as usize;
    for (rows, cols, accumulate) in [(9 * block + 5, 84, false), (2 * block, 20, true), (3, 130, true)] {
        assert_is_sound("column_sum", &|fabric| {
            let device = fabric.device();
            let (dy, sum) = (matmul::normal(device, rows, cols, 1), matmul::normal(device, 1, cols, 2));
            let width = 4 * column_sum::SUM.kernel.variant(device.class()).get("QUADS") as usize;
            let last = (rows.div_ceil(block) - 1) as u32;
            let program = column_sum::relay(fabric, &dy, &sum, accumulate);
            let terms = Operand::matrix(&dy, move |line, at, row, col| {
                row / block == at as usize && col / width == line as usize
            });
            let sums = Operand::of(&sum.view, move |line, at, col| at == last && col / width == line as usize);
            let sums = if accumulate { sums } else { sums.unread() };
            Example { program: Box::new(program), operands: vec![terms, sums] }
        });
    }
}
