//! A run from its configuration to its last file: data, device, model and folder are joined, a `Session` does the steps.
//! It tells an [`Observer`] what happens; it must never know how that is shown.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use super::config::{Config, ConfigError, Home, WaferSpec};
use super::folder::{Folder, FolderError, Lock};
use super::generate::SamplingError;
use super::hugging_face::{HuggingFace, HuggingFaceError};
use super::needs::{self, NeedsError};
use super::peaks;
use super::resume::{self, ResumeError, State, Terms};
use super::samples::Samples;
use super::session::Session;
use super::step::{Setup, SetupError, Trainer};
use super::tiles;
use crate::data::{Batch, Corpus, DataError, Request, Shape, TokenizerKind};
use crate::device::{Device, DeviceError};
use crate::model::{self, Micro, ModelError, Table};
use crate::program::schedule::Schedule;
use crate::report::{Event, Finish, Observer, ReportError, Start, device};
use crate::store::checkpoint::{self, CheckpointError};
use crate::store::durable::{Disk, RealDisk};
use crate::store::{Archive, Placement, StoreError, disk};
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
    /// More memory or disk than there is.
    Needs(#[from] NeedsError),
    /// The store.
    Store(#[from] StoreError),
    /// A folder of Hugging Face.
    HuggingFace(#[from] HuggingFaceError),
    /// The checkpoint.
    Checkpoint(#[from] CheckpointError),
    /// A report.
    Report(#[from] ReportError),
    /// The next token.
    Sampling(#[from] SamplingError),
    /// A run that cannot go on.
    Resume(#[from] ResumeError),
    /// A loss that spikes again and again from one checkpoint on.
    #[error(
        "step {step}: loss {loss} is a spike again, after {rollbacks} rollbacks to step {anchor}; lower --lr, or use --on-spike report"
    )]
    Spikes {
        /// The step.
        step: u64,
        /// Its loss.
        loss: f64,
        /// Rollbacks so far.
        rollbacks: u64,
        /// The step of the checkpoint.
        anchor: u64,
    },
}

/// What a run left.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Folder of the run.
    pub folder: PathBuf,
    /// Steps done in all.
    pub step: u64,
    /// Whether it stopped before its last step, as it was told to.
    pub stopped: bool,
    /// Loss of the last step, in nats a token; NaN where it was not finite or there was no step.
    pub loss: f64,
    /// Last validation loss, if there was an evaluation.
    pub val_loss: Option<f64>,
    /// Steps skipped because something was not finite.
    pub skipped: u64,
    /// Wall time of the loop in seconds.
    pub seconds: f64,
    /// A word of the text that was trained on, to begin with; `None` where its start has none.
    pub word: Option<String>,
}

/// How a run is steered from outside: nothing in it can change a bit of a result.
#[derive(Clone, Copy)]
pub struct Control<'a> {
    /// Where it writes.
    pub disk: &'a dyn Disk,
    /// Once true, the run saves and stops at the end of the step.
    pub stop: &'a AtomicBool,
    /// Saves and stops after so many steps in all, even if more are configured.
    pub stop_after: Option<u64>,
    /// Tells of every step what ran in it. Each program is then waited for, which is slower.
    pub traced: bool,
}

impl Default for Control<'static> {
    fn default() -> Control<'static> {
        static NEVER: AtomicBool = AtomicBool::new(false);
        Control { disk: &RealDisk, stop: &NEVER, stop_after: None, traced: false }
    }
}

/// Trains as configured and leaves `config.toml`, the tokenizer, checkpoints and `model.safetensors` in the run folder.
///
/// # Errors
/// [`TrainError`]: one clear line each; what can be known beforehand is refused before the folder is made.
pub fn run(config: &Config, observer: &mut (dyn Observer + Send)) -> Result<Summary, TrainError> {
    start(config, Control::default(), observer)
}

/// The same, steered.
///
/// # Errors
/// As [`run`].
pub fn start(
    config: &Config,
    control: Control<'_>,
    observer: &mut (dyn Observer + Send),
) -> Result<Summary, TrainError> {
    go(&with_its_tokenizer(config)?, None, control, observer)
}

