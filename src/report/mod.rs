//! What a run says of itself, and to whom: a bar for a person, lines for a log, JSONL for a program.
//!
//! Training tells an [`Observer`] what happened; it must never know who listens, and no observer changes what is computed.

pub mod device;
pub mod history;
pub mod html;
pub mod metrics;
pub mod plan;
pub mod progress;
pub mod tensorboard;
pub mod trace;

use std::path::{Path, PathBuf};

use crate::device::Ledger;

/// A report that could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {source}; make room or choose another --out", path.display())]
pub struct ReportError {
    /// The file.
    pub path: PathBuf,
    /// What the system says.
    pub source: std::io::Error,
}

/// Result of a report.
pub type Result<T> = std::result::Result<T, ReportError>;

/// What is known when a run starts.
#[derive(Clone, Copy, Debug)]
pub struct Start<'a> {
    /// The device, in one line: see [`device::line`].
    pub device: &'a str,
    /// Name of the model.
    pub model: &'a str,
    /// Its parameters.
    pub parameters: u64,
    /// Tokens to train on.
    pub train_tokens: u64,
    /// Tokens held out.
    pub validation_tokens: u64,
    /// Size of the vocabulary.
    pub vocab_size: usize,
    /// Steps of the run.
    pub steps: u64,
    /// Tokens of a step.
    pub step_tokens: u64,
    /// Folder of the run.
    pub folder: &'a Path,
    /// Steps that were done before, where a run goes on.
    pub resumed: Option<u64>,
    /// Bytes of text that a token of the validation text stands for on average, where that is known.
    pub bytes_per_token: Option<f64>,
    /// Floating point operations of a step, by the usual formula.
    pub step_flops: f64,
    /// Floating point operations a second that the device did in a product of f32 matrices, measured at the start.
    pub peak_flops: f64,
}

/// One step, done.
#[derive(Clone, Copy, Debug)]
pub struct StepLine {
    /// Steps done, this one included: 1 for the first.
    pub step: u64,
    /// Mean loss over the step's tokens, in nats.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate of the step.
    pub lr: f64,
    /// Tokens trained on so far.
    pub tokens: u64,
    /// Tokens a second in this step.
    pub tokens_per_second: f64,
    /// Whether the update was left out because something was not finite.
    pub skipped: bool,
}

/// What passed between memory and disk in a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Traffic {
    /// Wall time of the step in seconds.
    pub seconds: f64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Bytes a second while the disk read; 0 where it did not.
    pub read_bandwidth: f64,
    /// Bytes a second while the disk wrote and synced; 0 where it did not.
    pub write_bandwidth: f64,
    /// Seconds in which the step waited for what it read.
    pub read_wait: f64,
    /// Seconds in which it waited for room to write.
    pub write_wait: f64,
}

impl Traffic {
    /// What the step spent most of its time on: `compute`, `read` or `write`.
    pub fn bound(&self) -> &'static str {
        let compute = self.seconds - self.read_wait - self.write_wait;
        match (compute >= self.read_wait.max(self.write_wait), self.read_wait >= self.write_wait) {
            (true, _) => "compute",
            (false, true) => "read",
            (false, false) => "write",
        }
    }
}

/// What a run needs of memory and disk, in bytes, and what there is where that is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Needs {
    /// On the device, and what may be used of it.
    pub device: (u64, Option<u64>),
    /// Of host memory.
    pub ram: (u64, Option<u64>),
    /// On the disk of the store.
    pub disk: (u64, Option<u64>),
    /// Seconds that a step is expected to take, if neither is slower than measured: computing, and reading and writing.
    pub step_seconds: (f64, f64),
}

/// What is known when a run ends.
#[derive(Clone, Copy, Debug)]
pub struct Finish {
    /// Steps done since the start of the run or since it went on.
    pub steps: u64,
    /// Tokens trained on in them.
    pub tokens: u64,
    /// Wall time in seconds.
    pub seconds: f64,
    /// Steps of the whole run that were skipped because something was not finite.
    pub skipped: u64,
}

