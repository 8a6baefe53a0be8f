//! Planted faults: each comparison of the check is run on something wrong, and must say so.
//!
//! A fault that cannot be run (an edit that does not compile) counts as missed: it proves nothing.

use std::ops::Range;

use super::schedules::{Play, fused, same_bits};
use super::step::compare_step;
use crate::device::{Access, Class, Device, Elem, Kernel};
use crate::program::Program;
use crate::program::check::{Fault, POISON, SENTINELS, Truth};
use crate::train::step::Gradients;

/// One planted fault.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Canary {
    /// The program or the comparison.
    pub subject: String,
    /// What was made wrong.
    pub fault: String,
    /// True when the comparison failed, as it must.
    pub caught: bool,
    /// What it said, or why it said nothing.
    pub by: String,
}

impl Canary {
    fn new(subject: &str, fault: impl Into<String>, found: Result<Option<String>, String>) -> Canary {
        let (caught, by) = match found {
            Ok(Some(by)) => (true, by),
            Ok(None) => (false, "unseen by every case".into()),
            Err(error) => (false, format!("could not be run: {error}")),
        };
        Canary { subject: subject.into(), fault: fault.into(), caught, by }
    }
}

/// Faults in a program: its code (where it is WGSL), no launch, each operand, and each way a result can be wrong.
pub fn of_program(program: &'static Program, truth: &Truth, device: &Device) -> Vec<Canary> {
    let kernel = &program.kernel;
    let catch = |kernel: &'static Kernel, fault: Option<&Fault<'_>>| match truth.catches(kernel, device, fault) {
        Ok(report) => Ok(report.map(|r| format!("case {}, {}: {}", r.case, r.variant, r.place))),
        Err(error) => Err(error.to_string()),
    };
    let mut found = Vec::new();
    if device.class() != Class::Native {
        let (text, wrong) = program.fault;
        let caught = match edited(program) {
            Some(copy) => catch(copy, None),
            None => Err("its text is not in the shader".into()),
        };
        found.push(Canary::new(kernel.name, format!("code: {text:?} -> {wrong:?}"), caught));
    }
    found.push(Canary::new(kernel.name, "no tile launched", catch(kernel, Some(&Fault::Idle))));
    for (at, binding) in kernel.bindings.iter().enumerate().filter(|(_, b)| b.access == Access::Read) {
        found.push(wrong_operand(kernel, at, binding.lane.elem(), &catch));
    }
    for (fault, alter) in OUTCOMES {
        found.push(Canary::new(kernel.name, fault, catch(kernel, Some(&Fault::Outcome(&alter)))));
    }
    found
}

/// A way to spoil what is read back: (an element that is written, words with their sentinels).
type Spoil = fn(usize, &mut [u32]);

const OUTCOMES: [(&str, Spoil); 5] = [
    ("outputs written before their start", |_, words| words[SENTINELS - 1] = 0),
    ("outputs written past their end", |_, words| words[words.len() - SENTINELS] = 0),
    ("an element of each output not written", |at, words| words[at] = POISON),
    ("an element of each output another NaN", |at, words| words[at] = f32::NAN.to_bits()),
    ("an element of each output infinite", |at, words| words[at] = f32::INFINITY.to_bits()),
];

type Catch<'a> = &'a dyn Fn(&'static Kernel, Option<&Fault<'_>>) -> Result<Option<String>, String>;

/// Which elements of an operand are altered.
#[derive(Clone, Copy)]
enum Place {
    Largest,
    First,
    Middle,
    Every,
}

/// An alteration of an operand.
#[derive(Clone, Copy)]
enum Wrong {
    /// Floats by a relative size.
    Float(Place, f32),
    /// The first integer that differs from the one before it gets that one's value.
    OneId,
    /// Every integer gets the value of the one before it.
    EveryId,
}

/// Alterations from the smallest on, one of which must be seen. Integers only take values of their neighbours: a list of
/// indices stays in range and in order, so that what is tested is the comparison and not how a kernel ends on a wild index.
fn wrongs(elem: Elem) -> Vec<(Wrong, String)> {
    if elem == Elem::U32 {
        return vec![
            (Wrong::OneId, "one id that of its neighbour".into()),
            (Wrong::EveryId, "every id that of its neighbour".into()),
        ];
    }
    let sizes = [(1.0 / 1024.0, "2^-10"), (1.0 / 32.0, "2^-5"), (1.0, "its own size")];
    let places = [
        (Place::Largest, "the largest element"),
        (Place::First, "the first element"),
        (Place::Middle, "the middle element"),
        (Place::Every, "every element"),
    ];
    let wrong = |(size, by)| places.map(|(place, what)| (Wrong::Float(place, size), format!("{what} off by {by}")));
    sizes.into_iter().flat_map(wrong).collect()
}

