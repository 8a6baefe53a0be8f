//! The fabric, on products and, in modules of their own, on attention and on relays: both schedules give equal bits, a superstep reads only what its tiles own, hold or received, and what the
//! device counts is the wafer's closed form.

mod attention;
mod exchange;
mod faults;
mod order;
pub mod relay;
mod stream;

use crate::program::matmul::{bits, operands, product};
use crate::rig;
use gaufre::device::{ALL_CLASSES, Buffer, Class, Counters, Device, DeviceError, Result};
use gaufre::program::Matrix;
use gaufre::program::matmul::{self, Form, Matmul};
use gaufre::program::schedule::{Block, Fabric, Origin, Round, Schedule, Source, Stepwise};
use gaufre::wafer::{Cost, Product, Wafer, Work};

const FORMS: [Form; 3] = [Form::NT, Form::NN, Form::TN];
const GRIDS: [(u32, u32); 3] = [(1, 1), (2, 3), (5, 2)];

fn fabric(device: &Device, schedule: Schedule, (width, height): (u32, u32)) -> Fabric {
    Fabric::new(device.clone(), schedule, Wafer::new(width, height))
}

/// What a device has counted, as the wafer predicts it.
fn cost(counted: &Counters) -> Cost {
    let Counters { dispatches, messages, exchanged_bytes, .. } = *counted;
    Cost { dispatches, messages, exchanged_bytes }
}

#[test]
fn supersteps_give_the_bits_of_the_fused_product_on_every_grid() {
    let devices = rig::devices("superstep");
    for device in devices.into_iter().chain([Device::reference().unwrap(), Device::oracle().unwrap()]) {
        for form in FORMS {
            for (shape, bias, accumulate) in
                [((37, 211, 84), true, false), ((130, 70, 1030), false, true), ((1, 300, 5), true, true)]
            {
                let want = product(&fabric(&device, Schedule::Fused, (1, 1)), form, shape, bias, accumulate);
                for grid in GRIDS {
                    let got = product(&fabric(&device, Schedule::Superstep, grid), form, shape, bias, accumulate);
                    assert!(got == want, "{form:?} {shape:?} on {grid:?} of {}", device.name());
                }
            }
        }
    }
}

#[test]
fn the_device_counts_what_the_wafer_predicts() {
    for device in rig::devices("closed forms") {
        for form in FORMS {
            let (m, n, k) = (70, 211, 1030);
            let variant = form.program().kernel.variant(device.class());
            let block = |name: &str| u64::from(variant.get(name));
            let padded = |x: u64| x.next_multiple_of(4);
            let elements = match form {
                Form::NT => (m * padded(k), n * padded(k)),
                Form::NN => (m * padded(k), k * padded(n)),
                Form::TN => (k * padded(m), k * padded(n)),
            };
            let cut = Product { m: (m, block("TM")), n: (n, block("TN")), k: (k, block("KB")), elements };
            let [a, b, c, _] = operands(&device, form, (m as usize, n as usize, k as usize));
            for (schedule, grid) in
                [(Schedule::Fused, (2, 2))].into_iter().chain(GRIDS.map(|g| (Schedule::Superstep, g)))
            {
                let fabric = fabric(&device, schedule, grid);
                let product = Matmul { form, a: &a, b: &b, c: &c, bias: None, accumulate: false };
                matmul::run(&fabric, &product).unwrap();
                let before = device.counters();
                matmul::run(&fabric, &product).unwrap();
                let counted = device.counters().since(&before);
                let want = match schedule {
                    Schedule::Fused => cut.fused(),
                    Schedule::Superstep => cut.superstep(fabric.wafer()),
                };
                assert_eq!(cost(&counted), want, "{form:?} {schedule:?} {grid:?}");
                assert_eq!(counted.allocations, 0, "a second run allocates nothing");
            }
        }
    }
}

/// Fabrics of blank devices of every class, which play whole programs at once and write down which kernels they are asked for.
fn blanks() -> impl Iterator<Item = Fabric> {
    let limits = Device::host(1).unwrap().limits().clone();
    let device = move |class: &Class| Device::blank(*class, limits.clone()).with_ledger();
    ALL_CLASSES.iter().map(device).map(|device| fabric(&device, Schedule::Fused, (1, 1)))
}

/// Holds the kernel that a program was played with since the last time to what the scheduler sets aside for a tile of it.
fn declares_state(fabric: &Fabric, name: &str, elements: usize) -> std::result::Result<(), String> {
    let played = fabric.device().take_ledger().kernels;
    assert!(played.iter().any(|(kernel, _)| kernel.name == name), "{name} was not played");
    for (kernel, variant) in played.into_iter().filter(|(kernel, _)| kernel.name == name) {
        let declared = (kernel.held)(variant).state as usize;
        if declared < 4 * elements {
            return Err(format!("{name} {}: {declared} bytes of state, {elements} elements saved", variant.name));
        }
    }
    Ok(())
}

