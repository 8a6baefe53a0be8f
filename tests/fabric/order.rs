//! Routes: over the steps of a program, each tile receives each block that it needs once, in the order in which it adds, and
//! what a neighbour passes on is the very block that the neighbour received. For random products and attentions.

use std::ops::Range;

use crate::program::attention::Operands;
use crate::program::matmul::operands;
use crate::rig;
use gaufre::device::Device;
use gaufre::program::Matrix;
use gaufre::program::attention::Attention;
use gaufre::program::matmul::{self, Form, Matmul};
use gaufre::program::schedule::{Block, Fabric, Schedule, Stepwise};
use gaufre::wafer::Wafer;
use proptest::prelude::*;

/// Rows and columns of a matrix that a block covers.
fn part(m: &Matrix, block: &Block) -> (Range<usize>, Range<usize>) {
    let first = block.offset - m.view.offset - m.offset;
    let (row, col) = (first / m.stride, first % m.stride);
    (row..row + block.rows, col..col + block.cols)
}

/// Whether ranges follow each other from `all.start` to `all.end`, each once; the last may reach into padding of 3.
fn in_order(ranges: &[Range<usize>], all: Range<usize>) -> bool {
    let joined = ranges.windows(2).all(|pair| pair[0].end == pair[1].start);
    let ends = ranges.first().zip(ranges.last());
    joined && ends.is_some_and(|(first, last)| first.start == all.start && (all.end..all.end + 4).contains(&last.end))
}

#[test]
fn an_order_with_a_gap_a_repeat_or_a_turn_is_seen() {
    assert!(in_order(&[0..4, 4..8, 8..9], 0..9));
    for wrong in
        [vec![0..4, 8..9], vec![0..4, 0..4, 4..9], vec![4..9, 0..4], vec![], vec![0..4, 4..8], vec![1..5, 5..9]]
    {
        assert!(!in_order(&wrong, 0..9), "{wrong:?}");
    }
}

/// What tile (i, j) of a program receives of an operand, step by step.
fn received(program: &dyn Stepwise, (i, j): (u32, u32), operand: usize) -> Vec<(u32, Block)> {
    (0..program.steps()).filter_map(|step| Some((step, program.receives(i, j, step, operand)?))).collect()
}

/// A block by where it lies.
fn place(block: &Block) -> (usize, usize, usize, usize) {
    (block.buffer.id(), block.offset, block.rows, block.cols)
}

/// Whether everything that is said to be passed on was received by that tile as many steps ago.
fn passes_on_what_it_had(program: &dyn Stepwise) -> Result<usize, String> {
    let (rows, cols) = program.blocks();
    let mut passed = 0;
    for (i, j) in (0..rows).flat_map(|i| (0..cols).map(move |j| (i, j))) {
        for operand in 0..program.operands() {
            for (step, block) in received(program, (i, j), operand) {
                let Some(((ni, nj), ago)) = program.origin(i, j, step, operand).passed else { continue };
                let had = program.receives(ni, nj, step - ago, operand).map(|block| place(&block));
                if had != Some(place(&block)) || ni.abs_diff(i) + nj.abs_diff(j) != 1 {
                    return Err(format!("tile ({i}, {j}), step {step}, operand {operand}: {had:?}"));
                }
                passed += 1;
            }
        }
    }
    Ok(passed)
}

fn product(device: &Device, form: Form, shape: (usize, usize, usize)) -> Result<(), String> {
    let [a, b, c, _] = operands(device, form, shape);
    let fabric = Fabric::new(device.clone(), Schedule::Superstep, Wafer::new(2, 2));
    let m = Matmul { form, a: &a, b: &b, c: &c, bias: None, accumulate: false };
    let program = matmul::stepwise(&fabric, &m).unwrap();
    let (rows, cols) = program.blocks();
    for (i, j) in (0..rows).flat_map(|i| (0..cols).map(move |j| (i, j))) {
        for (operand, matrix, along) in [(0, &a, form != Form::TN), (1, &b, form == Form::NT)] {
            let parts: Vec<_> = received(&program, (i, j), operand).iter().map(|(_, b)| part(matrix, b)).collect();
            let depth = |(rows, cols): &(Range<usize>, Range<usize>)| if along { cols.clone() } else { rows.clone() };
            let across = |(rows, cols): &(Range<usize>, Range<usize>)| if along { rows.clone() } else { cols.clone() };
            let ranges: Vec<Range<usize>> = parts.iter().map(depth).collect();
            let same = parts.windows(2).all(|pair| across(&pair[0]) == across(&pair[1]));
            if !in_order(&ranges, 0..shape.2) || !same {
                return Err(format!("{form:?} {shape:?}, tile ({i}, {j}), operand {operand}: {parts:?}"));
            }
        }
    }
    Ok(())
}

