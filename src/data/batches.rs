//! `batch = f(seed, step)`: which windows of the tokens each step sees. No state, so a run resumes at any step by its
//! number alone. It must never know how the tokens came about.
//!
//! A window is `T + 1` tokens: `T` inputs, and the same moved on by one as targets. Windows lie `T` apart, so an epoch
//! sees each token once as an input.

use super::Tokens;
use crate::program::initial::word;

/// The order in which windows are seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Each epoch is a pseudo-random permutation of the windows, which start at another offset each epoch.
    Shuffled,
    /// Sample `k` is tokens `k*T ..= k*T + T`, round and round.
    Sequential,
}

/// Sizes of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Sequences of a micro-batch.
    pub batch_size: usize,
    /// Tokens of a sequence.
    pub seq_len: usize,
    /// Micro-batches of a step.
    pub grad_accum: usize,
}

/// One micro-batch: two row-major matrices of `batch_size x seq_len`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// What the model reads.
    pub inputs: Vec<u32>,
    /// What it should say: the token after each input.
    pub targets: Vec<u32>,
}

/// The batches of a text.
#[derive(Clone, Copy, Debug)]
pub struct Batches<'a> {
    tokens: &'a Tokens,
    shape: Shape,
    order: Order,
    seed: u64,
}

impl<'a> Batches<'a> {
    /// Batches of `tokens`, which has at least one window ([`super::Corpus::load`] sees to that).
    ///
    /// # Panics
    /// With fewer than `seq_len + 1` tokens, or a size of zero.
    pub fn new(tokens: &'a Tokens, shape: Shape, order: Order, seed: u64) -> Self {
        assert!(shape.batch_size > 0 && shape.seq_len > 0 && shape.grad_accum > 0, "{shape:?}");
        assert!(tokens.len() > shape.seq_len, "{} tokens hold no window of {}", tokens.len(), shape.seq_len);
        Self { tokens, shape, order, seed }
    }

    /// The micro-batches of an evaluation on held out `tokens`: from their start on, at most `most`, and no more than one
    /// pass needs. Where a pass ends inside a micro-batch, that is filled from the start.
    ///
    /// # Panics
    /// As [`Batches::new`].
    pub fn evaluation(tokens: &'a Tokens, shape: Shape, most: usize) -> impl Iterator<Item = Batch> + 'a {
        let batches = Batches::new(tokens, Shape { grad_accum: 1, ..shape }, Order::Sequential, 0);
        let pass = batches.windows().div_ceil(shape.batch_size);
        (0..most.min(pass) as u64).map(move |step| batches.batch(step, 0))
    }

    /// Micro-batch `micro` of step `step`, both counted from 0.
    pub fn batch(&self, step: u64, micro: usize) -> Batch {
        let Shape { batch_size, seq_len, grad_accum } = self.shape;
        let first = (step as u128 * grad_accum as u128 + micro as u128) * batch_size as u128;
        let mut batch = Batch {
            inputs: Vec::with_capacity(batch_size * seq_len),
            targets: Vec::with_capacity(batch_size * seq_len),
        };
        let mut window = Vec::with_capacity(seq_len + 1);
        for sample in first..first + batch_size as u128 {
            window.clear();
            self.tokens.extend(self.start(sample), seq_len + 1, &mut window);
            batch.inputs.extend_from_slice(&window[..seq_len]);
            batch.targets.extend_from_slice(&window[1..]);
        }
        batch
    }

    /// Windows of an epoch: the number of samples before one comes again.
    pub fn windows(&self) -> usize {
        match self.order {
            Order::Sequential => self.room(),
            // One fewer leaves room for any offset below T.
            Order::Shuffled => (self.room() - 1).max(1),
        }
    }

    /// Whole windows that lie `T` apart, from offset 0.
    fn room(&self) -> usize {
        (self.tokens.len() - 1) / self.shape.seq_len
    }

    /// First token of a sample.
    fn start(&self, sample: u128) -> usize {
        let windows = self.windows();
        let epoch = (sample / windows as u128) as u64;
        let index = (sample % windows as u128) as usize;
        let seq_len = self.shape.seq_len;
        match self.order {
            Order::Sequential => index * seq_len,
            Order::Shuffled => {
                let spare = self.tokens.len() - 1 - windows * seq_len;
                let key = epoch_key(self.seed, epoch);
                let offset = word(key, u64::MAX) as usize % (spare.min(seq_len - 1) + 1);
                offset + permute(key, index as u64, windows as u64) as usize * seq_len
            }
        }
    }
}

/// A key of its own for each epoch.
fn epoch_key(seed: u64, epoch: u64) -> u64 {
    (word(seed, 2 * epoch) as u64) << 32 | word(seed, 2 * epoch + 1) as u64
}

/// Where `index < len` goes in a pseudo-random permutation of `0 .. len`: a Feistel network over the next even number of
/// bits, walked until it falls inside, which takes fewer than four goes on average.
fn permute(key: u64, index: u64, len: u64) -> u64 {
    const ROUNDS: u64 = 6;
    let half = (u64::BITS - (len - 1).leading_zeros()).div_ceil(2).max(1);
    let mask = (1u64 << half) - 1;
    let mut x = index;
    loop {
        let (mut left, mut right) = (x >> half, x & mask);
        for round in 0..ROUNDS {
            (left, right) = (right, left ^ (word(key, round << 32 | right) as u64 & mask));
        }
        x = left << half | right;
        if x < len {
            return x;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permutations_are_permutations() {
        for len in [1, 2, 3, 5, 16, 17, 257, 1000] {
            let mut seen: Vec<u64> = (0..len).map(|i| permute(7, i, len)).collect();
            seen.sort();
            assert_eq!(seen, (0..len).collect::<Vec<_>>());
        }
    }

    #[test]
    fn epochs_differ_and_no_place_stays_put() {
        let of = |epoch| (0..1000).map(|i| permute(epoch_key(1, epoch), i, 1000)).collect::<Vec<_>>();
        let (a, b) = (of(0), of(1));
        assert_ne!(a, b);
        let agreements = a.iter().zip(&b).filter(|(x, y)| x == y).count();
        let fixed = a.iter().enumerate().filter(|(i, x)| *i as u64 == **x).count();
        // Both counts are Poisson with mean 1 for random permutations; beyond 10 has a probability of 1e-8.
        assert!(agreements <= 10 && fixed <= 10, "{agreements} {fixed}");
    }
}
