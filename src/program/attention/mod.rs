//! Attention as an online softmax over blocks of keys and values, forward and backward; no matrix of queries by keys is
//! ever stored. It knows heads, positions and blocks; it must never know where in a model it stands.
//!
//! `s = scale * q . k`, `p = softmax(s)` over the keys a query may see, `out = p v`; backward recomputes `p` from the saved
//! `lse = ln sum exp s`: `dv = p^T dout`, `ds = p * (dout v^T - delta)`, `dq = scale ds k`, `dk = scale ds^T q`,
//! `delta = rowsum(dout * out)` (Dao et al., arXiv 2205.14135, 2307.08691). With a sliding window a query sees only the
//! last keys before it (Jiang et al., arXiv 2310.06825). With dropout `out = (f p) v`, where a random word of each pair makes
//! `f` 0 or the inverse of the share that is kept; then `dv = (f p)^T dout`, `ds = p * (f * (dout v^T) - delta)`, and `lse`
//! stays what it is (Srivastava et al. 2014; on the weights as in Vaswani et al., arXiv 1706.03762).
//!
//! Four kernels. `attention_forward` and `attention_backward_query` keep a block of queries of one head on a tile and
//! receive blocks of keys and values from the farthest the block may see, downwards: with causal attention the diagonal
//! comes first, wholly masked blocks never come, the last one is the lowest in the window of any query of the block, and from
//! one step to the next the blocks shift by one tile along y. `attention_backward_key_value` keeps a block of keys and values
//! of one key/value head and receives, for each query head of its group in turn, the blocks of queries from the diagonal
//! upwards, to the last whose window holds one of its keys. `attention_delta` is local to a tile.
//!
//! Order of additions: a dot product over the head size adds index by index, ascending, in one accumulator (`delta` on the
//! host: in 16 partial sums, index modulo 16, which are then added in order); the sums over
//! keys (`l`, `out`, `dq`) add block by block, descending, keys ascending inside a block; the sums over queries (`dk`, `dv`)
//! add head by head, block by block and query by query, ascending. `l` and `out` are rescaled once a block, so the number
//! of columns of a block (`COLS` of the variant) is part of the order.

mod bound;
mod cases;
mod host;
mod multiply;
mod pass;
mod reference;
mod tiles;

use super::{Matrix, Program};
use crate::device::{Class, DeviceError, Held, Kernel, Lane, Result, Variant, read, write};
use crate::program::schedule::Fabric;
pub use pass::Pass;

/// Largest head size that a tile has room for.
pub const MAX_HEAD_SIZE: usize = 256;

/// The shape of one attention: which rows belong together and which keys a query may see.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Sequences.
    pub batch: usize,
    /// Heads of the queries: a multiple of `key_value_heads`.
    pub query_heads: usize,
    /// Heads of keys and values; query head `h` attends to head `h / (query_heads / key_value_heads)`.
    pub key_value_heads: usize,
    /// Columns of a head, at most [`MAX_HEAD_SIZE`].
    pub head_size: usize,
    /// Queries of a sequence.
    pub query_len: usize,
    /// Keys and values of a sequence.
    pub key_value_len: usize,
    /// Position of the first query; keys start at position 0.
    pub query_start: usize,
    /// Rows from one sequence to the next in keys and values: a cache is longer than `key_value_len`.
    pub key_value_rows: usize,
    /// What scores are multiplied by before the softmax.
    pub scale: f32,
    /// Whether a query sees only keys at its position and before.
    pub causal: bool,
    /// Of these, how many at most: it sees a key if its position less the key's is below this. Wants `causal`; `None`
    /// and a window that no query fills are one.
    pub window: Option<usize>,
    /// Dropout of the softmax weights; `None` and a rate of 0 are one.
    pub dropout: Option<Dropout>,
}

