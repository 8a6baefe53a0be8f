//! Llama and its kin in transformers: one set of names and fields, defaults and a few fields of their own. It must never know
//! a file.

use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use super::names::Names;
use super::rope::{self, Given, Parameters};
use super::{Family, decimal, form, has_llama_blocks, only, parse, refused, word};
use crate::model::config::{Config, INITIALIZER_RANGE, ModelError, Norm, Rotation};
use crate::program::rotary::Layout;
use crate::store::order::Order;

/// Llama.
pub(super) const LLAMA: Family = Family {
    model_type: "llama",
    architecture: "LlamaForCausalLM",
    names: NAMES,
    order: |_, _| Order::Same,
    takes: |config| has_llama_blocks(config),
    whole: |config| {
        let bias = |own: Option<bool>| own.unwrap_or(config.bias);
        let bias = bias(config.qkv_bias) || bias(config.out_bias);
        Config { qkv_bias: Some(bias), out_bias: Some(bias), ..config.clone() }
    },
    read: |name, text| read(name, text, &Kin { attention_bias: true, mlp_bias: true, ..KIN }),
    write: |config| {
        let own = json!({ "attention_bias": attention_bias(config), "mlp_bias": config.bias });
        written(config, own)
    },
};

/// Mistral: Llama with a window.
pub(super) const MISTRAL: Family = Family {
    model_type: "mistral",
    architecture: "MistralForCausalLM",
    takes: |config| has_llama_blocks(config) && config.window.is_some(),
    whole: Config::clone,
    read: |name, text| {
        let window = |_: &str, fields: &Fields| Ok(fields.sliding_window.unwrap_or(Some(4096)));
        let kin = Kin { intermediate_size: 14336, key_value_heads: Some(8), context: 4096 * 32, window, ..KIN };
        read(name, text, &kin)
    },
    write: |config| written(config, json!({ "sliding_window": config.window })),
    ..LLAMA
};

/// Qwen3: Llama with norms of queries and keys, and heads of a width of their own.
pub(super) const QWEN3: Family = Family {
    model_type: "qwen3",
    architecture: "Qwen3ForCausalLM",
    takes: |config| has_llama_blocks(config) && config.qk_norm,
    read: |name, text| {
        let kin = Kin {
            vocab_size: 151_936,
            intermediate_size: 22016,
            key_value_heads: Some(32),
            head_size: Some(128),
            context: 32768,
            window: upper_window,
            attention_bias: true,
            qk_norm: true,
            ..KIN
        };
        read(name, text, &kin)
    },
    write: |config| {
        let own = json!({
            "attention_bias": attention_bias(config),
            "max_window_layers": if config.window.is_some() { 0 } else { config.layers },
            "sliding_window": config.window,
            "use_sliding_window": config.window.is_some(),
        });
        written(config, own)
    },
    ..LLAMA
};

const NAMES: Names = Names {
    prefix: "model.",
    layers: "layers",
    pairs: &[
        ("wte", "embed_tokens"),
        ("ln_1", "input_layernorm"),
        ("attn.q", "self_attn.q_proj"),
        ("attn.k", "self_attn.k_proj"),
        ("attn.v", "self_attn.v_proj"),
        ("attn.q_norm", "self_attn.q_norm"),
        ("attn.k_norm", "self_attn.k_norm"),
        ("attn.c_proj", "self_attn.o_proj"),
        ("ln_2", "post_attention_layernorm"),
        ("mlp.gate", "mlp.gate_proj"),
        ("mlp.c_fc", "mlp.up_proj"),
        ("mlp.c_proj", "mlp.down_proj"),
        ("ln_f", "norm"),
    ],
    heads: &["lm_head"],
    buffers: &["self_attn.rotary_emb.inv_freq", "rotary_emb.inv_freq"],
};

/// What differs among the kin: defaults of fields that are left out, and which fields are obeyed.
struct Kin {
    vocab_size: usize,
    intermediate_size: usize,
    /// `None`: as many as there are heads.
    key_value_heads: Option<usize>,
    /// `None`: the width over the heads.
    head_size: Option<usize>,
    context: usize,
    /// The window that its fields mean.
    window: fn(&str, &Fields) -> Result<Option<usize>, ModelError>,
    attention_bias: bool,
    mlp_bias: bool,
    qk_norm: bool,
}

/// Llama's, but for its biases.
const KIN: Kin = Kin {
    vocab_size: 32000,
    intermediate_size: 11008,
    key_value_heads: None,
    head_size: None,
    context: 2048,
    window: |name, fields| match fields.sliding_window.flatten() {
        // It does nothing there, and may have been meant.
        Some(window) => Err(refused(name, "sliding_window", window, "a llama has none; only null can be read")),
        None => Ok(None),
    },
    attention_bias: false,
    mlp_bias: false,
    qk_norm: false,
};

/// The fields that matter of a `config.json`; what is left out or null has its family's default.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Fields {
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    #[serde(deserialize_with = "there")]
    num_key_value_heads: Option<Option<usize>>,
    head_dim: Option<usize>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    max_position_embeddings: Option<usize>,
    vocab_size: Option<usize>,
    hidden_act: Option<String>,
    rms_norm_eps: Option<f64>,
    initializer_range: Option<f64>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    tie_word_embeddings: Option<bool>,
    rope_theta: Option<f64>,
    rope_scaling: Option<Parameters>,
    rope_parameters: Option<Parameters>,
    partial_rotary_factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
    #[serde(deserialize_with = "there")]
    sliding_window: Option<Option<usize>>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
}

