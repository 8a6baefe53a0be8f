//! The families beside GPT-2 against transformers' own classes, which golden.rs does for GPT-2. Each golden holds the
//! `config.json` and the names of its tensors, so what is proven of a model is proven of how it is read too.

use super::{Golden, assert_within, logits};
use crate::rig;
use gaufre::device::Device;
use gaufre::model::hugging_face::{FAMILIES, Family};
use gaufre::program::EPS;

/// The models, as make_families.py calls them.
const MODELS: &[(&str, &[u8])] = &[
    ("gpt-neox", include_bytes!("gpt-neox.safetensors")),
    ("gpt-neox-serial", include_bytes!("gpt-neox-serial.safetensors")),
    ("gpt-j", include_bytes!("gpt-j.safetensors")),
    ("llama", include_bytes!("llama.safetensors")),
    ("mistral", include_bytes!("mistral.safetensors")),
    ("qwen3", include_bytes!("qwen3.safetensors")),
];

#[test]
fn every_family_has_a_golden() {
    let of = |bytes| Family::of(&Golden::new(bytes).config).model_type;
    let found: Vec<&str> = MODELS.iter().map(|(_, bytes)| of(bytes)).chain(["gpt2"]).collect();
    assert!(FAMILIES.iter().all(|family| found.contains(&family.model_type)), "{found:?}");
}

#[test]
fn every_family_agrees_with_pytorch_on_every_device() {
    for device in rig::devices("every_family_agrees_with_pytorch_on_every_device") {
        for (name, bytes) in MODELS {
            let golden = Golden::new(bytes);
            assert_within(&golden, &golden.rows(&device), &format!("{} {name}", device.name()));
        }
    }
}

/// In f64 they agree to less than one rounding of f32, which cosines and sines of positions still have: what is computed is
/// the same function.
#[test]
fn the_oracle_is_every_family_in_f64() {
    let device = Device::oracle().unwrap();
    for (name, bytes) in MODELS {
        let golden = Golden::new(bytes);
        let mut trainer = golden.trainer(&device);
        let error = golden.row("logits", &logits(&mut trainer, &golden.batch(0)), None).error;
        let size = golden.values("logits/distance")[1];
        println!("{name}: logits {:.3} EPS", error / (EPS * size));
        assert!(error <= EPS * size, "{name}: logits: {error:e} of {size:e}");
    }
}