/// Goes on with the run in a folder from its newest whole checkpoint, so that every bit is that of a run which never
/// stopped. `config` is the folder's own, or differs from it in what changes no bit.
///
/// # Errors
/// As [`run`]; [`TrainError::Resume`] where the run cannot go on.
pub fn resume(
    folder: &Path,
    config: &Config,
    control: Control<'_>,
    observer: &mut (dyn Observer + Send),
) -> Result<Summary, TrainError> {
    go(config, Some(Folder::open(folder)?), control, observer)
}

fn go(
    config: &Config,
    old: Option<Folder>,
    control: Control<'_>,
    observer: &mut (dyn Observer + Send),
) -> Result<Summary, TrainError> {
    config.check()?;
    let old = old.map(|folder| folder.lock().map(|lock| (folder, lock))).transpose()?;
    let init = initial(config, old.as_ref().map(|(folder, _)| folder))?;
    let model = model_of(config, init.as_ref())?;
    let shape = config.shape(model.context)?;
    let corpus = Corpus::load(&request(config, old.as_ref().map(|(folder, _)| folder)), shape.seq_len + 1)?;
    let model = model.with_vocabulary(corpus.tokenizer.vocab_size())?;
    // Safety: the device does not leave this function, and all that gets it launches the programs of this crate alone,
    // through their own functions.
    let device = fitted(unsafe { Device::open_trusted(&config.device, config.threads) }?, config, control);
    let terms = Terms::new(config, &model, &corpus, &device);
    let resumed = old.is_some();
    let wafer = config.wafer.wafer(config.defects.as_ref(), &model, &shape)?;
    let told = told(config, &device, &wafer, &model, &shape);
    let setup = setup(config, model.clone(), shape, wafer, &device);
    let needs = needs::check(config, &setup, &device, resumed)?;
    tiles::check(config, &setup, &device)?;
    let peak_flops = device.run(|| peaks::flops(&device))?;
    let (mut trainer, (folder, _lock)) = place(config, setup, &device, old, control.disk)?;
    if let Some(init) = &init {
        device.run(|| init.load(trainer.store()))?;
    }
    let samples = Samples::new(config, &trainer, &corpus.tokenizer)?;
    for path in [folder.path(), &folder.checkpoints(), &folder.samples()] {
        checkpoint::clear_litter(control.disk, path)?;
    }
    let tell = |reason: &str| Ok::<_, TrainError>(observer.event(&Event::Damaged { reason })?);
    let (state, interrupted) = match trainer.opened() {
        Some(opened) => (State::kept(&folder, terms, opened.state)?, opened.interrupted),
        None if resumed => (device.run(|| State::newest(&folder, terms, trainer.store(), tell))?, None),
        None => (State::new(terms), None),
    };
    folder.write_model(control.disk, &model)?;
    folder.write_tokenizer(control.disk, &corpus.tokenizer)?;
    let step_tokens = (shape.batch_size * shape.seq_len * shape.grad_accum) as u64;
    let start = Start {
        device: &told,
        model: &model.name,
        parameters: Table::new(&model).count(),
        train_tokens: corpus.train.len() as u64,
        validation_tokens: corpus.validation.len() as u64,
        vocab_size: model.vocab_size,
        steps: config.steps,
        step_tokens,
        folder: folder.path(),
        resumed: resumed.then_some(state.step),
        bytes_per_token: bytes_per_token(&corpus),
        step_flops: peaks::step_flops(&model, &shape),
        peak_flops,
    };
    write_about(&folder, control.disk, &start, &device, &state)?;
    observer.started(&start)?;
    observer.event(&Event::Needs(needs.told(config, start.step_flops / peak_flops, folder.path())))?;
    let before = state.step;
    let mut session =
        Session::new(config, control, shape, &corpus, trainer, samples, &folder, state, resumed, interrupted);
    let summary = device.run(|| session.run(observer))?;
    if summary.stopped {
        observer.event(&Event::Stopped { step: summary.step, steps: config.steps, folder: folder.path() })?;
    }
    let (steps, seconds) = (summary.step.saturating_sub(before), summary.seconds);
    observer.finished(&Finish { steps, tokens: steps * step_tokens, seconds, skipped: summary.skipped })?;
    Ok(summary)
}

