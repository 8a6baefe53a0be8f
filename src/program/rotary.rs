//! Rotary position embedding, in place: each pair of a head's columns is turned by its position times the pair's frequency
//! (Su et al., arXiv 2104.09864). It must never know what turns, queries, keys or their gradients.
//!
//! ```text
//! (a, b) -> (a cos - b sin, a sin + b cos)        angle = position * frequency of the pair
//! ```
//!
//! Cosines and sines come from a table that is made once, on the host. Turning back is the transpose, and so both the
//! inverse and the gradient. A tile owns a run of pairs of one row, nothing crosses tiles.

use super::{Case, EPS, Fill, Matrix, Program, launch, vector};
use crate::device::{Args, Class, Device, Held, Kernel, Lane, Real, Result, Variant, read, write};
use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

/// Which columns of a head are a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// Columns `i` and `i + dims / 2`: GPT-NeoX and Llama.
    Halves,
    /// Columns `2 i` and `2 i + 1`: GPT-J.
    Interleaved,
}

/// Which columns are turned, and by the angles of which positions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotary {
    /// Heads side by side in a row.
    pub heads: usize,
    /// Columns of a head.
    pub head_size: usize,
    /// Columns of a head that turn, from its first on: even, at most `head_size`. The others stay as they are.
    pub dims: usize,
    /// Which of them are a pair.
    pub layout: Layout,
    /// Rows of a sequence.
    pub seq_len: usize,
    /// Position of the first row of each sequence.
    pub start: usize,
}

/// Llama 3's scaling of frequencies, for contexts longer than those of the first training: short waves stay, long ones
/// are slowed by `factor`, and between the two it passes over smoothly.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scaling {
    /// What low frequencies are divided by: above 0.
    pub factor: f64,
    /// Wavelengths above `original_context` over this are long: above 0.
    pub low_freq_factor: f64,
    /// Wavelengths below `original_context` over this are short: above `low_freq_factor`.
    pub high_freq_factor: f64,
    /// Positions of the first training.
    pub original_context: usize,
}

crate::params! {
    /// Parameters; places in elements.
    pub struct RotaryParams {
        /// Rows of `x`.
        rows: u32,
        /// Heads of a row.
        heads: u32,
        /// Columns of a head.
        head_size: u32,
        /// Pairs of a head.
        half: u32,
        /// 1: the two of a pair lie side by side.
        interleaved: u32,
        /// Rows of a sequence.
        seq_len: u32,
        /// Position of the first row of a sequence.
        start: u32,
        /// 1, or -1 to turn back.
        sign: f32,
        /// First element of `table`.
        table_offset: u32,
        /// Elements from one position of `table` to the next.
        table_stride: u32,
        /// First element of `x`.
        x_offset: u32,
        /// Elements from one row of `x` to the next.
        x_stride: u32,
    }
}

/// The program.
pub static PROGRAMS: [&Program; 1] = [&TURN];

/// Turns pairs of `x` in place: bindings table, x.
pub static TURN: Program = Program {
    kernel: Kernel {
        name: "rotary",
        wgsl: include_str!("../../shaders/rotary.wgsl"),
        bindings: &[read("table", Lane::F32), write("x", Lane::F32)],
        params: RotaryParams::FIELDS,
        variants: &[
            Variant { name: "run64x4", classes: &[Class::Gpu, Class::Native], constants: &[("WG", 64), ("PAIRS", 4)] },
            Variant { name: "run8x64", classes: &[Class::Software], constants: &[("WG", 8), ("PAIRS", 64)] },
        ],
        held: |_| Held::NOTHING,
        reference_f32: reference,
        reference_f64: reference,
        host: Some(host),
    },
    bound,
    cases,
    fault: ("row % p.seq_len", "row % (p.seq_len + 1u)"),
};

/// Frequencies of the `dims / 2` pairs, in radians a position: `base^(-2 i / dims)`, scaled where there is a scaling.
///
/// Each is an f32, and without a scaling so are power and reciprocal on the way: that is how models were trained.
///
/// # Panics
/// When `dims` is odd, or `base` or the scaling is out of its range.
pub fn frequencies(dims: usize, base: f64, scaling: Option<&Scaling>) -> Vec<f64> {
    assert!(dims.is_multiple_of(2), "{dims} columns are no pairs");
    assert!(base.is_finite() && base > 0.0, "base {base} of frequencies");
    assert!(scaling.is_none_or(Scaling::is_sound), "{scaling:?} is out of its range");
    let plain = |i: usize| 1.0 / base.powf(f64::from(2.0 * i as f32 / dims as f32)) as f32;
    let scaled = |f: f64| scaling.map_or(f, |scaling| f64::from(scaling.apply(f) as f32));
    (0..dims / 2).map(|i| scaled(f64::from(plain(i)))).collect()
}

