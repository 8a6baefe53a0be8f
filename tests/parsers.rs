//! Every parser of the crate against inputs that were good before a seeded mutator had them: an error or a value, never a
//! panic. Twenty thousand mutants a parser; a million with `--features slow`.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use gaufre::data::Tokenizer;
use gaufre::report::history::History;
use gaufre::store::safetensors::{Limits, read};
use gaufre::{cli, model, train};

const MUTANTS: u64 = if cfg!(feature = "slow") { 1_000_000 } else { 20_000 };

/// What is put into mutants beside chance: numbers at their ends, and what parsers look for.
const WORDS: &[&str] = &[
    "0",
    "-1",
    "1e999",
    "18446744073709551615",
    "9223372036854775808",
    "nan",
    "inf",
    "null",
    "true",
    "{",
    "}",
    "[",
    "]",
    "\"",
    "\\",
    "\\u0000",
    "\\ud800",
    ":",
    ",",
    "=",
    "\n",
    "\r\n",
    "\u{feff}",
    "\u{1f9c7}",
    "'''",
    "#",
    ".",
    "--",
    "-",
    " ",
    "__metadata__",
    "dtype",
    "x",
];

/// SplitMix64: a stream of numbers from a seed.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`; 0 where that is 0.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// Changes bytes at one to four places.
    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            let end = (at + 1 + self.below(24)).min(bytes.len());
            match self.below(7) {
                0 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
                1 if !bytes.is_empty() => bytes[at] = self.next() as u8,
                2 => drop(bytes.drain(at.min(end)..end)),
                3 => bytes.truncate(at),
                4 if at < end => {
                    let copy = bytes[at..end].to_vec();
                    let to = self.below(bytes.len());
                    bytes.splice(to..to, copy);
                }
                5 if at < end => {
                    let word = WORDS[self.below(WORDS.len())].as_bytes();
                    bytes.splice(at..end, word.iter().copied());
                }
                _ => {
                    let word = WORDS[self.below(WORDS.len())].as_bytes();
                    let at = at.min(bytes.len());
                    bytes.splice(at..at, word.iter().copied());
                }
            }
        }
    }
}

/// Gives every mutant of the seeds to a parser, which says whether it took it. Some must be taken, and some refused: else
/// the mutator tests nothing.
fn attack(name: &str, seeds: &[&[u8]], mut parse: impl FnMut(&[u8]) -> bool) {
    assert!(seeds.iter().all(|seed| parse(seed)), "{name}: a seed is not good");
    let mut taken = 0;
    for mutant in 0..MUTANTS {
        let mut chance = Chance(mutant ^ 0x6761_7566_7265);
        let mut bytes = seeds[chance.below(seeds.len())].to_vec();
        chance.mutate(&mut bytes);
        let shown = bytes.clone();
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| parse(&bytes)));
        taken += u64::from(
            found.unwrap_or_else(|_| panic!("{name}: mutant {mutant}: {:?}", String::from_utf8_lossy(&shown))),
        );
    }
    eprintln!("{name}: {MUTANTS} mutants, {taken} taken, {} refused", MUTANTS - taken);
    assert!(taken > 0 && taken < MUTANTS, "{name}: {taken} of {MUTANTS} taken");
}

/// Writes a new file. To write over an old one is a hundred times slower where the file system makes that durable.
fn write_new(path: &Path, bytes: &[u8]) {
    let _ = fs::remove_file(path);
    fs::write(path, bytes).unwrap();
}

#[test]
fn safetensors() {
    let header = concat!(
        r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"#,
        r#""b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]}}"#
    );
    let mut seed = (header.len() as u64).to_le_bytes().to_vec();
    seed.extend(header.as_bytes());
    seed.extend([7; 32]);
    attack("safetensors", &[&seed], |bytes| match read(bytes, Limits::OWN) {
        Ok(layout) => {
            let data = bytes.len() - layout.data_start;
            assert_eq!(layout.tensors.iter().map(|t| t.bytes.len()).sum::<usize>(), data, "each byte has one owner");
            true
        }
        Err(fault) => {
            assert!(fault.to_string().len() < 2000, "{fault}");
            false
        }
    });
}

#[test]
fn model_toml() {
    let seeds: Vec<&[u8]> = model::PRESETS.iter().map(|(_, text)| text.as_bytes()).collect();
    attack("model TOML", &seeds, |bytes| model::Config::parse("mutant", &String::from_utf8_lossy(bytes)).is_ok());
}

#[test]
fn config_toml() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    let config = train::config::Config { data: vec!["text".into()], ..Default::default() };
    attack("config.toml", &[config.to_toml().as_bytes()], |bytes| {
        write_new(&path, bytes);
        train::config::Config::read(&path).map_err(|e| e.to_string()).is_ok()
    });
}

#[test]
fn tokenizer_json() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    let seeds = [Tokenizer::byte().to_json(), Tokenizer::characters("a \u{e9}\u{1f9c7}\"\\\n").to_json()];
    let seeds: Vec<&[u8]> = seeds.iter().map(String::as_bytes).collect();
    attack("tokenizer.json", &seeds, |bytes| {
        write_new(&path, bytes);
        Tokenizer::load(&path).map_err(|e| e.to_string()).is_ok()
    });
}

#[test]
fn metrics_jsonl() {
    let seed = concat!(
        r#"{"step":1,"loss":4.25,"grad_norm":0.5,"lr":0.001,"tokens":8,"tokens_per_second":100.0}"#,
        "\n",
        r#"{"step":2,"loss":null,"grad_norm":null,"lr":0.001,"tokens":16,"tokens_per_second":1e3,"skipped":true}"#,
        "\n",
        r#"{"step":2,"val_loss":3.5}"#,
        "\n",
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    let mut pages = 0;
    attack("metrics.jsonl", &[seed.as_bytes()], |bytes| {
        let history = History::parse(bytes);
        // A page of one mutant in ten: what was taken must also be drawn.
        pages += 1;
        if history.is_ok() && pages % 10 == 0 {
            write_new(&path, bytes);
            let _ = fs::remove_file(folder.path().join("report.html"));
            gaufre::report::html::write(folder.path()).unwrap();
        }
        history.is_ok()
    });
}

#[test]
fn command_line() {
    let seeds: [&[u8]; 4] = [
        b"gaufre\0train\0--data\0a\0b\0--steps\x00100\0--lr\x001e-3\0--wafer\x004x4\0--device-memory\x00512MiB",
        b"gaufre\0generate\0run\0--prompt\0The \0--top-k\x005\0--temperature\x000.8",
        b"gaufre\0check\0--device\0host\0--canary",
        b"gaufre\0inspect\0file\0--json",
    ];
    attack("command line", &seeds, |bytes| {
        let words = bytes.split(|b| *b == 0).map(|w| OsString::from(String::from_utf8_lossy(w).into_owned()));
        cli::parse(words).map_err(|usage| usage.render().to_string()).is_ok()
    });
}
