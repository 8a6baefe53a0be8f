//! Layer norm's kernels for the `host` device: rows in parallel, columns in vectors. They follow the references in the file
//! above by formula only, and are checked against them; neither calls the other.

use super::{BackwardParams, ForwardParams, GainParams, Row, row_at};
use crate::device::Args;
use crate::program::column_sum::{reduce_columns, settle};
use crate::program::matrix::Rows;
use crate::program::vector::chains;
use rayon::iter::{IndexedParallelIterator, ParallelIterator};

/// Rows of one block of the host kernels.
const HOST_ROWS: u32 = 8;

pub(super) fn forward(args: &mut Args<'_, f32>) {
    let p: ForwardParams = args.params();
    let (x, gain, bias, y, stats) = (args.read(0), args.read(1), args.read(2), args.write(3), args.write(4));
    let (rows, pair, n) = (Rows { rows: p.rows, quads: p.quads }, Rows { rows: p.rows, quads: 2 }, p.cols as usize);
    let gain = &rows.row(gain, (p.gain_offset, 0), 0)[..n];
    let bias = (p.biased == 1).then(|| &rows.row(bias, (p.bias_offset, 0), 0)[..n]);
    let arch = pulp::Arch::new();
    let kept = pair.blocks_mut(stats, (p.stats_offset, p.stats_stride), HOST_ROWS);
    rows.blocks_mut(y, (p.y_offset, p.y_stride), HOST_ROWS).zip(kept).for_each(|((first, y), (_, stats))| {
        for i in 0..HOST_ROWS.min(p.rows - first) {
            let x = &rows.row(x, (p.x_offset, p.x_stride), first + i)[..n];
            let (y, padding) = rows.row_mut(y, (0, p.y_stride), i).split_at_mut(n);
            let [mean, rstd] = arch.dispatch(ForwardRow { x, gain, bias, eps: p.eps, y });
            padding.fill(0.0);
            let kept = pair.row_mut(stats, (0, p.stats_stride), i);
            kept.copy_from_slice(&[mean, rstd, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        }
    });
}

/// One row of the forward pass; writes y, returns mean and rstd. A type of its own, not a closure: the shim through which
/// a closure is called need not be inlined, and then it stays scalar code.
struct ForwardRow<'a> {
    x: &'a [f32],
    gain: &'a [f32],
    bias: Option<&'a [f32]>,
    eps: f32,
    y: &'a mut [f32],
}

impl pulp::NullaryFnOnce for ForwardRow<'_> {
    type Output = [f32; 2];

    #[inline(always)]
    fn call(self) -> [f32; 2] {
        let ForwardRow { x, gain, bias, eps, y } = self;
        let n = x.len() as f32;
        let mean = chains(
            x,
            x,
            x,
            #[inline(always)]
            |x, _, _| [x, 0.0],
        )[0] / n;
        let squares = chains(
            x,
            x,
            x,
            #[inline(always)]
            |x, _, _| [(x - mean) * (x - mean), 0.0],
        )[0];
        let rstd = 1.0 / (squares / n + eps).sqrt();
        match bias {
            Some(bias) => {
                for (((y, x), gain), bias) in y.iter_mut().zip(x).zip(gain).zip(bias) {
                    *y = ((x - mean) * rstd).mul_add(*gain, *bias);
                }
            }
            None => {
                for ((y, x), gain) in y.iter_mut().zip(x).zip(gain) {
                    *y = (x - mean) * rstd * gain;
                }
            }
        }
        [mean, rstd]
    }
}

pub(super) fn backward(args: &mut Args<'_, f32>) {
    let p: BackwardParams = args.params();
    let (bound, dx) = (std::array::from_fn(|i| args.read(i)), args.write(5));
    let rows = Rows { rows: p.rows, quads: p.quads };
    let arch = pulp::Arch::new();
    rows.blocks_mut(dx, (p.dx_offset, p.dx_stride), HOST_ROWS).for_each(|(first, dx)| {
        for i in 0..HOST_ROWS.min(p.rows - first) {
            let (dx, padding) = rows.row_mut(dx, (0, p.dx_stride), i).split_at_mut(p.cols as usize);
            let row = row_at(&p, bound, first + i);
            arch.dispatch(
                #[inline(always)]
                || backward_row(row, dx),
            );
            padding.fill(0.0);
        }
    });
}

#[inline(always)]
fn backward_row(row: Row<'_, f32>, dx: &mut [f32]) {
    let Row { x, gain, mean, rstd, dy, residual } = row;
    let n = x.len() as f32;
    let [plain, leaning] = chains(
        x,
        gain,
        dy,
        #[inline(always)]
        |x, gain, dy| [gain * dy, gain * dy * (x - mean)],
    );
    // dx = rstd * (h - plain - (x - mean) * rstd * leaning)
    let (plain, tilt) = (plain / n, leaning * rstd / n * rstd);
    let through = Through { mean, rstd, plain, tilt };
    let columns = dx.iter_mut().zip(x).zip(gain).zip(dy);
    match residual {
        Some(residual) => {
            for ((((dx, x), gain), dy), residual) in columns.zip(residual) {
                *dx = residual + through.at(*x, *gain, *dy);
            }
        }
        None => {
            for (((dx, x), gain), dy) in columns {
                *dx = through.at(*x, *gain, *dy);
            }
        }
    }
}

/// What one row shares between its columns.
struct Through {
    mean: f32,
    rstd: f32,
    plain: f32,
    tilt: f32,
}

impl Through {
    /// The gradient through the norm at one column. A method, as only those can be told to inline into vector code.
    #[inline(always)]
    fn at(&self, x: f32, gain: f32, dy: f32) -> f32 {
        self.rstd * (x - self.mean).mul_add(-self.tilt, gain.mul_add(dy, -self.plain))
    }
}

pub(super) fn gain_backward(args: &mut Args<'_, f32>) {
    let p: GainParams = args.params();
    let (x, stats, dy, dgain) = (args.read(0), args.read(1), args.read(2), args.write(3));
    let (rows, pair) = (Rows { rows: p.rows, quads: p.quads }, Rows { rows: p.rows, quads: 1 });
    let dgain = rows.row_mut(dgain, (p.dgain_offset, 0), 0);
    let mut sums = vec![0.0f32; dgain.len()];
    reduce_columns(
        0..p.rows,
        &mut sums,
        #[inline(always)]
        |r, totals| {
            let moments = pair.row(stats, (p.stats_offset, p.stats_stride), r);
            let (mean, rstd) = (moments[0], moments[1]);
            let x = rows.row(x, (p.x_offset, p.x_stride), r);
            let dy = rows.row(dy, (p.dy_offset, p.dy_stride), r);
            for ((total, x), dy) in totals.iter_mut().zip(x).zip(dy) {
                *total = ((x - mean) * rstd).mul_add(*dy, *total);
            }
        },
    );
    settle(dgain, &sums, p.accumulate == 1);
}
