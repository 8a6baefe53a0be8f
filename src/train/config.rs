//! The configuration of a run: the one table of what a person may ask for. A field here is a flag of `gaufre train`, a key
//! of `config.toml` and a default at once. It checks what numbers alone can tell; what a model, a device or the data think
//! of them is theirs.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::guard::OnSpike;
use super::optimizer::{Clip, Optimizer, Rule, StateDtype};
use super::rates::LrSchedule;
pub use super::tiles::{Flaws, Size, WaferSpec};
pub use super::values::Home;
use super::values::{MOST, bytes, bytes_of_toml, maybe_bytes_of_toml, named, whole};
use crate::data::{Order, Plan, Request, Shape, TokenizerKind};
use crate::model::{Recompute, nearest};
use crate::program::schedule::{Routing, Schedule};
use crate::store::{Format, Spill};

/// A configuration. `Config::default()` has the defaults of the command line, and no data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Preset (see models/) or TOML file of the model
    #[arg(long, value_name = "NAME|FILE", default_value = "demo")]
    pub model: String,
    /// Folder of a model as Hugging Face's transformers keeps it, to go on from
    #[arg(long, value_name = "FOLDER", conflicts_with = "model")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    /// What to train on: text, folders, .jsonl, .bin, or one folder of `gaufre prepare` [default: this program's source]
    #[arg(long, value_name = "PATH", num_args = 1..)]
    pub data: Vec<PathBuf>,
    /// What to validate on, of the same kinds but for prepared data [default: see --val-split]
    #[arg(long, value_name = "PATH", num_args = 1..)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub val_data: Vec<PathBuf>,
    /// What a token is [default: char, or what the data was prepared with; with --init, the folder's tokenizer.json]
    #[arg(long, value_name = "byte|char|FILE.json")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<TokenizerKind>,
    /// Share of the tokens, at their end, kept for validation [default: 0.1; of .bin files 0]
    #[arg(long, value_name = "SHARE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub val_split: Option<f64>,
    /// Field of .jsonl files that holds the text
    #[arg(long, value_name = "NAME", default_value = "text")]
    pub field: String,
    /// Text or special token between two documents [default: <|endoftext|> where the tokenizer has it, else nothing]
    #[arg(long, value_name = "TEXT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub separator: Option<String>,
    /// Folder that keeps text that was tokenised, for later runs [default: gaufre-cache, beside the run]
    #[arg(long, value_name = "FOLDER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
    /// Order in which the windows of the text are seen
    #[arg(long, value_name = "shuffled|sequential", default_value = "shuffled", value_parser = named::<Order>)]
    pub order: Order,
    /// auto, host, gpu, gpu:NAME, software or oracle (see `gaufre devices`)
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Threads of a native device; 0: all cores
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = whole::<usize>)]
    pub threads: usize,
    /// How the tiles are run; both give equal bits
    #[arg(long, value_name = "fused|superstep", default_value = "fused", value_parser = named::<Schedule>)]
    pub schedule: Schedule,
    /// Tiles of the wafer: as the work has blocks, those of a machine, or width x height; behind a colon, bytes of a tile's SRAM
    #[arg(long, value_name = "auto|wse1|wse2|wse3|WxH[:SRAM]", default_value = "auto")]
    pub wafer: WaferSpec,
    /// Dead tiles and links: a probability and a seed, or a file with `tile X Y` or `link X Y X Y` a line
    #[arg(long, value_name = "RATE:SEED|FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub defects: Option<Flaws>,
    /// How products go over the wafer in supersteps; both give equal bits
    #[arg(long, value_name = "broadcast|weight-stream", default_value = "broadcast", value_parser = named::<Routing>)]
    pub route: Routing,
    /// In supersteps, hold every message against its number and checksum at every hop
    #[arg(long)]
    pub check_messages: bool,
    /// Where the parameters live; all give equal bits
    #[arg(long, value_name = "resident|ram|disk|disk:FOLDER", default_value = "resident")]
    pub store: Home,
    /// On a disk: one copy of the parameters, replaced through a journal, where two do not fit
    #[arg(long)]
    pub in_place: bool,
    /// On a disk: memory for what is read ahead, and as much for what waits to be written
    #[arg(long, value_name = "BYTES", default_value = "1GiB", value_parser = bytes)]
    #[serde(deserialize_with = "bytes_of_toml")]
    pub stream_memory: u64,
    /// Most memory to use on the device, as in 512MiB, 2GB or plain bytes [default: no bound; on the host with --store disk
    /// half of the free memory is for panels]
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "maybe_bytes_of_toml")]
    pub device_memory: Option<u64>,
    /// What backward computes again rather than keeps; all give equal bits
    #[arg(long, value_name = "none|layer|auto", default_value = "auto", value_parser = named::<Recompute>)]
    pub recompute: Recompute,
    /// Where layer inputs wait for the backward pass; all give equal bits [default: on the device while they fit]
    #[arg(long, value_name = "none|ram|disk", value_parser = named::<Spill>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spill: Option<Spill>,
    /// How parameters are kept; bf16 ones are rounded stochastically after each step
    #[arg(long, value_name = "f32|bf16", default_value = "f32", value_parser = named::<Format>)]
    pub param_dtype: Format,
    /// With --param-dtype bf16: the optimiser moves an f32 copy, which is rounded
    #[arg(long)]
    pub master_weights: bool,
    /// Steps of the optimiser
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = whole::<u64>)]
    pub steps: u64,
    /// Sequences of a micro-batch
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = whole::<usize>)]
    pub batch_size: usize,
    /// Tokens of a sequence [default: the context of the model]
    #[arg(long, value_name = "N", value_parser = whole::<usize>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq_len: Option<usize>,
    /// Micro-batches of a step
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = whole::<usize>)]
    pub grad_accum: usize,
    /// Learning rate after the warm-up
    #[arg(long, default_value_t = 1e-3)]
    pub lr: f64,
    /// Learning rate at the end [default: a tenth of --lr]
    #[arg(long, value_name = "LR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_lr: Option<f64>,
    /// Steps in which the learning rate rises [default: a tenth of --steps, at most 100]
    #[arg(long, value_name = "N", value_parser = whole::<u64>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_steps: Option<u64>,
    /// How the learning rate falls
    #[arg(long, value_name = "cosine|linear|constant", default_value = "cosine", value_parser = named::<LrSchedule>)]
    pub lr_schedule: LrSchedule,
    /// Rule that turns gradients into updates
    #[arg(long, value_name = "adamw|adafactor|sgd", default_value = "adamw", value_parser = named::<Algorithm>)]
    pub optimizer: Algorithm,
    /// How AdamW's and SGD's states are kept: q8 is 8 bits, block by block
    #[arg(long, value_name = "f32|bf16|q8", default_value = "f32", value_parser = named::<StateDtype>)]
    pub state_dtype: StateDtype,
    /// AdamW: decay of the first moment
    #[arg(long, default_value_t = 0.9)]
    pub beta1: f64,
    /// AdamW: decay of the second moment
    #[arg(long, default_value_t = 0.95)]
    pub beta2: f64,
    /// AdamW: what is added to the root of the second moment
    #[arg(long, value_name = "EPS", default_value_t = 1e-8)]
    pub adam_eps: f64,
    /// SGD: what is kept of the momentum
    #[arg(long, default_value_t = 0.9)]
    pub momentum: f64,
    /// Decay of the parameters of two or more dimensions
    #[arg(long, value_name = "DECAY", default_value_t = 0.1)]
    pub weight_decay: f64,
    /// Share of what embeds, attends and joins the residual stream that a step leaves out [default: that of the model]
    #[arg(long, value_name = "SHARE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropout: Option<f64>,
    /// Largest norm of the gradient; 0: no clipping
    #[arg(long, value_name = "NORM", default_value_t = 1.0)]
    pub grad_clip: f64,
    /// Of which gradient: of all parameters, or of each layer, which is then updated at once
    #[arg(long, value_name = "global|layer", default_value = "global", value_parser = named::<Clip>)]
    pub clip: Clip,
    /// Computes and counts every gradient, and drops it: nothing is trained
    #[arg(long)]
    pub dry_update: bool,
    /// Steps between two evaluations on the validation text; 0: never
    #[arg(long, value_name = "N", default_value_t = 250, value_parser = whole::<u64>)]
    pub eval_every: u64,
    /// Micro-batches of an evaluation, at most one pass over the validation text
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = whole::<usize>)]
    pub eval_batches: usize,
    /// Tokens of the sample that is written to samples/ at each evaluation, but with --store ram or --device-memory, and at
    /// the end to the terminal; 0: none
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = whole::<u64>)]
    pub sample_tokens: u64,
    /// Seed of the initial parameters and of the order of the data
    #[arg(long, value_name = "N", default_value_t = 1337, value_parser = whole::<u64>)]
    pub seed: u64,
    /// Folder of the run [default: runs/NAME-1, or the next number that is free]
    #[arg(long, value_name = "FOLDER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out: Option<PathBuf>,
    /// Steps between two checkpoints; 0: only at the end
    #[arg(long, value_name = "N", default_value_t = 250, value_parser = whole::<u64>)]
    pub save_every: u64,
    /// Checkpoints to keep: the newest N, and the best by validation loss
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = whole::<u64>)]
    pub keep: u64,
    /// What to do about a loss 6 deviations above the last 128
    #[arg(long, value_name = "report|rollback|ignore", default_value = "report", value_parser = named::<OnSpike>)]
    pub on_spike: OnSpike,
}

