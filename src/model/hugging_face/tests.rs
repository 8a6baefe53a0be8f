//! Every family: a configuration and back, what is refused by name, and names with and without prefix and buffers. Models
//! with weights are in tests/hugging_face.rs.

use super::*;
use crate::model::config::{Residual, Rotation};
use crate::model::preset;
use crate::model::table::Table;

/// A small GPT-2.
fn gpt2() -> Config {
    read_config("tiny", r#"{"model_type":"gpt2","n_layer":2,"n_head":2,"n_embd":8,"n_positions":4,"vocab_size":5}"#)
        .unwrap()
}

/// A small model of each other family.
fn tiny() -> Vec<Config> {
    ["gpt-neox-tiny", "gpt-j-tiny", "llama-tiny", "mistral-tiny", "qwen3-tiny"].map(|name| preset(name).unwrap()).into()
}

#[test]
fn a_config_and_back_is_the_same() {
    let erf = Config { activation: Form::Erf, norm_eps: 1e-6, initializer_range: 0.07, ..gpt2() };
    for c in [gpt2(), erf] {
        assert_eq!(read_config("tiny", &write_config(&c, "float32").unwrap()).unwrap(), c);
    }
}

#[test]
fn every_preset_is_written_and_read_back_as_its_family() {
    let types: Vec<&str> = tiny().iter().map(|c| Family::of(c).model_type).collect();
    assert_eq!(types, ["gpt_neox", "gptj", "llama", "mistral", "qwen3"]);
    for (name, _) in crate::model::PRESETS {
        let config = preset(name).unwrap().with_vocabulary(65).unwrap();
        let text = write_config(&config, "bfloat16").unwrap();
        let back = read_config(name, &text).unwrap();
        assert_eq!(Family::of(&back).model_type, Family::of(&config).model_type, "{name}");
        assert_eq!(difference(&resolved(&whole(&config)), &resolved(&back)), None, "{name}");
        // What was read is written as it was.
        assert_eq!(write_config(&back, "bfloat16").unwrap(), text, "{name}");
        assert_eq!(back, read_config(name, &write_config(&back, "bfloat16").unwrap()).unwrap(), "{name}");
    }
}

/// Fields that a family refuses, with a value; `model_type` beside.
const REFUSED: &[(&str, &str, &str)] = &[
    ("gpt2", "scale_attn_weights", "false"),
    ("gpt2", "scale_attn_by_inverse_layer_idx", "true"),
    ("gpt2", "reorder_and_upcast_attn", "true"),
    ("gpt2", "add_cross_attention", "true"),
    ("gpt2", "is_encoder_decoder", "true"),
    ("gpt2", "tie_word_embeddings", "false"),
    ("gpt2", "pruned_heads", r#"{"0":[1]}"#),
    ("gpt2", "quantization_config", "{}"),
    ("gpt2", "n_inner", "100"),
    ("gpt2", "activation_function", r#""relu""#),
    ("gpt2", "vocab_size", "0"),
    ("gptj", "tie_word_embeddings", "true"),
    ("gptj", "scale_attn_weights", "false"),
    ("gptj", "rotary_dim", "null"),
    ("gptj", "activation_function", r#""tanh""#),
    ("gptj", "quantization_config", r#"{"bits":4}"#),
    ("gpt_neox", "hidden_act", r#""quick_gelu""#),
    ("gpt_neox", "rotary_pct", "0"),
    ("gpt_neox", "rotary_pct", "1.5"),
    ("gpt_neox", "num_attention_heads", "0"),
    ("gpt_neox", "rope_scaling", r#"{"type":"linear","factor":2.0}"#),
    ("gpt_neox", "rope_parameters", r#"{"rope_type":"yarn","factor":2.0}"#),
    ("gpt_neox", "quantization_config", r#"{"bits":4}"#),
    ("llama", "hidden_act", r#""tanh""#),
    ("llama", "rope_scaling", r#"{"type":"dynamic","factor":2.0}"#),
    ("llama", "rope_scaling", r#"{"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0}"#),
    ("llama", "rope_parameters", r#"{"full_attention":{"rope_type":"default"}}"#),
    ("llama", "partial_rotary_factor", "0.5"),
    ("llama", "sliding_window", "4096"),
    ("llama", "layer_types", r#"["full_attention","sliding_attention"]"#),
    ("llama", "quantization_config", r#"{"bits":4}"#),
    ("llama", "vocab_size", "0"),
    ("mistral", "attention_bias", "true"),
    ("mistral", "mlp_bias", "true"),
    ("mistral", "layer_types", r#"["full_attention","sliding_attention"]"#),
    ("mistral", "rope_scaling", r#"{"rope_type":"longrope"}"#),
    ("qwen3", "mlp_bias", "true"),
    ("qwen3", "hidden_act", r#""gelu_python""#),
    ("qwen3", "layer_types", r#"["sliding_attention"]"#),
    ("qwen3", "rope_parameters", r#"{"rope_type":"yarn","factor":4.0}"#),
];

#[test]
fn fields_that_change_the_function_are_refused_by_name() {
    let refuses = |text: &str, field: &str| {
        let error = read_config("x", text).unwrap_err();
        assert!(matches!(&error, ModelError::Impossible { field: named, .. } if *named == field), "{text}: {error}");
    };
    refuses(r#"{"model_type":"bert"}"#, "model_type");
    refuses("{}", "model_type");
    for (model, field, value) in REFUSED {
        refuses(&format!(r#"{{"model_type":"{model}","{field}":{value}}}"#), field);
    }
    for text in ["", "[1]", r#"{"model_type":"gpt2","n_layer":-1}"#, r#"{"model_type":"gptj","n_head":1,"n_head":2}"#] {
        assert!(matches!(read_config("x", text), Err(ModelError::Parse { .. })), "{text}");
    }
    assert!(read_config("x", r#"{"model_type":"gpt2","n_head":7}"#).is_err());
    assert!(read_config("x", r#"{"model_type":"gpt2","layer_norm_epsilon":-1}"#).is_err());
    let beside = r#""rope_scaling":{"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,
        "original_max_position_embeddings":8192},"original_max_position_embeddings":4096"#;
    refuses(&format!(r#"{{"model_type":"llama",{beside}}}"#), "original_max_position_embeddings");
}

#[test]
fn what_is_left_out_is_what_transformers_takes() {
    let read = |model: &str| read_config("x", &format!(r#"{{"model_type":"{model}"}}"#)).unwrap();
    let neox = Config { parameters: 0, initializer_range: 0.02, name: "x".into(), ..preset("gpt-neox-20b").unwrap() };
    assert_eq!(read("gpt_neox"), Config { activation: Form::Erf, ..neox });
    assert_eq!(read("gptj"), Config { parameters: 0, name: "x".into(), ..preset("gpt-j-6b").unwrap() });
    let mistral = Config { parameters: 0, name: "x".into(), ..preset("mistral-7b").unwrap() };
    assert_eq!(read("mistral"), Config { context: 131_072, norm_eps: 1e-6, ..mistral });
    let qwen3 = read("qwen3");
    assert_eq!((qwen3.head_size, qwen3.heads, qwen3.qkv_width(), qwen3.qk_norm), (None, 32, 3 * 4096, true));
    let llama = read("llama");
    assert_eq!((llama.key_value_heads(), llama.d_ff(), llama.context, llama.vocab_size), (32, 11008, 2048, 32000));
    assert_eq!((llama.tied, llama.window, llama.norm_eps), (false, None, 1e-6));
    // Null is not the same as left out: all heads have keys and values of their own, and there is no window.
    let text = r#"{"model_type":"mistral","num_key_value_heads":null,"sliding_window":null}"#;
    let mistral = read_config("x", text).unwrap();
    assert_eq!((mistral.key_value_heads(), mistral.window), (32, None));
}

#[test]
fn rotary_positions_are_read_as_every_version_writes_them() {
    let numbers = r#""factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,"original_max_position_embeddings":64"#;
    let read = |text: &str| read_config("x", text).unwrap().rotary.unwrap();
    let old = format!(r#""rope_theta":5e5,"rope_scaling":{{"rope_type":"llama3",{numbers}}}"#);
    let older = format!(r#""rope_theta":500000,"rope_scaling":{{"type":"llama3",{numbers}}}"#);
    let new = format!(r#""rope_parameters":{{"rope_type":"llama3","rope_theta":500000.0,{numbers}}}"#);
    let both = format!(r#"{old},"rope_parameters":{{"rope_type":"default","rope_theta":1.0}}"#);
    for text in [old, older, new, both] {
        let found = read(&format!(r#"{{"model_type":"llama",{text}}}"#));
        let scaling = found.scaling.unwrap();
        assert_eq!((found.base, scaling.factor, scaling.original_context), (5e5, 8.0, 64), "{text}");
    }
    for text in [
        r#""rotary_pct":0.5,"rotary_emb_base":77"#,
        r#""rope_parameters":{"rope_theta":77,"partial_rotary_factor":0.5}"#,
    ] {
        let found = read(&format!(r#"{{"model_type":"gpt_neox",{text}}}"#));
        assert_eq!((found.base, found.dims), (77.0, Some(48)), "{text}");
    }
}

#[test]
fn a_qwen3_has_a_window_in_all_layers_or_in_none() {
    let read = |text: &str| read_config("x", &format!(r#"{{"model_type":"qwen3","num_hidden_layers":4{text}}}"#));
    for (text, window) in [
        ("", None),
        (r#","sliding_window":64"#, None),
        (r#","use_sliding_window":true,"sliding_window":64,"max_window_layers":0"#, Some(64)),
        (r#","use_sliding_window":true,"max_window_layers":0"#, Some(4096)),
        (r#","use_sliding_window":true,"max_window_layers":4"#, None),
        (r#","use_sliding_window":true,"sliding_window":null,"max_window_layers":2"#, None),
        (r#","use_sliding_window":true,"max_window_layers":2,"layer_types":["full_attention"]"#, None),
        (r#","use_sliding_window":true,"sliding_window":9,"layer_types":["sliding_attention"]"#, Some(9)),
    ] {
        let config = read(text).unwrap();
        assert_eq!(config.window, window, "{text}");
        let back = read_config("x", &write_config(&config, "float32").unwrap()).unwrap();
        assert_eq!((back.window, Family::of(&back).model_type), (window, "qwen3"), "{text}");
    }
    let some = read(r#","use_sliding_window":true,"max_window_layers":2"#).unwrap_err();
    assert!(matches!(some, ModelError::Impossible { field: "max_window_layers", .. }), "{some}");
    let mixed = r#","use_sliding_window":true,"layer_types":["full_attention","sliding_attention"]"#;
    assert!(matches!(read(mixed), Err(ModelError::Impossible { field: "layer_types", .. })));
}

/// A change that no family of its parts has, and the field that is named.
type Change = (&'static str, fn(&mut Config), &'static str);

#[test]
fn what_a_family_cannot_express_is_refused_by_name() {
    let cases: &[Change] = &[
        ("gpt2", |c| c.window = Some(4), "window"),
        ("gpt2", |c| c.gated = true, "gated"),
        ("gpt2", |c| c.norm = Norm::Rms, "norm"),
        ("gpt2", |c| c.d_ff = Some(24), "d_ff"),
        ("gpt2", |c| c.tied = false, "tie_word_embeddings"),
        ("gpt2", |c| c.residual = Residual::Parallel, "residual"),
        ("gpt-neox-tiny", |c| c.residual = Residual::Shared, "residual"),
        ("gpt-neox-tiny", |c| c.split_qkv = true, "split_qkv"),
        ("gpt-neox-tiny", |c| c.key_value_heads = Some(1), "key_value_heads"),
        ("gpt-neox-tiny", |c| c.window = Some(4), "window"),
        ("gpt-neox-tiny", |c| c.head_bias = true, "head_bias"),
        ("gpt-j-tiny", |c| c.qkv_bias = Some(true), "qkv_bias"),
        ("gpt-j-tiny", |c| c.split_qkv = false, "split_qkv"),
        ("gpt-j-tiny", |c| c.residual = Residual::Serial, "residual"),
        ("gpt-j-tiny", |c| *c = Config { head_bias: false, tied: true, ..c.clone() }, "tie_word_embeddings"),
        ("gpt-j-tiny", |c| c.rotary.as_mut().unwrap().base = 5e5, "rotary"),
        ("llama-tiny", |c| c.gated = false, "gated"),
        ("llama-tiny", |c| c.split_qkv = false, "split_qkv"),
        ("llama-tiny", |c| c.residual = Residual::Parallel, "residual"),
        ("llama-tiny", |c| c.rotary.as_mut().unwrap().dims = Some(4), "rotary"),
        ("llama-tiny", |c| *c = Config { head_bias: true, ..c.clone() }, "head_bias"),
        ("mistral-tiny", |c| c.bias = true, "bias"),
        ("mistral-tiny", |c| c.qkv_bias = Some(true), "qkv_bias"),
        ("qwen3-tiny", |c| c.bias = true, "bias"),
        ("qwen3-tiny", |c| c.residual = Residual::Parallel, "residual"),
    ];
    for (name, change, field) in cases {
        let mut config = if *name == "gpt2" { gpt2() } else { preset(name).unwrap() };
        assert!(write_config(&config, "float32").is_ok(), "{name}");
        change(&mut config);
        let error = write_config(&config, "float32").unwrap_err();
        assert!(matches!(&error, ModelError::Impossible { field: named, .. } if named == field), "{name}: {error}");
    }
}

#[test]
fn a_share_of_a_head_comes_back_as_its_columns() {
    let neox = preset("gpt-neox-tiny").unwrap();
    for head_size in (8..=128).step_by(8) {
        for dims in (2..=head_size).step_by(2) {
            let rotary = Some(Rotation { dims: Some(dims), ..neox.rotary.clone().unwrap() });
            let config = Config { d_model: 3 * head_size, rotary, ..neox.clone() };
            let back = read_config("x", &write_config(&config, "float32").unwrap()).unwrap();
            assert_eq!(back.rotary_dims(), dims, "of {head_size}");
        }
    }
}

#[test]
fn biases_that_a_family_always_has_are_written() {
    let neox = preset("gpt-neox-tiny").unwrap();
    let bare = Config { bias: false, ..neox.clone() };
    let back = read_config("x", &write_config(&bare, "float32").unwrap()).unwrap();
    assert_eq!((back.bias, back.qkv_bias, back.out_bias), (true, Some(false), Some(false)));
    let some = Config { qkv_bias: Some(true), ..bare };
    let back = read_config("x", &write_config(&some, "float32").unwrap()).unwrap();
    assert_eq!((back.bias, back.qkv_bias, back.out_bias), (true, None, None));
}

#[test]
fn names_come_with_or_without_prefix_and_with_buffers() {
    let config = gpt2();
    let bare: Vec<String> = Table::new(&config).parameters.into_iter().map(|p| p.name).collect();
    let full: Vec<String> = bare.iter().map(|n| format!("transformer.{n}")).collect();
    for names in [&bare, &full] {
        let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
        names.extend(["h.0.attn.bias", "transformer.h.1.attn.masked_bias", "lm_head.weight"]);
        let stored = locate(&config, names.iter().copied()).unwrap();
        assert!(stored.iter().zip(&names).all(|(s, n)| s.name == *n));
        assert_eq!(stored.iter().filter(|s| s.order == Order::Transposed).count(), 2 * 4);
        let missing = locate(&config, names[1..].iter().copied());
        assert_eq!(missing, Err(NamesError::Missing { name: "wte.weight".into() }));
        names.push("h.2.attn.c_attn.weight");
        let extra = locate(&config, names.into_iter());
        assert_eq!(extra, Err(NamesError::Extra { name: "h.2.attn.c_attn.weight".into() }));
    }
}

#[test]
fn every_family_finds_what_it_writes() {
    for config in tiny() {
        let family = Family::of(&config);
        let full: Vec<String> = Table::new(&config).parameters.iter().map(|p| stored_as(&config, p).name).collect();
        let bare = full.iter().map(|name| name.strip_prefix(family.names.prefix).unwrap_or(name).to_owned());
        for names in [full.clone(), bare.collect()] {
            let all: Vec<String> = names.iter().cloned().chain(buffers(family)).collect();
            let found = locate(&config, all.iter().map(String::as_str)).unwrap();
            assert!(found.iter().map(|s| &s.name).eq(&names), "{}", family.model_type);
            let some = all.iter().skip(1).map(String::as_str);
            assert!(matches!(locate(&config, some), Err(NamesError::Missing { .. })), "{}", family.model_type);
        }
        let head = full.iter().any(|name| heads(&config).contains(name));
        assert_eq!(head, !config.tied, "{}", family.model_type);
        let tied = Config { tied: true, head_bias: false, ..config };
        let names = full.iter().filter(|name| *name != "lm_head.bias");
        assert!(locate(&tied, names.map(String::as_str)).is_ok(), "the head of a tied model is passed over");
    }
}

/// The buffers of a family, in the second block and beside the blocks.
fn buffers(family: &'static Family) -> impl Iterator<Item = String> {
    let super::names::Names { prefix, layers, buffers, .. } = &family.names;
    buffers.iter().flat_map(move |buffer| [format!("{prefix}{layers}.1.{buffer}"), format!("{layers}.12.{buffer}")])
}