fn wrong_operand(kernel: &'static Kernel, at: usize, elem: Elem, catch: Catch<'_>) -> Canary {
    let name = kernel.bindings[at].name;
    for (wrong, said) in wrongs(elem) {
        let alter = |i: usize, words: &mut [u32]| {
            if i == at {
                spoil(words, wrong);
            }
        };
        match catch(kernel, Some(&Fault::Operand(&alter))) {
            Ok(None) => {}
            found => return Canary::new(kernel.name, format!("{name}: {said}"), found),
        }
    }
    Canary::new(kernel.name, format!("{name}: any element"), Ok(None))
}

fn spoil(words: &mut [u32], wrong: Wrong) {
    match wrong {
        Wrong::Float(place, size) => {
            let range = range(words, place);
            words[range].iter_mut().for_each(|word| *word = off_by(f32::from_bits(*word), size).to_bits());
        }
        Wrong::OneId => {
            if let Some(at) = (1..words.len()).find(|&at| words[at] != words[at - 1]) {
                words[at] = words[at - 1];
            }
        }
        Wrong::EveryId => words.copy_within(..words.len() - 1, 1),
    }
}

fn off_by(x: f32, size: f32) -> f32 {
    if x == 0.0 { size } else { x * (1.0 + size) }
}

fn range(words: &[u32], place: Place) -> Range<usize> {
    let one = |at: usize| at..at + 1;
    let magnitude = |at: &usize| Some(f32::from_bits(words[*at]).abs()).filter(|x| x.is_finite()).unwrap_or(0.0);
    match place {
        Place::Every => 0..words.len(),
        Place::First => one(0),
        Place::Middle => one(words.len() / 2),
        Place::Largest => (0..words.len()).max_by(|a, b| magnitude(a).total_cmp(&magnitude(b))).map_or(0..0, one),
    }
}

/// A copy of the program's kernel with its fault in the WGSL; `None` when the text to replace is not there. It lives as
/// long as the process, as every kernel that a device may have compiled must.
fn edited(program: &Program) -> Option<&'static Kernel> {
    let (text, wrong) = program.fault;
    if text.is_empty() || !program.kernel.wgsl.contains(text) {
        return None;
    }
    let wgsl = Box::leak(program.kernel.wgsl.replace(text, wrong).into_boxed_str());
    Some(Box::leak(Box::new(Kernel { wgsl, ..program.kernel.copy() })))
}

/// Faults in the comparison of schedules: one bit, a missing element, two results that are both nothing.
pub fn of_schedule(name: &str, device: &Device, play: Play<'_>) -> Vec<Canary> {
    let subject = format!("{name}, superstep against fused");
    let fused = match fused(device, play) {
        Ok(fused) => fused,
        Err(error) => return vec![Canary::new(&subject, "one bit", Err(format!("{error:#}")))],
    };
    let middle = fused.len() / 2;
    let with = |x: f32| {
        let mut wrong = fused.clone();
        wrong[middle] = x;
        wrong
    };
    let flipped = with(f32::from_bits(fused[middle].to_bits() ^ 1));
    let nan = with(f32::NAN);
    let zero = vec![0.0; fused.len()];
    let cases: [(&str, &[f32], &[f32]); 4] = [
        ("last bit of one element", &fused, &flipped),
        ("one element missing", &fused, &fused[1..]),
        ("the same NaN in both", &nan, &nan),
        ("zeros in both", &zero, &zero),
    ];
    cases.map(|(fault, a, b)| Canary::new(&subject, fault, Ok(same_bits(a, b).err()))).into()
}

/// Faults in the comparison of steps: the loss and every tensor in turn off by a little, not a number, and missing.
pub fn of_step(subject: &str, ours: &Gradients, reference: &Gradients, oracle: &Gradients) -> Vec<Canary> {
    let plant = |fault: String, name: &str, wrong: Gradients| {
        let rows = compare_step(&wrong, reference, oracle);
        let row = rows.into_iter().find(|row| row.name == name && !row.passed);
        Canary::new(subject, fault, Ok(row.map(|row| row.place)))
    };
    let with_loss = |loss: f64| Gradients { loss, ..ours.clone() };
    let mut found = vec![
        plant("loss: off by 2^-10".into(), "loss", with_loss(ours.loss * (1.0 + 1.0 / 1024.0))),
        plant("loss: NaN".into(), "loss", with_loss(f64::NAN)),
    ];
    for (at, (name, values)) in ours.gradients.iter().enumerate() {
        let with = |edit: &dyn Fn(&mut Vec<f64>)| {
            let mut wrong = ours.clone();
            edit(&mut wrong.gradients[at].1);
            wrong
        };
        let largest = (0..values.len()).max_by(|&a, &b| values[a].abs().total_cmp(&values[b].abs())).unwrap_or(0);
        let off = with(&|v| v[largest] *= 1.0 + 1.0 / 64.0);
        found.push(plant(format!("{name}: one element off by 2^-6"), name, off));
        found.push(plant(format!("{name}: one element NaN"), name, with(&|v| v[largest] = f64::NAN)));
        found.push(plant(
            format!("{name}: one element missing"),
            name,
            with(&|v| v.truncate(v.len().saturating_sub(1))),
        ));
    }
    found
}
