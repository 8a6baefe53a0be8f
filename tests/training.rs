//! What must hold of training as a whole: equal bits whatever the schedule, grid, threads, store, device memory or
//! recomputation; gradients against the oracle and against differences; the cache of keys and values against the full pass.

use crate::rig;
use gaufre::device::Device;
use gaufre::model::{Config, Decoder, Micro, PRESETS, Recompute, Shape, preset};
use gaufre::program::initial::word;
use gaufre::program::schedule::{Routing, Schedule};
use gaufre::store::{Placement, Role, Spill};
use gaufre::train::{Setup, Trainer};
use gaufre::wafer::{Defects, Wafer};

const SHAPE: Shape = Shape { batch: 2, seq_len: 13, micro_batches: 2 };

fn model(layers: usize, d: usize, bias: bool) -> Config {
    let text = format!("layers = {layers}\nheads = 3\nd_model = {d}\ncontext = 16\nvocab_size = 211\nbias = {bias}\n");
    Config::parse("tiny", &text).unwrap()
}

fn setup(model: Config) -> Setup {
    Setup { seed: 7, recompute: Recompute::None, ..Setup::new(model, SHAPE) }
}

/// The tiny of each family, and with dropout too.
fn families() -> Vec<Config> {
    let tiny = PRESETS.iter().filter(|(name, _)| name.ends_with("-tiny")).map(|(name, _)| preset(name).unwrap());
    let gpt2 = Config { dropout: 0.2, ..model(2, 84, true) };
    let mut all: Vec<Config> = tiny.collect();
    all.push(Config { dropout: 0.2, ..all[0].clone() });
    all.push(gpt2);
    all
}

fn batches(config: &Config, step: u64) -> Vec<Micro> {
    let (rows, vocabulary) = (SHAPE.rows() as u64, config.vocab_size as u32);
    let ids = |key: u64| (0..rows).map(|i| word(key, i) % vocabulary).collect();
    (0..SHAPE.micro_batches as u64)
        .map(|m| Micro { inputs: ids(step * 100 + m), targets: ids(step * 100 + m + 50) })
        .collect()
}

/// Bits of the losses, norms and all weights after three steps.
fn train(device: Device, setup: Setup) -> Vec<u32> {
    let config = setup.model.clone();
    let mut trainer = Trainer::new(device.clone(), setup).unwrap();
    let mut bits = Vec::new();
    device.clone().run(|| {
        for step in 1..=3 {
            let result = trainer.step(step, 1e-2, &batches(&config, step)).unwrap();
            assert!(!result.skipped && result.loss.is_finite());
            bits.extend([result.loss.to_bits(), result.grad_norm.to_bits()]);
        }
        for tensor in 0..trainer.store().tensors().len() {
            bits.extend(trainer.store().read(tensor, Role::Weight).unwrap().iter().map(|x| x.to_bits()));
        }
    });
    bits
}

fn assert_equal_bits(a: &[u32], b: &[u32], what: &str) {
    assert_eq!(a.len(), b.len());
    let differ = a.iter().zip(b).filter(|(a, b)| a != b).count();
    assert_eq!(differ, 0, "{what}: {differ} of {} values differ", a.len());
}

#[test]
fn two_runs_are_equal() {
    for device in rig::devices("two_runs_are_equal") {
        let a = train(device.clone(), setup(model(2, 84, true)));
        assert_equal_bits(&a, &train(device.clone(), setup(model(2, 84, true))), device.name());
    }
}

/// Each family, in all that may change no bit: threads, schedule and grid, recomputation, where parameters live.
#[test]
fn families_give_equal_bits_in_every_way() {
    let one = Device::host(1).unwrap();
    for config in families() {
        let plain = train(one.clone(), setup(config.clone()));
        for threads in [2, 3] {
            let what = format!("{} with {threads} threads", config.name);
            assert_equal_bits(&plain, &train(Device::host(threads).unwrap(), setup(config.clone())), &what);
        }
    }
    for device in rig::devices("families_give_equal_bits_in_every_way") {
        for config in families() {
            let plain = train(device.clone(), setup(config.clone()));
            let mut ways = vec![Setup { recompute: Recompute::Layer, ..setup(config.clone()) }];
            ways.extend([(1, 1), (3, 2), (8, 8)].map(|(width, height)| {
                let wafer = Wafer::new(width, height);
                Setup { schedule: Schedule::Superstep, wafer, ..setup(config.clone()) }
            }));
            ways.push(scratched(Routing::WeightStream, setup(config.clone())));
            let least = least_memory(&device, &config);
            ways.extend([0, 10, 60].map(|percent| Setup {
                placement: Placement::Ram,
                device_memory: Some(least + least * percent / 100),
                spill: Some(if percent == 10 { Spill::Ram } else { Spill::None }),
                recompute: Recompute::Layer,
                ..setup(config.clone())
            }));
            for way in ways {
                let what = format!(
                    "{} on {}: {:?} on {:?}, {:?}, {:?} bytes, spilled {:?}",
                    config.name,
                    device.name(),
                    way.schedule,
                    way.wafer,
                    way.placement,
                    way.device_memory,
                    way.spill
                );
                assert_equal_bits(&plain, &train(device.clone(), way), &what);
            }
        }
    }
}