/// What may happen on the way.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A checkpoint is damaged; the one before it is tried.
    Damaged {
        /// What is wrong, with the file.
        reason: &'a str,
    },
    /// A checkpoint is about to be written: what was told so far must be durable first.
    Saving,
    /// A checkpoint is whole on the disk.
    Saved {
        /// Steps done.
        step: u64,
        /// Its folder.
        path: &'a Path,
        /// How long it took.
        seconds: f64,
    },
    /// What a run will take, before it starts.
    Needs(Needs),
    /// A step of a store on a disk.
    Traffic {
        /// Steps done.
        step: u64,
        /// What passed.
        traffic: Traffic,
    },
    /// A step whose gradients were counted and dropped: nothing was updated.
    Dry {
        /// Steps done.
        step: u64,
        /// Norm of all gradients together.
        grad_norm: f64,
    },
    /// A loss far above those before it.
    Spike {
        /// The step that had it.
        step: u64,
        /// The loss, in nats.
        loss: f64,
        /// Mean of the losses before.
        mean: f64,
        /// Their standard deviation.
        sigma: f64,
        /// The step that the run went back to, if it did.
        rolled_back: Option<u64>,
    },
    /// The most memory there was in use so far.
    Memory {
        /// Steps done.
        step: u64,
        /// On the device, in bytes.
        device_bytes: u64,
        /// Of the process, in bytes, where the system tells.
        process_bytes: Option<u64>,
    },
    /// A step of a run that is traced.
    Traced {
        /// Steps done.
        step: u64,
        /// When it began and ended, in seconds since the ledger was opened.
        seconds: (f64, f64),
        /// What was written down in it.
        ledger: &'a Ledger,
    },
    /// The run stops before its last step, as it was told to.
    Stopped {
        /// Steps done.
        step: u64,
        /// Steps of the whole run.
        steps: u64,
        /// Folder of the run.
        folder: &'a Path,
    },
}

/// Who is told. An error ends the run: a disk that is full should not cost the metrics in silence.
pub trait Observer {
    /// The run starts.
    ///
    /// # Errors
    /// [`ReportError`], here and below: what could not be written.
    fn started(&mut self, start: &Start<'_>) -> Result<()>;
    /// A step is done.
    fn step(&mut self, line: &StepLine) -> Result<()>;
    /// After `step` steps the validation loss is `val_loss`.
    fn evaluation(&mut self, step: u64, val_loss: f64) -> Result<()>;
    /// Something happened on the way.
    fn event(&mut self, event: &Event<'_>) -> Result<()> {
        let _ = event;
        Ok(())
    }
    /// The run is over.
    fn finished(&mut self, finish: &Finish) -> Result<()>;
}

/// Tells whoever is there.
impl<A: Observer> Observer for Option<A> {
    fn started(&mut self, start: &Start<'_>) -> Result<()> {
        self.as_mut().map_or(Ok(()), |a| a.started(start))
    }

    fn step(&mut self, line: &StepLine) -> Result<()> {
        self.as_mut().map_or(Ok(()), |a| a.step(line))
    }

    fn evaluation(&mut self, step: u64, val_loss: f64) -> Result<()> {
        self.as_mut().map_or(Ok(()), |a| a.evaluation(step, val_loss))
    }

    fn event(&mut self, event: &Event<'_>) -> Result<()> {
        self.as_mut().map_or(Ok(()), |a| a.event(event))
    }

    fn finished(&mut self, finish: &Finish) -> Result<()> {
        self.as_mut().map_or(Ok(()), |a| a.finished(finish))
    }
}

/// Tells the first, then the second.
impl<A: Observer, B: Observer> Observer for (A, B) {
    fn started(&mut self, start: &Start<'_>) -> Result<()> {
        self.0.started(start)?;
        self.1.started(start)
    }

    fn step(&mut self, line: &StepLine) -> Result<()> {
        self.0.step(line)?;
        self.1.step(line)
    }

    fn evaluation(&mut self, step: u64, val_loss: f64) -> Result<()> {
        self.0.evaluation(step, val_loss)?;
        self.1.evaluation(step, val_loss)
    }

    fn event(&mut self, event: &Event<'_>) -> Result<()> {
        self.0.event(event)?;
        self.1.event(event)
    }

    fn finished(&mut self, finish: &Finish) -> Result<()> {
        self.0.finished(finish)?;
        self.1.finished(finish)
    }
}
