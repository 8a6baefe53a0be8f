//! The one comparator: runs the cases of a program on a device and on the f64 oracle, on equal inputs, and holds each
//! output element against its computed bound.
//!
//! Outputs are poisoned before a run and every view lies between sentinels, so what was not written, or was written
//! outside, is found. Comparisons are written so that NaN fails them. Inputs come from a generator of its own: the
//! checker shares no arithmetic with what it checks. It must never know what a program computes.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock};

use super::{Case, Fill, Program};
use crate::device::{Access, Buffer, Device, Elem, Kernel, Launch, Result, Variant, View};

/// Bits of the NaN that outputs hold before a run.
pub const POISON: u32 = 0x7fc0_dead;
/// Elements before and after each view that must not change: whole alignments of any adapter.
pub const SENTINELS: usize = 64;
/// Bits of a sentinel, as a float a NaN: a kernel that reads one shows it in its result.
const SENTINEL: u32 = 0x7fc0_5e17;

/// What came of one case in one variant on one device.
#[derive(Clone, Debug)]
pub struct Report {
    /// The kernel's name.
    pub program: &'static str,
    /// The case's label.
    pub case: String,
    /// The variant's name.
    pub variant: &'static str,
    /// Elements compared with a value of the oracle (what the oracle leaves unwritten is held too, but not counted).
    pub elements: usize,
    /// Largest error over its bound; infinite for a NaN, a missing value, a broken sentinel or nothing to compare.
    pub worst: f64,
    /// Where, and what was found there; empty when every element is exact.
    pub place: String,
}

impl Report {
    fn new(kernel: &Kernel, case: &str, variant: &Variant) -> Report {
        let (program, variant) = (kernel.name, variant.name);
        Report { program, case: case.into(), variant, elements: 0, worst: 0.0, place: String::new() }
    }

    /// True when every element lies within its bound.
    pub fn passed(&self) -> bool {
        self.worst <= 1.0
    }

    /// Keeps the worst place. NaN counts as infinite, the first of equals stays, and what is exact is no place at all.
    fn found(&mut self, ratio: f64, place: impl FnOnce() -> String) {
        let ratio = if ratio.is_nan() { f64::INFINITY } else { ratio };
        if ratio > self.worst {
            self.worst = ratio;
            self.place = place();
        }
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Report { program, case, variant, worst, place, .. } = self;
        write!(f, "{program}, case {case}, variant {variant}: worst error is {worst:.3e} of its bound")?;
        if place.is_empty() { Ok(()) } else { write!(f, ", {place}") }
    }
}

