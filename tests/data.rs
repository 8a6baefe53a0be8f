//! Data: files to tokens, tokens to batches. No device.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use gaufre::data::{
    Batches, Corpus, DataError, Order, Plan, Request, Shape, TextStream, Tokenizer, TokenizerKind, Tokens, prepare,
};
use proptest::prelude::*;

fn plan(paths: &[&Path], tokenizer: TokenizerKind) -> Plan {
    Plan {
        data: paths.iter().map(|p| p.to_path_buf()).collect(),
        val_data: Vec::new(),
        tokenizer,
        val_split: None,
        field: "text".into(),
        separator: None,
    }
}

fn request(plan: Plan, cache: &Path) -> Request {
    Request { plan, tokenizer_chosen: false, cache: cache.into() }
}

fn load(paths: &[&Path], kind: TokenizerKind, val_split: f64, min_len: usize) -> Result<Corpus, DataError> {
    let cache = tempfile::tempdir().unwrap();
    let plan = Plan { val_split: Some(val_split), ..plan(paths, kind) };
    Corpus::load(&request(plan, cache.path()), min_len)
}

/// A file in a folder.
fn at(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn the_end_of_the_text_is_held_out_as_nanogpt_does() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("text");
    // As long as tinyshakespeare: nanoGPT trains on 1,003,854 of its characters and holds out 111,540.
    fs::write(&file, "ab".repeat(1_115_394 / 2)).unwrap();
    let corpus = load(&[&file], TokenizerKind::Char, 0.1, 65).unwrap();
    assert_eq!((corpus.train.len(), corpus.validation.len()), (1_003_854, 111_540));
    assert_eq!(corpus.tokenizer.vocab_size(), 2);
    let all = load(&[&file], TokenizerKind::Byte, 0.0, 65).unwrap();
    assert_eq!((all.train.len(), all.validation.len()), (1_115_394, 0));
    assert_eq!(all.train.to_vec()[..2], [97, 98]);
}

#[test]
fn folders_are_read_by_name_without_what_is_hidden_or_binary() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    fs::create_dir_all(root.join("b/deep")).unwrap();
    fs::create_dir(root.join(".git")).unwrap();
    for (name, text) in [("c", "3"), ("a", "1"), ("b/deep/x", "2"), (".git/x", "no"), (".hidden", "no"), ("d", "4\0")] {
        fs::write(root.join(name), text).unwrap();
    }
    #[cfg(unix)]
    std::os::unix::fs::symlink(root, root.join("b/loop")).unwrap();
    let corpus = load(&[root, &root.join("a")], TokenizerKind::Char, 0.0, 1).unwrap();
    assert_eq!(corpus.tokenizer.decode(&corpus.train.to_vec()).unwrap(), "1231");
    assert_eq!(corpus.skipped, [root.join("d")]);
}

#[test]
fn bad_data_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str, bytes: &[u8]| at(folder.path(), name, bytes);
    let (latin, empty, text) = (at("latin", b"caf\xe9 au lait"), at("empty", b""), at("text", &[b'x'; 100]));
    let said = |paths: &[&Path], val_split, needed| {
        load(paths, TokenizerKind::Char, val_split, needed).unwrap_err().to_string()
    };
    let error = said(&[&text, &latin], 0.1, 2);
    assert!(error.contains("latin") && error.contains("byte 3") && error.contains("--tokenizer byte"), "{error}");
    assert!(said(&[&empty], 0.1, 2).contains("no text in it"));
    assert!(said(&[&folder.path().join("none")], 0.1, 2).contains("none"));
    assert!(said(&[&text], 0.1, 91).contains("training text has 90 tokens, one sequence needs 91"));
    assert!(said(&[&text], 0.1, 11).contains("validation text has 10 tokens, one sequence needs 11"));
    assert!(said(&[&text], f64::NAN, 11).contains("--val-split NaN"));
    assert!(load(&[&text], TokenizerKind::Char, 0.0, 100).is_ok());
    assert!(load(&[&latin], TokenizerKind::Byte, 0.0, 2).is_ok());
}

#[test]
fn a_tokenizer_is_the_same_after_saving() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    for tokenizer in [Tokenizer::byte(), Tokenizer::characters("hé\"\\\n\0\u{1f600} world")] {
        fs::write(&path, tokenizer.to_json()).unwrap();
        assert_eq!(Tokenizer::load(&path).unwrap(), tokenizer);
    }
    for wrong in ["", "{}", r#"{"kind":"char"}"#, r#"{"kind":"char","characters":"ba"}"#, r#"{"kind":"bpe"}"#] {
        fs::write(&path, wrong).unwrap();
        assert!(matches!(Tokenizer::load(&path), Err(DataError::Tokenizer { .. })), "{wrong}");
    }
}