/// What a tile of queries receives of keys, and of keys of queries, against the pairs that see each other.
fn attention(device: &Device, shape: &Attention) -> Result<usize, String> {
    let operands = Operands::random(device, shape);
    let sees = |query: usize, key: usize| {
        let position = shape.query_start + query;
        (!shape.causal || key <= position) && shape.window.is_none_or(|window| position < key + window)
    };
    let mut passed = 0;
    for (which, pass) in operands.passes(device).iter().enumerate() {
        passed += passes_on_what_it_had(pass)?;
        let keys_stay = which == 2;
        let (rows, heads) = pass.blocks();
        let blocks = rows as usize / shape.batch;
        let own = pass.block_rows().0;
        for (i, j) in (0..rows).flat_map(|i| (0..heads).map(move |j| (i, j))) {
            let block = i as usize % blocks;
            let matrix = if keys_stay { &operands.q } else { &operands.k };
            let (own_len, len) = match keys_stay {
                true => (shape.key_value_len, shape.query_len),
                false => (shape.query_len, shape.key_value_len),
            };
            let mine = block * own..own_len.min((block + 1) * own);
            let pair =
                |other: usize| mine.clone().any(|row| if keys_stay { sees(other, row) } else { sees(row, other) });
            let needed: Vec<usize> = (0..len).filter(|other| pair(*other)).collect();
            let sequence = if keys_stay { shape.query_len } else { shape.key_value_rows };
            let came: Vec<Range<usize>> = received(pass, (i, j), 0)
                .iter()
                .map(|(_, b)| part(matrix, b).0)
                .map(|rows| rows.start % sequence..rows.start % sequence + rows.len())
                .collect();
            let group = if keys_stay { shape.query_heads / shape.key_value_heads } else { 1 };
            for head in came.chunks((came.len() / group).max(1)) {
                let mut ranges = head.to_vec();
                if !keys_stay {
                    // From the farthest block downwards.
                    ranges.reverse();
                }
                let (first, last) = (needed[0], needed[needed.len() - 1]);
                let whole = ranges.windows(2).all(|pair| pair[0].end == pair[1].start);
                let covers = ranges.first().is_some_and(|r| r.contains(&first))
                    && ranges.last().is_some_and(|r| r.end == last + 1);
                if !whole || !covers {
                    return Err(format!("pass {which}, tile ({i}, {j}): {came:?} of {first}..={last}"));
                }
            }
        }
    }
    Ok(passed)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn products_receive_each_block_once_in_order(
        shape in (1usize..200, 1usize..200, 1usize..2000),
        form in 0usize..3,
    ) {
        prop_assert_eq!(product(&rig::host(), super::FORMS[form], shape), Ok(()));
    }

    #[test]
    fn attention_receives_each_block_once_in_order(
        (batch, heads, groups) in (1usize..3, 1usize..3, 1usize..3),
        (query_len, cached) in (1usize..200, 0usize..60),
        causal in any::<bool>(),
        window in prop::option::of(1usize..150),
    ) {
        let shape = Attention {
            batch,
            query_heads: heads * groups,
            key_value_heads: heads,
            head_size: 8,
            query_len,
            key_value_len: query_len + cached,
            query_start: cached,
            key_value_rows: query_len + cached,
            scale: 0.3,
            causal,
            window: window.filter(|_| causal),
            dropout: None,
        };
        prop_assert!(attention(&rig::host(), &shape).is_ok(), "{:?}", attention(&rig::host(), &shape));
    }
}

#[test]
fn keys_and_values_go_round_a_ring() {
    let device = rig::host();
    let shape = Attention {
        batch: 1,
        query_heads: 2,
        key_value_heads: 2,
        head_size: 8,
        query_len: 300,
        key_value_len: 300,
        query_start: 0,
        key_value_rows: 300,
        scale: 0.3,
        causal: true,
        window: None,
        dropout: None,
    };
    let passed = attention(&device, &shape).unwrap();
    let operands = Operands::random(&device, &shape);
    let all: usize = operands
        .passes(&device)
        .iter()
        .map(|pass| {
            let (rows, cols) = pass.blocks();
            let tiles = (0..rows).flat_map(|i| (0..cols).map(move |j| (i, j)));
            tiles.map(|tile| (0..pass.operands()).map(|o| received(pass, tile, o).len()).sum::<usize>()).sum::<usize>()
        })
        .sum();
    assert!(2 * passed > all, "{passed} of {all} blocks come from a neighbour");
}
