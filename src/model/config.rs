//! What a model is: the configuration of a decoder-only transformer, read from a preset or a TOML file.
//!
//! The parts of a block (norm, positions, heads, activation, residual) are chosen one by one; GPT-2's are the defaults. A
//! [`Config`] that exists is possible: every constraint (heads divide the width, no zero, no overflow) is checked when
//! it is read. It knows numbers and names; it must never know a device, a store or a path.

use crate::program::activation::Form;
use crate::program::attention::MAX_HEAD_SIZE;
use crate::program::rotary::{Layout, Scaling};

/// Configuration of a decoder-only transformer; what a TOML file leaves out is GPT-2's.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Its own name, or that of the preset or of the file.
    pub name: String,
    /// Number of blocks.
    pub layers: usize,
    /// Heads of the queries.
    pub heads: usize,
    /// Heads of keys and values, where there are fewer: they divide `heads`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_value_heads: Option<usize>,
    /// Width of a head, where it is not `d_model / heads`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head_size: Option<usize>,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Width of the MLP, where it is not `4 * d_model`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub d_ff: Option<usize>,
    /// Longest sequence: rows of the position table, where there is one.
    pub context: usize,
    /// Rows of the token table; 0 means as many as the tokenizer has.
    pub vocab_size: usize,
    /// Biases in linear layers and layer norms (GPT-2), or none (nanoGPT's variant, Llama).
    pub bias: bool,
    /// Biases of queries, keys and values, where they do not follow `bias`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qkv_bias: Option<bool>,
    /// Bias of the output projection of attention, where it does not follow `bias`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out_bias: Option<bool>,
    /// A bias of the head, which then is not tied.
    #[serde(skip_serializing_if = "is_false")]
    pub head_bias: bool,
    /// Whether the head is the token table, or has a weight of its own.
    #[serde(skip_serializing_if = "is_true")]
    pub tied: bool,
    /// Whether queries, keys and values are three tensors, or one.
    #[serde(skip_serializing_if = "is_false")]
    pub split_qkv: bool,
    /// Whether each head of queries and keys passes an RMS norm before it is turned (Qwen3).
    #[serde(skip_serializing_if = "is_false")]
    pub qk_norm: bool,
    /// Keys that a query sees, itself included; without it all that are before it (Mistral's sliding window).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
    /// The nonlinearity of the MLP.
    pub activation: Form,
    /// Whether it gates a second projection of the same input: `activation(gate(x)) * up(x)` (SwiGLU, GEGLU).
    #[serde(skip_serializing_if = "is_false")]
    pub gated: bool,
    /// The norms.
    #[serde(skip_serializing_if = "is_default")]
    pub norm: Norm,
    /// Epsilon of the norms.
    pub norm_eps: f32,
    /// How attention and MLP join the residual stream.
    #[serde(skip_serializing_if = "is_default")]
    pub residual: Residual,
    /// The share of what embeds, attends and joins the residual stream that a training step leaves out (Srivastava et al.
    /// 2014).
    #[serde(skip_serializing_if = "is_default")]
    pub dropout: f32,
    /// Standard deviation of the initial weights; that of projections into the residual stream is less, by depth.
    pub initializer_range: f64,
    /// Number of parameters a preset promises, checked against the table (0: not said).
    pub parameters: u64,
    /// Queries and keys turned by their position, instead of a table of positions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotary: Option<Rotation>,
}

/// The norms of a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Norm {
    /// Layer norm: mean and variance.
    #[default]
    Layer,
    /// Root mean square: no mean, no bias.
    Rms,
}

impl Norm {
    /// Numbers that it keeps of each row for its backward pass.
    pub fn statistics(self) -> usize {
        match self {
            Norm::Layer => 2,
            Norm::Rms => 1,
        }
    }
}

/// How attention `a` and MLP `f` join the residual stream `x`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Residual {
    /// One after the other: `m = x + a(norm_1(x))`, `m + f(norm_2(m))`.
    #[default]
    Serial,
    /// Side by side, each with its norm: `x + a(norm_1(x)) + f(norm_2(x))` (GPT-NeoX).
    Parallel,
    /// Side by side behind one norm: `x + a(norm_1(x)) + f(norm_1(x))` (GPT-J).
    Shared,
}

/// Rotary positions (Su et al., arXiv 2104.09864).
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotation {
    /// Columns of each head that are turned, from the first on; all where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dims: Option<usize>,
    /// Which columns turn together.
    pub layout: Layout,
    /// The longest wavelength is `2 pi` times nearly this many positions.
    pub base: f64,
    /// Longer wavelengths for longer contexts (Llama 3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling: Option<Scaling>,
}

