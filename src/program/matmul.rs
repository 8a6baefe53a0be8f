//! Matrix products in the three transpositions that training needs: `C = A B^T`, `A B` and `A^T B`, with an optional bias row
//! and optionally added to what C holds.
//!
//! A tile owns a `TM x TN` block of C and keeps it in accumulators; at step s it receives block (i, s) of A along its row and
//! block (s, j) of B along its column, `KB` deep. Order of additions on adapters: one accumulator per element that starts
//! from C (or zero), k ascending, explicit fma, the bias last; on the host: the same for each chunk of [`PANEL_ROWS`], the
//! chunks added to C in order, the bias last. So no tile, grid, panel or number of threads changes a bit. On the host, a
//! result of one row in the form NT sums each chunk in 64 lanes that meet in halves: the same row as one of several may
//! differ in its last bits. It must never know what its operands mean.

mod host;
mod reference;
mod stream;

use super::schedule::{Block, Fabric, Origin, Round, Routing, Schedule, Source, Stepwise};
use super::{Case, Fill, Matrix, Program};
use crate::device::{
    Buffer, Class, Device, DeviceError, Held, Kernel, Lane, Launch, Result, Variant, View, read, write,
};
use crate::wafer::{Cost, Product, Route, Wafer, Work};
use stream::Stream;

/// Depth of one chunk of a contraction on the host. Panels of an operand whose rows are contracted are multiples of it.
pub const PANEL_ROWS: usize = 512;

/// Which operands are transposed. C is `M x N`, the contraction is over K.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// `C = A B^T`: A is `M x K`, B is `N x K`.
    NT,
    /// `C = A B`: A is `M x K`, B is `K x N`.
    NN,
    /// `C = A^T B`: A is `K x M`, B is `K x N`.
    TN,
}

/// One product. Operands may be row panels and column slices: offsets are multiples of 8 elements.
#[derive(Clone, Copy, Debug)]
pub struct Matmul<'a> {
    /// Which operands are transposed.
    pub form: Form,
    /// The left operand.
    pub a: &'a Matrix,
    /// The right operand.
    pub b: &'a Matrix,
    /// The result. Its padding columns are written as zeros when it reaches the end of the padded row; a slice that does
    /// not has a multiple of 8 columns, and nothing outside it is written.
    pub c: &'a Matrix,
    /// `1 x N`, added once to each row, after all products.
    pub bias: Option<&'a Matrix>,
    /// True: `C += ...`.
    pub accumulate: bool,
}

crate::params! {
    /// Parameters of the three kernels. A and B of the tile in row y and column x of the launch begin at element
    /// `base + y * tile_y + x * tile_x`, whether in place or in an inbox.
    pub struct MatmulParams {
        /// Rows of C.
        m: u32,
        /// Columns of C.
        n: u32,
        /// Depth of the contraction.
        k: u32,
        /// First step of the launch.
        first: u32,
        /// Step after its last.
        last: u32,
        /// Steps of the whole product.
        steps: u32,
        /// 1: C is added to.
        accumulate: u32,
        /// 1: there is a bias.
        bias: u32,
        /// 1: operands are read in place, so that neighbouring tiles' blocks touch.
        in_place: u32,
        /// Columns of blocks of the launch.
        round_width: u32,
        /// First row of blocks.
        first_row: u32,
        /// First column of blocks.
        first_col: u32,
        /// First element of A.
        a_base: u32,
        /// Elements between rows of A.
        a_stride: u32,
        /// Elements of A between tiles down.
        a_tile_y: u32,
        /// Elements of A between tiles to the right.
        a_tile_x: u32,
        /// First element of B.
        b_base: u32,
        /// Elements between rows of B.
        b_stride: u32,
        /// Elements of B between tiles down.
        b_tile_y: u32,
        /// Elements of B between tiles to the right.
        b_tile_x: u32,
        /// First element of the bias.
        bias_base: u32,
        /// First element of C.
        c_base: u32,
        /// Elements between rows of C.
        c_stride: u32,
        /// Columns of C to write, with the padding.
        c_cols: u32,
    }
}

