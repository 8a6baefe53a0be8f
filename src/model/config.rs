//! What a model is: the configuration of a GPT-2 family transformer, read from a preset or a TOML file.
//!
//! A [`Config`] that exists is possible: every constraint (heads divide the width, no zero, no overflow) is checked when
//! it is read. It knows numbers and names; it must never know a device, a store or a path.

use crate::program::activation::Form;

/// Configuration of a GPT-2 family model: learned positions, pre-norm blocks, tied head.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Its own name, or that of the preset or of the file.
    #[serde(default)]
    pub name: String,
    /// Number of blocks.
    pub layers: usize,
    /// Attention heads; divides `d_model`.
    pub heads: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Longest sequence: rows of the position table.
    pub context: usize,
    /// Rows of the token table; 0 means as many as the tokenizer has.
    #[serde(default)]
    pub vocab_size: usize,
    /// Biases in linear layers and norms (GPT-2), or none (nanoGPT's variant).
    #[serde(default = "yes")]
    pub bias: bool,
    /// The function between the two linear layers of a block.
    #[serde(default = "tanh")]
    pub activation: Form,
    /// Epsilon of the norms.
    #[serde(default = "epsilon")]
    pub norm_eps: f32,
    /// Standard deviation of the initial weights; that of projections into the residual stream is less, by depth.
    #[serde(default = "deviation")]
    pub initializer_range: f64,
    /// Number of parameters a preset promises, checked against the table (0: not said).
    #[serde(default)]
    pub parameters: u64,
}

fn yes() -> bool {
    true
}

fn tanh() -> Form {
    Form::Tanh
}

fn epsilon() -> f32 {
    1e-5
}

fn deviation() -> f64 {
    INITIALIZER_RANGE
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
        self.d_model / self.heads
    }

    pub(super) fn validate(&self) -> Result<(), ModelError> {
        let sizes = [
            ("layers", self.layers),
            ("heads", self.heads),
            ("d_model", self.d_model),
            ("context", self.context),
            ("vocab_size", self.vocab_size.max(1)),
        ];
        for (field, value) in sizes {
            if value == 0 || value > LARGEST {
                return Err(self.impossible(field, value, format!("must be 1 to {LARGEST}")));
            }
        }
        if !self.d_model.is_multiple_of(self.heads) {
            let cure = format!("must divide d_model = {}", self.d_model);
            return Err(self.impossible("heads", self.heads, cure));
        }
        if self.head_size() > 256 {
            let cure = format!("d_model / heads = {} exceeds the largest head size, 256", self.head_size());
            return Err(self.impossible("heads", self.heads, cure));
        }
        if !(self.norm_eps > 0.0 && self.norm_eps.is_finite()) {
            return Err(self.impossible("norm_eps", self.norm_eps, "must be a positive number".into()));
        }
        // Beyond 1 no model learns, and below the least normal number nothing is left of a deviation.
        if !(self.initializer_range >= f64::from(f32::MIN_POSITIVE) && self.initializer_range <= 1.0) {
            let cure = "must be more than 0 and at most 1; 0.02 is GPT-2's".into();
            return Err(self.impossible("initializer_range", self.initializer_range, cure));
        }
        Ok(())
    }

    fn impossible(&self, field: &'static str, value: impl ToString, cure: String) -> ModelError {
        ModelError::Impossible { name: self.name.clone(), field, value: value.to_string(), cure }
    }
}