/// The optimiser, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// AdamW.
    AdamW,
    /// Adafactor.
    Adafactor,
    /// Gradient descent with momentum.
    Sgd,
}

/// Why a configuration cannot be.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value that cannot be.
    #[error("--{flag} {value}: {cure}")]
    Value {
        /// Name of the flag.
        flag: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it and what would do.
        cure: String,
    },
    /// No data at all.
    #[error("--data is missing; give text files, folders of them, or prepared data to train on")]
    NoData,
    /// A file that is no configuration.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The parser's words.
        reason: String,
    },
}

/// Tokens that one step may have: device indices are 32 bits, one of them for the sign.
const MOST_TOKENS: usize = i32::MAX as usize;

impl Default for Config {
    fn default() -> Config {
        let flags = <Config as clap::Args>::augment_args(clap::Command::new("train").no_binary_name(true));
        let nothing: [&str; 0] = [];
        flags
            .try_get_matches_from(nothing)
            .and_then(|found| <Config as clap::FromArgMatches>::from_arg_matches(&found))
            .expect("every flag has a default or is optional")
    }
}

impl Config {
    /// Reads a `config.toml`.
    ///
    /// # Errors
    /// As [`Config::read_part`], and what [`Config::check`] finds.
    pub fn read(path: &Path) -> Result<Config, ConfigError> {
        let config = Config::read_part(path)?;
        config.check()?;
        Ok(config)
    }

