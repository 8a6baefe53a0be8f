//! Training speed against a rival, both in one run and in turn: `gaufre train` itself, clip and metrics on, and the
//! rival's own program, each as a whole process; medians and their ratio as JSON. With `--first-step`, the wall time of a
//! whole process of one step instead, nothing compiled beforehand.
//!
//! `cargo bench --bench step -- --device host --shapes nano,mini,gpt2 --rounds 3 --rival "python pytorch_gpt.py"`
//! The rival is called with the name of a shape and must print `NUMBER tok/s`. Without `--rival` only Gaufre is timed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use clap::Parser;

#[derive(Parser)]
struct Options {
    /// Device of `gaufre train`.
    #[arg(long, default_value = "host")]
    device: String,
    /// Shapes, as in `benches/models`.
    #[arg(long, value_delimiter = ',', default_value = "nano,mini,gpt2")]
    shapes: Vec<String>,
    /// Command of the rival; the shape is added to it.
    #[arg(long)]
    rival: Option<String>,
    /// How often each is run, in turn.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Steps of a run; the first is not counted.
    #[arg(long, default_value_t = 7)]
    steps: usize,
    /// Time whole processes of one step, without Mesa's shader cache.
    #[arg(long, conflicts_with_all = ["rival", "steps"])]
    first_step: bool,
    /// Where to write the JSON as well.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Batch and sequence of a shape.
fn sizes(shape: &str) -> (usize, usize) {
    match shape {
        "nano" => (8, 128),
        "mini" => (8, 256),
        "gpt2" => (2, 256),
        "llama" => (1, 256),
        other => panic!("no shape {other}: nano, mini, gpt2 or llama"),
    }
}

/// `gaufre train` on some text, for a number of steps, into a run folder that is not there yet.
fn train(options: &Options, shape: &str, steps: usize, folder: &Path, out: &Path) -> Command {
    let text = folder.join("text.txt");
    let mut state = 1u64;
    let mut letter = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        b' ' + (state >> 33) as u8 % 90
    };
    std::fs::write(&text, (0..1 << 16).map(|_| letter()).collect::<Vec<u8>>()).expect("a temporary file");
    if out.exists() {
        std::fs::remove_dir_all(out).expect("the folder of the last run goes");
    }
    let (batch, seq) = sizes(shape);
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/models").join(format!("{shape}.toml"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_gaufre"));
    command
        .args([
            "train",
            "--tokenizer",
            "byte",
            "--eval-every",
            "0",
            "--val-split",
            "0",
            "--recompute",
            "none",
            "--sample-tokens",
            "0",
        ])
        .args(["--device", &options.device, "--steps", &steps.to_string()])
        .args(["--batch-size", &batch.to_string(), "--seq-len", &seq.to_string()])
        .arg("--model")
        .arg(model)
        .arg("--data")
        .arg(&text)
        .arg("--out")
        .arg(out)
        .stderr(Stdio::null())
        .stdout(Stdio::null());
    command
}

/// Tokens a second of the steps after the first, from the run's own metrics.
fn ours(options: &Options, shape: &str, folder: &Path) -> f64 {
    let out = folder.join("run");
    let status = train(options, shape, options.steps, folder, &out).status().expect("gaufre starts");
    assert!(status.success(), "gaufre train failed on {shape}");
    let metrics = std::fs::read_to_string(out.join("metrics.jsonl")).expect("metrics");
    let rates = metrics.lines().filter_map(|line| {
        serde_json::from_str::<serde_json::Value>(line).expect("JSON lines")["tokens_per_second"].as_f64()
    });
    median(rates.skip(1).collect())
}

/// Seconds from start to end of a process of one step that finds no compiled shader.
fn first_step(options: &Options, shape: &str, folder: &Path) -> f64 {
    let mut command = train(options, shape, 1, folder, &folder.join("run"));
    let begun = Instant::now();
    let status = command.env("MESA_SHADER_CACHE_DISABLE", "true").status().expect("gaufre starts");
    assert!(status.success(), "gaufre train failed on {shape}");
    begun.elapsed().as_secs_f64()
}

/// The number before ` tok/s` in the last line that has one.
fn rival(command: &str, shape: &str) -> f64 {
    let mut words = command.split_whitespace();
    let output =
        Command::new(words.next().expect("a command")).args(words).arg(shape).output().expect("the rival starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().rev().find(|l| l.contains(" tok/s")).unwrap_or_else(|| panic!("no tok/s in: {text}"));
    let number = line.split(" tok/s").next().and_then(|l| l.split_whitespace().last()).expect("a number");
    number.parse().unwrap_or_else(|_| panic!("no number in: {line}"))
}

fn median(mut values: Vec<f64>) -> f64 {
    assert!(!values.is_empty(), "nothing was measured");
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Both programs in turn, and their ratio.
fn speed(options: &Options, shape: &str, folder: &Path) -> serde_json::Value {
    let (mut us, mut them) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        us.push(ours(options, shape, folder));
        them.extend(options.rival.as_ref().map(|command| rival(command, shape)));
    }
    let gaufre = median(us.clone());
    let mut row = serde_json::json!({
        "shape": shape, "device": options.device, "gaufre_tokens_per_second": gaufre, "gaufre_rounds": us,
    });
    if options.rival.is_some() {
        let other = median(them.clone());
        row["rival_tokens_per_second"] = other.into();
        row["rival_rounds"] = them.into();
        row["ratio"] = (gaufre / other).into();
    }
    row
}

fn main() {
    let options = Options::parse();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut rows = Vec::new();
    for shape in &options.shapes {
        let row = match options.first_step {
            true => {
                let rounds: Vec<f64> =
                    (0..options.rounds).map(|_| first_step(&options, shape, folder.path())).collect();
                serde_json::json!({
                    "shape": shape, "device": options.device, "first_step_seconds": median(rounds.clone()),
                    "first_step_rounds": rounds,
                })
            }
            false => speed(&options, shape, folder.path()),
        };
        println!("{row}");
        rows.push(row);
    }
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&rows).expect("JSON");
        std::fs::write(path, text + "\n").expect("the JSON file can be written");
    }
}
