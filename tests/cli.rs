//! The command as a person meets it: each wrong word or file ends in one clear line that names it and the cure.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A folder with a text long enough for the demo.
struct Desk {
    folder: tempfile::TempDir,
}

impl Desk {
    fn new() -> Desk {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("text"), "to be or not to be\n".repeat(200)).unwrap();
        Desk { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A model that trains in no time.
    fn tiny(&self) {
        let text = "layers = 2\nheads = 2\nd_model = 32\ncontext = 16\n";
        fs::write(self.path("tiny.toml"), text).unwrap();
    }

    /// Step and loss of each line of a run's metrics, as they are written.
    fn losses(&self, run: &str) -> Vec<(serde_json::Value, serde_json::Value)> {
        let text = fs::read_to_string(self.path(run).join("metrics.jsonl")).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let loss = |line: &serde_json::Value| line.get("loss").or(line.get("val_loss")).cloned();
        lines.filter_map(|line| Some((line["step"].clone(), loss(&line)?))).collect()
    }

    /// Runs the command in the folder.
    fn gaufre(&self, line: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gaufre"));
        // Without this variable libwayland, which some drivers load, has a line of its own to say.
        command.env("XDG_RUNTIME_DIR", self.folder.path());
        command.args(line).current_dir(self.folder.path()).output().expect("the command starts")
    }

    /// The one line that the command must end in.
    fn error(&self, code: i32, line: &[&str]) -> String {
        let output = self.gaufre(line);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{line:?}: {said}");
        assert!(output.stdout.is_empty(), "{line:?}");
        assert_eq!(said.lines().count(), 1, "{line:?}: {said}");
        assert!(said.starts_with("error: "), "{line:?}: {said}");
        said
    }

    /// The error of `gaufre train` on the text, with more flags.
    fn train(&self, code: i32, flags: &[&str]) -> String {
        let line = ["train", "--data", "text", "--device", "host", "--seq-len", "16"];
        self.error(code, &[&line, flags].concat())
    }
}

fn has(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "{part:?} is not in {said:?}");
    }
}

#[test]
fn missing_or_unfit_data() {
    let desk = Desk::new();
    fs::write(desk.path("empty"), "").unwrap();
    fs::write(desk.path("short"), "to be").unwrap();
    fs::write(desk.path("binary"), b"\x7fELF\xff\xfe").unwrap();
    fs::create_dir(desk.path("nothing")).unwrap();
    let data = |name| desk.error(1, &["train", "--device", "host", "--data", name]);
    has(&desk.error(1, &["train", "--model", "gpt2"]), &["--data", "text files"]);
    has(&data("none"), &["none", "give a text file"]);
    has(&data("empty"), &["empty", "no text"]);
    has(&data("nothing"), &["nothing", "no text"]);
    has(&data("short"), &["4 tokens", "--seq-len"]);
    has(&data("binary"), &["binary", "byte 4", "--tokenizer byte"]);
}

#[test]
fn each_kind_of_data_names_what_is_wrong_with_it() {
    let desk = Desk::new();
    fs::write(desk.path("odd.bin"), [1, 0, 2]).unwrap();
    fs::write(desk.path("far.bin"), [1, 0, 0, 1]).unwrap();
    fs::write(desk.path("field.jsonl"), "{\"text\": \"x\"}\n{\"body\": \"x\"}\n").unwrap();
    fs::write(desk.path("broken.jsonl"), "{\"text\": \"x\"}\n\n{\"text\": \n").unwrap();
    fs::write(desk.path("none.json"), "{}").unwrap();
    let data =
        |name, tokenizer| desk.error(1, &["train", "--device", "host", "--data", name, "--tokenizer", tokenizer]);
    has(&data("odd.bin", "byte"), &["odd.bin", "3 bytes"]);
    has(&data("far.bin", "byte"), &["far.bin", "id 256 at byte 2", "--tokenizer"]);
    has(&data("field.jsonl", "char"), &["field.jsonl line 2", "\"text\"", "body", "--field"]);
    has(&data("broken.jsonl", "char"), &["broken.jsonl line 3", "broken JSON"]);
    has(&data("text", "none.json"), &["none.json", "tokenizer"]);
    has(&data("text", "gone.json"), &["gone.json", "No such file"]);
    has(&desk.train(2, &["--tokenizer", "bpe"]), &["--tokenizer", "bpe", "tokenizer.json"]);
    has(&desk.train(1, &["--val-data", "text", "--val-split", "0.5"]), &["--val-split 0.5", "--val-data"]);
}

