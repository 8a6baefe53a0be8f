//! GPT-2 as Hugging Face's transformers keeps it: what its `config.json` says, and how its tensors are called and lie.
//!
//! A configuration that would mean another function than this crate computes is refused by the name of the field; fields
//! that only matter to other software are passed over. It must never know a file: it sees text and names.

use std::collections::BTreeSet;

use super::config::{Config, INITIALIZER_RANGE, ModelError};
use super::table::{Parameter, Table};
use crate::program::activation::Form;

/// What checkpoints of the whole model write before the names of the table; those of the bare transformer do not.
const PREFIX: &str = "transformer.";

/// The head, where a checkpoint holds it: it must equal the token table.
pub const HEAD: &str = "lm_head.weight";

/// The fields that matter of a `config.json`, with the defaults of transformers.
#[derive(serde::Deserialize)]
#[serde(default)]
struct Fields {
    model_type: String,
    n_layer: usize,
    n_head: usize,
    n_embd: usize,
    n_positions: usize,
    vocab_size: usize,
    n_inner: Option<usize>,
    layer_norm_epsilon: f64,
    initializer_range: f64,
    activation_function: String,
    scale_attn_weights: bool,
    scale_attn_by_inverse_layer_idx: bool,
    reorder_and_upcast_attn: bool,
    add_cross_attention: bool,
    is_encoder_decoder: bool,
    tie_word_embeddings: bool,
    pruned_heads: Option<serde_json::Map<String, serde_json::Value>>,
    quantization_config: Option<serde_json::Value>,
}

impl Default for Fields {
    fn default() -> Fields {
        Fields {
            model_type: String::new(),
            n_layer: 12,
            n_head: 12,
            n_embd: 768,
            n_positions: 1024,
            vocab_size: 50257,
            n_inner: None,
            layer_norm_epsilon: 1e-5,
            initializer_range: INITIALIZER_RANGE,
            activation_function: "gelu_new".into(),
            scale_attn_weights: true,
            scale_attn_by_inverse_layer_idx: false,
            reorder_and_upcast_attn: false,
            add_cross_attention: false,
            is_encoder_decoder: false,
            tie_word_embeddings: true,
            pruned_heads: None,
            quantization_config: None,
        }
    }
}

/// Reads a `config.json`. `name` is what the model will be called.
///
/// # Errors
/// [`ModelError`] names the field whose value this crate does not compute, or cannot be.
pub fn read_config(name: &str, text: &str) -> Result<Config, ModelError> {
    let fields: Fields = serde_json::from_str(text)
        .map_err(|e| ModelError::Parse { name: name.into(), reason: format!("config.json: {e}") })?;
    let refuse = |field: &'static str, value: String, cure: &str| {
        Err(ModelError::Impossible { name: name.into(), field, value, cure: cure.into() })
    };
    if fields.model_type != "gpt2" {
        return refuse("model_type", format!("{:?}", fields.model_type), "only \"gpt2\" can be read");
    }
    let flags = [
        ("scale_attn_weights", fields.scale_attn_weights, true),
        ("scale_attn_by_inverse_layer_idx", fields.scale_attn_by_inverse_layer_idx, false),
        ("reorder_and_upcast_attn", fields.reorder_and_upcast_attn, false),
        ("add_cross_attention", fields.add_cross_attention, false),
        ("is_encoder_decoder", fields.is_encoder_decoder, false),
        ("tie_word_embeddings", fields.tie_word_embeddings, true),
    ];
    if let Some((field, value, only)) = flags.into_iter().find(|(_, value, only)| value != only) {
        return refuse(field, value.to_string(), &format!("changes what the model computes; only {only} can be read"));
    }
    if fields.pruned_heads.is_some_and(|heads| !heads.is_empty()) {
        return refuse("pruned_heads", "not empty".into(), "a model with heads cut out cannot be read");
    }
    if fields.quantization_config.is_some() {
        return refuse("quantization_config", "present".into(), "only f32, f16 and bf16 weights can be read");
    }
    if let Some(inner) = fields.n_inner.filter(|inner| Some(*inner) != fields.n_embd.checked_mul(4)) {
        return refuse("n_inner", inner.to_string(), "only 4 * n_embd can be read");
    }
    let activation = match fields.activation_function.as_str() {
        "gelu_new" | "gelu_pytorch_tanh" => Form::Tanh,
        "gelu" => Form::Erf,
        "silu" | "swish" => Form::Silu,
        "relu" => Form::Relu,
        other => {
            let cure = "only gelu_new, gelu, silu and relu can be read";
            return refuse("activation_function", format!("{other:?}"), cure);
        }
    };
    if fields.vocab_size == 0 {
        return refuse("vocab_size", "0".into(), "a model has tokens");
    }
    let config = Config {
        name: name.into(),
        layers: fields.n_layer,
        heads: fields.n_head,
        d_model: fields.n_embd,
        context: fields.n_positions,
        vocab_size: fields.vocab_size,
        bias: true,
        activation,
        norm_eps: fields.layer_norm_epsilon as f32,
        initializer_range: fields.initializer_range,
        parameters: 0,
    };
    config.validate()?;
    Ok(config)
}

