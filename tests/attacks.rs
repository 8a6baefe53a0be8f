//! Hostile safetensors files: each is refused with one line that names the file, the tensor and the value. They are made
//! here, by name, so that what is wrong with each can be read.

use std::fs;
use std::process::Command;

use gaufre::store::safetensors::{File, Limits, open};
use gaufre::store::shards::Shards;

/// A file: the length of the header, the header, data.
fn file(header: impl AsRef<[u8]>, data: usize) -> Vec<u8> {
    let header = header.as_ref();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.resize(bytes.len() + data, 0);
    bytes
}

/// A file of one tensor `w` as its header has it.
fn one(body: &str, data: usize) -> Vec<u8> {
    file(format!(r#"{{"w":{body}}}"#), data)
}

/// A file of two f32 tensors of two elements, `a` and `b`, at these offsets.
fn two(a: [u64; 2], b: [u64; 2], data: usize) -> Vec<u8> {
    let body = |offsets: [u64; 2]| format!(r#"{{"dtype":"F32","shape":[2],"data_offsets":{offsets:?}}}"#);
    file(format!(r#"{{"a":{},"b":{}}}"#, body(a), body(b)), data)
}

const GOOD: &str = r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#;

/// Name, bytes, and words that the refusal must have.
type Attack = (&'static str, Vec<u8>, &'static [&'static str]);

fn broken_frames() -> Vec<Attack> {
    let mut cut = one(GOOD, 8);
    cut.truncate(20);
    let mut half = one(GOOD, 8);
    half.truncate(half.len() - 3);
    let mut claims_all = u64::MAX.to_le_bytes().to_vec();
    claims_all.extend(b"{}");
    let mut bad_text = file(r#"{"w":"#, 0);
    bad_text.extend([0xff, 0xfe, b'}']);
    let length = (bad_text.len() - 8) as u64;
    bad_text[..8].copy_from_slice(&length.to_le_bytes());
    vec![
        ("empty", vec![], &["0 bytes", "whole?"]),
        ("short", vec![1, 2, 3], &["3 bytes", "whole?"]),
        ("header_beyond_memory", claims_all, &["18446744073709551615 bytes", "at most 1048576"]),
        ("header_beyond_limit", ((1u64 << 20) + 1).to_le_bytes().to_vec(), &["1048577 bytes", "at most 1048576"]),
        ("header_truncated", cut, &["should have 54 bytes", "12 are left"]),
        ("no_header", file("", 0), &["does not begin with {"]),
        ("header_of_zeros", file([0; 64], 0), &["does not begin with {"]),
        ("header_is_a_list", file("[]", 0), &["does not begin with {"]),
        ("header_is_not_text", bad_text, &["line 1 column"]),
        ("header_never_closed", file(r#"{"w":{"dtype":"F32""#, 0), &["tensor w", "EOF"]),
        ("words_after_the_header", file(format!(r#"{{"w":{GOOD}}} {{}}"#), 8), &["trailing characters"]),
        ("data_truncated", half, &["tensor w", "[0, 8]", "5 bytes of data"]),
        ("nothing_in_it", file("{}", 0), &["no tensors"]),
        ("only_metadata", file(r#"{"__metadata__":{"a":"b"}}"#, 0), &["no tensors"]),
    ]
}

fn broken_bodies() -> Vec<Attack> {
    vec![
        (
            "unknown_dtype",
            one(r#"{"dtype":"F128","shape":[2],"data_offsets":[0,32]}"#, 32),
            &["tensor w", "F128", "BF16"],
        ),
        ("small_letters", one(r#"{"dtype":"f32","shape":[2],"data_offsets":[0,8]}"#, 8), &["tensor w", "dtype f32"]),
        ("dtype_is_a_number", one(r#"{"dtype":7,"shape":[2],"data_offsets":[0,8]}"#, 8), &["tensor w", "integer `7`"]),
        ("no_dtype", one(r#"{"shape":[2],"data_offsets":[0,8]}"#, 8), &["tensor w", "dtype is missing"]),
        ("no_shape", one(r#"{"dtype":"F32","data_offsets":[0,8]}"#, 8), &["tensor w", "shape is missing"]),
        ("no_offsets", one(r#"{"dtype":"F32","shape":[2]}"#, 8), &["tensor w", "data_offsets is missing"]),
        ("one_offset", one(r#"{"dtype":"F32","shape":[2],"data_offsets":[8]}"#, 8), &["tensor w", "not two numbers"]),
        (
            "three_offsets",
            one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8,9]}"#, 8),
            &["tensor w", "more than 2"],
        ),
        ("unknown_field", one(r#"{"dtype":"F32","strides":[1]}"#, 8), &["tensor w", "unknown field strides"]),
        ("body_is_a_list", one(r#"["F32",[2],[0,8]]"#, 8), &["tensor w", "sequence"]),
        ("body_is_null", one("null", 8), &["tensor w", "null"]),
        ("negative_side", one(r#"{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}"#, 8), &["tensor w", "`-2`"]),
        ("side_with_a_point", one(r#"{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}"#, 8), &["tensor w", "`2.0`"]),
        (
            "side_beyond_64_bits",
            one(r#"{"dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,8]}"#, 8),
            &["tensor w", "floating point"],
        ),
        ("no_elements", one(r#"{"dtype":"F32","shape":[0,4],"data_offsets":[0,0]}"#, 0), &["tensor w", "[0, 4]"]),
        (
            "product_overflows",
            one(r#"{"dtype":"F32","shape":[4294967296,4294967296,2],"data_offsets":[0,8]}"#, 8),
            &["tensor w", "[4294967296, 4294967296, 2]", "overflows"],
        ),
        (
            "bytes_overflow",
            one(r#"{"dtype":"F64","shape":[4611686018427387904],"data_offsets":[0,0]}"#, 0),
            &["tensor w", "4611686018427387904", "overflows"],
        ),
        (
            "rank_9",
            one(r#"{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]}"#, 4),
            &["tensor w", "more than 8"],
        ),
        (
            "shape_of_a_million",
            one(&format!(r#"{{"shape":[1{}]}}"#, ",1".repeat(400_000)), 4),
            &["tensor w", "more than 8"],
        ),
        ("deep_nesting", one(&"[".repeat(200_000), 0), &["tensor w", "sequence"]),
        (
            "deep_nesting_past_the_rank",
            one(&format!(r#"{{"shape":[1,1,1,1,1,1,1,1,{}"#, "[".repeat(100_000)), 0),
            &["tensor w", "expected value", "column 100032"],
        ),
        ("deep_metadata", file(format!(r#"{{"__metadata__":{}"#, r#"{"a":"#.repeat(50_000)), 0), &["map", "string"]),
        ("metadata_of_numbers", file(r#"{"__metadata__":{"steps":5}}"#, 0), &["integer `5`", "string"]),
    ]
}

fn broken_places() -> Vec<Attack> {
    let long = format!(r#"{{"{}":{GOOD}}}"#, "n".repeat(300));
    let many: Vec<String> = (0..20_000).map(|n| format!(r#""{n}":{{"dtype":"U8","shape":[1]}}"#)).collect();
    let body = r#"{"dtype":"U8","shape":[],"data_offsets":[0,1]}"#;
    let many_good: Vec<String> = (0..17_000).map(|n| format!(r#""{n}":{body}"#)).collect();
    vec![
        ("overlap", two([0, 8], [4, 12], 12), &["tensor b", "byte 4", "inside of tensor a", "ends at 8"]),
        ("same_bytes_twice", two([0, 8], [0, 8], 8), &["tensor b", "byte 0", "inside of tensor a"]),
        ("gap", two([0, 8], [12, 20], 20), &["tensor b", "byte 12", "8 to 12", "of no tensor"]),
        ("gap_at_the_start", one(r#"{"dtype":"F32","shape":[2],"data_offsets":[8,16]}"#, 16), &["tensor w", "0 to 8"]),
        ("trailing_bytes", one(GOOD, 11), &["tensor w", "byte 8", "3 more bytes"]),
        ("backwards", one(r#"{"dtype":"F32","shape":[2],"data_offsets":[8,0]}"#, 8), &["tensor w", "[8, 0]"]),
        (
            "too_few_bytes",
            one(r#"{"dtype":"F32","shape":[3],"data_offsets":[0,8]}"#, 8),
            &["tensor w", "[3]", "12 bytes", "hold 8"],
        ),
        ("out_of_file", two([0, 8], [800, 808], 16), &["tensor b", "[800, 808]", "16 bytes of data"]),
        (
            "offsets_at_the_end_of_numbers",
            one(r#"{"dtype":"F32","shape":[2],"data_offsets":[18446744073709551607,18446744073709551615]}"#, 8),
            &["tensor w", "18446744073709551607", "8 bytes of data"],
        ),
        ("same_name", file(format!(r#"{{"w":{GOOD},"w":{GOOD}}}"#), 8), &["tensor w", "twice"]),
        ("same_name_otherwise_written", file(format!(r#"{{"w":{GOOD},"\u0077":{GOOD}}}"#), 8), &["tensor w", "twice"]),
        (
            "same_field",
            one(r#"{"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,8]}"#, 8),
            &["tensor w", "dtype comes twice"],
        ),
        ("two_metadata", file(r#"{"__metadata__":{},"__metadata__":{}}"#, 0), &["__metadata__ comes twice"]),
        ("same_word_of_metadata", file(r#"{"__metadata__":{"k":"1","k":"2"}}"#, 0), &["__metadata__", "k comes twice"]),
        ("long_name", file(long, 8), &["tensor nnn", "300 bytes", "at most 256"]),
        ("many_without_offsets", file(format!("{{{}}}", many.join(",")), 0), &["tensor 0", "data_offsets is missing"]),
        ("many_on_one_byte", file(format!("{{{}}}", many_good.join(",")), 1), &["tensor", "inside of tensor"]),
        (
            "name_with_control_characters",
            file(format!(r#"{{"\u001b[2J\n":{GOOD}}}"#), 9),
            &[r"\u{1b}[2J\n", "1 more bytes"],
        ),
    ]
}

fn attacks() -> Vec<Attack> {
    [broken_frames(), broken_bodies(), broken_places()].concat()
}

#[test]
fn each_hostile_file_is_refused_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let attacks = attacks();
    assert!(attacks.len() >= 25, "{}", attacks.len());
    for (name, bytes, words) in attacks {
        let path = folder.path().join(format!("{name}.safetensors"));
        fs::write(&path, bytes).unwrap();
        let said = File::open(&path, Limits::OWN).expect_err(name).to_string();
        assert!(said.contains(&format!("{name}.safetensors: ")) && said.lines().count() == 1, "{name}: {said}");
        assert!(said.len() < 700 && !said.contains('\u{1b}'), "{name}: {said}");
        for word in words {
            assert!(said.contains(word), "{name}: {word:?} is not in {said:?}");
        }
    }
}

#[test]
fn an_import_refuses_what_the_reader_does() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    for (name, bytes, _) in attacks() {
        let _ = fs::remove_file(&path);
        fs::write(&path, bytes).unwrap();
        let said = Shards::folder(folder.path()).expect_err(name).to_string();
        assert!(said.contains("model.safetensors: ") && said.lines().count() == 1, "{name}: {said}");
    }
}

#[test]
fn tensors_are_counted_before_they_are_kept() {
    let entries: Vec<String> =
        (0..70_000).map(|n| format!(r#""{n}":{{"dtype":"U8","shape":[],"data_offsets":[{n},{}]}}"#, n + 1)).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("many.safetensors");
    fs::write(&path, file(format!("{{{}}}", entries.join(",")), 70_000)).unwrap();
    assert!(open(&path).unwrap_err().to_string().contains("more than 65536 tensors"));
    fs::write(&path, file(format!("{{{}}}", entries[..65_536].join(",")), 65_536)).unwrap();
    assert_eq!(open(&path).unwrap().tensors().len(), 65_536);
    assert!(File::open(&path, Limits::OWN).unwrap_err().to_string().contains("at most 1048576"));
}

#[test]
fn a_folder_or_nothing_is_no_file() {
    let folder = tempfile::tempdir().unwrap();
    assert!(open(folder.path()).unwrap_err().to_string().contains("cannot read"));
    assert!(open(&folder.path().join("none")).unwrap_err().to_string().contains("none"));
}

#[test]
fn a_good_file_gives_its_tensors_in_each_float() {
    let header = concat!(
        r#"{"h":{"dtype":"F16","shape":[3],"data_offsets":[12,18]},"__metadata__":{"format":"pt"},"#,
        r#""f":{"dtype":"F32","shape":[1,2],"data_offsets":[4,12]},"s":{"dtype":"BF16","shape":[],"data_offsets":[18,20]},"#,
        r#""i":{"dtype":"I16","shape":[2],"data_offsets":[0,4]}}  "#
    );
    let mut bytes = file(header, 4);
    bytes.extend([1.5f32, f32::NAN].iter().flat_map(|x| x.to_le_bytes()));
    bytes.extend([1.0, -2.5, 65504.0].iter().flat_map(|x| half::f16::from_f64(*x).to_le_bytes()));
    bytes.extend(half::bf16::from_f32(-3.0).to_le_bytes());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("good.safetensors");
    fs::write(&path, bytes).unwrap();
    let file = open(&path).unwrap();
    let names: Vec<&str> = file.tensors().iter().map(|t| t.name.as_str()).collect();
    assert_eq!((names, file.metadata()), (vec!["i", "f", "h", "s"], &[("format".into(), "pt".into())][..]));
    let mut values = Vec::new();
    assert!(file.append_f32(file.find("h").unwrap(), 1..3, &mut values));
    assert!(file.append_f32(file.find("s").unwrap(), 0..1, &mut values));
    assert!(file.append_f32(file.find("f").unwrap(), 0..1, &mut values));
    assert!(!file.append_f32(file.find("i").unwrap(), 0..1, &mut values));
    assert_eq!(values, [-2.5, 65504.0, -3.0, 1.5]);

    let inspect = |flags: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_gaufre")).arg("inspect").arg(&path).args(flags).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let table = inspect(&[]);
    assert!(table.contains("f          F32    1 x 2"), "{table}");
    let json: serde_json::Value = serde_json::from_str(&inspect(&["--json"])).unwrap();
    assert_eq!(json["total"]["elements"], 8);
    assert_eq!(json["tensors"][1]["non_finite"], 1);
    assert_eq!(json["tensors"][2]["max"], 65504.0);
    assert_eq!(json["tensors"][3]["norm"], 3.0);
}

#[test]
fn inspect_says_in_one_line_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trailing.safetensors");
    fs::write(&path, one(GOOD, 11)).unwrap();
    for (path, words) in [(path.as_path(), "3 more bytes"), (folder.path(), "no model.safetensors")] {
        let output = Command::new(env!("CARGO_BIN_EXE_gaufre")).arg("inspect").arg(path).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{said}");
        assert!(said.contains(words), "{said}");
    }
}
