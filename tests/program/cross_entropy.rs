//! Cross-entropy: every kernel within its bound; the gradient against central differences in f64; chunked equals whole;
//! ignored rows, targets outside of the vocabulary and logits that are not finite; and all of it along lines of tiles.

use crate::fabric::relay::{Example, Operand, assert_is_sound, fused, stepped};
use crate::program::matmul::normal;
use crate::rig;
use gaufre::device::{Device, Elem, View};
use gaufre::program::cross_entropy::{self, BLOCK_COLS, BLOCK_ROWS, IGNORE};
use gaufre::program::schedule::Fabric;
use gaufre::program::{EPS, Matrix, check, initial};

#[test]
fn within_bound_on_every_device() {
    for device in rig::devices("cross_entropy") {
        for program in cross_entropy::PROGRAMS {
            check::assert_within_bound(program, &device);
        }
    }
}

const ROWS: usize = 5;
const VOCABULARY: usize = 83;
const TARGETS: [u32; ROWS] = [0, 82, IGNORE, 41, 16];

fn logits() -> Vec<f32> {
    (0..(ROWS * VOCABULARY) as u64).map(|i| 3.0 * initial::normal(5, i) as f32).collect()
}

/// Losses and gradient of all logits, `chunk` columns at a time.
fn run(fabric: &Fabric, logits: &[f32], targets: &[u32], chunk: usize, scale: f32) -> (Vec<f64>, Vec<f64>) {
    let (device, rows) = (fabric.device(), targets.len());
    let ids = device.buffer("targets", Elem::U32, rows).expect("buffer").all();
    device.upload(&ids, targets).expect("upload");
    let state = Matrix::new(device, "state", rows, 3).expect("buffer");
    let losses = Matrix::new(device, "losses", 1, rows).expect("buffer");
    let vocabulary = logits.len() / rows;
    let part = |first: usize| {
        let cols = chunk.min(vocabulary - first);
        let values: Vec<f32> = logits.chunks(vocabulary).flat_map(|row| &row[first..first + cols]).copied().collect();
        let matrix = Matrix::new(device, "logits", rows, cols).expect("buffer");
        matrix.upload(device, &values).expect("upload");
        matrix
    };
    for first in (0..vocabulary).step_by(chunk) {
        cross_entropy::forward(fabric, &part(first), &ids, first, &state, first == 0).expect("forward");
    }
    cross_entropy::finish(device, &ids, &state, &losses).expect("finish");
    let mut gradient = vec![0.0; logits.len()];
    for first in (0..vocabulary).step_by(chunk) {
        let matrix = part(first);
        cross_entropy::backward(fabric, &matrix, &ids, &state, first, scale).expect("backward");
        let values = matrix.download_f64(device).expect("download");
        for (r, row) in values.chunks(matrix.cols).enumerate() {
            gradient[r * vocabulary + first..][..matrix.cols].copy_from_slice(row);
        }
    }
    (losses.download_f64(device).expect("download"), gradient)
}

#[test]
fn gradient_agrees_with_central_differences() {
    let oracle = fused(&Device::oracle().expect("oracle"));
    // Steps of a power of two, so that the logits stay exact in f32.
    let (x, step, scale) =
        (logits().iter().map(|x| (x * 1024.0).round() / 1024.0).collect::<Vec<_>>(), 2f32.powi(-10), 0.5);
    for chunk in [1, 7, 40, VOCABULARY, 100] {
        let (_, gradient) = run(&oracle, &x, &TARGETS, chunk, scale);
        for i in (0..x.len()).step_by(17).chain([0, VOCABULARY + 82]) {
            let loss = |sign: f32| {
                let mut moved = x.clone();
                moved[i] += sign * step;
                run(&oracle, &moved, &TARGETS, chunk, scale).0.iter().sum::<f64>()
            };
            let difference = f64::from(scale) * (loss(1.0) - loss(-1.0)) / f64::from(2.0 * step);
            // The third derivative of the log of a sum of exponentials is below 1/6: step^2 / 6 times that.
            let bound = f64::from(step * step) / 36.0 + 1e-12;
            assert!((difference - gradient[i]).abs() <= bound, "chunk {chunk}, {i}: {difference} {}", gradient[i]);
        }
    }
}

