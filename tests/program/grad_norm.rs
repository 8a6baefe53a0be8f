//! The gradient norm: within its bound; the same bits however a tensor is cut into panels; clipping as PyTorch does it;
//! and values that are not finite; and the sum of all slots over all tiles.

use crate::fabric::relay::{Example, Operand, assert_is_sound, fused};
use crate::rig;
use gaufre::device::{Device, Elem, View};
use gaufre::program::grad_norm::{
    self, BLOCK_SLOTS, CLIP_SCALE, GRAD_NORM, GRANULE_ROWS, LOSS, NON_FINITE, SCALARS, SLOT_FLOATS, Slots,
};
use gaufre::program::{EPS, Matrix, check, initial};

#[test]
fn within_bound_on_every_device() {
    for device in rig::devices("grad_norm") {
        for program in grad_norm::PROGRAMS {
            check::assert_within_bound(program, &device);
        }
    }
}

fn scalars(device: &Device, loss: f32) -> View {
    let view = device.buffer("scalars", Elem::F32, SCALARS).expect("buffer").all();
    let mut values = [0.0; SCALARS];
    values[LOSS] = loss;
    device.upload(&view, &values).expect("upload");
    view
}

/// The scalars after both kernels over one tensor, whose rows are cut at `cuts`.
fn run(device: &Device, values: &[f32], cols: usize, cuts: &[usize], clip: f32, loss: f32) -> Vec<f32> {
    let rows = values.len() / cols;
    let tensor = Matrix::new(device, "gradient", rows, cols).expect("buffer");
    tensor.upload(device, values).expect("upload");
    let slots = grad_norm::slots(rows);
    let partials = device.buffer("partials", Elem::F32, slots * SLOT_FLOATS).expect("buffer").all();
    let scalars = scalars(device, loss);
    let edges: Vec<usize> = [0].iter().chain(cuts).chain(&[rows]).copied().collect();
    for edge in edges.windows(2) {
        let panel = tensor.rows(edge[0], edge[1] - edge[0]);
        grad_norm::partial(device, &panel, &partials, grad_norm::slots(edge[0])).expect("partial");
    }
    grad_norm::finish(&fused(device), &partials, grad_norm::Slots::all(slots), clip, &scalars).expect("finish");
    device.download(&scalars).expect("download")
}

fn values(len: usize) -> Vec<f32> {
    (0..len as u64).map(|i| initial::normal(9, i) as f32).collect()
}

#[test]
fn cuts_and_threads_do_not_change_a_bit() {
    let (rows, cols) = (3 * GRANULE_ROWS + 77, 13);
    let x = values(rows * cols);
    let exact = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    for device in rig::devices("grad_norm") {
        let whole = run(&device, &x, cols, &[], 1.0, 1.0);
        for cuts in [&[GRANULE_ROWS][..], &[2 * GRANULE_ROWS], &[GRANULE_ROWS, 2 * GRANULE_ROWS, 3 * GRANULE_ROWS]] {
            assert_eq!(run(&device, &x, cols, cuts, 1.0, 1.0), whole, "{cuts:?} on {}", device.name());
        }
        let error = (f64::from(whole[GRAD_NORM]) - exact).abs();
        assert!(error <= EPS * (0.5 * (16 * 16 + grad_norm::slots(rows)) as f64 + 9.0) * exact, "{error}");
        assert_eq!((whole[LOSS], whole[NON_FINITE]), (1.0, 0.0));
    }
    let runs = [1, 2, 3].map(|n| run(&Device::host(n).expect("host"), &x, cols, &[], 1.0, 1.0));
    assert!(runs[1] == runs[0] && runs[2] == runs[0]);
}

