//! The guard: watches the losses of the steps that were taken, and says which lies far above them. Its window is part of
//! a checkpoint, so that a run that goes on judges as one that never stopped. It must never know what is done about it.

use std::collections::VecDeque;

/// What is done about a spike of the loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnSpike {
    /// It is said.
    Report,
    /// The run goes back to its last checkpoint, and on from there with the batches after the spike.
    Rollback,
    /// Nothing.
    Ignore,
}

/// Losses that a loss is compared with.
pub const WINDOW: usize = 128;
/// Standard deviations above their mean that make a spike.
pub const SIGMAS: f64 = 6.0;

/// A loss far above those before it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spike {
    /// The loss, in nats.
    pub loss: f64,
    /// Mean of the losses before.
    pub mean: f64,
    /// Their standard deviation.
    pub sigma: f64,
}

/// The last losses.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Guard(VecDeque<f32>);

impl Guard {
    /// Takes in the loss of a step that was taken, and compares it with those before it: once there are [`WINDOW`] of
    /// them, [`SIGMAS`] deviations above their mean is a spike. A loss that is not finite is neither judged nor taken in.
    pub fn judge(&mut self, loss: f32) -> Option<Spike> {
        if !loss.is_finite() {
            return None;
        }
        let spike = (self.0.len() == WINDOW).then(|| self.compare(loss)).flatten();
        if self.0.len() == WINDOW {
            self.0.pop_front();
        }
        self.0.push_back(loss);
        spike
    }

    fn compare(&self, loss: f32) -> Option<Spike> {
        let losses = || self.0.iter().map(|x| f64::from(*x));
        let mean = losses().sum::<f64>() / WINDOW as f64;
        let variance = losses().map(|x| (x - mean).powi(2)).sum::<f64>() / WINDOW as f64;
        // Losses that hardly differ still carry the rounding of f32.
        let sigma = variance.sqrt().max(mean.abs() * f64::from(f32::EPSILON));
        let spike = Spike { loss: loss.into(), mean, sigma };
        (spike.loss > mean + SIGMAS * sigma).then_some(spike)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Losses of 1 and 2 in turn: mean 1.5, deviation 0.5, so that the limit is 4.5.
    fn full() -> Guard {
        let mut guard = Guard::default();
        for i in 0..WINDOW {
            assert_eq!(guard.judge(1.0 + (i % 2) as f32), None);
        }
        guard
    }

    #[test]
    fn six_deviations_are_the_limit() {
        assert_eq!(full().judge(4.5), None);
        assert_eq!(full().judge(4.51), Some(Spike { loss: 4.51f32.into(), mean: 1.5, sigma: 0.5 }));
        assert_eq!(full().judge(-100.0), None);
    }

    #[test]
    fn a_window_that_is_not_full_judges_nothing() {
        let mut guard = full();
        guard.0.pop_front();
        assert_eq!(guard.judge(1e9), None);
    }

    #[test]
    fn what_is_not_finite_stays_outside() {
        let mut guard = full();
        for loss in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(guard.judge(loss), None);
        }
        assert_eq!(guard, full());
    }

    #[test]
    fn losses_that_do_not_differ_have_the_rounding_of_f32() {
        let mut guard = Guard::default();
        (0..WINDOW).for_each(|_| assert_eq!(guard.judge(2.0), None));
        assert_eq!(guard.judge(2.0 + f32::EPSILON), None);
        assert!(guard.judge(2.0001).is_some());
    }

    #[test]
    fn text_and_back_is_the_same() {
        let mut guard = Guard::default();
        (0..WINDOW).for_each(|i| assert_eq!(guard.judge(0.1 + (i as f32).sqrt() / 3.0), None));
        let text = serde_json::to_string(&guard).unwrap();
        assert_eq!(serde_json::from_str::<Guard>(&text).unwrap(), guard);
    }
}