/// In supersteps on a wafer of 6 x 5 with dead tiles and links.
fn scratched(routing: Routing, setup: Setup) -> Setup {
    let map = Defects::parse("tile 1 1\ntile 4 3\nlink 0 2 1 2\nlink 3 0 3 1", "map").unwrap();
    let wafer = Wafer::with_defects(6, 5, &map).unwrap();
    Setup { schedule: Schedule::Superstep, wafer, routing, ..setup }
}

/// The least device memory in which a model trains whose layer inputs stay.
fn least_memory(device: &Device, config: &Config) -> u64 {
    let (mut fails, mut fits) = (0, 1 << 32);
    let made = |bytes| {
        let recompute = Recompute::Layer;
        let setup = Setup { placement: Placement::Ram, device_memory: Some(bytes), recompute, ..setup(config.clone()) };
        let spill = Some(Spill::None);
        Trainer::new(device.clone(), Setup { spill, ..setup }).is_ok()
    };
    while fits - fails > 4096 {
        let middle = (fits + fails) / 2;
        if made(middle) { fits = middle } else { fails = middle }
    }
    fits
}

#[test]
fn threads_do_not_matter() {
    let one = train(Device::host(1).unwrap(), setup(model(2, 84, true)));
    for threads in [2, 3] {
        assert_equal_bits(&one, &train(Device::host(threads).unwrap(), setup(model(2, 84, true))), "threads");
    }
    for threads in [1, 3] {
        let way = scratched(Routing::WeightStream, setup(model(2, 84, true)));
        assert_equal_bits(&one, &train(Device::host(threads).unwrap(), way), "threads, in supersteps");
    }
}

#[test]
fn schedules_and_grids_do_not_matter() {
    for device in rig::devices("schedules_and_grids_do_not_matter") {
        let fused = train(device.clone(), setup(model(1, 84, true)));
        for (width, height) in [(1, 1), (3, 2), (8, 8)] {
            let wafer = Wafer::new(width, height);
            let superstep = Setup { schedule: Schedule::Superstep, wafer, ..setup(model(1, 84, true)) };
            let what = format!("{} {width}x{height}", device.name());
            assert_equal_bits(&fused, &train(device.clone(), superstep), &what);
        }
        for routing in [Routing::Broadcast, Routing::WeightStream] {
            let way = scratched(routing, setup(model(1, 84, true)));
            let what = format!("{} with defects, {routing:?}", device.name());
            assert_equal_bits(&fused, &train(device.clone(), way), &what);
        }
    }
}

#[test]
fn recomputation_does_not_matter() {
    for device in rig::devices("recomputation_does_not_matter") {
        let kept = train(device.clone(), setup(model(3, 84, false)));
        let recomputed = Setup { recompute: Recompute::Layer, ..setup(model(3, 84, false)) };
        assert_equal_bits(&kept, &train(device.clone(), recomputed), device.name());
    }
}

/// A model whose panels get a tenth of its size, and two sizes between: every panel takes turns, nothing changes.
#[test]
fn device_memory_does_not_matter() {
    for device in rig::devices("device_memory_does_not_matter") {
        let deep = || {
            let mut model = model(12, 192, true);
            model.vocab_size = 2003;
            model
        };
        let resident = train(device.clone(), setup(deep()));
        let mut trainer = Trainer::new(device.clone(), setup(deep())).unwrap();
        let panels = trainer.store().plan().bytes();
        let activations = device.counters().allocated_bytes - panels;
        drop(trainer);
        for share in [10, 4, 2] {
            let device_memory = Some(activations + panels / share);
            let streamed = Setup { placement: Placement::Ram, device_memory, ..setup(deep()) };
            let before = device.counters();
            let what = format!("{} with 1/{share} of the panels", device.name());
            assert_equal_bits(&resident, &train(device.clone(), streamed), &what);
            assert!(device.counters().since(&before).uploaded_bytes > panels, "{what}: nothing was streamed");
        }
    }
}

