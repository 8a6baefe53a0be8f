//! Attention: every kernel and every shape of it within its bound; gradients against central differences in f64; both
//! schedules, any grid and any number of threads give equal bits; what no query may see is never read.

use crate::rig;
use gaufre::device::{ALL_CLASSES, Class, DEFAULT_TILE_SRAM, Device, Kernel, Variant, expand, workgroup_bytes};
use gaufre::program::attention::{self, Attention, AttentionParams, Dropout, Pass};
use gaufre::program::check::{self, Truth};
use gaufre::program::schedule::{Fabric, Schedule};
use gaufre::program::{Case, Matrix, Program, initial};
use gaufre::wafer::Wafer;
use std::sync::atomic::{AtomicUsize, Ordering};

#[test]
fn within_bound_on_every_device() {
    for device in rig::devices("attention").into_iter().chain([Device::reference().unwrap()]) {
        for program in attention::PROGRAMS {
            check::assert_within_bound(program, &device);
        }
    }
}

/// The cases that every shape of a kernel has room for.
fn small_cases(program: &Program) -> Vec<Case> {
    (program.cases)().into_iter().filter(|c| !c.label.contains("hd256")).collect()
}

#[test]
fn every_variant_is_within_bound() {
    const CASES: [fn() -> Vec<Case>; 4] = [
        || small_cases(&attention::FORWARD),
        || small_cases(&attention::DELTA),
        || small_cases(&attention::BACKWARD_QUERY),
        || small_cases(&attention::BACKWARD_KEY_VALUE),
    ];
    for device in rig::devices("attention variants") {
        for (program, cases) in attention::PROGRAMS.into_iter().zip(CASES) {
            // An adapter takes the shapes for every adapter, so that those for a GPU are run without one too.
            let native = |v: &&Variant| v.classes.contains(&Class::Native);
            let on_adapter = |v: &&Variant| v.classes.contains(&Class::Gpu) || v.classes.contains(&Class::Software);
            let wanted = |v: &&Variant| if device.class() == Class::Native { native(v) } else { on_adapter(v) };
            for variant in program.kernel.variants.iter().filter(wanted) {
                let variants: &'static [Variant] = vec![Variant { classes: ALL_CLASSES, ..*variant }].leak();
                let kernel = Kernel { variants, ..program.kernel.copy() };
                let program: &'static Program =
                    Box::leak(Box::new(Program { kernel, bound: program.bound, cases, fault: program.fault }));
                check::assert_within_bound(program, &device);
            }
        }
    }
}

#[test]
fn every_variant_fits_a_tile() {
    for program in attention::PROGRAMS {
        let kernel = &program.kernel;
        for variant in kernel.variants.iter().filter(|v| v.classes != [Class::Native]) {
            let workgroup = workgroup_bytes(kernel.name, &expand(kernel, variant).unwrap()).unwrap();
            let tile = workgroup + (kernel.held)(variant).total();
            assert!(workgroup <= 32 * 1024, "{} {}: {workgroup} bytes of workgroup memory", kernel.name, variant.name);
            assert!(tile <= DEFAULT_TILE_SRAM, "{} {}: {tile} bytes of SRAM", kernel.name, variant.name);
        }
    }
}

/// All operands of one attention on one device: q, k, v in one buffer, their gradients in another.
pub struct Operands {
    pub shape: Attention,
    pub q: Matrix,
    pub k: Matrix,
    pub v: Matrix,
    pub out: Matrix,
    pub lse: Matrix,
    pub d_out: Matrix,
    pub delta: Matrix,
    pub dq: Matrix,
    pub dk: Matrix,
    pub dv: Matrix,
    pub qkv: Matrix,
    pub d_qkv: Matrix,
}

impl Operands {
    /// Queries and keys of one length share their rows; a cache has its own.
    fn new(device: &Device, shape: &Attention) -> Operands {
        let (qc, kc) = (shape.query_heads * shape.head_size, shape.key_value_heads * shape.head_size);
        let rows = shape.batch * shape.key_value_rows;
        let new = |label: &str, rows: usize, cols: usize| Matrix::new(device, label, rows, cols).unwrap();
        let (qkv, d_qkv) = (new("qkv", rows, qc + 2 * kc), new("d_qkv", rows, qc + 2 * kc));
        let queries = shape.batch * shape.query_len;
        let scalars = |label| new(label, shape.batch * shape.query_heads, shape.query_len);
        Operands {
            shape: shape.clone(),
            q: qkv.columns(0, qc).rows(0, queries),
            k: qkv.columns(qc, kc),
            v: qkv.columns(qc + kc, kc),
            out: new("out", queries, qc),
            lse: scalars("lse"),
            d_out: new("d_out", queries, qc),
            delta: scalars("delta"),
            dq: d_qkv.columns(0, qc).rows(0, queries),
            dk: d_qkv.columns(qc, kc),
            dv: d_qkv.columns(qc + kc, kc),
            qkv,
            d_qkv,
        }
    }

