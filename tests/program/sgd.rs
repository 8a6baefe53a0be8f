//! SGD: within its bound; ten steps on the oracle against a plain f64 loop; momentum 0 is plain gradient descent; nothing
//! written where a value is not finite; equal bits for any number of threads and any panel.

use crate::rig;
use gaufre::device::{Device, Elem, View};
use gaufre::program::grad_norm::{CLIP_SCALE, NON_FINITE, SCALARS};
use gaufre::program::sgd::{self, Sgd};
use gaufre::program::{EPS, Matrix, check, initial};

const HYPER: Sgd = Sgd { lr: 0.01, momentum: 0.9, weight_decay: 0.1, step: 1 };

#[test]
fn within_bound_on_every_device() {
    for device in rig::devices("sgd") {
        check::assert_within_bound(&sgd::APPLY, &device);
    }
}

fn values_of(seed: u64, n: usize) -> Vec<f32> {
    (0..n as u64).map(|i| initial::normal(seed, i) as f32).collect()
}

fn scalars(device: &Device, clip: f32, bad: f32) -> View {
    let view = device.buffer("scalars", Elem::F32, SCALARS).expect("buffer").all();
    let mut values = [0.0; SCALARS];
    (values[CLIP_SCALE], values[NON_FINITE]) = (clip, bad);
    device.upload(&view, &values).expect("upload");
    view
}

/// Weights and momentum after some steps, in panels of some rows.
fn train(device: &Device, shape: (usize, usize), hyper: Sgd, clip: f32, steps: u64, panel: usize) -> [Vec<f64>; 2] {
    let (rows, cols) = shape;
    let [w, g, m] = ["weights", "gradient", "momentum"].map(|label| Matrix::new(device, label, rows, cols).unwrap());
    let scalars = scalars(device, clip, 0.0);
    w.upload(device, &values_of(1, rows * cols)).expect("upload");
    for step in 1..=steps {
        g.upload(device, &values_of(step + 1, rows * cols)).expect("upload");
        for first in (0..rows).step_by(panel) {
            let [w, g, m] = [&w, &g, &m].map(|x| x.rows(first, panel.min(rows - first)));
            sgd::apply(device, &Sgd { step, ..hyper }, &w, &g, &m, &scalars).expect("apply");
        }
    }
    [&w, &m].map(|x| x.download_f64(device).expect("download"))
}

#[test]
fn ten_steps_agree_with_a_plain_loop() {
    let oracle = Device::oracle().expect("oracle");
    for (momentum, weight_decay) in [(0.9, 0.1), (0.0, 0.1), (0.5, 0.0), (0.0, 0.0)] {
        let [lr, mu, decay, clip] = [0.01f32, momentum, weight_decay, 0.25].map(f64::from);
        let mut w: Vec<f64> = values_of(1, 33).into_iter().map(f64::from).collect();
        let mut m = vec![0.0; 33];
        for t in 1..=10 {
            for (i, g) in values_of(t + 1, 33).into_iter().enumerate() {
                let g = f64::from(g) * clip + decay * w[i];
                m[i] = if t == 1 { g } else { mu * m[i] + g };
                w[i] -= lr * if momentum == 0.0 { g } else { m[i] };
            }
        }
        let found = train(&oracle, (3, 11), Sgd { momentum, weight_decay, ..HYPER }, 0.25, 10, 3);
        for (found, want) in found.iter().zip([&w, &m]) {
            assert!(found.iter().zip(want).all(|(f, w)| (f - w).abs() <= 1e-12), "momentum {momentum}");
        }
    }
}

#[test]
fn momentum_zero_is_plain_gradient_descent() {
    let hyper = Sgd { momentum: 0.0, weight_decay: 0.0, lr: 0.5, step: 1 };
    for device in rig::devices("sgd") {
        let [w, _] = train(&device, (2, 9), hyper, 1.0, 1, 2);
        for ((found, w), g) in w.iter().zip(values_of(1, 18)).zip(values_of(2, 18)) {
            let want = f64::from(w) - 0.5 * f64::from(g);
            assert!((found - want).abs() <= 2.0 * EPS * (want.abs() + f64::from(g).abs()), "{}", device.name());
        }
    }
}

#[test]
fn threads_and_panels_do_not_change_a_bit() {
    let after = |device: &Device, panel: usize| train(device, (21, 1001), HYPER, 1.0, 3, panel);
    let hosts = [1, 2, 3].map(|n| Device::host(n).expect("host"));
    let want = after(&hosts[0], 21);
    for device in &hosts[1..] {
        assert!(after(device, 21) == want, "{}", device.name());
    }
    for device in rig::devices("sgd") {
        assert!(after(&device, 21) == after(&device, 4), "{}", device.name());
    }
}

#[test]
fn nothing_is_written_where_a_gradient_is_not_finite() {
    for device in rig::devices("sgd").into_iter().chain([Device::oracle().expect("oracle")]) {
        let [w, g, m] = ["w", "g", "m"].map(|label| Matrix::new(&device, label, 5, 13).expect("buffer"));
        w.upload(&device, &values_of(1, 65)).expect("upload");
        g.upload(&device, &[f32::NAN; 65]).expect("upload");
        m.upload(&device, &values_of(2, 65)).expect("upload");
        sgd::apply(&device, &Sgd { step: 2, ..HYPER }, &w, &g, &m, &scalars(&device, 1.0, 65.0)).expect("apply");
        assert_eq!(w.download(&device).expect("download"), values_of(1, 65), "{}", device.name());
        assert_eq!(m.download(&device).expect("download"), values_of(2, 65), "{}", device.name());
    }
}

#[test]
fn settings_out_of_range_are_refused() {
    let device = rig::host();
    let [w, g, m] = ["w", "g", "m"].map(|label| Matrix::new(&device, label, 1, 8).expect("buffer"));
    let bad = [
        Sgd { step: 0, ..HYPER },
        Sgd { momentum: 1.0, ..HYPER },
        Sgd { momentum: f32::NAN, ..HYPER },
        Sgd { lr: f32::INFINITY, ..HYPER },
        Sgd { weight_decay: f32::NAN, ..HYPER },
    ];
    for hyper in bad {
        assert!(sgd::apply(&device, &hyper, &w, &g, &m, &scalars(&device, 1.0, 0.0)).is_err(), "{hyper:?}");
    }
}
