//! Rotary position embedding: within the bound on every device; lengths stay, turning back gives the input, scores depend
//! on distances alone; the gradient against central differences in f64; both layouts are one up to the order of columns;
//! what does not turn stays to the bit; equal bits for any number of host threads. Frequencies against their formula.

use crate::rig;
use gaufre::device::Device;
use gaufre::program::rotary::{self, Layout, Rotary, Scaling};
use gaufre::program::{EPS, Matrix, check, initial};

#[test]
fn within_bound_on_every_device() {
    for device in rig::devices("rotary") {
        check::assert_within_bound(&rotary::TURN, &device);
    }
}

/// A bound that nothing comes near proves nothing.
#[test]
fn bound_is_tight() {
    let reports = check::run(&rotary::TURN, &rig::host(), 2).unwrap();
    let worst = reports.iter().map(|r| r.worst).fold(0.0, f64::max);
    assert!(worst > 0.01, "worst error is {worst:.1e} of its bound");
}

const LAYOUTS: [Layout; 2] = [Layout::Halves, Layout::Interleaved];
const POSITIONS: usize = 40;

fn normal(len: usize, seed: u64) -> Vec<f32> {
    (0..len).map(|i| (1024.0 * initial::normal(seed, i as u64)).round() as f32 / 1024.0).collect()
}

fn matrix(device: &Device, rows: usize, cols: usize, values: &[f32]) -> Matrix {
    let matrix = Matrix::new(device, "matrix", rows, cols).unwrap();
    matrix.upload(device, values).unwrap();
    matrix
}

fn table(device: &Device, dims: usize) -> Matrix {
    rotary::table(device, "angles", POSITIONS, &rotary::frequencies(dims, 100.0, None)).unwrap()
}

/// Three heads of 10 columns, of which 6 turn, in sequences of 7 from position 2 on.
fn partial(layout: Layout) -> Rotary {
    Rotary { heads: 3, head_size: 10, dims: 6, layout, seq_len: 7, start: 2 }
}

const ROWS: usize = 14;
const COLS: usize = 30;

/// What becomes of the rows of a dense matrix.
fn turned(device: &Device, shape: &Rotary, values: &[f32], inverse: bool) -> Vec<f64> {
    let cols = shape.heads * shape.head_size;
    let x = matrix(device, values.len() / cols, cols, values);
    rotary::run(device, shape, &table(device, shape.dims), &x, inverse).unwrap();
    x.download_f64(device).unwrap()
}

/// Columns of a row that are pairs.
fn pairs(shape: &Rotary) -> Vec<(usize, usize)> {
    let half = shape.dims / 2;
    let pair = |i: usize| match shape.layout {
        Layout::Halves => (i, i + half),
        Layout::Interleaved => (2 * i, 2 * i + 1),
    };
    let of_head = |head: usize| (0..half).map(&pair).map(move |(a, b)| (head + a, head + b));
    (0..shape.heads).flat_map(|head| of_head(head * shape.head_size)).collect()
}

/// A pair keeps its length but for what rounding cosine and sine to f32 takes: a relative EPS each, so twice that of the
/// sum of their squares. It is no identity either: by the first radian the first pair has turned.
#[test]
fn lengths_stay() {
    let oracle = Device::oracle().unwrap();
    for shape in LAYOUTS.map(partial) {
        let before = normal(ROWS * COLS, 1);
        let after = turned(&oracle, &shape, &before, false);
        for r in 0..ROWS {
            for (a, b) in pairs(&shape).into_iter().map(|(a, b)| (r * COLS + a, r * COLS + b)) {
                let square = |v: [f64; 2]| v[0] * v[0] + v[1] * v[1];
                let old = square([before[a].into(), before[b].into()]);
                let new = square([after[a], after[b]]);
                assert!((new - old).abs() <= 2.0 * EPS * (1.0 + 2.0 * EPS) * old, "{new} for {old}");
            }
        }
        assert!((0..ROWS).all(|r| after[r * COLS] != f64::from(before[r * COLS])));
    }
}