#[test]
fn chunks_agree_with_the_whole_on_every_device() {
    let x = logits();
    let (want, want_gradient) = run(&fused(&Device::oracle().expect("oracle")), &x, &TARGETS, VOCABULARY, 1.0);
    let largest = x.iter().fold(0.0f64, |m, x| m.max(f64::from(x.abs())));
    // The sum of VOCABULARY exponentials of differences up to 2 * largest, rescaled at each chunk, and its logarithm.
    let relative = EPS * (VOCABULARY as f64 + 2.0 * (7.0 + 10.0 * largest) + 16.0 + 4.0 * largest);
    for device in rig::devices("cross_entropy") {
        for chunk in [1, 8, 30, VOCABULARY] {
            let (losses, gradient) = run(&fused(&device), &x, &TARGETS, chunk, 1.0);
            for (found, want) in losses.iter().zip(&want).chain(gradient.iter().zip(&want_gradient)) {
                assert!((found - want).abs() <= relative, "chunk {chunk} on {}: {found} {want}", device.name());
            }
            assert_eq!(losses[2], 0.0, "an ignored row has no loss");
            assert!(gradient[2 * VOCABULARY..3 * VOCABULARY].iter().all(|&g| g == 0.0), "nor a gradient");
        }
    }
}

#[test]
fn what_is_not_finite_is_seen_in_the_loss() {
    for device in rig::devices("cross_entropy") {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in [0, 37, 82] {
                let mut x = logits();
                x[VOCABULARY + place] = bad;
                for chunk in [30, VOCABULARY] {
                    let (losses, _) = run(&fused(&device), &x, &TARGETS, chunk, 1.0);
                    let finite: Vec<bool> = losses.iter().map(|l| l.is_finite()).collect();
                    assert_eq!(finite, [true, false, true, true, true], "{bad} at {place} on {}", device.name());
                }
            }
        }
        let (losses, _) = run(&fused(&device), &logits(), &[0, VOCABULARY as u32, IGNORE, 1, u32::MAX - 1], 30, 1.0);
        let finite: Vec<bool> = losses.iter().map(|l| l.is_finite()).collect();
        assert_eq!(finite, [true, false, true, true, false], "targets outside on {}", device.name());
    }
}

#[test]
fn equal_bits_for_any_number_of_threads() {
    let x: Vec<f32> = (0..9 * 1031).map(|i| 3.0 * initial::normal(6, i) as f32).collect();
    let targets = [3, 1030, 7, IGNORE, 4, 5, 6, 500, 1];
    let runs = [1, 2, 3].map(|threads| run(&fused(&Device::host(threads).expect("host")), &x, &targets, 512, 0.1));
    assert!(runs[1] == runs[0] && runs[2] == runs[0]);
}

#[test]
fn sums_accumulate_in_their_slot() {
    for device in rig::devices("cross_entropy") {
        let losses = Matrix::new(&device, "losses", 1, 3).expect("buffer");
        losses.upload(&device, &[1.0, 2.0, 4.0]).expect("upload");
        let scalars = device.buffer("scalars", Elem::F32, 64).expect("buffer").all();
        cross_entropy::sum(&fused(&device), &losses, 0.5, &scalars, 2, false).expect("sum");
        cross_entropy::sum(&fused(&device), &losses, 0.25, &scalars, 2, true).expect("sum");
        let found = device.download(&scalars).expect("download");
        assert_eq!((found[1], found[2], found[3]), (0.0, 5.25, 0.0), "{}", device.name());
    }
}

/// Rows of a chunk of 3 blocks, the last of them not whole, and of no whole vec4.
const WIDE: usize = 2 * BLOCK_COLS + 37;
/// First column of that chunk.
const FIRST: usize = 7;

/// Targets in each block, at an edge, before the chunk, and none.
fn wide_targets(device: &Device) -> View {
    let at = |col: usize| (FIRST + col) as u32;
    let ids = [at(3), at(BLOCK_COLS), at(WIDE - 1), at(2 * BLOCK_COLS - 1), 2, IGNORE, at(BLOCK_COLS + 50)];
    let targets = device.buffer("targets", Elem::U32, ids.len()).unwrap().all();
    device.upload(&targets, &ids).unwrap();
    targets
}