    pub fn random(device: &Device, shape: &Attention) -> Operands {
        let operands = Operands::new(device, shape);
        operands.qkv.upload(device, &normal(1, &operands.qkv)).unwrap();
        operands.d_out.upload(device, &normal(2, &operands.d_out)).unwrap();
        operands
    }

    pub fn forward(&self, fabric: &Fabric) {
        attention::forward(fabric, &self.shape, &self.q, &self.k, &self.v, &self.out, &self.lse).unwrap();
    }

    pub fn backward(&self, fabric: &Fabric) {
        let Operands { shape, q, k, v, out, lse, d_out, delta, dq, dk, dv, .. } = self;
        attention::backward(fabric, shape, q, k, v, out, lse, d_out, delta, dq, dk, dv).unwrap();
    }

    /// The three passes as the fabric sees them: forward, gradient of the queries, gradient of keys and values.
    pub fn passes(&self, device: &Device) -> [Pass<'_>; 3] {
        let Operands { shape, q, k, v, out, lse, d_out, delta, dq, dk, dv, .. } = self;
        let class = device.class();
        [
            Pass::forward(class, shape, q, k, v, out, lse).unwrap(),
            Pass::backward_query(class, shape, q, k, v, d_out, lse, delta, dq).unwrap(),
            Pass::backward_key_value(class, shape, q, k, v, d_out, lse, delta, dk, dv).unwrap(),
        ]
    }

    /// Bits of out, lse, delta and all gradients.
    pub fn results(&self, device: &Device) -> Vec<u32> {
        [&self.out, &self.lse, &self.delta, &self.d_qkv]
            .iter()
            .flat_map(|m| device.download(&m.view).unwrap())
            .map(f32::to_bits)
            .collect()
    }
}

/// Normal values that are multiples of 1/1024, so that steps of 1/1024 from them are exact in f32.
fn normal(seed: u64, m: &Matrix) -> Vec<f32> {
    (0..(m.rows * m.cols) as u64).map(|i| (1024.0 * initial::normal(seed, i)).round() as f32 / 1024.0).collect()
}

fn fused(device: &Device) -> Fabric {
    Fabric::new(device.clone(), Schedule::Fused, Wafer::new(4, 4))
}

fn plain(head_size: usize, len: usize) -> Attention {
    Attention {
        batch: 2,
        query_heads: 3,
        key_value_heads: 3,
        head_size,
        query_len: len,
        key_value_len: len,
        query_start: 0,
        key_value_rows: len,
        scale: 1.0 / (head_size as f32).sqrt(),
        causal: true,
        window: None,
        dropout: None,
    }
}

fn drops(rate: f32) -> Option<Dropout> {
    Some(Dropout { key: 0x0123_4567_89ab_cdef, rate })
}

fn results(device: &Device, fabric: &Fabric, shape: &Attention) -> Vec<u32> {
    let operands = Operands::random(device, shape);
    operands.forward(fabric);
    operands.backward(fabric);
    operands.results(device)
}