/// A weight that is not finite: the step is skipped, and no weight and no moment is written.
#[test]
fn a_step_that_is_not_finite_writes_nothing() {
    for device in rig::devices("a_step_that_is_not_finite_writes_nothing") {
        for planted in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let config = model(1, 84, true);
            let mut trainer = Trainer::new(device.clone(), setup(config.clone())).unwrap();
            trainer.step(1, 1e-2, &batches(&config, 1)).unwrap();
            let tensor = trainer.store().tensors().iter().position(|t| t.name == "h.0.mlp.c_fc.weight").unwrap();
            let mut weights = trainer.store().read(tensor, Role::Weight).unwrap();
            weights[17] = planted;
            trainer.store().write(tensor, Role::Weight, &weights).unwrap();
            let all = |trainer: &mut Trainer| -> Vec<u32> {
                let tensors = trainer.store().tensors().len();
                let cells = (0..tensors)
                    .flat_map(|t| [Role::Weight, Role::State1, Role::State2].map(|role| (t, role)))
                    .map(|(t, role)| trainer.store().read(t, role).unwrap());
                cells.flatten().map(f32::to_bits).collect()
            };
            let before = all(&mut trainer);
            assert!(trainer.step(2, 1e-2, &batches(&config, 2)).unwrap().skipped, "{} {planted}", device.name());
            assert_equal_bits(&before, &all(&mut trainer), device.name());
        }
    }
}

#[test]
fn nothing_is_allocated_after_the_first_step() {
    for device in rig::devices("nothing_is_allocated_after_the_first_step") {
        let all = families()
            .into_iter()
            .flat_map(|config| [Schedule::Fused, Schedule::Superstep].map(|s| (config.clone(), s)));
        for (config, schedule) in all {
            let setup = Setup { schedule, placement: Placement::Ram, ..setup(config.clone()) };
            let mut trainer = Trainer::new(device.clone(), setup).unwrap();
            trainer.step(1, 1e-2, &batches(&config, 1)).unwrap();
            let first = device.counters();
            trainer.step(2, 1e-2, &batches(&config, 2)).unwrap();
            let allocations = device.counters().since(&first).allocations;
            assert_eq!(allocations, 0, "{} on {}, {schedule:?}", config.name, device.name());
        }
    }
}

/// The plan's bytes are the measured bytes.
#[test]
fn activations_are_counted_exactly() {
    let device = rig::host();
    for config in families() {
        for (kept, spilled) in [(true, false), (false, false), (false, true)] {
            let before = device.counters().allocated_bytes;
            let planned = gaufre::model::Activations::bytes(&config, &SHAPE, kept, spilled);
            let acts = gaufre::model::Activations::new(&device, &config, &SHAPE, kept, spilled).unwrap();
            assert_eq!(device.counters().allocated_bytes - before, planned, "{}", config.name);
            drop(acts);
        }
    }
}

/// In f64, moving all parameters along a random direction changes the loss as the gradient says.
#[test]
fn gradients_are_those_of_the_loss() {
    let oracle = Device::oracle().unwrap();
    let mut models = vec![model(2, 12, true), model(2, 12, false)];
    models.extend(families().into_iter().filter(|config| config.dropout == 0.0));
    for config in models {
        let mut trainer = Trainer::new(oracle.clone(), setup(config.clone())).unwrap();
        // Gains and biases off 1 and 0: there some terms of the gradient vanish.
        let tensors = trainer.store().tensors().len();
        let weights: Vec<Vec<f32>> = (0..tensors)
            .map(|t| {
                let start = trainer.store().read(t, Role::Weight).unwrap();
                let noise = |i: usize| 0.2 * (word(99 + t as u64, i as u64) as f32 / u32::MAX as f32 - 0.5);
                start.iter().enumerate().map(|(i, w)| ((w + noise(i)) * 1024.0).round() / 1024.0).collect()
            })
            .collect();
        let place = |trainer: &mut Trainer, h: f32| {
            for (t, start) in weights.iter().enumerate() {
                let moved: Vec<f32> = start.iter().enumerate().map(|(i, w)| w + h * direction(t, i)).collect();
                trainer.store().write(t, Role::Weight, &moved).unwrap();
            }
        };
        place(&mut trainer, 0.0);
        let gradients = trainer.gradients(&batches(&config, 1)).unwrap().gradients;
        let along: f64 = gradients
            .iter()
            .enumerate()
            .flat_map(|(t, (_, g))| g.iter().enumerate().map(move |(i, g)| g * direction(t, i) as f64))
            .sum();
        let mut loss = |h: f32| {
            place(&mut trainer, h);
            trainer.evaluate_f64(&batches(&config, 1)).unwrap()
        };
        // Weights and steps are dyadic, so that moving loses nothing in f32; the step error is of order h^4.
        let h = 1.0 / 4096.0;
        let differences = (8.0 * (loss(h) - loss(-h)) - (loss(2.0 * h) - loss(-2.0 * h))) / (12.0 * h as f64);
        let error = (along - differences).abs() / along.abs().max(1e-3);
        assert!(error <= 1e-6, "{config:?}: gradient {along:e}, differences {differences:e}, error {error:e}");
    }
}