    /// Reads a file whose keys are those of `config.toml`, but over which flags may still be laid.
    ///
    /// # Errors
    /// [`ConfigError::File`] names the file, the line and what is near.
    pub fn read_part(path: &Path) -> Result<Config, ConfigError> {
        let failed = |reason: String| ConfigError::File { path: path.into(), reason };
        let text = std::fs::read_to_string(path).map_err(|e| failed(e.to_string()))?;
        let at = |byte: usize| text[..byte.min(text.len())].matches('\n').count() + 1;
        let unreadable = |e: toml::de::Error| {
            let line = e.span().map_or(1, |s| at(s.start));
            failed(format!("line {line}: {}", e.message().replace('\n', " ")))
        };
        let found: toml::Table = toml::from_str(&text).map_err(unreadable)?;
        let known = Config::keys();
        if let Some(strange) = found.keys().find(|key| !known.contains(key)) {
            let near = nearest(strange, known.iter().map(String::as_str), 1);
            let line = text.lines().position(|l| l.trim_start().starts_with(strange.as_str())).map_or(1, |i| i + 1);
            return Err(failed(format!("line {line}: no key {strange:?}; the nearest is {near}")));
        }
        toml::from_str(&text).map_err(unreadable)
    }

    /// The names of all keys.
    fn keys() -> Vec<String> {
        let flags = <Config as clap::Args>::augment_args(clap::Command::new("train"));
        flags.get_arguments().filter(|a| a.get_long().is_some()).map(|a| a.get_id().to_string()).collect()
    }

