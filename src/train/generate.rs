//! Sampling: from logits to tokens. A pure function of logits, seed and position; it must never know a device.

use crate::program::initial::word;

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the most probable token always.
    pub temperature: f64,
    /// Only so many of the most probable tokens are considered; `None`: all.
    pub top_k: Option<usize>,
    /// Only the most probable tokens that together have at least this probability are considered; `None`: all.
    pub top_p: Option<f64>,
    /// Token `n` is drawn by word `(seed, n)`.
    pub seed: u64,
}

/// Why nothing can be sampled.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum SamplingError {
    /// An option that cannot be.
    #[error("--{flag} {value}: {cure}")]
    Option {
        /// Name of the flag.
        flag: &'static str,
        /// Its value.
        value: String,
        /// What would do.
        cure: &'static str,
    },
    /// A logit is not finite.
    #[error("the logit of token {token} is {value}: the parameters of this run are not finite; use an earlier run")]
    NotFinite {
        /// The first such token.
        token: usize,
        /// Its logit.
        value: f32,
    },
}

impl Sampling {
    /// Whether the options can be, before anything is computed.
    ///
    /// # Errors
    /// [`SamplingError::Option`].
    pub fn check(&self) -> Result<(), SamplingError> {
        let wrong = |flag, value: String, cure| Err(SamplingError::Option { flag, value, cure });
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return wrong("temperature", self.temperature.to_string(), "must be 0 (most probable token) or more");
        }
        if self.top_k == Some(0) {
            return wrong("top-k", "0".into(), "must be 1 or more; leave it out to consider all tokens");
        }
        if let Some(p) = self.top_p.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
            return wrong(
                "top-p",
                p.to_string(),
                "must be more than 0 and at most 1; leave it out to consider all tokens",
            );
        }
        Ok(())
    }

    /// The number in `0 .. 1` that token `position` is drawn by.
    pub fn draw(&self, position: u64) -> f64 {
        word(self.seed, position) as f64 / (1u64 << 32) as f64
    }
}

/// The token that `draw` in `0 .. 1` falls on, where the tokens divide that interval by their probability, the most
/// probable first and equal ones by id.
///
/// # Errors
/// [`SamplingError::NotFinite`].
pub fn sample(logits: &[f32], options: &Sampling, draw: f64) -> Result<u32, SamplingError> {
    if let Some(token) = logits.iter().position(|x| !x.is_finite()) {
        return Err(SamplingError::NotFinite { token, value: logits[token] });
    }
    let likelier = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let mut tokens: Vec<u32> = (0..logits.len() as u32).collect();
    if options.temperature == 0.0 {
        return Ok(tokens.into_iter().min_by(likelier).expect("a vocabulary has tokens"));
    }
    if let Some(k) = options.top_k.filter(|&k| k < tokens.len()) {
        tokens.select_nth_unstable_by(k - 1, likelier);
        tokens.truncate(k);
    }
    tokens.sort_unstable_by(likelier);
    let largest = logits[tokens[0] as usize] as f64;
    let weight = |t: &u32| ((logits[*t as usize] as f64 - largest) / options.temperature).exp();
    if let Some(p) = options.top_p {
        let mut missing = p * tokens.iter().map(weight).sum::<f64>();
        let enough = tokens.iter().position(|token| {
            missing -= weight(token);
            missing <= 0.0
        });
        tokens.truncate(enough.map_or(tokens.len(), |last| last + 1));
    }
    let mut left = draw * tokens.iter().map(weight).sum::<f64>();
    for token in &tokens {
        left -= weight(token);
        if left < 0.0 {
            return Ok(*token);
        }
    }
    // Rounding may leave a rest: it belongs to the most probable token, which always has a weight.
    Ok(tokens[0])
}

/// A model that says what comes next.
pub trait NextLogits {
    /// Its error.
    type Error;
    /// Takes in `tokens`, which follow those of the calls before, and returns the logits of the token after them.
    ///
    /// # Errors
    /// What the device says.
    fn next(&mut self, tokens: &[u32]) -> Result<Vec<f32>, Self::Error>;
    /// Forgets all tokens.
    fn restart(&mut self);
    /// The most tokens it can take in.
    fn context(&self) -> usize;
}

/// The tokens that follow a prompt, one at a time, without end.
///
/// When the context is full, the model starts again on the later half of it.
pub struct Generation<'a, M: ?Sized> {
    model: &'a mut M,
    options: Sampling,
    /// What the model has taken in since it last started.
    seen: Vec<u32>,
    /// What it has not taken in yet.
    next: Vec<u32>,
    position: u64,
}

