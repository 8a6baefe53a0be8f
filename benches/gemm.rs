//! The matrix products of training: GFLOP/s of the tile program on a device, and on the host beside the bare `gemm` crate
//! in the same run; and the bytes of operands and result a second, which is what bounds a single row. One JSON object a line.
//! `cargo bench --bench gemm -- [--device NAME] [--threads N] [--rounds N]`

use std::time::{Duration, Instant};

use gaufre::device::{Class, Device, Result};
use gaufre::program::Matrix;
use gaufre::program::matmul::{self, Form, Matmul};
use gaufre::program::schedule::{Fabric, Schedule};
use gaufre::wafer::Wafer;

/// M, N, K of products in the training of small GPTs, and the square one that GEMMs are compared on.
const SHAPES: &[(Form, usize, usize, usize)] = &[
    (Form::NT, 512, 512, 512),
    (Form::NN, 512, 512, 512),
    (Form::TN, 512, 512, 512),
    (Form::NT, 1024, 512, 128),
    (Form::NT, 2048, 1536, 384),
    (Form::NT, 512, 3072, 768),
    (Form::NT, 512, 768, 3072),
    (Form::NT, 512, 8192, 768),
    (Form::NT, 1, 3072, 768),
    (Form::NT, 1, 768, 3072),
    (Form::NT, 1, 8192, 768),
    (Form::NN, 1024, 128, 512),
    (Form::NN, 2048, 384, 1536),
    (Form::NN, 512, 768, 3072),
    (Form::NN, 512, 768, 8192),
    (Form::TN, 512, 128, 1024),
    (Form::TN, 1536, 384, 2048),
    (Form::TN, 3072, 768, 512),
    (Form::TN, 8192, 768, 512),
];

/// A timed run lasts at least this long, so that the clock and a thread's wake-up do not count.
const LEAST: Duration = Duration::from_millis(20);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let option = |name: &str| arguments.iter().position(|a| a == name).and_then(|i| arguments.get(i + 1));
    let number = |name: &str, default| option(name).map_or(default, |v| v.parse().expect("a number"));
    let name = option("--device").map_or("host", String::as_str);
    let device = Device::open(name, number("--threads", 0))?;
    let rounds = number("--rounds", 7).max(5);
    let fabric = Fabric::new(device.clone(), Schedule::Fused, Wafer::new(8, 8));
    let shapes = if device.class() == Class::Native { SHAPES } else { &SHAPES[..3] };
    for &(form, m, n, k) in shapes {
        product(&fabric, form, (m, n, k), rounds)?;
    }
    Ok(())
}

/// Prints one line: the first call (with compilation), the median of the rounds, and the crate's own beside it.
fn product(fabric: &Fabric, form: Form, (m, n, k): (usize, usize, usize), rounds: usize) -> Result<()> {
    let device = fabric.device();
    let operand = |rows: usize, cols: usize| -> Result<Matrix> {
        let matrix = Matrix::new(device, "operand", rows, cols)?;
        let values: Vec<f32> = (0..rows * cols).map(|i| (i % 251) as f32 / 251.0 - 0.5).collect();
        matrix.upload(device, &values)?;
        Ok(matrix)
    };
    let (a, b) = match form {
        Form::NT => (operand(m, k)?, operand(n, k)?),
        Form::NN => (operand(m, k)?, operand(k, n)?),
        Form::TN => (operand(k, m)?, operand(k, n)?),
    };
    let c = Matrix::new(device, "result", m, n)?;
    let ours = || {
        matmul::run(fabric, &Matmul { form, a: &a, b: &b, c: &c, bias: None, accumulate: false })?;
        device.wait()
    };
    let begun = Instant::now();
    ours()?;
    let first_call = begun.elapsed();
    let (flops, bytes) = (2.0 * (m * n * k) as f64, 4.0 * (m * k + k * n + m * n) as f64);
    let mut bare = Bare::new(form, m, n, k);
    let (mut times, mut rival) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        times.push(device.run(|| timed(ours))?);
        if device.class() == Class::Native {
            rival.push(device.run(|| timed(|| bare.run()))?);
        }
    }
    let rate = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        flops / times[times.len() / 2] / 1e9
    };
    let gflops = rate(&mut times);
    let mut line = serde_json::json!({
        "device": device.name(),
        "form": format!("{form:?}"),
        "shape": [m, n, k],
        "gflops": (gflops * 10.0).round() / 10.0,
        "gigabytes_per_second": (gflops / flops * bytes * 10.0).round() / 10.0,
        "first_call_seconds": first_call.as_secs_f64(),
    });
    if !rival.is_empty() {
        let gemm = rate(&mut rival);
        line["gemm_crate_gflops"] = ((gemm * 10.0).round() / 10.0).into();
        line["share"] = ((gflops / gemm * 1000.0).round() / 1000.0).into();
    }
    println!("{line}");
    Ok(())
}

/// Seconds of one call, averaged over enough of them.
fn timed(mut call: impl FnMut() -> Result<()>) -> Result<f64> {
    let begun = Instant::now();
    let mut calls = 0;
    while calls == 0 || begun.elapsed() < LEAST {
        call()?;
        calls += 1;
    }
    Ok(begun.elapsed().as_secs_f64() / f64::from(calls))
}

/// The same product by the `gemm` crate alone, with its own threads.
struct Bare {
    shape: (usize, usize, usize),
    /// Elements between rows and between columns of A as `M x K`, and of B as `K x N`.
    strides: [isize; 4],
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
}

impl Bare {
    fn new(form: Form, m: usize, n: usize, k: usize) -> Bare {
        let (down, along) = (|cols: usize| [cols as isize, 1], |cols: usize| [1, cols as isize]);
        let ([a0, a1], [b0, b1]) = match form {
            Form::NT => (down(k), along(k)),
            Form::NN => (down(k), down(n)),
            Form::TN => (along(m), down(n)),
        };
        let (a, b, c) = (vec![0.5; m * k], vec![0.25; k * n], vec![0.0; m * n]);
        Bare { shape: (m, n, k), strides: [a0, a1, b0, b1], a, b, c }
    }

    fn run(&mut self) -> Result<()> {
        let (m, n, k) = self.shape;
        let [a0, a1, b0, b1] = self.strides;
        let threads = gemm::Parallelism::Rayon(0);
        let (a, b, c) = (self.a.as_ptr(), self.b.as_ptr(), self.c.as_mut_ptr());
        // Safety: the three vectors have the sizes and strides given, and `c` is borrowed exclusively.
        unsafe {
            gemm::gemm(m, n, k, c, 1, n as isize, false, a, a1, a0, b, b1, b0, 1.0, 1.0, false, false, false, threads);
        }
        Ok(())
    }
}
