//! A model that streams from memory or disk gives the bits of one that is resident: losses, norms, weights and what the
//! optimiser keeps, for every optimiser and format, whatever the memory, and wherever layer inputs wait.

use crate::rig;
use gaufre::device::{Class, Device};
use gaufre::model::{Config, Micro, PRESETS, Recompute, Shape, preset};
use gaufre::program::initial::word;
use gaufre::store::durable::{Disk, RealDisk};
use gaufre::store::{Archive, Format, Placement, Role, Spill, StoreError};
use gaufre::train::needs;
use gaufre::train::optimizer::{Clip, Rule, StateDtype};
use gaufre::train::step::SetupError;
use gaufre::train::{Optimizer, Setup, Trainer};

const SHAPE: Shape = Shape { batch: 2, seq_len: 13, micro_batches: 2 };
/// Steps on the host: the long tier goes further.
const STEPS: u64 = if cfg!(feature = "slow") { 50 } else { 6 };

fn model(layers: usize) -> Config {
    // Wide enough for several panels of a tensor once they are cut fine.
    let text = format!("layers = {layers}\nheads = 3\nd_model = 84\ncontext = 16\nvocab_size = 2111\n");
    Config::parse("tiny", &text).unwrap()
}

fn batches(step: u64, vocabulary: usize) -> Vec<Micro> {
    let ids = |key: u64| (0..SHAPE.rows() as u64).map(|i| word(key, i) % vocabulary as u32).collect();
    (0..SHAPE.micro_batches as u64)
        .map(|m| Micro { inputs: ids(step % 3 * 100 + m), targets: ids(step % 3 * 100 + m + 50) })
        .collect()
}

fn setup(name: &str) -> Setup {
    let adafactor = Rule::Adafactor { beta2_decay: -0.8, eps2: 1e-3, clip_threshold: 1.0 };
    let usual = Optimizer::default();
    let base = Setup { seed: 7, recompute: Recompute::Layer, ..Setup::new(model(3), SHAPE) };
    match name {
        "adamw" => base,
        "adamw bf16" => Setup { param_dtype: Format::Bf16, ..base },
        "adamw bf16 master" => Setup { param_dtype: Format::Bf16, master: true, ..base },
        "adamw states bf16" => Setup { optimizer: Optimizer { states: StateDtype::Bf16, ..usual }, ..base },
        "adamw states q8" => Setup { optimizer: Optimizer { states: StateDtype::Q8, ..usual }, ..base },
        "adafactor" => Setup { optimizer: Optimizer { rule: adafactor, ..usual }, ..base },
        "adafactor bf16 layer" => {
            let optimizer = Optimizer { rule: adafactor, clip: Clip::Layer, ..usual };
            Setup { param_dtype: Format::Bf16, optimizer, ..base }
        }
        "sgd layer" => {
            let rule = Rule::Sgd { momentum: 0.9 };
            Setup { optimizer: Optimizer { rule, clip: Clip::Layer, weight_decay: 1e-3, ..usual }, ..base }
        }
        other => panic!("no setup {other}"),
    }
}

/// Everything, as it is at home on the disk.
const ALL: [&str; 8] = [
    "adamw",
    "adamw bf16",
    "adamw bf16 master",
    "adamw states bf16",
    "adamw states q8",
    "adafactor",
    "adafactor bf16 layer",
    "sgd layer",
];

fn archive(folder: &std::path::Path, in_place: bool, setup: &Setup) -> Archive {
    Archive {
        folder: folder.into(),
        in_place,
        read_only: false,
        stream_bytes: 1 << 20,
        scratch_bytes: 0,
        gradients_wait: needs::gradients_wait(setup),
        dry: setup.dry,
        spill_bytes: needs::spill_bytes(setup),
        disk: RealDisk.share(),
    }
}

/// Bits of losses and norms, of all weights and of all that the optimiser keeps, after so many steps.
fn train(device: &Device, setup: Setup, steps: u64) -> Vec<u32> {
    let vocabulary = setup.model.vocab_size;
    let mut trainer = Trainer::new(device.clone(), setup).unwrap();
    let mut bits = Vec::new();
    device.run(|| {
        trainer.store().commit(0, &0).unwrap();
        for step in 1..=steps {
            let result = trainer.step(step, 1e-2, &batches(step, vocabulary)).unwrap();
            assert!(!result.skipped && result.loss.is_finite(), "{result:?}");
            bits.extend([result.loss.to_bits(), result.grad_norm.to_bits()]);
            trainer.store().commit(step, &step).unwrap();
        }
        bits.extend(held(&mut trainer));
        trainer.store().drain().unwrap();
    });
    bits
}

/// Bits of all that lasts.
fn held(trainer: &mut Trainer) -> Vec<u32> {
    let mut bits = Vec::new();
    for tensor in 0..trainer.store().tensors().len() {
        for role in [Role::Weight, Role::State1, Role::State2, Role::Master] {
            if trainer.store().array(tensor, role).is_some() {
                bits.extend(trainer.store().read(tensor, role).unwrap().iter().map(|x| x.to_bits()));
            }
        }
    }
    bits
}

