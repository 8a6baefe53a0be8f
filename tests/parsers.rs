//! Every parser of the crate against inputs that were good before a seeded mutator had them: an error or a value, never a
//! panic, and never more memory than a small file can ask for. Twenty thousand mutants a parser; a million with
//! `--features slow`.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use gaufre::data::{Corpus, DataError, Plan, Request, Tokenizer, TokenizerKind, prepare};
use gaufre::report::history::History;
use gaufre::store::safetensors::{Limits, read};
use gaufre::store::shards::Shards;
use gaufre::{cli, model, train};
use xxhash_rust::xxh3::xxh3_64;

use crate::allocations;

/// A small tokenizer of Hugging Face.
const BPE: &str = concat!(
    r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[{"id":0,"content":"<|endoftext|>","single_word":"#,
    r#"false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],"normalizer":null,"pre_tokenizer":"#,
    r#"{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true},"post_processor":null,"#,
    r#""decoder":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true},"model":{"type":"BPE","#,
    r#""dropout":null,"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":false,"#,
    r#""byte_fallback":false,"ignore_merges":false,"vocab":{"<|endoftext|>":0,"a":1,"b":2,"e":3,"o":4,"t":5,"\u0120":6,"#,
    r#""\u010a":7,"ab":8,"to":9,"\u0120b":10},"merges":[["a","b"],["t","o"],["\u0120","b"]]}}"#
);

/// Bytes that the parser of a mutant may hold: a reader's buffers, and no number that stands in a file.
const MOST_BYTES: usize = 8 << 20;

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
    let (mut taken, mut most) = (0, 0);
    for mutant in 0..MUTANTS {
        let mut chance = Chance(mutant ^ 0x6761_7566_7265);
        let mut bytes = seeds[chance.below(seeds.len())].to_vec();
        chance.mutate(&mut bytes);
        let shown = bytes.clone();
        let (found, held) =
            allocations::measured(|| std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| parse(&bytes))));
        most = most.max(held);
        taken += u64::from(
            found.unwrap_or_else(|_| panic!("{name}: mutant {mutant}: {:?}", String::from_utf8_lossy(&shown))),
        );
        assert!(
            held <= MOST_BYTES,
            "{name}: mutant {mutant} holds {held} bytes: {:?}",
            String::from_utf8_lossy(&shown)
        );
    }
    eprintln!("{name}: {MUTANTS} mutants, {taken} taken, {} refused, at most {most} bytes held", MUTANTS - taken);
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
fn tokenizer_json_of_hugging_face() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    attack("tokenizer.json of Hugging Face", &[BPE.as_bytes()], |bytes| {
        write_new(&path, bytes);
        let Ok(tokenizer) = Tokenizer::load(&path) else { return false };
        // What was taken must also be used without a panic.
        let ids = tokenizer.encode("ab b\u{e9} <|endoftext|>").unwrap_or_default();
        let _ = (tokenizer.decode(&ids), tokenizer.end_of_text());
        true
    });
}

/// A text, or a file of lines of JSON, by each kind of tokenizer.
fn attack_text(name: &str, file: &str, seeds: &[&[u8]]) {
    let folder = tempfile::tempdir().unwrap();
    let (path, bpe) = (folder.path().join(file), folder.path().join("tokenizer.json"));
    fs::write(&bpe, BPE).unwrap();
    let tokenizers =
        [Tokenizer::byte(), Tokenizer::characters("abcdefghijklmnopqrstuvwxyz \n"), Tokenizer::load(&bpe).unwrap()];
    let mut turn = 0;
    attack(name, seeds, |bytes| {
        write_new(&path, bytes);
        turn += 1;
        match Corpus::read(std::slice::from_ref(&path), &tokenizers[turn % 3], "text", folder.path()) {
            Ok((tokens, count)) => {
                assert!(tokens.len() as u64 <= count && count <= bytes.len() as u64, "{} of {count}", tokens.len());
                true
            }
            Err(error) => refused(&error, file),
        }
    });
}

/// False, once the error is one short line that names the file or what is wrong with what stands in it.
fn refused(error: &DataError, file: &str) -> bool {
    let said = error.to_string();
    let named = said.contains(file) || matches!(error, DataError::UnknownCharacter { .. } | DataError::TooShort { .. });
    assert!(named && said.len() < 2000 && said.lines().count() == 1, "{said}");
    false
}

