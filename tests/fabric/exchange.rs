//! The exchange alone: on random wafers with random defects, each message arrives once, whole and in its place, over as many
//! links as the shortest tree of its block has. The judge is shown to see a message that is missing or in another's place.

use std::collections::{BTreeMap, BTreeSet};

use gaufre::device::{Buffer, Device, Elem};
use gaufre::program::exchange::{Exchange, Message};
use gaufre::program::schedule::Block;
use gaufre::wafer::{Defects, Tile, Wafer};
use proptest::prelude::*;

/// Rows and columns of a block, and elements between rows where it lies and where it is put.
const BLOCK: (usize, usize) = (3, 4);
const STRIDES: (usize, usize) = (6, 5);

/// What is sent: which block, by its number, from which tile to which.
type Sent = Vec<(usize, Tile, Tile)>;

/// A board: one buffer of blocks that are all different, one for what arrives.
struct Board {
    device: Device,
    blocks: Buffer,
    values: Vec<f32>,
    arrived: Buffer,
}

impl Board {
    fn new(device: &Device, blocks: usize, messages: usize) -> Board {
        let values: Vec<f32> = (0..blocks * BLOCK.0 * STRIDES.0).map(|i| i as f32 + 0.5).collect();
        let buffer = |name, len: usize| device.buffer(name, Elem::F32, len.max(64)).unwrap();
        let (held, arrived) = (buffer("blocks", values.len()), buffer("arrived", messages * BLOCK.0 * STRIDES.1));
        device.upload(&held.view(0, values.len()), &values).unwrap();
        device.upload(&arrived.all(), &vec![f32::NAN; arrived.len()]).unwrap();
        Board { device: device.clone(), blocks: held, values, arrived }
    }

    fn message(&self, at: usize, (block, from, to): (usize, Tile, Tile)) -> Message {
        let ((rows, cols), (stride, put)) = (BLOCK, STRIDES);
        let block = Block { buffer: self.blocks.clone(), offset: block * rows * stride, stride, rows, cols };
        Message { block, from, to, target: (self.arrived.clone(), at * rows * put, put) }
    }

    /// Whether message number `at` brought its block, and nothing beside it was touched.
    fn judge(&self, sent: &Sent) -> Result<(), String> {
        let got = self.device.download(&self.arrived.all()).unwrap();
        for (at, (block, from, to)) in sent.iter().enumerate() {
            for row in 0..BLOCK.0 {
                for col in 0..STRIDES.1 {
                    let found = got[(at * BLOCK.0 + row) * STRIDES.1 + col];
                    let want = self.values[(block * BLOCK.0 + row) * STRIDES.0 + col.min(BLOCK.1 - 1)];
                    if (col < BLOCK.1 && found != want) || (col >= BLOCK.1 && !found.is_nan()) {
                        return Err(format!("message {at} of block {block} from {from:?} to {to:?}: {found}"));
                    }
                }
            }
        }
        Ok(())
    }
}

/// Links of the trees that the wafer's ways make of what is sent.
fn links(wafer: &Wafer, sent: &Sent) -> u64 {
    let mesh = wafer.mesh();
    let mut trees: BTreeMap<(usize, Tile), BTreeSet<Tile>> = BTreeMap::new();
    for (block, from, to) in sent {
        let (root, mut at) = (mesh.place(*from), mesh.place(*to));
        let ways = mesh.ways(root);
        let tree = trees.entry((*block, root)).or_default();
        while at != root {
            tree.insert(at);
            let back = ways.back(at).expect("a way");
            assert_eq!(mesh.neighbour(at, back), Some(back.beyond(at)), "a way over what is dead");
            at = back.beyond(at);
        }
    }
    trees.values().map(|tree| tree.len() as u64).sum()
}

fn tile(wafer: &Wafer, number: u32) -> Tile {
    Tile { x: number % wafer.width, y: number / wafer.width % wafer.height }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_message_arrives_once_whole_and_in_its_place(
        (width, height) in (1u32..8, 1u32..8),
        rate in 0.0..0.15f64,
        seed in any::<u64>(),
        numbers in prop::collection::vec((0usize..6, any::<u32>(), any::<u32>()), 1..40),
    ) {
        let Ok(wafer) = Wafer::with_defects(width, height, &Defects::random(width, height, rate, seed)) else {
            return Ok(());
        };
        // A block lies with one tile.
        let owner = |block: usize| tile(&wafer, numbers[block % numbers.len()].1);
        let sent: Sent = numbers.iter().map(|(block, _, to)| (*block, owner(*block), tile(&wafer, *to))).collect();
        let device = Device::host(1).unwrap();
        let board = Board::new(&device, 6, sent.len());
        let messages: Vec<Message> = sent.iter().enumerate().map(|(at, sent)| board.message(at, *sent)).collect();
        let mut exchange = Exchange::default();
        for _ in 0..2 {
            let before = device.counters();
            exchange.deliver(&device, wafer.mesh(), &messages).unwrap();
            let counted = device.counters().since(&before);
            prop_assert_eq!(board.judge(&sent), Ok(()));
            let bytes = 4 * (BLOCK.0 * BLOCK.1) as u64;
            prop_assert_eq!((counted.messages, counted.exchanged_bytes), (sent.len() as u64, sent.len() as u64 * bytes));
            prop_assert_eq!((counted.hops, counted.link_bytes), (links(&wafer, &sent), links(&wafer, &sent) * bytes));
        }
        // The canaries: one message left out, two in each other's place.
        let board = Board::new(&device, 6, sent.len());
        exchange.deliver(&device, wafer.mesh(), &messages[1..]).unwrap();
        prop_assert!(board.judge(&sent).is_err());
        if sent.len() > 1 && sent[0].0 != sent[1].0 {
            let (first, second) = (board.message(1, sent[0]), board.message(0, sent[1]));
            exchange.deliver(&device, wafer.mesh(), &messages).unwrap();
            exchange.deliver(&device, wafer.mesh(), &[first, second]).unwrap();
            prop_assert!(board.judge(&sent).is_err());
        }
    }
}
