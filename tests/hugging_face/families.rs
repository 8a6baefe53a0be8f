//! What holds for every family: import and export give equal bytes wherever the weights live, fine-tuning goes on bit for bit,
//! and what does not fit is refused by name.

use std::sync::atomic::AtomicBool;

use gaufre::model::hugging_face::{FAMILIES, Family, write_config};
use gaufre::model::preset;
use gaufre::report::metrics::Metrics;
use gaufre::train::config::{Config as Run, Home};
use gaufre::train::folder::Folder;
use gaufre::train::{Control, resume, start};

use super::*;

/// A preset of each family.
const TINY: [&str; 5] = ["gpt-neox-tiny", "gpt-j-tiny", "llama-tiny", "mistral-tiny", "qwen3-tiny"];

/// The `config.json` of a preset.
fn config(name: &str) -> String {
    write_config(&preset(name).unwrap(), "float32").unwrap()
}

#[test]
fn every_family_is_here() {
    let mut here: Vec<&str> = TINY.iter().map(|name| Family::of(&preset(name).unwrap()).model_type).collect();
    here.push("gpt2");
    assert!(FAMILIES.iter().all(|family| here.contains(&family.model_type)), "{here:?}");
}

/// A type, its word, and flags of a run whose weights live elsewhere.
const WAYS: [(Dtype, &str, &str); 4] = [
    (Dtype::F32, "f32", ""),
    (Dtype::F16, "f16", "--store disk --device-memory 1MB --recompute layer"),
    (Dtype::BF16, "bf16", "--store disk --in-place --param-dtype bf16"),
    (Dtype::BF16, "bf16", "--param-dtype bf16 --master-weights"),
];

#[test]
fn import_and_export_give_equal_bytes_wherever_the_weights_live() {
    for (turn, name) in TINY.into_iter().enumerate() {
        for (case, (dtype, word, flags)) in WAYS.into_iter().enumerate() {
            let desk = Desk::new();
            let (whole, sharded) = ((turn + case) % 2 == 0, (turn + case) % 3 == 0);
            let model = Model::new(&config(name), dtype, whole);
            model.write(&desk.path("in"), sharded);
            desk.train("in", "run", flags);
            desk.succeed(&format!("export run out --dtype {word}"));
            same_tensors(&model, &desk.path("out/model.safetensors"));
            let text = fs::read_to_string(desk.path("out/config.json")).unwrap();
            assert_eq!(read_config("tiny", &text).unwrap(), model.config(), "{name} {flags}");
        }
    }
}

/// A run of four steps from the folder `in`.
fn run(desk: &Desk, out: &str, store: &Home) -> Run {
    Run {
        init: Some(desk.path("in")),
        data: vec![desk.path("text")],
        tokenizer: Some(gaufre::data::TokenizerKind::Byte),
        device: "host".into(),
        threads: 1,
        steps: 4,
        batch_size: 2,
        eval_every: 0,
        val_split: Some(0.0),
        sample_tokens: 0,
        store: store.clone(),
        out: Some(desk.path(out)),
        ..Run::default()
    }
}

/// The weights that a run ended with, exported.
fn exported(desk: &Desk, run: &str) -> Vec<u8> {
    let out = format!("{run}-out");
    desk.succeed(&format!("export {run} {out}"));
    fs::read(desk.path(&out).join("model.safetensors")).unwrap()
}

