//! GPT-NeoX and Pythia in transformers: queries, keys and values in one tensor, head by head. It must never know a file.

use serde_json::{Value, json};

use super::names::Names;
use super::rope::{self, Given, Parameters};
use super::{Family, decimal, form, parse, refused, word};
use crate::model::config::{Config, INITIALIZER_RANGE, ModelError, Norm, Residual, Rotation};
use crate::program::rotary::Layout;
use crate::store::order::Order;

/// The family.
pub(super) const FAMILY: Family = Family {
    model_type: "gpt_neox",
    architecture: "GPTNeoXForCausalLM",
    names: Names {
        prefix: "gpt_neox.",
        layers: "layers",
        pairs: &[
            ("wte", "embed_in"),
            ("ln_1", "input_layernorm"),
            ("attn.c_attn", "attention.query_key_value"),
            ("attn.c_proj", "attention.dense"),
            ("ln_2", "post_attention_layernorm"),
            ("mlp.c_fc", "mlp.dense_h_to_4h"),
            ("mlp.c_proj", "mlp.dense_4h_to_h"),
            ("ln_f", "final_layer_norm"),
        ],
        // The second is what newer versions call it in memory.
        heads: &["embed_out", "lm_head"],
        buffers: &["attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq", "rotary_emb.inv_freq"],
    },
    order: |config, parameter| match parameter.name.contains(".attn.c_attn.") {
        true => Order::Grouped { heads: config.heads, head_size: config.head_size() },
        false => Order::Same,
    },
    takes: |config| config.norm == Norm::Layer && config.rotary.as_ref().is_some_and(|r| r.layout == Layout::Halves),
    whole: |config| {
        let bias = |own: Option<bool>| own.unwrap_or(config.bias);
        let bias = bias(config.qkv_bias) || bias(config.out_bias);
        Config { bias: true, qkv_bias: Some(bias), out_bias: Some(bias), ..config.clone() }
    },
    read,
    write,
};

/// The fields that matter of a `config.json`, with the defaults of transformers.
#[derive(serde::Deserialize)]
#[serde(default)]
struct Fields {
    num_hidden_layers: usize,
    num_attention_heads: usize,
    hidden_size: usize,
    intermediate_size: usize,
    max_position_embeddings: usize,
    vocab_size: usize,
    hidden_act: String,
    layer_norm_eps: f64,
    initializer_range: f64,
    use_parallel_residual: Option<bool>,
    attention_bias: Option<bool>,
    tie_word_embeddings: Option<bool>,
    rotary_pct: Option<f64>,
    rotary_emb_base: Option<f64>,
    rope_scaling: Option<Parameters>,
    rope_parameters: Option<Parameters>,
    original_max_position_embeddings: Option<usize>,
}

impl Default for Fields {
    fn default() -> Fields {
        Fields {
            num_hidden_layers: 44,
            num_attention_heads: 64,
            hidden_size: 6144,
            intermediate_size: 24576,
            max_position_embeddings: 2048,
            vocab_size: 50432,
            hidden_act: "gelu".into(),
            layer_norm_eps: 1e-5,
            initializer_range: INITIALIZER_RANGE,
            use_parallel_residual: None,
            attention_bias: None,
            tie_word_embeddings: None,
            rotary_pct: None,
            rotary_emb_base: None,
            rope_scaling: None,
            rope_parameters: None,
            original_max_position_embeddings: None,
        }
    }
}

/// Share of a head's columns that turn where it is not said.
const SHARE: f64 = 0.25;

fn read(name: &str, text: &str) -> Result<Config, ModelError> {
    let fields: Fields = parse(name, text)?;
    let rope = Given {
        scaling: fields.rope_scaling,
        parameters: fields.rope_parameters,
        theta: fields.rotary_emb_base,
        partial: fields.rotary_pct,
        original_context: fields.original_max_position_embeddings,
        context: fields.max_position_embeddings,
    };
    let rope = rope.read(name)?;
    let share = rope.partial.unwrap_or(SHARE);
    if !(share > 0.0 && share <= 1.0) {
        return Err(refused(name, "rotary_pct", share, "must be more than 0 and at most 1"));
    }
    let Some(head_size) = fields.hidden_size.checked_div(fields.num_attention_heads) else {
        return Err(refused(name, "num_attention_heads", 0, "a model has heads"));
    };
    let bias = fields.attention_bias.unwrap_or(true);
    Ok(Config {
        name: name.into(),
        layers: fields.num_hidden_layers,
        heads: fields.num_attention_heads,
        d_model: fields.hidden_size,
        d_ff: Some(fields.intermediate_size).filter(|inner| Some(*inner) != fields.hidden_size.checked_mul(4)),
        context: fields.max_position_embeddings,
        vocab_size: fields.vocab_size,
        qkv_bias: (!bias).then_some(false),
        out_bias: (!bias).then_some(false),
        tied: fields.tie_word_embeddings.unwrap_or(false),
        activation: form(name, "hidden_act", &fields.hidden_act)?,
        norm_eps: fields.layer_norm_eps as f32,
        residual: if fields.use_parallel_residual.unwrap_or(true) { Residual::Parallel } else { Residual::Serial },
        initializer_range: fields.initializer_range,
        rotary: Some(Rotation {
            dims: Some((head_size as f64 * share) as usize),
            layout: Layout::Halves,
            base: rope.base,
            scaling: rope.scaling,
        }),
        ..Config::default()
    })
}

/// Dropout is 0: how much is left out is for whoever trains to say.
fn write(config: &Config) -> Value {
    let head_size = config.head_size() as f64;
    // The product is cut to a whole number when it is read: it must not come out a little less than it is.
    let mut share = config.rotary_dims() as f64 / head_size;
    if ((head_size * share) as usize) < config.rotary_dims() {
        share = share.next_up();
    }
    json!({
        "attention_bias": config.qkv_bias.unwrap_or(config.bias) || config.out_bias.unwrap_or(config.bias),
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        // Which ids end a text is the tokenizer's to say.
        "bos_token_id": null,
        "eos_token_id": null,
        "hidden_act": word(config.activation),
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff(),
        "layer_norm_eps": decimal(config.norm_eps),
        "max_position_embeddings": config.context,
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "rope_scaling": rope::scaling(config),
        "rotary_emb_base": rope::base(config),
        "rotary_pct": share,
        "use_parallel_residual": config.residual == Residual::Parallel,
    })
}