/// What Hugging Face calls a form.
fn function_name(form: Form) -> &'static str {
    match form {
        Form::Tanh => "gelu_new",
        Form::Erf => "gelu",
        Form::Silu => "silu",
        Form::Relu => "relu",
    }
}

/// The `config.json` of a model. `dtype` is the name of the element type in PyTorch.
///
/// Dropout is 0, as in training here. A model without biases is described with biases, all of them 0.
pub fn write_config(config: &Config, dtype: &str) -> String {
    // As f64 the shortest decimal of an f32, so that 1e-5 stays what it was.
    let epsilon: f64 = config.norm_eps.to_string().parse().expect("a float prints as one");
    let fields = serde_json::json!({
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": function_name(config.activation),
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        // The end of text of GPT-2 is its last id; other vocabularies may have none, and then no id may stand here.
        "bos_token_id": (config.vocab_size == 50257).then_some(50256),
        "eos_token_id": (config.vocab_size == 50257).then_some(50256),
        "initializer_range": config.initializer_range,
        "layer_norm_epsilon": epsilon,
        "n_ctx": config.context,
        "n_embd": config.d_model,
        "n_head": config.heads,
        "n_inner": null,
        "n_layer": config.layers,
        "n_positions": config.context,
        "tie_word_embeddings": true,
        "torch_dtype": dtype,
        "vocab_size": config.vocab_size,
    });
    serde_json::to_string_pretty(&fields).expect("names and numbers are JSON") + "\n"
}

/// Where a tensor of the table stands in a checkpoint of transformers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its name there.
    pub name: String,
    /// Whether it lies there as `[in, out]`: the linear layers of GPT-2 are `Conv1D`, whose weights are the transposes of
    /// ours.
    pub transposed: bool,
}

/// Why the names of a checkpoint do not fit a model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NamesError {
    /// A tensor of the model that is not there.
    #[error("tensor {name} is missing: the checkpoint is not of the model that its config.json describes")]
    Missing {
        /// The tensor, without prefix.
        name: String,
    },
    /// A tensor that the model does not have.
    #[error("tensor {name} is not one of the model that config.json describes")]
    Extra {
        /// The tensor.
        name: String,
    },
}

/// Where each tensor of a table stands among the names of a checkpoint, in the order of the table. Buffers of old versions
/// (`attn.bias`, `attn.masked_bias`: the causal mask) and [`HEAD`] are passed over.
///
/// # Errors
/// [`NamesError`] names the first tensor that is missing or too many.
pub fn locate<'a>(table: &Table, names: impl Iterator<Item = &'a str>) -> Result<Vec<Stored>, NamesError> {
    let mut left: BTreeSet<&str> = names.filter(|name| !is_buffer(name) && *name != HEAD).collect();
    let mut stored = Vec::with_capacity(table.parameters.len());
    for parameter in &table.parameters {
        let found = stored_as(parameter);
        let name = [found.name.as_str(), &parameter.name].into_iter().find(|name| left.remove::<str>(name));
        let name = name.ok_or_else(|| NamesError::Missing { name: parameter.name.clone() })?.to_owned();
        stored.push(Stored { name, ..found });
    }
    match left.first() {
        Some(name) => Err(NamesError::Extra { name: (*name).to_owned() }),
        None => Ok(stored),
    }
}

