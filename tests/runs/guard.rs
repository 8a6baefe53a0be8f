//! What the guard does in a run: steps that are not finite are skipped and counted, spikes are told or undone.

use std::fs;

use super::desk::{Desk, assert_equal, begin, go_on, left, metrics, until};
use gaufre::data::Order;
use gaufre::program::initial::word;
use gaufre::train::Control;
use gaufre::train::config::Config;
use gaufre::train::guard::OnSpike;

#[test]
fn steps_that_are_not_finite_are_counted() {
    let desk = Desk::new();
    // The first updates are so large that the weights overflow what f32 squares.
    let config = Config { lr: 1e30, warmup_steps: Some(0), ..desk.config("run") };
    let summary = begin(&config, Control::default()).unwrap();
    assert!(summary.skipped > 0 && summary.step == 20, "{summary:?}");
    let skipped = metrics(&desk.path("run")).iter().filter(|line| line.contains("\"skipped\":true")).count();
    assert_eq!(skipped as u64, summary.skipped);
    let state = fs::read_to_string(desk.path("run/checkpoints/step-000020/state.json")).unwrap();
    assert!(state.contains(&format!("\"steps_skipped\": {}", summary.skipped)), "{state}");
}

/// A regular text with a stretch of noise, read in order, so that the loss spikes at a known step.
fn spiking(desk: &Desk, out: &str, on_spike: OnSpike) -> Config {
    let regular = |n: usize| "abcdefgh".repeat(n);
    let noise: String = (0..16).map(|i| char::from(b'a' + (word(5, i) % 8) as u8)).collect();
    fs::write(desk.path("odd"), regular(2 * 149) + &noise + &regular(2 * 60)).unwrap();
    Config {
        data: vec![desk.path("odd")],
        order: Order::Sequential,
        val_split: Some(0.0),
        eval_every: 0,
        steps: 170,
        save_every: 20,
        lr: 1e-2,
        beta2: 0.99,
        on_spike,
        ..desk.config(out)
    }
}

fn spikes(desk: &Desk, out: &str) -> Vec<serde_json::Value> {
    let lines = metrics(&desk.path(out));
    lines
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|v: &serde_json::Value| !v["spike"].is_null())
        .collect()
}

#[test]
fn a_spike_is_told() {
    let desk = Desk::new();
    begin(&spiking(&desk, "told", OnSpike::Report), Control::default()).unwrap();
    let found = spikes(&desk, "told");
    assert!(!found.is_empty() && found[0]["step"] == 150 && found[0]["rolled_back_to"].is_null(), "{found:?}");
    begin(&spiking(&desk, "ignored", OnSpike::Ignore), Control::default()).unwrap();
    assert!(spikes(&desk, "ignored").is_empty());
}

#[test]
fn a_spike_is_undone_the_same_way_however_often_the_run_stops() {
    let desk = Desk::new();
    begin(&spiking(&desk, "whole", OnSpike::Rollback), Control::default()).unwrap();
    let found = spikes(&desk, "whole");
    assert!(found[0]["step"] == 150 && found[0]["rolled_back_to"] == 140, "{found:?}");
    let whole = left(&desk.path("whole"));
    for stop in [1, 139, 140, 145, 149, 150, 151, 169] {
        let out = format!("stop-{stop}");
        let config = spiking(&desk, &out, OnSpike::Rollback);
        begin(&config, until(stop)).unwrap();
        go_on(&config, Control::default()).unwrap();
        assert_equal(&whole, &left(&desk.path(&out)), &out);
    }
    let config = spiking(&desk, "whole", OnSpike::Rollback);
    let error = go_on(&Config { save_every: 10, ..config }, Control::default()).unwrap_err().to_string();
    assert!(error.contains("--save-every was 20 and is 10"), "{error}");
}