/// Constants of a kernel's variants for one form: along = 1 where k runs along the operand's rows.
macro_rules! variants {
    ($a_along:literal, $b_along:literal) => {
        &[
            Variant {
                name: "gpu64x64",
                classes: &[Class::Gpu],
                constants: &[
                    ("WG", 64),
                    ("TM", 64),
                    ("TN", 64),
                    ("KB", 16),
                    ("DEPTH", 16),
                    ("SHARED", 1),
                    ("A_ALONG", $a_along),
                    ("B_ALONG", $b_along),
                ],
            },
            Variant {
                name: "software16x128",
                classes: &[Class::Software],
                constants: &[
                    ("WG", 8),
                    ("TM", 16),
                    ("TM_QUADS", 4),
                    ("TN", 128),
                    ("QUADS", 4),
                    ("KB", 32),
                    ("SHARED", 0),
                    ("A_ALONG", $a_along),
                    ("B_ALONG", $b_along),
                ],
            },
            Variant {
                name: "host64x64",
                classes: &[Class::Native],
                constants: &[("TM", 64), ("TN", 64), ("KB", 512), ("A_ALONG", $a_along), ("B_ALONG", $b_along)],
            },
        ]
    };
}

/// The program of one form.
macro_rules! program {
    ($name:literal, $form:expr, $a_along:literal, $b_along:literal) => {
        Program {
            kernel: Kernel {
                name: $name,
                wgsl: include_str!("../../shaders/matmul.wgsl"),
                bindings: &[
                    read("a", Lane::Vec4),
                    read("b", Lane::Vec4),
                    read("row_bias", Lane::Vec4),
                    write("c", Lane::Vec4),
                ],
                params: MatmulParams::FIELDS,
                variants: variants!($a_along, $b_along),
                // Accumulators: one for each element of a block of C. State: that block, which holds them between steps.
                held: |v| Held { accumulators: block_bytes(v), state: block_bytes(v) },
                reference_f32: reference::product,
                reference_f64: reference::product,
                host: Some(host::product),
            },
            bound: reference::bound,
            cases: || cases($form),
            fault: ("min(p.last * KB, p.k)", "min(p.last * KB, p.k - 1u)"),
        }
    };
}

/// Bytes of a block of C.
fn block_bytes(variant: &Variant) -> u32 {
    4 * variant.get("TM") * variant.get("TN")
}

/// The three programs.
pub static PROGRAMS: [&Program; 3] = [&NT, &NN, &TN];

/// `C = A B^T`: bindings a, b, row_bias, c.
pub static NT: Program = program!("matmul_nt", Form::NT, 1, 1);
/// `C = A B`: the same bindings.
pub static NN: Program = program!("matmul_nn", Form::NN, 1, 0);
/// `C = A^T B`: the same bindings.
pub static TN: Program = program!("matmul_tn", Form::TN, 0, 0);

impl Form {
    /// The program of this form.
    pub fn program(self) -> &'static Program {
        match self {
            Form::NT => &NT,
            Form::NN => &NN,
            Form::TN => &TN,
        }
    }

    /// M, N and K (as A and as B have it) of a product of `a` and `b`, given as (rows, columns).
    fn shape(self, a: (usize, usize), b: (usize, usize)) -> (usize, usize, [usize; 2]) {
        match self {
            Form::NT => (a.0, b.0, [a.1, b.1]),
            Form::NN => (a.0, b.1, [a.1, b.0]),
            Form::TN => (a.1, b.1, [a.0, b.0]),
        }
    }
}

/// Queues a product.
///
/// # Errors
/// [`DeviceError::Usage`] when shapes or offsets do not fit; else what the device says.
pub fn run(fabric: &Fabric, m: &Matmul<'_>) -> Result<()> {
    let tiled = Tiled::new(m, m.form.program().kernel.variant(fabric.device().class()))?;
    match (fabric.schedule(), fabric.routing()) {
        (Schedule::Superstep, Routing::WeightStream) => Stream::new(&tiled).run(fabric),
        _ => fabric.run(&tiled),
    }
}

