//! The host scheduler: runs one stepwise tile program either `fused` or `superstep`, with equal bits.
//!
//! A stepwise program is one pipeline whose entry point takes `(first_step, last_step, source addresses)` as data. `fused`
//! launches all tiles over all steps, operands read in place. `superstep` goes round the grid: for each round of at most
//! `W x H` tiles and each step, it moves the blocks the tiles receive into their inboxes, then launches that one step. It
//! knows blocks, rounds and inboxes; it must never know what a program computes.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::relay::{self, Part, Relay};
use crate::device::{Buffer, Device, Elem, Result, Span, Transfer};
use crate::wafer::{Cost, Wafer, Work};

pub use crate::wafer::Round;

/// How stepwise programs are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// As few dispatches as the data dependences allow; a tile reads the owner's block in place.
    Fused,
    /// One dispatch per step and round; tiles read only their own blocks, their state and their inbox.
    Superstep,
}

/// Where the tiles of a launch find what they receive.
pub enum Source<'a> {
    /// In the owner's block, in place.
    InPlace,
    /// In inboxes, one buffer per received operand: workgroup `g` finds operand `o` at element `g * inbox_len(o)`, rows
    /// `inbox_stride(o)` apart.
    Inbox(&'a [Buffer]),
}

/// A block of a matrix that a tile receives.
#[derive(Clone, Debug)]
pub struct Block {
    /// Where it lies.
    pub buffer: Buffer,
    /// First element in the buffer.
    pub offset: usize,
    /// Elements from one row to the next.
    pub stride: usize,
    /// Rows of the block.
    pub rows: usize,
    /// Elements of a row.
    pub cols: usize,
}

/// A tile program of several steps, with its operands, ready to be scheduled.
pub trait Stepwise {
    /// The name of its kernel.
    fn name(&self) -> &'static str;
    /// What it does.
    fn work(&self) -> Work;
    /// Its cost in supersteps on a wafer, in closed form.
    fn cost(&self, wafer: &Wafer) -> Cost;
    /// Rows and columns of blocks: one tile each.
    fn blocks(&self) -> (u32, u32);
    /// Steps of the longest tile.
    fn steps(&self) -> u32;
    /// Number of operands that tiles receive.
    fn operands(&self) -> usize;
    /// Elements of the inbox of one tile for an operand, and its row stride there.
    fn inbox(&self, operand: usize) -> (usize, usize);
    /// Elements of state that one tile saves between supersteps.
    fn state(&self) -> usize;
    /// What tile (i, j) receives at a step, for an operand; `None` when the tile does nothing at that step.
    fn receives(&self, i: u32, j: u32, step: u32, operand: usize) -> Option<Block>;
    /// Launches steps `first .. last` on the tiles of a round. `state` has `state()` elements per workgroup, to be
    /// restored when `first > 0` and saved when `last < steps()`; a launch of all steps does neither and gets any buffer.
    /// Inboxes and state are reused and may be longer than the round needs: bind them with `Buffer::all`.
    ///
    /// # Errors
    /// What the launch says.
    fn launch(
        &self,
        device: &Device,
        round: Round,
        source: Source<'_>,
        first: u32,
        last: u32,
        state: &Buffer,
    ) -> Result<()>;
}

/// A device, the wafer it plays, and how stepwise programs are run there. Keeps inboxes and state from one run to the
/// next, so that nothing is allocated after the first run of the largest program.
pub struct Fabric {
    device: Device,
    schedule: Schedule,
    wafer: Wafer,
    memory: Mutex<Memory>,
}

/// What supersteps need beside the operands; only ever grown.
#[derive(Default)]
struct Memory {
    inboxes: Vec<Buffer>,
    state: Option<Buffer>,
    /// What the tiles of a relay hold and what they are handed, in turns; what all tiles of a line are.
    carries: [Option<Buffer>; 3],
    transfers: Vec<Transfer>,
}

/// Elements of the state buffer of a program that saves none: the smallest that any adapter binds.
const LEAST_STATE: usize = 64;

impl Fabric {
    /// A fabric of `wafer`'s tiles on a device.
    pub fn new(device: Device, schedule: Schedule, wafer: Wafer) -> Fabric {
        Fabric { device, schedule, wafer, memory: Mutex::default() }
    }

    /// The device that runs the tiles.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// How programs are run.
    pub fn schedule(&self) -> Schedule {
        self.schedule
    }

