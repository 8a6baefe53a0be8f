//! The conformance test that `gaufre check` runs on a machine: every tile program against the oracle, superstep against
//! fused, one whole training step against the oracle; and the canaries that show that each comparison can fail.
//!
//! It decides and reports; it never prints. An error of the device is a failing row, not an abort, so that one broken
//! program does not hide the others. It must never loosen a bound: those belong to the programs.

mod canary;
mod plays;
mod schedules;
mod step;
pub mod tiny;

pub use super::step::Gradients;
pub use canary::Canary;
pub use plays::plays;
pub use schedules::{compare_schedules, same_bits};
pub use step::compare_step;

use crate::device::{Class, Device};
use crate::program::schedule::{Fabric, Schedule};
use crate::program::{self, Program, check};
use crate::wafer::Wafer;

/// What a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// A tile program on the device against the oracle.
    Program,
    /// A stepwise program, or a whole training step, in supersteps against the same fused.
    Schedule,
    /// A tensor of one training step against the oracle.
    Step,
}

/// One line of the report.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Row {
    /// What it is about.
    pub part: Part,
    /// The program or the tensor.
    pub name: String,
    /// Comparisons run: cases times variants, grid shapes, or 1 for a tensor.
    pub cases: usize,
    /// Elements compared in them.
    pub elements: usize,
    /// Largest error over its bound (in JSON `null` when infinite: not a number, not written, not run).
    pub worst: f64,
    /// Where that was, or what went wrong.
    pub place: String,
    /// True when something was compared and all of it lies within its bound.
    pub passed: bool,
}

impl Row {
    /// A row; it passes when it has cases and elements and `worst` is at most 1, which NaN is not.
    pub fn new(part: Part, name: impl Into<String>, cases: usize, elements: usize, worst: f64, place: String) -> Row {
        let passed = cases > 0 && elements > 0 && worst <= 1.0;
        Row { part, name: name.into(), cases, elements, worst, place, passed }
    }

    /// A row for what could not be run.
    pub fn failed(part: Part, name: impl Into<String>, reason: impl std::fmt::Display) -> Row {
        Row::new(part, name, 0, 0, f64::INFINITY, reason.to_string())
    }
}

/// All that a check found.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Conformance {
    /// The device's name.
    pub device: String,
    /// Seed of all inputs.
    pub seed: u64,
    /// Every comparison.
    pub rows: Vec<Row>,
    /// Every planted fault; empty when none were asked for.
    pub canaries: Vec<Canary>,
}

impl Conformance {
    /// True when every part ran, every row passes and every planted fault was caught.
    pub fn passed(&self) -> bool {
        let ran = |part| self.rows.iter().any(|row| row.part == part);
        [Part::Program, Part::Schedule, Part::Step].into_iter().all(ran)
            && self.rows.iter().all(|row| row.passed)
            && self.canaries.iter().all(|canary| canary.caught)
    }
}

/// One training step of a tiny model that is compared.
pub struct Step {
    /// The model.
    pub name: String,
    /// Runs it on the device of a fabric, by its schedule and on its grid: the same weights and batch on each.
    pub run: StepFn,
}

/// What runs a step.
pub type StepFn = Box<dyn Fn(&Fabric) -> anyhow::Result<Gradients>>;

/// Runs the whole check; `progress` is told what begins.
pub fn run(device: &Device, seed: u64, canaries: bool, steps: &[Step], progress: &dyn Fn(&str)) -> Conformance {
    let mut found = Conformance { device: device.name().into(), seed, rows: Vec::new(), canaries: Vec::new() };
    if program::all().is_empty() {
        found.rows.push(Row::failed(Part::Program, "programs", "none is registered"));
    }
    for program in program::all() {
        progress(program.kernel.name);
        let truth = match check::Truth::of(program, seed) {
            Ok(truth) => truth,
            Err(error) => {
                found.rows.push(Row::failed(Part::Program, program.kernel.name, format!("on the oracle: {error}")));
                continue;
            }
        };
        found.rows.push(program_row(program.kernel.name, program, &truth, device));
        found.rows.extend(reference_row(program, &truth, device));
        if canaries {
            found.canaries.extend(canary::of_program(program, &truth, device));
        }
    }
    for (name, play) in plays() {
        progress(name);
        found.schedule(name, device, canaries, play);
    }
    for step in steps {
        let name = format!("training step of {}", step.name);
        progress(&name);
        found.step(&name, device, canaries, &step.run);
    }
    found
}

impl Conformance {
    /// A program or a step, in supersteps against the same fused.
    fn schedule(&mut self, name: &str, device: &Device, canaries: bool, play: schedules::Play<'_>) {
        self.rows.push(compare_schedules(name, device, play));
        if canaries {
            self.canaries.extend(canary::of_schedule(name, device, play));
        }
    }

    /// A whole training step, in supersteps and against the oracle.
    fn step(&mut self, name: &str, device: &Device, canaries: bool, step: &StepFn) {
        self.schedule(name, device, canaries, &|fabric: &Fabric| Ok(words(&step(fabric)?)));
        match three_steps(device, step) {
            Ok([ours, reference, oracle]) => {
                let named = |row: Row| Row { name: format!("{name}: {}", row.name), ..row };
                self.rows.extend(compare_step(&ours, &reference, &oracle).into_iter().map(named));
                if canaries {
                    self.canaries.extend(canary::of_step(name, &ours, &reference, &oracle));
                }
            }
            Err(error) => self.rows.push(Row::failed(Part::Step, name, format!("{error:#}"))),
        }
    }
}

/// The step as one list: the loss, then every gradient, as the device kept them.
fn words(step: &Gradients) -> Vec<f32> {
    let gradients = step.gradients.iter().flat_map(|(_, values)| values);
    std::iter::once(&step.loss).chain(gradients).map(|x| *x as f32).collect()
}

/// Ours, plain f32, and f64.
fn three_steps(device: &Device, step: &StepFn) -> anyhow::Result<[Gradients; 3]> {
    let fused = |device| step(&Fabric::new(device, Schedule::Fused, Wafer::new(1, 1)));
    Ok([fused(device.clone())?, fused(Device::reference()?)?, fused(Device::oracle()?)?])
}

/// Where a host kernel stands in for a program's plain reference, the reference at f32 as a row of its own: the yardstick
/// of the training step rests on it.
fn reference_row(program: &'static Program, truth: &check::Truth, device: &Device) -> Option<Row> {
    if device.class() != Class::Native || program.kernel.host.is_none() {
        return None;
    }
    let name = format!("{}, reference", program.kernel.name);
    Some(match Device::reference() {
        Ok(plain) => program_row(&name, program, truth, &plain),
        Err(error) => Row::failed(Part::Program, name, error),
    })
}

/// All cases of a program as one row.
fn program_row(name: &str, program: &'static Program, truth: &check::Truth, device: &Device) -> Row {
    let reports = match truth.compare(&program.kernel, device, None) {
        Ok(reports) => reports,
        Err(error) => return Row::failed(Part::Program, name, error),
    };
    let Some(worst) = reports.iter().max_by(|a, b| a.worst.total_cmp(&b.worst)) else {
        return Row::failed(Part::Program, name, "it has no case");
    };
    let place = match worst.place.as_str() {
        "" => "every element exact".into(),
        place => format!("case {}, {}: {place}", worst.case, worst.variant),
    };
    let elements = reports.iter().map(|report| report.elements).sum();
    Row::new(Part::Program, name, reports.len(), elements, worst.worst, place)
}
