//! The cross-entropy's kernels for the `host` device: rows in parallel, columns in vectors. A tile carries its lanes.

use rayon::prelude::*;

use super::super::chain::{Cut, Stretch};
use super::super::vector;
use super::{BackwardParams, ForwardParams, IGNORE, STATE_STRIDE, column, quads, row_carry};
use crate::device::Args;

/// Partial maxima and sums of a row: independent of the number of threads.
const LANES: usize = 32;
/// Elements whose exponentials are computed before they are added: short enough for the first cache.
const BLOCK: usize = 256;
/// What a tile carries: its lanes; then maximum, sum and target's logit so far, and the largest bits.
const CARRY: usize = LANES + 4;

/// Takes values into the largest of each lane; gives the largest of the values' bits without signs, by which one that is
/// not finite is seen.
#[inline(always)]
fn largest(block: &[f32], lanes: &mut [f32; LANES]) -> u32 {
    let (mut m, mut bits) = (*lanes, [0u32; LANES]);
    let (runs, rest) = block.as_chunks::<LANES>();
    for run in runs {
        for i in 0..LANES {
            m[i] = if run[i] > m[i] { run[i] } else { m[i] };
            bits[i] = bits[i].max(run[i].to_bits() & 0x7fff_ffff);
        }
    }
    for (i, &x) in rest.iter().enumerate() {
        m[i] = if x > m[i] { x } else { m[i] };
        bits[i] = bits[i].max(x.to_bits() & 0x7fff_ffff);
    }
    *lanes = m;
    bits.into_iter().fold(0, u32::max)
}

/// Adds `exp(x - m)` to the lanes.
#[inline(always)]
fn sum_of_exp(row: &[f32], m: f32, lanes: &mut [f32; LANES]) {
    let (mut sums, mut terms) = (*lanes, [0.0f32; BLOCK]);
    for block in row.chunks(BLOCK) {
        let terms = &mut terms[..block.len()];
        for (term, &x) in terms.iter_mut().zip(block) {
            *term = vector::exp(x - m);
        }
        for run in terms.chunks(LANES) {
            for (sum, &term) in sums.iter_mut().zip(run) {
                *sum += term;
            }
        }
    }
    *lanes = sums;
}

/// One tile's part of a row. `target` is the column of the row's target, where the chunk has it.
#[inline(always)]
fn take_in(
    (p, cut, span): (&ForwardParams, &Cut, Stretch),
    row: &[f32],
    target: Option<usize>,
    state: &mut [f32],
    carry: &mut [f32; CARRY],
) {
    let Some((lanes, [m, s, t, bits])) = carry.split_first_chunk_mut::<LANES>() else { return };
    let (from, to) = (4 * span.from, row.len().min(4 * span.to));
    if cut.runs(0) {
        if span.begins() {
            lanes.fill(f32::MIN);
            let before = if p.first == 1 { [f32::MIN, 0.0, f32::MIN] } else { [state[0], state[1], state[2]] };
            ([*m, *s, *t], *bits) = (before, 0.0);
        }
        *bits = f32::from_bits(bits.to_bits().max(largest(&row[from..to], lanes)));
        if span.ends {
            let m_before = std::mem::replace(m, lanes.iter().copied().fold(f32::MIN, f32::max).max(*m));
            *s *= vector::exp(m_before - *m);
        }
    }
    if cut.runs(1) {
        let finite = bits.to_bits() <= f32::MAX.to_bits();
        if span.begins() {
            lanes.fill(0.0);
        }
        if finite {
            sum_of_exp(&row[from..to], *m, lanes);
        }
        if let Some(c) = target.filter(|c| (from..to).contains(c)) {
            *t = row[c];
        }
        if span.ends {
            if p.first == 1 {
                state.fill(0.0);
            }
            (state[0], state[1]) = if finite { (*m, *s + lanes.iter().sum::<f32>()) } else { (0.0, f32::NAN) };
            state[2] = *t;
        }
    }
}

pub(super) fn forward(args: &mut Args<'_, f32>) {
    let p: ForwardParams = args.params();
    let (cut, slot) = (Cut::of(&p), row_carry(args.variant) as usize);
    let (first, blocks, lines) = (cut.first_line as usize, cut.blocks as usize, (args.groups / cut.blocks) as usize);
    let stride = 4 * p.row_quads as usize;
    let (logits, targets) = (&args.read(0)[4 * p.offset as usize + first * stride..], &args.ids(1)[first..]);
    let state = &mut args.write(2)[p.state_offset as usize..][first * STATE_STRIDE..][..lines * STATE_STRIDE];
    let carry = args.write(3);
    let tile = |tile: usize, row: &[f32], id: u32, state: &mut [f32], carry: &mut [f32; CARRY]| {
        let (row, target) = (&row[..p.cols as usize], column(id, p.first_col, p.cols));
        vector::dispatch(
            #[inline(always)]
            || take_in((&p, &cut, cut.span(tile, quads(p.cols))), row, target, state, carry),
        );
    };
    let rows = state.par_chunks_mut(STATE_STRIDE).zip(logits.par_chunks(stride)).zip(targets).enumerate();
    if cut.carried == 0 {
        return rows.for_each(|(line, ((state, row), &id))| tile(line, row, id, state, &mut [0.0; CARRY]));
    }
    rows.zip(carry.par_chunks_mut(blocks * slot)).for_each(|((line, ((state, row), &id)), carry)| {
        for (block, carry) in carry.chunks_mut(slot).enumerate() {
            let Some((carry, _)) = carry.split_first_chunk_mut::<CARRY>() else { continue };
            tile(line * blocks + block, row, id, state, carry);
        }
    });
}

pub(super) fn backward(args: &mut Args<'_, f32>) {
    let p: BackwardParams = args.params();
    let cut = Cut::of(&p);
    let (first, blocks, lines) = (cut.first_line as usize, cut.blocks as usize, (args.groups / cut.blocks) as usize);
    let (targets, state) = (&args.ids(0)[first..], &args.read(1)[p.state_offset as usize + first * STATE_STRIDE..]);
    let (stride, cols) = (4 * p.row_quads as usize, p.cols as usize);
    let logits = &mut args.write(2)[4 * p.offset as usize + first * stride..][..lines * stride];
    let carry = args.write(3);
    if cut.carried == 1 && cut.runs(0) {
        let handed = carry.iter_mut().take(lines * blocks).enumerate();
        handed.for_each(|(tile, lse)| *lse = state[tile / blocks * STATE_STRIDE]);
    }
    if !cut.runs(1) {
        return;
    }
    let carry = &*carry;
    logits.par_chunks_mut(stride).zip(targets).enumerate().for_each(|(line, (row, &target))| {
        for block in 0..blocks {
            let tile = line * blocks + block;
            let span = cut.span(tile, quads(p.cols));
            let lse = if cut.carried == 1 { carry[tile] } else { state[line * STATE_STRIDE] };
            let (from, to) = (4 * span.from, cols.min(4 * span.to));
            if span.ends {
                row[cols..].fill(0.0);
            }
            if target == IGNORE {
                row[from..to].fill(0.0);
                continue;
            }
            let hit = column(target, p.first_col, p.cols).filter(|c| (from..to).contains(c)).map(|c| (c, row[c]));
            vector::dispatch(|| row[from..to].iter_mut().for_each(|x| *x = vector::exp(*x - lse) * p.scale));
            if let Some((c, x)) = hit {
                row[c] = (vector::exp(x - lse) - 1.0) * p.scale;
            }
        }
    });
}
