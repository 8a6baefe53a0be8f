//! Relays on the fabric, whatever they sum: both schedules give equal bits on every grid, what the device counts is the
//! wafer's closed form, and a launch reads and writes only the blocks of its own tiles and what they carry. The tests of the
//! programs bring the relays. And a kernel declares what its tiles carry.

use super::{blanks, cost, declares_state, fabric};
use crate::program::matmul::normal;
use crate::rig;
use gaufre::device::{Buffer, Device, DeviceError, Elem, Result, View};
use gaufre::program::Matrix;
use gaufre::program::check::POISON;
use gaufre::program::cross_entropy::{self, BLOCK_ROWS, IGNORE};
use gaufre::program::relay::{self, Axis, Part, Relay};
use gaufre::program::schedule::{Fabric, Schedule};
use gaufre::wafer::{Cost, Work};

/// One tile that plays all, unequal sides, more tiles than blocks, a single row.
const GRIDS: [(u32, u32); 4] = [(1, 1), (2, 3), (8, 8), (3, 1)];

/// Whether an element of a view is the business of a block of a line.
type Owns = Box<dyn Fn(u32, u32, usize) -> bool>;

/// What a relay reads or writes.
pub struct Operand {
    view: View,
    owns: Owns,
    read: bool,
}

impl Operand {
    /// The elements of a view, each of which belongs to (line, block) pairs.
    pub fn of(view: &View, owns: impl Fn(u32, u32, usize) -> bool + 'static) -> Operand {
        Operand { view: view.clone(), owns: Box::new(owns), read: true }
    }

    /// A matrix at the start of its view, by line, block, row and column; padding columns are asked for too.
    pub fn matrix(matrix: &Matrix, owns: impl Fn(u32, u32, usize, usize) -> bool + 'static) -> Operand {
        let stride = matrix.stride;
        Operand::of(&matrix.view, move |line, block, at| owns(line, block, at / stride, at % stride))
    }

    /// The same operand, written without being read.
    pub fn unread(self) -> Operand {
        Operand { read: false, ..self }
    }

    /// Its words.
    fn words(&self, device: &Device) -> Result<Vec<u32>> {
        match self.view.buffer.elem() {
            Elem::F32 => Ok(device.download(&self.view)?.into_iter().map(f32::to_bits).collect()),
            Elem::U32 => device.download_ids(&self.view),
        }
    }

    /// What it holds where it must not be looked at: a NaN of its own, since one that is computed with keeps its bits and could
    /// pass for that of another operand; or a target that is left out.
    fn poison(&self, which: usize) -> u32 {
        match self.view.buffer.elem() {
            Elem::F32 => POISON + 1 + which as u32,
            Elem::U32 => IGNORE,
        }
    }

    /// Whether an element is the business of a part; where nothing is carried a part is whole lines.
    fn owned(&self, part: &Part, blocks: u32, at: usize) -> bool {
        let own = part.first_block..part.first_block + part.blocks;
        let blocks = if part.carried { own } else { 0..blocks };
        (part.first_line..part.first_line + part.lines)
            .any(|line| blocks.clone().any(|block| (self.owns)(line, block, at)))
    }
}

/// A relay with operands of its own.
pub struct Example {
    /// The relay.
    pub program: Box<dyn Relay>,
    /// What it reads and writes.
    pub operands: Vec<Operand>,
}

/// Makes a relay for a fabric, on equal contents each time.
pub type Make<'a> = &'a dyn Fn(&Fabric) -> Example;

/// A fabric that plays whole lines.
pub fn fused(device: &Device) -> Fabric {
    fabric(device, Schedule::Fused, (1, 1))
}

/// Fabrics that play block by block.
pub fn stepped(device: &Device) -> impl Iterator<Item = Fabric> {
    GRIDS.into_iter().map(|grid| fabric(device, Schedule::Superstep, grid))
}

/// Holds a relay to all that is asked of one.
pub fn assert_is_sound(name: &str, make: Make<'_>) {
    for device in rig::devices(name) {
        counts_what_is_predicted(&device, make);
        reads_and_writes_its_own(&device, make);
        gives_the_bits_of_the_fused_one(&device, make);
    }
    for device in [Device::reference().unwrap(), Device::oracle().unwrap()] {
        gives_the_bits_of_the_fused_one(&device, make);
    }
    blanks().for_each(|fabric| declares_what_it_carries(&fabric, make));
}

