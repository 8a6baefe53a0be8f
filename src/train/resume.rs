//! What a checkpoint says beside its tensors: how far the run is, and the terms that its numbers hold under. A run goes on
//! under the same terms or not at all. It must never know how a step is computed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use super::config::Config;
use super::folder::Folder;
use super::guard::{Guard, OnSpike};
use crate::data::Corpus;
use crate::device::{Class, Device, list};
use crate::model;
use crate::program;
use crate::report::device::simd;
use crate::store::Store;
use crate::store::checkpoint::{self, CheckpointError};

/// Why a run cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    /// A setting differs that the numbers depend on.
    #[error("--resume {}: {key} was {then} and is {now}, which would change the results; {cure}", run.display())]
    Differs {
        /// The run.
        run: PathBuf,
        /// What differs: a flag, or what it stands for.
        key: String,
        /// In the checkpoint.
        then: String,
        /// Now.
        now: String,
        /// What would do.
        cure: &'static str,
    },
    /// There are checkpoints, and none is whole.
    #[error("--resume {}: no checkpoint is whole ({reason}); start a new run", run.display())]
    NoneWhole {
        /// The run.
        run: PathBuf,
        /// What is wrong with the oldest.
        reason: String,
    },
    /// The checkpoint could not be read, or is of another model.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

/// How far a run is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Steps done.
    pub step: u64,
    /// Steps of batches that were passed over: step `n`, from 0, takes the batches of `n + batches_skipped`.
    pub batches_skipped: u64,
    /// Steps skipped because something was not finite.
    pub steps_skipped: u64,
    /// Spikes of the loss.
    pub spikes: u64,
    /// The last checkpoint of `--save-every`: where a rollback goes. Where a run was stopped cannot change it.
    pub anchor: u64,
    /// Rollbacks to it.
    pub rollbacks: u64,
    /// The losses that the next is compared with.
    pub guard: Guard,
    /// Loss of the last step, where it is finite.
    pub loss: Option<f64>,
    /// The last validation loss.
    pub val_loss: Option<f64>,
    /// The checkpoint of the least validation loss.
    pub best: Option<Best>,
    /// What all of it holds under.
    pub terms: Terms,
}

/// A checkpoint and its validation loss.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Steps done.
    pub step: u64,
    /// Validation loss, in nats a token.
    pub val_loss: f64,
}

/// Everything that the bits of a run depend on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Terms {
    /// The settings of the configuration that numbers depend on.
    pub configuration: BTreeMap<String, serde_json::Value>,
    /// The model, all its numbers.
    pub model: serde_json::Value,
    /// Hash and size of the tokens.
    pub data: String,
    /// The device and its driver.
    pub device: String,
    /// The variant of each program.
    pub variants: BTreeMap<String, String>,
}

/// Settings that change no bit of a step, or that [`Terms`] hold in another form.
const FREE: [&str; 25] = [
    "cache",
    "check_messages",
    "data",
    "defects",
    "device",
    "device_memory",
    "eval_batches",
    "eval_every",
    "field",
    "in_place",
    "keep",
    "model",
    "out",
    "recompute",
    "route",
    "sample_tokens",
    "save_every",
    "schedule",
    "separator",
    "spill",
    "store",
    "stream_memory",
    "threads",
    "val_data",
    "wafer",
];

impl Terms {
    /// The terms of a run.
    pub fn new(config: &Config, model: &model::Config, corpus: &Corpus, device: &Device) -> Terms {
        // An empty table would agree with everything: what cannot be written down must not pass for terms.
        let Ok(serde_json::Value::Object(all)) = serde_json::to_value(config) else {
            panic!("a configuration is a table of JSON values")
        };
        // A rollback goes to a checkpoint, so that there the steps between them matter.
        let free = |key: &str| match key {
            "save_every" => config.on_spike != OnSpike::Rollback,
            _ => FREE.contains(&key),
        };
        Terms {
            configuration: all.into_iter().filter(|(key, _)| !free(key)).collect(),
            model: serde_json::to_value(model).expect("a model is a table of JSON values"),
            data: fingerprint(corpus),
            device: identity(device),
            variants: variants(device.class()),
        }
    }

