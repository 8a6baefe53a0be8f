//! Planted faults: each comparison of the check is run on something wrong, and must say so.
//!
//! A fault that cannot be run (an edit that does not compile) counts as missed: it proves nothing.

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

/// Relative sizes at which an operand is altered, until one is seen.
const SIZES: [(f32, &str); 3] = [(1.0 / 1024.0, "2^-10"), (1.0 / 32.0, "2^-5"), (1.0, "1")];

/// Which element of an operand is altered.
#[derive(Clone, Copy)]
enum Place {
    Largest,
    First,
    Middle,
    Every,
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

fn wrong_operand(kernel: &'static Kernel, at: usize, elem: Elem, catch: Catch<'_>) -> Canary {
    let name = kernel.bindings[at].name;
    for (size, said) in SIZES {
        for place in [Place::Largest, Place::First, Place::Middle, Place::Every] {
            let alter = |i: usize, words: &mut [u32]| {
                if i == at {
                    spoil(words, elem, place, size);
                }
            };
            let how = match (elem, place) {
                (Elem::U32, Place::Every) => "every id off by one".into(),
                (Elem::U32, _) => "one id off by one".into(),
                (Elem::F32, Place::Every) => format!("every element off by {said}"),
                (Elem::F32, _) => format!("one element off by {said}"),
            };
            match catch(kernel, Some(&Fault::Operand(&alter))) {
                Ok(None) => {}
                found => return Canary::new(kernel.name, format!("{name}: {how}"), found),
            }
        }
    }
    Canary::new(kernel.name, format!("{name}: any element"), Ok(None))
}

/// Makes an operand wrong: floats by a relative size, integers by one, downwards so that an index stays in range.
fn spoil(words: &mut [u32], elem: Elem, place: Place, size: f32) {
    let wrong = |word: u32| match elem {
        Elem::U32 => word.checked_sub(1).unwrap_or(1),
        Elem::F32 if f32::from_bits(word) == 0.0 => size.to_bits(),
        Elem::F32 => (f32::from_bits(word) * (1.0 + size)).to_bits(),
    };
    let magnitude = |word: u32| match elem {
        Elem::U32 => word as f32,
        Elem::F32 => Some(f32::from_bits(word).abs()).filter(|x| x.is_finite()).unwrap_or(0.0),
    };
    let range = match place {
        Place::Every => 0..words.len(),
        Place::First => 0..1,
        Place::Middle => words.len() / 2..words.len() / 2 + 1,
        Place::Largest => {
            let largest = (0..words.len()).max_by(|&a, &b| magnitude(words[a]).total_cmp(&magnitude(words[b])));
            largest.map_or(0..0, |at| at..at + 1)
        }
    };
    words[range].iter_mut().for_each(|word| *word = wrong(*word));
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
pub fn of_schedule(name: &str, device: &Device, play: Play) -> Vec<Canary> {
    let subject = format!("{name}, superstep against fused");
    let fused = match fused(device, play) {
        Ok(fused) => fused,
        Err(error) => return vec![Canary::new(&subject, "one bit", Err(error.to_string()))],
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
pub fn of_step(ours: &Gradients, reference: &Gradients, oracle: &Gradients) -> Vec<Canary> {
    let plant = |fault: String, name: &str, wrong: Gradients| {
        let rows = compare_step(&wrong, reference, oracle);
        let row = rows.into_iter().find(|row| row.name == name && !row.passed);
        Canary::new("training step", fault, Ok(row.map(|row| row.place)))
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
