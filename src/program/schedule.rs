//! The host scheduler: runs one stepwise tile program either `fused` or `superstep`, with equal bits.
//!
//! A stepwise program is one pipeline whose entry point takes `(first_step, last_step, source addresses)` as data. `fused`
//! launches all tiles over all steps, operands read in place. `superstep` goes round the grid: for each round of at most
//! `W x H` tiles and each step, it moves the blocks the tiles receive into their inboxes, then launches that one step. It
//! knows blocks, rounds and inboxes; it must never know what a program computes.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::exchange::{Checks, Exchange, Health, Message};
use super::relay::{self, Part, Relay};
use crate::device::{Buffer, Device, Elem, Result, Span};
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

/// Where a tile finds the block that it receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Block (i, j) of the wafer's grid, on whose tile the operand's block lies.
    pub owner: (u32, u32),
    /// A block (i, j) of the program whose tile received the same, and how many steps ago: where it still has it, it passes it
    /// on.
    pub passed: Option<((u32, u32), u32)>,
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
    /// Where it comes from, when it receives something.
    fn origin(&self, i: u32, j: u32, step: u32, operand: usize) -> Origin;
    /// For how many steps a tile keeps what it received, to pass it on.
    fn keeps(&self) -> usize {
        0
    }
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

/// By which route products go over the wafer. All give equal bits, as all add in one order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Routing {
    /// A block of the result stays on its tile; blocks of both operands are broadcast along rows and columns.
    #[default]
    Broadcast,
    /// The activations stay; rows of weights are broadcast down the columns, and sums go round a ring along the rows.
    WeightStream,
}

/// A device, the wafer it plays, and how programs are run there. Keeps inboxes and state from one run to the next, so that
/// nothing is allocated after the first run of the largest program.
pub struct Fabric {
    device: Device,
    schedule: Schedule,
    routing: Routing,
    wafer: Wafer,
    memory: Mutex<Memory>,
}

/// What supersteps need beside the operands; only ever grown.
#[derive(Default)]
struct Memory {
    /// Of each operand, what tiles received at the last steps, in turns.
    inboxes: Vec<Vec<Option<Buffer>>>,
    /// What tiles hold between steps; of those that hand it on, in turns.
    state: [Option<Buffer>; 3],
    messages: Vec<Message>,
    exchange: Exchange,
}

/// Elements of the state buffer of a program that saves none: the smallest that any adapter binds.
const LEAST_STATE: usize = 64;

impl Fabric {
    /// A fabric of `wafer`'s tiles on a device.
    pub fn new(device: Device, schedule: Schedule, wafer: Wafer) -> Fabric {
        Fabric { device, schedule, routing: Routing::default(), wafer, memory: Mutex::default() }
    }

    /// The same with products routed another way.
    pub fn with_routing(self, routing: Routing) -> Fabric {
        Fabric { routing, ..self }
    }

    /// The same with messages that are checked at every hop; see [`Checks`].
    pub fn with_checks(self, checks: Checks) -> Fabric {
        let memory = Memory { exchange: Exchange::checked(checks), ..Memory::default() };
        Fabric { memory: memory.into(), ..self }
    }

    /// The device that runs the tiles.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// How programs are run.
    pub fn schedule(&self) -> Schedule {
        self.schedule
    }

    /// How products go over the wafer in supersteps.
    pub fn routing(&self) -> Routing {
        self.routing
    }

    /// The grid of tiles.
    pub fn wafer(&self) -> &Wafer {
        &self.wafer
    }

