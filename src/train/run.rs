//! The loop of a run: batches in, steps, evaluations, a checkpoint at the end. It tells an [`Observer`] what happens; it
//! must never know how that is shown.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::config::{Config, ConfigError, Grid};
use super::folder::{Folder, FolderError};
use super::generate::SamplingError;
use super::rates::Rates;
use super::step::{Optimizer, Setup, SetupError, Trainer};
use crate::data::{Batch, Batches, Corpus, DataError, Shape, Tokens};
use crate::device::{Device, DeviceError};
use crate::model::{self, Micro, ModelError, Table};
use crate::report::{Finish, Observer, ReportError, Start, StepLine, device};
use crate::store::checkpoint::{self, CheckpointError};
use crate::store::{Role, StoreError};
use crate::wafer::Wafer;

/// Why a run ended early, or never began.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub enum TrainError {
    /// A value of the configuration.
    Config(#[from] ConfigError),
    /// The run folder.
    Folder(#[from] FolderError),
    /// The data.
    Data(#[from] DataError),
    /// The model.
    Model(#[from] ModelError),
    /// A file that names a model could not be read.
    #[error("model {}: {source}", path.display())]
    ModelFile {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The device.
    Device(#[from] DeviceError),
    /// What a step needs.
    Setup(#[from] SetupError),
    /// The store.
    Store(#[from] StoreError),
    /// The checkpoint.
    Checkpoint(#[from] CheckpointError),
    /// A report.
    Report(#[from] ReportError),
    /// The next token.
    Sampling(#[from] SamplingError),
}

/// What a run left.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Folder of the run.
    pub folder: PathBuf,
    /// Loss of the last step, in nats a token.
    pub loss: f64,
    /// Last validation loss, if there was an evaluation.
    pub val_loss: Option<f64>,
    /// Wall time of the loop in seconds.
    pub seconds: f64,
}

/// Trains as configured and leaves `config.toml`, the tokenizer and `model.safetensors` in the run folder.
///
/// # Errors
/// [`TrainError`]: one clear line each; what can be known beforehand is refused before the folder is made.
pub fn run(config: &Config, observer: &mut (dyn Observer + Send)) -> Result<Summary, TrainError> {
    config.check()?;
    let model = read_model(&config.model)?;
    let shape = config.shape(model.context)?;
    let corpus = Corpus::load(&config.request(), shape.seq_len + 1)?;
    let model = model.with_vocabulary(corpus.tokenizer.vocab_size())?;
    let device = Device::open(&config.device, config.threads)?;
    let parameters = Table::new(&model).count();
    let mut trainer = Trainer::new(device.clone(), setup(config, model.clone(), shape))?;
    let folder = Folder::claim(config, &model.name)?;
    folder.write_tokenizer(&corpus.tokenizer)?;
    observer.started(&Start {
        device: &device::line(&device),
        model: &model.name,
        parameters,
        train_tokens: corpus.train.len() as u64,
        validation_tokens: corpus.validation.len() as u64,
        vocab_size: model.vocab_size,
        steps: config.steps,
        step_tokens: (shape.batch_size * shape.seq_len * shape.grad_accum) as u64,
        folder: folder.path(),
    })?;
    let summary = device.run(|| -> Result<Summary, TrainError> {
        let summary = steps(config, shape, &corpus, &mut trainer, &folder, observer)?;
        let about = [("model", model.name.clone()), ("steps", config.steps.to_string())];
        let about: HashMap<String, String> = about.into_iter().map(|(k, v)| (k.to_string(), v)).collect();
        checkpoint::save(trainer.store(), &folder.checkpoint(), about)?;
        Ok(summary)
    })?;
    observer.finished(&Finish {
        steps: config.steps,
        tokens: config.steps * (shape.batch_size * shape.seq_len * shape.grad_accum) as u64,
        seconds: summary.seconds,
    })?;
    Ok(summary)
}

fn steps(
    config: &Config,
    shape: Shape,
    corpus: &Corpus,
    trainer: &mut Trainer,
    folder: &Folder,
    observer: &mut (dyn Observer + Send),
) -> Result<Summary, TrainError> {
    let batches = Batches::new(&corpus.train, shape, config.order, config.seed);
    let step_tokens = (shape.batch_size * shape.seq_len * shape.grad_accum) as u64;
    let rates = Rates::new(config);
    let begun = Instant::now();
    let mut summary = Summary { folder: folder.path().into(), loss: f64::NAN, val_loss: None, seconds: 0.0 };
    for step in 0..config.steps {
        let clock = Instant::now();
        let micro: Vec<Micro> = (0..shape.grad_accum).map(|m| batches.batch(step, m).into()).collect();
        let lr = rates.lr(step);
        let result = trainer.step(step + 1, lr as f32, &micro)?;
        summary.loss = result.loss as f64;
        observer.step(&StepLine {
            step: step + 1,
            loss: summary.loss,
            grad_norm: result.grad_norm as f64,
            lr,
            tokens: (step + 1) * step_tokens,
            tokens_per_second: step_tokens as f64 / clock.elapsed().as_secs_f64(),
            skipped: result.skipped,
        })?;
        let due = config.eval_every > 0 && ((step + 1) % config.eval_every == 0 || step + 1 == config.steps);
        if due && !corpus.validation.is_empty() {
            let loss = evaluate(trainer, shape, &corpus.validation, config.eval_batches)?;
            summary.val_loss = Some(loss);
            observer.evaluation(step + 1, loss)?;
        }
    }
    summary.seconds = begun.elapsed().as_secs_f64();
    Ok(summary)
}

/// Mean loss over at most `most` micro-batches of the validation text, and at most one pass.
fn evaluate(trainer: &mut Trainer, shape: Shape, tokens: &Tokens, most: usize) -> Result<f64, TrainError> {
    let (mut sum, mut count) = (0.0, 0.0);
    for batch in Batches::evaluation(tokens, shape, most) {
        sum += trainer.evaluate(&[batch.into()])? as f64;
        count += 1.0;
    }
    Ok(sum / count)
}

impl From<Batch> for Micro {
    fn from(batch: Batch) -> Micro {
        Micro { inputs: batch.inputs, targets: batch.targets }
    }
}

/// A preset, or the model of a TOML file.
pub fn read_model(name: &str) -> Result<model::Config, TrainError> {
    let path = Path::new(name);
    if path.extension().is_none_or(|e| e != "toml") {
        return Ok(model::preset(name)?);
    }
    let text = std::fs::read_to_string(path).map_err(|source| TrainError::ModelFile { path: path.into(), source })?;
    let stem = path.file_stem().map_or(name.into(), |s| s.to_string_lossy().into_owned());
    Ok(model::Config::parse(&stem, &text)?)
}

fn setup(config: &Config, model: model::Config, shape: Shape) -> Setup {
    let Grid { width, height } = config.wafer;
    Setup {
        model,
        shape: model::Shape { batch: shape.batch_size, seq_len: shape.seq_len, micro_batches: shape.grad_accum },
        seed: config.seed,
        schedule: config.schedule,
        wafer: Wafer::new(width, height),
        placement: config.store,
        device_memory: config.device_memory,
        recompute: config.recompute,
        optimizer: Optimizer {
            beta1: config.beta1 as f32,
            beta2: config.beta2 as f32,
            eps: config.adam_eps as f32,
            weight_decay: config.weight_decay as f32,
            grad_clip: config.grad_clip as f32,
        },
    }
}

/// Hash of all weights of a trainer (FNV-1a over their bits): equal runs have equal hashes.
pub fn weights_hash(trainer: &mut Trainer) -> Result<u64, StoreError> {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for tensor in 0..trainer.store().tensors().len() {
        for value in trainer.store().read(tensor, Role::Weight)? {
            for byte in value.to_bits().to_le_bytes() {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
    }
    Ok(hash)
}
