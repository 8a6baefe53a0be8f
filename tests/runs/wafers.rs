//! Runs on wafers of every kind, by the command: each leaves the weights of the fused run; what cannot be a wafer, a map of
//! defects or a tile is refused before the first step, with the cure.

use std::fs;

use super::desk::Desk;

/// Runs with flags in a folder, and what it said.
fn train(desk: &Desk, out: &str, flags: &[&str]) -> String {
    let line = ["train", "--data", "text", "--model", "tiny.toml", "--device", "host", "--steps", "3", "--out", out];
    let output = desk.command(&[&line[..], &["--sample-tokens", "0"], flags].concat()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    said
}

fn has(said: &str, parts: &[&str]) {
    parts.iter().for_each(|part| assert!(said.contains(part), "no {part:?} in {said}"));
}

#[test]
fn every_wafer_leaves_the_weights_of_the_fused_run() {
    let desk = Desk::new();
    fs::write(desk.path("map"), "# two of 5 x 4\ntile 1 0\nlink 2 2 3 2\n").unwrap();
    train(&desk, "fused", &[]);
    let weights = |out: &str| fs::read(desk.path(out).join("model.safetensors")).unwrap();
    for (out, flags) in [
        ("auto", &["--wafer", "auto"][..]),
        ("large", &["--wafer", "64x64:96KiB"]),
        ("mapped", &["--wafer", "5x4", "--defects", "map", "--route", "weight-stream", "--check-messages"]),
        ("drawn", &["--wafer", "9x9", "--defects", "0.05:3"]),
        ("wse2", &["--wafer", "wse2"]),
    ] {
        let said = train(&desk, out, &[&["--schedule", "superstep"], flags].concat());
        assert!(weights(out) == weights("fused"), "{flags:?}");
        has(&said, &["supersteps on"]);
        match out {
            "large" => has(&said, &["64 x 64 tiles", "idle", "96"]),
            "mapped" => has(&said, &["4 x 4 tiles", "5 x 4 of which some are dead"]),
            "wse2" => has(&said, &["750 x 994 tiles", "idle"]),
            _ => {}
        }
    }
    // A run that stopped goes on by another way.
    train(&desk, "stopped", &["--stop-after", "1"]);
    let line =
        ["train", "--resume", "stopped", "--schedule", "superstep", "--wafer", "3x2", "--route", "weight-stream"];
    assert!(desk.command(&line).output().unwrap().status.success());
    assert!(weights("stopped") == weights("fused"));
}

#[test]
fn what_cannot_be_is_refused_with_the_cure() {
    let desk = Desk::new();
    fs::write(desk.path("map"), "tile 1 0\nhole 3 3\n").unwrap();
    fs::write(desk.path("far"), "tile 9 0\n").unwrap();
    let refused = |flags: &[&str]| {
        let line = ["train", "--data", "text", "--model", "tiny.toml", "--device", "host", "--out", "run"];
        let said = desk.error(&[&line, flags].concat());
        assert!(!desk.path("run").exists(), "{said}");
        said
    };
    has(&refused(&["--defects", "map"]), &["--defects map", "line 2", "hole 3 3", "tile X Y"]);
    has(&refused(&["--wafer", "8x8", "--defects", "far"]), &["--defects far", "tile 9 0", "8 x 8"]);
    has(&refused(&["--defects", "none"]), &["--defects none", "RATE:SEED"]);
    has(&refused(&["--wafer", "2x2", "--defects", "1:1"]), &["--defects 1:1", "2 x 2", "fewer"]);
    has(
        &refused(&["--wafer", "8x8:1KiB"]),
        &["--wafer 8x8:1024", "bytes of a tile's SRAM", "1024 are available", "write 8x8:"],
    );
}

#[test]
fn the_cure_for_a_small_tile_works() {
    let desk = Desk::new();
    let line = ["train", "--data", "text", "--model", "tiny.toml", "--device", "host", "--wafer", "8x8:1KiB"];
    let said = desk.error(&line);
    let cure = said.split("write ").nth(1).and_then(|rest| rest.split(',').next()).expect("a cure");
    train(&desk, "cured", &["--schedule", "superstep", "--wafer", cure]);
    let (grid, bytes) = cure.split_once(':').unwrap();
    let less = format!("{grid}:{}", bytes.parse::<u32>().unwrap() - 1);
    let line = ["train", "--data", "text", "--model", "tiny.toml", "--device", "host", "--wafer", &less];
    has(&desk.error(&line), &[&less]);
}
