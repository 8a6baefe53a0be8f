//! `gaufre prepare` beside the tokenizers crate alone, on the same generated text and in turns: bytes a second, from a file
//! to synced shards against lines in memory to ids. One JSON object.
//! `cargo bench --bench prepare -- [--megabytes N] [--rounds N]`

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use gaufre::data::{Plan, Tokenizer, TokenizerKind, prepare};

/// Bytes of a text that the crate is given at once: its own parallelism is over the texts of a batch.
const TEXT: usize = 128 << 10;

/// Size of the vocabulary.
const IDS: usize = 8192;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let option = |name: &str| arguments.iter().position(|a| a == name).and_then(|i| arguments.get(i + 1));
    let number = |name: &str, default| option(name).map_or(default, |v| v.parse().expect("a number"));
    let (bytes, rounds) = (number("--megabytes", 32) * 1_000_000, number("--rounds", 5));
    let folder = tempfile::tempdir()?;
    let text = generate(bytes);
    let file = folder.path().join("text");
    std::fs::write(&file, &text)?;
    let sample = folder.path().join("sample");
    std::fs::write(&sample, &text[..bytes.min(4_000_000)])?;
    let tokenizer = folder.path().join("tokenizer.json");
    std::fs::write(&tokenizer, Tokenizer::learn(&[sample], "text", IDS)?.to_json())?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        theirs.push(alone(&tokenizer, &text));
        ours.push(whole(&tokenizer, &file, folder.path().join(format!("out-{round}")))?);
    }
    let rate = |seconds: &mut Vec<f64>| {
        seconds.sort_by(f64::total_cmp);
        text.len() as f64 / seconds[seconds.len() / 2]
    };
    let (ours, theirs) = (rate(&mut ours), rate(&mut theirs));
    let threads = rayon::current_num_threads();
    let line = serde_json::json!({
        "bench": "prepare", "bytes": text.len(), "vocab_size": IDS, "threads": threads, "rounds": rounds,
        "gaufre_bytes_per_second": ours, "tokenizers_bytes_per_second": theirs, "ratio": ours / theirs,
    });
    println!("{line}");
    Ok(())
}

/// Seconds of the crate: texts in memory to ids in memory.
fn alone(tokenizer: &Path, text: &str) -> f64 {
    let tokenizer = tokenizers::Tokenizer::from_file(tokenizer).expect("it was just made");
    let mut texts = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.get(TEXT..).map_or(rest.len(), |tail| tail.find('\n').map_or(rest.len(), |at| TEXT + at + 1));
        texts.push(&rest[..end]);
        rest = &rest[end..];
    }
    let start = Instant::now();
    let mut tokens = 0;
    // Batches of the size that `prepare` has, so that neither side holds the whole text as ids.
    for batch in texts.chunks(64) {
        let encodings = tokenizer.encode_batch_fast(batch.to_vec(), false).expect("text encodes");
        tokens += encodings.iter().map(|e| e.get_ids().len()).sum::<usize>();
    }
    assert!(tokens > 0);
    start.elapsed().as_secs_f64()
}

/// Seconds of `gaufre prepare`: file to shards, the reading of the tokenizer included.
fn whole(tokenizer: &Path, file: &Path, out: PathBuf) -> Result<f64, gaufre::data::DataError> {
    let plan = Plan {
        data: vec![file.into()],
        val_data: Vec::new(),
        tokenizer: TokenizerKind::File(tokenizer.into()),
        val_split: None,
        field: "text".into(),
        separator: None,
    };
    let start = Instant::now();
    prepare(&plan, &out, 100_000_000)?;
    Ok(start.elapsed().as_secs_f64())
}

/// Text with the statistics that matter to a tokenizer: words by Zipf's law from a vocabulary of made-up ones, numbers,
/// punctuation, lines. ASCII only, so that any byte is a place to cut.
fn generate(bytes: usize) -> String {
    let mut state = 1u64;
    let mut random = move |n: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % n
    };
    let syllables =
        ["ta", "ro", "in", "es", "ble", "un", "con", "ment", "ly", "pre", "o", "st", "er", "ing", "qua", "fi"];
    let words: Vec<String> =
        (0..20_000).map(|_| (0..1 + random(4)).map(|_| syllables[random(16) as usize]).collect()).collect();
    let mut text = String::with_capacity(bytes + 64);
    while text.len() < bytes {
        // The product of uniform numbers falls off as ranks of words do.
        let rank = random(20_000) * random(20_000) / 20_000 * random(20_000) / 20_000;
        text += &words[rank as usize];
        match random(40) {
            0 => write!(text, " {}", random(10_000)).expect("a string takes text"),
            1 | 2 => text += ",",
            3 | 4 => text += ".\n",
            _ => {}
        }
        text += " ";
    }
    text
}
