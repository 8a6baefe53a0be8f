//! Progress for a person: a bar on a terminal, else a line at the start, at the end and at every tenth of the run.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

use super::device::rounded_bytes as bytes;
use super::{Event, Finish, Needs, Observer, ReportError, Result, Start, StepLine, Traffic};

/// Shows how far a run is.
pub struct Progress<W> {
    out: W,
    terminal: bool,
    bar: ProgressBar,
    started: Instant,
    steps: u64,
    /// Steps that were done before the run went on.
    done_before: u64,
    val_loss: Option<f64>,
    /// What stays of the bar when it goes.
    last: String,
    /// First step that is worth a line of its own.
    next_line: u64,
}

impl Progress<std::io::Stderr> {
    /// Progress on standard error.
    pub fn stderr() -> Self {
        let out = std::io::stderr();
        let terminal = out.is_terminal();
        Progress::new(out, terminal)
    }
}

impl<W: Write> Progress<W> {
    /// Progress as lines to `out`; on a terminal as a bar on standard error, with `out` for the rest.
    pub fn new(out: W, terminal: bool) -> Self {
        Self {
            out,
            terminal,
            bar: ProgressBar::hidden(),
            started: Instant::now(),
            steps: 0,
            done_before: 0,
            val_loss: None,
            last: String::new(),
            next_line: 1,
        }
    }

    fn line(&mut self, text: &str) -> Result<()> {
        writeln!(self.out, "{text}").map_err(|source| ReportError { path: "standard error".into(), source })
    }

    /// What is said of a step.
    fn message(&self, line: &StepLine) -> String {
        let val = self.val_loss.map_or(String::new(), |v| format!("  val {v:.4}"));
        let skipped = if line.skipped { "  not finite: update skipped" } else { "" };
        format!("loss {:.4}{val}  {} tokens/s{skipped}", line.loss, rate(line.tokens_per_second))
    }

    fn time_left(&self, step: u64) -> HumanDuration {
        let each = self.started.elapsed().as_secs_f64() / step.saturating_sub(self.done_before).max(1) as f64;
        let left = each * self.steps.saturating_sub(step) as f64;
        HumanDuration(Duration::try_from_secs_f64(left.round()).unwrap_or(Duration::MAX))
    }
}

impl<W: Write> Observer for Progress<W> {
    fn started(&mut self, start: &Start<'_>) -> Result<()> {
        let Start { device, model, parameters, train_tokens, validation_tokens, vocab_size, .. } = start;
        self.line(device)?;
        self.line(&format!("model: {model}, {parameters} parameters, vocabulary {vocab_size}"))?;
        self.line(&format!("data: {train_tokens} tokens to train on, {validation_tokens} for validation"))?;
        let (steps, tokens, folder) = (start.steps, start.step_tokens, start.folder.display());
        self.line(&format!("run: {steps} steps of {tokens} tokens, in {folder}"))?;
        if let Some(step) = start.resumed {
            self.line(&format!("going on after step {step}"))?;
        }
        self.started = Instant::now();
        self.steps = steps;
        self.done_before = start.resumed.unwrap_or(0);
        if self.terminal {
            let style = ProgressStyle::with_template("{bar:24} {pos}/{len}  {msg}").expect("the template is valid");
            self.bar = ProgressBar::new(steps).with_style(style);
        }
        Ok(())
    }

    fn step(&mut self, line: &StepLine) -> Result<()> {
        let message = self.message(line);
        if self.terminal {
            self.bar.set_message(format!("{message}  {:#} left", self.time_left(line.step)));
            self.bar.set_position(line.step);
            self.last = format!("step {}/{}  {message}", line.step, self.steps);
            return Ok(());
        }
        if line.step >= self.next_line || line.step == self.steps {
            let tenth = self.steps.div_ceil(10).max(1);
            self.next_line = (line.step / tenth + 1) * tenth;
            let left = self.time_left(line.step);
            self.line(&format!("step {}/{}  {message}  {left:#} left", line.step, self.steps))?;
        }
        Ok(())
    }

    fn evaluation(&mut self, step: u64, val_loss: f64) -> Result<()> {
        self.val_loss = Some(val_loss);
        match self.terminal {
            true => self.bar.println(format!("step {step}: validation loss {val_loss:.4}")),
            false => self.line(&format!("step {step}/{}  validation loss {val_loss:.4}", self.steps))?,
        }
        Ok(())
    }

