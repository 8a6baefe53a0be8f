//! A program of your own: RMS norm (Zhang and Sennrich, arXiv 1910.07467), declared, referenced, bounded, checked and run.
//!
//! A `Program` is a kernel and what proves it. You write: the WGSL of one tile; a plain reference, generic over the float, from
//! which the f64 oracle and devices without WGSL run; how far an f32 result may lie from the truth, computed from the operation;
//! and cases. `check` then holds every device against the oracle: each output within its bound, every element written, nothing
//! written outside. And it must catch the fault that you plant yourself, or it proves nothing.
//!
//! `cargo run --release --example 05_custom_program -- [DEVICE]`

use gaufre::device::{ALL_CLASSES, Args, Device, Held, Kernel, Lane, Real, Variant, read, write};
use gaufre::program::check::{self, Fault, Truth};
use gaufre::program::{self, Case, EPS, Fill, Matrix, Program};

gaufre::params! {
    /// Parameters of RMS norm; places in elements.
    struct RmsNormParams {
        /// Columns that hold values.
        cols: u32,
        /// From one row to the next: columns with padding.
        stride: u32,
        /// First element of x.
        x_offset: u32,
        /// First element of y.
        y_offset: u32,
        /// Added to the mean square.
        eps: f32,
    }
}

/// `y = x * gain / sqrt(mean(x^2) + eps)` for each row: bindings x, gain, y.
static RMS_NORM: Program = Program {
    kernel: Kernel {
        name: "rms_norm",
        wgsl: include_str!("rms_norm.wgsl"),
        bindings: &[read("x", Lane::F32), read("gain", Lane::F32), write("y", Lane::F32)],
        params: RmsNormParams::FIELDS,
        // The first variant that names a class is its default; `check` tries all.
        variants: &[
            Variant { name: "64 lanes", classes: ALL_CLASSES, constants: &[("WG", 64)] },
            Variant { name: "128 lanes", classes: ALL_CLASSES, constants: &[("WG", 128)] },
        ],
        // Beside its workgroup memory, which is measured: a sum in each lane, and nothing that outlives a launch.
        held: |v| Held { accumulators: 4 * v.get("WG"), state: 0 },
        reference_f32: reference,
        reference_f64: reference,
        host: None, // a fast f32 kernel for the CPU, where the reference is too slow
    },
    bound,
    cases,
    fault: ("/ f32(p.cols)", "/ f32(p.stride)"),
};

/// Queues RMS norm of all rows of `x`, `R x C`, into `y`, `R x C`; `gain` is `1 x C`. This is what users of the program call.
fn rms_norm(device: &Device, x: &Matrix, gain: &Matrix, eps: f32, y: &Matrix) -> gaufre::device::Result<()> {
    assert!((x.rows, x.cols, x.stride) == (y.rows, y.cols, y.stride) && (gain.rows, gain.cols) == (1, x.cols));
    let (cols, stride) = (x.cols as u32, x.stride as u32);
    let params = RmsNormParams { cols, stride, x_offset: x.offset as u32, y_offset: y.offset as u32, eps };
    let views = [x.view.clone(), gain.view.clone(), y.view.clone()];
    program::launch(device, &RMS_NORM.kernel, &params, |_| x.rows as u32, &views)
}

/// The formula, row by row; `element` gets the row's reciprocal root, x and the gain.
fn rows<F: Real>(args: &mut Args<'_, F>, element: impl Fn(F, F, F) -> F) {
    let p: RmsNormParams = args.params();
    let (cols, stride) = (p.cols as usize, p.stride as usize);
    let (x, gain, y) = (args.read(0), args.read(1), args.write(2));
    for row in 0..args.groups as usize {
        let x = &x[p.x_offset as usize + row * stride..][..stride];
        let y = &mut y[p.y_offset as usize + row * stride..][..stride];
        let squares: F = x[..cols].iter().map(|&x| x * x).sum();
        let scale = F::one() / (squares / F::of(cols as f64) + F::of(p.eps.into())).sqrt();
        for col in 0..stride {
            y[col] = if col < cols { element(scale, x[col], gain[col]) } else { F::zero() };
        }
    }
}

fn reference<F: Real>(args: &mut Args<'_, F>) {
    rows(args, |scale, x, gain| x * scale * gain);
}

/// The mean square is a sum of `cols` positive numbers: its relative error is a rounding for each, and at most 8 for the
/// square, the division (2.5 units in the last place, of 2 EPS, on adapters) and eps. A root halves that. `inverseSqrt` is
/// good to 2 units, and two products round.
fn bound(args: &mut Args<'_, f64>) {
    let relative = EPS * ((f64::from(args.params::<RmsNormParams>().cols) + 8.0) / 2.0 + 4.0 + 2.0);
    rows(args, |scale, x, gain| relative * (x * scale * gain).abs());
}

/// Small, odd and wide shapes. A buffer of poison shows what was not written.
fn cases() -> Vec<Case> {
    let case = |(rows, cols): (usize, usize)| Case {
        label: format!("{rows} x {cols}"),
        fills: vec![Fill::matrix(rows, cols), Fill::matrix(1, cols), Fill::poison(rows, cols)],
        launch: Box::new(move |_| {
            let stride = Matrix::stride_for(cols) as u32;
            let params = RmsNormParams { cols: cols as u32, stride, x_offset: 0, y_offset: 0, eps: 1e-5 };
            (params.words(), rows as u32)
        }),
    };
    [(1, 1), (3, 5), (37, 84), (2, 1000)].map(case).into()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = Device::open(std::env::args().nth(1).as_deref().unwrap_or("auto"), 0)?;
    println!("{}", device.why());

    let reports = check::run(&RMS_NORM, &device, 1)?;
    for report in &reports {
        println!("{report}");
    }
    let good = !reports.is_empty() && reports.iter().all(|report| report.passed());

    // The planted faults: an operand with one wrong number, and a program that does nothing.
    let truth = Truth::of(&RMS_NORM, 1)?;
    let wrong = |binding: usize, words: &mut [u32]| {
        if binding == 1 {
            words[0] ^= 1 << 22;
        }
    };
    let faults = [Fault::Operand(&wrong), Fault::Idle];
    let caught = faults.iter().map(|fault| truth.catches(&RMS_NORM.kernel, &device, Some(fault)));
    let caught = caught.collect::<Result<Vec<_>, _>>()?.iter().all(Option::is_some);
    println!("planted faults caught: {caught}");

    let matrix = |label: &str, rows| Matrix::new(&device, label, rows, 4);
    let (x, gain, y) = (matrix("x", 2)?, matrix("gain", 1)?, matrix("y", 2)?);
    x.upload(&device, &[1.0, -1.0, 1.0, -1.0, 3.0, 0.0, 4.0, 0.0])?;
    gain.upload(&device, &[1.0, 1.0, 2.0, 2.0])?;
    rms_norm(&device, &x, &gain, 0.0, &y)?;
    println!("rms_norm: {:?}", y.download(&device)?);
    if !(good && caught) {
        return Err("the program is not what it was declared to be".into());
    }
    println!("ok: within the bound, and faults are caught");
    Ok(())
}