/// Which softmax weights become zero; the others are divided by the share that is kept. Of sequence `b`, query head `h`,
/// query `t` and key `j` it is the one whose [`word`](super::initial::word) of `key`, at index
/// `((b * query_heads + h) * query_len + t) * key_value_len + j`, lies below `rate * 2^32`: on every device the same.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Seed of the words: another for each attention of a step, the same in its forward and its backward pass.
    pub key: u64,
    /// The share that becomes zero: 0 or more, less than 1.
    pub rate: f32,
}

impl Dropout {
    /// Random words below this drop a weight.
    fn threshold(&self) -> u32 {
        (f64::from(self.rate) * WORDS).ceil() as u32
    }
}

/// Number of random words.
const WORDS: f64 = 4_294_967_296.0;

/// Flag of [`AttentionParams`]: causal.
const CAUSAL: u32 = 1;
/// Flag: received blocks lie in inboxes, one after the other by workgroup.
const INBOX: u32 = 2;
/// Flag: steps are left to do, so the state is saved and no result written.
const SAVES: u32 = 4;

crate::params! {
    /// Parameters of all four kernels. `own` is the side that stays on the tile: keys and values in
    /// `attention_backward_key_value`, queries elsewhere. Offsets and strides are elements.
    pub struct AttentionParams {
        /// First step of this launch: restores the saved state when not 0.
        first_step: u32,
        /// One past the last step.
        last_step: u32,
        /// Sum of flags: 1 causal; 2 received blocks lie in inboxes, one after the other by workgroup; 4 steps are left to do,
        /// so the state is saved, else results are written.
        flags: u32,
        /// First block row of the round.
        first_row: u32,
        /// First block column of the round.
        first_col: u32,
        /// Block columns of the round.
        width: u32,
        /// Query heads.
        query_heads: u32,
        /// Query heads of a key/value head.
        group: u32,
        /// Columns of a head.
        head_size: u32,
        /// Queries of a sequence.
        query_len: u32,
        /// Keys of a sequence.
        key_value_len: u32,
        /// Position of the first query.
        query_start: u32,
        /// Rows from one sequence to the next in keys and values.
        key_value_rows: u32,
        /// Factor of the scores.
        scale: f32,
        /// Keys that a causal query sees at most; 0: all.
        window: u32,
        /// Queries.
        q_offset: u32,
        /// Elements from one row of queries to the next.
        q_stride: u32,
        /// Keys.
        k_offset: u32,
        /// The same of keys.
        k_stride: u32,
        /// Values.
        v_offset: u32,
        /// The same of values.
        v_stride: u32,
        /// `out` (forward, delta) or `d_out` (backward).
        o_offset: u32,
        /// Elements from one of its rows to the next.
        o_stride: u32,
        /// `dq`, `dk`, or `d_out` (delta).
        grad_offset: u32,
        /// Elements from one of its rows to the next; of `dv` too.
        grad_stride: u32,
        /// `dv`.
        grad_v_offset: u32,
        /// `lse` and `delta`: one row a sequence and query head.
        row_offset: u32,
        /// Elements from one of their rows to the next.
        row_stride: u32,
        /// Seed of the random words, low word.
        key_low: u32,
        /// The same, high word.
        key_high: u32,
        /// Random words below it drop a weight; 0: no dropout.
        threshold: u32,
    }
}

const GPU: &[Class] = &[Class::Gpu];
const SOFTWARE: &[Class] = &[Class::Software];
const NATIVE: &[Class] = &[Class::Native];

/// A shape for WGSL: lanes, rows a lane, columns a block, largest head size, whether blocks are staged in shared memory,
/// and whether it drops weights.
macro_rules! tile {
    ($name:expr, $classes:ident, $wg:literal x $rows:literal, $cols:literal, $head:literal, staged $staged:literal,
     dropout $dropout:literal) => {
        Variant {
            name: $name,
            classes: $classes,
            constants: &[
                ("WG", $wg),
                ("R", $rows),
                ("ROWS", $wg * $rows),
                ("COLS", $cols),
                ("QUADS", $cols / 4),
                ("HEAD", $head),
                ("STAGED", $staged),
                ("DROPOUT", $dropout),
            ],
        }
    };
}

