//! `metrics.jsonl` read back: the steps and evaluations of a run, in order. It must never know how they are shown.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// A file of a run that could not be read.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct ReadError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong, with the line.
    pub reason: String,
}

/// One step. A value that was not finite, or is not there, is NaN.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Steps done, this one included.
    pub step: u64,
    /// Mean loss in nats.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate.
    pub lr: f64,
    /// Tokens trained on so far.
    pub tokens: u64,
    /// Tokens a second in this step.
    pub tokens_per_second: f64,
    /// Whether its update was left out.
    pub skipped: bool,
}

/// What a run has done so far.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// By rising step.
    pub steps: Vec<Step>,
    /// Steps and validation losses, by rising step.
    pub evaluations: Vec<(u64, f64)>,
}

/// Bytes that a line may have.
const LINE_BYTES: u64 = 1 << 16;

/// A line, whichever it is. Fields that are not known here are for other readers.
#[derive(serde::Deserialize)]
struct Line {
    step: u64,
    loss: Option<f64>,
    grad_norm: Option<f64>,
    lr: Option<f64>,
    #[serde(default)]
    tokens: u64,
    tokens_per_second: Option<f64>,
    #[serde(default)]
    skipped: bool,
    val_loss: Option<f64>,
}

impl History {
    /// Reads a file.
    ///
    /// # Errors
    /// [`ReadError`] names the file and the line.
    pub fn read(path: &Path) -> Result<History, ReadError> {
        let failed = |reason: String| ReadError { path: path.into(), reason };
        let file = File::open(path).map_err(|e| failed(e.to_string()))?;
        History::parse(BufReader::new(file)).map_err(failed)
    }

    /// Reads lines. The last one may be cut off: a run may be writing it. A step that comes again, as after a resume,
    /// replaces what was said of it and of later ones.
    ///
    /// # Errors
    /// What is wrong, with the number of the line.
    pub fn parse(mut lines: impl BufRead) -> Result<History, String> {
        let mut history = History::default();
        let mut line = Vec::new();
        for number in 1u64.. {
            line.clear();
            let read = lines.by_ref().take(LINE_BYTES).read_until(b'\n', &mut line);
            if read.map_err(|e| format!("line {number}: {e}"))? == 0 {
                break;
            }
            let whole = line.ends_with(b"\n");
            if !whole && line.len() as u64 == LINE_BYTES {
                return Err(format!("line {number}: longer than {LINE_BYTES} bytes"));
            }
            match serde_json::from_slice::<Line>(&line) {
                Ok(line) => history.add(&line),
                Err(_) if !whole || line.trim_ascii().is_empty() => {}
                Err(error) => return Err(format!("line {number}: {error}")),
            }
        }
        Ok(history)
    }

    fn add(&mut self, line: &Line) {
        if let Some(loss) = line.val_loss {
            self.evaluations.truncate(self.evaluations.partition_point(|(step, _)| *step < line.step));
            self.evaluations.push((line.step, loss));
            return;
        }
        if line.lr.is_none() && line.loss.is_none() {
            return;
        }
        self.steps.truncate(self.steps.partition_point(|s| s.step < line.step));
        self.evaluations.truncate(self.evaluations.partition_point(|(step, _)| *step < line.step));
        let value = |x: Option<f64>| x.unwrap_or(f64::NAN);
        self.steps.push(Step {
            step: line.step,
            loss: value(line.loss),
            grad_norm: value(line.grad_norm),
            lr: value(line.lr),
            tokens: line.tokens,
            tokens_per_second: value(line.tokens_per_second),
            skipped: line.skipped,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_run_counts_each_step_once() {
        let text = concat!(
            "{\"step\":1,\"loss\":4.0,\"lr\":0.1,\"tokens\":8}\n{\"step\":2,\"loss\":null,\"lr\":0.1}\n",
            "{\"step\":2,\"val_loss\":3.5,\"perplexity\":33.1}\n{\"step\":3,\"loss\":2.0,\"lr\":0.1}\n\n",
            "{\"step\":2,\"loss\":3.0,\"lr\":0.1}\n{\"step\":3,\"lo",
        );
        let history = History::parse(text.as_bytes()).unwrap();
        assert_eq!(history.steps.iter().map(|s| (s.step, s.loss)).collect::<Vec<_>>(), [(1, 4.0), (2, 3.0)]);
        assert!(history.evaluations.is_empty());
    }

    #[test]
    fn a_broken_line_is_named() {
        let error = |text: &str| History::parse(text.as_bytes()).unwrap_err();
        assert!(error("{\"step\":1,\"lr\":0.1}\nnonsense\n").starts_with("line 2: "));
        assert!(error(&"x".repeat(1 << 17)).starts_with("line 1: longer"));
    }
}
