//! Embedding: within the bound on every device; the gradient against central differences in f64; panels applied one after
//! another give the bits of the whole table; equal bits for any number of host threads.

use crate::rig;
use gaufre::device::{Device, Elem, View};
use gaufre::program::embedding::{self, Occurrences};
use gaufre::program::{Matrix, check, initial};

const ROWS: usize = 37;
const COLS: usize = 84;
const VOCABULARY: usize = 11;

#[test]
fn within_bound_on_every_device() {
    for device in rig::devices("embedding") {
        for program in embedding::PROGRAMS {
            check::assert_within_bound(program, &device);
        }
    }
}

fn normal(len: usize, seed: u64) -> Vec<f32> {
    (0..len).map(|i| initial::normal(seed, i as u64) as f32).collect()
}

fn ids() -> Vec<u32> {
    (0..ROWS as u64).map(|i| initial::word(9, i) % VOCABULARY as u32).collect()
}

fn list(device: &Device, words: &[u32]) -> View {
    let buffer = device.buffer("list", Elem::U32, words.len()).unwrap();
    device.upload(&buffer.all(), words).unwrap();
    buffer.all()
}

fn matrix(device: &Device, rows: usize, cols: usize, values: &[f32]) -> Matrix {
    let matrix = Matrix::new(device, "matrix", rows, cols).unwrap();
    matrix.upload(device, values).unwrap();
    matrix
}

/// Panels of the table: (first row, rows).
const WHOLE: &[(usize, usize)] = &[(0, VOCABULARY)];
const PIECES: &[(usize, usize)] = &[(0, 4), (4, 1), (5, 6)];

fn gather(device: &Device, panels: &[(usize, usize)], table: &[f32], out: &Matrix, accumulate: bool) {
    let ids = list(device, &ids());
    for &(first, rows) in panels {
        let panel = matrix(device, rows, COLS, &table[first * COLS..][..rows * COLS]);
        embedding::forward(device, &ids, &panel, first, out, accumulate).unwrap();
    }
}

fn scatter(device: &Device, panels: &[(usize, usize)], dx: &[f32], before: &[f32]) -> Vec<f64> {
    let found = Occurrences::of(&ids());
    let [rows, starts, ids] = [&found.rows, &found.starts, &found.ids].map(|words| list(device, words));
    let dx = matrix(device, ROWS, COLS, dx);
    let mut table = Vec::new();
    for &(first, count) in panels {
        let panel = matrix(device, count, COLS, &before[first * COLS..][..count * COLS]);
        embedding::backward(device, &rows, &starts, &ids, found.ids.len(), &dx, &panel, first).unwrap();
        table.extend(panel.download_f64(device).unwrap());
    }
    table
}

#[test]
fn panels_give_the_bits_of_the_whole_table() {
    let (table, dx) = (normal(VOCABULARY * COLS, 1), normal(ROWS * COLS, 2));
    for device in rig::devices("embedding") {
        for accumulate in [false, true] {
            let forward = |panels| {
                let out = matrix(&device, ROWS, COLS, &dx);
                gather(&device, panels, &table, &out, accumulate);
                out.download(&device).unwrap()
            };
            assert_eq!(forward(WHOLE), forward(PIECES), "{}", device.name());
        }
        assert_eq!(scatter(&device, WHOLE, &dx, &table), scatter(&device, PIECES, &dx, &table), "{}", device.name());
    }
}

/// Gathering is linear: half the difference of the outputs for table + direction and table - direction is the derivative
/// along the direction, whatever its length. All values are small integers, so that nothing is rounded.
#[test]
fn gradient_agrees_with_central_differences() {
    let oracle = Device::oracle().unwrap();
    let whole = |len, seed| normal(len, seed).iter().map(|x| (8.0 * x).round()).collect::<Vec<f32>>();
    let (table, direction) = (whole(VOCABULARY * COLS, 1), whole(VOCABULARY * COLS, 2));
    let (cotangent, before) = (whole(ROWS * COLS, 3), whole(VOCABULARY * COLS, 4));
    let outputs = |sign: f32| {
        let moved: Vec<f32> = table.iter().zip(&direction).map(|(t, d)| t + sign * d).collect();
        let out = Matrix::new(&oracle, "out", ROWS, COLS).unwrap();
        gather(&oracle, PIECES, &moved, &out, false);
        out.download_f64(&oracle).unwrap()
    };
    let (above, below) = (outputs(1.0), outputs(-1.0));
    let want: f64 = (0..ROWS * COLS).map(|i| f64::from(cotangent[i]) * (above[i] - below[i]) / 2.0).sum();
    let gradient = scatter(&oracle, PIECES, &cotangent, &before);
    let got: f64 = (0..gradient.len()).map(|i| (gradient[i] - f64::from(before[i])) * f64::from(direction[i])).sum();
    assert_eq!(got, want);
}

#[test]
fn occurrences_are_sorted_by_id_then_row() {
    let found = Occurrences::of(&[7, 3, 7, 0, 3, 7]);
    assert_eq!(found, Occurrences { rows: vec![3, 1, 4, 0, 2, 5], starts: vec![0, 1, 3, 6], ids: vec![0, 3, 7] });
    assert_eq!(Occurrences::of(&[]), Occurrences { rows: vec![], starts: vec![0], ids: vec![] });
    assert_eq!(Occurrences::of(&[u32::MAX, 0]).ids, [0, u32::MAX]);
}

#[test]
fn bits_do_not_depend_on_threads() {
    let (table, dx) = (normal(VOCABULARY * COLS, 1), normal(ROWS * COLS, 2));
    let run = |threads: usize| {
        let device = Device::host(threads).unwrap();
        let out = matrix(&device, ROWS, COLS, &dx);
        gather(&device, PIECES, &table, &out, true);
        (out.download(&device).unwrap(), scatter(&device, PIECES, &dx, &table))
    };
    assert_eq!(run(1), run(2));
    assert_eq!(run(1), run(3));
}
