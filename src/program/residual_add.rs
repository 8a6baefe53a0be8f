//! Residual add: `sum = a + b`, elementwise, over matrices of one shape. It must never know what the summands are.
//!
//! A tile owns a run of elements, nothing crosses tiles. One correctly rounded operation: the result has no error beyond
//! the rounding of its own store.

use super::matrix::Rows;
use super::{Case, Fill, Matrix, Program, launch};
use crate::device::{Args, Class, Device, Held, Kernel, Lane, Real, Result, Variant, read, write};
use rayon::iter::ParallelIterator;

crate::params! {
    /// Parameters; places in quads of four floats.
    pub struct ResidualParams {
        /// Rows: 1 where the matrices lie without gaps.
        rows: u32,
        /// Quads of a row.
        quads: u32,
        /// First quad of `a`.
        a_offset: u32,
        /// Quads from one row of `a` to the next.
        a_stride: u32,
        /// First quad of `b`.
        b_offset: u32,
        /// Quads from one row of `b` to the next.
        b_stride: u32,
        /// First quad of `sum`.
        sum_offset: u32,
        /// Quads from one row of `sum` to the next.
        sum_stride: u32,
    }
}

/// The program.
pub static PROGRAMS: [&Program; 1] = [&ADD];

/// `sum = a + b`: bindings a, b, sum.
pub static ADD: Program = Program {
    kernel: Kernel {
        name: "residual_add",
        wgsl: include_str!("../../shaders/residual_add.wgsl"),
        bindings: &[read("a", Lane::Vec4), read("b", Lane::Vec4), write("sum", Lane::Vec4)],
        params: ResidualParams::FIELDS,
        variants: &[
            Variant { name: "run64x4", classes: &[Class::Gpu, Class::Native], constants: &[("WG", 64), ("QUADS", 4)] },
            Variant { name: "run8x64", classes: &[Class::Software], constants: &[("WG", 8), ("QUADS", 64)] },
        ],
        held: |_| Held::NOTHING,
        reference_f32: reference,
        reference_f64: reference,
        host: Some(host),
    },
    bound,
    cases,
    fault: (" + b[", " - b["),
};

/// Queues `out = a + b`: three different buffers.
///
/// # Panics
/// When the shapes differ or a slice does not lie on multiples of 4.
///
/// # Errors
/// [`DeviceError::Usage`](crate::device::DeviceError::Usage) when the views do not fit the declaration; what the device
/// says otherwise.
pub fn run(device: &Device, a: &Matrix, b: &Matrix, out: &Matrix) -> Result<()> {
    let params = params(Rows::flat(&[a, b, out]), a.place(), b.place(), out.place());
    let views = [a.view.clone(), b.view.clone(), out.view.clone()];
    launch(device, &ADD.kernel, &params, |v| groups(&params, v), &views)
}

fn params(rows: Rows, a: (u32, u32), b: (u32, u32), sum: (u32, u32)) -> ResidualParams {
    ResidualParams {
        rows: rows.rows,
        quads: rows.quads,
        a_offset: a.0,
        a_stride: a.1,
        b_offset: b.0,
        b_stride: b.1,
        sum_offset: sum.0,
        sum_stride: sum.1,
    }
}

fn groups(p: &ResidualParams, variant: &Variant) -> u32 {
    p.rows * p.quads.div_ceil(variant.get("WG") * variant.get("QUADS"))
}

fn each<F: Real>(args: &mut Args<'_, F>, value: impl Fn(F, F) -> F) {
    let p: ResidualParams = args.params();
    let (a, b, sum, rows) = (args.read(0), args.read(1), args.write(2), Rows { rows: p.rows, quads: p.quads });
    for r in 0..p.rows {
        let (a, b) = (rows.row(a, (p.a_offset, p.a_stride), r), rows.row(b, (p.b_offset, p.b_stride), r));
        let sum = rows.row_mut(sum, (p.sum_offset, p.sum_stride), r).iter_mut();
        sum.zip(a).zip(b).for_each(|((sum, &a), &b)| *sum = value(a, b));
    }
}

fn reference<F: Real>(args: &mut Args<'_, F>) {
    each(args, |a, b| a + b);
}

fn bound(args: &mut Args<'_, f64>) {
    each(args, |_, _| 0.0);
}

fn host(args: &mut Args<'_, f32>) {
    let p: ResidualParams = args.params();
    let (a, b, sum, rows) = (args.read(0), args.read(1), args.write(2), Rows { rows: p.rows, quads: p.quads });
    let arch = pulp::Arch::new();
    rows.pieces_mut(sum, (p.sum_offset, p.sum_stride)).for_each(|(i, sum)| {
        let a = rows.piece(a, (p.a_offset, p.a_stride), i, sum.len());
        let b = rows.piece(b, (p.b_offset, p.b_stride), i, sum.len());
        arch.dispatch(|| sum.iter_mut().zip(a).zip(b).for_each(|((sum, a), b)| *sum = a + b));
    });
}

fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = [(1, 1), (37, 84), (64, 128)]
        .into_iter()
        .map(|(rows, cols)| {
            let quads = (rows * Matrix::stride_for(cols) / 4) as u32;
            let params = params(Rows { rows: 1, quads }, (0, quads), (0, quads), (0, quads));
            case(
                format!("{rows} x {cols}"),
                [Fill::matrix(rows, cols), Fill::matrix(rows, cols), Fill::poison(rows, cols)],
                params,
            )
        })
        .collect();
    // Columns 8..24 of a matrix of 88 are added to columns 0..16 of one of 32, into columns 4..20 of one of 24.
    let params = params(Rows { rows: 5, quads: 4 }, (2, 22), (0, 8), (1, 6));
    let fills = [Fill::matrix(5, 88), Fill::matrix(5, 32), Fill::poison(5, 24)];
    cases.push(case("columns of 5 x 88".into(), fills, params));
    cases
}

fn case(label: String, fills: [Fill; 3], params: ResidualParams) -> Case {
    let words = bytemuck::cast_slice(bytemuck::bytes_of(&params)).to_vec();
    Case { label, fills: fills.into(), launch: Box::new(move |v| (words.clone(), groups(&params, v))) }
}
