//! Models as Hugging Face's transformers keeps them: what a `config.json` says, and how its tensors are called and lie. Each
//! family has a file; [`FAMILIES`] lists them.
//!
//! A configuration that would mean another function than this crate computes is refused by the name of the field; fields
//! that only matter to other software are passed over. It must never know a file: it sees text and names.

mod gpt2;
mod gpt_neox;
mod gptj;
mod llama;
mod names;
mod rope;

use serde_json::{Value, json};

use super::config::{Config, ModelError, Norm};
use super::table::Parameter;
use crate::program::activation::Form;
use crate::program::rotary::Layout;
use crate::store::order::Order;

pub use names::{NamesError, Stored, heads, locate, stored_as};

/// What transformers knows as one type of model.
pub struct Family {
    /// Its name in a `config.json`.
    pub model_type: &'static str,
    /// The class with a head.
    architecture: &'static str,
    /// How its tensors are called.
    names: names::Names,
    /// How a tensor lies.
    order: fn(&Config, &Parameter) -> Order,
    /// Whether it is the family for a model of these parts. The first of [`FAMILIES`] that is takes it.
    takes: fn(&Config) -> bool,
    /// The model with what the family always has: tensors that ours lacks are zero there.
    whole: fn(&Config) -> Config,
    /// Reads a `config.json`.
    read: fn(&str, &str) -> Result<Config, ModelError>,
    /// Its fields for a model.
    write: fn(&Config) -> Value,
}

/// Every family that can be read and written, the one for all that no other takes last.
pub const FAMILIES: &[&Family] =
    &[&llama::QWEN3, &llama::MISTRAL, &llama::LLAMA, &gptj::FAMILY, &gpt_neox::FAMILY, &gpt2::FAMILY];

impl Family {
    /// The family that a model is written as.
    pub fn of(config: &Config) -> &'static Family {
        FAMILIES.iter().find(|family| (family.takes)(config)).expect("the last takes all")
    }
}

/// Whether a model has the blocks that Llama brought: RMS norms, and positions turned by halves.
fn has_llama_blocks(config: &Config) -> bool {
    config.norm == Norm::Rms && config.rotary.as_ref().is_some_and(|r| r.layout == Layout::Halves)
}

/// Reads a `config.json`. `name` is what the model will be called.
///
/// # Errors
/// [`ModelError`] names the field whose value this crate does not compute, or cannot be.
pub fn read_config(name: &str, text: &str) -> Result<Config, ModelError> {
    /// What every family has.
    #[derive(Default, serde::Deserialize)]
    #[serde(default)]
    struct Fields {
        model_type: String,
        add_cross_attention: Option<bool>,
        is_encoder_decoder: Option<bool>,
        pruned_heads: Option<serde_json::Map<String, Value>>,
        quantization_config: Option<Value>,
    }
    let fields: Fields = parse(name, text)?;
    let Some(family) = FAMILIES.iter().find(|family| family.model_type == fields.model_type) else {
        let known: Vec<&str> = FAMILIES.iter().map(|family| family.model_type).collect();
        let cure = format!("only {} can be read", known.join(", "));
        return Err(refused(name, "model_type", format!("{:?}", fields.model_type), &cure));
    };
    only(name, "add_cross_attention", fields.add_cross_attention, false)?;
    only(name, "is_encoder_decoder", fields.is_encoder_decoder, false)?;
    if fields.pruned_heads.is_some_and(|heads| !heads.is_empty()) {
        return Err(refused(name, "pruned_heads", "not empty", "a model with heads cut out cannot be read"));
    }
    if fields.quantization_config.is_some() {
        return Err(refused(name, "quantization_config", "present", "only f32, f16 and bf16 weights can be read"));
    }
    let config = (family.read)(name, text)?;
    if config.vocab_size == 0 {
        return Err(refused(name, "vocab_size", 0, "a model has tokens"));
    }
    config.validate()?;
    Ok(config)
}