#[test]
fn unknown_characters_and_tokens_are_named() {
    let tokenizer = Tokenizer::characters("cab");
    assert_eq!(tokenizer.encode("abc").unwrap(), [0, 1, 2]);
    let error = tokenizer.encode("aéz").unwrap_err().to_string();
    assert!(error.contains("'é' at byte 1"), "{error}");
    assert!(matches!(tokenizer.decode(&[3]), Err(DataError::UnknownToken { token: 3, vocabulary: 3 })));
    assert!(Tokenizer::byte().decode(&[256]).is_err());
}

#[test]
fn a_stream_gives_whole_characters_only() {
    let byte = Tokenizer::byte();
    let mut stream = TextStream::new(&byte);
    let pieces: Vec<String> =
        b"a\xc3\xa9\xff\xe2\x82b\xf0\x9f".iter().map(|&b| stream.push(b.into()).unwrap()).collect();
    assert_eq!(pieces, ["a", "", "é", "\u{fffd}", "", "", "\u{fffd}b", "", ""]);
    assert_eq!(stream.finish(), "\u{fffd}");
}

/// What the crate of the format says of a text in one piece.
fn whole(tokenizer: &Path, text: &str) -> Vec<u32> {
    let tokenizer = tokenizers::Tokenizer::from_file(tokenizer).unwrap();
    tokenizer.encode(text, false).unwrap().get_ids().to_vec()
}

fn learned(folder: &Path, text: &str, size: usize) -> PathBuf {
    let file = at(folder, "learn.txt", text.as_bytes());
    let tokenizer = Tokenizer::learn(&[file], "text", size).unwrap();
    at(folder, "tokenizer.json", tokenizer.to_json().as_bytes())
}

/// Some text with all that matters to the cuts: indented lines, trailing blanks, empty lines, other scripts.
fn prose() -> String {
    let lines = ["fn main() {", "    let été = \"naïve 東京\";  ", "", "\t}", "It's 1234 o'clock.", "x\r", " y", "end"];
    (0..30_000u64).map(|i| format!("{}\n", lines[(i * i / 3 % 8) as usize])).collect()
}

#[test]
fn blocks_give_the_ids_that_the_whole_text_gives() {
    let folder = tempfile::tempdir().unwrap();
    let text = prose();
    let tokenizer = learned(folder.path(), &text, 400);
    // Lines of which none ends where a block may, so that the cuts fall between words.
    let text = text + &"some words, 12 of them.\n \n".repeat(20_000);
    let file = at(folder.path(), "text", text.as_bytes());
    let out = folder.path().join("out");
    let plan = Plan { val_split: Some(0.25), ..plan(&[&file], TokenizerKind::File(tokenizer.clone())) };
    let made = prepare(&plan, &out, 10_007).unwrap();
    let expected = whole(&tokenizer, &text);
    assert_eq!(made.source_bytes, text.len() as u64);
    let corpus = load(&[&out], TokenizerKind::Char, 0.0, 1).unwrap_err();
    assert!(corpus.to_string().contains("--val-split 0"), "{corpus}");
    let corpus = Corpus::load(&request(self::plan(&[&out], TokenizerKind::Char), folder.path()), 1).unwrap();
    assert_eq!(corpus.train.len(), expected.len() * 3 / 4);
    assert_eq!([corpus.train.to_vec(), corpus.validation.to_vec()].concat(), expected);
    assert_eq!(corpus.tokenizer.decode(&expected).unwrap(), text);
}