    /// The grid of tiles.
    pub fn wafer(&self) -> Wafer {
        self.wafer
    }

    /// Queues a whole program.
    ///
    /// # Errors
    /// What the program's launches and the exchanges between them say; what was queued before stays queued.
    pub fn run(&self, program: &dyn Stepwise) -> Result<()> {
        let (rows, cols) = program.blocks();
        if rows == 0 || cols == 0 {
            return Ok(());
        }
        let span = || Span { program: program.name(), work: program.work(), blocks: (rows, cols) };
        self.device.span(span, || self.run_all(program, (rows, cols)))
    }

    fn run_all(&self, program: &dyn Stepwise, (rows, cols): (u32, u32)) -> Result<()> {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        match self.schedule {
            Schedule::Fused => {
                let all = Round { first_row: 0, first_col: 0, height: rows, width: cols };
                let state = memory.state(&self.device, LEAST_STATE)?;
                program.launch(&self.device, all, Source::InPlace, 0, program.steps(), &state)
            }
            Schedule::Superstep if self.device.is_blank() => {
                // The first round is the largest.
                let first = self.wafer.rounds(rows, cols).next();
                first.map_or(Ok(()), |round| memory.reserve(&self.device, program, round).map(drop))?;
                self.device.count(&program.cost(&self.wafer));
                Ok(())
            }
            Schedule::Superstep => {
                self.wafer.rounds(rows, cols).try_for_each(|round| memory.supersteps(&self.device, program, round))
            }
        }
    }
}

impl Fabric {
    /// Queues a whole relay.
    ///
    /// # Errors
    /// What the program's launches and the exchanges between them say; what was queued before stays queued.
    pub fn relay(&self, program: &dyn Relay) -> Result<()> {
        let (lines, blocks) = program.extent();
        if lines == 0 || blocks == 0 {
            return Ok(());
        }
        let blocks = program.axis().blocks(&self.wafer, (lines, blocks));
        let span = || Span { program: program.name(), work: program.work(), blocks };
        self.device.span(span, || self.relay_all(program, lines))
    }

    fn relay_all(&self, program: &dyn Relay, lines: u32) -> Result<()> {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        match self.schedule {
            Schedule::Fused => {
                let carry = memory.carry(&self.device, 0, LEAST_STATE)?;
                program.launch(&self.device, &Part::whole(lines), &carry)
            }
            Schedule::Superstep if self.device.is_blank() => {
                memory.reserve_carries(&self.device, &self.wafer, program)?;
                self.device.count(&relay::cost(program, &self.wafer));
                Ok(())
            }
            Schedule::Superstep => {
                let band = program.axis().at_once(&self.wafer).0;
                (0..lines).step_by(band as usize).try_for_each(|first| {
                    memory.relay(&self.device, &self.wafer, program, first..lines.min(first + band))
                })
            }
        }
    }
}

impl Memory {
    /// Room for the inboxes of a round; that of its state is given.
    fn reserve(&mut self, device: &Device, program: &dyn Stepwise, round: Round) -> Result<Buffer> {
        let tiles = round.tiles() as usize;
        for operand in 0..program.operands() {
            self.inbox(device, operand, tiles * program.inbox(operand).0)?;
        }
        self.state(device, tiles * program.state())
    }

    /// Room for what the tiles of the largest band of a relay hold, are handed, and use.
    fn reserve_carries(&mut self, device: &Device, wafer: &Wafer, program: &dyn Relay) -> Result<()> {
        let ((lines, blocks), (high, wide)) = (program.extent(), program.axis().at_once(wafer));
        let each = lines.min(high) as usize * program.carry();
        self.carry(device, 0, each)?;
        self.carry(device, 1, each)?;
        if program.applies() {
            self.carry(device, 2, each * wide.min(blocks) as usize)?;
        }
        Ok(())
    }

    /// One round: for each step, what the tiles receive, then the step.
    fn supersteps(&mut self, device: &Device, program: &dyn Stepwise, round: Round) -> Result<()> {
        let state = self.reserve(device, program, round)?;
        for step in 0..program.steps() {
            self.receive(program, round, step);
            device.exchange(&self.transfers)?;
            let inboxes = &self.inboxes[..program.operands()];
            program.launch(device, round, Source::Inbox(inboxes), step, step + 1, &state)?;
        }
        // The list holds the operands' buffers alive.
        self.transfers.clear();
        Ok(())
    }