fn assert_equal_bits(a: &[u32], b: &[u32], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    let differ = a.iter().zip(b).filter(|(a, b)| a != b).count();
    assert_eq!(differ, 0, "{what}: {differ} of {} values differ", a.len());
}

/// Device memory for what is no slot, and for the slots of the smallest plan and some percent more.
fn memory(device: &Device, setup: &Setup, percent: u64) -> Option<u64> {
    let tiny = |bytes| Setup { placement: Placement::Ram, device_memory: Some(bytes), ..setup.clone() };
    let Err(SetupError::TooSmall { needed: fixed, .. }) = Trainer::new(device.clone(), tiny(1)).map(|_| ()) else {
        panic!("a byte is too little")
    };
    let Err(SetupError::Store(StoreError::TooSmall { needed, .. })) =
        Trainer::new(device.clone(), tiny(fixed + 1)).map(|_| ())
    else {
        panic!("a byte is too little for slots")
    };
    Some(fixed + needed + needed * percent / 100)
}

#[test]
fn every_place_gives_the_bits_of_the_resident_one() {
    let folder = tempfile::tempdir().unwrap();
    for device in rig::devices("every_place_gives_the_bits_of_the_resident_one") {
        let native = device.class() == Class::Native;
        let (steps, names) = match cfg!(feature = "slow") || native {
            true => (STEPS, &ALL[..]),
            // Each program of an update once: an adapter that runs on the CPU compiles and computes for long.
            false => (2, &ALL[4..7]),
        };
        for (number, name) in names.iter().enumerate() {
            let resident = train(&device, setup(name), steps);
            let ram = |percent, spill| {
                let setup = Setup { spill: Some(spill), ..setup(name) };
                Setup { placement: Placement::Ram, device_memory: memory(&device, &setup, percent), ..setup }
            };
            for (percent, spill) in [(100, Spill::None), (40, Spill::Ram), (0, Spill::None)] {
                let what = format!("{name} in memory, {percent} %, {spill:?}, {}", device.name());
                assert_equal_bits(&resident, &train(&device, ram(percent, spill), steps), &what);
            }
            for (percent, spill, in_place) in
                [(100, Spill::None, false), (0, Spill::Disk, true), (40, Spill::Ram, true), (0, Spill::Disk, false)]
            {
                let what = format!("{name} on a disk, {percent} %, {spill:?}, in place {in_place}, {}", device.name());
                let path = folder.path().join(format!("{number} {percent} {in_place} {}", device.class() as u8));
                let setup = ram(percent, spill);
                let archive = Some(archive(&path, in_place, &setup));
                let setup = Setup { placement: Placement::Disk, archive, ..setup };
                assert_equal_bits(&resident, &train(&device, setup, steps), &what);
            }
        }
    }
}

/// The tiny of each family, on a disk in both ways, spilled, in the least memory.
#[test]
fn every_family_streams_to_the_bits_of_the_resident_one() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = || PRESETS.iter().filter(|(name, _)| name.ends_with("-tiny")).map(|(name, _)| preset(name).unwrap());
    for device in rig::devices("every_family_streams_to_the_bits_of_the_resident_one") {
        for model in tiny() {
            let name = model.name.clone();
            for (rules, in_place) in [("adafactor bf16 layer", true), ("adamw", false)] {
                let of = || Setup { model: model.clone(), ..setup(rules) };
                let resident = train(&device, of(), 3);
                let on_disk = Setup { spill: Some(Spill::Disk), ..of() };
                let device_memory = memory(&device, &on_disk, 0);
                let path = folder.path().join(format!("{name} {in_place} {}", device.class() as u8));
                let archive = Some(archive(&path, in_place, &on_disk));
                let streamed = Setup { placement: Placement::Disk, archive, device_memory, ..on_disk };
                let what = format!("{name}, {rules} on a disk, in place {in_place}, {}", device.name());
                assert_equal_bits(&resident, &train(&device, streamed, 3), &what);
            }
        }
    }
}