/// Shapes for WGSL, each without dropout and with it, so that what does not drop pays for nothing, and shapes for native
/// code, which do either.
macro_rules! variants {
    ($($name:literal, $classes:ident, $wg:literal x $rows:literal, $cols:literal, $head:literal, staged $staged:literal;)*
     native $($native:literal, $own:literal x $block:literal, $most:literal;)*) => {
        &[
            $(tile!($name, $classes, $wg x $rows, $cols, $head, staged $staged, dropout 0),)*
            $(tile!(concat!($name, "drop"), $classes, $wg x $rows, $cols, $head, staged $staged, dropout 1),)*
            $(Variant {
                name: $native,
                classes: NATIVE,
                constants: &[("ROWS", $own), ("COLS", $block), ("HEAD", $most)],
            },)*
        ]
    };
}

/// A lane's accumulators lie in workgroup memory, so a tile has as many lanes as its SRAM has room for: at head size 64
/// 64 rows for the queries. The first of a class takes every head size; [`variant_for`] prefers the smallest that holds the head.
const QUERY_VARIANTS: &[Variant] = variants! {
    "gpu16x8h256", GPU, 16 x 1, 8, 256, staged 1;
    "gpu32x16h128", GPU, 32 x 1, 16, 128, staged 1;
    "gpu64x16h64", GPU, 64 x 1, 16, 64, staged 1;
    "lanes8x2x16h256", SOFTWARE, 8 x 2, 16, 256, staged 0;
    "lanes8x4x8h64", SOFTWARE, 8 x 4, 8, 64, staged 0;
    native
    "host32x64h256", 32 x 64, 256;
    "host64x64h128", 64 x 64, 128;
};

/// Two accumulators a row instead of one, so half the rows.
const KEY_VALUE_VARIANTS: &[Variant] = variants! {
    "gpu8x8h256", GPU, 8 x 1, 8, 256, staged 1;
    "gpu16x16h128", GPU, 16 x 1, 16, 128, staged 1;
    "gpu32x16h64", GPU, 32 x 1, 16, 64, staged 1;
    "lanes8x1x16h256", SOFTWARE, 8 x 1, 16, 256, staged 0;
    "lanes8x4x8h64", SOFTWARE, 8 x 4, 8, 64, staged 0;
    native
    "host16x64h256", 16 x 64, 256;
    "host32x64h128", 32 x 64, 128;
    "host64x64h64", 64 x 64, 64;
};

const DELTA_VARIANTS: &[Variant] = &[tile!("rows64", ALL, 64 x 1, 4, 256, staged 0, dropout 0)];
const ALL: &[Class] = crate::device::ALL_CLASSES;

/// Whether a variant has room for a head and drops weights as told; native code does either.
fn runs(variant: &Variant, params: &AttentionParams) -> bool {
    let meets = |(name, value): &(&str, u32)| match *name {
        "HEAD" => params.head_size <= *value,
        "DROPOUT" => (params.threshold > 0) == (*value == 1),
        _ => true,
    };
    variant.constants.iter().all(meets)
}