    /// Whether a run under the terms `then` may go on under these.
    ///
    /// # Errors
    /// [`ResumeError::Differs`] names the first that differs.
    fn check(&self, then: &Terms, run: &Folder) -> Result<(), ResumeError> {
        let differs = |key: String, then: String, now: String, cure| {
            Err(ResumeError::Differs { run: run.path().into(), key, then, now, cure })
        };
        if let Some((key, then, now)) = first_difference(&then.configuration, &self.configuration) {
            let flag = format!("--{}", key.replace('_', "-"));
            return differs(flag, then, now, "leave the flag out, or start a new run");
        }
        if self.data != then.data {
            let cure = "give the text that the run began with, or start a new run";
            return differs("--data".into(), then.data.clone(), self.data.clone(), cure);
        }
        if self.model != then.model {
            let cure = "go on with the model that the run began with, or start a new run";
            return differs("--model".into(), then.model.to_string(), self.model.to_string(), cure);
        }
        if self.device != then.device {
            let cure = "go on where it began, or start a new run";
            return differs("--device".into(), then.device.clone(), self.device.clone(), cure);
        }
        // Programs that came or went since then were no part of the run: those that it launched are still here.
        let known = |these: &BTreeMap<String, String>, those: &BTreeMap<String, String>| {
            these.iter().filter(|(name, _)| those.contains_key(*name)).map(|(a, b)| (a.clone(), b.clone())).collect()
        };
        let (then, now) = (known(&then.variants, &self.variants), known(&self.variants, &then.variants));
        if let Some((program, then, now)) = first_difference(&then, &now) {
            let cure = "go on with the gaufre that began it, or start a new run";
            return differs(format!("the variant of program {program}"), then, now, cure);
        }
        Ok(())
    }
}

/// The first key of two maps that does not stand in both with one value, and what stands there.
fn first_difference<V: PartialEq + ToString>(
    then: &BTreeMap<String, V>,
    now: &BTreeMap<String, V>,
) -> Option<(String, String, String)> {
    let said = |value: Option<&V>| value.map_or("not set".into(), ToString::to_string);
    let mut keys = then.keys().chain(now.keys());
    let key = keys.find(|key| then.get(*key) != now.get(*key))?;
    Some((key.clone(), said(then.get(key)), said(now.get(key))))
}

/// Hash and size of the tokens of a corpus.
fn fingerprint(corpus: &Corpus) -> String {
    /// Tokens that are read at once.
    const TOGETHER: usize = 1 << 20;
    let mut hash = Xxh3::new();
    for tokens in [&corpus.train, &corpus.validation] {
        hash.update(&(tokens.len() as u64).to_le_bytes());
        let mut some = Vec::new();
        for start in (0..tokens.len()).step_by(TOGETHER) {
            some.clear();
            tokens.extend(start, TOGETHER.min(tokens.len() - start), &mut some);
            hash.update(bytemuck::cast_slice(&some));
        }
    }
    let (train, validation) = (corpus.train.len(), corpus.validation.len());
    format!("{train} and {validation} tokens (xxh3-128:{:032x})", hash.digest128())
}

/// The device as far as its arithmetic goes: the number of threads is no part of it, the width of vectors is.
pub fn identity(device: &Device) -> String {
    let name = device.name();
    match device.class() {
        Class::Native => format!("{}, {}", name.split(" (").next().unwrap_or(name), simd()),
        _ => format!("{name}, {}", driver(device)),
    }
}

/// The driver of an adapter; empty for native devices.
pub fn driver(device: &Device) -> String {
    let adapters = if device.class() == Class::Native { Vec::new() } else { list() };
    let titled = |a: &crate::device::AdapterInfo| format!("{} ({}, {})", a.name, a.kind, a.backend) == device.name();
    adapters.into_iter().find(titled).map_or(String::new(), |a| a.driver)
}

