//! One whole training step against the oracle: the loss and every gradient tensor.
//!
//! Through a whole network no useful bound can be computed: rounding grows with the weights. The yardstick is measured:
//! plain f32 arithmetic (the references, without any fast kernel) runs the same step, and a device may lie four times as
//! far from the f64 oracle as that does, in the 2-norm of each tensor. It must never know a model: it sees named lists.

use super::{Part, Row};
use crate::program::EPS;
use crate::train::step::Gradients;

/// How many times as far as plain f32 arithmetic a device may lie from the oracle: another order of additions, fused
/// multiply-add and a driver's own exponential each change the rounding, none by an order of magnitude.
const YARDSTICK: f64 = 4.0;

/// Holds a step against the oracle, a row for the loss and one for each tensor of the oracle: `||ours - oracle|| <=
/// 4 ||reference - oracle|| + EPS ||oracle||`. NaN anywhere fails, and so do a missing tensor, one of another length,
/// one too many, and a gradient that is zero in the oracle, which would prove nothing.
///
/// The loss is one number, and plain f32 may hit it by chance: its yardstick is never less than the smallest relative
/// error that plain f32 has in any tensor.
pub fn compare_step(ours: &Gradients, reference_f32: &Gradients, oracle: &Gradients) -> Vec<Row> {
    let mut rows = Vec::with_capacity(oracle.gradients.len() + 1);
    let mut least = f64::INFINITY;
    for (name, truth) in &oracle.gradients {
        let (ours, plain) = match (find(ours, name, truth.len()), find(reference_f32, name, truth.len())) {
            (Ok(ours), Ok(plain)) => (ours, plain),
            (Err(reason), _) => {
                rows.push(Row::failed(Part::Step, name, reason));
                continue;
            }
            (_, Err(reason)) => {
                rows.push(Row::failed(Part::Step, name, format!("f32 reference: {reason}")));
                continue;
            }
        };
        let size = norm(truth.iter().copied());
        if size == 0.0 {
            rows.push(Row::failed(Part::Step, name, "the oracle's gradient is zero: nothing is proven"));
            continue;
        }
        let yardstick = distance(plain, truth);
        least = least.min(yardstick / size);
        let error = distance(ours, truth);
        let place = format!("relative error {:.2e}, plain f32 {:.2e}", error / size, yardstick / size);
        rows.push(Row::new(Part::Step, name, 1, truth.len(), ratio(error, yardstick, size), place));
    }
    for (name, _) in ours.gradients.iter().filter(|(name, _)| find_name(oracle, name).is_none()) {
        rows.push(Row::failed(Part::Step, name, "the oracle has no such tensor"));
    }
    if oracle.gradients.is_empty() {
        rows.push(Row::failed(Part::Step, "gradients", "there are none"));
    }
    rows.insert(0, loss_row(ours.loss, reference_f32.loss, oracle.loss, least));
    rows
}

fn loss_row(ours: f64, plain: f64, truth: f64, least: f64) -> Row {
    let floor = if least.is_finite() { least * truth.abs() } else { 0.0 };
    let yardstick = (plain - truth).abs();
    // max() would drop a NaN.
    let yardstick = if yardstick < floor { floor } else { yardstick };
    let place = format!("{ours:.9}, oracle {truth:.9}, plain f32 {plain:.9}");
    Row::new(Part::Step, "loss", 1, 1, ratio((ours - truth).abs(), yardstick, truth.abs()), place)
}

/// Error over what is allowed; infinite when either is not a number.
fn ratio(error: f64, yardstick: f64, size: f64) -> f64 {
    let allowed = YARDSTICK * yardstick + EPS * size;
    match error.is_finite() && allowed.is_finite() {
        false => f64::INFINITY,
        true if error == 0.0 => 0.0,
        true => error / allowed,
    }
}

fn find_name<'a>(step: &'a Gradients, name: &str) -> Option<&'a [f64]> {
    step.gradients.iter().find(|(n, _)| n == name).map(|(_, values)| values.as_slice())
}

fn find<'a>(step: &'a Gradients, name: &str, len: usize) -> Result<&'a [f64], String> {
    match find_name(step, name) {
        None => Err("the tensor is missing".into()),
        Some(values) if values.len() != len => Err(format!("{} elements, should be {len}", values.len())),
        Some(values) => Ok(values),
    }
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    norm(a.iter().zip(b).map(|(a, b)| a - b))
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|x| x * x).sum::<f64>().sqrt()
}