    /// What the checks of messages have seen.
    pub fn health(&self) -> Health {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).exchange.health()
    }

    /// Bytes of the boxes between tiles: what the emulation of the fabric itself takes of the device, beside programs.
    pub fn box_bytes(&self) -> u64 {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).exchange.bytes()
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
        match self.schedule {
            Schedule::Fused => {
                let all = Round { first_row: 0, first_col: 0, height: rows, width: cols };
                let state = self.on_wafer().state(0, LEAST_STATE)?;
                program.launch(&self.device, all, Source::InPlace, 0, program.steps(), &state)
            }
            Schedule::Superstep if self.device.is_blank() => {
                // The first round is the largest.
                let first = self.wafer.rounds(rows, cols).next();
                first.map_or(Ok(()), |round| self.on_wafer().reserve(program, round))?;
                self.device.count(&program.cost(&self.wafer));
                Ok(())
            }
            Schedule::Superstep => {
                let mut tiles = self.on_wafer();
                self.wafer.rounds(rows, cols).try_for_each(|round| tiles.supersteps(program, round))
            }
        }
    }

    /// Queues a whole relay.
    ///
    /// # Errors
    /// As [`Fabric::run`].
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
        let mut tiles = self.on_wafer();
        match self.schedule {
            Schedule::Fused => {
                let carry = tiles.state(0, LEAST_STATE)?;
                program.launch(&self.device, &Part::whole(lines), &carry)
            }
            Schedule::Superstep if self.device.is_blank() => {
                tiles.reserve_carries(program)?;
                self.device.count(&relay::cost(program, &self.wafer));
                Ok(())
            }
            Schedule::Superstep => {
                let band = program.axis().at_once(&self.wafer).0;
                let first = (0..lines).step_by(band as usize);
                first.map(|first| first..lines.min(first + band)).try_for_each(|lines| tiles.relay(program, lines))
            }
        }
    }

    /// Queues a program that schedules itself on the wafer, in supersteps; of a blank device it is only counted.
    ///
    /// # Errors
    /// What `run` says.
    pub(super) fn scheduled(
        &self,
        span: Span,
        cost: impl FnOnce() -> Cost,
        run: impl FnOnce(&mut Tiles<'_>) -> Result<()>,
    ) -> Result<()> {
        self.device.span(
            || span,
            || match self.device.is_blank() {
                true => {
                    self.device.count(&cost());
                    Ok(())
                }
                false => run(&mut self.on_wafer()),
            },
        )
    }

    /// The wafer at work, for one program at a time.
    fn on_wafer(&self) -> Tiles<'_> {
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        Tiles { device: &self.device, wafer: &self.wafer, memory }
    }
}

/// The tiles of a wafer with their memory, while a program runs on them.
pub(super) struct Tiles<'a> {
    pub device: &'a Device,
    pub wafer: &'a Wafer,
    memory: MutexGuard<'a, Memory>,
}