/// A tile has room for what it hands on, and an element more than is declared would be seen.
fn declares_what_it_carries(fabric: &Fabric, make: Make<'_>) {
    let program = make(fabric).program;
    fabric.device().take_ledger();
    fabric.relay(&*program).unwrap();
    declares_state(fabric, program.name(), program.carry()).unwrap();
    fabric.relay(&*program).unwrap();
    declares_state(fabric, program.name(), 1 << 20).expect_err("a carry larger than any tile");
}

/// What all operands hold, exactly.
fn contents(device: &Device, example: &Example) -> Vec<f64> {
    let values = |operand: &Operand| match operand.view.buffer.elem() {
        Elem::F32 => device.download_f64(&operand.view).unwrap(),
        Elem::U32 => device.download_ids(&operand.view).unwrap().into_iter().map(f64::from).collect(),
    };
    example.operands.iter().flat_map(values).collect()
}

/// What all operands hold after a run.
fn outcome(fabric: &Fabric, make: Make<'_>) -> Vec<u64> {
    let example = make(fabric);
    let before = contents(fabric.device(), &example);
    fabric.relay(&*example.program).unwrap();
    let after = contents(fabric.device(), &example);
    assert!(after != before && after.iter().all(|x| x.is_finite()), "{} computed nothing", example.program.name());
    after.into_iter().map(f64::to_bits).collect()
}

fn gives_the_bits_of_the_fused_one(device: &Device, make: Make<'_>) {
    let want = outcome(&fused(device), make);
    for fabric in stepped(device) {
        assert!(outcome(&fabric, make) == want, "on {:?} of {}", fabric.wafer(), device.name());
    }
}

fn counts_what_is_predicted(device: &Device, make: Make<'_>) {
    for fabric in stepped(device).chain([fused(device)]) {
        let example = make(&fabric);
        fabric.relay(&*example.program).unwrap();
        let before = device.counters();
        fabric.relay(&*example.program).unwrap();
        let counted = device.counters().since(&before);
        let want = match fabric.schedule() {
            Schedule::Fused => Cost { dispatches: 1, ..Cost::default() },
            Schedule::Superstep => relay::cost(&*example.program, fabric.wafer()),
        };
        assert_eq!(cost(&counted), want, "{} on {:?}", example.program.name(), fabric.wafer());
        assert_eq!(counted.allocations, 0, "a second run allocates nothing");
    }
}

/// Which elements are poisoned while a part runs.
#[derive(Clone, Copy)]
enum Poison {
    /// Those of all operands that the part does not own.
    Foreign,
    /// Those of one operand that it owns.
    Own(usize),
}

/// A relay that finds poison wherever it must not look: in its operands, and in whatever of the carry it was not handed.
struct Poisoned<'a> {
    example: &'a Example,
    poison: Poison,
}

impl Poisoned<'_> {
    fn hidden(&self, which: usize, part: &Part, at: usize) -> bool {
        let owned = self.example.operands[which].owned(part, self.extent().1, at);
        match self.poison {
            Poison::Foreign => !owned,
            Poison::Own(one) => one == which && owned,
        }
    }

    /// Poisons what is beyond the slots of a part, and the slots too where nothing was handed yet; gives the first element.
    fn poison_carry(&self, device: &Device, part: &Part, carry: &Buffer) -> Result<usize> {
        let handed = part.carried && (part.first_block > 0 || part.passes != 1);
        let used = if handed { part.groups() as usize * self.carry() } else { 0 };
        let mut values = device.download(&carry.all())?;
        values[used..].fill(f32::from_bits(POISON));
        device.upload(&carry.all(), &values)?;
        Ok(if part.carried { part.groups() as usize * self.carry() } else { 0 })
    }
}

impl Relay for Poisoned<'_> {
    fn name(&self) -> &'static str {
        self.example.program.name()
    }
    fn work(&self) -> Work {
        self.example.program.work()
    }
    fn axis(&self) -> Axis {
        self.example.program.axis()
    }
    fn extent(&self) -> (u32, u32) {
        self.example.program.extent()
    }
    fn gathers(&self) -> Vec<u32> {
        self.example.program.gathers()
    }
    fn applies(&self) -> bool {
        self.example.program.applies()
    }
    fn carry(&self) -> usize {
        self.example.program.carry()
    }
    fn launch(&self, device: &Device, part: &Part, carry: &Buffer) -> Result<()> {
        let mut sound = Vec::new();
        for (which, operand) in self.example.operands.iter().enumerate() {
            let words = operand.words(device)?;
            let hide =
                |(at, &word): (usize, &u32)| if self.hidden(which, part, at) { operand.poison(which) } else { word };
            device.upload(&operand.view, &words.iter().enumerate().map(hide).collect::<Vec<_>>())?;
            sound.push(words);
        }
        let unused = self.poison_carry(device, part, carry)?;
        self.example.program.launch(device, part, carry)?;
        for (which, (operand, sound)) in self.example.operands.iter().zip(sound).enumerate() {
            let mut words = operand.words(device)?;
            for at in (0..words.len()).filter(|&at| self.hidden(which, part, at)) {
                let kept = words[at] == operand.poison(which);
                if !kept && matches!(self.poison, Poison::Foreign) {
                    return Err(DeviceError::Usage(format!("{} wrote {which}[{at}]", self.name())));
                }
                words[at] = if kept { sound[at] } else { words[at] };
            }
            device.upload(&operand.view, &words)?;
        }
        match device.download(&carry.all())?[unused..].iter().all(|x| x.to_bits() == POISON) {
            true => Ok(()),
            false => Err(DeviceError::Usage(format!("{} wrote beyond what it carries", self.name()))),
        }
    }
}