/// What a product costs in supersteps by the route of a fabric, in closed form.
///
/// # Errors
/// As [`run`].
pub fn cost(fabric: &Fabric, m: &Matmul<'_>) -> Result<Cost> {
    let tiled = Tiled::new(m, m.form.program().kernel.variant(fabric.device().class()))?;
    Ok(match fabric.routing() {
        Routing::WeightStream => Stream::new(&tiled).cost(fabric.wafer()),
        Routing::Broadcast => tiled.cost(fabric.wafer()),
    })
}

/// The product as the fabric's scheduler sees it, in the variant that the device takes by default.
///
/// # Errors
/// [`DeviceError::Usage`] when shapes or offsets do not fit.
pub fn stepwise<'a>(fabric: &Fabric, m: &Matmul<'a>) -> Result<impl Stepwise + use<'a>> {
    Tiled::new(m, m.form.program().kernel.variant(fabric.device().class()))
}

/// A product cut into blocks for a variant.
struct Tiled<'a> {
    product: Matmul<'a>,
    variant: &'static Variant,
    /// Shape, steps and flags; addresses are filled in for each launch.
    params: MatmulParams,
}

impl<'a> Tiled<'a> {
    fn new(m: &Matmul<'a>, variant: &'static Variant) -> Result<Tiled<'a>> {
        let extent = |x: &Matrix| (x.rows, x.cols);
        let (rows, cols, depth) = m.form.shape(extent(m.a), extent(m.b));
        let fits = depth[0] == depth[1]
            && depth[0] > 0
            && extent(m.c) == (rows, cols)
            && m.bias.is_none_or(|bias| extent(bias) == (1, cols));
        let sliced = |x: &Matrix| {
            x.offset.is_multiple_of(8)
                && (x.cols.is_multiple_of(8) || x.offset % x.stride + x.cols.next_multiple_of(8) == x.stride)
        };
        if !fits || ![m.a, m.b, m.c].into_iter().chain(m.bias).all(sliced) {
            return Err(DeviceError::Usage(format!("operands of a product do not fit: {m:?}")));
        }
        let params = MatmulParams {
            steps: (depth[0] as u32).div_ceil(variant.get("KB")),
            accumulate: m.accumulate.into(),
            bias: m.bias.is_some().into(),
            bias_base: m.bias.map_or(0, |bias| bias.offset as u32),
            c_base: m.c.offset as u32,
            c_stride: m.c.stride as u32,
            ..MatmulParams::of(rows, cols, depth[0])
        };
        Ok(Tiled { product: *m, variant, params })
    }

    /// f32 elements of A and of B that travel, each once, with the padding that is moved along.
    fn elements(&self) -> (u64, u64) {
        let whole = |m: &Matrix| (m.rows * m.cols.next_multiple_of(4)) as u64;
        (whole(self.product.a), whole(self.product.b))
    }

    /// Block (i, j) of C, with its padding.
    fn result(&self, i: u32, j: u32) -> Block {
        let (c, rows, cols) = (self.product.c, self.get("TM"), self.get("TN"));
        let (row, col) = (i as usize * rows, j as usize * cols);
        Block {
            buffer: c.view.buffer.clone(),
            offset: c.view.offset + c.offset + row * c.stride + col,
            stride: c.stride,
            rows: rows.min(c.rows - row),
            cols: cols.min(self.params.c_cols as usize - col),
        }
    }

    fn get(&self, name: &str) -> usize {
        self.variant.get(name) as usize
    }

    /// Rows and columns of a block of an operand, and whether k runs along its rows.
    fn block(&self, operand: usize) -> (usize, usize, bool) {
        let (across, along) = match operand {
            0 => (self.get("TM"), self.variant.get("A_ALONG") == 1),
            _ => (self.get("TN"), self.variant.get("B_ALONG") == 1),
        };
        if along { (across, self.get("KB"), true) } else { (self.get("KB"), across, false) }
    }
}