/// How a tensor of a table is written for transformers.
pub fn stored_as(parameter: &Parameter) -> Stored {
    let linear = !parameter.vector && parameter.name.starts_with("h.");
    Stored { name: format!("{PREFIX}{}", parameter.name), transposed: linear }
}

fn is_buffer(name: &str) -> bool {
    let name = name.strip_prefix(PREFIX).unwrap_or(name);
    let layer = name.strip_prefix("h.").and_then(|rest| rest.split_once('.'));
    layer.is_some_and(|(number, part)| {
        number.bytes().all(|b| b.is_ascii_digit()) && matches!(part, "attn.bias" | "attn.masked_bias")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        read_config("tiny", r#"{"model_type":"gpt2","n_layer":2,"n_head":2,"n_embd":8,"n_positions":4,"vocab_size":5}"#)
            .unwrap()
    }

    #[test]
    fn a_config_and_back_is_the_same() {
        for activation in Form::ALL {
            let c = Config { activation, norm_eps: 1e-6, initializer_range: 0.07, ..config() };
            assert_eq!(read_config("tiny", &write_config(&c, "float32")).unwrap(), c);
        }
        assert_eq!(read_config("tiny", &write_config(&config(), "float32")).unwrap(), config());
    }

    #[test]
    fn fields_that_change_the_function_are_refused_by_name() {
        for (field, value) in [
            ("model_type", r#""llama""#),
            ("scale_attn_weights", "false"),
            ("scale_attn_by_inverse_layer_idx", "true"),
            ("reorder_and_upcast_attn", "true"),
            ("add_cross_attention", "true"),
            ("is_encoder_decoder", "true"),
            ("tie_word_embeddings", "false"),
            ("pruned_heads", r#"{"0":[1]}"#),
            ("quantization_config", "{}"),
            ("n_inner", "100"),
            ("activation_function", r#""quick_gelu""#),
            ("vocab_size", "0"),
        ] {
            let model = if field == "model_type" { "" } else { r#""model_type":"gpt2","# };
            let error = read_config("x", &format!("{{{model}\"{field}\":{value}}}")).unwrap_err();
            assert!(matches!(&error, ModelError::Impossible { field: named, .. } if *named == field), "{error}");
        }
        for text in ["", "[1]", r#"{"model_type":"gpt2","n_layer":-1}"#, r#"{"n_head":1,"n_head":2}"#] {
            assert!(matches!(read_config("x", text), Err(ModelError::Parse { .. })), "{text}");
        }
        assert!(read_config("x", r#"{"model_type":"gpt2","n_head":7}"#).is_err());
        assert!(read_config("x", r#"{"model_type":"gpt2","layer_norm_epsilon":-1}"#).is_err());
    }

    #[test]
    fn names_come_with_or_without_prefix_and_with_buffers() {
        let table = Table::new(&config());
        let bare: Vec<String> = table.parameters.iter().map(|p| p.name.clone()).collect();
        let full: Vec<String> = bare.iter().map(|n| format!("transformer.{n}")).collect();
        for names in [&bare, &full] {
            let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
            names.extend(["h.0.attn.bias", "transformer.h.1.attn.masked_bias", HEAD]);
            let stored = locate(&table, names.iter().copied()).unwrap();
            assert!(stored.iter().zip(&names).all(|(s, n)| s.name == *n));
            assert_eq!(stored.iter().filter(|s| s.transposed).count(), 2 * 4);
            let missing = locate(&table, names[1..].iter().copied());
            assert_eq!(missing, Err(NamesError::Missing { name: "wte.weight".into() }));
            names.push("h.2.attn.c_attn.weight");
            let extra = locate(&table, names.into_iter());
            assert_eq!(extra, Err(NamesError::Extra { name: "h.2.attn.c_attn.weight".into() }));
        }
    }
}