    fn event(&mut self, event: &Event<'_>) -> Result<()> {
        let text = match event {
            Event::Damaged { reason } => format!("{reason}; taking the checkpoint before it"),
            Event::Spike { step, loss, mean, sigma, rolled_back } => {
                let back =
                    rolled_back.map_or(String::new(), |to| format!("; back to step {to}, without these batches"));
                format!("step {step}: loss {loss:.4} is a spike, {mean:.4} with deviation {sigma:.4} before it{back}")
            }
            Event::Stopped { step, steps, folder } => {
                let folder = folder.display();
                format!("stopped after step {step} of {steps}; go on with: gaufre train --resume {folder}")
            }
            Event::Needs(needs) => needs_line(needs),
            Event::Traffic { step, traffic } if traffic.seconds >= TOLD => traffic_line(*step, traffic),
            Event::Dry { step, grad_norm } => {
                format!("step {step}: dry, nothing was updated; norm of all gradients {grad_norm}")
            }
            Event::Traffic { .. }
            | Event::Saving
            | Event::Saved { .. }
            | Event::Memory { .. }
            | Event::Traced { .. } => return Ok(()),
        };
        match self.terminal && !self.bar.is_hidden() {
            true => self.bar.println(text),
            false => self.line(&text)?,
        }
        Ok(())
    }

    fn finished(&mut self, finish: &Finish) -> Result<()> {
        if self.terminal {
            self.bar.finish_and_clear();
            let last = std::mem::take(&mut self.last);
            self.line(&last)?;
        }
        let skipped = match finish.skipped {
            0 => String::new(),
            n => format!("; {n} steps skipped: something was not finite"),
        };
        let rate = rate(finish.tokens as f64 / finish.seconds.max(f64::MIN_POSITIVE));
        self.line(&format!(
            "done: {} steps, {} tokens in {:.1} s ({rate} tokens/s){skipped}",
            finish.steps, finish.tokens, finish.seconds
        ))
    }
}

/// Steps that take so many seconds have their traffic told.
const TOLD: f64 = 2.0;

/// Tokens a second: of few, the digits that tell them from none.
fn rate(per_second: f64) -> String {
    if per_second < 10.0 { format!("{per_second:.3}") } else { format!("{per_second:.0}") }
}

fn needs_line(needs: &Needs) -> String {
    let of = |(needed, available): (u64, Option<u64>)| match available {
        Some(available) => format!("{} of {}", bytes(needed), bytes(available)),
        None => bytes(needed),
    };
    let disk = if needs.disk.0 > 0 { format!(", disk {}", of(needs.disk)) } else { String::new() };
    let (compute, stream) = needs.step_seconds;
    let stream = if stream > 0.0 { format!(", {stream:.1} s of reading and writing beside it") } else { String::new() };
    format!(
        "needs: device {}, memory {}{disk}; a step of about {compute:.1} s of computing{stream}",
        of(needs.device),
        of(needs.ram)
    )
}

fn traffic_line(step: u64, t: &Traffic) -> String {
    let rate = |per_second: f64| format!("{}/s", bytes(per_second as u64));
    format!(
        "step {step}: {:.1} s, bound by {}: read {} at {}, {:.1} s waited; wrote {} at {}, {:.1} s waited",
        t.seconds,
        t.bound(),
        bytes(t.bytes_read),
        rate(t.read_bandwidth),
        t.read_wait,
        bytes(t.bytes_written),
        rate(t.write_bandwidth),
        t.write_wait
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dry_step_is_called_so() {
        let mut out = Vec::new();
        Progress::new(&mut out, false).event(&Event::Dry { step: 1, grad_norm: 2.5 }).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "step 1: dry, nothing was updated; norm of all gradients 2.5\n");
        assert_eq!((rate(0.0117), rate(144.4)), ("0.012".into(), "144".into()));
    }

    #[test]
    fn a_log_has_a_line_a_tenth() {
        for (steps, lines) in [(1, 1), (5, 5), (100, 11), (1003, 11)] {
            let mut out = Vec::new();
            let mut progress = Progress::new(&mut out, false);
            progress.steps = steps;
            for step in 1..=steps {
                let line = StepLine {
                    step,
                    loss: 1.0,
                    grad_norm: 1.0,
                    lr: 1.0,
                    tokens: step,
                    tokens_per_second: 1.0,
                    skipped: false,
                };
                progress.step(&line).unwrap();
            }
            let text = String::from_utf8(out).unwrap();
            assert_eq!(text.lines().count(), lines, "{text}");
            assert!(text.contains(&format!("step {steps}/{steps}")), "{text}");
        }
    }
}
