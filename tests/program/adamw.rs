//! AdamW: within its bound; ten steps on the oracle against a plain f64 loop; nothing written where a value is not
//! finite; equal bits for any number of threads and any panel.

use crate::fabric::relay::fused;
use crate::rig;
use gaufre::device::{Device, Elem, View};
use gaufre::program::adamw::{self, AdamW};
use gaufre::program::grad_norm::{self, CLIP_SCALE, NON_FINITE, SCALARS, SLOT_FLOATS};
use gaufre::program::{Matrix, check, initial};

const HYPER: AdamW = AdamW { lr: 0.01, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step: 1 };

#[test]
fn within_bound_on_every_device() {
    for device in rig::devices("adamw") {
        for program in adamw::PROGRAMS {
            check::assert_within_bound(program, &device);
        }
    }
}

/// Weights, gradient and both moments of one tensor on a device.
struct Tensor {
    weights: Matrix,
    gradient: Matrix,
    m: Matrix,
    v: Matrix,
    scalars: View,
}

impl Tensor {
    fn new(device: &Device, rows: usize, cols: usize, clip: f32) -> Tensor {
        let [weights, gradient, m, v] =
            ["weights", "gradient", "m", "v"].map(|label| Matrix::new(device, label, rows, cols).expect("buffer"));
        let scalars = device.buffer("scalars", Elem::F32, SCALARS).expect("buffer").all();
        let mut values = [0.0; SCALARS];
        values[CLIP_SCALE] = clip;
        device.upload(&scalars, &values).expect("upload");
        weights.upload(device, &values_of(1, rows * cols)).expect("upload");
        Tensor { weights, gradient, m, v, scalars }
    }

    fn step(&self, device: &Device, step: u64, panel: usize) {
        let n = self.gradient.rows * self.gradient.cols;
        self.gradient.upload(device, &values_of(step + 1, n)).expect("upload");
        for first in (0..self.gradient.rows).step_by(panel) {
            let rows = panel.min(self.gradient.rows - first);
            let [w, g, m, v] = [&self.weights, &self.gradient, &self.m, &self.v].map(|x| x.rows(first, rows));
            adamw::apply(device, &AdamW { step, ..HYPER }, &w, &g, &m, &v, &self.scalars).expect("apply");
        }
    }

    fn all(&self, device: &Device) -> [Vec<f64>; 3] {
        [&self.weights, &self.m, &self.v].map(|x| x.download_f64(device).expect("download"))
    }
}

fn values_of(seed: u64, n: usize) -> Vec<f32> {
    (0..n as u64).map(|i| initial::normal(seed, i) as f32).collect()
}

#[test]
fn ten_steps_agree_with_a_plain_loop() {
    let (rows, cols, clip) = (3, 11, 0.25);
    let oracle = Device::oracle().expect("oracle");
    let tensor = Tensor::new(&oracle, rows, cols, clip);
    let n = rows * cols;
    let mut w: Vec<f64> = values_of(1, n).into_iter().map(f64::from).collect();
    let (mut m, mut v) = (vec![0.0f64; n], vec![0.0f64; n]);
    for t in 1..=10 {
        tensor.step(&oracle, t, rows);
        for (i, g) in values_of(t + 1, n).into_iter().enumerate() {
            let g = f64::from(g) * f64::from(clip);
            m[i] = 0.9 * m[i] + 0.1 * g;
            v[i] = 0.95 * v[i] + 0.05 * g * g;
            let (m_hat, v_hat) = (m[i] / (1.0 - 0.9f64.powi(t as i32)), v[i] / (1.0 - 0.95f64.powi(t as i32)));
            w[i] = w[i] * (1.0 - 0.01 * 0.1) - 0.01 * m_hat / (v_hat.sqrt() + 1e-8);
        }
    }
    // The settings reach the device as f32, half an ulp each, and ten steps of 0.01 each: far below one part in a
    // million.
    for (found, want) in tensor.all(&oracle).iter().zip([&w, &m, &v]) {
        for (found, want) in found.iter().zip(want) {
            let settings = 6.0 * gaufre::program::EPS * 10.0;
            assert!((found - want).abs() <= settings * want.abs().max(0.1), "{found} {want}");
        }
    }
}

#[test]
fn threads_and_panels_do_not_change_a_bit() {
    let mut devices: Vec<Device> = [1, 2, 3].map(|n| Device::host(n).expect("host")).into();
    let after = |device: &Device, panel: usize| {
        let tensor = Tensor::new(device, 21, 1001, 1.0);
        (1..=3).for_each(|t| tensor.step(device, t, panel));
        tensor.all(device)
    };
    let want = after(&devices[0], 21);
    for device in &devices[1..] {
        assert!(after(device, 21) == want, "{}", device.name());
    }
    devices.truncate(1);
    devices.extend(rig::adapter("adamw"));
    for device in &devices {
        assert!(after(device, 21) == after(device, 4), "{}", device.name());
    }
}

#[test]
fn nothing_is_written_where_a_gradient_is_not_finite() {
    for device in rig::devices("adamw").into_iter().chain([Device::oracle().expect("oracle")]) {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30] {
            let tensor = Tensor::new(&device, 20, 13, 1.0);
            tensor.step(&device, 1, 20);
            let before = tensor.all(&device);
            let mut gradient = values_of(3, 20 * 13);
            gradient[17 * 13 + 5] = bad;
            tensor.gradient.upload(&device, &gradient).expect("upload");
            let slots = grad_norm::slots(20);
            let partials = device.buffer("partials", Elem::F32, slots * SLOT_FLOATS).expect("buffer").all();
            grad_norm::partial(&device, &tensor.gradient, &partials, 0).expect("partial");
            grad_norm::finish(&fused(&device), &partials, grad_norm::Slots::all(slots), 1.0, &tensor.scalars)
                .expect("finish");
            let Tensor { weights, gradient, m, v, scalars } = &tensor;
            adamw::apply(&device, &AdamW { step: 2, ..HYPER }, weights, gradient, m, v, scalars).expect("apply");
            assert_eq!(device.download(scalars).expect("download")[NON_FINITE], 1.0, "{bad} on {}", device.name());
            assert!(tensor.all(&device) == before, "{bad} was applied on {}", device.name());
        }
    }
}

#[test]
fn settings_out_of_range_are_refused() {
    let device = rig::host();
    let t = Tensor::new(&device, 1, 8, 1.0);
    let bad = [
        AdamW { step: 0, ..HYPER },
        AdamW { eps: 0.0, ..HYPER },
        AdamW { beta1: 1.0, ..HYPER },
        AdamW { beta2: f32::NAN, ..HYPER },
        AdamW { lr: f32::INFINITY, ..HYPER },
    ];
    for hyper in bad {
        assert!(adamw::apply(&device, &hyper, &t.weights, &t.gradient, &t.m, &t.v, &t.scalars).is_err(), "{hyper:?}");
    }
}
