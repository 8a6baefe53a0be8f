//! GELU: both forms on every device within the bound; the derivative against central differences in f64; equal bits for
//! any number of host threads.

use crate::rig;
use gaufre::device::Device;
use gaufre::program::check::Report;
use gaufre::program::gelu::{self, Form};
use gaufre::program::{Matrix, check, initial};

#[test]
fn within_bound_on_every_device() {
    for device in rig::devices("gelu") {
        for program in gelu::PROGRAMS {
            check::assert_within_bound(program, &device);
        }
    }
}

/// A bound that nothing comes near proves nothing.
#[test]
fn bound_is_tight() {
    for program in gelu::PROGRAMS {
        let reports: Vec<Report> = check::run(program, &rig::host(), 2).unwrap();
        let worst = reports.iter().map(|r| r.worst).fold(0.0, f64::max);
        assert!(worst > 0.01, "{}: worst error is {worst:.1e} of its bound", program.kernel.name);
    }
}

#[test]
fn derivative_agrees_with_central_differences() {
    let oracle = Device::oracle().unwrap();
    let (rows, cols, step) = (3, 20, 1.0 / 1024.0);
    let normal = |seed, scale: f64| -> Vec<f32> {
        (0..rows * cols).map(|i| (scale * initial::normal(seed, i as u64)) as f32).collect()
    };
    let (values, cotangent) = (normal(1, 2.0), normal(2, 1.0));
    let matrix = |values: &[f32]| {
        let m = Matrix::new(&oracle, "m", rows, cols).unwrap();
        m.upload(&oracle, values).unwrap();
        m
    };
    for form in [Form::Tanh, Form::Erf] {
        let (x, dy, dx) = (matrix(&values), matrix(&cotangent), Matrix::new(&oracle, "dx", rows, cols).unwrap());
        gelu::backward(&oracle, form, &x, &dy, &dx).unwrap();
        let got = dx.download_f64(&oracle).unwrap();
        // Each output depends on one input only: shifting all inputs at once differentiates every element. Both shifted
        // values are rounded to f32, so the step is what lies between them.
        let shifted = |by: f32| -> Vec<f32> { values.iter().map(|x| x + by).collect() };
        let value = |values: &[f32]| {
            let (x, y) = (matrix(values), Matrix::new(&oracle, "y", rows, cols).unwrap());
            gelu::forward(&oracle, form, &x, &y).unwrap();
            y.download_f64(&oracle).unwrap()
        };
        let (up, down) = (shifted(step), shifted(-step));
        let (above, below) = (value(&up), value(&down));
        for i in 0..rows * cols {
            let slope = (above[i] - below[i]) / (f64::from(up[i]) - f64::from(down[i]));
            let want = f64::from(cotangent[i]) * slope;
            // Truncation: step^2 / 6 times the third derivative, which is at most 2; and the f32 rounding of the midpoint.
            let allowed = f64::from(cotangent[i].abs()) * (f64::from(step).powi(2) / 3.0 + 4.0 * gaufre::program::EPS);
            assert!((got[i] - want).abs() <= allowed, "{form:?} at {}: {} against {want}", values[i], got[i]);
        }
    }
}

#[test]
fn bits_do_not_depend_on_threads() {
    let (rows, cols) = (70, 84);
    let run = |threads: usize, form: Form| {
        let device = Device::host(threads).unwrap();
        let values: Vec<f32> = (0..rows * cols).map(|i| 2.0 * initial::normal(5, i as u64) as f32).collect();
        let [x, y, dx] = ["x", "y", "dx"].map(|name| Matrix::new(&device, name, rows, cols).unwrap());
        x.upload(&device, &values).unwrap();
        gelu::forward(&device, form, &x, &y).unwrap();
        gelu::backward(&device, form, &x, &y, &dx).unwrap();
        [y, dx].map(|m| m.download(&device).unwrap().iter().map(|v| v.to_bits()).collect::<Vec<u32>>())
    };
    for form in [Form::Tanh, Form::Erf] {
        let one = run(1, form);
        assert_eq!(one, run(2, form));
        assert_eq!(one, run(3, form));
    }
}
