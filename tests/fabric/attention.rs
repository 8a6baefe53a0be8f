//! Attention on the fabric: what the device counts is the wafer's closed form, and a superstep reads only the tile's own
//! rows, its state and its inbox, in the forward pass and in both backward ones.

use super::{Foreign, GRIDS, Poisoned, blanks, cost, declares_state, fabric};
use crate::program::attention::Operands;
use crate::rig;
use gaufre::device::Device;
use gaufre::program::Matrix;
use gaufre::program::attention::{Attention, Pass};
use gaufre::program::schedule::{Schedule, Stepwise};
use gaufre::wafer::{self, Round};

/// Grouped heads, several blocks each way and the last ones not whole; in the second shape behind a cache of 30 keys; the
/// last two with windows, one behind that cache.
fn shapes() -> [Attention; 5] {
    let base = Attention {
        batch: 2,
        query_heads: 4,
        key_value_heads: 2,
        head_size: 12,
        query_len: 70,
        key_value_len: 70,
        query_start: 0,
        key_value_rows: 70,
        scale: 0.3,
        causal: true,
        window: None,
        dropout: None,
    };
    let cache = Attention { query_start: 30, key_value_len: 100, key_value_rows: 103, ..base.clone() };
    let full = Attention { key_value_len: 81, key_value_rows: 81, causal: false, ..base.clone() };
    let windowed = Attention { window: Some(11), ..base.clone() };
    [base, cache.clone(), full, windowed, Attention { window: Some(37), ..cache }]
}

#[test]
fn the_device_counts_what_the_wafer_predicts() {
    for device in rig::devices("closed forms of attention") {
        for shape in shapes() {
            let operands = Operands::random(&device, &shape);
            for (which, pass) in operands.passes(&device).iter().enumerate() {
                let wide = |x: usize| x as u64;
                let (own, block) = pass.block_rows();
                let cut = wafer::Attention {
                    batch: wide(shape.batch),
                    heads: (wide(shape.query_heads), wide(shape.key_value_heads)),
                    head_size: wide(shape.head_size),
                    query_len: wide(shape.query_len),
                    key_value_len: wide(shape.key_value_len),
                    query_start: wide(shape.query_start),
                    causal: shape.causal,
                    window: shape.window.map(wide),
                    rows: (wide(own), wide(block)),
                };
                let grids = GRIDS.map(|grid| (Schedule::Superstep, grid));
                for (schedule, grid) in grids.into_iter().chain([(Schedule::Fused, (2, 2))]) {
                    let fabric = fabric(&device, schedule, grid);
                    fabric.run(pass).unwrap();
                    let before = device.counters();
                    fabric.run(pass).unwrap();
                    let counted = device.counters().since(&before);
                    let want = match (schedule, which) {
                        (Schedule::Fused, _) => cut.fused(),
                        (_, 2) => cut.keys_stay(fabric.wafer()),
                        _ => cut.queries_stay(fabric.wafer()),
                    };
                    assert_eq!(cost(&counted), want, "pass {which}, {schedule:?} {grid:?}: {shape:?}");
                    assert_eq!(counted.allocations, 0, "a second run allocates nothing");
                }
            }
        }
    }
}

#[test]
fn passes_declare_the_state_that_they_save() {
    for fabric in blanks() {
        for head_size in [12, 64, 128, 256] {
            let operands = Operands::random(fabric.device(), &Attention { head_size, ..shapes()[0].clone() });
            for pass in &operands.passes(fabric.device()) {
                fabric.run(pass).unwrap();
                declares_state(&fabric, pass.name(), pass.state()).unwrap();
                // A head that fills its variant leaves no room: the checker would see an element more.
                if head_size == 256 {
                    fabric.run(pass).unwrap();
                    declares_state(&fabric, pass.name(), pass.state() + 1).unwrap_err();
                }
            }
        }
    }
}

/// Which part of the operands is poisoned while a round runs.
#[derive(Clone, Copy, PartialEq)]
enum Poison {
    Nothing,
    /// What the round's tiles do not own: whatever they receive, and the rows of all others.
    Foreign,
    /// What they own.
    Own,
    /// What they receive.
    Received,
}

