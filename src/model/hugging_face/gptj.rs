//! GPT-J in transformers: attention and MLP behind one norm, positions that turn neighbours, a head with a bias. It must
//! never know a file.

use serde_json::{Value, json};

use super::names::Names;
use super::{Family, decimal, form, only, parse, refused, word};
use crate::model::config::{Config, INITIALIZER_RANGE, ModelError, Residual, Rotation};
use crate::program::rotary::Layout;
use crate::store::order::Order;

/// The family.
pub(super) const FAMILY: Family = Family {
    model_type: "gptj",
    architecture: "GPTJForCausalLM",
    names: Names {
        prefix: "transformer.",
        layers: "h",
        pairs: &[
            ("attn.q", "attn.q_proj"),
            ("attn.k", "attn.k_proj"),
            ("attn.v", "attn.v_proj"),
            ("attn.c_proj", "attn.out_proj"),
            ("mlp.c_fc", "mlp.fc_in"),
            ("mlp.c_proj", "mlp.fc_out"),
        ],
        heads: &["lm_head"],
        buffers: &["attn.bias", "attn.masked_bias"],
    },
    order: |_, _| Order::Same,
    takes: |config| config.rotary.as_ref().is_some_and(|r| r.layout == Layout::Interleaved),
    whole: |config| Config {
        bias: true,
        qkv_bias: Some(config.qkv_bias.unwrap_or(config.bias)),
        out_bias: Some(config.out_bias.unwrap_or(config.bias)),
        head_bias: !config.tied,
        ..config.clone()
    },
    read,
    write,
};

/// Rotary positions have no other base there.
const BASE: f64 = 10000.0;

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
    rotary_dim: Option<usize>,
    layer_norm_epsilon: f64,
    initializer_range: f64,
    activation_function: String,
    scale_attn_weights: Option<bool>,
    tie_word_embeddings: Option<bool>,
}

impl Default for Fields {
    fn default() -> Fields {
        Fields {
            n_layer: 28,
            n_head: 16,
            n_embd: 4096,
            n_positions: 2048,
            vocab_size: 50400,
            n_inner: None,
            rotary_dim: Some(64),
            layer_norm_epsilon: 1e-5,
            initializer_range: INITIALIZER_RANGE,
            activation_function: "gelu_new".into(),
            scale_attn_weights: None,
            tie_word_embeddings: None,
        }
    }
}

fn read(name: &str, text: &str) -> Result<Config, ModelError> {
    let fields: Fields = parse(name, text)?;
    // A tied head has a bias there too, and the token table has none.
    only(name, "tie_word_embeddings", fields.tie_word_embeddings, false)?;
    only(name, "scale_attn_weights", fields.scale_attn_weights, true)?;
    let Some(dims) = fields.rotary_dim else {
        return Err(refused(name, "rotary_dim", "null", "give the columns of a head that are turned"));
    };
    Ok(Config {
        name: name.into(),
        layers: fields.n_layer,
        heads: fields.n_head,
        d_model: fields.n_embd,
        d_ff: fields.n_inner.filter(|inner| Some(*inner) != fields.n_embd.checked_mul(4)),
        context: fields.n_positions,
        vocab_size: fields.vocab_size,
        qkv_bias: Some(false),
        out_bias: Some(false),
        head_bias: true,
        tied: false,
        split_qkv: true,
        activation: form(name, "activation_function", &fields.activation_function)?,
        norm_eps: fields.layer_norm_epsilon as f32,
        residual: Residual::Shared,
        initializer_range: fields.initializer_range,
        rotary: Some(Rotation { dims: Some(dims), layout: Layout::Interleaved, base: BASE, scaling: None }),
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
        // As of GPT-2, whose tokenizer it has.
        "bos_token_id": (config.vocab_size == 50400).then_some(50256),
        "eos_token_id": (config.vocab_size == 50400).then_some(50256),
        "layer_norm_epsilon": decimal(config.norm_eps),
        "n_embd": config.d_model,
        "n_head": config.heads,
        "n_inner": config.d_ff(),
        "n_layer": config.layers,
        "n_positions": config.context,
        "rotary_dim": config.rotary_dims(),
    })
}
