//! `gaufre plan` as a person and as a program meet it: sums that must agree, a page that needs nothing, the counts of a trace,
//! and one clear line for what cannot be.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use crate::rig;
use serde_json::Value;

/// A folder with a text and a model that trains in no time.
struct Desk(tempfile::TempDir);

impl Desk {
    fn new() -> Desk {
        let desk = Desk(tempfile::tempdir().unwrap());
        fs::write(desk.path("text"), "to be or not to be\n".repeat(200)).unwrap();
        fs::write(desk.path("tiny.toml"), "layers = 2\nheads = 2\nd_model = 32\ncontext = 16\n").unwrap();
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn gaufre(&self, line: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gaufre"));
        command.env("XDG_RUNTIME_DIR", self.0.path());
        command.args(line).current_dir(self.0.path()).output().expect("the command starts")
    }

    /// What it prints where all goes well.
    fn said(&self, line: &[&str]) -> String {
        let output = self.gaufre(line);
        assert!(output.status.success(), "{line:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The plan as JSON.
    fn plan(&self, flags: &[&str]) -> Value {
        serde_json::from_str(&self.said(&[&["plan", "--device", "host", "--json"], flags].concat())).unwrap()
    }

    /// The one line that the command must end in.
    fn error(&self, code: i32, line: &[&str]) -> String {
        let output = self.gaufre(line);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{line:?}: {said}");
        assert!(output.stdout.is_empty(), "{line:?}");
        assert_eq!(said.lines().count(), 1, "{line:?}: {said}");
        said
    }
}

fn sum(rows: &Value, of: &str) -> u64 {
    rows.as_array().unwrap().iter().map(|row| row[of].as_u64().unwrap()).sum()
}

/// Whether sums over the parts of a plan are those of the whole.
fn agrees(plan: &Value) -> Result<(), String> {
    let number = |path: &str| plan.pointer(path).and_then(Value::as_f64).ok_or(format!("{path} is no number"));
    let parameters = number("/parameters")?;
    let wrong = |what: &str| Err(what.to_owned());
    if sum(&plan["tensors"], "parameters") as f64 != parameters {
        return wrong("parameters of tensors");
    }
    if sum(&plan["tensors"], "weight_bytes") as f64 != number("/stream/pass_bytes")? {
        return wrong("bytes of tensors");
    }
    let link = number("/stream/pass_bytes")? / number("/wafer/link_bytes_per_second")?;
    if !((number("/stream/pass_seconds")? / link - 1.0).abs() <= 1e-9) {
        return wrong("seconds of a pass");
    }
    let tile = number("/wafer/tile_sram_bytes")?;
    for row in plan["sram"].as_array().unwrap() {
        let variables: u64 = row["variables"].as_array().unwrap().iter().map(|v| v[1].as_u64().unwrap()).sum();
        let total = row["total"].as_u64().unwrap();
        let held = ["accumulators", "state"].map(|part| row[part].as_u64().unwrap()).iter().sum::<u64>();
        if variables + held != total || row["share"].as_f64() != Some(total as f64 / tile) {
            return wrong("SRAM");
        }
    }
    // Of a micro-batch, of each visit the longer of link and wafer.
    let time = |visit: &Value, of: &str| visit[of].as_f64().unwrap();
    let visits = plan["on_wafer"]["visits"].as_array().unwrap();
    let longest = |v: &Value| time(v, "link_seconds").max(time(v, "wafer_seconds"));
    let seconds = visits.iter().map(longest).sum::<f64>() * number("/micro_batches")?;
    if !((number("/on_wafer/total_seconds")? / seconds - 1.0).abs() <= 1e-9) {
        return wrong("seconds of a step");
    }
    let tokens = number("/micro_tokens")? * number("/micro_batches")?;
    if !((number("/on_wafer/tokens_per_second")? * seconds / tokens - 1.0).abs() <= 1e-9) {
        return wrong("tokens a second");
    }
    let (busy, tiles) = (number("/map/busy")?, number("/wafer/width")? * number("/wafer/height")?);
    if !(busy > 0.0 && busy <= tiles) {
        return wrong("busy tiles");
    }
    Ok(())
}

#[test]
fn a_plan_agrees_with_itself() {
    let desk = Desk::new();
    for flags in [
        &["--model", "tiny.toml"][..],
        &["--model", "llama-tiny", "--wafer", "8x8", "--grad-accum", "3", "--param-dtype", "bf16"],
        &["--model", "gpt2", "--wafer", "wse1", "--batch-size", "4", "--recompute", "none"],
        &["--model", "gpt2", "--store", "disk", "--device-memory", "1500MiB", "--optimizer", "adafactor"],
    ] {
        let plan = desk.plan(flags);
        agrees(&plan).unwrap_or_else(|what| panic!("{flags:?}: {what}"));
        // The checker finds what is off.
        for (path, value) in [
            ("/parameters", 1.into()),
            ("/sram/0/accumulators", 7.into()),
            ("/sram/0/state", 7.into()),
            ("/on_wafer/total_seconds", 1e-9.into()),
        ] {
            let mut off = plan.clone();
            *off.pointer_mut(path).unwrap() = value;
            assert!(agrees(&off).is_err(), "{path}");
        }
    }
}

#[test]
fn the_largest_model_is_planned() {
    let desk = Desk::new();
    let flags = ["--model", "gpt3-175b", "--param-dtype", "bf16", "--batch-size", "1"];
    let disk = ["--store", "disk", "--optimizer", "adafactor", "--clip", "layer", "--in-place"];
    let plan = desk.plan(&[&flags[..], &disk].concat());
    agrees(&plan).unwrap();
    assert_eq!(plan["parameters"], 174_604_259_328u64);
    assert_eq!(plan["roles"][0]["bytes"], 2 * 174_604_259_328u64);
    assert_eq!(plan["wafer"]["name"], "wse-2");
    assert_eq!((plan["wafer"]["width"].as_u64(), plan["wafer"]["height"].as_u64()), (Some(750), Some(994)));
    // Nothing holds all of it; that is said, and is no error.
    let resident = desk.plan(&flags);
    assert!(resident["refused"].as_str().unwrap().contains("--store disk"), "{}", resident["refused"]);
}

#[test]
fn what_an_adapter_cannot_bind_is_said_and_planned() {
    let desk = Desk::new();
    if rig::adapter("a plan for an adapter").is_none() {
        return;
    }
    let line = ["plan", "--json", "--device", "software", "--model", "gpt2", "--batch-size", "4096"];
    let output = desk.gaufre(&line);
    // Where there is hardware alone, there is no software adapter to plan for.
    let Ok(plan) = serde_json::from_slice::<Value>(&output.stdout) else { return };
    agrees(&plan).unwrap();
    assert!(plan["refused"].as_str().unwrap().contains("--batch-size"), "{}", plan["refused"]);
    let here = plan["largest"]["here"].as_u64().unwrap();
    assert!((1..4096).contains(&here), "{here}");
}

#[test]
fn the_largest_batch_fits_and_the_next_does_not() {
    let desk = Desk::new();
    let flags = ["--model", "tiny.toml", "--device-memory", "3MiB", "--store", "ram", "--wafer", "2x2"];
    let planned = |batch: u64| desk.plan(&[&flags[..], &["--batch-size", &batch.to_string()]].concat());
    let largest = planned(1)["largest"].clone();
    let (here, wafer) = (largest["here"].as_u64().unwrap(), largest["wafer"].as_u64().unwrap());
    assert!(here > 1 && wafer > 0, "{largest}");
    assert!(planned(here)["refused"].is_null());
    let line = ["plan", "--device", "host", "--batch-size", &(here + 1).to_string()];
    desk.error(1, &[&line[..], &flags].concat());
    assert!(desk.said(&[&["plan", "--device", "host"], &flags[..]].concat()).contains("a step, predicted"));
}

/// Runs, launches, messages and bytes of each program in a step of a trace.
fn traced(trace: &Value, step: &str) -> Vec<(String, [u64; 4])> {
    let events = trace["traceEvents"].as_array().unwrap();
    let time = |e: &Value| (e["ts"].as_f64().unwrap(), e["ts"].as_f64().unwrap() + e["dur"].as_f64().unwrap());
    let outer = events.iter().find(|e| e["cat"] == "step" && e["name"] == step).map(time).unwrap();
    let mut programs: std::collections::BTreeMap<String, [u64; 4]> = Default::default();
    for event in events.iter().filter(|e| e["cat"] == "program") {
        let (begun, ended) = time(event);
        if begun >= outer.0 - 0.01 && ended <= outer.1 + 0.01 {
            let counts = programs.entry(event["name"].as_str().unwrap().to_owned()).or_default();
            counts[0] += 1;
            for (count, name) in counts[1..].iter_mut().zip(["supersteps", "messages", "bytes"]) {
                *count += event["args"][name].as_u64().unwrap();
            }
        }
    }
    programs.into_iter().collect()
}

/// The same of a plan, in supersteps.
fn planned(plan: &Value) -> Vec<(String, [u64; 4])> {
    let programs = plan["programs"].as_array().unwrap().iter();
    let counts = |p: &Value| ["runs", "supersteps", "messages", "bytes"].map(|name| p[name].as_u64().unwrap());
    programs.map(|p| (p["name"].as_str().unwrap().to_owned(), counts(p))).collect()
}

#[test]
fn a_traced_run_counts_what_was_planned() {
    let desk = Desk::new();
    let flags = ["--model", "tiny.toml", "--schedule", "superstep", "--wafer", "3x2", "--batch-size", "2"];
    let run = ["train", "--device", "host", "--data", "text", "--tokenizer", "byte", "--out", "run", "--steps", "2"];
    let rest = ["--eval-every", "0", "--sample-tokens", "0", "--trace", "trace.json"];
    let output = desk.gaufre(&[&run[..], &flags, &rest].concat());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.contains("slower"), "{said}");
    let trace: Value = serde_json::from_str(&fs::read_to_string(desk.path("trace.json")).unwrap()).unwrap();
    for (name, value) in [("schedule", "superstep"), ("wafer", "3x2"), ("model", "tiny")] {
        assert_eq!(trace["otherData"][name], value);
    }
    let plan = desk.plan(&flags);
    assert_eq!(traced(&trace, "step 2"), planned(&plan));
    assert_ne!(traced(&trace, "step 2"), planned(&desk.plan(&[&flags[..], &["--grad-accum", "2"]].concat())));
}

#[test]
fn a_check_is_traced() {
    let desk = Desk::new();
    desk.said(&["check", "--device", "host", "--trace", "trace.json"]);
    let trace: Value = serde_json::from_str(&fs::read_to_string(desk.path("trace.json")).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let outer = |name: &str| {
        events.iter().find(|e| e["cat"] == "step" && e["name"] == name).is_some_and(|e| e["args"]["programs"] != 0)
    };
    assert!(outer("matmul_nt") && outer("training step of gpt2-tiny"));
}

#[test]
fn the_page_needs_nothing_but_a_browser() {
    let desk = Desk::new();
    desk.said(&["plan", "--device", "host", "--model", "llama-tiny", "--wafer", "6x4", "--html", "plan.html"]);
    let page = fs::read_to_string(desk.path("plan.html")).unwrap();
    for reach in ["http://", "https://", "<script", "<link rel=\"stylesheet", "@import", "url(", "<img", "<iframe"] {
        assert!(!page.contains(reach), "{reach}");
    }
    assert!(page.contains("default-src 'none'") && page.contains("color-scheme: light dark"));
    for part in ["llama-tiny on 6 x 4 tiles of a wse-2", "attention_forward", "mlp.gate.weight", "layer 0, backward"] {
        assert!(page.contains(part), "{part}");
    }
    for tag in ["section", "div", "svg", "table", "g", "span"] {
        let count = |text: String| page.matches(&text).count();
        assert_eq!(count(format!("<{tag}>")) + count(format!("<{tag} ")), count(format!("</{tag}>")), "{tag}");
    }
    assert!(!page.contains("NaN") && !page.contains("inf"), "a number is none");
}

#[test]
fn what_cannot_be_planned_is_said_in_one_line() {
    let desk = Desk::new();
    for (code, flags, parts) in [
        (1, &["--model", "gpt5"][..], &["gpt5"][..]),
        (1, &["--model", "gone.toml"], &["gone.toml"]),
        (2, &["--wafer", "wse9"], &["wse9", "wse2"]),
        (2, &["--wafer", "0x3"], &["0x3", "8x8"]),
        (1, &["--seq-len", "4096"], &["--seq-len 4096", "128"]),
        (1, &["--batch-size", "0"], &["--batch-size 0"]),
        (1, &["--store", "ram", "--device-memory", "1KiB"], &["--device-memory"]),
        (1, &["--device", "abacus"], &["abacus"]),
        (1, &["--html", "gone/plan.html"], &["gone/plan.html"]),
        (1, &["--in-place"], &["--in-place", "--store disk"]),
    ] {
        let device = if flags.contains(&"--device") { &[][..] } else { &["--device", "host"] };
        let said = desk.error(code, &[&["plan"], device, flags].concat());
        assert!(parts.iter().all(|part| said.contains(part)), "{flags:?}: {said}");
    }
}