#[test]
fn documents_are_apart_and_text_cannot_forge_their_end() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = learned(folder.path(), "one two <|endoftext|> three", 257);
    let lines = at(folder.path(), "a.jsonl", b"{\"text\": \"one <|endoftext|>\"}\n{\"text\": \"two\"}\n");
    let file = at(folder.path(), "b", b"three");
    let of = |separator: Option<&str>, kind| {
        let plan = Plan { separator: separator.map(Into::into), ..plan(&[&lines, &file], kind) };
        let corpus = Corpus::load(&request(plan, &folder.path().join("cache")), 1).unwrap();
        (corpus.tokenizer.clone(), [corpus.train.to_vec(), corpus.validation.to_vec()].concat())
    };
    let (bpe, ids) = of(None, TokenizerKind::File(tokenizer));
    let end = bpe.end_of_text().unwrap();
    assert_eq!(ids.iter().filter(|id| **id == end).count(), 2);
    assert_eq!(bpe.decode(&ids).unwrap(), "one <|endoftext|><|endoftext|>two<|endoftext|>three");
    let (char, ids) = of(None, TokenizerKind::Char);
    assert_eq!(char.decode(&ids).unwrap(), "one <|endoftext|>twothree");
    let (byte, ids) = of(Some("\n--\n"), TokenizerKind::Byte);
    assert_eq!(byte.decode(&ids).unwrap(), "one <|endoftext|>\n--\ntwo\n--\nthree");
}

#[test]
fn a_stream_of_bpe_says_what_the_whole_says() {
    let folder = tempfile::tempdir().unwrap();
    let bpe = Tokenizer::load(&learned(folder.path(), "a b", 257)).unwrap();
    let text = "naïve 東京 \u{1f600} it's";
    let mut stream = TextStream::new(&bpe);
    let pieces: Vec<String> = bpe.encode(text).unwrap().iter().map(|id| stream.push(*id).unwrap()).collect();
    assert_eq!(pieces.concat() + &stream.finish(), text);
    let mut cut = TextStream::new(&bpe);
    assert_eq!(cut.push(bpe.encode("é").unwrap()[0]).unwrap(), "");
    assert_eq!(cut.finish(), "\u{fffd}");
    assert!(bpe.decode(&[1_000_000]).is_err());
}

#[test]
fn text_is_tokenised_once_and_a_broken_cache_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let file = at(folder.path(), "text", "to be or not to be\n".repeat(50).as_bytes());
    let load = |split| {
        let plan = Plan { val_split: split, ..plan(&[&file], TokenizerKind::Char) };
        let corpus = Corpus::load(&request(plan, &cache), 1).unwrap();
        (corpus.train.len(), corpus.validation.len())
    };
    let entries = || fs::read_dir(&cache).unwrap().map(|e| e.unwrap().path()).collect::<Vec<_>>();
    assert_eq!(load(None), (855, 95));
    let made = entries();
    let shard = made[0].join("00000.tokens");
    let before = fs::metadata(&shard).unwrap().modified().unwrap();
    // Another split is the same text.
    assert_eq!(load(Some(0.5)), (475, 475));
    assert_eq!((entries(), fs::metadata(&shard).unwrap().modified().unwrap()), (made.clone(), before));
    flip(&shard, 100);
    assert_eq!(load(None), (855, 95));
    assert_eq!(entries(), made);
    fs::write(&file, "another text\n".repeat(50)).unwrap();
    load(None);
    assert_eq!(entries().len(), 2);
}

#[test]
fn a_long_text_is_read_through_the_cache_and_a_short_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let line = "to be or not to be, that is\n";
    let short = at(folder.path(), "short", line.repeat(3).as_bytes());
    let count = (17 << 20) / line.len();
    let long = at(folder.path(), "long", line.repeat(count).as_bytes());
    let read = |paths: &[PathBuf]| Corpus::read(paths, &Tokenizer::byte(), "text", &cache).unwrap();
    let (tokens, bytes) = read(std::slice::from_ref(&short));
    assert_eq!((tokens.len(), bytes, cache.exists()), (3 * line.len(), 3 * line.len() as u64, false));
    let (tokens, bytes) = read(&[long, short]);
    assert_eq!((tokens.len() as u64, bytes), (bytes, ((count + 3) * line.len()) as u64));
    assert!(tokens.to_vec().iter().zip(line.bytes().cycle()).all(|(id, byte)| *id == u32::from(byte)));
    assert_eq!(fs::read_dir(&cache).unwrap().count(), 1);
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn no_bit_of_prepared_data_changes_unnoticed() {
    let folder = tempfile::tempdir().unwrap();
    let file = at(folder.path(), "text", b"to be or not to be");
    let out = folder.path().join("out");
    prepare(&plan(&[&file], TokenizerKind::Char), &out, 10).unwrap();
    let open = || Corpus::load(&request(plan(&[&out], TokenizerKind::Char), folder.path()), 1);
    open().unwrap();
    for name in ["00000.tokens", "00001.tokens", "tokenizer.json", "index.json"] {
        let path = out.join(name);
        let good = fs::read(&path).unwrap();
        for place in 0..good.len() {
            if name.ends_with("json") && good[place].is_ascii_whitespace() {
                continue;
            }
            flip(&path, place);
            let error = open().unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("prepare it again"), "{place}: {error}");
            fs::write(&path, &good).unwrap();
        }
        for cut in [0, 1, good.len() / 2, good.len() - 1] {
            fs::write(&path, &good[..cut]).unwrap();
            assert!(open().unwrap_err().to_string().contains(name), "{name} {cut}");
        }
        fs::remove_file(&path).unwrap();
        assert!(open().is_err(), "{name}");
        fs::write(&path, &good).unwrap();
    }
    open().unwrap();
}