/// The store of a folder is the checkpoint: opened again, it holds the last step that was committed.
#[test]
fn a_store_on_a_disk_is_its_own_checkpoint() {
    let device = rig::host();
    for name in ALL {
        for in_place in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let on_disk = |steps_before: u64| {
                let setup = setup(name);
                let device_memory = memory(&device, &setup, 10);
                let archive = Some(archive(folder.path(), in_place, &setup));
                let mut trainer =
                    Trainer::new(device.clone(), Setup { placement: Placement::Disk, archive, device_memory, ..setup })
                        .unwrap();
                let opened = trainer.opened().unwrap();
                assert_eq!(opened.state.and_then(|s| s.as_u64()).unwrap_or(0), steps_before);
                assert_eq!(opened.interrupted, None);
                trainer
            };
            let resident = train(&device, setup(name), 4);
            let mut bits = Vec::new();
            for step in 1..=4 {
                let mut trainer = on_disk(step - 1);
                device.run(|| {
                    trainer.store().commit(step - 1, &(step - 1)).unwrap();
                    let result = trainer.step(step, 1e-2, &batches(step, 2111)).unwrap();
                    bits.extend([result.loss.to_bits(), result.grad_norm.to_bits()]);
                    trainer.store().commit(step, &step).unwrap();
                    trainer.store().drain().unwrap();
                });
            }
            let mut trainer = on_disk(4);
            bits.extend(held(&mut trainer));
            assert_equal_bits(&resident, &bits, &format!("{name}, in place {in_place}"));
        }
    }
}

/// A dry step computes and counts every gradient: its loss and norm are those of a step that updates.
#[test]
fn a_dry_step_has_the_norm_of_a_real_one() {
    for device in rig::devices("a_dry_step_has_the_norm_of_a_real_one") {
        let step = |setup: Setup| {
            let mut trainer = Trainer::new(device.clone(), setup).unwrap();
            device.run(|| {
                let before = held(&mut trainer);
                let result = trainer.step(1, 1e-2, &batches(1, 2111)).unwrap();
                (result, before == held(&mut trainer))
            })
        };
        let (real, same) = step(setup("adamw"));
        assert!(!same, "a step moves weights");
        let folder = tempfile::tempdir().unwrap();
        let dry = Setup { dry: true, spill: Some(Spill::None), ..setup("adamw") };
        let device_memory = memory(&device, &dry, 0);
        let archive = Some(archive(folder.path(), true, &dry));
        let on_disk = Setup { placement: Placement::Disk, archive, device_memory, ..dry.clone() };
        for setup in [dry, on_disk] {
            let (result, same) = step(setup);
            assert_eq!(result, real, "{}", device.name());
            assert!(same, "a dry step moves nothing");
        }
    }
}

/// Where layer inputs leave the device, its memory depends on the widest panel and the batch, not on depth.
#[test]
fn device_memory_is_flat_in_depth() {
    let device = rig::host();
    let bytes = |layers: usize, spill: Spill| {
        let setup = Setup { spill: Some(spill), recompute: Recompute::Layer, ..Setup::new(model(layers), SHAPE) };
        let device_memory = memory(&device, &setup, 5);
        let before = device.counters().allocated_bytes;
        let setup = Setup { placement: Placement::Ram, device_memory, ..setup };
        let mut trainer = Trainer::new(device.clone(), setup).unwrap();
        device.run(|| trainer.step(1, 1e-2, &batches(1, 2111)).unwrap());
        device.counters().allocated_bytes - before
    };
    let [few, some, many] = [4, 16, 64].map(|layers| bytes(layers, Spill::Ram));
    // Slots and spilled inputs do not grow; the partial sums of norms, two floats for 16 rows, do.
    assert!(some as f64 <= 1.05 * few as f64 && many as f64 <= 1.05 * some as f64, "{few} {some} {many}");
    let kept = bytes(64, Spill::None) - many;
    assert!(kept as f64 > 0.2 * many as f64, "layer inputs are no matter here: {kept} of {many}");
}

/// Where the gradients of a layer are dropped before the next begins, their file on the disk is as long as the longest needs,
/// and the table that two visits add to: not as long as the model.
#[test]
fn gradients_that_do_not_wait_share_a_place() {
    use gaufre::model::Gpt;
    use gaufre::store::disk::gradient_bytes;
    let bytes = |layers, wait| gradient_bytes(&Gpt::tensors(&model(layers), 7), wait);
    assert_eq!(bytes(3, false), bytes(64, false));
    assert!(bytes(64, true) > 8 * bytes(3, true));
    // A head of its own adds nothing to the table, which then need not wait for its own visit.
    let untied = Config { tied: false, ..model(3) };
    let (table, head) = (Gpt::tensors(&model(3), 7), Gpt::tensors(&untied, 7));
    assert_eq!((table.iter().filter(|t| t.shared).count(), head.iter().filter(|t| t.shared).count()), (1, 0));
    assert!(gradient_bytes(&head, false) < bytes(3, false));
    // On the disk itself: the least memory, so that all of them leave the device.
    let device = rig::host();
    let folder = tempfile::tempdir().unwrap();
    let setup = Setup { spill: Some(Spill::None), ..setup("adafactor bf16 layer") };
    let device_memory = memory(&device, &setup, 0);
    let archive = Some(archive(folder.path(), true, &setup));
    train(&device, Setup { placement: Placement::Disk, archive, device_memory, ..setup }, 2);
    let file = std::fs::metadata(folder.path().join("gradients.scratch")).unwrap().len();
    assert!((1..=2 * bytes(3, false)).contains(&file), "{file}, {}", bytes(3, false));
}
