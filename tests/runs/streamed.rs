//! Runs whose store lies on a disk: killed at random moments, most of them while something is written, or met by a disk one of
//! whose operations fails, they go on to the bits of a run that nothing happened to.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::damage::{FAULTS, Fault, FaultyDisk};
use super::desk::{Desk, begin, go_on, metrics};
use gaufre::program::initial::word;
use gaufre::store::Format;
use gaufre::train::Control;
use gaufre::train::config::{Algorithm, Config, Home};
use gaufre::train::optimizer::Clip;
use safetensors::SafeTensors;

/// Kills of each way to keep a store: 200 in the long tier, all ways together.
const TRIALS: u64 = if cfg!(feature = "slow") { 34 } else { 4 };

/// The ways to keep a store, as flags.
const WAYS: [(&str, &[&str]); 3] = [
    ("aside", &[]),
    ("in-place-by-layer", &["--in-place", "--clip", "layer", "--param-dtype", "bf16", "--optimizer", "adafactor"]),
    ("in-place", &["--in-place", "--param-dtype", "bf16", "--state-dtype", "q8"]),
];

/// Everything that a run leaves: the current values of every array, its state, its metrics but for times and traffic.
#[derive(PartialEq)]
struct Left {
    arrays: BTreeMap<String, Vec<u8>>,
    state: serde_json::Value,
    metrics: Vec<String>,
}

impl Left {
    fn of(run: &Path) -> Left {
        let store = run.join("store");
        let text = fs::read(store.join("manifest.json")).expect("a manifest");
        let manifest: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        let sides = manifest["arrays"].as_object().expect("a table of arrays");
        let mut arrays = BTreeMap::new();
        for side in ["a", "b"].into_iter().filter(|side| store.join(side).is_dir()) {
            for file in fs::read_dir(store.join(side)).expect("a place of the store") {
                let bytes = fs::read(file.expect("an entry").path()).expect("a file");
                for (name, tensor) in SafeTensors::deserialize(&bytes).expect("safetensors").tensors() {
                    if sides.get(&name).and_then(|s| s.as_str()) == Some(side) {
                        arrays.insert(name, tensor.data().to_vec());
                    }
                }
            }
        }
        assert_eq!(arrays.len(), sides.len(), "every array has its file");
        let metrics = metrics(run).into_iter().filter(|line| !line.contains("bytes_read")).collect();
        Left { arrays, state: manifest["state"].clone(), metrics }
    }

    fn assert_equal(&self, other: &Left, what: &str) {
        assert_eq!(self.metrics, other.metrics, "{what}: the metrics differ");
        assert_eq!(self.state, other.state, "{what}: the states differ");
        for (name, bytes) in &self.arrays {
            assert!(Some(bytes) == other.arrays.get(name), "{what}: {name} differs");
        }
        assert_eq!(self.arrays.len(), other.arrays.len(), "{what}");
    }
}

fn train(desk: &Desk, out: &str, way: &[&str]) -> Child {
    let new = ["train", "--model", "tiny.toml", "--data", "text", "--device", "host", "--threads", "1"];
    let sizes = ["--steps", "40", "--batch-size", "2", "--eval-every", "20", "--store", "disk", "--lr", "0.01"];
    let memory = ["--device-memory", "512KiB", "--spill", "disk", "--out", out];
    let mut command: Command = match desk.path(out).join("config.toml").exists() {
        true => desk.command(&["train", "--resume", out]),
        false => desk.command(&[&new[..], &sizes, &memory, way].concat()),
    };
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the command starts")
}

fn end(mut child: Child) -> Option<i32> {
    child.wait().expect("the command ends").code()
}

/// Whether something is being written into the store.
fn is_writing(store: &Path) -> bool {
    let Ok(entries) = fs::read_dir(store) else { return false };
    entries.flatten().any(|entry| entry.path().extension().is_some_and(|e| e == "part"))
}

