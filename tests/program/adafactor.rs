//! Adafactor: each program within its bound; whole steps on the oracle against PyTorch's algorithm as a plain f64 loop, for
//! matrices and vectors; equal bits for any cut into panels and any number of threads; nothing written where a value is not
//! finite.

use crate::rig;
use gaufre::device::{Device, Elem, View};
use gaufre::program::adafactor::{self, Adafactor, Scratch, Tensor};
use gaufre::program::grad_norm::{CLIP_SCALE, GRANULE_ROWS, NON_FINITE, SCALARS};
use gaufre::program::{Matrix, check, initial};

const HYPER: Adafactor =
    Adafactor { lr: 0.01, beta2_decay: -0.8, eps1: None, eps2: 1e-3, clip_threshold: 1.0, weight_decay: 0.1, step: 1 };

#[test]
fn within_bound_on_every_device() {
    for device in rig::devices("adafactor") {
        for program in adafactor::PROGRAMS {
            check::assert_within_bound(program, &device);
        }
    }
}

fn values_of(seed: u64, n: usize, size: f32) -> Vec<f32> {
    (0..n as u64).map(|i| size * initial::normal(seed, i) as f32).collect()
}

/// One tensor on a device, with working memory for panels of any size.
struct Rig {
    weights: Matrix,
    gradient: Matrix,
    row: Matrix,
    column: Matrix,
    scalars: View,
    scratch: Scratch,
}

impl Rig {
    fn new(device: &Device, (rows, cols): (usize, usize), size: f32, clip: f32) -> Rig {
        let matrix = |label: &str, rows, cols| Matrix::new(device, label, rows, cols).expect("buffer");
        let scalars = device.buffer("scalars", Elem::F32, SCALARS).expect("buffer").all();
        let scratch = Scratch::new(device, &[(rows, cols, rows), (3, 8, 3)]).expect("buffers");
        let rig = Rig {
            weights: matrix("weights", rows, cols),
            gradient: matrix("gradient", rows, cols),
            row: matrix("row", 1, rows),
            column: matrix("column", 1, cols),
            scalars,
            scratch,
        };
        rig.weights.upload(device, &values_of(1, rows * cols, size)).expect("upload");
        rig.set(device, clip, 0.0);
        rig
    }

    fn set(&self, device: &Device, clip: f32, bad: f32) {
        let mut values = [0.0; SCALARS];
        (values[CLIP_SCALE], values[NON_FINITE]) = (clip, bad);
        device.upload(&self.scalars, &values).expect("upload");
    }

    /// A step over panels that begin at 0 and at `cuts`.
    fn step(&self, device: &Device, hyper: &Adafactor, cuts: &[usize]) {
        let Rig { weights, gradient, row, column, scalars, scratch } = self;
        let tensor = Tensor { row, column, scalars, scratch };
        let edges: Vec<usize> = [0].iter().chain(cuts).chain(&[weights.rows]).copied().collect();
        let panels: Vec<_> = edges
            .windows(2)
            .map(|edge| {
                let [w, g] = [weights, gradient].map(|m| m.rows(edge[0], edge[1] - edge[0]));
                (w, g, edge[0])
            })
            .collect();
        for (_, g, first) in &panels {
            adafactor::sums(device, &tensor, g, *first).expect("sums");
        }
        adafactor::factor(device, hyper, &tensor).expect("factor");
        for (w, g, first) in &panels {
            adafactor::partial(device, hyper, &tensor, w, g, *first).expect("partial");
        }
        adafactor::finish(device, hyper, &tensor).expect("finish");
        for (w, g, first) in &panels {
            adafactor::apply(device, hyper, &tensor, w, g, *first).expect("apply");
        }
    }

    fn run(&self, device: &Device, hyper: &Adafactor, steps: u64, cuts: &[usize], size: f32) {
        let n = self.weights.rows * self.weights.cols;
        for step in 1..=steps {
            self.gradient.upload(device, &values_of(step + 1, n, size)).expect("upload");
            self.step(device, &Adafactor { step, ..*hyper }, cuts);
        }
    }

    fn all(&self, device: &Device) -> [Vec<f64>; 3] {
        [&self.weights, &self.row, &self.column].map(|m| m.download_f64(device).expect("download"))
    }
}

