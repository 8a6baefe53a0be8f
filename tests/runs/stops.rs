//! A run that stopped and went on is a run that never stopped, bit for bit: at every step, at another speed, after
//! Ctrl-C. And it goes on under its own terms or not at all.

use std::fs;
use std::sync::atomic::AtomicBool;

use super::desk::{Desk, assert_equal, begin, go_on, left, until};
use crate::rig;
use gaufre::model::Recompute;
use gaufre::program::schedule::Schedule;
use gaufre::train::config::{Config, Home};
use gaufre::train::folder::Folder;
use gaufre::train::{Control, TrainError};

#[test]
fn stopping_at_any_step_changes_nothing() {
    let desk = Desk::new();
    let whole = desk.config("whole");
    begin(&whole, Control::default()).unwrap();
    let whole = left(&desk.path("whole"));
    let samples: Vec<&String> = whole.files.keys().filter(|name| name.contains("samples")).collect();
    assert_eq!(samples.len(), 4, "one at each evaluation: {samples:?}");
    let mut equal = 0;
    for step in 1..=20 {
        let name = format!("stop-{step}");
        let config = desk.config(&name);
        let summary = begin(&config, until(step)).unwrap();
        assert_eq!((summary.step, summary.stopped), (step, step < 20));
        let summary = go_on(&config, Control::default()).unwrap();
        assert_eq!((summary.step, summary.stopped), (20, false));
        assert_equal(&whole, &left(&desk.path(&name)), &name);
        equal += 1;
    }
    println!("{equal} of 20 stopped runs are equal");
}

#[test]
fn stopping_after_each_step_changes_nothing() {
    let desk = Desk::new();
    begin(&desk.config("whole"), Control::default()).unwrap();
    let config = desk.config("crawl");
    begin(&config, until(1)).unwrap();
    for step in 2..=20 {
        go_on(&config, until(step)).unwrap();
    }
    assert_equal(&left(&desk.path("whole")), &left(&desk.path("crawl")), "a stop after each step");
}

#[test]
fn an_adapter_goes_on_too() {
    let Some(device) = rig::adapter("an_adapter_goes_on_too") else { return };
    let name = if device.class() == gaufre::device::Class::Gpu { "gpu" } else { "software" };
    let desk = Desk::new();
    let on = |out: &str| Config { device: name.into(), steps: 6, ..desk.config(out) };
    begin(&on("whole"), Control::default()).unwrap();
    let stops: &[u64] = if cfg!(feature = "slow") { &[1, 2, 3, 4, 5, 6] } else { &[3] };
    for &step in stops {
        let out = format!("stop-{step}");
        begin(&on(&out), until(step)).unwrap();
        go_on(&on(&out), Control::default()).unwrap();
        assert_equal(&left(&desk.path("whole")), &left(&desk.path(&out)), &out);
    }
    let host = Config { device: "host".into(), ..on("stop-3") };
    let error = go_on(&host, Control::default()).unwrap_err().to_string();
    assert!(error.contains("--device was") && error.contains("is host"), "{error}");
}

#[test]
fn what_changes_no_bit_may_change() {
    let desk = Desk::new();
    begin(&desk.config("whole"), Control::default()).unwrap();
    let changes: [fn(&mut Config); 6] = [
        |c| c.threads = 3,
        |c| c.schedule = Schedule::Superstep,
        |c| c.store = Home::Ram,
        |c| c.recompute = Recompute::Layer,
        |c| (c.save_every, c.keep) = (3, 5),
        |c| c.wafer = "3x2".parse().unwrap(),
    ];
    for (i, change) in changes.into_iter().enumerate() {
        let out = format!("changed-{i}");
        let mut config = desk.config(&out);
        begin(&config, until(7)).unwrap();
        change(&mut config);
        go_on(&config, Control::default()).unwrap();
        let (mut whole, mut changed) = (left(&desk.path("whole")), left(&desk.path(&out)));
        // A run whose parameters stream writes no more samples.
        if config.store == Home::Ram {
            whole.files.retain(|name, _| changed.files.contains_key(name));
        }
        // Where the last checkpoint of --save-every was stands in the state, beside the tensors.
        let state = "checkpoints/step-000020/state.json".to_string();
        changed.files.insert(state.clone(), whole.files[&state].clone());
        // How much memory was in use may differ, not what was computed.
        let computed = |lines: &[String]| -> Vec<String> {
            lines.iter().filter(|line| !line.contains("peak_device_bytes")).cloned().collect()
        };
        assert_eq!(computed(&whole.metrics), computed(&changed.metrics), "{out}");
        assert_equal(&super::desk::Left { metrics: changed.metrics.clone(), ..whole }, &changed, &out);
    }
}