#[test]
fn superstep_equals_fused_bit_for_bit() {
    let grouped = Attention { query_heads: 4, key_value_heads: 2, ..plain(12, 100) };
    let full = Attention { batch: 1, causal: false, ..plain(28, 70) };
    let large = Attention { batch: 1, query_heads: 1, key_value_heads: 1, ..plain(256, 37) };
    let cache = Attention { query_len: 40, query_start: 90, key_value_len: 130, key_value_rows: 133, ..plain(9, 40) };
    let windowed = Attention { window: Some(19), ..grouped.clone() };
    let behind = Attention { window: Some(50), ..cache.clone() };
    let dropping = Attention { dropout: drops(0.3), ..windowed.clone() };
    let both = Attention { dropout: drops(0.1), ..large.clone() };
    let shapes = [plain(28, 37), grouped, full, large, cache, windowed, behind, dropping, both];
    let native = [Device::reference().unwrap(), Device::oracle().unwrap()];
    for device in rig::devices("attention schedules").into_iter().chain(native) {
        for shape in &shapes {
            let want = results(&device, &fused(&device), shape);
            for (width, height) in [(1, 1), (3, 2), (8, 8)] {
                let fabric = Fabric::new(device.clone(), Schedule::Superstep, Wafer::new(width, height));
                let differ = results(&device, &fabric, shape).iter().zip(&want).filter(|(a, b)| a != b).count();
                assert_eq!(differ, 0, "{} on {width} x {height}: {shape:?}", device.name());
            }
        }
    }
}

#[test]
fn threads_do_not_change_bits() {
    for shape in [plain(28, 37), plain(64, 200), Attention { dropout: drops(0.5), ..plain(64, 203) }] {
        let run = |threads| {
            let device = Device::host(threads).unwrap();
            results(&device, &fused(&device), &shape)
        };
        let one = run(1);
        assert!(one == run(2) && one == run(3), "{shape:?}");
    }
}

#[test]
fn gradients_match_central_differences() {
    let device = Device::oracle().unwrap();
    let fabric = fused(&device);
    let grouped = Attention { query_heads: 4, key_value_heads: 2, batch: 1, ..plain(5, 6) };
    let cache = Attention { query_len: 3, query_start: 4, key_value_len: 7, key_value_rows: 8, ..plain(4, 3) };
    let full = Attention { causal: false, batch: 1, ..plain(3, 5) };
    let windowed = Attention { window: Some(3), ..grouped.clone() };
    let behind = Attention { window: Some(2), ..cache.clone() };
    let dropping = Attention { dropout: drops(0.3), ..grouped.clone() };
    let both = Attention { dropout: drops(0.5), ..windowed.clone() };
    for shape in [grouped, cache, full, windowed, behind, dropping, both] {
        let operands = Operands::random(&device, &shape);
        let cotangent = normal(2, &operands.d_out);
        let inputs = normal(1, &operands.qkv);
        let objective = |inputs: &[f32]| -> f64 {
            operands.qkv.upload(&device, inputs).unwrap();
            operands.forward(&fabric);
            let out = operands.out.download_f64(&device).unwrap();
            out.iter().zip(&cotangent).map(|(x, y)| x * f64::from(*y)).sum()
        };
        let differences = |step: f32| -> Vec<f64> {
            let moved = |i: usize, by: f32| {
                let mut moved = inputs.clone();
                moved[i] += by;
                objective(&moved)
            };
            (0..inputs.len()).map(|i| (moved(i, step) - moved(i, -step)) / (2.0 * f64::from(step))).collect()
        };
        let (near, far) = (differences(1.0 / 1024.0), differences(2.0 / 1024.0));
        // A central difference errs by a sixth of the squared step times a third derivative: a third of what twice the
        // step changes, for the largest of all elements. Beside it 2^10 roundings of an objective near 1 are nothing.
        let allowed = near.iter().zip(&far).fold(0.0f64, |most, (near, far)| most.max((near - far).abs()));
        objective(&inputs);
        operands.backward(&fabric);
        let gradient = operands.d_qkv.download_f64(&device).unwrap();
        for (i, (got, want)) in gradient.iter().zip(&near).enumerate() {
            assert!((got - want).abs() <= allowed, "{shape:?} element {i}: {got} against {want} within {allowed:e}");
        }
        let size = gradient.iter().fold(0.0f64, |a, x| a.max(x.abs()));
        assert!(allowed < 1e-4 * size, "{shape:?}: differences prove nothing within {allowed:e}");
    }
}

/// The oracle runs block by block; here is the formula itself.
#[test]
fn the_oracle_computes_the_softmax_of_all_scores() {
    let device = Device::oracle().unwrap();
    let shape = Attention { query_heads: 4, key_value_heads: 2, ..plain(5, 70) };
    for window in [None, Some(1), Some(23), Some(69)] {
        is_the_softmax_of_all_scores(&device, &Attention { window, ..shape.clone() });
    }
}