    /// This configuration, with the values of `other` for the keys in `typed`: what a person typed wins over a file.
    ///
    /// # Errors
    /// What [`Config::check`] finds.
    pub fn overlaid(&self, other: &Config, typed: &[String]) -> Result<Config, ConfigError> {
        let failed = |reason: String| ConfigError::File { path: "config.toml".into(), reason };
        let table = |config: &Config| toml::Table::try_from(config).map_err(|e| failed(e.to_string()));
        let (mut base, above) = (table(self)?, table(other)?);
        base.extend(above.into_iter().filter(|(key, _)| typed.contains(key)));
        let config: Config = base.try_into().map_err(|e: toml::de::Error| failed(e.to_string()))?;
        config.check()?;
        Ok(config)
    }

    /// What is asked of the data.
    pub fn request(&self) -> Request {
        let beside = self.out.as_deref().map_or(Some(Path::new("runs")), Path::parent).unwrap_or(Path::new(""));
        Request {
            plan: Plan {
                data: self.data.clone(),
                val_data: self.val_data.clone(),
                tokenizer: self.tokenizer.clone().unwrap_or(TokenizerKind::Char),
                val_split: self.val_split,
                field: self.field.clone(),
                separator: self.separator.clone(),
            },
            tokenizer_chosen: self.tokenizer.is_some(),
            cache: self.cache.clone().unwrap_or_else(|| beside.join("gaufre-cache")),
        }
    }