/// The bytes of llm.c's files.
fn llm_c(magic: u32, version: u32, count: u32, ids: &[u8]) -> Vec<u8> {
    let mut words = vec![0u32; 256];
    words[..3].copy_from_slice(&[magic, version, count]);
    words.iter().flat_map(|w| w.to_le_bytes()).chain(ids.iter().copied()).collect()
}

#[test]
fn ids_of_other_programs_are_taken_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let nanogpt = at(folder.path(), "a.bin", &[7, 0, 8, 0, 9, 0]);
    let short = at(folder.path(), "b.bin", &llm_c(20_240_520, 1, 2, &[1, 0, 2, 0]));
    let long = at(folder.path(), "c.bin", &llm_c(20_240_801, 7, 2, &[3, 0, 0, 0, 4, 0, 0, 0]));
    let files = [nanogpt.as_path(), &short, &long];
    let cache = folder.path().join("cache");
    let corpus = Corpus::load(&request(plan(&files, TokenizerKind::Byte), &cache), 1).unwrap();
    assert_eq!((corpus.train.to_vec(), corpus.validation.len()), (vec![7, 8, 9, 1, 2, 3, 4], 0));
    assert!(!cache.exists());
    // Prepared, and with a file for validation, they are the same.
    let plan = Plan { val_data: vec![long.clone()], ..plan(&files[..2], TokenizerKind::Byte) };
    let out = folder.path().join("out");
    let made = prepare(&plan, &out, 4).unwrap();
    assert_eq!((made.documents, made.train_tokens, made.validation_tokens), (3, 5, 2));
    let corpus = Corpus::load(&request(self::plan(&[&out], TokenizerKind::Char), &cache), 1).unwrap();
    assert_eq!((corpus.train.to_vec(), corpus.validation.to_vec()), (vec![7, 8, 9, 1, 2], vec![3, 4]));
}

#[test]
fn files_of_ids_that_are_broken_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let cases: [(&str, Vec<u8>, &[&str]); 9] = [
        ("odd.bin", vec![1, 0, 2], &["3 bytes", "16-bit"]),
        ("none.bin", vec![], &["no text in it"]),
        ("far.bin", vec![1, 0, 0, 1], &["id 256 at byte 2", "vocabulary of 256", "--tokenizer"]),
        ("far_c.bin", llm_c(20_240_520, 1, 2, &[1, 0, 0, 2]), &["id 512 at byte 1026"]),
        ("wide.bin", llm_c(20_240_801, 7, 1, &[0, 0, 1, 0]), &["id 65536 at byte 1024"]),
        ("version.bin", llm_c(20_240_520, 9, 1, &[1, 0]), &["version 9", "version 1"]),
        ("cut.bin", llm_c(20_240_801, 7, 5, &[1, 0]), &["1026 bytes", "5 ids", "1044"]),
        ("head.bin", llm_c(20_240_520, 1, 1, &[])[..100].to_vec(), &["100 bytes", "1024"]),
        ("questions.bin", llm_c(20_240_522, 1, 1, &[]), &["questions"]),
    ];
    for (name, bytes, parts) in cases {
        let path = at(folder.path(), name, &bytes);
        let error = load(&[&path], TokenizerKind::Byte, 0.0, 1).unwrap_err().to_string();
        assert!(error.contains(name) && parts.iter().all(|p| error.contains(p)), "{name}: {error}");
    }
    let path = at(folder.path(), "ids.bin", &[1, 0]);
    let error = load(&[&path], TokenizerKind::Char, 0.0, 1).unwrap_err().to_string();
    assert!(error.contains("--tokenizer byte"), "{error}");
}