/// A fault planted on the device's side of a comparison; the oracle never sees it.
pub enum Fault<'a> {
    /// Alters what a binding holds before the launch: (binding, contents).
    Operand(&'a dyn Fn(usize, &mut [u32])),
    /// Launches no tile at all.
    Idle,
    /// Alters what is read back of each output: (index of an element that the oracle writes, words with the sentinels at
    /// both ends; the index counts from the first of them).
    Outcome(&'a dyn Fn(usize, &mut [u32])),
}

/// Runs every case of a program on a device, in every variant that the device's class can run.
///
/// # Errors
/// What the device says; a wrong number is a [`Report`], not an error.
pub fn run(program: &'static Program, device: &Device, seed: u64) -> Result<Vec<Report>> {
    run_kernel(program, &program.kernel, device, seed, None)
}

/// The same with `kernel` on the device in place of the program's own, and a fault planted.
///
/// # Errors
/// As [`run`].
pub fn run_kernel(
    program: &'static Program,
    kernel: &'static Kernel,
    device: &Device,
    seed: u64,
    fault: Option<&Fault<'_>>,
) -> Result<Vec<Report>> {
    Truth::of(program, seed)?.compare(kernel, device, fault)
}

/// Panics with the worst place of any case that is out of its bound.
///
/// # Panics
/// When a case fails, when there is none, or when the device fails.
pub fn assert_within_bound(program: &'static Program, device: &Device) {
    let reports = run(program, device, 1).unwrap_or_else(|e| panic!("{}: {e}", device.name()));
    assert!(!reports.is_empty(), "{} has no cases", program.kernel.name);
    for report in &reports {
        assert!(report.passed(), "on {}: {report}", device.name());
    }
}

/// The cases of a program with the oracle's results and bounds: computed once, compared with as often as wanted.
pub struct Truth {
    cases: Vec<(Case, Expected)>,
}

/// Contents before the launch, and what each binding must hold after it.
struct Expected {
    contents: Vec<Vec<u32>>,
    outcomes: Vec<Outcome>,
}

enum Outcome {
    /// A read-only binding: as it was.
    Unchanged,
    /// Integers are exact.
    Ids(Vec<u32>),
    /// Each float within its bound.
    Floats { want: Vec<f64>, bound: Vec<f64> },
}

impl Truth {
    /// Runs every case on the oracle; the inputs are a pure function of `seed`, case and binding.
    ///
    /// # Errors
    /// What the oracle says: a launch that does not fit the declaration.
    pub fn of(program: &'static Program, seed: u64) -> Result<Truth> {
        let oracle = Device::oracle()?;
        let expect = |(at, case): (usize, Case)| {
            let words = |(i, fill): (usize, &Fill)| fill.words(mix(mix(seed, at as u64), i as u64));
            let contents: Vec<Vec<u32>> = case.fills.iter().enumerate().map(words).collect();
            let expected = Expected::on(&oracle, program, &case, contents)?;
            Ok((case, expected))
        };
        Ok(Truth { cases: (program.cases)().into_iter().enumerate().map(expect).collect::<Result<_>>()? })
    }

    /// Runs `kernel` (the program's own, or an altered copy) on every case in every variant for the device's class that
    /// has room for it. A variant that no case runs in gets a report that fails.
    ///
    /// # Errors
    /// What the device says.
    pub fn compare(&self, kernel: &'static Kernel, device: &Device, fault: Option<&Fault<'_>>) -> Result<Vec<Report>> {
        let judged = |(case, expected, variant)| judge_case(kernel, case, expected, variant, device, fault);
        let mut reports = self.runs(kernel, device).map(judged).collect::<Result<Vec<_>>>()?;
        for variant in kernel.variants.iter().filter(|v| v.classes.contains(&device.class())) {
            if !reports.iter().any(|report| report.variant == variant.name) {
                let mut report = Report::new(kernel, "none", variant);
                report.found(f64::INFINITY, || "no case runs in this variant".into());
                reports.push(report);
            }
        }
        Ok(reports)
    }

    /// The first report that fails with a fault planted; `None` when the fault goes unseen.
    ///
    /// # Errors
    /// What the device says: a fault that does not even run proves nothing about the comparator.
    pub fn catches(
        &self,
        kernel: &'static Kernel,
        device: &Device,
        fault: Option<&Fault<'_>>,
    ) -> Result<Option<Report>> {
        for (case, expected, variant) in self.runs(kernel, device) {
            let report = judge_case(kernel, case, expected, variant, device, fault)?;
            if !report.passed() {
                return Ok(Some(report));
            }
        }
        Ok(None)
    }

    fn runs<'a>(
        &'a self,
        kernel: &'static Kernel,
        device: &Device,
    ) -> impl Iterator<Item = (&'a Case, &'a Expected, &'static Variant)> {
        let class = device.class();
        let variants = kernel.variants.iter().filter(move |v| v.classes.contains(&class));
        let pairs =
            self.cases.iter().flat_map(move |(case, expected)| variants.clone().map(move |v| (case, expected, v)));
        pairs.filter(|(case, _, variant)| (case.launch)(variant).1 > 0)
    }
}

impl Outcome {
    /// An element that the oracle writes, where there is one.
    fn written(&self) -> Option<usize> {
        match self {
            Outcome::Unchanged => None,
            Outcome::Ids(want) => (!want.is_empty()).then_some(0),
            Outcome::Floats { want, .. } => want.iter().position(|x| !x.is_nan()),
        }
    }
}