/// The device with tiles of the SRAM that is asked for, and a ledger where the run is traced.
fn fitted(device: Device, config: &Config, control: Control<'_>) -> Device {
    let sram = config.wafer.sram(device.limits());
    let device = device.with_tile_sram(sram);
    if control.traced { device.with_ledger() } else { device }
}

/// The device in one line and, where they are played one by one, its tiles.
fn told(config: &Config, device: &Device, wafer: &Wafer, model: &model::Config, shape: &Shape) -> String {
    match config.schedule {
        Schedule::Fused => device::line(device),
        Schedule::Superstep => format!("{}; {}", device::line(device), WaferSpec::told(wafer, model, shape)),
    }
}

/// The configuration with what the folder of weights that it begins with has to say: its tokenizer, where none was chosen. Any
/// other would make noise of the weights.
fn with_its_tokenizer(config: &Config) -> Result<Config, ConfigError> {
    let (Some(folder), None) = (&config.init, &config.tokenizer) else { return Ok(config.clone()) };
    let file = folder.join("tokenizer.json");
    match file.is_file() || !folder.join("config.json").is_file() {
        true => Ok(Config { tokenizer: Some(TokenizerKind::File(file)), ..config.clone() }),
        false => Err(ConfigError::Value {
            flag: "init",
            value: folder.display().to_string(),
            cure: "there is no tokenizer.json, so say what a token is; add --tokenizer".into(),
        }),
    }
}

/// What is asked of the data. A run that goes on has its tokenizer in its folder, and the file that it began with may be gone.
fn request(config: &Config, old: Option<&Folder>) -> Request {
    let mut request = config.request();
    if let (Some(folder), TokenizerKind::File(file)) = (old, &mut request.plan.tokenizer)
        && !file.is_file()
    {
        *file = folder.tokenizer();
    }
    request
}

/// The model of a run: that of the folder it begins with, or else the one that is named; the vocabulary may be left open.
pub(super) fn model_of(config: &Config, init: Option<&HuggingFace>) -> Result<model::Config, TrainError> {
    let model = init.map_or_else(|| read_model(&config.model), |init| Ok(init.config().clone()))?;
    Ok(model::Config { dropout: config.dropout.map_or(model.dropout, |rate| rate as f32), ..model })
}

/// Where the weights come from that a run begins with, where they are not its own. A run that goes on has them in its folder,
/// and where they came from may be gone; one that was killed before its first checkpoint begins again.
fn initial(config: &Config, old: Option<&Folder>) -> Result<Option<HuggingFace>, HuggingFaceError> {
    let begins = old.is_none_or(|folder| !has_checkpoint(config, folder));
    config.init.as_deref().filter(|_| begins).map(HuggingFace::open).transpose()
}

/// Whether a run has come as far as a checkpoint, or the store that is one.
fn has_checkpoint(config: &Config, folder: &Folder) -> bool {
    match config.store.placement() {
        Placement::Disk => disk::is_committed(&store_folder(config, folder.path())),
        // What cannot be listed is said where it is read.
        _ => checkpoint::list(&folder.checkpoints()).map_or(true, |found| !found.is_empty()),
    }
}

/// A trainer, and the folder that its run has.
fn place(
    config: &Config,
    mut setup: Setup,
    device: &Device,
    old: Option<(Folder, Lock)>,
    disk: &dyn Disk,
) -> Result<(Trainer, (Folder, Lock)), TrainError> {
    let name = setup.model.name.clone();
    let claim = || old.map_or_else(|| Folder::claim(config, &name, disk), Ok);
    if setup.placement != Placement::Disk {
        let trainer = Trainer::new(device.clone(), setup)?;
        return Ok((trainer, claim()?));
    }
    // What lies in the folder of the run, or beside it, needs the folder first.
    let claimed = claim()?;
    setup.archive = Some(archive(config, &claimed.0, &setup, disk));
    Ok((Trainer::new(device.clone(), setup)?, claimed))
}

/// Tokens of the validation text whose bytes are counted.
const COUNTED: usize = 1 << 20;