/// Whether tile (i, j), of `blocks` a sequence with `own` rows each, owns what lies at (sequence, row in it, head).
fn owns((i, j): (u32, u32), blocks: usize, own: usize, at: (usize, usize, usize)) -> bool {
    let (sequence, row, head) = at;
    sequence == i as usize / blocks && row / own == i as usize % blocks && head == j as usize
}

/// The operands of a pass, each with what of it is poisoned.
fn poisoned<'a>(of: &'a Operands, which: usize, pass: &Pass<'_>, poison: Poison) -> Vec<(&'a Matrix, Foreign<'a>)> {
    let shape = &of.shape;
    let (own, blocks) = (pass.block_rows().0, pass.blocks().0 as usize / shape.batch);
    // Sequence, row in it and head of an element: of rows of heads, and of rows of scalars.
    let heads = |m: &Matrix, row: usize, col: usize| {
        let len = m.rows / shape.batch;
        (row / len, row % len, col / shape.head_size)
    };
    let scalars = |_: &Matrix, row: usize, col: usize| (row / shape.query_heads, col, row % shape.query_heads);
    let part = move |m: &'a Matrix, owned: bool, scalar: bool| {
        let foreign = move |round: Round, row, col| {
            let at = if scalar { scalars(m, row, col) } else { heads(m, row, col) };
            let mine = owned && round.blocks().any(|tile| owns(tile, blocks, own, at));
            match poison {
                Poison::Nothing => false,
                Poison::Foreign => !mine,
                Poison::Own => mine,
                Poison::Received => !owned,
            }
        };
        (m, Box::new(foreign) as Foreign<'a>)
    };
    let queries_stay = which < 2;
    let mut all = vec![part(&of.q, queries_stay, false), part(&of.k, !queries_stay, false)];
    all.push(part(&of.v, !queries_stay, false));
    if which > 0 {
        all.push(part(&of.d_out, queries_stay, false));
        all.extend([part(&of.lse, queries_stay, true), part(&of.delta, queries_stay, true)]);
    }
    all
}

/// Bits of all results of attention, one of its passes repeated under poison.
fn outcome(device: &Device, shape: &Attention, which: usize, run: (Schedule, (u32, u32)), poison: Poison) -> Vec<u32> {
    let operands = Operands::random(device, shape);
    let plain = fabric(device, Schedule::Fused, (1, 1));
    operands.forward(&plain);
    operands.backward(&plain);
    for result in [&operands.out, &operands.d_qkv] {
        device.upload(&result.view, &vec![f32::NAN; result.view.len]).unwrap();
    }
    let pass = &operands.passes(device)[which];
    let program = Poisoned { program: pass, operands: poisoned(&operands, which, pass, poison) };
    fabric(device, run.0, run.1).run(&program).unwrap();
    operands.results(device)
}

#[test]
fn a_superstep_reads_only_its_own_rows_its_state_and_its_inbox() {
    let [_, cache, _, windowed, _] = shapes();
    for device in rig::devices("poisoned attention") {
        for (shape, which) in [&cache, &windowed].into_iter().flat_map(|shape| (0..3).map(move |which| (shape, which)))
        {
            let run = |schedule, grid, poison| outcome(&device, shape, which, (schedule, grid), poison);
            let want = run(Schedule::Fused, (1, 1), Poison::Nothing);
            // On one tile each tile runs alone, all other tiles' rows poisoned.
            for grid in [(1, 1), (3, 2)] {
                let got = run(Schedule::Superstep, grid, Poison::Foreign);
                assert!(got == want, "pass {which} on {grid:?} of {}", device.name());
            }
            // The poison works: in the tile's own rows, and read in place, it reaches the result.
            assert!(run(Schedule::Superstep, (1, 1), Poison::Own) != want, "pass {which} of {}", device.name());
            assert!(run(Schedule::Fused, (1, 1), Poison::Received) != want, "pass {which} of {}", device.name());
        }
    }
}