/// What all operands hold after a run under poison.
fn poisoned(fabric: &Fabric, example: &Example, poison: Poison) -> Result<Vec<u64>> {
    fabric.relay(&Poisoned { example, poison })?;
    Ok(contents(fabric.device(), example).into_iter().map(f64::to_bits).collect())
}

fn reads_and_writes_its_own(device: &Device, make: Make<'_>) {
    let want = outcome(&fused(device), make);
    // On one tile each block runs alone, all others poisoned; fused, a line does.
    let stepped = [(1, 1), (2, 3)].map(|grid| fabric(device, Schedule::Superstep, grid));
    for fabric in stepped.into_iter().chain([fused(device)]) {
        let place = format!("{:?} on {:?} of {}", fabric.schedule(), fabric.wafer(), device.name());
        let found = poisoned(&fabric, &make(&fabric), Poison::Foreign);
        assert!(
            found.unwrap_or_else(|error| panic!("{error}: {place}")) == want,
            "it reads what is not its own: {place}"
        );
        // The poison works: in what is read, it reaches the result.
        for which in 0..make(&fabric).operands.len() {
            let example = make(&fabric);
            let reached = poisoned(&fabric, &example, Poison::Own(which)).unwrap() != want;
            assert!(
                reached || !example.operands[which].read,
                "{} reads no operand {which}: {place}",
                example.program.name()
            );
        }
    }
}

/// A faulty relay: does nothing but at one block, where it plays the whole line.
struct Hasty {
    program: Box<dyn Relay>,
    at: u32,
}

impl Relay for Hasty {
    fn name(&self) -> &'static str {
        self.program.name()
    }
    fn work(&self) -> Work {
        self.program.work()
    }
    fn axis(&self) -> Axis {
        self.program.axis()
    }
    fn extent(&self) -> (u32, u32) {
        self.program.extent()
    }
    fn gathers(&self) -> Vec<u32> {
        self.program.gathers()
    }
    fn applies(&self) -> bool {
        self.program.applies()
    }
    fn carry(&self) -> usize {
        self.program.carry()
    }
    fn launch(&self, device: &Device, part: &Part, carry: &Buffer) -> Result<()> {
        let due = part.first_block == self.at;
        if due { self.program.launch(device, &Part::whole(part.lines), carry) } else { Ok(()) }
    }
}

#[test]
fn a_relay_that_goes_beyond_its_block_is_caught() {
    for device in rig::devices("a faulty relay") {
        let make = |at: u32| {
            move |fabric: &Fabric| {
                let device = fabric.device();
                let (losses, scalars) = (normal(device, 1, 2 * BLOCK_ROWS + 5, 3), normal(device, 1, 8, 4));
                let program = cross_entropy::sum_relay(fabric, &losses, 0.25, &scalars.view, 2, false);
                let terms = Operand::of(&losses.view, |_, block, at| at / BLOCK_ROWS == block as usize);
                let total = Operand::of(&scalars.view, |_, block, at| at == 2 && block == 2);
                let program = Hasty { program: Box::new(program), at };
                Example { program: Box::new(program), operands: vec![terms, total] }
            }
        };
        let stepped = fabric(&device, Schedule::Superstep, (1, 1));
        let want = outcome(&stepped, &make(2));
        // In the last block it gives the right bits, from losses that are not its own; in the first one it writes what is not.
        assert!(poisoned(&stepped, &make(2)(&stepped), Poison::Foreign).unwrap() != want, "{}", device.name());
        assert!(poisoned(&stepped, &make(0)(&stepped), Poison::Foreign).is_err(), "{}", device.name());
    }
}
