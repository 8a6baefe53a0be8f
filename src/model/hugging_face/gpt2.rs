//! GPT-2 in transformers. Its linear layers are `Conv1D`, whose weights are the transposes of ours. It must never know a
//! file.

use serde_json::{Value, json};

use super::names::Names;
use super::{Family, decimal, form, only, parse, refused, word};
use crate::model::config::{Config, INITIALIZER_RANGE, ModelError};
use crate::program::activation::Form;
use crate::store::order::Order;

/// The family; it is written for every model that no other takes.
pub(super) const FAMILY: Family = Family {
    model_type: "gpt2",
    architecture: "GPT2LMHeadModel",
    names: Names {
        prefix: "transformer.",
        layers: "h",
        pairs: &[],
        heads: &["lm_head"],
        buffers: &["attn.bias", "attn.masked_bias"],
    },
    order: |_, parameter| match !parameter.vector && parameter.name.starts_with("h.") {
        true => Order::Transposed,
        false => Order::Same,
    },
    takes: |_| true,
    whole: |config| Config { bias: true, qkv_bias: None, out_bias: None, ..config.clone() },
    read,
    write,
};

/// The fields that matter of a `config.json`, with the defaults of transformers.
#[derive(serde::Deserialize)]
#[serde(default)]
struct Fields {
    n_layer: usize,
    n_head: usize,
    n_embd: usize,
    n_positions: usize,
    vocab_size: usize,
    n_inner: Option<usize>,
    layer_norm_epsilon: f64,
    initializer_range: f64,
    activation_function: String,
    scale_attn_weights: Option<bool>,
    scale_attn_by_inverse_layer_idx: Option<bool>,
    reorder_and_upcast_attn: Option<bool>,
    tie_word_embeddings: Option<bool>,
}

impl Default for Fields {
    fn default() -> Fields {
        Fields {
            n_layer: 12,
            n_head: 12,
            n_embd: 768,
            n_positions: 1024,
            vocab_size: 50257,
            n_inner: None,
            layer_norm_epsilon: 1e-5,
            initializer_range: INITIALIZER_RANGE,
            activation_function: "gelu_new".into(),
            scale_attn_weights: None,
            scale_attn_by_inverse_layer_idx: None,
            reorder_and_upcast_attn: None,
            tie_word_embeddings: None,
        }
    }
}

fn read(name: &str, text: &str) -> Result<Config, ModelError> {
    let fields: Fields = parse(name, text)?;
    for (field, value, wanted) in [
        ("scale_attn_weights", fields.scale_attn_weights, true),
        ("scale_attn_by_inverse_layer_idx", fields.scale_attn_by_inverse_layer_idx, false),
        ("reorder_and_upcast_attn", fields.reorder_and_upcast_attn, false),
        ("tie_word_embeddings", fields.tie_word_embeddings, true),
    ] {
        only(name, field, value, wanted)?;
    }
    if let Some(inner) = fields.n_inner.filter(|inner| Some(*inner) != fields.n_embd.checked_mul(4)) {
        return Err(refused(name, "n_inner", inner, "only 4 * n_embd can be read"));
    }
    let activation = form(name, "activation_function", &fields.activation_function)?;
    if !matches!(activation, Form::Tanh | Form::Erf) {
        let value = format!("{:?}", fields.activation_function);
        return Err(refused(name, "activation_function", value, "only gelu_new and gelu can be read"));
    }
    Ok(Config {
        name: name.into(),
        layers: fields.n_layer,
        heads: fields.n_head,
        d_model: fields.n_embd,
        context: fields.n_positions,
        vocab_size: fields.vocab_size,
        activation,
        norm_eps: fields.layer_norm_epsilon as f32,
        initializer_range: fields.initializer_range,
        ..Config::default()
    })
}

/// Dropout is 0: how much is left out is for whoever trains to say.
fn write(config: &Config) -> Value {
    json!({
        "activation_function": word(config.activation),
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        // The end of text of GPT-2 is its last id; other vocabularies may have none, and then no id may stand here.
        "bos_token_id": (config.vocab_size == 50257).then_some(50256),
        "eos_token_id": (config.vocab_size == 50257).then_some(50256),
        "layer_norm_epsilon": decimal(config.norm_eps),
        "n_ctx": config.context,
        "n_embd": config.d_model,
        "n_head": config.heads,
        "n_inner": null,
        "n_layer": config.layers,
        "n_positions": config.context,
    })
}