impl Scaling {
    /// Whether every field is in its range, so that every frequency is finite.
    pub fn is_sound(&self) -> bool {
        let finite = [self.factor, self.low_freq_factor, self.high_freq_factor].iter().all(|x| x.is_finite());
        let ordered = 0.0 < self.low_freq_factor && self.low_freq_factor < self.high_freq_factor;
        finite && ordered && self.factor > 0.0 && self.original_context > 0
    }

    fn apply(&self, frequency: f64) -> f64 {
        let waves = self.original_context as f64 * frequency / std::f64::consts::TAU;
        if waves > self.high_freq_factor {
            return frequency;
        }
        if waves < self.low_freq_factor {
            return frequency / self.factor;
        }
        let smooth = (waves - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor);
        (1.0 - smooth) * frequency / self.factor + smooth * frequency
    }
}

/// A new table for the first `positions` positions: a row holds the cosines of the pairs' angles, then the sines.
/// Angles, cosines and sines are computed in f64 and rounded once.
///
/// # Errors
/// As [`Matrix::new`].
pub fn table(device: &Device, label: impl Into<String>, positions: usize, frequencies: &[f64]) -> Result<Matrix> {
    let table = Matrix::new(device, label, positions, 2 * frequencies.len())?;
    let mut values = Vec::with_capacity(positions * table.cols);
    for position in 0..positions {
        let angles = || frequencies.iter().map(|f| position as f64 * f);
        values.extend(angles().map(|angle| angle.cos() as f32));
        values.extend(angles().map(|angle| angle.sin() as f32));
    }
    table.upload(device, &values)?;
    Ok(table)
}

/// Queues the turn of `x`, in place: row `r` stands at position `start + r % seq_len`. `inverse` turns back, which is what
/// becomes of a gradient. `table` is one of [`table`] for `dims`, and not the buffer of `x`.
///
/// # Panics
/// When `dims` is odd or above `head_size`, `x` has not `heads * head_size` columns, or the table lacks a position.
///
/// # Errors
/// [`DeviceError::Usage`](crate::device::DeviceError::Usage) when the views do not fit the declaration; what the device
/// says otherwise.
pub fn run(device: &Device, shape: &Rotary, table: &Matrix, x: &Matrix, inverse: bool) -> Result<()> {
    let Rotary { heads, head_size, dims, seq_len, start, .. } = *shape;
    assert!(dims.is_multiple_of(2) && (1..=head_size).contains(&dims), "{dims} of {head_size} columns turn");
    assert!(x.cols == heads * head_size, "{x:?} does not hold {heads} heads of {head_size} columns");
    // Rows at most: a short matrix never comes to the last positions of its sequence.
    let positions = start + seq_len.min(x.rows);
    assert!(seq_len > 0 && positions <= table.rows, "{table:?} lacks some of {positions} positions");
    assert!(table.cols == dims, "{table:?} is not for {dims} columns");
    let params = shape.params(x.rows, (table.offset, table.stride), (x.offset, x.stride), inverse);
    launch(device, &TURN.kernel, &params, |v| groups(&params, v), &[table.view.clone(), x.view.clone()])
}

impl Rotary {
    /// `table` and `x`: first element, and elements from one row to the next.
    fn params(&self, rows: usize, table: (usize, usize), x: (usize, usize), inverse: bool) -> RotaryParams {
        RotaryParams {
            rows: rows as u32,
            heads: self.heads as u32,
            head_size: self.head_size as u32,
            half: self.dims as u32 / 2,
            interleaved: (self.layout == Layout::Interleaved) as u32,
            seq_len: self.seq_len as u32,
            start: self.start as u32,
            sign: if inverse { -1.0 } else { 1.0 },
            table_offset: table.0 as u32,
            table_stride: table.1 as u32,
            x_offset: x.0 as u32,
            x_stride: x.1 as u32,
        }
    }
}

fn groups(p: &RotaryParams, variant: &Variant) -> u32 {
    p.rows * (p.heads * p.half).div_ceil(variant.get("WG") * variant.get("PAIRS"))
}

impl RotaryParams {
    /// The cosines and the sines of a row's pairs.
    fn angles<'a, F>(&self, table: &'a [F], row: usize) -> (&'a [F], &'a [F]) {
        let position = self.start as usize + row % self.seq_len as usize;
        let at = self.table_offset as usize + position * self.table_stride as usize;
        table[at..][..2 * self.half as usize].split_at(self.half as usize)
    }
}

/// Goes through the pairs: `turn` takes (a, b) with cosine and sine, and what it returns takes their place. What does not
/// turn goes through `rest`.
fn each<F: Real>(args: &mut Args<'_, F>, rest: impl Fn(F) -> F, turn: impl Fn([F; 2], [F; 2]) -> [F; 2]) {
    let p: RotaryParams = args.params();
    let (table, x) = (args.read(0), args.write(1));
    let before = x.to_vec();
    x.iter_mut().for_each(|x| *x = rest(*x));
    let (step, apart) = if p.interleaved == 1 { (2, 1) } else { (1, p.half as usize) };
    for r in 0..p.rows as usize {
        let (cos, sin) = p.angles(table, r);
        for head in 0..p.heads as usize {
            let first = p.x_offset as usize + r * p.x_stride as usize + head * p.head_size as usize;
            for (i, (&cos, &sin)) in cos.iter().zip(sin).enumerate() {
                let (a, b) = (first + i * step, first + i * step + apart);
                [x[a], x[b]] = turn([before[a], before[b]], [cos, F::of(p.sign.into()) * sin]);
            }
        }
    }
}