impl MatmulParams {
    /// Shape alone.
    fn of(m: usize, n: usize, k: usize) -> MatmulParams {
        let c_cols = n.next_multiple_of(8) as u32;
        MatmulParams { m: m as u32, n: n as u32, k: k as u32, c_cols, ..bytemuck::Zeroable::zeroed() }
    }

    /// The element of C at a row and a column. Its first may lie before what is bound: places wrap at 2^32, as in WGSL.
    fn c_at(&self, row: usize, col: usize) -> usize {
        self.c_base.wrapping_add((row * self.c_stride as usize + col) as u32) as usize
    }

    /// All steps on all blocks, operands in place at offsets and strides.
    fn fuse(&mut self, variant: &Variant, a: (usize, usize), b: (usize, usize)) -> u32 {
        let (rows, cols) = (self.m.div_ceil(variant.get("TM")), self.n.div_ceil(variant.get("TN")));
        let next = |along: &str, block: &str, stride: usize| {
            variant.get(block) * if variant.get(along) == 1 { stride as u32 } else { 1 }
        };
        self.steps = self.k.div_ceil(variant.get("KB"));
        (self.first, self.last, self.in_place, self.round_width) = (0, self.steps, 1, cols);
        (self.a_base, self.a_stride) = (a.0 as u32, a.1 as u32);
        (self.b_base, self.b_stride) = (b.0 as u32, b.1 as u32);
        (self.a_tile_y, self.a_tile_x) = (next("A_ALONG", "TM", a.1), 0);
        (self.b_tile_y, self.b_tile_x) = (0, next("B_ALONG", "TN", b.1));
        rows * cols
    }

    /// Operands in inboxes of a length and a row stride each.
    fn receive(&mut self, round: Round, a: (usize, usize), b: (usize, usize)) -> u32 {
        self.round_width = round.width;
        (self.first_row, self.first_col) = (round.first_row, round.first_col);
        (self.a_stride, self.a_tile_x, self.a_tile_y) = (a.1 as u32, a.0 as u32, a.0 as u32 * round.width);
        (self.b_stride, self.b_tile_x, self.b_tile_y) = (b.1 as u32, b.0 as u32, b.0 as u32 * round.width);
        round.tiles()
    }
}

impl Stepwise for Tiled<'_> {
    fn name(&self) -> &'static str {
        self.product.form.program().kernel.name
    }

    fn work(&self) -> Work {
        let MatmulParams { m, n, k, .. } = self.params;
        Work::Product { m: m.into(), n: n.into(), k: k.into() }
    }

    fn cost(&self, wafer: &Wafer) -> Cost {
        let MatmulParams { m, n, k, .. } = self.params;
        let block = |size: u32, name: &str| (size.into(), self.variant.get(name).into());
        Product { m: block(m, "TM"), n: block(n, "TN"), k: block(k, "KB"), elements: self.elements() }.superstep(wafer)
    }

    fn blocks(&self) -> (u32, u32) {
        (self.params.m.div_ceil(self.variant.get("TM")), self.params.n.div_ceil(self.variant.get("TN")))
    }

    fn steps(&self) -> u32 {
        self.params.steps
    }

    fn operands(&self) -> usize {
        2
    }

    fn inbox(&self, operand: usize) -> (usize, usize) {
        let (rows, cols, _) = self.block(operand);
        (rows * cols, cols)
    }

    /// None beside the tile's own block of C, which holds the sums between steps.
    fn state(&self) -> usize {
        0
    }

    fn receives(&self, i: u32, j: u32, step: u32, operand: usize) -> Option<Block> {
        let (source, route) = match operand {
            0 => (self.product.a, Route::BroadcastRow),
            _ => (self.product.b, Route::BroadcastColumn),
        };
        let (rows, cols, along) = self.block(operand);
        // Blocks are numbered (row, column) of the untransposed factor: A is M x K, B is K x N.
        let (bi, bj) = route.block(i, j, step);
        let (across, depth) = if operand == 0 { (bi, bj) } else { (bj, bi) };
        let (down, right) = if along { (across, depth) } else { (depth, across) };
        let (row, col) = (down as usize * rows, right as usize * cols);
        Some(Block {
            buffer: source.view.buffer.clone(),
            offset: source.view.offset + source.offset + row * source.stride + col,
            stride: source.stride,
            rows: rows.min(source.rows - row),
            // Padding travels too: kernels read whole vectors of four.
            cols: cols.min(source.cols.next_multiple_of(4) - col),
        })
    }

    fn origin(&self, i: u32, j: u32, step: u32, operand: usize) -> Origin {
        let route = if operand == 0 { Route::BroadcastRow } else { Route::BroadcastColumn };
        Origin { owner: route.block(i, j, step), passed: None }
    }

    fn launch(
        &self,
        device: &Device,
        round: Round,
        source: Source<'_>,
        first: u32,
        last: u32,
        _state: &Buffer,
    ) -> Result<()> {
        let mut params = self.params;
        let (groups, a, b) = match source {
            Source::InPlace => {
                let (a, b) = (self.product.a, self.product.b);
                let groups = params.fuse(self.variant, (a.offset, a.stride), (b.offset, b.stride));
                (groups, a.view.clone(), b.view.clone())
            }
            Source::Inbox(inboxes) => {
                let groups = params.receive(round, self.inbox(0), self.inbox(1));
                (groups, inboxes[0].all(), inboxes[1].all())
            }
        };
        (params.first, params.last) = (first, last);
        // Without a bias its binding is not read; it must be bound all the same.
        let bias = self.product.bias.map_or_else(|| b.clone(), |bias| bias.view.clone());
        let views: [View; 4] = [a, b, bias, self.product.c.view.clone()];
        device.launch(&Launch {
            kernel: &self.product.form.program().kernel,
            variant: self.variant,
            groups,
            params: bytemuck::cast_slice(bytemuck::bytes_of(&params)),
            views: &views,
        })
    }
}