impl<'a, M: NextLogits + ?Sized> Generation<'a, M>
where
    M::Error: From<SamplingError>,
{
    /// What follows `prompt` (not empty), of which only the last context counts.
    pub fn new(model: &'a mut M, prompt: &[u32], options: Sampling) -> Self {
        model.restart();
        let kept = prompt.len().saturating_sub(model.context());
        Self { model, options, seen: Vec::new(), next: prompt[kept..].to_vec(), position: 0 }
    }

    /// The next token.
    ///
    /// # Errors
    /// The model's, and [`SamplingError`].
    pub fn token(&mut self) -> Result<u32, M::Error> {
        let context = self.model.context();
        if self.seen.len() + self.next.len() > context {
            self.seen.append(&mut self.next);
            self.next = self.seen.split_off(self.seen.len() - context.div_ceil(2));
            self.seen.clear();
            self.model.restart();
        }
        let logits = self.model.next(&self.next)?;
        let token = sample(&logits, &self.options, self.options.draw(self.position))?;
        self.position += 1;
        self.seen.append(&mut self.next);
        self.next.push(token);
        Ok(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Sampling = Sampling { temperature: 1.0, top_k: None, top_p: None, seed: 1 };

    #[test]
    fn greedy_takes_the_largest_and_the_first_of_equals() {
        let greedy = Sampling { temperature: 0.0, ..PLAIN };
        assert_eq!(sample(&[0.0, 2.0, -1.0, 2.0], &greedy, 0.99), Ok(1));
    }

    #[test]
    fn tokens_come_as_often_as_they_are_probable() {
        let logits = [0.0f32, 3.0f32.ln(), 4.0f32.ln(), -100.0];
        let mut counts = [0; 4];
        for i in 0..8000 {
            counts[sample(&logits, &PLAIN, i as f64 / 8000.0).unwrap() as usize] += 1;
        }
        // An even grid of draws: each share is exact to one draw at either end.
        for (count, expected) in counts.iter().zip([1000i32, 3000, 4000, 0]) {
            assert!((count - expected).abs() <= 2, "{counts:?}");
        }
    }

    #[test]
    fn top_k_leaves_only_k_and_temperature_sharpens() {
        let logits = [1.0, 2.0, 3.0, 4.0];
        let two = Sampling { top_k: Some(2), ..PLAIN };
        assert!((0..100).all(|i| sample(&logits, &two, i as f64 / 100.0).unwrap() >= 2));
        let first = |temperature| {
            (0..1000)
                .filter(|&i| sample(&logits, &Sampling { temperature, ..PLAIN }, i as f64 / 1000.0) == Ok(3))
                .count()
        };
        assert!(first(0.5) > first(1.0) && first(1.0) > first(2.0));
    }

    #[test]
    fn top_p_leaves_the_fewest_tokens_that_reach_it() {
        // Probabilities 1/8, 3/8, 4/8.
        let logits = [0.0f32, 3.0f32.ln(), 4.0f32.ln()];
        for (p, kept) in [(1e-9, 1), (0.4, 1), (0.51, 2), (0.87, 2), (0.88, 3), (1.0, 3)] {
            let options = Sampling { top_p: Some(p), ..PLAIN };
            let mut seen: Vec<u32> = (0..100).map(|i| sample(&logits, &options, i as f64 / 100.0).unwrap()).collect();
            seen.sort();
            seen.dedup();
            assert_eq!(seen, [2, 1, 0][..kept].iter().rev().copied().collect::<Vec<_>>(), "{p}");
        }
        for p in [0.0, -0.1, 1.1, f64::NAN] {
            assert!(Sampling { top_p: Some(p), ..PLAIN }.check().is_err(), "{p}");
        }
    }

    #[test]
    fn what_is_not_finite_is_named() {
        let error = sample(&[0.0, f32::INFINITY], &PLAIN, 0.5);
        assert_eq!(error, Err(SamplingError::NotFinite { token: 1, value: f32::INFINITY }));
        assert!(Sampling { temperature: f64::NAN, ..PLAIN }.check().is_err());
        assert!(Sampling { top_k: Some(0), ..PLAIN }.check().is_err());
    }

    /// Says the number of tokens it has taken in, and fails when they exceed its context.
    struct Counting {
        taken: Vec<u32>,
    }

    impl NextLogits for Counting {
        type Error = SamplingError;
        fn next(&mut self, tokens: &[u32]) -> Result<Vec<f32>, SamplingError> {
            self.taken.extend_from_slice(tokens);
            assert!(!tokens.is_empty() && self.taken.len() <= self.context());
            let mut logits = vec![0.0; 16];
            logits[self.taken.len()] = 1.0;
            Ok(logits)
        }
        fn restart(&mut self) {
            self.taken.clear();
        }
        fn context(&self) -> usize {
            8
        }
    }

    #[test]
    fn generation_goes_on_past_the_context() {
        let greedy = Sampling { temperature: 0.0, ..PLAIN };
        let mut model = Counting { taken: Vec::new() };
        let mut generation = Generation::new(&mut model, &[9; 20], greedy);
        let tokens: Vec<u32> = (0..12).map(|_| generation.token().unwrap()).collect();
        // 20 tokens of prompt are cut to 8; after that each start takes in half the context.
        assert_eq!(tokens, [8, 4, 5, 6, 7, 8, 4, 5, 6, 7, 8, 4]);
    }
}