#[test]
fn fine_tuning_goes_on_bit_for_bit() {
    for (name, store) in TINY.into_iter().zip([Home::Disk(None), Home::Resident].into_iter().cycle()) {
        let desk = Desk::new();
        let model = Model::new(&config(name), Dtype::F32, true);
        model.write(&desk.path("in"), false);
        start(&run(&desk, "whole", &store), Control::default(), &mut Metrics::default()).unwrap();
        let whole = exported(&desk, "whole");
        let untrained = SafeTensors::deserialize(&whole).unwrap();
        let moved = untrained.tensors().iter().all(|(name, tensor)| tensor.data() != model.tensors[name].2);
        assert!(moved, "{name}: a tensor was not trained");
        // Stopped after two steps; and killed while its weights came in, before there was a checkpoint.
        let (stop, begun) = (AtomicBool::new(true), Control::default());
        for (out, control) in
            [("stopped", Control { stop_after: Some(2), ..begun }), ("killed", Control { stop: &stop, ..begun })]
        {
            start(&run(&desk, out, &store), control, &mut Metrics::default()).unwrap();
            if out == "killed" {
                for file in ["model.toml", "model.safetensors", "store/manifest.json"] {
                    let _ = fs::remove_file(desk.path(out).join(file));
                }
                let _ = fs::remove_dir_all(desk.path(out).join("checkpoints"));
            } else {
                fs::rename(desk.path("in"), desk.path("gone")).unwrap();
            }
            let config = Folder::open(&desk.path(out)).unwrap().read_config().unwrap();
            resume(&desk.path(out), &config, begun, &mut Metrics::default()).unwrap();
            assert!(exported(&desk, out) == whole, "{name}, {out}: other weights");
            let _ = fs::rename(desk.path("gone"), desk.path("in"));
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    for (name, norm, qkv) in [
        (
            "gpt-neox-tiny",
            "gpt_neox.layers.1.input_layernorm.weight",
            "gpt_neox.layers.0.attention.query_key_value.weight",
        ),
        ("gpt-j-tiny", "transformer.h.1.ln_1.weight", "transformer.h.0.mlp.fc_in.weight"),
        ("llama-tiny", "model.layers.1.input_layernorm.weight", "model.layers.0.self_attn.k_proj.weight"),
        ("mistral-tiny", "model.layers.1.input_layernorm.weight", "model.layers.0.self_attn.k_proj.weight"),
        ("qwen3-tiny", "model.layers.1.self_attn.q_norm.weight", "model.layers.0.self_attn.o_proj.weight"),
    ] {
        let good = Model::new(&config(name), Dtype::F32, true);
        type Spoil<'a> = &'a dyn Fn(&mut Model);
        let third = norm.replace(".1.", ".3.");
        let (config, table) = (good.config(), Table::new(&good.config()));
        let head = stored_as(&config, &table.parameters[table.head.weight]).name;
        let cases: [(Spoil<'_>, &[&str]); 5] = [
            (&|m| drop(m.tensors.remove(norm)), &[bare(norm), "missing"]),
            (&|m| drop(m.tensors.insert(third.clone(), good.tensors[norm].clone())), &[&third, "is not one of"]),
            (&|m| m.tensors.get_mut(qkv).unwrap().1.reverse(), &[qkv, "the model needs"]),
            (
                &|m| m.tensors.get_mut(norm).unwrap().2[4..8].copy_from_slice(&f32::INFINITY.to_le_bytes()),
                &[norm, "inf", "element 1"],
            ),
            (&|m| drop(m.tensors.remove(&head)), &[bare(&head), "is missing"]),
        ];
        for (spoil, parts) in cases {
            let desk = Desk::new();
            let mut model = good.clone();
            spoil(&mut model);
            model.write(&desk.path("in"), false);
            let output = desk.gaufre(
                "train --init in --data text --tokenizer byte --val-split 0 --eval-every 0 --device host --out run",
            );
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{name}: {said}");
            parts.iter().for_each(|part| assert!(said.contains(part), "{name}: {part:?} is not in {said:?}"));
            assert!(!desk.path("run").exists(), "{said}");
        }
    }
}

#[test]
fn a_head_that_is_tied_must_be_the_table() {
    let tied = Config { tied: true, ..preset("llama-tiny").unwrap() };
    let desk = Desk::new();
    let mut model = Model::new(&write_config(&tied, "float32").unwrap(), Dtype::F32, true);
    let table = model.tensors["model.embed_tokens.weight"].clone();
    model.tensors.insert("lm_head.weight".into(), table);
    model.write(&desk.path("same"), false);
    assert!(HuggingFace::open(&desk.path("same")).unwrap().config().tied);
    model.tensors.get_mut("lm_head.weight").unwrap().2[0] ^= 1;
    model.write(&desk.path("other"), false);
    let said = HuggingFace::open(&desk.path("other")).unwrap_err().to_string();
    assert!(said.contains("lm_head.weight differs from model.embed_tokens.weight"), "{said}");
}

#[test]
fn a_tokenizer_of_another_size_is_refused() {
    let desk = Desk::new();
    let small = Config { vocab_size: 255, ..preset("llama-tiny").unwrap() };
    Model::new(&write_config(&small, "float32").unwrap(), Dtype::F32, true).write(&desk.path("in"), false);
    let output = desk
        .gaufre("train --init in --data text --tokenizer byte --val-split 0 --eval-every 0 --device host --out run");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{said}");
    assert!(said.contains("vocab_size = 255") && said.contains("256 ids"), "{said}");
    assert!(!desk.path("run").exists(), "{said}");
}

#[test]
fn a_model_that_no_family_has_is_refused_before_anything_is_written() {
    let desk = Desk::new();
    let text = "layers = 1\nheads = 2\nd_model = 16\ncontext = 16\nvocab_size = 256\nwindow = 4\n";
    fs::write(desk.path("odd.toml"), text).unwrap();
    let flags = "--steps 1 --batch-size 1 --eval-every 0 --val-split 0 --device host --out run";
    desk.succeed(&format!("train --model odd.toml --data text --tokenizer byte {flags}"));
    let output = desk.gaufre("export run out");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{said}");
    assert!(said.contains("window = 4") && said.contains("gpt2"), "{said}");
    assert!(!desk.path("out").exists(), "{said}");
}