/// Where null means something else than a field that is left out.
fn there<'de, D: Deserializer<'de>>(field: D) -> Result<Option<Option<usize>>, D::Error> {
    Option::deserialize(field).map(Some)
}

fn read(name: &str, text: &str, kin: &Kin) -> Result<Config, ModelError> {
    let fields: Fields = parse(name, text)?;
    only(name, "attention_bias", fields.attention_bias.filter(|_| !kin.attention_bias), false)?;
    only(name, "mlp_bias", fields.mlp_bias.filter(|_| !kin.mlp_bias), false)?;
    let window = window(name, &fields, kin)?;
    let context = fields.max_position_embeddings.unwrap_or(kin.context);
    let rotary = rotation(name, &fields, context)?;
    let heads = fields.num_attention_heads.unwrap_or(32);
    let d_model = fields.hidden_size.unwrap_or(4096);
    let d_ff = fields.intermediate_size.unwrap_or(kin.intermediate_size);
    let (attention_bias, mlp_bias) = (fields.attention_bias.unwrap_or(false), fields.mlp_bias.unwrap_or(false));
    let own = (attention_bias != mlp_bias).then_some(attention_bias);
    Ok(Config {
        name: name.into(),
        layers: fields.num_hidden_layers.unwrap_or(32),
        heads,
        key_value_heads: fields.num_key_value_heads.unwrap_or(kin.key_value_heads).filter(|count| *count != heads),
        head_size: fields.head_dim.or(kin.head_size).filter(|size| Some(d_model) != size.checked_mul(heads)),
        d_model,
        d_ff: Some(d_ff).filter(|inner| Some(*inner) != d_model.checked_mul(4)),
        context,
        vocab_size: fields.vocab_size.unwrap_or(kin.vocab_size),
        bias: mlp_bias,
        qkv_bias: own,
        out_bias: own,
        tied: fields.tie_word_embeddings.unwrap_or(false),
        split_qkv: true,
        qk_norm: kin.qk_norm,
        window,
        activation: form(name, "hidden_act", fields.hidden_act.as_deref().unwrap_or("silu"))?,
        gated: true,
        norm: Norm::Rms,
        norm_eps: fields.rms_norm_eps.unwrap_or(1e-6) as f32,
        initializer_range: fields.initializer_range.unwrap_or(INITIALIZER_RANGE),
        rotary: Some(rotary),
        ..Config::default()
    })
}

fn rotation(name: &str, fields: &Fields, context: usize) -> Result<Rotation, ModelError> {
    let rope = Given {
        scaling: fields.rope_scaling.clone(),
        parameters: fields.rope_parameters.clone(),
        theta: fields.rope_theta,
        partial: fields.partial_rotary_factor,
        original_context: fields.original_max_position_embeddings,
        context,
    };
    let rope = rope.read(name)?;
    if let Some(partial) = rope.partial.filter(|share| *share != 1.0) {
        return Err(refused(name, "partial_rotary_factor", partial, "only 1 can be read: all of a head turns"));
    }
    Ok(Rotation { dims: None, layout: Layout::Halves, base: rope.base, scaling: rope.scaling })
}

/// The window of a Qwen3, which upper layers have and lower ones have not: of all, or of none.
fn upper_window(name: &str, fields: &Fields) -> Result<Option<usize>, ModelError> {
    let window = fields.sliding_window.unwrap_or(Some(4096)).filter(|_| fields.use_sliding_window == Some(true));
    let (lower, layers) = (fields.max_window_layers.unwrap_or(28), fields.num_hidden_layers.unwrap_or(32));
    let full = |types: &Vec<String>| types.iter().all(|kind| kind == "full_attention");
    match (&fields.layer_types, window) {
        (_, None) => Ok(None),
        (Some(types), _) => Ok(window.filter(|_| !full(types))),
        (None, _) if lower == 0 => Ok(window),
        (None, _) if lower >= layers => Ok(None),
        _ => {
            let cure = format!("makes a window of {} of {layers} layers; only all or none can be read", layers - lower);
            Err(refused(name, "max_window_layers", lower, &cure))
        }
    }
}

/// The window that every layer has.
fn window(name: &str, fields: &Fields, kin: &Kin) -> Result<Option<usize>, ModelError> {
    let window = (kin.window)(name, fields)?;
    let kind = if window.is_some() { "sliding_attention" } else { "full_attention" };
    match fields.layer_types.iter().flatten().find(|found| *found != kind) {
        Some(other) => {
            let cure = format!("only {kind} in every layer can be read");
            Err(refused(name, "layer_types", format!("{other:?}"), &cure))
        }
        None => Ok(window),
    }
}

fn attention_bias(config: &Config) -> bool {
    config.qkv_bias.unwrap_or(config.bias) || config.out_bias.unwrap_or(config.bias)
}

/// The fields of a model, and those that its family has of its own. Dropout is 0: how much is left out is for whoever trains
/// to say.
fn written(config: &Config, own: Value) -> Value {
    let mut fields = json!({
        "attention_dropout": 0.0,
        // Which ids end a text is the tokenizer's to say.
        "bos_token_id": null,
        "eos_token_id": null,
        "head_dim": config.head_size(),
        "hidden_act": word(config.activation),
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff(),
        "max_position_embeddings": config.context,
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "num_key_value_heads": config.key_value_heads(),
        "rms_norm_eps": decimal(config.norm_eps),
        "rope_scaling": rope::scaling(config),
        "rope_theta": rope::base(config),
    });
    if let (Value::Object(fields), Value::Object(own)) = (&mut fields, own) {
        fields.extend(own);
    }
    fields
}
