//! Scalar all-reduce, every tile a tile: each has one number, and in the end all have the sum, with equal bits.
//!
//! Rows add up towards the centre column, that column towards the root, and the sum goes back out. A hop is a superstep: one
//! launch over exactly the tiles that have a message, or begin. A tile is a workgroup of one invocation, for it has one
//! number to add. It reads its own value, the sum it keeps, and its inbox. An inbox holds nothing by itself: between two
//! supersteps the buffer of outboxes and that of inboxes change places, and a message lies where its sender left it. A tile
//! adds what it holds and what comes from west, east, north and south, in this order; nothing in it depends on the device,
//! so all that add in plain f32 give the same bits. It must never know what is summed.

mod superstep;

pub use superstep::{EAST, NORTH, Phase, SOUTH, Superstep, WEST};

use super::{Case, EPS, Fill, Program, launch};
use crate::device::{ALL_CLASSES, Args, Buffer, Device, Elem, Held, Kernel, Lane, Real, Result, Variant, View, Word};
use crate::device::{read, write};
use crate::wafer::{AllReduce, Grid};
use superstep::{LINES, Line, OWN, PASS, SEND, TAKE};

/// Floats of a tile's outbox, one a port.
pub const PORTS: usize = 4;
/// Integers of a tile's tally: how often it ran, and the messages it sent.
pub const TALLIES: usize = 2;

/// Parameters: the grid, and the lines of tiles that run.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    width: u32,
    tiles: u32,
    lines: [Line; LINES],
}

/// The words of [`Params`], by the names that the WGSL has for them: lists are spelled out there.
#[rustfmt::skip]
const FIELDS: &[(&str, Word)] = &[
    ("width", Word::U32), ("tiles", Word::U32),
    ("first_0", Word::U32), ("stride_0", Word::U32), ("count_0", Word::U32), ("task_0", Word::U32),
    ("first_1", Word::U32), ("stride_1", Word::U32), ("count_1", Word::U32), ("task_1", Word::U32),
    ("first_2", Word::U32), ("stride_2", Word::U32), ("count_2", Word::U32), ("task_2", Word::U32),
    ("first_3", Word::U32), ("stride_3", Word::U32), ("count_3", Word::U32), ("task_3", Word::U32),
    ("first_4", Word::U32), ("stride_4", Word::U32), ("count_4", Word::U32), ("task_4", Word::U32),
    ("first_5", Word::U32), ("stride_5", Word::U32), ("count_5", Word::U32), ("task_5", Word::U32),
];

const VARIANTS: &[Variant] = &[Variant {
    name: "scalar",
    classes: ALL_CLASSES,
    constants: &[
        ("WG", 1),
        ("LINES", LINES as u32),
        ("NORTH", NORTH),
        ("EAST", EAST),
        ("SOUTH", SOUTH),
        ("WEST", WEST),
        ("TAKE", TAKE),
        ("SEND", SEND),
        ("OWN", OWN),
        ("PASS", PASS),
    ],
}];

/// The program.
pub static PROGRAMS: [&Program; 1] = [&SUPERSTEP];

/// One superstep: bindings own, inbox, outbox, sums, tally.
pub static SUPERSTEP: Program = Program {
    kernel: Kernel {
        name: "all_reduce",
        wgsl: include_str!("../../shaders/all_reduce.wgsl"),
        bindings: &[
            read("own", Lane::F32),
            read("inbox", Lane::F32),
            write("outbox", Lane::F32),
            write("sums", Lane::F32),
            write("tally", Lane::U32),
        ],
        params: FIELDS,
        variants: VARIANTS,
        // State alone, for a sum goes back to it at once: its number, its sum and its tally, an inbox and an outbox.
        held: |_| Held { accumulators: 0, state: 4 * (2 + TALLIES + 2 * PORTS) as u32 },
        reference_f32: reference,
        reference_f64: reference,
        host: None,
    },
    bound,
    cases,
    fault: ("port ^ 2u", "port ^ 1u"),
};

/// The tiles of a wafer on a device, with what each holds.
pub struct Tiles {
    device: Device,
    wafer: Grid,
    own: Buffer,
    sums: Buffer,
    tally: Buffer,
    inbox: Buffer,
    outbox: Buffer,
    next: u32,
}

