//! Learning rates: a pure function of the step. It must never know a parameter or a loss.

use super::config::Config;

/// How the rate falls after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LrSchedule {
    /// Half a cosine down to the least rate.
    Cosine,
    /// A line down to the least rate.
    Linear,
    /// It stays.
    Constant,
}

/// The learning rate of each step.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    schedule: LrSchedule,
    peak: f64,
    least: f64,
    warmup: u64,
    steps: u64,
}

impl Rates {
    /// The rates of a run.
    pub fn new(config: &Config) -> Rates {
        Rates {
            schedule: config.lr_schedule,
            peak: config.lr,
            least: config.min_lr(),
            warmup: config.warmup_steps(),
            steps: config.steps,
        }
    }

    /// The rate of a step, counted from 0, as nanoGPT has it: `lr * (step + 1) / (warmup + 1)` in the warm-up, then from
    /// `lr` at step `warmup` to the least rate at step `steps`, and that from there on.
    pub fn lr(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * (step + 1) as f64 / (self.warmup + 1) as f64;
        }
        let left = match self.schedule {
            LrSchedule::Constant => return self.peak,
            _ if step >= self.steps => return self.least,
            LrSchedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * self.progress(step)).cos()),
            LrSchedule::Linear => 1.0 - self.progress(step),
        };
        self.least + left * (self.peak - self.least)
    }

    /// Share of the steps after the warm-up that lie behind a step between the two.
    fn progress(&self, step: u64) -> f64 {
        (step - self.warmup) as f64 / (self.steps - self.warmup) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(schedule: LrSchedule) -> Rates {
        Rates { schedule, peak: 1e-3, least: 1e-4, warmup: 100, steps: 2000 }
    }

    fn close(a: f64, b: f64) {
        // Five operations on values of at most 1e-3, each with a relative error of half an epsilon.
        assert!((a - b).abs() <= 5.0 * 1e-3 * f64::EPSILON, "{a} {b}");
    }

    #[test]
    fn warm_up_is_a_line_that_reaches_the_peak() {
        for schedule in [LrSchedule::Cosine, LrSchedule::Linear, LrSchedule::Constant] {
            let r = rates(schedule);
            close(r.lr(0), 1e-3 / 101.0);
            close(r.lr(99), 1e-3 * 100.0 / 101.0);
            close(r.lr(100), 1e-3);
        }
    }

    #[test]
    fn each_schedule_at_the_middle_and_the_end() {
        for schedule in [LrSchedule::Cosine, LrSchedule::Linear] {
            close(rates(schedule).lr(1050), 5.5e-4);
            close(rates(schedule).lr(2000), 1e-4);
            close(rates(schedule).lr(u64::MAX), 1e-4);
        }
        close(rates(LrSchedule::Cosine).lr(575), 1e-4 + 0.5 * (1.0 + 0.5f64.sqrt()) * 9e-4);
        close(rates(LrSchedule::Linear).lr(575), 1e-4 + 0.75 * 9e-4);
        close(rates(LrSchedule::Constant).lr(5000), 1e-3);
    }

    #[test]
    fn a_warm_up_longer_than_the_run_never_divides_by_zero() {
        let r = Rates { warmup: 2000, ..rates(LrSchedule::Cosine) };
        assert!(r.lr(1999) < 1e-3);
        close(r.lr(2000), 1e-4);
    }
}