/// `torch.optim.Adafactor` as it stands, at f64.
struct Plain {
    rows: usize,
    cols: usize,
    w: Vec<f64>,
    row: Vec<f64>,
    column: Vec<f64>,
}

impl Plain {
    fn step(&mut self, [lr, eps1, eps2, d, decay]: [f64; 5], t: f64, g: &[f64]) {
        let Plain { rows, cols, w, row, column } = self;
        let (rows, cols) = (*rows, *cols);
        let rms = |x: &[f64]| (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64).sqrt();
        let lerp = |from: &mut f64, to: f64| *from += (to - *from) * t.powf(-0.8);
        let alpha = rms(w).max(eps2) * lr.min(1.0 / t.sqrt());
        w.iter_mut().for_each(|w| *w *= 1.0 - lr * decay);
        let mut variance: Vec<f64>;
        if rows > 1 {
            for (r, row) in row.iter_mut().enumerate() {
                lerp(row, g[r * cols..][..cols].iter().map(|g| g * g).sum::<f64>() / cols as f64);
            }
            for (c, column) in column.iter_mut().enumerate() {
                lerp(column, (0..rows).map(|r| g[r * cols + c].powi(2)).sum::<f64>() / rows as f64);
            }
            let mean = (row.iter().sum::<f64>() / rows as f64).max(eps1);
            variance = row.iter().flat_map(|row| column.iter().map(move |column| row * column / mean)).collect();
        } else {
            column.iter_mut().zip(g).for_each(|(v, g)| lerp(v, g * g));
            variance = column.clone();
        }
        variance.iter_mut().for_each(|v| *v = v.max(eps1 * eps1));
        let update: Vec<f64> = g.iter().zip(&variance).map(|(g, v)| g / v.sqrt()).collect();
        let denominator = (rms(&update) / d).max(1.0);
        w.iter_mut().zip(&update).for_each(|(w, u)| *w -= alpha / denominator * u);
    }
}

#[test]
fn ten_steps_agree_with_a_plain_loop() {
    let oracle = Device::oracle().expect("oracle");
    let eps1 = f64::from(f32::EPSILON);
    // Matrices and a vector; large and small weights; small gradients, where eps1 counts; a clipped update and none.
    for (shape, weight, size, d, lr, decay) in [
        ((5, 13), 1.0f32, 0.5f32, 1.0f32, 0.01f32, 0.1f32),
        ((37, 4), 1e-6, 1e-9, 2.0, 0.5, 0.0),
        ((1, 29), 0.1, 1e-4, 1.0, 0.01, 0.0),
        ((1, 7), 0.1, 1e-8, 1.5, 0.3, 0.01),
    ] {
        let n = shape.0 * shape.1;
        let rig = Rig::new(&oracle, shape, weight, 0.25);
        let hyper = Adafactor { lr, clip_threshold: d, weight_decay: decay, ..HYPER };
        rig.run(&oracle, &hyper, 10, &[], size);
        let wide = |x: Vec<f32>| x.into_iter().map(f64::from).collect::<Vec<_>>();
        let (rows, cols) = shape;
        let mut plain =
            Plain { rows, cols, w: wide(values_of(1, n, weight)), row: vec![0.0; rows], column: vec![0.0; cols] };
        for t in 1..=10 {
            let g: Vec<f64> = wide(values_of(t + 1, n, size)).iter().map(|g| g * 0.25).collect();
            let [lr, d, decay] = [lr, d, decay].map(|x| x.to_string().parse::<f64>().expect("a number"));
            plain.step([lr, eps1, 1e-3, d, decay], t as f64, &g);
        }
        let [w, row, column] = rig.all(&oracle);
        // What settings and shape come to reaches the device as f32, half an ulp each: some ten of them in ten steps.
        let close = |found: &[f64], want: &[f64], size: f64| {
            let tolerance = 100.0 * gaufre::program::EPS;
            found.iter().zip(want).all(|(f, w)| (f - w).abs() <= tolerance * w.abs().max(size))
        };
        assert!(close(&column, &plain.column, 0.0), "columns of {shape:?}");
        assert!(rows == 1 && row == [1.0] || rows > 1 && close(&row, &plain.row, 0.0), "rows of {shape:?}");
        let steps = f64::from(weight.max(1e-3) * lr);
        assert!(close(&w, &plain.w, 10.0 * steps), "weights of {shape:?}");
    }
}