#[test]
fn clips_as_pytorch_does() {
    // A norm of exactly 5.
    let x = [3.0, 0.0, -4.0];
    for device in rig::devices("grad_norm") {
        for (clip, want) in [(0.0, 1.0), (1.0, 1.0 / (5.0 + 1e-6)), (5.0, 5.0 / (5.0 + 1e-6)), (6.0, 1.0)] {
            let found = run(&device, &x, 3, &[], clip, 1.0);
            let (norm, scale) = (f64::from(found[GRAD_NORM]), f64::from(found[CLIP_SCALE]));
            assert!((norm - 5.0).abs() <= 10.0 * EPS * 5.0, "{norm} on {}", device.name());
            assert!((scale - want).abs() <= 17.0 * EPS * want, "clip {clip}: {scale} on {}", device.name());
            assert!(clip == 1.0 || clip == 5.0 || scale == 1.0, "not clipped is not scaled");
        }
        assert!(
            grad_norm::finish(
                &fused(&device),
                &scalars(&device, 0.0),
                grad_norm::Slots::all(1),
                f32::NAN,
                &scalars(&device, 0.0)
            )
            .is_err()
        );
    }
}

#[test]
fn counts_what_is_not_finite() {
    for device in rig::devices("grad_norm") {
        let check = |planted: &[(usize, f32)], loss: f32, want: f32| {
            let mut x = values(40 * 5);
            planted.iter().for_each(|&(i, bad)| x[i] = bad);
            let found = run(&device, &x, 5, &[], 1.0, loss);
            assert_eq!(found[NON_FINITE], want, "{planted:?}, loss {loss} on {}", device.name());
            assert!(found[GRAD_NORM].is_finite() && found[CLIP_SCALE].is_finite(), "the rest is of the finite ones");
        };
        check(&[], 1.0, 0.0);
        check(&[(0, f32::NAN)], 1.0, 1.0);
        check(&[(199, f32::INFINITY), (7, f32::NEG_INFINITY), (100, f32::NAN)], 1.0, 3.0);
        check(&[], f32::NAN, 1.0);
        check(&[(3, f32::NAN)], f32::INFINITY, 2.0);
        // Finite, but no norm in f32: within one slot, and only by the sum over slots.
        check(&[(0, 1e30)], 1.0, 1.0);
        check(&[(0, 1.5e19), (199, 1.5e19)], 1.0, 1.0);
        check(&[(0, 1e19)], 1.0, 0.0);
    }
    let oracle = Device::oracle().expect("oracle");
    assert_eq!(run(&oracle, &[1e30, 1.0], 2, &[], 1.0, 1.0)[NON_FINITE], 1.0, "the oracle agrees");
}

#[test]
fn the_end_is_a_relay_over_all_tiles() {
    let whole = Slots::all(7 * BLOCK_SLOTS + 9);
    let windows = [whole, Slots { first: 5, norm: BLOCK_SLOTS + 20, finite: 4 * BLOCK_SLOTS }, Slots::all(1)];
    for slots in windows {
        assert_is_sound("grad_norm_finish", &|fabric| {
            let device = fabric.device();
            let floats = (0..(slots.first + slots.finite + 3) * SLOT_FLOATS).map(|i| match i % SLOT_FLOATS {
                0 => 0.01 + initial::normal(3, i as u64).abs() as f32,
                _ => (i % 5 / 4) as f32,
            });
            let floats: Vec<f32> = floats.collect();
            let partials = device.buffer("partials", Elem::F32, floats.len()).expect("buffer").all();
            device.upload(&partials, &floats).expect("upload");
            let scalars = scalars(device, 2.5);
            let last = (slots.finite.div_ceil(BLOCK_SLOTS) - 1) as u32;
            let program = grad_norm::finish_relay(fabric, &partials, slots, 1.0, &scalars).expect("relay");
            let terms = Operand::of(&partials, move |_, block, at| {
                let slot = (at / SLOT_FLOATS).checked_sub(slots.first).filter(|slot| *slot < slots.finite);
                slot.is_some_and(|slot| slot / BLOCK_SLOTS == block as usize)
            });
            let derived = Operand::of(&scalars, move |_, block, at| {
                block == last && [LOSS, GRAD_NORM, CLIP_SCALE, NON_FINITE].contains(&at)
            });
            Example { program: Box::new(program), operands: vec![terms, derived] }
        });
    }
}
