//! The steps of a run between two points where it is whole on the disk: batches in, update, guard, evaluation, checkpoint.
//! All that it carries from step to step is the store and the [`State`], both of which a checkpoint holds. It must never
//! know how a run came about, nor who is told.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::config::Config;
use super::folder::Folder;
use super::guard::{OnSpike, Spike};
use super::peaks;
use super::rates::Rates;
use super::resume::{Best, ResumeError, State};
use super::run::{Control, Summary, TrainError, first_word};
use super::samples::Samples;
use super::step::{StepResult, Trainer};
use crate::data::{Batches, Corpus, Shape};
use crate::model::Micro;
use crate::report::{Event, Observer, StepLine, Traffic};
use crate::store::durable::{self, WriteError};
use crate::store::journal::Interrupted;
use crate::store::stream::Stats;
use crate::store::{Placement, checkpoint};

/// Rollbacks to one checkpoint before the run gives up.
const MOST_ROLLBACKS: u64 = 8;

/// A run in progress.
pub struct Session<'a> {
    config: &'a Config,
    control: Control<'a>,
    shape: Shape,
    corpus: &'a Corpus,
    trainer: Trainer,
    folder: &'a Folder,
    state: State,
    rates: Rates,
    samples: Option<Samples>,
    /// The step whose checkpoint is on the disk, where that of this state is.
    saved: Option<u64>,
    /// A step of a store on a disk that is to be completed before any other.
    interrupted: Option<Interrupted>,
}

