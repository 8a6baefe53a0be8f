//! The exchange between two supersteps: every tile has an outbox and an inbox at each of its four ports. A block is copied
//! into the outbox at the port it leaves by; then outboxes and the inboxes they face are swapped, and it lies in the
//! neighbour's inbox, to be copied into that tile's memory, into its next outboxes, or both. The way is that of the wafer's
//! mesh, round what is dead; what several tiles receive of one block crosses a link once.
//!
//! In a round a port passes one block: messages that would meet at a port wait for the next round. With [`Checks`], each
//! message carries its number and a checksum, held at every hop. It must never know what a block means.

mod boxes;
mod checks;

use std::collections::{HashMap, HashSet};

use super::schedule::Block;
use crate::device::{Buffer, Device, Result, Transfer};
use crate::wafer::{Mesh, Port, Tile, Ways};
use boxes::{Boxes, Hop, Spot};

pub use checks::{Checks, Faults, Health};

/// A block on its way from the memory of one tile to that of another, as programs see tiles.
#[derive(Clone, Debug)]
pub struct Message {
    /// What travels.
    pub block: Block,
    /// Whose memory it lies in.
    pub from: Tile,
    /// Who receives it.
    pub to: Tile,
    /// Where it is put: the buffer, its first element there, and elements from one row to the next.
    pub target: (Buffer, usize, usize),
}

/// The boxes of all tiles, and the state of the check.
#[derive(Default)]
pub struct Exchange {
    boxes: Boxes,
    ways: HashMap<Tile, Ways>,
    /// Exchanges so far.
    superstep: u64,
    checks: Option<Checks>,
}

/// A block that goes to one or more tiles.
struct Tree<'a> {
    block: &'a Block,
    /// Links, each behind the one before it on the way.
    links: Vec<Link>,
    /// The link by which each message arrives; none where a tile receives what it holds itself.
    arrivals: Vec<(Option<usize>, &'a Message)>,
}

/// A link of a tree.
#[derive(Clone, Copy)]
struct Link {
    hop: Hop,
    /// The link before it on the way.
    before: Option<usize>,
    /// How many links are before it.
    depth: usize,
}

impl Exchange {
    /// An exchange whose messages are checked at every hop.
    pub fn checked(checks: Checks) -> Exchange {
        Exchange { checks: Some(checks), ..Exchange::default() }
    }

    /// What the checks have seen so far; nothing without checks.
    pub fn health(&self) -> Health {
        self.checks.as_ref().map_or_else(Health::default, Checks::health)
    }

    /// Bytes of all boxes.
    pub fn bytes(&self) -> u64 {
        self.boxes.bytes()
    }

    /// Moves all messages of a superstep.
    ///
    /// # Errors
    /// [`DeviceError::Message`](crate::device::DeviceError::Message) for one that did not arrive whole, where messages are
    /// checked; what the device says.
    pub fn deliver(&mut self, device: &Device, mesh: &Mesh, messages: &[Message]) -> Result<()> {
        self.superstep += 1;
        let trees = self.trees(mesh, messages);
        let crossing = trees.iter().filter(|tree| !tree.links.is_empty());
        let longest = crossing.map(|tree| tree.block.rows * tree.block.cols).max().unwrap_or(0);
        let tiles = trees.iter().flat_map(|tree| &tree.links).map(|link| link.hop.from);
        self.boxes.make_room(device, tiles, longest)?;
        rounds(trees).iter().try_for_each(|round| self.round(device, round))
    }