impl Tiles {
    /// All tiles of a wafer, each with the number 0.
    ///
    /// # Errors
    /// What the device says of buffers of 16 bytes a tile and less.
    pub fn new(device: &Device, wafer: Grid) -> Result<Tiles> {
        let tiles = wafer.width as usize * wafer.height as usize;
        let floats = |label: &str, len| device.buffer(label, Elem::F32, len);
        Ok(Tiles {
            device: device.clone(),
            wafer,
            own: floats("own", tiles)?,
            sums: floats("sums", tiles)?,
            tally: device.buffer("tally", Elem::U32, TALLIES * tiles)?,
            inbox: floats("inbox", PORTS * tiles)?,
            outbox: floats("outbox", PORTS * tiles)?,
            next: 0,
        })
    }

    /// Gives each tile its number, row by row, and begins anew.
    ///
    /// # Errors
    /// [`DeviceError::Usage`](crate::device::DeviceError::Usage) when there are not as many numbers as tiles; what the
    /// device says.
    pub fn load(&mut self, values: &[f32]) -> Result<()> {
        self.device.upload(&self.own.all(), values)?;
        self.device.upload(&self.tally.all(), &vec![0u32; self.tally.len()])?;
        self.next = 0;
        Ok(())
    }

    /// Queues the next superstep, and says which tiles it runs; `None` when all tiles have the sum.
    ///
    /// # Errors
    /// What the launch says.
    pub fn step(&mut self) -> Result<Option<Superstep>> {
        if u64::from(self.next) >= (AllReduce { wafer: self.wafer }).supersteps() {
            return Ok(None);
        }
        // What was sent is there now; the tiles to which it was sent are those that run.
        std::mem::swap(&mut self.inbox, &mut self.outbox);
        let step = Superstep::of(self.wafer, self.next);
        let views = [&self.own, &self.inbox, &self.outbox, &self.sums, &self.tally].map(Buffer::all);
        launch(&self.device, &SUPERSTEP.kernel, &params(self.wafer, &step), |_| step.count(), &views)?;
        self.next += 1;
        Ok(Some(step))
    }

    /// Queues all supersteps that are left; `progress` hears of each when it is queued.
    ///
    /// # Errors
    /// What the launches say.
    pub fn run(&mut self, progress: &mut dyn FnMut(&Superstep)) -> Result<()> {
        while let Some(step) = self.step()? {
            progress(&step);
        }
        Ok(())
    }

    /// What each tile keeps, row by row: its sum so far, in the end the sum of all.
    pub fn sums(&self) -> View {
        self.sums.all()
    }

    /// [`TALLIES`] integers a tile: how often it ran, and the messages it sent, as counted by itself.
    pub fn tally(&self) -> View {
        self.tally.all()
    }

    /// [`PORTS`] floats a tile: the messages of the last superstep are among them, and nobody has read these yet.
    pub fn sent(&self) -> View {
        self.outbox.all()
    }

    /// The same of the superstep before: whatever lies there is of no use any more, and the next messages go there.
    pub fn spent(&self) -> View {
        self.inbox.all()
    }
}

/// The sum in the declared order, without tiles: of each row, then of the rows' sums.
pub fn plain_sum<F: Real>(wafer: Grid, values: &[f32]) -> F {
    add_up(wafer, values, &mut |_| {})
}

/// How far the sum of every tile may lie from that of `values`: an addition is off by at most EPS of what came out of it
/// (Higham, Accuracy and Stability of Numerical Algorithms, section 3.3), and all those errors add up.
pub fn sum_bound(wafer: Grid, values: &[f32]) -> f64 {
    let mut bound = 0.0;
    add_up(wafer, values, &mut |partial: f32| bound += EPS * f64::from(partial.abs()));
    bound
}

/// Adds up in the declared order and shows `each` what comes out of each addition.
fn add_up<F: Real>(wafer: Grid, values: &[f32], each: &mut impl FnMut(F)) -> F {
    let row = |row: &[f32]| add_line(&row.iter().map(|&x| F::of(x.into())).collect::<Vec<F>>(), each);
    let rows: Vec<F> = values.chunks(wafer.width as usize).map(row).collect();
    add_line(&rows, each)
}

/// The middle one, what adds up before it, what adds up behind it.
fn add_line<F: Real>(values: &[F], each: &mut impl FnMut(F)) -> F {
    let mut add = |a: F, b: F| {
        each(a + b);
        a + b
    };
    let (before, rest) = values.split_at(values.len() / 2);
    let before = before.iter().copied().reduce(|sum, x| add(x, sum));
    let behind = rest[1..].iter().rev().copied().reduce(|sum, x| add(x, sum));
    [before, behind].into_iter().flatten().fold(rest[0], add)
}