impl Tiles<'_> {
    /// Room for the inboxes and the state of a round.
    fn reserve(&mut self, program: &dyn Stepwise, round: Round) -> Result<()> {
        let tiles = round.tiles() as usize;
        for operand in 0..program.operands() {
            for turn in 0..(program.steps() as usize).min(program.keeps() + 1) {
                self.inbox(operand, turn, tiles * program.inbox(operand).0)?;
            }
        }
        self.state(0, tiles * program.state()).map(drop)
    }

    /// Room for what the tiles of the largest band of a relay hold, are handed, and use.
    fn reserve_carries(&mut self, program: &dyn Relay) -> Result<()> {
        let ((lines, blocks), (high, wide)) = (program.extent(), program.axis().at_once(self.wafer));
        let each = lines.min(high) as usize * program.carry();
        self.state(0, each)?;
        if program.gathers().iter().sum::<u32>() > 1 {
            self.state(1, each)?;
        }
        if program.applies() {
            self.state(2, each * wide.min(blocks) as usize)?;
        }
        Ok(())
    }

    /// One round: for each step, what the tiles receive, then the step.
    fn supersteps(&mut self, program: &dyn Stepwise, round: Round) -> Result<()> {
        let tiles = round.tiles() as usize;
        let state = self.state(0, tiles * program.state())?;
        for step in 0..program.steps() {
            self.receive(program, round, step)?;
            self.exchange()?;
            let turn = step as usize % (program.keeps() + 1);
            let came = |inbox: &Vec<Option<Buffer>>| inbox[turn].clone().expect("made when it was received");
            let inboxes: Vec<Buffer> = self.memory.inboxes[..program.operands()].iter().map(came).collect();
            program.launch(self.device, round, Source::Inbox(&inboxes), step, step + 1, &state)?;
        }
        Ok(())
    }

    /// Lists the blocks that the tiles of a round receive at a step.
    fn receive(&mut self, program: &dyn Stepwise, round: Round, step: u32) -> Result<()> {
        let turns = program.keeps() + 1;
        for operand in 0..program.operands() {
            let (len, stride) = program.inbox(operand);
            let target = self.inbox(operand, step as usize % turns, round.tiles() as usize * len)?;
            for (tile, (i, j)) in round.blocks().enumerate() {
                let Some(block) = program.receives(i, j, step, operand) else { continue };
                let origin = program.origin(i, j, step, operand);
                let passed = origin.passed.and_then(|((i, j), ago)| {
                    let neighbour = round.number(i, j).filter(|_| ago > 0 && ago as usize <= program.keeps())?;
                    let kept = self.memory.inboxes[operand][(step - ago) as usize % turns].clone()?;
                    let block = Block { buffer: kept, offset: neighbour * len, stride, ..block.clone() };
                    Some((block, self.wafer.owner(i, j)))
                });
                let (block, from) = passed.unwrap_or_else(|| (block, self.wafer.owner(origin.owner.0, origin.owner.1)));
                let target = (target.clone(), tile * len, stride);
                self.send(Message { block, from, to: self.wafer.owner(i, j), target });
            }
        }
        Ok(())
    }

    /// A band of lines of a relay: pass after pass, block after block, then what uses the sums.
    fn relay(&mut self, program: &dyn Relay, lines: Range<u32>) -> Result<()> {
        let (blocks, wide) = (program.extent().1, program.axis().at_once(self.wafer).1);
        let part = |first_block, blocks, pass: usize| Part {
            first_line: lines.start,
            lines: lines.len() as u32,
            first_block,
            blocks,
            passes: 1 << pass,
            carried: true,
        };
        let gathers = program.gathers();
        let len = lines.len() * program.carry();
        // What was handed on last: in which turn, and by which block.
        let mut held: Option<(usize, u32)> = None;
        for (pass, &reach) in gathers.iter().enumerate() {
            for block in 0..reach {
                let turn = held.map_or(0, |(turn, _)| 1 - turn);
                let carry = self.state(turn, len)?;
                self.hand_on(program, held, &lines, block..block + 1, &carry)?;
                program.launch(self.device, &part(block, 1, pass), &carry)?;
                held = Some((turn, block));
            }
        }
        if program.applies() {
            for first in (0..blocks).step_by(wide as usize) {
                let those = first..blocks.min(first + wide);
                let carry = self.state(2, those.len() * len)?;
                self.hand_on(program, held, &lines, those.clone(), &carry)?;
                program.launch(self.device, &part(first, those.len() as u32, gathers.len()), &carry)?;
            }
        }
        Ok(())
    }

    /// Moves what a block of each line holds to some blocks of that line.
    fn hand_on(
        &mut self,
        program: &dyn Relay,
        held: Option<(usize, u32)>,
        lines: &Range<u32>,
        blocks: Range<u32>,
        carry: &Buffer,
    ) -> Result<()> {
        let Some((turn, last)) = held else { return Ok(()) };
        let (axis, len) = (program.axis(), program.carry());
        let buffer = self.state(turn, lines.len() * len)?;
        let each = lines.clone().enumerate().flat_map(|(at, line)| blocks.clone().map(move |block| (at, line, block)));
        for (slot, (at, line, block)) in each.enumerate() {
            self.send(Message {
                block: Block { buffer: buffer.clone(), offset: at * len, stride: len, rows: 1, cols: len },
                from: axis.tile(self.wafer, line, last),
                to: axis.tile(self.wafer, line, block),
                target: (carry.clone(), slot * len, len),
            });
        }
        self.exchange()
    }

    /// Puts a message among those of the next exchange.
    pub fn send(&mut self, message: Message) {
        self.memory.messages.push(message);
    }

    /// Moves the messages that were sent.
    ///
    /// # Errors
    /// As [`Exchange::deliver`].
    pub fn exchange(&mut self) -> Result<()> {
        let Memory { messages, exchange, .. } = &mut *self.memory;
        let done = exchange.deliver(self.device, self.wafer.mesh(), messages);
        // The list holds the operands' buffers alive.
        messages.clear();
        done
    }

    /// State of tiles, in one of three turns.
    pub fn state(&mut self, turn: usize, len: usize) -> Result<Buffer> {
        grown(&mut self.memory.state[turn], len, || format!("tile state {turn}"), self.device)
    }

    /// Inboxes of an operand, in one of some turns.
    pub fn inbox(&mut self, operand: usize, turn: usize, len: usize) -> Result<Buffer> {
        let inboxes = &mut self.memory.inboxes;
        inboxes.resize_with(inboxes.len().max(operand + 1), Vec::new);
        let turns = &mut inboxes[operand];
        turns.resize(turns.len().max(turn + 1), None);
        grown(&mut turns[turn], len, || format!("inbox {operand}.{turn}"), self.device)
    }
}

/// The buffer, made anew where it is too short.
fn grown(buffer: &mut Option<Buffer>, len: usize, label: impl Fn() -> String, device: &Device) -> Result<Buffer> {
    match buffer {
        Some(buffer) if buffer.len() >= len => Ok(buffer.clone()),
        _ => Ok(buffer.insert(device.buffer(label(), Elem::F32, len.max(LEAST_STATE))?).clone()),
    }
}
