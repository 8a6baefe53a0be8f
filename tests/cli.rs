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
    has(&desk.error(1, &["train"]), &["--data", "text files"]);
    has(&data("none"), &["none", "give a text file"]);
    has(&data("empty"), &["empty", "no text"]);
    has(&data("nothing"), &["nothing", "no text"]);
    has(&data("short"), &["4 tokens", "--seq-len"]);
    has(&data("binary"), &["binary", "byte 4", "--tokenizer byte"]);
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
    has(&desk.train(1, &["--out", "text/run"]), &["--out", "text/run", "choose"]);
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