/// Holds `out` and `lse` of 70 positions, 4 heads of 5 columns in groups of two, against plain sums over what is seen.
fn is_the_softmax_of_all_scores(device: &Device, shape: &Attention) {
    let operands = Operands::random(device, shape);
    operands.forward(&fused(device));
    let [q, k, v] = [&operands.q, &operands.k, &operands.v].map(|m| (m.cols, m.download_f64(device).unwrap()));
    let (out, lse) = (operands.out.download_f64(device).unwrap(), operands.lse.download_f64(device).unwrap());
    let row =
        |(cols, values): &(usize, Vec<f64>), row: usize, head: usize| values[row * cols + head * 5..][..5].to_vec();
    for b in 0..2 {
        for (h, t) in (0..4).flat_map(|h| (0..70).map(move |t| (h, t))) {
            let own = row(&q, b * 70 + t, h);
            let seen = shape.window.map_or(0, |window| (t + 1).saturating_sub(window))..t + 1;
            let product = |key: Vec<f64>| own.iter().zip(&key).map(|(x, y)| x * y).sum::<f64>();
            let weights: Vec<f64> =
                seen.clone().map(|j| (f64::from(shape.scale) * product(row(&k, b * 70 + j, h / 2))).exp()).collect();
            let sum: f64 = weights.iter().sum();
            // Some roundings for each term of a sum, none of which is larger than all these together.
            let largest = weights.iter().chain(&k.1).chain(&v.1).fold(1.0f64, |most, x| most.max(x.abs()));
            let allowed = 4.0 * (t + 1 + 5) as f64 * f64::EPSILON * largest;
            assert!((lse[(b * 4 + h) * 70 + t] - sum.ln()).abs() <= allowed);
            for d in 0..5 {
                let values = seen.clone().map(|j| row(&v, b * 70 + j, h / 2)[d]);
                let want: f64 = weights.iter().zip(values).map(|(weight, value)| weight / sum * value).sum();
                assert!((out[((b * 70 + t) * 4 + h) * 5 + d] - want).abs() <= allowed);
            }
        }
    }
}

/// A bound that nothing comes near proves nothing, at the largest head too.
#[test]
fn bounds_are_tight() {
    for program in attention::PROGRAMS {
        for report in check::run(program, &rig::host(), 2).unwrap() {
            assert!(report.worst > 0.01, "{report}");
        }
    }
}

/// No query of 37 fills a window of 37, or of more than fits a word.
#[test]
fn a_window_that_nothing_fills_changes_no_bit() {
    for device in rig::devices("attention windows") {
        let want = results(&device, &fused(&device), &plain(28, 37));
        for window in [37, usize::MAX] {
            let wide = Attention { window: Some(window), ..plain(28, 37) };
            assert!(results(&device, &fused(&device), &wide) == want, "{} {window}", device.name());
        }
        let narrow = Attention { window: Some(36), ..plain(28, 37) };
        assert!(results(&device, &fused(&device), &narrow) != want, "{}: the last query loses a key", device.name());
    }
}

#[test]
fn a_rate_of_nothing_changes_no_bit() {
    for device in rig::devices("attention dropout") {
        let run = |dropout| results(&device, &fused(&device), &Attention { dropout, ..plain(28, 37) });
        let want = run(None);
        assert!(run(drops(0.0)) == want, "{}", device.name());
        assert!(run(drops(1e-2)) != want, "{}", device.name());
    }
}

/// With unit rows as values, `out` holds the weights after dropout; with unit rows as its gradient, so does `dv`, transposed
/// and added up over the heads of a group.
#[test]
fn both_passes_of_every_device_drop_what_the_words_say() {
    let grouped = Attention { query_heads: 4, key_value_heads: 2, dropout: drops(0.4), ..plain(80, 75) };
    let cache = Attention { query_start: 3, key_value_len: 78, key_value_rows: 79, window: Some(70), ..plain(80, 75) };
    let cache = Attention { dropout: drops(0.4), ..cache };
    let native = [Device::reference().unwrap(), Device::oracle().unwrap()];
    for device in rig::devices("attention dropout").into_iter().chain(native) {
        for shape in [&grouped, &cache] {
            drops_what_the_words_say(&device, shape);
        }
    }
}

