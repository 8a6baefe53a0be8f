//! Outboxes and inboxes of all tiles, four of each, and the swap that makes what leaves one tile what came to the next. It
//! knows tiles and ports; it must never know where a block is going.

use std::collections::HashMap;

use crate::device::{Buffer, Device, Elem, Result, Transfer};
use crate::program::schedule::Block;
use crate::wafer::{Port, Tile};

/// A crossing of one link.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hop {
    /// The tile that a block leaves.
    pub from: Tile,
    /// By which port.
    pub port: Port,
    /// The neighbour it comes to, at the opposite port.
    pub to: Tile,
}

/// Where a block lies.
#[derive(Clone, Debug)]
pub(super) struct Spot {
    pub buffer: Buffer,
    pub offset: usize,
    pub stride: usize,
    pub rows: usize,
    pub cols: usize,
}

impl Spot {
    pub fn of(block: &Block) -> Spot {
        let Block { buffer, offset, stride, rows, cols } = block.clone();
        Spot { buffer, offset, stride, rows, cols }
    }
}

/// Of each port the boxes of all tiles, in one buffer for what leaves and one for what came. Within a round a port passes
/// one block, so what came stays where it is until the round is over.
#[derive(Default)]
pub(super) struct Boxes {
    outboxes: [Option<Buffer>; 4],
    inboxes: [Option<Buffer>; 4],
    /// Number of each tile that sends, and floats of a box.
    numbers: HashMap<Tile, usize>,
    len: usize,
}

impl Boxes {
    /// Boxes for blocks of so many floats, for all tiles that send.
    pub fn make_room(&mut self, device: &Device, tiles: impl Iterator<Item = Tile>, longest: usize) -> Result<()> {
        for tile in tiles {
            let next = self.numbers.len();
            self.numbers.entry(tile).or_insert(next);
        }
        self.len = self.len.max(longest);
        let len = self.numbers.len() * self.len;
        for port in Port::ALL {
            for (side, boxes) in [("outbox", &mut self.outboxes), ("inbox", &mut self.inboxes)] {
                let held = &mut boxes[port as usize];
                if held.as_ref().is_none_or(|held| held.len() < len) && len > 0 {
                    *held = Some(device.buffer(format!("{side} {port}"), Elem::F32, len)?);
                }
            }
        }
        Ok(())
    }

    /// Bytes of all boxes.
    pub fn bytes(&self) -> u64 {
        let boxes = self.outboxes.iter().chain(&self.inboxes).flatten();
        boxes.map(|boxes| 4 * boxes.len() as u64).sum()
    }

    /// Lets blocks cross, each its link, all at once, and says where each lies then.
    pub fn cross(&mut self, device: &Device, crossing: &[(Hop, &Spot)]) -> Result<Vec<Spot>> {
        let leaving = crossing.iter().map(|(hop, source)| self.out(*hop, source)).collect::<Vec<_>>();
        device.cross(&leaving)?;
        Port::ALL.into_iter().for_each(|port| self.swap(port));
        Ok(crossing.iter().map(|(hop, source)| self.inbox(*hop, source)).collect())
    }

    /// The same for one block. Where one by one crosses, what came to a tile may by now be among the boxes that leave: then
    /// it leaves into the others.
    pub fn cross_one(&mut self, device: &Device, hop: Hop, source: &Spot) -> Result<Spot> {
        if self.outboxes[hop.port as usize].as_ref().is_some_and(|out| out.id() == source.buffer.id()) {
            self.swap(hop.port);
        }
        device.cross(&[self.out(hop, source)])?;
        self.swap(hop.port);
        Ok(self.inbox(hop, source))
    }

    /// The inbox that a hop leads to, as it would be found after a swap of which nothing came.
    pub fn left_over(&mut self, hop: Hop, like: &Spot) -> Spot {
        self.swap(hop.port);
        self.inbox(hop, like)
    }

    /// The copy of a block into the outbox of its hop.
    fn out(&self, hop: Hop, source: &Spot) -> Transfer {
        Transfer {
            source: source.buffer.clone(),
            source_offset: source.offset,
            source_stride: source.stride,
            target: self.outboxes[hop.port as usize].clone().expect("room was made"),
            target_offset: self.numbers[&hop.from] * self.len,
            target_stride: source.cols,
            rows: source.rows,
            cols: source.cols,
        }
    }

    /// Outboxes at a port become inboxes of the neighbours, and theirs become outboxes.
    fn swap(&mut self, port: Port) {
        std::mem::swap(&mut self.outboxes[port as usize], &mut self.inboxes[port.opposite() as usize]);
    }

    /// Where what a hop moved lies: in the inbox, at the opposite port, of the neighbour, which is the sender's box.
    fn inbox(&self, hop: Hop, source: &Spot) -> Spot {
        Spot {
            buffer: self.inboxes[hop.port.opposite() as usize].clone().expect("room was made"),
            offset: self.numbers[&hop.from] * self.len,
            stride: source.cols,
            ..*source
        }
    }
}