fn reference<F: Real>(args: &mut Args<'_, F>) {
    each(args, |x| x, |[a, b], [cos, sin]| [a * cos - b * sin, a * sin + b * cos]);
}

/// One rounding of each product; that of their sum is the rounding of the store. What does not turn stays to the bit.
fn bound(args: &mut Args<'_, f64>) {
    each(
        args,
        |_| 0.0,
        |[a, b], [cos, sin]| [(a * cos).abs() + (b * sin).abs(), (a * sin).abs() + (b * cos).abs()].map(|x| EPS * x),
    );
}

/// Rows that one task of the host takes.
const HOST_ROWS: usize = 8;

fn host(args: &mut Args<'_, f32>) {
    let p: RotaryParams = args.params();
    let (table, x) = (args.read(0), args.write(1));
    let (stride, cols) = (p.x_stride as usize, (p.heads * p.head_size) as usize);
    let len = (p.rows as usize - 1) * stride + cols;
    let blocks = x[p.x_offset as usize..][..len].par_chunks_mut(HOST_ROWS * stride);
    blocks.enumerate().for_each(|(block, x)| {
        vector::dispatch(
            #[inline(always)]
            || {
                for (i, row) in x.chunks_mut(stride).enumerate() {
                    let (cos, sin) = p.angles(table, block * HOST_ROWS + i);
                    turn_row(&p, cos, sin, &mut row[..cols]);
                }
            },
        );
    });
}

#[inline(always)]
fn turn_row(p: &RotaryParams, cos: &[f32], sin: &[f32], row: &mut [f32]) {
    for head in row.chunks_exact_mut(p.head_size as usize) {
        let turned = &mut head[..2 * p.half as usize];
        if p.interleaved == 1 {
            for (([a, b], &c), &s) in turned.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
                [*a, *b] = turned_pair(*a, *b, c, p.sign * s);
            }
        } else {
            let (first, second) = turned.split_at_mut(p.half as usize);
            for (((a, b), &c), &s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                [*a, *b] = turned_pair(*a, *b, c, p.sign * s);
            }
        }
    }
}

#[inline(always)]
fn turned_pair(a: f32, b: f32, c: f32, s: f32) -> [f32; 2] {
    [a.mul_add(c, -(b * s)), b.mul_add(c, a * s)]
}

/// Angles at random: nothing in the formula needs a cosine to belong to its sine.
fn cases() -> Vec<Case> {
    use Layout::{Halves, Interleaved};
    let shape =
        |heads, head_size, dims, layout, seq_len, start| Rotary { heads, head_size, dims, layout, seq_len, start };
    let all = [
        (1, 0, shape(1, 2, 2, Halves, 1, 0), false),
        (1, 0, shape(1, 2, 2, Interleaved, 1, 3), false),
        (11, 0, shape(3, 10, 10, Halves, 4, 0), false),
        (11, 0, shape(3, 10, 10, Interleaved, 4, 2), true),
        (37, 0, shape(2, 16, 6, Halves, 37, 0), true),
        (6, 0, shape(5, 16, 4, Interleaved, 3, 1), false),
        (9, 5, shape(4, 8, 8, Halves, 5, 0), true),
        (3, 4, shape(12, 64, 64, Halves, 3, 7), false),
        (3, 8, shape(3, 256, 64, Interleaved, 2, 0), true),
    ];
    all.into_iter().map(|(rows, at, shape, inverse)| case(rows, at, shape, inverse)).collect()
}

/// `rows` rows; with `at` not 0 they are columns of a wider matrix from there on, with as many behind them.
fn case(rows: usize, at: usize, shape: Rotary, inverse: bool) -> Case {
    let Rotary { heads, head_size, dims, layout, seq_len, start } = shape;
    let wide = heads * head_size + 2 * at;
    let (table, x) = ((0, Matrix::stride_for(dims)), (at, Matrix::stride_for(wide)));
    let params = shape.params(rows, table, x, inverse);
    let back = if inverse { ", back" } else { "" };
    Case {
        label: format!("{rows} x {heads} x {dims} of {head_size}, {layout:?}, from {start}{back}"),
        // One position more than there is: a row too far must find angles there, of another position.
        fills: vec![Fill::matrix(start + seq_len + 1, dims), Fill::matrix(rows, wide)],
        launch: Box::new(move |v| (params.words(), groups(&params, v))),
    }
}