#[test]
fn prepared_data_that_does_not_fit_is_refused() {
    let desk = Desk::new();
    let out = desk.gaufre(&["prepare", "text", "--tokenizer", "byte", "--out", "data"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(String::from_utf8(out.stdout).unwrap(), "data\n");
    let train = |flags: &[&str]| desk.error(1, &[&["train", "--device", "host", "--data", "data"], flags].concat());
    has(&train(&["--tokenizer", "char"]), &["--tokenizer char", "data", "byte"]);
    has(&train(&["--val-split", "0.2"]), &["--val-split 0.2", "leave"]);
    fs::write(desk.path("small.toml"), "layers = 1\nheads = 1\nd_model = 8\ncontext = 8\nvocab_size = 100\n").unwrap();
    has(&train(&["--model", "small.toml"]), &["small", "vocab_size = 100", "256 ids"]);
    has(&desk.error(1, &["prepare", "text", "--out", "data"]), &["--out data", "holds something"]);
    has(&desk.error(1, &["prepare", "text", "--out", "text/x"]), &["text/x", "choose a folder"]);
    let shard = desk.path("data/00000.tokens");
    let good = fs::read(&shard).unwrap();
    type Spoil = fn(&mut Vec<u8>);
    let spoils: [(Spoil, &str); 4] = [
        (|b| b.truncate(b.len() - 1), "cut off"),
        (|b| b[0] ^= 1, "GAUFRETK"),
        (|b| b[8] = 9, "version 9"),
        (|b| b[999] ^= 8, "a bit of it has changed"),
    ];
    for (spoil, said) in spoils {
        let mut bytes = good.clone();
        spoil(&mut bytes);
        fs::write(&shard, bytes).unwrap();
        has(&train(&[]), &["00000.tokens", said, "prepare it again"]);
    }
}

#[test]
fn models_that_cannot_be() {
    let desk = Desk::new();
    let model = |text: &str| {
        fs::write(desk.path("odd.toml"), text).unwrap();
        desk.train(1, &["--model", "odd.toml"])
    };
    has(&model("layers = 1\nheads = 3\nd_model = 64\ncontext = 32\n"), &["odd", "heads = 3", "divide d_model = 64"]);
    has(&model("layers = 0\nheads = 1\nd_model = 64\ncontext = 32\n"), &["odd", "layers = 0", "must be 1"]);
    has(&model("layers = 1\nheads = 1\nd_model = 99999999999\ncontext = 32\n"), &["d_model = 99999999999", "16777216"]);
    has(&model("layers = 99999999999999999999\n"), &["odd"]);
    has(&model("heads = 1\nd_model = 64\ncontext = 32\n"), &["odd", "layers"]);
    has(&desk.train(1, &["--model", "gone.toml"]), &["gone.toml", "No such file"]);
}

#[test]
fn too_little_device_memory_says_how_much_is_needed() {
    let desk = Desk::new();
    let said = desk.train(1, &["--device-memory", "1000"]);
    has(&said, &["--device-memory 1000", "bytes"]);
    let needed = said.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse::<u64>().ok()).max();
    assert!(needed.is_some_and(|n| n > 1000), "{said}");
}

#[test]
fn a_configuration_from_a_file_under_the_flags() {
    let desk = Desk::new();
    desk.tiny();
    let config = |text: &str| fs::write(desk.path("config.toml"), text).unwrap();
    config("data = ['text']\nstpes = 3\n");
    has(&desk.error(1, &["train", "--config", "config.toml"]), &["config.toml", "line 2", "stpes", "steps"]);
    config("data = ['text']\nsteps = 'many'\n");
    has(&desk.error(1, &["train", "--config", "config.toml"]), &["config.toml", "line 2"]);
    has(&desk.error(1, &["train", "--config", "gone.toml"]), &["gone.toml"]);
    config("model = 'tiny.toml'\ndata = ['text']\nsteps = 2\nlr = 0.5\ndevice = 'host'\neval_every = 0\n");
    let out = desk.gaufre(&["train", "--config", "config.toml", "--lr", "0.25", "--sample-tokens", "0", "--out", "a"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let resolved = fs::read_to_string(desk.path("a/config.toml")).unwrap();
    has(&resolved, &["lr = 0.25", "steps = 2", "eval_every = 0", "batch_size = 12"]);
    // A run's own file repeats the run, in a folder of its own.
    let again = desk.gaufre(&["train", "--config", "a/config.toml", "--sample-tokens", "0"]);
    assert_eq!(String::from_utf8(again.stdout).unwrap(), "runs/tiny-1\n");
    assert_eq!(desk.losses("a"), desk.losses("runs/tiny-1"));
}

#[test]
fn a_run_leaves_its_folder_and_equal_flags_give_equal_runs() {
    let desk = Desk::new();
    desk.tiny();
    let train = |out: &str, flags: &[&str]| {
        let line =
            ["train", "--data", "text", "--model", "tiny.toml", "--device", "host", "--steps", "5", "--out", out];
        let output = desk.gaufre(&[&line, flags].concat());
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}");
        assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{out}\n"));
        said
    };
    let said = train("plain", &["--sample-tokens", "20"]);
    has(&said, &["step 5/5", "validation loss", "a sample", "generate plain --prompt to\n"]);
    let sample = fs::read_to_string(desk.path("plain/samples/step-000005.txt")).unwrap();
    assert_eq!(sample.chars().count(), 20 + 1, "{sample:?}");
    assert!(fs::read_to_string(desk.path("plain/report.html")).unwrap().contains("step-000005"));
    for file in ["config.toml", "tokenizer.json", "metrics.jsonl", "model.safetensors"] {
        assert!(desk.path("plain").join(file).is_file(), "{file}");
    }
    train("streamed", &["--store", "ram", "--device-memory", "910KB", "--sample-tokens", "0"]);
    train("stepwise", &["--schedule", "superstep", "--wafer", "3x2", "--threads", "1", "--sample-tokens", "0"]);
    let losses = desk.losses("plain");
    assert_eq!(losses.len(), 6);
    assert_eq!(losses, desk.losses("streamed"));
    assert_eq!(losses, desk.losses("stepwise"));
    let write = |seed: &str| {
        let line = ["generate", "plain", "--prompt", "to be", "--max-tokens", "40", "--device", "host", "--seed", seed];
        let output = desk.gaufre(&line);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let text = write("1");
    assert!(text.starts_with("to be") && text.chars().count() == 5 + 40 + 1, "{text:?}");
    assert_eq!(text, write("1"));
    assert_ne!(text, write("2"));
}

#[test]
fn prepared_data_trains_as_the_text_it_came_from() {
    let desk = Desk::new();
    desk.tiny();
    let tokenizer = ["tokenizer", "train", "--data", "text", "--vocab-size", "260", "--out", "bpe.json"];
    assert!(desk.gaufre(&tokenizer).status.success());
    let prepare = ["prepare", "text", "--tokenizer", "bpe.json", "--shard-tokens", "100", "--out", "data"];
    assert!(desk.gaufre(&prepare).status.success());
    for (out, data) in [("one", &["text", "--tokenizer", "bpe.json"][..]), ("two", &["data"])] {
        let line = ["train", "--model", "tiny.toml", "--device", "host", "--steps", "3", "--out", out, "--data"];
        let output = desk.gaufre(&[&line, data].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(desk.losses("one"), desk.losses("two"));
    has(&desk.error(1, &tokenizer), &["--out bpe.json", "is there already"]);
    let small = ["tokenizer", "train", "--data", "text", "--vocab-size", "10", "--out", "small.json"];
    has(&desk.error(1, &small), &["--vocab-size 10", "257"]);
}

#[test]
fn the_demo_needs_no_flags() {
    let desk = Desk::new();
    // With fewer steps than it has on its own, and of a few tokens.
    let output =
        desk.gaufre(&["train", "--steps", "2", "--batch-size", "1", "--device", "host", "--sample-tokens", "9"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "runs/demo-1\n");
    has(&said, &["model: demo", "step 2/2", "a sample", "generate runs/demo-1 --prompt "]);
}

#[test]
fn numbers_that_cannot_be() {
    let desk = Desk::new();
    for flag in ["--steps", "--batch-size", "--seq-len", "--grad-accum", "--eval-batches"] {
        let said = desk.error(1, &["train", "--data", "text", flag, "0"]);
        has(&said, &[flag, " 0", "must be 1"]);
        has(&desk.error(2, &["train", "--data", "text", flag, "-1"]), &[flag, "-1", "whole number"]);
    }
    has(&desk.train(1, &["--batch-size", "9999999999"]), &["--batch-size 9999999999", "less"]);
    has(&desk.train(2, &["--batch-size", "99999999999999999999"]), &["--batch-size", "99999999999999999999"]);
    has(&desk.train(1, &["--lr", "nan"]), &["--lr NaN", "more than 0"]);
    has(&desk.train(1, &["--lr", "-0.1"]), &["--lr -0.1", "more than 0"]);
    has(&desk.train(1, &["--val-split", "1.5"]), &["--val-split 1.5", "less than 1"]);
    has(&desk.train(2, &["--device-memory", "lots"]), &["--device-memory", "lots", "512MiB"]);
    has(&desk.train(2, &["--wafer", "8"]), &["--wafer", "8x8"]);
}

#[test]
fn an_unknown_model_lists_the_near_ones() {
    has(&Desk::new().train(1, &["--model", "gpt2-larg"]), &["gpt2-larg", "gpt2-large"]);
}

#[test]
fn words_that_are_not_known() {
    let desk = Desk::new();
    has(&desk.error(1, &["train", "--data", "text", "--device", "gpu:none such"]), &["gpu:none such", "host"]);
    has(&desk.error(1, &["train", "--data", "text", "--device", "hots"]), &["hots", "host", "oracle"]);
    has(&desk.train(2, &["--stepz", "3"]), &["--stepz", "--steps"]);
    has(&desk.train(2, &["--schedule", "fussed"]), &["fussed", "fused", "superstep"]);
    has(&desk.error(2, &["trian"]), &["trian", "train"]);
}

#[test]
fn a_folder_that_cannot_be_written_or_holds_a_run() {
    let desk = Desk::new();
    has(&desk.train(1, &["--out", "text/run"]), &["--out", "text/", "choose"]);
    fs::create_dir(desk.path("old")).unwrap();
    fs::write(desk.path("old/config.toml"), "precious").unwrap();
    has(&desk.train(1, &["--out", "old"]), &["--out old", "holds a run"]);
    assert_eq!(fs::read_to_string(desk.path("old/config.toml")).unwrap(), "precious");
}

#[test]
fn generate_refuses_what_it_cannot_do() {
    let desk = Desk::new();
    fs::create_dir(desk.path("run")).unwrap();
    fs::write(desk.path("run/config.toml"), "").unwrap();
    has(&desk.error(1, &["generate", "none"]), &["none", "no config.toml"]);
    has(&desk.error(1, &["generate", "run"]), &["tokenizer.json"]);
    fs::write(desk.path("run/tokenizer.json"), r#"{"kind":"char","characters":"abc"}"#).unwrap();
    has(&desk.error(1, &["generate", "run", "--prompt", "abx"]), &["--prompt", "'x' at byte 2"]);
    has(&desk.error(1, &["generate", "run", "--prompt", ""]), &["--prompt", "empty"]);
    has(&desk.error(1, &["generate", "run", "--temperature", "-1"]), &["--temperature -1"]);
    has(&desk.error(1, &["generate", "run", "--top-k", "0"]), &["--top-k 0"]);
    has(&desk.error(1, &["generate", "run", "--max-tokens", "0"]), &["--max-tokens 0"]);
}

#[test]
fn devices_lists_the_host_and_the_oracle() {
    let output = Desk::new().gaufre(&["devices"]);
    assert!(output.status.success());
    let table = String::from_utf8(output.stdout).unwrap();
    has(&table, &["--device", "host", "threads", "oracle", "f64"]);
}

#[test]
fn models_lists_every_preset_with_its_family_and_needs() {
    let desk = Desk::new();
    let output = desk.gaufre(&["models"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let table = String::from_utf8(output.stdout).unwrap();
    let line = |name: &str| table.lines().find(|line| line.split_whitespace().next() == Some(name)).unwrap();
    gaufre::model::PRESETS.iter().for_each(|(name, _)| has(line(name), &[name]));
    has(line("gpt-neox-20b"), &["gpt_neox", "20,554,567,680", "38.29 GiB", "76.57 GiB"]);
    has(line("llama-3.2-1b"), &["llama", "1,235,814,400"]);
    has(line("demo"), &["gpt2", "*", "fits"]);
    let output = desk.gaufre(&["models", "--json"]);
    let rows: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(rows.len(), gaufre::model::PRESETS.len());
    for row in &rows {
        let number = |field: &serde_json::Value| field.as_u64().unwrap_or_else(|| panic!("{row}"));
        let parameters = number(&row["parameters"]);
        assert_eq!((number(&row["bf16_bytes"]), number(&row["f32_bytes"])), (2 * parameters, 4 * parameters));
        // AdamW keeps four numbers a parameter; on a disk, in place, there is one of two bytes, and a journal.
        assert!(number(&row["resident"]["memory_bytes"]) > 16 * parameters, "{row}");
        assert!(number(&row["streamed"]["disk_bytes"]) > 2 * parameters, "{row}");
        let here = row["here"].as_str().unwrap();
        let free = row["free"]["memory_bytes"].as_u64();
        let fits = free.is_none_or(|free| number(&row["resident"]["memory_bytes"]) <= free);
        assert_eq!(here == "fits", fits, "{row}");
    }
}

#[test]
fn help_is_no_error() {
    let desk = Desk::new();
    for line in [&["--help"][..], &["--version"], &["train", "--help"], &["generate", "--help"], &["devices", "-h"]] {
        assert_eq!(desk.gaufre(line).status.code(), Some(0), "{line:?}");
    }
}

#[test]
fn whole_files_replace_what_was_there_or_leave_it() {
    use gaufre::store::durable::{write_whole, write_with};
    let desk = Desk::new();
    let path = desk.path("file");
    write_whole(&path, b"one").unwrap();
    write_whole(&path, b"two").unwrap();
    let error = write_with(&path, |file| {
        std::io::Write::write_all(file, b"thr")?;
        Err(std::io::Error::other("the disk is full"))
    });
    has(&error.unwrap_err().to_string(), &["file", "the disk is full"]);
    assert_eq!(fs::read(&path).unwrap(), b"two");
    let names = |folder: &Path| fs::read_dir(folder).unwrap().count();
    assert_eq!(names(desk.folder.path()), 2, "no part is left behind");
}
