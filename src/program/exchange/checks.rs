//! The checked mode of the exchange: each message carries its number and a checksum, which the receiver of every hop holds
//! against what it expects. What is missing or damaged is sent again; what is old is thrown away; what never comes whole is
//! an error that names tile, port and superstep. Faults can be planted, so that all of this can be seen to work.
//!
//! It must never change a number that was right.

use std::collections::HashMap;

use super::boxes::{Boxes, Hop, Spot};
use crate::device::{Device, DeviceError, Result, View};
use crate::program::initial::word;
use crate::program::schedule::Block;
use crate::wafer::{Port, Tile};

/// How often a message is sent over a link before it is given up.
const ATTEMPTS: usize = 3;

/// Planted faults: each crossing of a link goes wrong with a probability, drawn by a seed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Faults {
    /// Which draws.
    pub seed: u64,
    /// Probability that a crossing is faulty: lost, late, sent twice or damaged, all as likely.
    pub rate: f64,
}

/// What a checked exchange has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Crossings of a link.
    pub crossings: u64,
    /// Of those, such as a fault was planted in.
    pub faults: u64,
    /// Messages that came damaged and were thrown away.
    pub damaged: u64,
    /// Messages that came late or twice and were thrown away.
    pub stale: u64,
    /// Messages that were sent once more.
    pub resent: u64,
}

/// What goes with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    number: u64,
    checksum: u32,
}

/// What becomes of a crossing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Sound,
    Lost,
    Late,
    Twice,
    Damaged(u32),
}

/// A message that is still on a link.
struct Waiting {
    header: Header,
    payload: Vec<f32>,
}

/// The state of the check.
#[derive(Default)]
pub struct Checks {
    faults: Option<Faults>,
    /// Takes what comes, unseen.
    blind: bool,
    messages: u64,
    health: Health,
    waiting: HashMap<(Tile, Port), Vec<Waiting>>,
}

impl Checks {
    /// Checks, with planted faults or none.
    pub fn new(faults: Option<Faults>) -> Checks {
        Checks { faults, ..Checks::default() }
    }

    /// What an exchange without checks makes of the same faults: for the canary that shows that they do harm.
    pub fn blind(faults: Faults) -> Checks {
        Checks { faults: Some(faults), blind: true, ..Checks::default() }
    }

    pub(super) fn health(&self) -> Health {
        self.health
    }

    /// Gives a message its number and its checksum.
    pub(super) fn begin(&mut self, device: &Device, block: &Block) -> Result<Header> {
        self.messages += 1;
        Ok(Header { number: self.messages, checksum: checksum(&read(device, &Spot::of(block))?) })
    }

    /// Lets a message cross a link, and says where it lies then.
    pub(super) fn cross(
        &mut self,
        device: &Device,
        boxes: &mut Boxes,
        hop: Hop,
        source: &Spot,
        header: Header,
        superstep: u64,
    ) -> Result<Spot> {
        let mut what = "missing";
        for attempt in 0..ATTEMPTS {
            self.health.resent += u64::from(attempt > 0);
            // What was on its way comes first, in the order in which it was sent.
            for late in self.waiting.remove(&(hop.from, hop.port)).unwrap_or_default() {
                let spot = boxes.cross_one(device, hop, source)?;
                let payload = &late.payload[..late.payload.len().min(source.rows * source.cols)];
                device.upload(&spot.buffer.view(spot.offset, payload.len()), payload)?;
                if self.takes(device, &spot, late.header, header, &mut what)? {
                    return Ok(spot);
                }
            }
            let fate = self.draw();
            if matches!(fate, Fate::Late | Fate::Twice) {
                let waiting = Waiting { header, payload: read(device, source)? };
                self.waiting.entry((hop.from, hop.port)).or_default().push(waiting);
            }
            if matches!(fate, Fate::Lost | Fate::Late) {
                if self.blind {
                    return Ok(boxes.left_over(hop, source));
                }
                continue;
            }
            let spot = boxes.cross_one(device, hop, source)?;
            if let Fate::Damaged(bit) = fate {
                let at = spot.buffer.view(spot.offset + bit as usize / 32 % (spot.rows * spot.cols), 1);
                let value = device.download(&at)?[0].to_bits() ^ 1 << (bit % 32);
                device.upload(&at, &[value])?;
            }
            if self.takes(device, &spot, header, header, &mut what)? {
                return Ok(spot);
            }
        }
        Err(DeviceError::Message { tile: hop.to, port: hop.port.opposite(), superstep, what })
    }

    /// Whether a receiver takes what came with one header, when it expects another.
    fn takes(
        &mut self,
        device: &Device,
        spot: &Spot,
        came: Header,
        expected: Header,
        what: &mut &'static str,
    ) -> Result<bool> {
        if self.blind {
            return Ok(true);
        }
        if came.number != expected.number {
            self.health.stale += 1;
            return Ok(false);
        }
        if checksum(&read(device, spot)?) != expected.checksum {
            self.health.damaged += 1;
            *what = "damaged";
            return Ok(false);
        }
        Ok(true)
    }

    /// What becomes of the next crossing.
    fn draw(&mut self) -> Fate {
        let Some(Faults { seed, rate }) = self.faults else {
            self.health.crossings += 1;
            return Fate::Sound;
        };
        let [chance, kind] = [0, 1].map(|i| word(seed, 2 * self.health.crossings + i));
        self.health.crossings += 1;
        if f64::from(chance) >= rate * (u64::from(u32::MAX) + 1) as f64 {
            return Fate::Sound;
        }
        self.health.faults += 1;
        match kind % 4 {
            0 => Fate::Lost,
            1 => Fate::Late,
            2 => Fate::Twice,
            _ => Fate::Damaged(kind / 4),
        }
    }
}

/// The values of a block, row by row.
fn read(device: &Device, spot: &Spot) -> Result<Vec<f32>> {
    let mut values = Vec::with_capacity(spot.rows * spot.cols);
    for row in 0..spot.rows {
        let view: View = spot.buffer.view(spot.offset + row * spot.stride, spot.cols);
        values.extend(device.download(&view)?);
    }
    Ok(values)
}

fn checksum(values: &[f32]) -> u32 {
    crc32c::crc32c(bytemuck::cast_slice(values))
}