/// The `config.json` of a model. `dtype` is the name of the element type in PyTorch.
///
/// A model without biases that its family always has is described with them, all of them 0.
///
/// # Errors
/// [`ModelError`] names a part of the model that its family does not have.
pub fn write_config(config: &Config, dtype: &str) -> Result<String, ModelError> {
    let family = Family::of(config);
    let mut fields = (family.write)(config);
    let all = json!({
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "initializer_range": config.initializer_range,
        "tie_word_embeddings": config.tied,
        // Older versions know no other name for it.
        "torch_dtype": dtype,
        "vocab_size": config.vocab_size,
    });
    if let (Value::Object(fields), Value::Object(all)) = (&mut fields, all) {
        fields.extend(all);
    }
    let text = serde_json::to_string_pretty(&fields).expect("names and numbers are JSON") + "\n";
    // What comes back is what was said: a part that the family has no field for does not.
    let (said, whole) = (read_config(&config.name, &text)?, (family.whole)(config));
    match difference(&resolved(&whole), &resolved(&said)) {
        Some((field, value)) => {
            let cure = format!("a {} of transformers cannot have it", family.model_type);
            Err(refused(&config.name, field, value, &cure))
        }
        None => Ok(text),
    }
}

/// The model with all that its family always has: where ours lacks a tensor, it is zero there.
pub fn whole(config: &Config) -> Config {
    (Family::of(config).whole)(config)
}

/// A configuration in which nothing is left to be said by default.
fn resolved(config: &Config) -> Config {
    let mut rotary = config.rotary.clone();
    if let Some(rotary) = &mut rotary {
        rotary.dims = Some(config.rotary_dims());
    }
    Config {
        key_value_heads: Some(config.key_value_heads()),
        head_size: Some(config.head_size()),
        d_ff: Some(config.d_ff()),
        qkv_bias: Some(config.qkv_bias.unwrap_or(config.bias)),
        out_bias: Some(config.out_bias.unwrap_or(config.bias)),
        rotary,
        ..config.clone()
    }
}

/// The first field in which two configurations are not one model, and what the first has there.
fn difference(ours: &Config, theirs: &Config) -> Option<(&'static str, String)> {
    macro_rules! first {
        ($($field:ident)+) => {
            $(if ours.$field != theirs.$field {
                return Some((stringify!($field), shown(&ours.$field)));
            })+
        };
    }
    first!(layers heads key_value_heads head_size d_model d_ff context vocab_size norm rotary residual window qk_norm);
    first!(split_qkv tied head_bias bias qkv_bias out_bias activation gated norm_eps initializer_range);
    None
}

/// A value as it would stand in a TOML file, near enough.
fn shown(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// Parses the fields that a family has.
fn parse<'a, T: serde::Deserialize<'a>>(name: &str, text: &'a str) -> Result<T, ModelError> {
    serde_json::from_str(text).map_err(|e| ModelError::Parse { name: name.into(), reason: format!("config.json: {e}") })
}

fn refused(name: &str, field: &'static str, value: impl ToString, cure: &str) -> ModelError {
    ModelError::Impossible { name: name.into(), field, value: value.to_string(), cure: cure.into() }
}

/// Refuses a flag of another value than the one that is computed here.
fn only(name: &str, field: &'static str, value: Option<bool>, only: bool) -> Result<(), ModelError> {
    match value {
        Some(value) if value != only => {
            Err(refused(name, field, value, &format!("changes what the model computes; only {only} can be read")))
        }
        _ => Ok(()),
    }
}

/// The curve of a name.
fn form(name: &str, field: &'static str, word: &str) -> Result<Form, ModelError> {
    match word {
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Form::Tanh),
        "gelu" => Ok(Form::Erf),
        "silu" | "swish" => Ok(Form::Silu),
        "relu" => Ok(Form::Relu),
        other => {
            let cure = "only gelu_new, gelu_fast, gelu_pytorch_tanh, gelu, silu, swish and relu can be read";
            Err(refused(name, field, format!("{other:?}"), cure))
        }
    }
}

/// The name of a curve.
fn word(form: Form) -> &'static str {
    match form {
        Form::Tanh => "gelu_new",
        Form::Erf => "gelu",
        Form::Silu => "silu",
        Form::Relu => "relu",
    }
}

/// As f64 the shortest decimal of an f32, so that 1e-5 stays what it was.
fn decimal(value: f32) -> f64 {
    value.to_string().parse().expect("a float prints as one")
}

#[cfg(test)]
mod tests;