#[test]
fn what_changes_the_results_is_refused_by_name() {
    let desk = Desk::new();
    let config = desk.config("run");
    begin(&config, until(5)).unwrap();
    let before = fs::read(desk.path("run/checkpoints/step-000005/state.json")).unwrap();
    fs::write(desk.path("other"), "another text altogether\n".repeat(50)).unwrap();
    fs::write(desk.path("wide.toml"), "layers = 1\nheads = 2\nd_model = 32\ncontext = 8\n").unwrap();
    let (other, wide) = (desk.path("other"), desk.path("wide.toml").display().to_string());
    type Change = Box<dyn Fn(&mut Config)>;
    let changes: [(&str, Change); 7] = [
        ("--lr was 0.01 and is 0.02", Box::new(|c| c.lr = 0.02)),
        ("--steps was 20 and is 30", Box::new(|c| c.steps = 30)),
        ("--seed was 1337 and is 1", Box::new(|c| c.seed = 1)),
        ("--batch-size was 2 and is 3", Box::new(|c| c.batch_size = 3)),
        ("--device was host", Box::new(|c| c.device = "oracle".into())),
        ("--data was", Box::new(move |c| c.data = vec![other.clone()])),
        ("--model was", Box::new(move |c| c.model = wide.clone())),
    ];
    for (said, change) in changes {
        let mut changed = config.clone();
        change(&mut changed);
        let error = go_on(&changed, Control::default()).unwrap_err();
        assert!(matches!(error, TrainError::Resume(_)), "{error}");
        assert!(error.to_string().contains(said), "{said}: {error}");
    }
    assert_eq!(fs::read(desk.path("run/checkpoints/step-000005/state.json")).unwrap(), before);
    go_on(&config, Control::default()).unwrap();
}

#[test]
fn the_command_goes_on_with_typed_flags_over_the_folder() {
    let desk = Desk::new();
    begin(&desk.config("whole"), Control::default()).unwrap();
    begin(&desk.config("run"), until(6)).unwrap();
    let error = desk.error(&["train", "--resume", "run", "--lr", "0.5"]);
    assert!(error.contains("--lr was 0.01 and is 0.5") && error.contains("leave the flag out"), "{error}");
    let error = desk.error(&["train", "--resume", "none"]);
    assert!(error.contains("--resume") && error.contains("none") && error.contains("no config.toml"), "{error}");
    let error = desk.error(&["train", "--resume", "run", "--out", "elsewhere"]);
    assert!(error.contains("--out"), "{error}");
    let output = desk.command(&["train", "--resume", "run", "--threads", "2", "--stop-after", "9"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("going on after step 6"), "{said}");
    assert!(said.contains("stopped after step 9 of 20; go on with: gaufre train --resume"), "{said}");
    assert!(desk.command(&["train", "--resume", "run"]).output().unwrap().status.success());
    assert_equal(&left(&desk.path("whole")), &left(&desk.path("run")), "through the command");
}

#[test]
fn a_flag_stops_the_run_at_the_end_of_the_step() {
    let desk = Desk::new();
    let config = desk.config("run");
    let stop = AtomicBool::new(true);
    let summary = begin(&config, Control { stop: &stop, ..Control::default() }).unwrap();
    assert!(summary.stopped && summary.step == 0);
    begin(&desk.config("whole"), Control::default()).unwrap();
    go_on(&config, Control::default()).unwrap();
    assert_equal(&left(&desk.path("whole")), &left(&desk.path("run")), "stopped before the first step");
}

#[test]
fn a_second_writer_is_refused() {
    let desk = Desk::new();
    let config = desk.config("run");
    begin(&config, until(3)).unwrap();
    let lock = Folder::open(&desk.path("run")).unwrap().lock().unwrap();
    let error = desk.error(&["train", "--resume", "run"]);
    assert!(error.contains("run") && error.contains("another process is writing"), "{error}");
    drop(lock);
    go_on(&config, Control::default()).unwrap();
}

#[test]
fn the_newest_and_the_best_checkpoints_are_kept() {
    let desk = Desk::new();
    let config = Config { save_every: 1, eval_every: 1, keep: 3, lr: 0.3, ..desk.config("run") };
    begin(&config, Control::default()).unwrap();
    let losses: Vec<f64> = super::desk::metrics(&desk.path("run"))
        .iter()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["val_loss"].as_f64())
        .collect();
    let best = (1..=20).min_by(|a, b| losses[a - 1].total_cmp(&losses[b - 1])).unwrap();
    let mut kept = vec![18, 19, 20, best as u64];
    kept.sort();
    kept.dedup();
    let found = gaufre::store::checkpoint::list(&desk.path("run/checkpoints")).unwrap();
    assert_eq!(found.into_iter().map(|(step, _)| step).collect::<Vec<_>>(), kept);
}

#[test]
fn a_text_is_evaluated_whole() {
    let desk = Desk::new();
    // All of the validation text in one evaluation of the run.
    let config = Config { eval_batches: 10_000, ..desk.config("run") };
    let summary = begin(&config, Control::default()).unwrap();
    let json = |line: &[&str]| -> serde_json::Value {
        let output = desk.command(line).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let whole = json(&["eval", "run", "--json", "--device", "host"]);
    let (loss, val_loss) = (whole["loss"].as_f64().unwrap(), summary.val_loss.unwrap());
    // The run's evaluation fills its last micro-batch from the start and leaves out what is less than a sequence.
    assert!((loss - val_loss).abs() < 0.2 * val_loss, "{loss} {val_loss}");
    let text = fs::read_to_string(desk.path("text")).unwrap();
    // The same number of tokens, as a file of their own: the same loss.
    let tokens = whole["tokens"].as_u64().unwrap() as usize + 1;
    fs::write(desk.path("held"), &text[text.len() - tokens..]).unwrap();
    let held = json(&["eval", "run", "--data", "held", "--json", "--device", "host"]);
    assert_eq!(held, whole);
    assert_eq!(held["perplexity"].as_f64().unwrap(), loss.exp());
    assert_eq!(held["bits_per_byte"].as_f64().unwrap(), loss / std::f64::consts::LN_2);
    fs::write(desk.path("held"), "t").unwrap();
    let error = desk.error(&["eval", "run", "--data", "held", "--device", "host"]);
    assert!(error.contains("1 tokens"), "{error}");
}