    /// The text of its `config.toml`.
    ///
    /// # Panics
    /// When [`Config::check`] was not asked first and an integer is beyond what TOML holds.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a checked configuration is TOML")
    }

    /// The learning rate at the end.
    pub fn min_lr(&self) -> f64 {
        self.min_lr.unwrap_or(self.lr / 10.0)
    }

    /// Steps of the warm-up.
    pub fn warmup_steps(&self) -> u64 {
        self.warmup_steps.unwrap_or((self.steps / 10).min(100))
    }

    /// Sizes of a step of a model with `context`.
    ///
    /// # Errors
    /// [`ConfigError::Value`] where a sequence is longer than the context, or a step too large.
    pub fn shape(&self, context: usize) -> Result<Shape, ConfigError> {
        let seq_len = self.seq_len.unwrap_or(context);
        if seq_len > context {
            return wrong("seq-len", seq_len, format!("the context of the model is {context}; give that or less"));
        }
        self.expect_tokens(seq_len)?;
        Ok(Shape { batch_size: self.batch_size, seq_len, grad_accum: self.grad_accum })
    }

    /// Whether the numbers can be, before anything is read or made.
    ///
    /// # Errors
    /// [`ConfigError`] names the flag, its value and the cure.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.data.is_empty() {
            return Err(ConfigError::NoData);
        }
        self.check_sizes()?;
        self.check_rates()?;
        if let Some(split) = self.val_split.filter(|split| !(0.0..1.0).contains(split)) {
            return wrong("val-split", split, "must be at least 0 and less than 1".into());
        }
        if self.val_split == Some(0.0) && self.val_data.is_empty() && self.eval_every > 0 {
            let cure = "needs validation text; give a --val-split above 0, or --eval-every 0".into();
            return wrong("eval-every", self.eval_every, cure);
        }
        self.check_store()?;
        if self.on_spike == OnSpike::Rollback && self.save_every == 0 {
            return wrong("save-every", 0, "--on-spike rollback goes back to checkpoints; give 1 or more".into());
        }
        if self.seed > MOST {
            return wrong("seed", self.seed, format!("must be at most {MOST}"));
        }
        Ok(())
    }

    /// Whether what is said of the store and of what it keeps goes together.
    fn check_store(&self) -> Result<(), ConfigError> {
        let disk = matches!(self.store, Home::Disk(_));
        if self.in_place && !disk {
            return wrong("in-place", "", "is for a store on a disk; add --store disk, or leave it out".into());
        }
        if self.spill == Some(Spill::Disk) && !disk {
            return wrong("spill", "disk", "is for a store on a disk; add --store disk, or use --spill ram".into());
        }
        if disk && self.on_spike == OnSpike::Rollback {
            let cure = "goes back to checkpoints, and --store disk keeps the last step alone; use --on-spike report";
            return wrong("on-spike", "rollback", cure.into());
        }
        if self.master_weights && self.param_dtype == Format::F32 {
            return wrong("master-weights", "", "f32 parameters are their own; add --param-dtype bf16".into());
        }
        if self.optimizer == Algorithm::Adafactor && self.state_dtype != StateDtype::F32 {
            return wrong("state-dtype", "", "Adafactor's states are few and stay f32; leave it out".into());
        }
        if !matches!(self.param_dtype, Format::F32 | Format::Bf16) {
            return wrong("param-dtype", "", "must be f32 or bf16".into());
        }
        Ok(())
    }

    /// The optimiser that is asked for.
    pub fn optimizer(&self) -> Optimizer {
        let rule = match self.optimizer {
            Algorithm::AdamW => {
                Rule::AdamW { beta1: self.beta1 as f32, beta2: self.beta2 as f32, eps: self.adam_eps as f32 }
            }
            Algorithm::Adafactor => Rule::Adafactor { beta2_decay: -0.8, eps2: 1e-3, clip_threshold: 1.0 },
            Algorithm::Sgd => Rule::Sgd { momentum: self.momentum as f32 },
        };
        Optimizer {
            rule,
            states: self.state_dtype,
            weight_decay: self.weight_decay as f32,
            grad_clip: self.grad_clip as f32,
            clip: self.clip,
        }
    }

    fn check_sizes(&self) -> Result<(), ConfigError> {
        let sizes = [
            ("steps", self.steps),
            ("batch-size", self.batch_size as u64),
            ("seq-len", self.seq_len.unwrap_or(1) as u64),
            ("grad-accum", self.grad_accum as u64),
            ("eval-batches", self.eval_batches as u64),
            ("device-memory", self.device_memory.unwrap_or(1)),
            ("stream-memory", self.stream_memory),
            ("keep", self.keep),
        ];
        for (flag, value) in sizes {
            if value == 0 || value > MOST {
                return wrong(flag, value, format!("must be 1 to {MOST}"));
            }
        }
        let counts = [
            ("warmup-steps", self.warmup_steps()),
            ("eval-every", self.eval_every),
            ("threads", self.threads as u64),
            ("save-every", self.save_every),
            ("sample-tokens", self.sample_tokens),
        ];
        for (flag, value) in counts {
            if value > MOST {
                return wrong(flag, value, format!("must be at most {MOST}"));
            }
        }
        self.expect_tokens(self.seq_len.unwrap_or(1))
    }

    fn expect_tokens(&self, seq_len: usize) -> Result<(), ConfigError> {
        let micro = self.batch_size.checked_mul(seq_len);
        let step = micro.and_then(|n| n.checked_mul(self.grad_accum));
        if step.is_some_and(|n| n <= MOST_TOKENS) {
            return Ok(());
        }
        let cure = format!("a step may have at most {MOST_TOKENS} tokens, all its sequences together; give less");
        match micro {
            Some(n) if n <= MOST_TOKENS => wrong("grad-accum", self.grad_accum, cure),
            _ => wrong("batch-size", self.batch_size, cure),
        }
    }

    fn check_rates(&self) -> Result<(), ConfigError> {
        let positive = |x: f64| x > 0.0 && x.is_finite();
        let not_negative = |x: f64| x >= 0.0 && x.is_finite();
        let share = |x: f64| (0.0..1.0).contains(&x);
        let checks = [
            ("lr", self.lr, positive(self.lr), "must be more than 0; 0.001 is usual"),
            ("min-lr", self.min_lr(), not_negative(self.min_lr()), "must be 0 or more"),
            ("beta1", self.beta1, share(self.beta1), "must be at least 0 and less than 1; 0.9 is usual"),
            ("beta2", self.beta2, share(self.beta2), "must be at least 0 and less than 1; 0.95 is usual"),
            ("momentum", self.momentum, share(self.momentum), "must be at least 0 and less than 1; 0.9 is usual"),
            ("adam-eps", self.adam_eps, positive(self.adam_eps), "must be more than 0; 1e-8 is usual"),
            ("weight-decay", self.weight_decay, not_negative(self.weight_decay), "must be 0 or more"),
            ("grad-clip", self.grad_clip, not_negative(self.grad_clip), "must be 0 (no clipping) or more"),
            (
                "dropout",
                self.dropout.unwrap_or(0.0),
                share(self.dropout.unwrap_or(0.0)),
                "must be at least 0 and less than 1",
            ),
        ];
        for (flag, value, good, cure) in checks {
            if !good {
                return wrong(flag, value, cure.into());
            }
        }
        if self.lr_schedule != LrSchedule::Constant && self.min_lr() > self.lr {
            return wrong("min-lr", self.min_lr(), format!("must be at most --lr, which is {}", self.lr));
        }
        Ok(())
    }
}