#[test]
fn text() {
    let seeds: [&[u8]; 3] = [b"to be or not to be", "na\u{ef}ve \u{6771}\u{4eac} \u{1f600}".as_bytes(), b"a\n\nb\n"];
    attack_text("text", "text", &seeds);
}

#[test]
fn jsonl() {
    let seeds: [&[u8]; 3] = [
        b"{\"text\": \"one\", \"id\": 1}\n\n{\"id\": [2, {\"a\": null}], \"text\": \"two\"}\n",
        b"{\"text\": \"\"}",
        b"{\"text\": \"three\", \"n\": 1e3}\r\n",
    ];
    attack_text("JSON lines", "lines.jsonl", &seeds);
}

/// The bytes of llm.c's files, without the zeros of their header.
fn llm_c(magic: u32, version: u32, count: u32, ids: &[u8]) -> Vec<u8> {
    [magic, version, count].iter().flat_map(|w| w.to_le_bytes()).chain(ids.iter().copied()).collect()
}

#[test]
fn ids_of_other_programs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ids.bin");
    let byte = Tokenizer::byte();
    let parse = |bytes: &[u8]| {
        write_new(&path, bytes);
        match Corpus::read(std::slice::from_ref(&path), &byte, "text", folder.path()) {
            Ok((tokens, _)) => {
                assert!(tokens.len() <= bytes.len() / 2 && tokens.to_vec().iter().all(|id| *id < 256));
                true
            }
            Err(error) => refused(&error, "ids.bin"),
        }
    };
    attack("ids of nanoGPT", &[&[7, 0, 8, 0, 255, 0, 1, 0]], parse);
    // The zeros of a header, of which the first words alone mean something, come after the mutator: it would hit little else.
    let (short, long) =
        (llm_c(20_240_520, 1, 3, &[1, 0, 2, 0, 255, 0]), llm_c(20_240_801, 7, 2, &[3, 0, 0, 0, 4, 0, 0, 0]));
    attack("ids of llm.c", &[&short, &long], |bytes| {
        let (words, ids) = bytes.split_at(bytes.len().min(12));
        let zeros: &[u8] = if words.len() == 12 { &[0; 1024 - 12] } else { &[] };
        parse(&[words, zeros, ids].concat())
    });
}

/// Prepared data, its folder, and what asks for it.
fn prepared(folder: &Path) -> Request {
    let text = folder.join("source");
    fs::write(&text, "to be or not to be").unwrap();
    let plan = Plan {
        data: vec![text],
        val_data: Vec::new(),
        tokenizer: TokenizerKind::Char,
        val_split: None,
        field: "text".into(),
        separator: None,
    };
    let data = folder.join("data");
    prepare(&plan, &data, 10).unwrap();
    Request { plan: Plan { data: vec![data], ..plan }, tokenizer_chosen: false, cache: folder.join("cache") }
}

/// Writes an index with the checksum that belongs to it, so that what stands in it is what is judged.
fn write_index(path: &Path, index: &str) {
    write_new(path, format!("{{\"index\":{index},\"xxh3\":\"{:016x}\"}}", xxh3_64(index.as_bytes())).as_bytes());
}

/// The index in the folder of prepared data, as its checksum is of it.
fn index(data: &Path) -> String {
    let text = fs::read_to_string(data.join("index.json")).unwrap();
    let text = text.lines().map(str::trim_start).collect::<String>().replace("\": ", "\":");
    let index = text.strip_prefix("{\"index\":").and_then(|text| text.rsplit_once(",\"xxh3\":"));
    index.expect("an index beside its checksum").0.to_owned()
}

/// Whether prepared data is taken; then every id must be one of its vocabulary.
fn opens(request: &Request) -> bool {
    match Corpus::load(request, 1) {
        Ok(corpus) => {
            let ids = [corpus.train.to_vec(), corpus.validation.to_vec()].concat();
            assert!(ids.iter().all(|id| (*id as usize) < corpus.tokenizer.vocab_size()), "{ids:?}");
            true
        }
        Err(error) => refused(&error, "data"),
    }
}