fn drops_what_the_words_say(device: &Device, shape: &Attention) {
    let operands = Operands::random(device, shape);
    let (size, len, keys) = (shape.head_size, shape.query_len, shape.key_value_len);
    let unit = |row: usize, col: usize| f32::from(u8::from(row == col % size));
    let mut values = normal(1, &operands.qkv);
    for (row, values) in values.chunks_mut(operands.qkv.cols).enumerate() {
        for (col, x) in values[operands.v.offset..].iter_mut().enumerate() {
            *x = unit(row % shape.key_value_rows, col);
        }
    }
    operands.qkv.upload(device, &values).unwrap();
    let cols = operands.d_out.cols;
    let units = (0..operands.d_out.rows * cols).map(|i| unit(i / cols % len, i % cols));
    operands.d_out.upload(device, &units.collect::<Vec<_>>()).unwrap();
    operands.forward(&fused(device));
    operands.backward(&fused(device));
    let (out, dv) = (operands.out.download(device).unwrap(), operands.dv.download(device).unwrap());
    let (dropout, group) = (shape.dropout.unwrap(), shape.query_heads / shape.key_value_heads);
    let kept = |b: usize, head: usize, t: usize, key: usize| {
        let position = shape.query_start + t;
        let index = ((b * shape.query_heads + head) * len + t) * keys + key;
        let word = f64::from(initial::word(dropout.key, index as u64));
        let seen = key <= position && shape.window.is_none_or(|window| position - key < window);
        seen && word >= f64::from(dropout.rate) * 2.0f64.powi(32)
    };
    for (b, head) in (0..shape.batch).flat_map(|b| (0..shape.query_heads).map(move |head| (b, head))) {
        for (t, key) in (0..len).flat_map(|t| (0..keys).map(move |key| (t, key))) {
            let weight = out[(b * len + t) * operands.out.cols + head * size + key];
            assert_eq!(weight > 0.0, kept(b, head, t, key), "out, {}: {head} {t} {key}, {shape:?}", device.name());
            let of_group = dv[(b * shape.key_value_rows + key) * operands.dv.cols + head / group * size + t];
            let first = head / group * group;
            let any = (first..first + group).any(|head| kept(b, head, t, key));
            assert_eq!(of_group > 0.0, any, "dv, {}: {head} {t} {key}, {shape:?}", device.name());
        }
    }
}

/// So many heads and keys that the indices of their pairs take more than the low word of a block's number: 2^34. A window of
/// one key makes it quick, and every output its value, dropped or not.
#[test]
fn words_are_found_past_the_low_word() {
    let many = 140_000;
    let shape =
        Attention { query_heads: many, key_value_heads: 1, query_len: 1, query_start: many - 1, ..plain(1, many) };
    let shape = Attention { batch: 1, window: Some(1), dropout: drops(0.5), ..shape };
    for device in rig::devices("attention, many heads") {
        let new = |rows, cols| Matrix::new(&device, "many", rows, cols).unwrap();
        let [q, k, v, out, lse] = [(1, many), (many, 1), (many, 1), (1, many), (many, 1)].map(|(r, c)| new(r, c));
        v.upload(&device, &vec![1.0; many]).unwrap();
        attention::forward(&fused(&device), &shape, &q, &k, &v, &out, &lse).unwrap();
        for (head, x) in out.download(&device).unwrap().iter().enumerate() {
            let word = initial::word(shape.dropout.unwrap().key, (head * many + many - 1) as u64);
            assert_eq!(*x, if word < 1 << 31 { 0.0 } else { 2.0 }, "{}, head {head}", device.name());
        }
    }
}

/// While it is set, launches are told nothing of one word.
static FORGETFUL: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Cases of which a word can be forgotten.
fn forgetful(program: &Program) -> Vec<Case> {
    let forgets = |Case { label, fills, launch }| Case {
        label,
        fills,
        launch: Box::new(move |variant: &Variant| {
            let (mut words, groups) = launch(variant);
            if let Some(word) = words.get_mut(FORGETFUL.load(Ordering::Relaxed)) {
                *word = 0;
            }
            (words, groups)
        }),
    };
    small_cases(program).into_iter().map(forgets).collect()
}