/// Each of two turns rounds two products and their sum, of magnitudes that add up to at most |a| + |b| of its pair; the
/// first errors are turned along, so a sum of two enters, and |a| + |b| grows by at most a root of 2. Cosine and sine
/// are off by EPS each, which makes the two turns 2 EPS too long or too short.
#[test]
fn turned_back_is_as_before() {
    for device in rig::devices("rotary") {
        for shape in LAYOUTS.map(partial) {
            let before = normal(ROWS * COLS, 1);
            let x = matrix(&device, ROWS, COLS, &before);
            let table = table(&device, shape.dims);
            rotary::run(&device, &shape, &table, &x, false).unwrap();
            rotary::run(&device, &shape, &table, &x, true).unwrap();
            let after = x.download(&device).unwrap();
            let each = 2.0 * EPS;
            let relative = 2.0 * each + std::f64::consts::SQRT_2 * each + 2.0 * EPS;
            for r in 0..ROWS {
                for (a, b) in pairs(&shape).into_iter().map(|(a, b)| (r * COLS + a, r * COLS + b)) {
                    let allowed = relative * f64::from(before[a].abs() + before[b].abs());
                    for i in [a, b] {
                        let error = f64::from(after[i]) - f64::from(before[i]);
                        assert!(error.abs() <= allowed, "{}, {i}: off by {error:e}", device.name());
                    }
                }
            }
        }
    }
}

/// The product of a query and a key depends on how far apart they stand, not on where.
#[test]
fn scores_depend_on_distances_alone() {
    let oracle = Device::oracle().unwrap();
    for layout in LAYOUTS {
        let shape = Rotary { heads: 1, head_size: 16, dims: 16, layout, seq_len: 1, start: 0 };
        let (q, k) = (normal(16, 1), normal(16, 2));
        let at = |values: &[f32], start| turned(&oracle, &Rotary { start, ..shape.clone() }, values, false);
        let score = |m, n| at(&q, m).iter().zip(at(&k, n)).map(|(q, k)| q * k).sum::<f64>();
        // Each rotation of each score is off by EPS of its terms, cosine and sine.
        let terms = pairs(&shape).into_iter().map(|(a, b)| (q[a].abs() + q[b].abs()) * (k[a].abs() + k[b].abs()));
        let allowed = 4.0 * EPS * (1.0 + EPS) * f64::from(terms.sum::<f32>());
        for (m, n) in [(0, 0), (5, 0), (3, 9), (1, 7)] {
            let near = score(m, n);
            for shift in [1, 13, POSITIONS - 10] {
                let far = score(m + shift, n + shift);
                assert!((near - far).abs() <= allowed, "{m} and {n}, {shift} on: {far} for {near}");
            }
        }
        assert!((score(5, 0) - score(0, 5)).abs() > allowed, "the direction counts");
    }
}

/// Columns in the order of one layout, turned and put back, are the other's bits.
#[test]
fn layouts_are_permutations_of_each_other() {
    let [halves, interleaved] = LAYOUTS.map(partial);
    let moves: Vec<_> = pairs(&halves).into_iter().zip(pairs(&interleaved)).collect();
    for device in rig::devices("rotary") {
        let values = normal(ROWS * COLS, 1);
        let mut moved = values.clone();
        for (r, (h, i)) in (0..ROWS).flat_map(|r| moves.iter().map(move |pair| (r * COLS, pair))) {
            (moved[r + i.0], moved[r + i.1]) = (values[r + h.0], values[r + h.1]);
        }
        let (plain, moved) = (turned(&device, &halves, &values, false), turned(&device, &interleaved, &moved, false));
        for (r, (h, i)) in (0..ROWS).flat_map(|r| moves.iter().map(move |pair| (r * COLS, pair))) {
            assert_eq!([plain[r + h.0], plain[r + h.1]], [moved[r + i.0], moved[r + i.1]], "{}", device.name());
        }
    }
}