fn wrong<T>(flag: &'static str, value: impl ToString, cure: String) -> Result<T, ConfigError> {
    Err(ConfigError::Value { flag, value: value.to_string(), cure })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config { data: vec!["text".into()], ..Config::default() }
    }

    #[test]
    fn toml_and_back_is_the_same() {
        let full = Config { device_memory: Some(3 << 30), seq_len: Some(8), out: Some("a".into()), ..config() };
        for c in [config(), full] {
            c.check().unwrap();
            assert_eq!(toml::from_str::<Config>(&c.to_toml()).unwrap(), c);
        }
        let short: Config = toml::from_str("data = ['text']\ndevice_memory = '1.5KiB'\nwafer = '4x2'").unwrap();
        assert_eq!(
            short,
            Config { device_memory: Some(1536), wafer: WaferSpec { size: Size::Sides(4, 2), sram: None }, ..config() }
        );
        assert!(toml::from_str::<Config>("stpes = 3").is_err());
    }

    #[test]
    fn keys_are_the_flags() {
        let flags = <Config as clap::Args>::augment_args(clap::Command::new("train"));
        let full = Config {
            device_memory: Some(1),
            seq_len: Some(1),
            init: Some("a".into()),
            spill: Some(Spill::Ram),
            dropout: Some(0.1),
            min_lr: Some(0.0),
            warmup_steps: Some(1),
            out: Some("a".into()),
            val_data: vec!["b".into()],
            tokenizer: Some(TokenizerKind::Byte),
            val_split: Some(0.5),
            separator: Some("c".into()),
            cache: Some("d".into()),
            defects: Some("0.5:1".into()),
            ..config()
        };
        let keys = toml::Table::try_from(&full).unwrap();
        let mut longs: Vec<String> =
            flags.get_arguments().filter_map(|a| a.get_long()).map(|l| l.replace('-', "_")).collect();
        longs.sort();
        let mut keys: Vec<String> = keys.keys().cloned().collect();
        keys.sort();
        assert_eq!(keys, longs);
    }

    #[test]
    fn each_bad_value_is_named_with_its_flag() {
        type Spoil = fn(&mut Config);
        let bad: [(&str, Spoil); 18] = [
            ("--data", |c| c.data.clear()),
            ("--steps 0", |c| c.steps = 0),
            ("--batch-size 0", |c| c.batch_size = 0),
            ("--seq-len 0", |c| c.seq_len = Some(0)),
            ("--grad-accum 0", |c| c.grad_accum = 0),
            ("--eval-batches 0", |c| c.eval_batches = 0),
            ("--device-memory 0", |c| c.device_memory = Some(0)),
            ("--batch-size 18446744073709551615", |c| c.batch_size = usize::MAX),
            ("--grad-accum 2000000000", |c| c.grad_accum = 2_000_000_000),
            ("--lr NaN", |c| c.lr = f64::NAN),
            ("--min-lr 1", |c| c.min_lr = Some(1.0)),
            ("--beta1 1", |c| c.beta1 = 1.0),
            ("--dropout 1", |c| c.dropout = Some(1.0)),
            ("--adam-eps 0", |c| c.adam_eps = 0.0),
            ("--grad-clip -1", |c| c.grad_clip = -1.0),
            ("--val-split 1", |c| c.val_split = Some(1.0)),
            ("--eval-every 250", |c| c.val_split = Some(0.0)),
            ("--seed 18446744073709551615", |c| c.seed = u64::MAX),
        ];
        for (start, spoil) in bad {
            let mut c = config();
            spoil(&mut c);
            let error = c.check().unwrap_err().to_string();
            assert!(error.starts_with(start) && !error.contains('\n'), "{start}: {error}");
        }
        assert!(config().shape(64).is_ok());
        assert!(Config { seq_len: Some(65), ..config() }.shape(64).is_err());
        assert!(config().shape(usize::MAX).is_err());
    }
}