/// Odd, edge, wide and deep shapes, C as a whole matrix and as an interior slice of columns.
fn cases(form: Form) -> Vec<Case> {
    let shapes = [
        (1, 1, 1, false, false),
        (37, 211, 84, true, false),
        (37, 211, 84, true, true),
        (5, 40, 2, false, true),
        (130, 24, 530, false, false),
        (1, 264, 1031, true, true),
        (65, 1, 7, false, false),
        (17, 129, 33, true, false),
    ];
    shapes.map(|(m, n, k, bias, accumulate)| case(form, (m, n, k), bias, accumulate)).into()
}

fn case(form: Form, (m, n, k): (usize, usize, usize), bias: bool, accumulate: bool) -> Case {
    let (a, b) = match form {
        Form::NT => ((m, k), (n, k)),
        Form::NN => ((m, k), (k, n)),
        Form::TN => ((k, m), (k, n)),
    };
    // A result of a multiple of 8 columns is checked as an interior slice.
    let (c_offset, c_stride) = if n % 8 == 0 { (8, n + 16) } else { (0, Matrix::stride_for(n)) };
    let c = match accumulate {
        true => Fill::Normal { rows: m, cols: n + 2 * c_offset, stride: c_stride, scale: 1.0, mean: 0.0 },
        false => Fill::Poison { len: m * c_stride },
    };
    let fills = vec![Fill::matrix(a.0, a.1), Fill::matrix(b.0, b.1), Fill::matrix(1, n), c];
    let params = MatmulParams {
        accumulate: accumulate.into(),
        bias: bias.into(),
        c_base: c_offset as u32,
        c_stride: c_stride as u32,
        ..MatmulParams::of(m, n, k)
    };
    let strides = (Matrix::stride_for(a.1), Matrix::stride_for(b.1));
    Case {
        label: format!("{m}x{n}x{k}{}{}", if bias { " bias" } else { "" }, if accumulate { " accumulate" } else { "" }),
        fills,
        launch: Box::new(move |v| {
            let mut params = params;
            let groups = params.fuse(v, (0, strides.0), (0, strides.1));
            (bytemuck::cast_slice(bytemuck::bytes_of(&params)).to_vec(), groups)
        }),
    }
}