    /// One tree for each block, in the order of the messages.
    fn trees<'a>(&mut self, mesh: &Mesh, messages: &'a [Message]) -> Vec<Tree<'a>> {
        let mut trees: Vec<Tree<'a>> = Vec::new();
        let mut reached: Vec<HashMap<Tile, usize>> = Vec::new();
        let mut numbers = HashMap::new();
        for message in messages.iter().filter(|m| m.block.rows * m.block.cols > 0) {
            let Block { buffer, offset, rows, cols, .. } = &message.block;
            let number = *numbers.entry((message.from, buffer.id(), *offset, *rows, *cols)).or_insert_with(|| {
                trees.push(Tree { block: &message.block, links: vec![], arrivals: vec![] });
                reached.push(HashMap::new());
                trees.len() - 1
            });
            let (root, to) = (mesh.place(message.from), mesh.place(message.to));
            let ways = self.ways.entry(root).or_insert_with(|| mesh.ways(root));
            let last = trees[number].grow(&mut reached[number], ways, to);
            trees[number].arrivals.push((last, message));
        }
        trees
    }

    /// Trees that meet at no port, hop by hop, and then into the memories of those who receive them.
    fn round(&mut self, device: &Device, trees: &[Tree<'_>]) -> Result<()> {
        let mut numbers = Vec::new();
        if let Some(checks) = &mut self.checks {
            for tree in trees {
                numbers.push(checks.begin(device, tree.block)?);
            }
        }
        let mut came: HashMap<(usize, usize), Spot> = HashMap::new();
        let deepest = trees.iter().flat_map(|tree| &tree.links).map(|link| link.depth + 1).max().unwrap_or(0);
        for depth in 0..deepest {
            let mut leaving = Vec::new();
            for (t, tree) in trees.iter().enumerate() {
                for (l, link) in tree.links.iter().enumerate().filter(|(_, link)| link.depth == depth) {
                    let source = link.before.map_or_else(|| Spot::of(tree.block), |before| came[&(t, before)].clone());
                    leaving.push(((t, l), link.hop, source));
                }
            }
            match &mut self.checks {
                None => {
                    let crossing: Vec<_> = leaving.iter().map(|(_, hop, source)| (*hop, source)).collect();
                    let spots = self.boxes.cross(device, &crossing)?;
                    came.extend(leaving.iter().map(|(at, ..)| *at).zip(spots));
                }
                Some(checks) => {
                    for ((t, l), hop, source) in leaving {
                        let spot = checks.cross(device, &mut self.boxes, hop, &source, numbers[t], self.superstep)?;
                        came.insert((t, l), spot);
                    }
                }
            }
        }
        let mut put = Vec::new();
        for (t, tree) in trees.iter().enumerate() {
            for (last, message) in &tree.arrivals {
                let spot = last.map_or_else(|| Spot::of(tree.block), |last| came[&(t, last)].clone());
                let (target, target_offset, target_stride) = message.target.clone();
                put.push(spot.into_transfer(target, target_offset, target_stride));
            }
        }
        device.exchange(&put)
    }
}

impl Tree<'_> {
    /// Adds the links from what is reached to a tile, and gives the last of them. `ways` are those from the tree's root.
    fn grow(&mut self, reached: &mut HashMap<Tile, usize>, ways: &Ways, to: Tile) -> Option<usize> {
        let mut path = Vec::new();
        let mut at = to;
        while let (None, Some(back)) = (reached.get(&at), ways.back(at)) {
            path.push((at, back));
            at = back.beyond(at);
        }
        let mut before = reached.get(&at).copied();
        assert!(before.is_some() || at == ways.source(), "no way from {:?} to {to:?}", ways.source());
        for (tile, back) in path.into_iter().rev() {
            let depth = before.map_or(0, |before| self.links[before].depth + 1);
            let hop = Hop { from: back.beyond(tile), port: back.opposite(), to: tile };
            self.links.push(Link { hop, before, depth });
            before = Some(self.links.len() - 1);
            reached.insert(tile, self.links.len() - 1);
        }
        before
    }
}

/// Shares trees out to rounds in which no two leave a tile by one port; each comes as early as it can.
fn rounds(trees: Vec<Tree<'_>>) -> Vec<Vec<Tree<'_>>> {
    let mut taken: Vec<HashSet<(Tile, Port)>> = Vec::new();
    let mut rounds: Vec<Vec<Tree<'_>>> = Vec::new();
    for tree in trees {
        let ports: Vec<(Tile, Port)> = tree.links.iter().map(|link| (link.hop.from, link.hop.port)).collect();
        let free = taken.iter().position(|taken| ports.iter().all(|port| !taken.contains(port)));
        let at = free.unwrap_or_else(|| {
            taken.push(HashSet::new());
            rounds.push(Vec::new());
            rounds.len() - 1
        });
        taken[at].extend(ports);
        rounds[at].push(tree);
    }
    rounds
}

impl Spot {
    fn into_transfer(self, target: Buffer, target_offset: usize, target_stride: usize) -> Transfer {
        Transfer {
            source: self.buffer,
            source_offset: self.offset,
            source_stride: self.stride,
            target,
            target_offset,
            target_stride,
            rows: self.rows,
            cols: self.cols,
        }
    }
}