#[test]
fn cuts_and_threads_do_not_change_a_bit() {
    let (rows, cols) = (3 * GRANULE_ROWS + 77, 37);
    let after = |device: &Device, cuts: &[usize]| {
        let rig = Rig::new(device, (rows, cols), 0.02, 0.7);
        rig.run(device, &HYPER, 2, cuts, 0.01);
        rig.all(device)
    };
    let hosts = [1, 2, 3].map(|n| Device::host(n).expect("host"));
    let want = after(&hosts[0], &[]);
    for device in &hosts[1..] {
        assert!(after(device, &[]) == want, "{}", device.name());
    }
    for device in rig::devices("adafactor") {
        let whole = after(&device, &[]);
        for cuts in [&[GRANULE_ROWS][..], &[2 * GRANULE_ROWS], &[GRANULE_ROWS, 2 * GRANULE_ROWS, 3 * GRANULE_ROWS]] {
            assert!(after(&device, cuts) == whole, "{cuts:?} on {}", device.name());
        }
    }
}

#[test]
fn nothing_is_written_where_a_gradient_is_not_finite() {
    for device in rig::devices("adafactor").into_iter().chain([Device::oracle().expect("oracle")]) {
        for shape in [(20, 13), (1, 13)] {
            let rig = Rig::new(&device, shape, 1.0, 1.0);
            rig.run(&device, &HYPER, 1, &[], 0.1);
            let before = rig.all(&device);
            for bad in [f32::NAN, f32::INFINITY] {
                let mut gradient = values_of(3, shape.0 * shape.1, 0.1);
                gradient[5] = bad;
                rig.gradient.upload(&device, &gradient).expect("upload");
                rig.set(&device, 1.0, 1.0);
                rig.step(&device, &Adafactor { step: 2, ..HYPER }, &[]);
                assert!(rig.all(&device) == before, "{bad} was applied on {}", device.name());
            }
            // What a bad step left in the working memory does not reach the next one.
            rig.gradient.upload(&device, &values_of(4, shape.0 * shape.1, 0.1)).expect("upload");
            rig.set(&device, 1.0, 0.0);
            rig.step(&device, &Adafactor { step: 2, ..HYPER }, &[]);
            assert!(rig.all(&device).iter().flatten().all(|x| x.is_finite()), "on {}", device.name());
            assert!(rig.all(&device)[0] != before[0], "on {}", device.name());
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let device = rig::host();
    let Rig { weights, gradient, row, column, scalars, scratch } = Rig::new(&device, (40, 8), 1.0, 1.0);
    let tensor = Tensor { row: &row, column: &column, scalars: &scalars, scratch: &scratch };
    for hyper in [
        Adafactor { step: 0, ..HYPER },
        Adafactor { lr: -1.0, ..HYPER },
        Adafactor { beta2_decay: 0.5, ..HYPER },
        Adafactor { eps1: Some(0.0), ..HYPER },
        Adafactor { eps2: f32::NAN, ..HYPER },
        Adafactor { clip_threshold: 0.5, ..HYPER },
        Adafactor { weight_decay: f32::INFINITY, ..HYPER },
    ] {
        assert!(adafactor::factor(&device, &hyper, &tensor).is_err(), "{hyper:?}");
        assert!(adafactor::apply(&device, &hyper, &tensor, &weights, &gradient, 0).is_err(), "{hyper:?}");
    }
    assert!(adafactor::sums(&device, &tensor, &gradient.rows(0, 8), 8).is_err(), "a panel inside a slot");
    assert!(adafactor::sums(&device, &tensor, &gradient, 16).is_err(), "a panel past the end");
    assert!(adafactor::apply(&device, &HYPER, &tensor, &weights.rows(0, 32), &gradient, 0).is_err());
    let other = Matrix::new(&device, "column", 1, 9).expect("buffer");
    assert!(adafactor::sums(&device, &Tensor { column: &other, ..tensor }, &gradient, 0).is_err());
}
