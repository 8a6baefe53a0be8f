//! The plain references of the cross-entropy, at any float. A tile carries running numbers: one chain a row.

use super::super::chain::Cut;
use super::{
    BackwardParams, FinishParams, ForwardParams, IGNORE, NONE, STATE_STRIDE, SumParams, column, quads, row_carry,
};
use crate::device::{Args, Real};

pub(super) fn forward<F: Real>(args: &mut Args<'_, F>) {
    let p: ForwardParams = args.params();
    let (cut, slot) = (Cut::of(&p), row_carry(args.variant) as usize);
    let (logits, targets) = (&args.read(0)[4 * p.offset as usize..], args.ids(1));
    let (state, carry) = (&mut args.write(2)[p.state_offset as usize..], args.write(3));
    for tile in 0..args.groups as usize {
        let span = cut.span(tile, quads(p.cols));
        let row = &logits[4 * p.row_quads as usize * span.line..][..p.cols as usize];
        let state = &mut state[span.line * STATE_STRIDE..][..STATE_STRIDE];
        let (from, to) = (4 * span.from, row.len().min(4 * span.to));
        let mut own = [F::zero(); 5];
        // Maximum, sum and target's logit so far, whether a logit is not finite, the maximum of the chunks before.
        let [m, s, t, bad, m_before, ..] = cut.slot(carry, &mut own, tile, slot) else { unreachable!() };
        if cut.runs(0) {
            if span.begins() {
                let [m0, s0, t0] =
                    if p.first == 1 { [F::of(NONE), F::zero(), F::of(NONE)] } else { [state[0], state[1], state[2]] };
                (*m, *s, *t, *bad, *m_before) = (m0, s0, t0, F::zero(), m0);
            }
            for &x in &row[from..to] {
                *bad = if x.is_finite() { *bad } else { F::one() };
                *m = m.max(x);
            }
            if span.ends {
                *s *= (*m_before - *m).exp();
            }
        }
        if cut.runs(1) {
            row[from..to].iter().for_each(|&x| *s += (x - *m).exp());
            if let Some(c) = column(targets[span.line], p.first_col, p.cols).filter(|c| (from..to).contains(c)) {
                *t = row[c];
            }
            if span.ends {
                if p.first == 1 {
                    state.fill(F::zero());
                }
                (state[0], state[1]) = if *bad == F::zero() { (*m, *s) } else { (F::zero(), F::nan()) };
                state[2] = *t;
            }
        }
    }
}

pub(super) fn finish<F: Real>(args: &mut Args<'_, F>) {
    let p: FinishParams = args.params();
    let targets = args.ids(0);
    let state = args.write(1)[p.state_offset as usize..].chunks_mut(STATE_STRIDE);
    let losses = &mut args.write(2)[p.losses_offset as usize..][..p.rows as usize];
    for ((state, &target), loss) in state.zip(targets).zip(losses) {
        let (m, log_sum, t) = (state[0], state[1].ln(), state[2]);
        let unseen = t == F::of(NONE);
        *loss = match target {
            IGNORE => F::zero(),
            _ if unseen => F::nan(),
            _ => (m - t) + log_sum,
        };
        state[0] = m + log_sum;
    }
}

pub(super) fn sum<F: Real>(args: &mut Args<'_, F>) {
    let p: SumParams = args.params();
    let (cut, slot) = (Cut::of(&p), args.variant.get("WG") as usize);
    let (losses, scalars, carry) = (&args.read(0)[p.losses_offset as usize..], args.write(1), args.write(2));
    for tile in 0..args.groups as usize {
        let span = cut.span(tile, p.rows);
        let mut own = [F::zero()];
        let total = &mut cut.slot(carry, &mut own, tile, slot)[0];
        let before = if span.begins() { F::zero() } else { *total };
        *total = losses[span.from..span.to].iter().fold(before, |sum, &x| sum + x);
        if span.ends {
            let (scalar, scaled) = (&mut scalars[p.slot as usize], F::of(p.scale.into()) * *total);
            *scalar = if p.accumulate == 1 { *scalar + scaled } else { scaled };
        }
    }
}

pub(super) fn backward<F: Real>(args: &mut Args<'_, F>) {
    let p: BackwardParams = args.params();
    let cut = Cut::of(&p);
    let (targets, state) = (args.ids(0), &args.read(1)[p.state_offset as usize..]);
    let (logits, carry) = (&mut args.write(2)[4 * p.offset as usize..], args.write(3));
    for tile in 0..args.groups as usize {
        let span = cut.span(tile, quads(p.cols));
        let row = &mut logits[4 * p.row_quads as usize * span.line..][..4 * p.row_quads as usize];
        let mut own = [F::zero()];
        let lse = &mut cut.slot(carry, &mut own, tile, 1)[0];
        if cut.runs(0) {
            *lse = state[span.line * STATE_STRIDE];
        }
        if cut.runs(1) {
            let target = targets[span.line];
            let hit = column(target, p.first_col, p.cols);
            let end = if span.ends { row.len() } else { 4 * span.to };
            for (c, x) in row.iter_mut().enumerate().take(end).skip(4 * span.from) {
                let onehot = if hit == Some(c) { F::one() } else { F::zero() };
                let live = c < p.cols as usize && target != IGNORE;
                *x = if live { ((*x - *lse).exp() - onehot) * F::of(p.scale.into()) } else { F::zero() };
            }
        }
    }
}