impl<'a> Session<'a> {
    /// A session at `state`, which the trainer's store is at too. `resumed`: that came from a checkpoint, or would have.
    #[expect(clippy::too_many_arguments, reason = "what a run is made of, once")]
    pub fn new(
        config: &'a Config,
        control: Control<'a>,
        shape: Shape,
        corpus: &'a Corpus,
        trainer: Trainer,
        samples: Option<Samples>,
        folder: &'a Folder,
        state: State,
        resumed: bool,
        interrupted: Option<Interrupted>,
    ) -> Session<'a> {
        let saved = (resumed && state.step > 0).then_some(state.step);
        let rates = Rates::new(config);
        Session { config, control, shape, corpus, trainer, folder, state, rates, samples, saved, interrupted }
    }

    /// Whether the store lies on a disk, and so is the checkpoint: of every step, and of the last alone.
    fn is_on_disk(&self) -> bool {
        self.config.store.placement() == Placement::Disk
    }

    /// Where the store is the checkpoint: makes it that of this state.
    fn commit(&mut self, observer: &mut dyn Observer) -> Result<(), TrainError> {
        // A step without an update leaves nothing to be kept.
        if self.is_on_disk() && !(self.config.dry_update && self.state.step > 0) {
            observer.event(&Event::Saving)?;
            self.trainer.store().commit(self.state.step, &self.state)?;
            self.saved = Some(self.state.step);
        }
        Ok(())
    }

    /// Steps until the last one or until told to stop, then saves.
    ///
    /// # Errors
    /// [`TrainError`].
    pub fn run(&mut self, observer: &mut dyn Observer) -> Result<Summary, TrainError> {
        let begun = Instant::now();
        let end = self.control.stop_after.unwrap_or(u64::MAX).min(self.config.steps);
        if self.config.on_spike == OnSpike::Rollback && self.state.step == 0 {
            self.save(observer)?;
        }
        if self.saved != Some(self.state.step) {
            self.commit(observer)?;
        }
        while self.state.step < end && !self.control.stop.load(Ordering::Relaxed) {
            if !self.step(observer)? {
                continue;
            }
            self.evaluate_if_due(observer)?;
            if self.is_on_disk() {
                self.commit(observer)?;
                continue;
            }
            let every = self.config.save_every;
            if every > 0 && self.state.step.is_multiple_of(every) {
                (self.state.anchor, self.state.rollbacks) = (self.state.step, 0);
                self.save(observer)?;
            }
        }
        if self.is_on_disk() {
            self.trainer.store().drain()?;
            return Ok(self.summary(begun));
        }
        if self.saved != Some(self.state.step) {
            self.save(observer)?;
        }
        let about = [("model", self.trainer.model().config().name.clone()), ("steps", self.state.step.to_string())];
        let about: BTreeMap<String, String> = about.into_iter().map(|(k, v)| (k.to_string(), v)).collect();
        checkpoint::save(self.trainer.store(), self.control.disk, &self.folder.checkpoint(), &about)?;
        Ok(self.summary(begun))
    }

    fn summary(&self, begun: Instant) -> Summary {
        Summary {
            folder: self.folder.path().into(),
            step: self.state.step,
            stopped: self.state.step < self.config.steps,
            loss: self.state.loss.unwrap_or(f64::NAN),
            val_loss: self.state.val_loss,
            skipped: self.state.steps_skipped,
            seconds: begun.elapsed().as_secs_f64(),
            word: first_word(self.corpus),
        }
    }

    /// One step; false when it ended in a rollback.
    fn step(&mut self, observer: &mut dyn Observer) -> Result<bool, TrainError> {
        let (shape, clock, step) = (self.shape, Instant::now(), self.state.step);
        let batches = Batches::new(&self.corpus.train, shape, self.config.order, self.config.seed);
        let first = step + self.state.batches_skipped;
        let micro: Vec<Micro> = (0..shape.grad_accum).map(|m| batches.batch(first, m).into()).collect();
        let lr = self.rates.lr(step);
        let device = self.trainer.device().clone();
        // What ran since the last step was not of this one.
        device.take_ledger();
        let begun = device.ledger_seconds();
        let StepResult { loss, grad_norm, skipped } = match self.interrupted.take() {
            Some(interrupted) => self.trainer.complete(&interrupted, lr as f32, &micro)?,
            None => self.trainer.step(step + 1, lr as f32, &micro)?,
        };
        let (ledger, seconds) = (device.take_ledger(), (begun, device.ledger_seconds()));
        let step_tokens = (shape.batch_size * shape.seq_len * shape.grad_accum) as u64;
        self.state.step += 1;
        self.state.loss = loss.is_finite().then_some(loss.into());
        self.state.steps_skipped += u64::from(skipped);
        observer.step(&StepLine {
            step: self.state.step,
            loss: loss.into(),
            grad_norm: grad_norm.into(),
            lr,
            tokens: self.state.step * step_tokens,
            tokens_per_second: step_tokens as f64 / clock.elapsed().as_secs_f64(),
            skipped,
        })?;
        if self.control.traced {
            observer.event(&Event::Traced { step: self.state.step, seconds, ledger: &ledger })?;
        }
        if let Some(stats) = self.trainer.store().traffic() {
            let traffic = traffic(&stats, clock.elapsed().as_secs_f64());
            observer.event(&Event::Traffic { step: self.state.step, traffic })?;
        }
        if self.config.dry_update {
            observer.event(&Event::Dry { step: self.state.step, grad_norm: grad_norm.into() })?;
        }
        let spike = if skipped { None } else { self.state.guard.judge(loss) };
        match (self.config.on_spike, spike) {
            (OnSpike::Ignore, _) | (_, None) => Ok(true),
            (OnSpike::Report, Some(spike)) => {
                self.tell(observer, spike, None)?;
                Ok(true)
            }
            (OnSpike::Rollback, Some(spike)) => {
                self.roll_back(spike, observer)?;
                Ok(false)
            }
        }
    }

    fn tell(&mut self, observer: &mut dyn Observer, spike: Spike, to: Option<u64>) -> Result<(), TrainError> {
        self.state.spikes += 1;
        let Spike { loss, mean, sigma } = spike;
        Ok(observer.event(&Event::Spike { step: self.state.step, loss, mean, sigma, rolled_back: to })?)
    }

    /// Back to the last checkpoint of `--save-every`, past the batches that were seen since. Checkpoints after it, of
    /// stops in between, are of a past that is no more.
    fn roll_back(&mut self, spike: Spike, observer: &mut dyn Observer) -> Result<(), TrainError> {
        let (anchor, rollbacks) = (self.state.anchor, self.state.rollbacks);
        if rollbacks == MOST_ROLLBACKS {
            return Err(TrainError::Spikes { step: self.state.step, loss: spike.loss, rollbacks, anchor });
        }
        self.prune(|step| step <= anchor)?;
        self.tell(observer, spike, Some(anchor))?;
        let path = self.folder.checkpoints().join(checkpoint::folder_name(anchor));
        let then: State = checkpoint::read_state(&path).map_err(ResumeError::from)?;
        checkpoint::load_folder(self.trainer.store(), &path)?;
        self.state = State {
            batches_skipped: self.state.batches_skipped + self.state.step - anchor,
            steps_skipped: self.state.steps_skipped,
            spikes: self.state.spikes,
            rollbacks: rollbacks + 1,
            ..then
        };
        self.saved = Some(anchor);
        Ok(())
    }

    fn evaluate_if_due(&mut self, observer: &mut dyn Observer) -> Result<(), TrainError> {
        let (step, every) = (self.state.step, self.config.eval_every);
        let due = every > 0 && (step.is_multiple_of(every) || step == self.config.steps);
        if let (true, Some(samples)) = (due, &mut self.samples) {
            samples.write(&mut self.trainer, self.folder, self.control.disk, step)?;
        }
        if !due || self.corpus.validation.is_empty() {
            return Ok(());
        }
        let (mut sum, mut count) = (0.0, 0.0);
        for batch in Batches::evaluation(&self.corpus.validation, self.shape, self.config.eval_batches) {
            sum += f64::from(self.trainer.evaluate(&[batch.into()])?);
            count += 1.0;
        }
        let val_loss = sum / count;
        self.state.val_loss = val_loss.is_finite().then_some(val_loss);
        observer.evaluation(step, val_loss)?;
        // A trainer allocates all it needs when it is made, so what is allocated now is the most there was of it; the
        // device's own peak may be that of the measurement before.
        let device_bytes = self.trainer.device().counters().allocated_bytes;
        Ok(observer.event(&Event::Memory { step, device_bytes, process_bytes: peaks::process_bytes() })?)
    }

    /// Writes a checkpoint of this state, then removes those that are not to be kept.
    fn save(&mut self, observer: &mut dyn Observer) -> Result<(), TrainError> {
        let (clock, step) = (Instant::now(), self.state.step);
        if let (true, Some(val_loss)) = (self.is_ranked(), self.state.val_loss)
            && self.state.best.is_none_or(|best| val_loss < best.val_loss)
        {
            self.state.best = Some(Best { step, val_loss });
        }
        observer.event(&Event::Saving)?;
        let (disk, folder) = (self.control.disk, self.folder.checkpoints());
        disk.create_folder(&folder).map_err(|source| WriteError { path: folder.clone(), source }).map_err(checked)?;
        let path = folder.join(checkpoint::folder_name(step));
        checkpoint::save_folder(self.trainer.store(), disk, &path, &self.state)?;
        self.saved = Some(step);
        self.prune_old()?;
        Ok(observer.event(&Event::Saved { step, path: &path, seconds: clock.elapsed().as_secs_f64() })?)
    }

    /// Whether the checkpoint of this step may be the best: evaluated, and not only here because the run was stopped.
    fn is_ranked(&self) -> bool {
        let (step, Config { eval_every, save_every, steps, .. }) = (self.state.step, self.config);
        let falls_on = |every: u64| every > 0 && step.is_multiple_of(every);
        step == *steps && *eval_every > 0 || falls_on(*eval_every) && falls_on(*save_every)
    }

    /// Keeps the newest, the best, and the one to roll back to. Newer ones than this state were damaged.
    fn prune_old(&self) -> Result<(), TrainError> {
        let steps = checkpoint::list(&self.folder.checkpoints())?.into_iter().map(|(step, _)| step);
        let mut newest: Vec<u64> = steps.filter(|step| *step <= self.state.step).collect();
        newest.drain(..newest.len().saturating_sub(self.config.keep as usize));
        let best = self.state.best.map(|best| best.step);
        let anchor = (self.config.on_spike == OnSpike::Rollback).then_some(self.state.anchor);
        self.prune(|step| newest.contains(&step) || best == Some(step) || anchor == Some(step))
    }

    fn prune(&self, keeps: impl Fn(u64) -> bool) -> Result<(), TrainError> {
        for (step, path) in checkpoint::list(&self.folder.checkpoints())? {
            if !keeps(step) {
                let removed = durable::remove_folder(self.control.disk, &path);
                removed.map_err(|source| WriteError { path, source }).map_err(checked)?;
            }
        }
        Ok(())
    }
}

/// What passed in a step of so many seconds.
fn traffic(stats: &Stats, seconds: f64) -> Traffic {
    let rate = |bytes: u64, busy: f64| if busy > 0.0 { bytes as f64 / busy } else { 0.0 };
    Traffic {
        seconds,
        bytes_read: stats.bytes_read,
        bytes_written: stats.bytes_written,
        read_bandwidth: rate(stats.bytes_read, stats.read_seconds),
        write_bandwidth: rate(stats.bytes_written, stats.write_seconds),
        read_wait: stats.read_wait_seconds,
        write_wait: stats.write_wait_seconds,
    }
}

fn checked(error: WriteError) -> checkpoint::CheckpointError {
    error.into()
}