#[test]
fn gradient_agrees_with_central_differences() {
    let oracle = Device::oracle().unwrap();
    for shape in LAYOUTS.map(partial) {
        let (values, cotangent) = (normal(ROWS * COLS, 1), normal(ROWS * COLS, 2));
        let loss = |values: &[f32]| -> f64 {
            turned(&oracle, &shape, values, false).iter().zip(&cotangent).map(|(y, &dy)| y * f64::from(dy)).sum()
        };
        let gradient = turned(&oracle, &shape, &cotangent, true);
        let step = 1.0f32 / 256.0;
        // The map is linear: differences have no truncation, only the rounding of f64 in sums of so many terms.
        let terms: f64 = values.iter().zip(&cotangent).map(|(x, dy)| 2.0 * f64::from((x.abs() + 1.0) * dy.abs())).sum();
        let allowed = f64::EPSILON * (ROWS * COLS) as f64 * terms / f64::from(step);
        for at in 0..values.len() {
            let moved = |step: f32| {
                let mut values = values.clone();
                values[at] += step;
                loss(&values)
            };
            let slope = (moved(step) - moved(-step)) / (2.0 * f64::from(step));
            assert!((gradient[at] - slope).abs() <= allowed, "{at}: {} against {slope}", gradient[at]);
        }
    }
}

/// In columns 5.. of a wider matrix, two of ten rows aside.
#[test]
fn what_does_not_turn_stays_to_the_bit() {
    for device in rig::devices("rotary") {
        for (shape, inverse) in LAYOUTS.map(partial).into_iter().zip([false, true]) {
            let values = normal(ROWS * 41, 1);
            let wide = matrix(&device, ROWS, 41, &values);
            let part = wide.rows(1, 9).columns(5, COLS);
            let picked = part.download(&device).unwrap();
            rotary::run(&device, &shape, &table(&device, shape.dims), &part, inverse).unwrap();
            let (now, alone) = (wide.download(&device).unwrap(), turned(&device, &shape, &picked, inverse));
            let turning: Vec<usize> = pairs(&shape).into_iter().flat_map(|(a, b)| [a, b]).collect();
            for (at, now) in now.iter().enumerate() {
                let (r, c) = ((at / 41).wrapping_sub(1), (at % 41).wrapping_sub(5));
                if r < 9 && turning.contains(&c) {
                    assert_eq!(f64::from(*now), alone[r * COLS + c], "{} at {at}", device.name());
                } else {
                    assert_eq!(now.to_bits(), values[at].to_bits(), "{} at {at}", device.name());
                }
            }
        }
    }
}

