//! Two layers of gpt3-13b and of gpt-neox-20b at full width against PyTorch, on the host, with parameters and gradients on a
//! disk: the loss of ten batches and every gradient of the first. tests/golden/make_cut.py made the goldens; the yardstick is
//! that of the other goldens.

use super::{Golden, assert_rows};
use crate::rig;
use gaufre::model::{Config, Recompute, preset};
use gaufre::store::durable::{Disk, RealDisk};
use gaufre::store::{Archive, Placement, Role};
use gaufre::train::optimizer::Rule;
use gaufre::train::{Optimizer, Setup, Trainer};

/// Scale of the noise in matrices, as in make_cut.py.
const SCALE: f64 = 0.0625;

/// Less device memory than the weights take: panels take turns.
fn setup(golden: &Golden, folder: &std::path::Path) -> Setup {
    let shape = golden.shape();
    let archive = Archive {
        folder: folder.into(),
        in_place: true,
        read_only: false,
        stream_bytes: 1 << 30,
        scratch_bytes: 8 << 30,
        gradients_wait: true,
        dry: false,
        spill_bytes: (4 * shape.rows() * golden.config.d_model) as u64,
        disk: RealDisk.share(),
    };
    let rule = Rule::Adafactor { beta2_decay: -0.8, eps2: 1e-3, clip_threshold: 1.0 };
    Setup {
        placement: Placement::Disk,
        archive: Some(archive),
        device_memory: Some(3 << 30),
        recompute: Recompute::Layer,
        optimizer: Optimizer { rule, ..Optimizer::default() },
        ..Setup::new(golden.config.clone(), shape)
    }
}

/// The cut of a model streams to the losses and gradients of PyTorch.
fn streams(name: &str, cut: &'static [u8]) {
    let golden = Golden::new(cut);
    let whole = preset(name).unwrap();
    let width = |c: &Config| (c.heads, c.d_model, c.d_ff(), c.vocab_size, c.rotary.clone(), c.residual, c.activation);
    assert_eq!(width(&golden.config), width(&whole), "the cut is as wide as the model");
    let folder = tempfile::tempdir().unwrap();
    let device = rig::host();
    let mut trainer = Trainer::new(device.clone(), setup(&golden, folder.path())).unwrap();
    golden.fill(&mut trainer, SCALE);
    let steps = golden.values("loss").len() as u64;
    let losses: Vec<f32> = (0..steps).map(|step| trainer.evaluate(&[golden.batch(step)]).unwrap()).collect();
    let mut rows = vec![golden.row("loss", &losses, None)];
    trainer.backpropagate(&[golden.batch(0)]).unwrap();
    for number in 0..trainer.store().tensors().len() {
        let tensor = trainer.store().tensors()[number].name.clone();
        let mut gradient = trainer.store().read(number, Role::Gradient).unwrap();
        golden.tensor("gradient", number, &gradient, &mut rows);
        if tensor.ends_with("mlp.c_fc.weight") {
            // One element in a thousand is a thousandth off.
            gradient.iter_mut().step_by(1000).for_each(|x| *x *= 1.001);
            let mut bad = Vec::new();
            golden.tensor("gradient", number, &gradient, &mut bad);
            let bad = &bad[0];
            assert!(bad.error > bad.allowed, "{tensor}: a planted {:e} of {:e} is not found", bad.error, bad.allowed);
        }
    }
    trainer.store().drain().unwrap();
    assert_eq!(rows.len(), golden.file.len() / 2, "every quantity of the golden is compared");
    for row in &rows {
        println!("{}: {:.3e} off, {:.2} of its bound", row.name, row.error, row.error / row.allowed);
    }
    let peak = device.counters().peak_bytes;
    assert!(peak <= 3 << 30, "{peak} bytes on the device");
    assert_rows(&rows, &format!("{name}, 2 layers, streamed from a disk"));
}

#[test]
fn a_cut_of_gpt3_13b_streams_to_the_gradients_of_pytorch() {
    streams("gpt3-13b", include_bytes!("gpt3-13b-cut.safetensors"));
}

#[test]
fn a_cut_of_gpt_neox_20b_streams_to_the_gradients_of_pytorch() {
    streams("gpt-neox-20b", include_bytes!("gpt-neox-20b-cut.safetensors"));
}