impl Default for Config {
    /// GPT-2's parts without a size: a model that [`Config::parse`] refuses.
    fn default() -> Config {
        Config {
            name: String::new(),
            layers: 0,
            heads: 0,
            key_value_heads: None,
            head_size: None,
            d_model: 0,
            d_ff: None,
            context: 0,
            vocab_size: 0,
            bias: true,
            qkv_bias: None,
            out_bias: None,
            head_bias: false,
            tied: true,
            split_qkv: false,
            qk_norm: false,
            window: None,
            activation: Form::Tanh,
            gated: false,
            norm: Norm::Layer,
            norm_eps: 1e-5,
            residual: Residual::Serial,
            dropout: 0.0,
            initializer_range: INITIALIZER_RANGE,
            parameters: 0,
            rotary: None,
        }
    }
}

fn is_false(flag: &bool) -> bool {
    !flag
}

fn is_true(flag: &bool) -> bool {
    *flag
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Standard deviation of GPT-2's initial weights.
pub const INITIALIZER_RANGE: f64 = 0.02;

/// Why a model cannot be had.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum ModelError {
    /// The text is not a configuration.
    #[error("model {name}: {reason}")]
    Parse {
        /// Preset or file.
        name: String,
        /// The parser's words.
        reason: String,
    },
    /// A number that cannot be.
    #[error("model {name}: {field} = {value}: {cure}")]
    Impossible {
        /// Preset or file.
        name: String,
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What would do.
        cure: String,
    },
    /// No preset of that name.
    #[error("no model {wanted:?}; near it: {near}; or pass a TOML file")]
    Unknown {
        /// What was asked for.
        wanted: String,
        /// Names near it.
        near: String,
    },
}

/// Largest value of each number: products of two stay far from overflow on every platform.
const LARGEST: usize = 1 << 24;

impl Config {
    /// Reads a configuration from TOML.
    ///
    /// # Errors
    /// [`ModelError`] naming the field, its value and the cure.
    pub fn parse(name: &str, text: &str) -> Result<Config, ModelError> {
        let mut config: Config = toml::from_str(text)
            .map_err(|e| ModelError::Parse { name: name.into(), reason: e.message().replace('\n', " ") })?;
        // A run folder keeps its model in a file of another name, and the model's own name in it.
        if config.name.is_empty() {
            config.name = name.into();
        }
        if config.name.contains(['/', '\\']) {
            return Err(config.impossible("name", &config.name, "must have no / and no \\".into()));
        }
        config.validate()?;
        Ok(config)
    }

    /// The same model with the vocabulary of a tokenizer, where the preset leaves it open.
    ///
    /// # Errors
    /// When the tokenizer has more ids than the model has rows.
    pub fn with_vocabulary(mut self, tokenizer: usize) -> Result<Config, ModelError> {
        if self.vocab_size == 0 {
            self.vocab_size = tokenizer;
        }
        if tokenizer > self.vocab_size {
            return Err(self.impossible("vocab_size", self.vocab_size, format!("the tokenizer has {tokenizer} ids")));
        }
        self.validate()?;
        Ok(self)
    }