#[test]
fn killed_while_it_writes() {
    let desk = Desk::new();
    let (mut kills, mut writing) = (0, 0);
    for (name, way) in WAYS {
        let whole = format!("{name}-whole");
        let clock = Instant::now();
        assert_eq!(end(train(&desk, &whole, way)), Some(0), "{whole}");
        let (length, whole) = (clock.elapsed(), Left::of(&desk.path(&whole)));
        for trial in 0..TRIALS {
            let out = format!("{name}-{trial}");
            // Two kills each, so that a run which went on is killed too.
            for kill in 0..2 {
                let mut child = train(&desk, &out, way);
                let share = f64::from(word(23, 4 * trial + 2 * kill)) / f64::from(u32::MAX);
                std::thread::sleep(length.mul_f64(0.9 * share));
                if trial % 5 != 4 {
                    let store = desk.path(&out).join("store");
                    while !is_writing(&store) && child.try_wait().unwrap().is_none() {
                        std::hint::spin_loop();
                    }
                    let after = u64::from(word(29, 4 * trial + 2 * kill)) % 3000;
                    std::thread::sleep(Duration::from_micros(after));
                }
                let at_work = child.try_wait().unwrap().is_none();
                kills += u64::from(at_work);
                writing += u64::from(at_work && trial % 5 != 4);
                child.kill().unwrap();
                end(child);
            }
            assert_eq!(end(train(&desk, &out, way)), Some(0), "{out}");
            whole.assert_equal(&Left::of(&desk.path(&out)), &out);
            fs::remove_dir_all(desk.path(&out)).unwrap();
        }
    }
    let trials = 2 * TRIALS * WAYS.len() as u64;
    println!(
        "{kills} of {trials} kills met a run at work, {writing} of them while it wrote; all went on to equal bits"
    );
    assert!(kills > trials / 2, "only {kills} kills met a run at work");
}

fn config(desk: &Desk, out: &str, in_place: bool) -> Config {
    let base = Config { steps: 3, eval_every: 3, ..desk.config(out) };
    let base = Config { store: Home::Disk(None), device_memory: Some(512 << 10), ..base };
    match in_place {
        false => base,
        true => Config {
            in_place: true,
            clip: Clip::Layer,
            optimizer: Algorithm::Adafactor,
            param_dtype: Format::Bf16,
            ..base
        },
    }
}

#[test]
fn every_operation_of_the_store_may_fail_once() {
    let desk = Desk::new();
    let step = if cfg!(feature = "slow") { 1 } else { 9 };
    let mut failures = 0;
    for in_place in [false, true] {
        begin(&config(&desk, &format!("whole-{in_place}"), in_place), Control::default()).unwrap();
        let whole = Left::of(&desk.path(&format!("whole-{in_place}")));
        for at in (0..).step_by(step) {
            let fault = FAULTS[at / step % FAULTS.len()];
            if !fails_and_goes_on(&desk, at, fault, in_place, &whole) {
                break;
            }
            failures += 1;
        }
    }
    println!("{failures} failures of the disk under a store, each named, each without loss");
    assert!(failures > 20, "only {failures} operations");
}

/// Whether the run met the fault.
fn fails_and_goes_on(desk: &Desk, at: usize, fault: Fault, in_place: bool, whole: &Left) -> bool {
    let out = format!("fails-{at}-{in_place}");
    let what = format!("operation {at} {fault:?}, in place {in_place}");
    let config = config(desk, &out, in_place);
    let disk: &'static FaultyDisk = Box::leak(Box::new(FaultyDisk::new(at, fault)));
    let result = begin(&config, Control { disk: &disk, ..Control::default() });
    if !disk.met() {
        assert!(result.is_ok(), "{what}");
        return false;
    }
    let error = result.map(|_| ()).expect_err(&what).to_string();
    assert!(error.contains(&out) && error.contains("os error"), "{what} does not name its file: {error}");
    let run = desk.path(&out);
    match run.join("config.toml").exists() {
        true => go_on(&config, Control::default()),
        false => begin(&config, Control::default()),
    }
    .unwrap_or_else(|error| panic!("{what}: {error}"));
    whole.assert_equal(&Left::of(&run), &what);
    fs::remove_dir_all(run).unwrap();
    true
}