impl Expected {
    fn on(oracle: &Device, program: &'static Program, case: &Case, contents: Vec<Vec<u32>>) -> Result<Expected> {
        let run = |kernel: &'static Kernel| {
            let rig = Rig::fill(kernel, oracle, &contents)?;
            rig.launch(kernel, kernel.variant(oracle.class()), case, oracle, false)?;
            Ok(rig)
        };
        let (truth, bounds) = (run(&program.kernel)?, run(bound_kernel(program))?);
        let outcome = |(i, binding): (usize, &crate::device::Binding)| {
            Ok(match (binding.access, binding.lane.elem()) {
                (Access::Read, _) => Outcome::Unchanged,
                (Access::Write, Elem::U32) => Outcome::Ids(oracle.download_ids(&truth.views[i])?),
                (Access::Write, Elem::F32) => Outcome::Floats {
                    want: oracle.download_f64(&truth.views[i])?,
                    bound: oracle.download_f64(&bounds.views[i])?,
                },
            })
        };
        let outcomes = program.kernel.bindings.iter().enumerate().map(outcome).collect::<Result<_>>()?;
        Ok(Expected { contents, outcomes })
    }
}

/// The program's kernel with its bound in place of its f64 reference: one copy a program, kept for good because a launch
/// wants a kernel that lives as long as the process.
fn bound_kernel(program: &'static Program) -> &'static Kernel {
    static COPIES: OnceLock<Mutex<HashMap<usize, &'static Kernel>>> = OnceLock::new();
    let copies = COPIES.get_or_init(Mutex::default);
    let key = std::ptr::from_ref(program) as usize;
    copies
        .lock()
        .expect("no panic while the lock is held")
        .entry(key)
        .or_insert_with(|| Box::leak(Box::new(Kernel { reference_f64: program.bound, ..program.kernel.copy() })))
}

fn judge_case(
    kernel: &'static Kernel,
    case: &Case,
    expected: &Expected,
    variant: &'static Variant,
    device: &Device,
    fault: Option<&Fault<'_>>,
) -> Result<Report> {
    let mut altered = None;
    if let Some(Fault::Operand(alter)) = fault {
        let contents = altered.insert(expected.contents.clone());
        contents.iter_mut().enumerate().for_each(|(i, words)| alter(i, words));
    }
    let rig = Rig::fill(kernel, device, altered.as_ref().unwrap_or(&expected.contents))?;
    rig.launch(kernel, variant, case, device, matches!(fault, Some(Fault::Idle)))?;
    let mut report = Report::new(kernel, &case.label, variant);
    for (i, outcome) in expected.outcomes.iter().enumerate() {
        let mut words = rig.words(device, i)?;
        if let (Some(Fault::Outcome(alter)), Some(at)) = (fault, outcome.written()) {
            alter(SENTINELS + at, &mut words);
        }
        let before = altered.as_ref().unwrap_or(&expected.contents);
        judge_binding(&mut report, kernel.bindings[i].name, &words, &before[i], outcome);
    }
    if report.elements == 0 {
        report.found(f64::INFINITY, || "nothing was compared".into());
    }
    Ok(report)
}

/// Holds one binding, sentinels included, against what it must hold.
fn judge_binding(report: &mut Report, name: &str, words: &[u32], before: &[u32], outcome: &Outcome) {
    let body = SENTINELS..SENTINELS + before.len();
    for (at, &word) in words.iter().enumerate() {
        if !body.contains(&at) && word != SENTINEL {
            report.found(f64::INFINITY, || format!("{name}: wrote outside, at {}", at as i64 - SENTINELS as i64));
        }
    }
    let body = &words[body];
    match outcome {
        Outcome::Unchanged => {
            for (at, _) in body.iter().zip(before).enumerate().filter(|(_, (now, before))| now != before) {
                report.found(f64::INFINITY, || format!("{name}[{at}] is an operand and was written"));
            }
        }
        Outcome::Ids(want) => {
            report.elements += want.len();
            for (at, (got, want)) in body.iter().zip(want).enumerate().filter(|(_, (got, want))| got != want) {
                report.found(f64::INFINITY, || format!("{name}[{at}] is {got}, should be {want}"));
            }
        }
        Outcome::Floats { want, bound } => {
            for (at, &word) in body.iter().enumerate() {
                report.elements += usize::from(!want[at].is_nan());
                report.found(judge(word, before[at], want[at], bound[at]), || {
                    let got = f32::from_bits(word);
                    format!("{name}[{at}] is {got:e}, should be {:e} within {:.2e}", want[at], bound[at])
                });
            }
        }
    }
}

/// Error over bound. An element that the reference leaves poisoned must be left as it was; any other must be finite, and
/// so must its bound: an infinite or negative bound would let anything pass.
pub fn judge(got: u32, before: u32, want: f64, bound: f64) -> f64 {
    if want.is_nan() {
        return if before == POISON && got == POISON { 0.0 } else { f64::INFINITY };
    }
    let got = f64::from(f32::from_bits(got));
    if got == want {
        return 0.0; // an exact result needs no bound
    }
    let error = (got - want).abs();
    if !error.is_finite() || !bound.is_finite() || bound < 0.0 {
        return f64::INFINITY;
    }
    // The rounding of the final store is always allowed.
    error / (bound + super::EPS * want.abs() + f64::from(f32::MIN_POSITIVE))
}

/// The buffers of one run of a case: each view lies between sentinels.
struct Rig {
    buffers: Vec<Buffer>,
    views: Vec<View>,
}

impl Rig {
    fn fill(kernel: &Kernel, device: &Device, contents: &[Vec<u32>]) -> Result<Rig> {
        assert_eq!(kernel.bindings.len(), contents.len(), "{}: one fill for each binding", kernel.name);
        let (mut buffers, mut views) = (Vec::new(), Vec::new());
        for (binding, words) in kernel.bindings.iter().zip(contents) {
            let buffer = device.buffer(binding.name, binding.lane.elem(), words.len() + 2 * SENTINELS)?;
            let mut whole = vec![SENTINEL; buffer.len()];
            whole[SENTINELS..][..words.len()].copy_from_slice(words);
            device.upload(&buffer.all(), &whole)?;
            views.push(buffer.view(SENTINELS, words.len()));
            buffers.push(buffer);
        }
        Ok(Rig { buffers, views })
    }

    fn launch(
        &self,
        kernel: &'static Kernel,
        variant: &'static Variant,
        case: &Case,
        device: &Device,
        idle: bool,
    ) -> Result<()> {
        let (words, groups) = (case.launch)(variant);
        let groups = if idle { 0 } else { groups };
        device.launch(&Launch { kernel, variant, groups, params: &words, views: &self.views })
    }

    fn words(&self, device: &Device, i: usize) -> Result<Vec<u32>> {
        match self.buffers[i].elem() {
            Elem::F32 => Ok(device.download(&self.buffers[i].all())?.into_iter().map(f32::to_bits).collect()),
            Elem::U32 => device.download_ids(&self.buffers[i].all()),
        }
    }
}

impl Fill {
    /// The contents, as words: a pure function of the seed.
    pub fn words(&self, seed: u64) -> Vec<u32> {
        match self {
            Fill::Normal { rows, cols, stride, scale, mean } => {
                let mut words = vec![0u32; rows * stride];
                for r in 0..*rows {
                    for c in 0..*cols {
                        let x = normal(seed, (r * cols + c) as u64);
                        words[r * stride + c] = (mean + scale * x).to_bits();
                    }
                }
                words
            }
            Fill::Ids { len, below } => (0..*len as u64).map(|i| (mix(seed, i) >> 32) as u32 % below).collect(),
            Fill::Floats(values) => values.iter().map(|x| x.to_bits()).collect(),
            Fill::Words(words) => words.clone(),
            Fill::Poison { len } => vec![POISON; *len],
        }
    }
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) over two words.
fn mix(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15).wrapping_add(index.wrapping_mul(0xD1B5_4A32_D192_ED03));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A standard normal value by Box and Muller.
fn normal(seed: u64, index: u64) -> f32 {
    let bits = mix(seed, index);
    let unit = |word: u32| (f64::from(word) + 0.5) / 4_294_967_296.0;
    let (u, v) = (unit(bits as u32), unit((bits >> 32) as u32));
    ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
}