    /// The text that [`Config::parse`] reads as this model.
    ///
    /// # Panics
    /// Never for a configuration that was read: its numbers are far below what TOML holds.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("small numbers and a name are TOML")
    }

    /// Width of one head.
    pub fn head_size(&self) -> usize {
        self.head_size.unwrap_or(self.d_model / self.heads)
    }

    /// Heads of keys and values.
    pub fn key_value_heads(&self) -> usize {
        self.key_value_heads.unwrap_or(self.heads)
    }

    /// Columns of all queries, of all keys and of all values.
    pub fn qkv_widths(&self) -> [usize; 3] {
        [self.heads, self.key_value_heads(), self.key_value_heads()].map(|heads| heads * self.head_size())
    }

    /// Columns of queries, keys and values together.
    pub fn qkv_width(&self) -> usize {
        self.qkv_widths().iter().sum()
    }

    /// Width of the MLP.
    pub fn d_ff(&self) -> usize {
        self.d_ff.unwrap_or(4 * self.d_model)
    }

    /// Columns of what enters the nonlinearity: twice the width of a gated MLP.
    pub fn up_width(&self) -> usize {
        self.d_ff() * if self.gated { 2 } else { 1 }
    }

    /// Columns of a head that rotary positions turn.
    pub fn rotary_dims(&self) -> usize {
        self.rotary.as_ref().map_or(0, |r| r.dims.unwrap_or(self.head_size()))
    }

    pub(super) fn validate(&self) -> Result<(), ModelError> {
        let sizes = [
            ("layers", self.layers),
            ("heads", self.heads),
            ("key_value_heads", self.key_value_heads.unwrap_or(1)),
            ("head_size", self.head_size.unwrap_or(1)),
            ("d_model", self.d_model),
            ("d_ff", self.d_ff.unwrap_or(1)),
            ("context", self.context),
            ("window", self.window.unwrap_or(1)),
            ("vocab_size", self.vocab_size.max(1)),
        ];
        for (field, value) in sizes {
            if value == 0 || value > LARGEST {
                return Err(self.impossible(field, value, format!("must be 1 to {LARGEST}")));
            }
        }
        self.validate_heads()?;
        self.validate_rotation()?;
        if self.gated && !self.d_ff().is_multiple_of(8) {
            return Err(self.impossible("d_ff", self.d_ff(), "must be a multiple of 8 in a gated MLP".into()));
        }
        if self.head_bias && self.tied {
            return Err(self.impossible("head_bias", true, "a head with a bias needs tied = false".into()));
        }
        if !(self.norm_eps > 0.0 && self.norm_eps.is_finite()) {
            return Err(self.impossible("norm_eps", self.norm_eps, "must be a positive number".into()));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(self.impossible("dropout", self.dropout, "must be at least 0 and less than 1".into()));
        }
        // Beyond 1 no model learns, and below the least normal number nothing is left of a deviation.
        if !(self.initializer_range >= f64::from(f32::MIN_POSITIVE) && self.initializer_range <= 1.0) {
            let cure = "must be more than 0 and at most 1; 0.02 is GPT-2's".into();
            return Err(self.impossible("initializer_range", self.initializer_range, cure));
        }
        Ok(())
    }

    fn validate_heads(&self) -> Result<(), ModelError> {
        if self.head_size.is_none() && !self.d_model.is_multiple_of(self.heads) {
            let cure = format!("must divide d_model = {}", self.d_model);
            return Err(self.impossible("heads", self.heads, cure));
        }
        if self.head_size() > MAX_HEAD_SIZE {
            let (field, value) = match self.head_size {
                Some(size) => ("head_size", size),
                None => ("heads", self.heads),
            };
            let cure = format!("makes heads of {}; the largest head size is {MAX_HEAD_SIZE}", self.head_size());
            return Err(self.impossible(field, value, cure));
        }
        if self.heads.checked_mul(self.head_size()).is_none_or(|width| width > LARGEST) {
            let cure = format!("heads of {} are more than {LARGEST} columns", self.head_size());
            return Err(self.impossible("heads", self.heads, cure));
        }
        if !self.heads.is_multiple_of(self.key_value_heads()) {
            let cure = format!("must divide heads = {}", self.heads);
            return Err(self.impossible("key_value_heads", self.key_value_heads(), cure));
        }
        // Parts of one matrix that programs take by themselves begin and end where rows are padded to.
        let apart = self.split_qkv || self.qk_norm || self.rotary.is_some() || self.key_value_heads.is_some();
        if apart && !self.head_size().is_multiple_of(8) {
            let cure = "must be a multiple of 8 with split_qkv, qk_norm, rotary or key_value_heads".into();
            return Err(self.impossible("head_size", self.head_size(), cure));
        }
        Ok(())
    }

    fn validate_rotation(&self) -> Result<(), ModelError> {
        let Some(rotation) = &self.rotary else { return Ok(()) };
        let dims = self.rotary_dims();
        if dims == 0 || dims > self.head_size() || !dims.is_multiple_of(2) {
            let cure = format!("must be even and at most the head size, {}", self.head_size());
            return Err(self.impossible("rotary.dims", dims, cure));
        }
        if !(1.0..=1e12).contains(&rotation.base) {
            return Err(self.impossible("rotary.base", rotation.base, "must be 1 to 1e12; 10000 is usual".into()));
        }
        if let Some(Scaling { factor, low_freq_factor: low, high_freq_factor: high, original_context }) =
            rotation.scaling
        {
            if !(1.0..=1e6).contains(&factor) {
                return Err(self.impossible("rotary.scaling.factor", factor, "must be 1 to 1e6".into()));
            }
            if !(low > 0.0 && low < high && high <= 1e6) {
                let cure = format!("must be more than 0 and less than high_freq_factor = {high}");
                return Err(self.impossible("rotary.scaling.low_freq_factor", low, cure));
            }
            if original_context == 0 || original_context > LARGEST {
                let cure = format!("must be 1 to {LARGEST}");
                return Err(self.impossible("rotary.scaling.original_context", original_context, cure));
            }
        }
        Ok(())
    }

    fn impossible(&self, field: &'static str, value: impl ToString, cure: String) -> ModelError {
        ModelError::Impossible { name: self.name.clone(), field, value: value.to_string(), cure }
    }
}