#[test]
fn a_pattern_stands_for_files_by_name() {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [("b.txt", "2"), ("a.txt", "1"), ("c.md", "no")] {
        at(folder.path(), name, text.as_bytes());
    }
    let corpus = load(&[&folder.path().join("*.txt")], TokenizerKind::Byte, 0.0, 1).unwrap();
    assert_eq!(corpus.train.to_vec(), [49, 50]);
    let error = load(&[&folder.path().join("*.none")], TokenizerKind::Byte, 0.0, 1).unwrap_err().to_string();
    assert!(error.contains("*.none"), "{error}");
}

#[test]
fn preparing_leaves_nothing_half_done() {
    let folder = tempfile::tempdir().unwrap();
    let bad = at(folder.path(), "bad.jsonl", b"{\"text\": \"fine\"}\n{\"txt\": 1}\n");
    let out = folder.path().join("out");
    let error = prepare(&plan(&[&bad], TokenizerKind::Byte), &out, 100).unwrap_err().to_string();
    assert!(error.contains("bad.jsonl line 2") && error.contains("txt"), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    fs::create_dir(&out).unwrap();
    at(&out, "precious", b"x");
    let error = prepare(&plan(&[&bad], TokenizerKind::Byte), &out, 100).unwrap_err().to_string();
    assert!(error.contains("holds something already"), "{error}");
    assert_eq!(fs::read(out.join("precious")).unwrap(), b"x");
}

/// Tokens that say their own place.
fn tokens(len: usize) -> Tokens {
    (0..len as u32).collect::<Vec<_>>().into()
}

const SHAPE: Shape = Shape { batch_size: 3, seq_len: 4, grad_accum: 2 };

#[test]
fn sequential_sample_k_is_the_tokens_from_k_times_t() {
    let tokens = tokens(4 * 10 + 1);
    let batches = Batches::new(&tokens, SHAPE, Order::Sequential, 0);
    assert_eq!(batches.windows(), 10);
    for sample in 0..60u32 {
        let batch = batches.batch((sample / 6).into(), (sample / 3 % 2) as usize);
        let row = (sample % 3 * 4) as usize;
        let first = sample % 10 * 4;
        assert_eq!(batch.inputs[row..row + 4], [first, first + 1, first + 2, first + 3]);
        assert_eq!(batch.targets[row..row + 4], [first + 1, first + 2, first + 3, first + 4]);
    }
}

#[test]
fn an_evaluation_is_at_most_one_pass_from_the_start() {
    let tokens = tokens(4 * 10 + 1);
    let firsts = |most| Batches::evaluation(&tokens, SHAPE, most).map(|b| b.inputs[0]).collect::<Vec<_>>();
    assert_eq!(firsts(2), [0, 12]);
    assert_eq!(firsts(100), [0, 12, 24, 36]);
}

#[test]
fn a_batch_depends_on_seed_and_step_alone() {
    let tokens = tokens(1000);
    let of = |seed| Batches::new(&tokens, SHAPE, Order::Shuffled, seed);
    let forward: Vec<_> = (0..50).map(|step| of(1).batch(step, 1)).collect();
    let backward: Vec<_> = (0..50).rev().map(|step| of(1).batch(step, 1)).collect();
    assert!(forward.iter().eq(backward.iter().rev()));
    assert_ne!(of(1).batch(0, 0), of(2).batch(0, 0));
    assert_ne!(of(1).batch(0, 0), of(1).batch(0, 1));
    of(1).batch(u64::MAX, 1);
}

proptest! {
    #[test]
    fn an_epoch_of_shuffled_windows_sees_each_once(len in 5usize..400, seed: u64, epoch in 0usize..4) {
        let tokens = tokens(len);
        let shape = Shape { batch_size: 1, seq_len: 4, grad_accum: 1 };
        let batches = Batches::new(&tokens, shape, Order::Shuffled, seed);
        let windows = batches.windows();
        let mut seen = BTreeMap::new();
        for index in epoch * windows..(epoch + 1) * windows {
            let batch = batches.batch(index as u64, 0);
            let first = batch.inputs[0];
            prop_assert!(batch.inputs.iter().copied().eq(first..first + 4));
            prop_assert!(batch.targets.iter().copied().eq(first + 1..first + 5));
            *seen.entry(first).or_insert(0) += 1;
        }
        let starts: Vec<u32> = seen.keys().copied().collect();
        prop_assert_eq!(seen.len(), windows);
        prop_assert!(starts.windows(2).all(|w| w[1] - w[0] == 4));
        // Less than two windows of the text are left out of an epoch.
        prop_assert!(len - windows * 4 < 1 + 2 * 4);
    }
}