/// A random direction of halves: exact in f32.
fn direction(tensor: usize, index: usize) -> f32 {
    (word(tensor as u64 + 1000, index as u64) % 5) as f32 * 0.5 - 1.0
}

#[test]
fn cached_logits_are_those_of_the_full_pass() {
    let mut models = vec![model(2, 84, true)];
    models.extend(families());
    for device in rig::devices("cached_logits_are_those_of_the_full_pass") {
        for config in &models {
            expect_cached_logits(&device, config);
        }
    }
}

fn expect_cached_logits(device: &Device, config: &Config) {
    let mut trainer = Trainer::new(device.clone(), setup(config.clone())).unwrap();
    let tokens: Vec<u32> = (0..14).map(|i| word(5, i) % config.vocab_size as u32).collect();
    let (fabric, store) = trainer.parts();
    let mut one_by_one = Decoder::new(device, config).unwrap();
    let mut whole = Decoder::new(device, config).unwrap();
    let mut cached = one_by_one.extend(fabric, store, &tokens[..3]).unwrap();
    for token in &tokens[3..] {
        cached = one_by_one.extend(fabric, store, &[*token]).unwrap();
    }
    let full = whole.extend(fabric, store, &tokens).unwrap();
    // The yardstick: how far the full pass itself lies from the oracle.
    let oracle = Device::oracle().unwrap();
    let mut exact_trainer = Trainer::new(oracle.clone(), setup(config.clone())).unwrap();
    let (fabric, store) = exact_trainer.parts();
    let exact = Decoder::new(&oracle, config).unwrap().extend(fabric, store, &tokens).unwrap();
    let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt();
    let norm = exact.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    let allowed = 4.0 * distance(&full, &exact) + norm * gaufre::program::EPS;
    let found = distance(&cached, &exact);
    assert!(found <= allowed, "{} on {}: {found:e}, {allowed:e} allowed", config.name, device.name());
}

/// What a step leaves out is a function of seed and step: nothing is left out of an evaluation, and of no two steps the same.
#[test]
fn dropout_is_of_the_step_and_of_training_alone() {
    let device = rig::host();
    let config = Config { dropout: 0.3, ..model(2, 84, true) };
    let loss = |config: &Config, seed: u64, step: u64| {
        let mut trainer = Trainer::new(device.clone(), Setup { seed, ..setup(config.clone()) }).unwrap();
        let batch = batches(config, 1);
        (trainer.evaluate(&batch).unwrap(), trainer.step(step, 1e-9, &batch).unwrap().loss)
    };
    let plain = Config { dropout: 0.0, ..config.clone() };
    let ((evaluated, first), (without, trained)) = (loss(&config, 7, 1), loss(&plain, 7, 1));
    assert_eq!(evaluated, without, "an evaluation leaves nothing out");
    assert_eq!(without, trained);
    assert_eq!(loss(&config, 7, 1).1, first);
    let others = [loss(&config, 7, 2).1, trained, loss(&config, 8, 1).1];
    assert!(others.iter().all(|loss| *loss != first && (loss - first).abs() <= 0.5), "{first} {others:?}");
}

/// Every message of a step at every hop held against its number and checksum: nothing goes wrong, and nothing changes.
#[test]
fn messages_that_are_checked_change_nothing() {
    let device = Device::host(1).unwrap();
    let fused = train(device.clone(), setup(model(1, 84, true)));
    let checked = Setup { check_messages: true, ..scratched(Routing::Broadcast, setup(model(1, 84, true))) };
    assert_equal_bits(&fused, &train(device, checked), "checked");
}
