//! The one comparator: runs a case of a program on a device and on the f64 oracle, on the device's own inputs, and holds
//! each output element against its computed bound. Outputs are poisoned before the run and every view lies between
//! sentinels, so what was not written, or was written outside, is found. Comparisons are written so that NaN fails them.

use super::{Case, Fill, Program, initial};
use crate::device::{Access, Buffer, Device, Elem, Kernel, Launch, Result, View};

/// Bits of the NaN that outputs hold before a run.
pub const POISON: u32 = 0x7fc0_dead;
/// Elements before and after each view that must not change.
const SENTINELS: usize = 64;
const SENTINEL: u32 = 0x7fc0_5e17;

/// What came of one case on one device.
#[derive(Clone, Debug)]
pub struct Report {
    /// The kernel's name.
    pub program: &'static str,
    /// The case's label.
    pub case: String,
    /// Elements compared.
    pub elements: usize,
    /// Largest error over its bound; infinite for a NaN, a missing value or a broken sentinel.
    pub worst: f64,
    /// Where, and what was found there.
    pub place: String,
}

impl Report {
    /// True when every element lies within its bound.
    pub fn passed(&self) -> bool {
        self.worst <= 1.0
    }
}

/// Runs every case of a program on a device.
///
/// # Errors
/// What the device says; a wrong number is a [`Report`], not an error.
pub fn run(program: &'static Program, device: &Device, seed: u64) -> Result<Vec<Report>> {
    run_kernel(program, &program.kernel, device, seed, None)
}

/// Runs every case with `kernel` on the device in place of the program's own, and `tamper` applied to the contents of
/// the device's buffers (binding, contents) but not to the oracle's: how faults are planted.
pub fn run_kernel(
    program: &'static Program,
    kernel: &'static Kernel,
    device: &Device,
    seed: u64,
    tamper: Option<&dyn Fn(usize, &mut [u32])>,
) -> Result<Vec<Report>> {
    let oracle = Device::oracle()?;
    (program.cases)().iter().map(|case| run_case(program, kernel, case, device, &oracle, seed, tamper)).collect()
}

/// Panics with the worst place of any case that is out of its bound.
///
/// # Panics
/// When a case fails or the device does.
pub fn assert_within_bound(program: &'static Program, device: &Device) {
    let reports = run(program, device, 1).unwrap_or_else(|e| panic!("{}: {e}", device.name()));
    assert!(!reports.is_empty(), "{} has no cases", program.kernel.name);
    for r in &reports {
        assert!(
            r.passed(),
            "{} on {}, case {}: worst error is {:.3e} of its bound, {}",
            r.program,
            device.name(),
            r.case,
            r.worst,
            r.place
        );
    }
}

fn run_case(
    program: &'static Program,
    kernel: &'static Kernel,
    case: &Case,
    device: &Device,
    oracle: &Device,
    seed: u64,
    tamper: Option<&dyn Fn(usize, &mut [u32])>,
) -> Result<Report> {
    let contents: Vec<Vec<u32>> =
        case.fills.iter().enumerate().map(|(i, f)| f.words(seed ^ ((i as u64) << 32))).collect();
    let mut altered = contents.clone();
    if let Some(tamper) = tamper {
        altered.iter_mut().enumerate().for_each(|(i, words)| tamper(i, words));
    }
    let ours = Rig::run(kernel, case, device, &altered)?;
    let truth = Rig::run(&program.kernel, case, oracle, &contents)?;
    let bounds = Rig::bounds(program, case, oracle, &contents)?;
    let mut report =
        Report { program: kernel.name, case: case.label.clone(), elements: 0, worst: 0.0, place: String::new() };
    for (i, binding) in kernel.bindings.iter().enumerate() {
        let words = ours.words(device, i)?;
        let (body, whole) = (&words[SENTINELS..words.len() - SENTINELS], words.len());
        for (at, _) in
            words.iter().enumerate().filter(|(at, w)| (*at < SENTINELS || *at >= whole - SENTINELS) && **w != SENTINEL)
        {
            report
                .worse(f64::INFINITY, format!("{}: wrote outside, at {}", binding.name, at as i64 - SENTINELS as i64));
        }
        if binding.access == Access::Read {
            continue;
        }
        report.elements += body.len();
        if binding.lane.elem() == Elem::U32 {
            let want = oracle.download_ids(&truth.views[i])?;
            for (at, (got, want)) in body.iter().zip(&want).enumerate().filter(|(_, (g, w))| g != w) {
                report.worse(f64::INFINITY, format!("{}[{at}] is {got}, should be {want}", binding.name));
            }
            continue;
        }
        let want = oracle.download_f64(&truth.views[i])?;
        let bound = oracle.download_f64(&bounds.views[i])?;
        for (at, &word) in body.iter().enumerate() {
            let ratio = judge(word, contents[i][at], want[at], bound[at]);
            if !(ratio <= report.worst) {
                let got = f32::from_bits(word);
                report.worse(
                    ratio,
                    format!("{}[{at}] is {got:e}, should be {:e} within {:.2e}", binding.name, want[at], bound[at]),
                );
            }
        }
    }
    Ok(report)
}

impl Report {
    fn worse(&mut self, ratio: f64, place: String) {
        if !(ratio <= self.worst) {
            self.worst = if ratio.is_nan() { f64::INFINITY } else { ratio };
            self.place = place;
        }
    }
}

/// Error over bound. An element the reference leaves poisoned must be left as it was; any other must be finite.
pub fn judge(got: u32, before: u32, want: f64, bound: f64) -> f64 {
    if want.is_nan() {
        return if before == POISON && got == POISON { 0.0 } else { f64::INFINITY };
    }
    let got = f32::from_bits(got) as f64;
    let error = (got - want).abs();
    // An exact result needs no bound; the rounding of the final store is always allowed.
    let allowed = bound + super::EPS * want.abs() + f64::from(f32::MIN_POSITIVE);
    match error == 0.0 {
        true => 0.0,
        false if error.is_finite() => error / allowed,
        false => f64::INFINITY,
    }
}

/// The buffers of one run of a case.
struct Rig {
    buffers: Vec<Buffer>,
    views: Vec<View>,
}

impl Rig {
    fn run(kernel: &'static Kernel, case: &Case, device: &Device, contents: &[Vec<u32>]) -> Result<Rig> {
        let rig = Rig::fill(kernel, device, contents)?;
        let variant = kernel.variant(device.class());
        let (words, groups) = (case.launch)(variant);
        device.launch(&Launch { kernel, variant, groups, params: &words, views: &rig.views })?;
        Ok(rig)
    }

    fn bounds(program: &'static Program, case: &Case, oracle: &Device, contents: &[Vec<u32>]) -> Result<Rig> {
        let kernel: &'static Kernel =
            Box::leak(Box::new(Kernel { reference_f64: program.bound, ..program.kernel.copy() }));
        Rig::run(kernel, case, oracle, contents)
    }

    fn fill(kernel: &Kernel, device: &Device, contents: &[Vec<u32>]) -> Result<Rig> {
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
                        let x = initial::normal(seed, (r * cols + c) as u64) as f32;
                        words[r * stride + c] = (mean + scale * x).to_bits();
                    }
                }
                words
            }
            Fill::Ids { len, below } => (0..*len as u64).map(|i| initial::word(seed, i) % below).collect(),
            Fill::Floats(values) => values.iter().map(|x| x.to_bits()).collect(),
            Fill::Words(words) => words.clone(),
            Fill::Poison { len } => vec![POISON; *len],
        }
    }
}
