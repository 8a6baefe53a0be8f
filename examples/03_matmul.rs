//! A product on a wafer of 2 x 2 tiles, in both schedules. `superstep` is the emulated fabric itself: each step's blocks are
//! carried into the tiles' inboxes and every byte is counted. `fused` is one dispatch that reads the blocks where they lie.
//! Both are one program, so their bits are equal; and both lie within the rounding that K + 2 additions can have.
//!
//! `cargo run --release --example 03_matmul -- [DEVICE]`

use gaufre::device::Device;
use gaufre::program::matmul::{self, Form, Matmul};
use gaufre::program::schedule::{Fabric, Schedule};
use gaufre::program::{EPS, Matrix};
use gaufre::wafer::Wafer;

const M: usize = 100;
const N: usize = 90;
const K: usize = 1200;

/// C = A B^T, the form of a linear layer: A has a row for each token, B one for each output.
fn product(device: &Device, schedule: Schedule, a: &[f32], b: &[f32]) -> gaufre::device::Result<Vec<f32>> {
    let fabric = Fabric::new(device.clone(), schedule, Wafer::new(2, 2));
    let matrix = |label: &str, rows, cols| Matrix::new(device, label, rows, cols);
    let (left, right, result) = (matrix("a", M, K)?, matrix("b", N, K)?, matrix("c", M, N)?);
    left.upload(device, a)?;
    right.upload(device, b)?;
    let before = device.counters();
    let operands = Matmul { form: Form::NT, a: &left, b: &right, c: &result, bias: None, accumulate: false };
    matmul::run(&fabric, &operands)?;
    let done = device.counters().since(&before);
    println!(
        "{schedule:?}: {} dispatches, {} messages, {} bytes over the fabric",
        done.dispatches, done.messages, done.exchanged_bytes
    );
    result.download(device)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = Device::open(std::env::args().nth(1).as_deref().unwrap_or("auto"), 0)?;
    println!("{}", device.why());
    let a: Vec<f32> = (0..M * K).map(|i| (i as f32 * 0.37).sin()).collect();
    let b: Vec<f32> = (0..N * K).map(|i| (i as f32 * 0.73).cos()).collect();
    let fused = product(&device, Schedule::Fused, &a, &b)?;
    let superstep = product(&device, Schedule::Superstep, &a, &b)?;

    // The truth in f64, and how far f32 may lie from it: a rounding for each addition, of at most the sum of magnitudes.
    let mut worst = 0.0f64;
    for (at, &c) in fused.iter().enumerate() {
        let (row, col) = (at / N, at % N);
        let terms = (0..K).map(|k| f64::from(a[row * K + k]) * f64::from(b[col * K + k]));
        let (truth, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
        // Through max, a NaN would be lost: it counts as infinitely wrong.
        let ratio = (f64::from(c) - truth).abs() / ((K + 2) as f64 * EPS * size);
        worst = worst.max(if ratio.is_nan() { f64::INFINITY } else { ratio });
    }
    println!("largest error: {worst:.4} of its bound");
    let equal = fused.iter().map(|x| x.to_bits()).eq(superstep.iter().map(|x| x.to_bits()));
    if !(equal && worst <= 1.0) {
        return Err(format!("schedules equal: {equal}, largest error: {worst} of its bound").into());
    }
    println!("ok: equal bits, within the bound");
    Ok(())
}