fn params(wafer: Grid, step: &Superstep) -> Params {
    Params { width: wafer.width, tiles: wafer.width * wafer.height, lines: step.lines }
}

fn reference<F: Real>(args: &mut Args<'_, F>) {
    superstep(args, |start, messages| match start {
        Some(start) => messages.iter().fold(start, |sum, &message| sum + message),
        None => messages[0],
    });
}

/// n additions are off by at most n EPS of the sum of absolute values; what is only passed on is exact.
fn bound(args: &mut Args<'_, f64>) {
    superstep(args, |start, messages| match start {
        Some(start) => EPS * messages.len() as f64 * messages.iter().fold(start.abs(), |sum, m| sum + m.abs()),
        None => 0.0,
    });
}

/// Runs the tiles of a superstep, where `add` makes of what a tile holds (nothing where it passes on) and of its messages,
/// in the declared order, what it keeps and sends.
fn superstep<F: Real>(args: &mut Args<'_, F>, add: impl Fn(Option<F>, &[F]) -> F) {
    let p: Params = args.params();
    let (own, inbox) = (args.read(0), args.read(1));
    let (outbox, sums, tally) = (args.write(2), args.write(3), args.write_ids(4));
    let width = p.width as usize;
    for line in p.lines {
        for n in 0..line.count {
            let tile = line.first.wrapping_add(n.wrapping_mul(line.stride)) as usize;
            let has = |bit: u32, port: u32| line.task & (bit << port) != 0;
            let message = |port: u32| {
                let neighbour = match port {
                    NORTH => tile - width,
                    EAST => tile + 1,
                    SOUTH => tile + width,
                    _ => tile - 1,
                };
                inbox[PORTS * neighbour + (port ^ 2) as usize]
            };
            let mut messages = [F::zero(); PORTS];
            let mut taken = 0;
            for port in [WEST, EAST, NORTH, SOUTH].into_iter().filter(|&port| has(TAKE, port)) {
                messages[taken] = message(port);
                taken += 1;
            }
            let start = if has(OWN, 0) { own[tile] } else { sums[tile] };
            let sum = add((!has(PASS, 0)).then_some(start), &messages[..taken]);
            sums[tile] = sum;
            let x = tile % width;
            let there = [tile >= width, x + 1 < width, tile + width < p.tiles as usize, x > 0];
            for port in (0..PORTS).filter(|&port| has(SEND, port as u32) && there[port]) {
                outbox[PORTS * tile + port] = sum;
                tally[TALLIES * tile + 1] += 1;
            }
            tally[TALLIES * tile] += 1;
        }
    }
}

/// Supersteps of each phase, of even and odd grids: the first of the rows, one that takes and sends, the column's first, where
/// rows end, one between, the root's, the sum's first and last hop.
fn cases() -> Vec<Case> {
    let grids = [(7, 5), (6, 4), (1, 5), (5, 1), (2, 2), (1, 1)];
    let mut cases = Vec::new();
    for (width, height) in grids {
        let wafer = Grid::new(width, height);
        let all = AllReduce { wafer };
        let (across, down) = all.reach();
        let last = all.supersteps() as u32 - 1;
        let mut numbers = vec![0, 1, across, across + 1, across + down, across + down + 1, across + down + 2, last];
        numbers.retain(|&number| number <= last);
        numbers.sort_unstable();
        numbers.dedup();
        cases.extend(numbers.into_iter().map(|number| case(wafer, number)));
    }
    cases
}

fn case(wafer: Grid, number: u32) -> Case {
    let tiles = (wafer.width * wafer.height) as usize;
    let step = Superstep::of(wafer, number);
    let words: Vec<u32> = bytemuck::cast_slice(bytemuck::bytes_of(&params(wafer, &step))).to_vec();
    let normal = |cols| Fill::Normal { rows: 1, cols, stride: cols, scale: 1.0, mean: 0.0 };
    Case {
        label: format!("superstep {number} of {} x {}", wafer.width, wafer.height),
        fills: vec![
            normal(tiles),
            normal(PORTS * tiles),
            Fill::Poison { len: PORTS * tiles },
            normal(tiles),
            Fill::Ids { len: TALLIES * tiles, below: 9 },
        ],
        launch: Box::new(move |_| (words.clone(), step.count())),
    }
}