#[test]
fn shards_of_prepared_data() {
    let folder = tempfile::tempdir().unwrap();
    let request = prepared(folder.path());
    let data = &request.plan.data[0];
    let (shard, sealed) = (data.join("00000.tokens"), data.join("index.json"));
    let (seed, index) = (fs::read(&shard).unwrap(), index(data));
    let entry = |tokens: usize, sum: u64| format!("\"00000.tokens\",\"tokens\":{tokens},\"xxh3\":\"{sum:016x}\"");
    let own = entry(10, xxh3_64(&seed[64..]));
    assert!(index.contains(&own) && index.contains("\"tokens\":18,"), "{index}");
    let mut turn = 0;
    attack("shards of prepared data", &[&seed], |bytes| {
        turn += 1;
        let mut bytes = bytes.to_vec();
        let mut index = index.clone();
        // Every other mutant has its length and its checksum set right, in its header and in the index.
        if turn % 2 == 0 && bytes.len() >= 64 {
            let (count, sum) = ((bytes.len() - 64) / 2, xxh3_64(&bytes[64..]));
            bytes[24..32].copy_from_slice(&(count as u64).to_le_bytes());
            bytes[40..48].copy_from_slice(&sum.to_le_bytes());
            index = index
                .replace(&own, &entry(count, sum))
                .replace("\"tokens\":18,", &format!("\"tokens\":{},", count + 8));
        }
        write_index(&sealed, &index);
        write_new(&shard, &bytes);
        opens(&request)
    });
}

#[test]
fn index_of_prepared_data() {
    let folder = tempfile::tempdir().unwrap();
    let request = prepared(folder.path());
    let data = &request.plan.data[0];
    let path = data.join("index.json");
    let (whole, index) = (fs::read(&path).unwrap(), index(data));
    // A name that would break the line of an error: chance comes to it once in a hundred thousand mutants.
    write_index(&path, &index.replace("00000.tokens", "00000.toke\\ns"));
    assert!(!opens(&request), "a shard with a line break in its name is refused");
    attack("index of prepared data", &[index.as_bytes()], |bytes| {
        write_index(&path, &String::from_utf8_lossy(bytes));
        opens(&request)
    });
    attack("index file of prepared data", &[&whole], |bytes| {
        write_new(&path, bytes);
        opens(&request)
    });
}

#[test]
fn hugging_face_config() {
    let written = |(name, _): &(&str, &str)| {
        let config = model::preset(name).unwrap().with_vocabulary(65).unwrap();
        model::hugging_face::write_config(&config, "float32").unwrap()
    };
    let mut seeds: Vec<String> = model::PRESETS.iter().map(written).collect();
    // As newer versions write rotary positions.
    let scaling =
        r#"{"rope_type":"llama3","rope_theta":5e5,"factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0}"#;
    seeds.push(format!(r#"{{"model_type":"llama","rope_parameters":{scaling},"dtype":"float16","layer_types":null}}"#));
    seeds.push(r#"{"model_type":"gpt_neox","rope_parameters":{"rope_theta":1e4,"partial_rotary_factor":0.5}}"#.into());
    let seeds: Vec<&[u8]> = seeds.iter().map(String::as_bytes).collect();
    attack("config.json", &seeds, |bytes| {
        let found = model::hugging_face::read_config("mutant", &String::from_utf8_lossy(bytes));
        // What was taken is written, or refused, without a panic.
        let written = found.as_ref().map(|config| model::hugging_face::write_config(config, "float32"));
        found.as_ref().map_err(ToString::to_string).is_ok() && written.is_ok()
    });
}

#[test]
fn index_of_safetensors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors.index.json");
    for name in ["a", "b"] {
        let header = format!("{{\"{name}\":{{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}}}");
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 8]].concat();
        fs::write(folder.path().join(format!("{name}.safetensors")), bytes).unwrap();
    }
    let seed = br#"{"metadata":{"total_size":16},"weight_map":{"a":"a.safetensors","b":"b.safetensors"}}"#;
    attack("index of safetensors", &[seed], |bytes| {
        write_new(&path, bytes);
        match Shards::folder(folder.path()) {
            Ok(shards) => shards.names().all(|name| shards.get(name).is_some_and(|entry| entry.bytes.len() == 8)),
            Err(error) => {
                let said = error.to_string();
                assert!(said.len() < 4000, "{said}");
                false
            }
        }
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