    /// Lists the blocks that the tiles of a round receive at a step.
    fn receive(&mut self, program: &dyn Stepwise, round: Round, step: u32) {
        self.transfers.clear();
        for operand in 0..program.operands() {
            let (len, stride) = program.inbox(operand);
            for (tile, (i, j)) in round.blocks().enumerate() {
                let Some(block) = program.receives(i, j, step, operand) else { continue };
                self.transfers.push(Transfer {
                    source: block.buffer,
                    source_offset: block.offset,
                    source_stride: block.stride,
                    target: self.inboxes[operand].clone(),
                    target_offset: tile * len,
                    target_stride: stride,
                    rows: block.rows,
                    cols: block.cols,
                });
            }
        }
    }

    /// A band of lines of a relay: pass after pass, block after block, then what uses the sums.
    fn relay(&mut self, device: &Device, wafer: &Wafer, program: &dyn Relay, lines: Range<u32>) -> Result<()> {
        let (axis, (_, blocks)) = (program.axis(), program.extent());
        let (count, wide) = (lines.len(), axis.at_once(wafer).1);
        let part = |first_block, blocks, pass: usize| Part {
            first_line: lines.start,
            lines: lines.len() as u32,
            first_block,
            blocks,
            passes: 1 << pass,
            carried: true,
        };
        let gathers = program.gathers();
        let mut turn = 0;
        let mut before = false;
        for (pass, &reach) in gathers.iter().enumerate() {
            for block in 0..reach {
                let held = self.carry(device, turn, count * program.carry())?;
                turn = 1 - turn;
                let carry = self.carry(device, turn, count * program.carry())?;
                if before {
                    self.hand_on(device, program, &held, &carry, (count, 1))?;
                }
                program.launch(device, &part(block, 1, pass), &carry)?;
                before = true;
            }
        }
        if program.applies() {
            let held = self.carry(device, turn, count * program.carry())?;
            for first in (0..blocks).step_by(wide as usize) {
                let width = wide.min(blocks - first);
                let carry = self.carry(device, 2, count * width as usize * program.carry())?;
                self.hand_on(device, program, &held, &carry, (count, width as usize))?;
                program.launch(device, &part(first, width, gathers.len()), &carry)?;
            }
        }
        self.transfers.clear();
        Ok(())
    }

    /// Moves what a tile of each line holds to `width` tiles of that line.
    fn hand_on(
        &mut self,
        device: &Device,
        program: &dyn Relay,
        held: &Buffer,
        carry: &Buffer,
        (lines, width): (usize, usize),
    ) -> Result<()> {
        let len = program.carry();
        self.transfers.clear();
        self.transfers.extend((0..lines * width).map(|slot| Transfer {
            source: held.clone(),
            source_offset: slot / width * len,
            source_stride: len,
            target: carry.clone(),
            target_offset: slot * len,
            target_stride: len,
            rows: 1,
            cols: len,
        }));
        device.exchange(&self.transfers)
    }

    fn carry(&mut self, device: &Device, turn: usize, len: usize) -> Result<Buffer> {
        grown(&mut self.carries[turn], len, || format!("carry {turn}"), device)
    }

    fn state(&mut self, device: &Device, len: usize) -> Result<Buffer> {
        grown(&mut self.state, len, || "tile state".into(), device)
    }

    fn inbox(&mut self, device: &Device, operand: usize, len: usize) -> Result<()> {
        let grown = match self.inboxes.get(operand) {
            Some(inbox) if inbox.len() >= len => return Ok(()),
            _ => device.buffer(format!("inbox {operand}"), Elem::F32, len.max(LEAST_STATE))?,
        };
        match self.inboxes.get_mut(operand) {
            Some(inbox) => *inbox = grown,
            None => self.inboxes.push(grown),
        }
        Ok(())
    }
}

/// The buffer, made anew where it is too short.
fn grown(buffer: &mut Option<Buffer>, len: usize, label: impl Fn() -> String, device: &Device) -> Result<Buffer> {
    match buffer {
        Some(buffer) if buffer.len() >= len => Ok(buffer.clone()),
        _ => Ok(buffer.insert(device.buffer(label(), Elem::F32, len.max(LEAST_STATE))?).clone()),
    }
}