#[test]
fn a_kernel_that_ignores_window_or_key_is_caught() {
    type Cases = fn() -> Vec<Case>;
    let planted: [(&Program, Cases); 3] = [
        (&attention::FORWARD, || forgetful(&attention::FORWARD)),
        (&attention::BACKWARD_QUERY, || forgetful(&attention::BACKWARD_QUERY)),
        (&attention::BACKWARD_KEY_VALUE, || forgetful(&attention::BACKWARD_KEY_VALUE)),
    ];
    for (program, cases) in planted {
        let Program { bound, fault, .. } = *program;
        let program = Box::leak(Box::new(Program { kernel: program.kernel.copy(), bound, cases, fault }));
        let truth = Truth::of(program, 1).unwrap();
        for device in rig::devices("attention, forgetful") {
            let caught = || truth.catches(&program.kernel, &device, None).unwrap();
            assert!(caught().is_none(), "{}", device.name());
            for (name, case) in [("window", "window"), ("key_low", "dropout"), ("key_high", "dropout")] {
                let word = AttentionParams::FIELDS.iter().position(|(field, _)| *field == name).unwrap();
                FORGETFUL.store(word, Ordering::Relaxed);
                let report = caught();
                FORGETFUL.store(usize::MAX, Ordering::Relaxed);
                assert!(report.is_some_and(|report| report.case.contains(case)), "{}: {name}", device.name());
            }
        }
    }
}

#[test]
fn hidden_rows_are_never_read() {
    // Keys after the last query of a causal attention, rows of a cache past its length, and blocks before every window: of
    // 128 rows, whatever a variant's block.
    let hidden = Attention { query_len: 10, key_value_len: 150, key_value_rows: 200, batch: 1, ..plain(28, 10) };
    let cache = Attention { query_len: 1, query_start: 40, key_value_len: 41, key_value_rows: 200, ..hidden.clone() };
    let windowed = Attention { query_start: 170, key_value_len: 180, window: Some(40), ..hidden.clone() };
    for device in rig::devices("attention poison") {
        for schedule in [Schedule::Fused, Schedule::Superstep] {
            let fabric = Fabric::new(device.clone(), schedule, Wafer::new(2, 2));
            for (shape, before) in [(&hidden, 0), (&cache, 0), (&windowed, 128)] {
                let operands = Operands::random(&device, shape);
                operands.forward(&fabric);
                let want = operands.out.download(&device).unwrap();
                let mut values = normal(1, &operands.qkv);
                let first = operands.k.offset;
                for row in (0..before).chain(shape.query_start + shape.query_len..shape.key_value_rows) {
                    values[row * operands.qkv.cols..][first..operands.qkv.cols].fill(f32::NAN);
                }
                operands.qkv.upload(&device, &values).unwrap();
                operands.out.upload(&device, &vec![f32::NAN; want.len()]).unwrap();
                operands.forward(&fabric);
                operands.backward(&fabric);
                assert_eq!(want, operands.out.download(&device).unwrap(), "{} {schedule:?}", device.name());
                let dq = operands.dq.download(&device).unwrap();
                assert!(dq.iter().all(|x| x.is_finite()), "{} {schedule:?}: dq", device.name());
            }
        }
    }
}

#[test]
fn wrong_shapes_are_refused() {
    let device = rig::host();
    let fabric = fused(&device);
    let o = Operands::new(&device, &plain(8, 4));
    for shape in [
        Attention { head_size: 257, ..o.shape.clone() },
        Attention { key_value_heads: 2, ..o.shape.clone() },
        Attention { key_value_len: 5, ..o.shape.clone() },
        Attention { query_len: 3, ..o.shape.clone() },
        Attention { window: Some(0), ..o.shape.clone() },
        Attention { window: Some(2), causal: false, ..o.shape.clone() },
        Attention { window: Some(2), query_start: 2, ..o.shape.clone() },
        Attention { dropout: drops(1.0), ..o.shape.clone() },
        Attention { dropout: drops(-0.1), ..o.shape.clone() },
        Attention { dropout: drops(f32::NAN), ..o.shape.clone() },
    ] {
        assert!(attention::forward(&fabric, &shape, &o.q, &o.k, &o.v, &o.out, &o.lse).is_err(), "{shape:?}");
    }
    // Gradients of keys and values in two buffers, though at equal offsets: one binding holds both.
    let [dq, dk, dv] = [&o.q, &o.k, &o.v].map(|x| Matrix::new(&device, "gradient", x.rows, x.cols).unwrap());
    let delta = Matrix::new(&device, "delta", o.lse.rows, o.lse.cols).unwrap();
    let refused =
        attention::backward(&fabric, &o.shape, &o.q, &o.k, &o.v, &o.out, &o.lse, &o.out, &delta, &dq, &dk, &dv);
    assert!(refused.is_err());
}
