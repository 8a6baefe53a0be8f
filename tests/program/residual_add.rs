//! Residual add: within the bound on every device; slices give the bits of whole matrices. Its gradient is the identity on
//! both sides: no kernel, nothing to differentiate.

use crate::rig;
use gaufre::device::Device;
use gaufre::program::{Matrix, check, initial, residual_add};

#[test]
fn within_bound_on_every_device() {
    for device in rig::devices("residual_add") {
        check::assert_within_bound(&residual_add::ADD, &device);
    }
}

fn normal(len: usize, seed: u64) -> Vec<f32> {
    (0..len).map(|i| initial::normal(seed, i as u64) as f32).collect()
}

#[test]
fn slices_give_the_bits_of_whole_matrices() {
    for device in rig::devices("residual_add") {
        let [wide, other, out] = ["wide", "other", "out"].map(|name| Matrix::new(&device, name, 37, 84).unwrap());
        let (left, right) = (normal(37 * 84, 1), normal(37 * 84, 2));
        wide.upload(&device, &left).unwrap();
        other.upload(&device, &right).unwrap();
        let slice = |m: &Matrix| m.rows(5, 9).columns(24, 32);
        residual_add::run(&device, &slice(&wide), &slice(&other), &slice(&out)).unwrap();
        let got = out.download(&device).unwrap();
        for (i, got) in got.iter().enumerate() {
            let inside = (5..14).contains(&(i / 84)) && (24..56).contains(&(i % 84));
            let want = if inside { left[i] + right[i] } else { 0.0 };
            assert_eq!(got.to_bits(), want.to_bits(), "{} at {i}", device.name());
        }
    }
}

#[test]
#[should_panic(expected = "multiples of 4")]
fn a_slice_that_no_quad_begins_is_refused() {
    let device = Device::host(1).unwrap();
    let [a, b, out] = ["a", "b", "out"].map(|name| Matrix::new(&device, name, 4, 16).unwrap());
    let slice = |m: &Matrix| m.columns(3, 8);
    let _ = residual_add::run(&device, &slice(&a), &slice(&b), &slice(&out));
}

#[test]
fn bits_do_not_depend_on_threads() {
    let run = |threads: usize| {
        let device = Device::host(threads).unwrap();
        let [a, b, out] = ["a", "b", "out"].map(|name| Matrix::new(&device, name, 200, 84).unwrap());
        a.upload(&device, &normal(200 * 84, 1)).unwrap();
        b.upload(&device, &normal(200 * 84, 2)).unwrap();
        residual_add::run(&device, &a, &b, &out).unwrap();
        out.download(&device).unwrap()
    };
    assert_eq!(run(1), run(2));
    assert_eq!(run(1), run(3));
}