/// Bytes that a token of the validation text stands for; `None` where its text cannot be had back.
pub(super) fn bytes_per_token(corpus: &Corpus) -> Option<f64> {
    if corpus.tokenizer.takes_bytes() {
        return Some(1.0);
    }
    let tokens = corpus.validation.split_at(corpus.validation.len().min(COUNTED)).0.to_vec();
    let text = corpus.tokenizer.decode(&tokens).ok()?;
    (!tokens.is_empty() && !text.contains(char::REPLACEMENT_CHARACTER)).then(|| text.len() as f64 / tokens.len() as f64)
}

/// The first word at the start of the text that is trained on: letters that every shell leaves as they are.
pub(super) fn first_word(corpus: &Corpus) -> Option<String> {
    const LOOKED_AT: usize = 1000;
    let tokens = corpus.train.split_at(corpus.train.len().min(LOOKED_AT)).0.to_vec();
    let text = corpus.tokenizer.decode(&tokens).ok()?;
    text.split(|c: char| !c.is_ascii_alphabetic()).find(|word| word.len() > 1).map(str::to_owned)
}

/// Adds to `run.json` what the run is on now.
fn write_about(
    folder: &Folder,
    disk: &dyn Disk,
    start: &Start<'_>,
    device: &Device,
    state: &State,
) -> Result<(), TrainError> {
    let path = folder.about();
    let mut entries: Vec<serde_json::Value> = match std::fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text).map_err(|e| CheckpointError::Content {
            path,
            reason: format!("not what a run writes there: {e}; move the file away"),
        })?,
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(source) => return Err(CheckpointError::Read { path, source }.into()),
    };
    entries.push(serde_json::json!({
        "gaufre": env!("CARGO_PKG_VERSION"),
        "system": format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        "after_step": state.step,
        "model": start.model,
        "parameters": start.parameters,
        "device": start.device,
        "adapter": device.name(),
        "driver": resume::driver(device),
        "data": state.terms.data,
        "step_flops": start.step_flops,
        "peak_flops": start.peak_flops,
        "variants": state.terms.variants,
    }));
    let text = serde_json::to_string_pretty(&entries).expect("JSON values are written as JSON");
    Ok(folder.write(disk, "run.json", text.as_bytes())?)
}

impl From<Batch> for Micro {
    fn from(batch: Batch) -> Micro {
        Micro { inputs: batch.inputs, targets: batch.targets }
    }
}

impl From<model::Shape> for Shape {
    fn from(shape: model::Shape) -> Shape {
        Shape { batch_size: shape.batch, seq_len: shape.seq_len, grad_accum: shape.micro_batches }
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

/// What a trainer is made of, but where its store lies.
pub(super) fn setup(config: &Config, model: model::Config, shape: Shape, wafer: Wafer, device: &Device) -> Setup {
    Setup {
        model,
        shape: model::Shape { batch: shape.batch_size, seq_len: shape.seq_len, micro_batches: shape.grad_accum },
        seed: config.seed,
        schedule: config.schedule,
        wafer,
        routing: config.route,
        check_messages: config.check_messages,
        placement: config.store.placement(),
        archive: None,
        device_memory: config.device_memory,
        spare: needs::spare(config, device),
        recompute: config.recompute,
        spill: config.spill,
        param_dtype: config.param_dtype,
        master: config.master_weights,
        optimizer: config.optimizer(),
        dry: config.dry_update,
    }
}

/// Where the store of a run lies on a disk: see [`Home::Disk`].
pub(super) fn store_folder(config: &Config, folder: &Path) -> PathBuf {
    match &config.store {
        Home::Disk(Some(path)) => path.clone(),
        _ => folder.join("store"),
    }
}

fn archive(config: &Config, folder: &Folder, setup: &Setup, disk: &dyn Disk) -> Archive {
    Archive {
        folder: store_folder(config, folder.path()),
        in_place: config.in_place,
        read_only: false,
        stream_bytes: config.stream_memory,
        scratch_bytes: needs::scratch_bytes(setup, config.in_place),
        gradients_wait: needs::gradients_wait(setup),
        dry: setup.dry,
        spill_bytes: needs::spill_bytes(setup),
        disk: disk.share(),
    }
}