#[test]
fn products_declare_the_sums_that_go_round() {
    for fabric in blanks() {
        for form in FORMS {
            let [a, b, c, _] = operands(fabric.device(), form, (70, 211, 300));
            let variant = form.program().kernel.variant(fabric.device().class());
            let block = (variant.get("TM") * variant.get("TN")) as usize;
            // The checker finds what is not declared.
            for (elements, enough) in [(block, true), (block + 1, false)] {
                let m = Matmul { form, a: &a, b: &b, c: &c, bias: None, accumulate: false };
                let program = matmul::stepwise(&fabric, &m).unwrap();
                assert!(program.state() <= block);
                fabric.run(&program).unwrap();
                assert_eq!(declares_state(&fabric, program.name(), elements).is_ok(), enough, "{form:?}");
            }
        }
    }
}

/// Whether element (row, column) of a matrix is none of the business of the tiles of a round.
type Foreign<'a> = Box<dyn Fn(Round, usize, usize) -> bool + 'a>;

/// A program that finds NaN wherever it must not look while a step runs: in the named parts of its operands, and, when the
/// step is over, in its inboxes. Only what was received for the step is sound.
struct Poisoned<'a> {
    program: &'a dyn Stepwise,
    operands: Vec<(&'a Matrix, Foreign<'a>)>,
}

impl Stepwise for Poisoned<'_> {
    fn name(&self) -> &'static str {
        self.program.name()
    }
    fn work(&self) -> Work {
        self.program.work()
    }
    fn cost(&self, wafer: &Wafer) -> Cost {
        self.program.cost(wafer)
    }
    fn blocks(&self) -> (u32, u32) {
        self.program.blocks()
    }
    fn steps(&self) -> u32 {
        self.program.steps()
    }
    fn operands(&self) -> usize {
        self.program.operands()
    }
    fn inbox(&self, operand: usize) -> (usize, usize) {
        self.program.inbox(operand)
    }
    fn state(&self) -> usize {
        self.program.state()
    }
    fn receives(&self, i: u32, j: u32, step: u32, operand: usize) -> Option<Block> {
        self.program.receives(i, j, step, operand)
    }
    /// From its owner: what was received for an earlier step is not sound any more.
    fn origin(&self, i: u32, j: u32, step: u32, operand: usize) -> Origin {
        Origin { passed: None, ..self.program.origin(i, j, step, operand) }
    }
    fn launch(
        &self,
        device: &Device,
        round: Round,
        source: Source<'_>,
        first: u32,
        last: u32,
        state: &Buffer,
    ) -> Result<()> {
        let inboxes = if let Source::Inbox(inboxes) = &source { inboxes.to_vec() } else { vec![] };
        let mut kept = Vec::new();
        for (x, foreign) in &self.operands {
            let sound = device.download(&x.view)?;
            let mut values = sound.clone();
            for row in 0..x.rows {
                for col in (0..x.cols).filter(|&col| foreign(round, row, col)) {
                    values[x.offset + row * x.stride + col] = f32::NAN;
                }
            }
            device.upload(&x.view, &values)?;
            kept.push((x, sound));
        }
        let result = self.program.launch(device, round, source, first, last, state);
        // Backwards: operands may be slices of one view.
        for (x, sound) in kept.iter().rev() {
            device.upload(&x.view, sound)?;
        }
        for inbox in inboxes {
            device.upload(&inbox.all(), &vec![f32::NAN; inbox.len()])?;
        }
        result
    }
}

#[test]
fn a_superstep_reads_only_its_state_and_its_inbox() {
    for device in rig::devices("poisoned operands") {
        for form in FORMS {
            let run = |schedule: Schedule, poison: bool| {
                let [a, b, c, row] = operands(&device, form, (70, 150, 600));
                let m = Matmul { form, a: &a, b: &b, c: &c, bias: Some(&row), accumulate: true };
                let fabric = fabric(&device, schedule, (2, 1));
                let program = matmul::stepwise(&fabric, &m).unwrap();
                match poison {
                    true => {
                        let everywhere = |x| (x, Box::new(|_, _, _| true) as Foreign<'_>);
                        let operands = [&a, &b].map(everywhere).into();
                        fabric.run(&Poisoned { program: &program, operands }).unwrap();
                    }
                    false => fabric.run(&program).unwrap(),
                }
                bits(&device, &c)
            };
            assert!(run(Schedule::Superstep, true) == run(Schedule::Fused, false), "{form:?} on {}", device.name());
            // The poison works: read in place, it reaches the result.
            assert!(run(Schedule::Fused, true) != run(Schedule::Fused, false));
        }
    }
}

#[test]
fn a_program_larger_than_a_tile_is_refused_before_the_first_dispatch() {
    let device = Device::host(1).unwrap().with_tile_sram(16 * 1024);
    let [a, b, c, _] = operands(&device, Form::NT, (8, 8, 8));
    let m = Matmul { form: Form::NT, a: &a, b: &b, c: &c, bias: None, accumulate: false };
    let before = device.counters().dispatches;
    let error = matmul::run(&fabric(&device, Schedule::Fused, (1, 1)), &m).unwrap_err();
    assert!(matches!(error, DeviceError::Sram { .. }), "{error}");
    assert_eq!(device.counters().dispatches, before);
}