/// The shape of a kernel for a launch: of a class, the one with the least room that suffices.
fn variant_for(kernel: &'static Kernel, class: Class, params: &AttentionParams) -> &'static Variant {
    kernel
        .variants
        .iter()
        .filter(|v| v.classes.contains(&class) && runs(v, params))
        .min_by_key(|v| v.get("HEAD"))
        .unwrap_or_else(|| kernel.variant(class))
}

/// What a tile holds beside its workgroup memory, where output or gradients add up: so many sums a row in the registers of
/// a lane, and so many elements a row that are saved between steps. Native code has no lanes: it adds up in memory of the thread
/// that plays the tile, and only what it saves stays with the tile.
fn held(variant: &Variant, sums: u32, saved: u32) -> Held {
    let lanes = variant.constants.iter().any(|(name, _)| *name == "WG");
    let rows = variant.get("ROWS");
    Held { accumulators: if lanes { 4 * rows * sums } else { 0 }, state: 4 * rows * saved }
}

/// The programs, in the order of a training step.
pub static PROGRAMS: [&Program; 4] = [&FORWARD, &DELTA, &BACKWARD_QUERY, &BACKWARD_KEY_VALUE];

const WGSL: &str = super::philox::with_philox!("../../../shaders/philox.wgsl", "../../../shaders/attention.wgsl");

/// `out` and `lse`: bindings q, k, v, out, lse, state.
pub static FORWARD: Program = Program {
    kernel: Kernel {
        name: "attention_forward",
        wgsl: WGSL,
        bindings: &[
            read("q", Lane::F32),
            read("k", Lane::F32),
            read("v", Lane::F32),
            write("out", Lane::F32),
            write("lse", Lane::F32),
            write("state", Lane::F32),
        ],
        params: AttentionParams::FIELDS,
        variants: QUERY_VARIANTS,
        // Accumulators: a score for each key of a block, maximum and sum of a query. State: maxima, sums and output.
        held: |v| held(v, v.get("COLS") + 2, v.get("HEAD") + 2),
        reference_f32: reference::forward,
        reference_f64: reference::forward,
        host: Some(host::forward),
    },
    bound: bound::forward,
    cases: cases::forward,
    fault: ("* fade", "+ fade"),
};

/// `delta = rowsum(dout * out)`: bindings out, d_out, delta.
pub static DELTA: Program = Program {
    kernel: Kernel {
        name: "attention_delta",
        wgsl: WGSL,
        bindings: &[read("out", Lane::F32), read("d_out", Lane::F32), write("delta", Lane::F32)],
        params: AttentionParams::FIELDS,
        variants: DELTA_VARIANTS,
        // A sum a row, in its lane.
        held: |v| Held { accumulators: 4 * v.get("ROWS"), state: 0 },
        reference_f32: reference::delta,
        reference_f64: reference::delta,
        host: Some(host::delta),
    },
    bound: bound::delta,
    cases: cases::delta,
    fault: ("var sum = 0.0", "var sum = 0.01"),
};

/// `dq`: bindings q, k, v, d_out, lse, delta, dq, state.
pub static BACKWARD_QUERY: Program = Program {
    kernel: Kernel {
        name: "attention_backward_query",
        wgsl: WGSL,
        bindings: &[
            read("q", Lane::F32),
            read("k", Lane::F32),
            read("v", Lane::F32),
            read("d_out", Lane::F32),
            read("lse", Lane::F32),
            read("delta", Lane::F32),
            write("dq", Lane::F32),
            write("state", Lane::F32),
        ],
        params: AttentionParams::FIELDS,
        variants: QUERY_VARIANTS,
        // Accumulators: for each key of a block its score and the gradient of its weight. State: dq.
        held: |v| held(v, 2 * v.get("COLS"), v.get("HEAD")),
        reference_f32: reference::backward_query,
        reference_f64: reference::backward_query,
        host: Some(host::backward_query),
    },
    bound: bound::backward_query,
    cases: cases::backward_query,
    fault: ("- delta${r}", "+ delta${r}"),
};

/// `dk` and `dv`, in one buffer at two offsets: bindings q, k, v, d_out, lse, delta, dkv, state.
pub static BACKWARD_KEY_VALUE: Program = Program {
    kernel: Kernel {
        name: "attention_backward_key_value",
        wgsl: WGSL,
        bindings: &[
            read("q", Lane::F32),
            read("k", Lane::F32),
            read("v", Lane::F32),
            read("d_out", Lane::F32),
            read("lse", Lane::F32),
            read("delta", Lane::F32),
            write("dkv", Lane::F32),
            write("state", Lane::F32),
        ],
        params: AttentionParams::FIELDS,
        variants: KEY_VALUE_VARIANTS,
        // Accumulators: for each query of a block its score and the gradient of its weight. State: dk and dv.
        held: |v| held(v, 2 * v.get("COLS"), 2 * v.get("HEAD")),
        reference_f32: reference::backward_key_value,
        reference_f64: reference::backward_key_value,
        host: Some(host::backward_key_value),
    },
    bound: bound::backward_key_value,
    cases: cases::backward_key_value,
    fault: ("p.window > 0u", "p.window > 0x7fffffffu"),
};

/// Queues the forward pass. `q` is `[batch * query_len, query_heads * head_size]`, `k` and `v`
/// `[batch * key_value_rows, key_value_heads * head_size]`, `out` like `q`, `lse` `[batch * query_heads, query_len]`; any may
/// be a slice of a wider matrix. Padding columns are left as they are.
///
/// # Errors
/// [`DeviceError::Usage`] for a shape that is none or matrices that do not have it; what the device says.
pub fn forward(
    fabric: &Fabric,
    shape: &Attention,
    q: &Matrix,
    k: &Matrix,
    v: &Matrix,
    out: &Matrix,
    lse: &Matrix,
) -> Result<()> {
    fabric.run(&Pass::forward(fabric.device().class(), shape, q, k, v, out, lse)?)
}

/// Queues the backward pass from `d_out`: writes `delta` (`[batch * query_heads, query_len]`, at the offset and stride of
/// `lse`), `dq`, `dk` and `dv` (of the shapes of `q`, `k`, `v`; `dk` and `dv` slices of one matrix). Rows of `dk` and `dv` past
/// `key_value_len` are left as they are.
///
/// # Errors
/// As [`forward`].
#[allow(clippy::too_many_arguments)] // the operands of the formula, in its order
pub fn backward(
    fabric: &Fabric,
    shape: &Attention,
    q: &Matrix,
    k: &Matrix,
    v: &Matrix,
    out: &Matrix,
    lse: &Matrix,
    d_out: &Matrix,
    delta: &Matrix,
    dq: &Matrix,
    dk: &Matrix,
    dv: &Matrix,
) -> Result<()> {
    let (device, class) = (fabric.device(), fabric.device().class());
    let queries = Pass::backward_query(class, shape, q, k, v, d_out, lse, delta, dq)?;
    let keys = Pass::backward_key_value(class, shape, q, k, v, d_out, lse, delta, dk, dv)?;
    shape.check(&[out], &[], &[])?;
    let mut params = shape.params(q, k, v, lse);
    (params.o_offset, params.o_stride) = place(out);
    (params.grad_offset, params.grad_stride) = place(d_out);
    let kernel = &DELTA.kernel;
    params.width = params.query_heads;
    let own_blocks = params.query_len.div_ceil(kernel.variant(class).get("ROWS"));
    let groups = shape.batch as u32 * own_blocks * params.width;
    super::launch(device, kernel, &params, |_| groups, &[out, d_out, delta].map(|m| m.view.clone()))?;
    fabric.run(&queries)?;
    fabric.run(&keys)
}

fn place(m: &Matrix) -> (u32, u32) {
    (m.offset as u32, m.stride as u32)
}

impl Attention {
    /// Query heads that share a head of keys and values.
    fn group(&self) -> usize {
        self.query_heads / self.key_value_heads
    }

    /// Pairs of a query and a key that it sees, of one head and sequence.
    fn pairs(&self) -> u64 {
        let seen = |query: usize| match self.causal {
            true => (self.query_start + query + 1).min(self.key_value_len).min(self.window.unwrap_or(usize::MAX)),
            false => self.key_value_len,
        };
        (0..self.query_len).map(|query| seen(query) as u64).sum()
    }

    fn check(&self, queries: &[&Matrix], keys: &[&Matrix], scalars: &[&Matrix]) -> Result<()> {
        let fail = |what: String| Err(DeviceError::Usage(format!("attention: {what} in {self:?}")));
        if self.head_size == 0 || self.head_size > MAX_HEAD_SIZE {
            return fail(format!("head size {} is not in 1..={MAX_HEAD_SIZE}", self.head_size));
        }
        if self.key_value_heads == 0 || self.query_heads == 0 || !self.query_heads.is_multiple_of(self.key_value_heads)
        {
            return fail("query heads are not a multiple of key/value heads".into());
        }
        if self.key_value_len == 0 || self.key_value_len > self.key_value_rows {
            return fail("key_value_len is not in 1..=key_value_rows".into());
        }
        if let Some(window) = self.window {
            if window == 0 || !self.causal {
                return fail("a window wants causal attention and holds at least one key".into());
            }
            if self.query_start + self.query_len >= self.key_value_len.saturating_add(window) {
                return fail("no key lies in the window of the last query".into());
            }
        }
        if self.dropout.is_some_and(|dropout| !(0.0..1.0).contains(&dropout.rate)) {
            return fail("the rate of dropout is not in 0..1".into());
        }
        let shapes = [
            (queries, self.batch * self.query_len, self.query_heads * self.head_size),
            (keys, self.batch * self.key_value_rows, self.key_value_heads * self.head_size),
            (scalars, self.batch * self.query_heads, self.query_len),
        ];
        for (matrices, rows, cols) in shapes {
            if let Some(m) = matrices.iter().find(|m| (m.rows, m.cols) != (rows, cols)) {
                return fail(format!("a matrix is {} x {}, should be {rows} x {cols}", m.rows, m.cols));
            }
            if matrices.iter().any(|m| m.offset + m.rows * m.stride >= u32::MAX as usize) {
                return fail("an operand is too long for 32-bit addresses".into());
            }
        }
        Ok(())
    }

    /// What the gradient kernels share, from `q, k, v, d_out` and `lse, delta`.
    fn gradient_params(&self, [q, k, v, d_out]: [&Matrix; 4], [lse, delta]: [&Matrix; 2]) -> Result<AttentionParams> {
        if place(lse) != place(delta) {
            return Err(DeviceError::Usage("attention: lse and delta must have one offset and one stride".into()));
        }
        let mut params = self.params(q, k, v, lse);
        (params.o_offset, params.o_stride) = place(d_out);
        Ok(params)
    }

    /// What is known of a launch without its operands.
    fn shape_params(&self) -> AttentionParams {
        let mut p: AttentionParams = bytemuck::Zeroable::zeroed();
        p.query_heads = self.query_heads as u32;
        p.group = self.group() as u32;
        p.head_size = self.head_size as u32;
        p.query_len = self.query_len as u32;
        p.key_value_len = self.key_value_len as u32;
        p.query_start = self.query_start as u32;
        p.key_value_rows = self.key_value_rows as u32;
        p.scale = self.scale;
        p.flags = if self.causal { CAUSAL } else { 0 };
        // A window that no query fills hides nothing.
        p.window = self.window.filter(|&w| w < self.query_start + self.query_len).unwrap_or(0) as u32;
        if let Some(dropout) = &self.dropout {
            (p.key_low, p.key_high) = (dropout.key as u32, (dropout.key >> 32) as u32);
            p.threshold = dropout.threshold();
        }
        p
    }

    /// Everything but what belongs to one kernel or one launch.
    fn params(&self, q: &Matrix, k: &Matrix, v: &Matrix, scalars: &Matrix) -> AttentionParams {
        let mut p = self.shape_params();
        (p.q_offset, p.q_stride) = place(q);
        (p.k_offset, p.k_stride) = place(k);
        (p.v_offset, p.v_stride) = place(v);
        (p.row_offset, p.row_stride) = place(scalars);
        p
    }
}