/// Logits and a state that a chunk before could have left, for those targets.
fn wide(fabric: &Fabric) -> (Matrix, Matrix, View) {
    let (device, targets) = (fabric.device(), wide_targets(fabric.device()));
    let (logits, state) = (normal(device, targets.len, WIDE, 1), normal(device, targets.len, 3, 2));
    let sums: Vec<f32> = state.download(device).unwrap().into_iter().map(|x| x.abs() + 2.0).collect();
    state.upload(device, &sums).unwrap();
    (logits, state, targets)
}

fn owned_logits(logits: &Matrix) -> Operand {
    Operand::matrix(logits, |line, block, row, col| row == line as usize && col / BLOCK_COLS == block as usize)
}

#[test]
fn a_chunk_is_a_relay_along_its_rows() {
    for first in [true, false] {
        assert_is_sound("cross_entropy_forward", &|fabric| {
            let (logits, state, targets) = wide(fabric);
            let program = cross_entropy::forward_relay(fabric, &logits, &targets, FIRST, &state, first).unwrap();
            let held =
                Operand::matrix(&state, |line, block, row, _| row == line as usize && (block == 0 || block == 2));
            let told = Operand::of(&targets, |line, _, row| row == line as usize);
            let held = if first { held.unread() } else { held };
            Example { program: Box::new(program), operands: vec![owned_logits(&logits), held, told] }
        });
    }
}

#[test]
fn the_gradient_is_a_relay_along_its_rows() {
    assert_is_sound("cross_entropy_backward", &|fabric| {
        let (logits, state, targets) = wide(fabric);
        let program = cross_entropy::backward_relay(&logits, &targets, &state, FIRST, 0.3).unwrap();
        let held = Operand::matrix(&state, |line, block, row, _| row == line as usize && block == 0);
        let told = Operand::of(&targets, |line, _, row| row == line as usize);
        Example { program: Box::new(program), operands: vec![owned_logits(&logits), held, told] }
    });
}

#[test]
fn the_sum_of_losses_is_a_relay_down_them() {
    for (rows, accumulate) in [(3 * BLOCK_ROWS + 5, false), (2 * BLOCK_ROWS, true), (3, true)] {
        assert_is_sound("cross_entropy_sum", &|fabric| {
            let device = fabric.device();
            let (losses, scalars) = (normal(device, 1, rows, 3), normal(device, 1, 8, 4));
            let last = (rows.div_ceil(BLOCK_ROWS) - 1) as u32;
            let program = cross_entropy::sum_relay(fabric, &losses, 0.25, &scalars.view, 2, accumulate);
            let terms = Operand::of(&losses.view, |_, block, at| at / BLOCK_ROWS == block as usize);
            let total = Operand::of(&scalars.view, move |_, block, at| at == 2 && block == last);
            let total = if accumulate { total } else { total.unread() };
            Example { program: Box::new(program), operands: vec![terms, total] }
        });
    }
}

#[test]
fn chunks_along_lines_of_tiles_give_the_bits_of_fused_ones() {
    let (rows, vocabulary) = (5, 3 * BLOCK_COLS + 90);
    let x: Vec<f32> = (0..(rows * vocabulary) as u64).map(|i| 3.0 * initial::normal(8, i) as f32).collect();
    let targets = [0, 857, IGNORE, 300, 500];
    let devices = rig::devices("cross_entropy in supersteps");
    for device in devices.into_iter().chain([Device::reference().unwrap(), Device::oracle().unwrap()]) {
        for chunk in [300, 520, vocabulary] {
            let want = run(&fused(&device), &x, &targets, chunk, 0.5);
            for fabric in stepped(&device) {
                assert!(run(&fabric, &x, &targets, chunk, 0.5) == want, "{chunk} on {}", device.name());
            }
        }
    }
}

#[test]
fn what_is_not_finite_is_seen_along_lines_of_tiles() {
    let cols = 2 * BLOCK_COLS + 5;
    for device in rig::devices("cross_entropy in supersteps") {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in [0, BLOCK_COLS + 9, cols - 1] {
                let mut x: Vec<f32> = (0..2 * cols as u64).map(|i| initial::normal(7, i) as f32).collect();
                x[cols + place] = bad;
                for fabric in stepped(&device) {
                    let finite =
                        run(&fabric, &x, &[1, 2], cols, 1.0).0.iter().map(|l| l.is_finite()).collect::<Vec<_>>();
                    assert_eq!(finite, [true, false], "{bad} at {place} on {}", device.name());
                }
            }
        }
    }
}