/// A row decoded alone, at its position, has the bits of the row in its sequence.
#[test]
fn a_row_alone_gives_the_bits_of_the_row_in_its_sequence() {
    for device in rig::devices("rotary") {
        for shape in LAYOUTS.map(partial) {
            let values = normal(ROWS * COLS, 1);
            let whole = turned(&device, &shape, &values, false);
            for r in 0..ROWS {
                let alone = Rotary { seq_len: 1, start: shape.start + r % shape.seq_len, ..shape.clone() };
                let range = r * COLS..(r + 1) * COLS;
                assert_eq!(turned(&device, &alone, &values[range.clone()], false), whole[range], "{}", device.name());
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_threads() {
    for layout in LAYOUTS {
        let shape = Rotary { heads: 5, head_size: 64, dims: 48, layout, seq_len: 33, start: 3 };
        let values = normal(150 * 320, 1);
        let run = |threads| turned(&Device::host(threads).unwrap(), &shape, &values, false);
        assert_eq!(run(1), run(2));
        assert_eq!(run(1), run(3));
    }
}

#[test]
#[should_panic(expected = "lacks some of 41 positions")]
fn a_position_past_the_table_is_refused() {
    let device = Device::host(1).unwrap();
    let shape = Rotary { start: POSITIONS, seq_len: 1, ..partial(Layout::Halves) };
    turned(&device, &shape, &normal(COLS, 1), false);
}

#[test]
#[should_panic(expected = "3 columns are no pairs")]
fn odd_columns_are_refused() {
    rotary::frequencies(3, 1e4, None);
}

/// Three roundings to f32 on the way (exponent, power, reciprocal), the first of which the power magnifies.
#[test]
fn frequencies_are_those_of_the_formula() {
    for (dims, base) in [(2, 1e4), (64, 1e4), (96, 1e4), (128, 5e5), (10, 1e6)] {
        let frequencies = rotary::frequencies(dims, base, None);
        assert_eq!(frequencies.len(), dims / 2);
        assert_eq!(frequencies[0], 1.0);
        for (i, f) in frequencies.iter().enumerate() {
            let exponent = 2.0 * i as f64 / dims as f64;
            let want = base.powf(-exponent);
            let relative = EPS * (2.0 + exponent * base.ln()) * (1.0 + EPS);
            assert!((f - want).abs() <= relative * want, "{dims}, {base}, {i}: {f} for {want}");
            assert_eq!(*f, f64::from(*f as f32), "an f32");
        }
    }
}

fn llama() -> Scaling {
    Scaling { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192 }
}

#[test]
fn scaling_keeps_short_waves_and_slows_long_ones() {
    let (plain, scaled) = (rotary::frequencies(128, 5e5, None), rotary::frequencies(128, 5e5, Some(&llama())));
    let mut seen = [0; 3];
    for (f, got) in plain.iter().zip(scaled) {
        let wavelength = std::f64::consts::TAU / f;
        let (want, kind) = if wavelength < 8192.0 / 4.0 {
            (*f, 0)
        } else if wavelength > 8192.0 {
            (f / 8.0, 1)
        } else {
            let smooth = (8192.0 / wavelength - 1.0) / 3.0;
            ((1.0 - smooth) * f / 8.0 + smooth * f, 2)
        };
        seen[kind] += 1;
        // One rounding to f32; that of the f64 arithmetic before it is as nothing beside it.
        assert!((got - want).abs() <= EPS * (1.0 + EPS) * want, "{got} for {want}");
        assert!(kind == 2 || got == want, "a power of two divides exactly");
    }
    assert!(seen.iter().all(|&n| n > 0), "{seen:?}");
}

#[test]
fn the_table_holds_cosines_then_sines() {
    let device = rig::host();
    let frequencies = rotary::frequencies(6, 1e4, None);
    let values = rotary::table(&device, "angles", 1000, &frequencies).unwrap().download(&device).unwrap();
    for (position, row) in values.chunks(6).enumerate() {
        for (i, f) in frequencies.iter().enumerate() {
            let angle = position as f64 * f;
            assert_eq!([row[i], row[3 + i]], [angle.cos() as f32, angle.sin() as f32], "position {position}");
        }
    }
}

#[test]
fn settings_are_read_as_they_are_written() {
    assert_eq!(LAYOUTS.map(|l| serde_json::to_string(&l).unwrap()), ["\"halves\"", "\"interleaved\""]);
    let text = serde_json::to_string(&llama()).unwrap();
    assert_eq!(serde_json::from_str::<Scaling>(&text).unwrap(), llama());
    assert!(serde_json::from_str::<Scaling>(&text.replace("factor\":8.0", "facto\":8.0")).is_err());
    assert!(serde_json::from_str::<Scaling>(&text.replace('}', ",\"more\":1}")).is_err());
    let unsound = [
        Scaling { factor: 0.0, ..llama() },
        Scaling { factor: f64::NAN, ..llama() },
        Scaling { low_freq_factor: 4.0, ..llama() },
        Scaling { low_freq_factor: 0.0, ..llama() },
        Scaling { high_freq_factor: f64::INFINITY, ..llama() },
        Scaling { original_context: 0, ..llama() },
    ];
    assert!(llama().is_sound() && unsound.iter().all(|s| !s.is_sound()));
}
