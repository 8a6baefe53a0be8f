//! A folder with a text and a tiny model, and runs in it: how they are started, stopped, and compared.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use gaufre::program::initial::word;
use gaufre::report::metrics::Metrics;
use gaufre::store::checkpoint;
use gaufre::train::config::Config;
use gaufre::train::{Control, Summary, TrainError, resume, start};

/// A desk to run at.
pub struct Desk {
    folder: tempfile::TempDir,
}

/// Everything that a run leaves which must not depend on how often it stopped.
pub struct Left {
    /// Contents of the weights and of the last checkpoint.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Lines of the metrics without times and memory.
    pub metrics: Vec<String>,
}

impl Desk {
    /// A desk with `text`, words in random order, and `tiny.toml`.
    pub fn new() -> Desk {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let words = ["to ", "be ", "or ", "not ", "that ", "is ", "the ", "question\n"];
        let text: String = (0..700).map(|i| words[word(3, i) as usize % words.len()]).collect();
        fs::write(folder.path().join("text"), text).expect("the text is written");
        let model = "layers = 1\nheads = 2\nd_model = 16\ncontext = 8\n";
        fs::write(folder.path().join("tiny.toml"), model).expect("the model is written");
        Desk { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A run of 20 steps in the folder `out`, with a checkpoint every 4.
    pub fn config(&self, out: &str) -> Config {
        Config {
            model: self.path("tiny.toml").display().to_string(),
            data: vec![self.path("text")],
            device: "host".into(),
            threads: 1,
            steps: 20,
            batch_size: 2,
            lr: 1e-2,
            eval_every: 5,
            eval_batches: 2,
            save_every: 4,
            sample_tokens: 12,
            out: Some(self.path(out)),
            ..Config::default()
        }
    }

    /// Runs the command at the desk.
    pub fn command(&self, line: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gaufre"));
        command.env("XDG_RUNTIME_DIR", self.folder.path());
        command.args(line).current_dir(self.folder.path());
        command
    }

    /// The one line that the command must end in.
    pub fn error(&self, line: &[&str]) -> String {
        let output = self.command(line).output().expect("the command starts");
        refused(&output)
    }
}

/// The line that a command ended in; it must have failed.
pub fn refused(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{said}");
    errors[0].to_string()
}

/// Starts a run with metrics.
pub fn begin(config: &Config, control: Control<'_>) -> Result<Summary, TrainError> {
    start(config, control, &mut Metrics::default())
}

/// Goes on with a run, with metrics.
pub fn go_on(config: &Config, control: Control<'_>) -> Result<Summary, TrainError> {
    resume(config.out.as_deref().expect("the run has a folder"), config, control, &mut Metrics::default())
}

/// A control that stops after some steps.
pub fn until(step: u64) -> Control<'static> {
    Control { stop_after: Some(step), ..Control::default() }
}

/// What a finished run left.
pub fn left(run: &Path) -> Left {
    let (_, last) = checkpoint::list(&run.join("checkpoints")).expect("checkpoints").pop().expect("one at least");
    let names = ["model.safetensors", "optimizer.safetensors", "state.json"];
    let mut paths: Vec<PathBuf> = names.iter().map(|name| last.join(name)).collect();
    paths.push(run.join("model.safetensors"));
    // Where a run has no samples there is no folder of them.
    paths.extend(fs::read_dir(run.join("samples")).into_iter().flatten().map(|entry| entry.expect("a sample").path()));
    let relative = |path: &Path| path.strip_prefix(run).expect("inside").display().to_string();
    let files = paths.iter().map(|path| (relative(path), fs::read(path).expect("a file of the run"))).collect();
    Left { files, metrics: metrics(run) }
}

/// Lines of the metrics without times and memory.
pub fn metrics(run: &Path) -> Vec<String> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    let timeless = |line: &str| {
        let mut line: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).expect("a line of JSON");
        for key in ["tokens_per_second", "mfu", "peak_process_bytes"] {
            line.remove(key);
        }
        serde_json::Value::Object(line).to_string()
    };
    text.lines().map(timeless).collect()
}

/// Two runs left the same.
pub fn assert_equal(a: &Left, b: &Left, what: &str) {
    let differ = a.metrics.iter().zip(&b.metrics).find(|(a, b)| a != b);
    assert_eq!((differ, a.metrics.len()), (None, b.metrics.len()), "{what}: the metrics differ");
    assert!(a.files.keys().eq(b.files.keys()), "{what}: {:?} {:?}", a.files.keys(), b.files.keys());
    for (name, bytes) in &a.files {
        assert!(*bytes == b.files[name], "{what}: {name} differs");
    }
}