/// The variant that a device of a class takes of each program.
pub fn variants(class: Class) -> BTreeMap<String, String> {
    let name = |p: &&program::Program| (p.kernel.name.to_string(), p.kernel.variant(class).name.to_string());
    program::all().iter().map(name).collect()
}

impl State {
    /// The state before the first step.
    pub fn new(terms: Terms) -> State {
        State {
            step: 0,
            batches_skipped: 0,
            steps_skipped: 0,
            spikes: 0,
            anchor: 0,
            rollbacks: 0,
            guard: Guard::default(),
            loss: None,
            val_loss: None,
            best: None,
            terms,
        }
    }

    /// The state that a store on a disk keeps; the state before the first step where it keeps none yet.
    ///
    /// # Errors
    /// [`ResumeError`].
    pub fn kept(folder: &Folder, terms: Terms, kept: Option<serde_json::Value>) -> Result<State, ResumeError> {
        let Some(kept) = kept else { return Ok(State::new(terms)) };
        let state: State = serde_json::from_value(kept).map_err(|e| {
            let path = folder.path().into();
            CheckpointError::Content { path, reason: format!("its store is of another gaufre: {e}") }
        })?;
        terms.check(&state.terms, folder)?;
        Ok(State { terms, ..state })
    }

    /// Puts the newest whole checkpoint of a run into a store and gives its state; the state before the first step
    /// where there is no checkpoint yet. What is wrong with newer ones is told to `damaged`.
    ///
    /// # Errors
    /// [`ResumeError`].
    pub fn newest<E: From<ResumeError>>(
        folder: &Folder,
        terms: Terms,
        store: &mut Store,
        mut damaged: impl FnMut(&str) -> Result<(), E>,
    ) -> Result<State, E> {
        let checkpoints = checkpoint::list(&folder.checkpoints()).map_err(ResumeError::from)?;
        let mut reason: Option<String> = None;
        for (_, path) in checkpoints.into_iter().rev() {
            if let Some(newer) = reason.take() {
                damaged(&newer)?;
            }
            let found = checkpoint::read_state(&path).map_err(ResumeError::from).and_then(|state: State| {
                terms.check(&state.terms, folder)?;
                checkpoint::load_folder(store, &path)?;
                Ok(state)
            });
            match found {
                Ok(state) => return Ok(State { terms, ..state }),
                Err(ResumeError::Checkpoint(error)) if error.is_damage() => reason = Some(error.to_string()),
                Err(error) => return Err(error.into()),
            }
        }
        match reason {
            Some(reason) => Err(ResumeError::NoneWhole { run: folder.path().into(), reason }.into()),
            None => Ok(State::new(terms)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(variants: &[(&str, &str)]) -> Terms {
        Terms {
            configuration: BTreeMap::new(),
            model: serde_json::Value::Null,
            data: String::new(),
            device: String::new(),
            variants: variants.iter().map(|(name, variant)| (name.to_string(), variant.to_string())).collect(),
        }
    }

    #[test]
    fn a_program_that_another_gaufre_has_is_no_part_of_a_run_and_another_variant_is() {
        let path = tempfile::tempdir().unwrap();
        let config = Config { out: Some(path.path().into()), ..Config::default() };
        let (folder, _lock) = Folder::claim(&config, "a", &crate::store::durable::RealDisk).unwrap();
        let then = terms(&[("matmul", "8x8"), ("gelu", "run256")]);
        assert!(terms(&[("matmul", "8x8"), ("rotary", "rows")]).check(&then, &folder).is_ok());
        let error = terms(&[("matmul", "4x4"), ("rotary", "rows")]).check(&then, &folder).unwrap_err().to_string();
        assert!(error.contains("the variant of program matmul was 8x8 and is 4x4"), "{error}");
    }
}
