//! Column sum: within the bound on every device; it is the transpose of adding a row to every row, in f64; equal bits for
//! any number of host threads.

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
    column_sum::run(device, &matrix, &out, before.is_some()).unwrap();
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
