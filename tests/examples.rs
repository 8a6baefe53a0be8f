//! Every example runs, says that its own check held, and exits with an error where it cannot run. On `host` always; on a WGSL
//! adapter where there is one. Cargo builds examples with the tests; they are found beside this binary.

// The rig of the other tests; not all of it is needed here.
#[allow(dead_code)]
mod rig;

use std::path::PathBuf;
use std::process::{Command, Output};

/// Names of all examples, from the folder of their sources.
fn examples() -> Vec<String> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples");
    let entries = std::fs::read_dir(folder).expect("the folder of examples");
    let stem = |path: PathBuf| path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let mut names: Vec<String> = entries.filter_map(|entry| stem(entry.expect("a readable folder").path())).collect();
    names.sort();
    assert!(names.len() >= 5, "{names:?}");
    names
}

/// What came of an example on a device.
fn run(name: &str, device: &str) -> Output {
    let test = std::env::current_exe().expect("this test is a file");
    let folder = test.ancestors().nth(2).expect("target/PROFILE/deps/TEST").join("examples");
    let example = folder.join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    Command::new(&example).arg(device).output().unwrap_or_else(|e| {
        panic!(
            "{}: {e}; a filtered `cargo test` builds no examples, `cargo build --release --examples` does",
            example.display()
        )
    })
}

fn holds_on(device: &str) {
    for name in examples() {
        let output = run(&name, device);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let complained = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name} on {device}: {said}{complained}");
        assert!(said.lines().last().is_some_and(|line| line.starts_with("ok: ")), "{name} on {device}: {said}");
    }
}

#[test]
fn examples_hold_on_host() {
    holds_on("host");
}

#[test]
fn examples_hold_on_an_adapter() {
    let Some(device) = rig::adapter("examples") else { return };
    let kind = if device.class() == gaufre::device::Class::Gpu { "gpu" } else { "software" };
    holds_on(kind);
}

#[test]
fn an_example_fails_where_it_cannot_run() {
    for name in examples() {
        let output = run(&name, "no such device");
        assert!(!output.status.success(), "{name}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("no such device"), "{name}");
    }
}
