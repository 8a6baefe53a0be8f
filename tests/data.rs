//! Data: files to tokens, tokens to batches. No device.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use gaufre::data::{Batches, Corpus, DataError, Order, Shape, TextStream, Tokenizer, TokenizerKind};
use proptest::prelude::*;

fn load(paths: &[&Path], kind: TokenizerKind, val_split: f64, min_len: usize) -> Result<Corpus, DataError> {
    let paths: Vec<PathBuf> = paths.iter().map(|p| p.to_path_buf()).collect();
    Corpus::load(&paths, kind, val_split, min_len)
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
    assert_eq!(all.train[..2], [97, 98]);
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
    assert_eq!(corpus.tokenizer.decode(&corpus.train).unwrap(), "1231");
    assert_eq!(corpus.skipped, [root.join("d")]);
}

#[test]
fn bad_data_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
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

/// Tokens that say their own place.
fn tokens(len: usize) -> Vec<u32> {
    (0..len as u32).collect()
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
