//! The structure of the crate, held by reading its files: no device, no files written, under two seconds. Every rule is a
//! function from a tree of texts to offences, and each is first shown a planted offence that it must find.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use gaufre::device::{ALL_CLASSES, Kernel};
use gaufre::program::all;

/// Layer, and what it may name: the whole of the rule. Siblings are strangers unless named here.
const LAYERS: &[(&str, &[&str])] = &[
    ("wafer", &[]),
    ("device", &["wafer"]),
    ("program", &["device", "wafer"]),
    ("store", &["program", "device", "wafer"]),
    ("model", &["store", "program", "device", "wafer"]),
    ("data", &["program"]),
    ("report", &["device"]),
    ("train", &["report", "data", "model", "store", "program", "device", "wafer"]),
    ("cli", &["train", "report", "data", "model", "store", "program", "device", "wafer"]),
];
const FILE_LINES: usize = 600;
const FUNCTION_LINES: usize = 70;
/// Folders of the crate that hold its own text.
const FOLDERS: &[&str] = &["src", "shaders", "tests", "benches", "examples", "models", ".ci"];

/// Path from the root, with forward slashes, and text.
type Tree = BTreeMap<String, String>;

macro_rules! rules {
    ($($rule:ident: $($path:literal = $text:expr),+;)+) => {
        $(
            #[test]
            fn $rule() {
                let planted: Tree = [$(($path.to_owned(), $text.to_owned())),+].into();
                assert!(!rule::$rule(&planted).is_empty(), "the rule does not find what was planted for it");
                let offences = rule::$rule(&crate_tree());
                assert!(offences.is_empty(), "{} offences:\n{}", offences.len(), offences.join("\n"));
            }
        )+
    };
}

rules! {
    no_upward_arrow: "src/device/mod.rs" = "//! x\nuse crate::program::Matrix;";
    no_upward_arrow_in_a_group: "src/program/activation.rs" = "use crate::{device::Device, train::{self}};";
    no_upward_arrow_through_super: "src/store/panel.rs" = "use super::super::model::Table;";
    only_known_layers: "src/magic/mod.rs" = "//! x";
    only_the_device_names_the_driver: "src/program/activation.rs" = "use wgpu::Device;";
    programs_have_shader_and_test: "src/program/lonely.rs" = "wgsl: include_str!(\"../../shaders/lonely.wgsl\"),";
    programs_share_their_stem: "src/program/a.rs" = "include_str!(\"../../shaders/b.wgsl\")",
        "shaders/b.wgsl" = "", "tests/program/a.rs" = "", "tests/program/b.rs" = "";
    shaders_have_programs: "shaders/orphan.wgsl" = "//# entry orphan";
    program_tests_have_programs: "tests/program/orphan.rs" = "//! Tests of nothing at all.";
    files_say_what_they_are: "src/wafer/mod.rs" = "use std::fmt;\n//! Too late.";
    no_long_file: "src/wafer/mod.rs" = "\n".repeat(FILE_LINES + 1);
    no_long_function: "src/wafer/mod.rs" = format!("fn f() {{\n{}}}\n", "    g(\"{\");\n".repeat(FUNCTION_LINES));
    no_drawer_names: "src/device/utils.rs" = "//! x";
    no_unfinished_work: "src/wafer/mod.rs" = concat!("fn f() { to", "do!() }");
    models_parse: "models/odd.toml" = "vocab_size = 65\nlayers = 2\n";
    architecture_names_every_layer: "ARCHITECTURE.md" = "`src/wafer`", "src/wafer/mod.rs" = "", "src/device/mod.rs" = "";
    documents_name_what_exists: "README.md" = "See `tests/gone.rs`.";
    documents_name_tests_that_exist: "ARCHITECTURE.md" = "`tests/a.rs::gone`", "tests/a.rs" = "fn here() {}";
    nothing_of_one_machine: "README.md" = concat!("see /ho", "me/someone/notes");
}

/// The files of the crate, without what is generated.
fn crate_tree() -> Tree {
    fn add(tree: &mut Tree, root: &Path, at: &Path) {
        for entry in fs::read_dir(at).unwrap_or_else(|e| panic!("{}: {e}", at.display())) {
            let path = entry.expect("a readable folder").path();
            if path.is_dir() {
                add(tree, root, &path);
            } else if let Ok(text) = fs::read_to_string(&path) {
                let name = path.strip_prefix(root).expect("below the root").to_string_lossy().replace('\\', "/");
                tree.insert(name, text);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tree = Tree::new();
    FOLDERS.iter().map(|f| root.join(f)).filter(|f| f.is_dir()).for_each(|f| add(&mut tree, root, &f));
    for entry in fs::read_dir(root).expect("the crate's folder").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let ours = name.ends_with(".md") || name.ends_with(".toml") || name.starts_with("LICENSE");
        if let (true, Ok(text)) = (ours, fs::read_to_string(entry.path())) {
            tree.insert(name, text);
        }
    }
    for wanted in ["Cargo.toml", "README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "src/lib.rs", ".ci/run"] {
        assert!(tree.contains_key(wanted), "{wanted} is missing");
    }
    tree
}

/// The rules: each gives one line an offence.
mod rule {
    use super::*;

    pub fn no_upward_arrow(tree: &Tree) -> Vec<String> {
        let mut offences = Vec::new();
        for (path, text) in sources(tree, "src/") {
            let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| Some(*name) == layer(path)) else { continue };
            for named in named_layers(path, &code(text)) {
                if Some(named.as_str()) != layer(path) && !allowed.contains(&named.as_str()) {
                    offences.push(format!("{path}: names crate::{named}"));
                }
            }
        }
        offences
    }

    pub use no_upward_arrow as no_upward_arrow_in_a_group;
    pub use no_upward_arrow as no_upward_arrow_through_super;

    pub fn only_known_layers(tree: &Tree) -> Vec<String> {
        let known = |path: &str| LAYERS.iter().any(|(name, _)| layer(path) == Some(*name));
        let top = ["src/lib.rs", "src/main.rs"];
        let strange = |path: &&String| path.starts_with("src/") && !top.contains(&path.as_str()) && !known(path);
        tree.keys().filter(strange).map(|path| format!("{path}: in no layer")).collect()
    }

    pub fn only_the_device_names_the_driver(tree: &Tree) -> Vec<String> {
        let names = |text: &str| ["wgpu", "naga"].into_iter().find(|c| has_word(&code(text), c));
        sources(tree, "src/")
            .filter(|(path, _)| layer(path) != Some("device"))
            .filter_map(|(path, text)| names(text).map(|c| format!("{path}: names {c}")))
            .collect()
    }

    pub fn programs_have_shader_and_test(tree: &Tree) -> Vec<String> {
        let wanted = |(path, stem): (&str, String)| {
            [format!("shaders/{stem}.wgsl"), format!("tests/program/{stem}.rs")]
                .into_iter()
                .filter(|file| !tree.contains_key(file))
                .map(move |file| format!("{path}: {file} is missing"))
                .collect::<Vec<_>>()
        };
        shader_uses(tree)
            .into_iter()
            .map(|(path, shader)| (path, stem(path).unwrap_or(shader)))
            .flat_map(wanted)
            .collect()
    }

    pub fn programs_share_their_stem(tree: &Tree) -> Vec<String> {
        let differs = |(path, shader): &(&str, String)| stem(path).as_deref() != Some(shader.as_str());
        let uses = shader_uses(tree).into_iter().filter(differs);
        uses.map(|(path, shader)| format!("{path}: carries shaders/{shader}.wgsl")).collect()
    }

    pub fn shaders_have_programs(tree: &Tree) -> Vec<String> {
        let used: BTreeSet<String> = shader_uses(tree).into_iter().map(|(_, shader)| shader).collect();
        let shaders = tree.keys().filter_map(|path| path.strip_prefix("shaders/")?.strip_suffix(".wgsl"));
        shaders.filter(|s| !used.contains(*s)).map(|s| format!("shaders/{s}.wgsl: no program carries it")).collect()
    }

    pub fn program_tests_have_programs(tree: &Tree) -> Vec<String> {
        let stems: BTreeSet<String> = tree.keys().filter_map(|path| stem(path)).collect();
        let tests = tree.keys().filter_map(|path| path.strip_prefix("tests/program/")?.strip_suffix(".rs"));
        tests
            .filter(|t| *t != "mod" && !stems.contains(*t))
            .map(|t| format!("tests/program/{t}.rs: no program"))
            .collect()
    }

    pub fn files_say_what_they_are(tree: &Tree) -> Vec<String> {
        let says = |text: &str| {
            let head: String = text.lines().map_while(|line| line.strip_prefix("//!")).collect();
            head.split_whitespace().count() >= 3 && !head.trim().to_lowercase().starts_with("placeholder")
        };
        let silent = sources(tree, "").filter(|(_, text)| !says(text));
        silent.map(|(path, _)| format!("{path}: does not open with what it is (`//!`)")).collect()
    }

    pub fn no_long_file(tree: &Tree) -> Vec<String> {
        let measured = tree.iter().filter(|(path, _)| path.ends_with(".rs") || path.ends_with(".wgsl"));
        measured
            .map(|(path, text)| (path, text.lines().count()))
            .filter(|(_, lines)| *lines > FILE_LINES)
            .map(|(path, lines)| format!("{path}: {lines} lines"))
            .collect()
    }

    pub fn no_long_function(tree: &Tree) -> Vec<String> {
        let long = |(path, text): (&str, &str)| {
            let functions = functions(&code(text)).into_iter().filter(|(.., lines)| *lines > FUNCTION_LINES);
            functions.map(|(name, line, lines)| format!("{path}:{line}: {name} has {lines} lines")).collect::<Vec<_>>()
        };
        sources(tree, "").flat_map(long).collect()
    }

    pub fn no_drawer_names(tree: &Tree) -> Vec<String> {
        let banned = ["util", "utils", "helper", "helpers", "common", "misc"];
        let drawer = |path: &&String| path.split(['/', '.']).any(|part| banned.contains(&part));
        tree.keys().filter(drawer).map(|path| format!("{path}: a name that says nothing")).collect()
    }

    pub fn no_unfinished_work(tree: &Tree) -> Vec<String> {
        // In pieces, so that this file does not hold them.
        let marks = [
            concat!("to", "do!"),
            concat!("unimple", "mented!"),
            concat!("TO", "DO"),
            concat!("FIX", "ME"),
            concat!("X", "XX"),
            concat!("#[ign", "ore"),
        ];
        holding(tree, &marks)
    }

    pub fn nothing_of_one_machine(tree: &Tree) -> Vec<String> {
        let marks = [
            concat!("crates", ".io"),
            concat!("pypi", ".org"),
            concat!("npmjs", ".org"),
            concat!("/ho", "me/"),
            concat!("/ro", "ot/"),
            concat!("/Use", "rs/"),
            concat!("/wo", "rk/"),
            concat!("C:", "\\"),
        ];
        holding(tree, &marks)
    }

    pub fn models_parse(tree: &Tree) -> Vec<String> {
        let presets: Vec<_> =
            tree.iter().filter(|(path, _)| path.starts_with("models/") && path.ends_with(".toml")).collect();
        if presets.is_empty() {
            return vec!["models/: no preset".into()];
        }
        let fault = |text: &str| match text.parse::<toml::Table>() {
            Err(error) => Some(error.to_string()),
            // Without a vocabulary of its own a preset takes that of the data, and its size is not fixed.
            Ok(table) if !table.contains_key("vocab_size") => None,
            Ok(table) => match table.get("parameters").and_then(toml::Value::as_integer) {
                Some(count) if count > 0 => None,
                _ => Some("a fixed vocabulary, but no expected count `parameters`".into()),
            },
        };
        presets.into_iter().filter_map(|(path, text)| fault(text).map(|f| format!("{path}: {f}"))).collect()
    }

    pub fn architecture_names_every_layer(tree: &Tree) -> Vec<String> {
        let map = tree.get("ARCHITECTURE.md").map_or("", String::as_str);
        let folder = |path: &String| Some(format!("src/{}", path.strip_prefix("src/")?.split_once('/')?.0));
        let folders: BTreeSet<String> = tree.keys().filter_map(folder).collect();
        let unnamed = folders.into_iter().filter(|folder| !map.contains(&format!("`{folder}`")));
        unnamed.map(|folder| format!("ARCHITECTURE.md does not name `{folder}`")).collect()
    }

    pub fn documents_name_what_exists(tree: &Tree) -> Vec<String> {
        let exists = |file: &str| {
            let folder = format!("{}/", file.trim_end_matches('/'));
            tree.contains_key(file) || tree.keys().any(|path| path.starts_with(&folder))
        };
        let gone = quoted_paths(tree).into_iter().filter(|(_, file, _)| !exists(file));
        gone.map(|(document, file, _)| format!("{document} names `{file}`, which does not exist")).collect()
    }

    pub fn documents_name_tests_that_exist(tree: &Tree) -> Vec<String> {
        let missing = |(document, file, test): (&str, String, Option<String>)| {
            let (test, text) = (test?, tree.get(&file)?);
            (!text.contains(&format!("fn {test}(")) && !text.contains(&format!("    {test}: ")))
                .then(|| format!("{document} names `{file}::{test}`, which does not exist"))
        };
        quoted_paths(tree).into_iter().filter_map(missing).collect()
    }
}

/// Every kernel keeps the contract that its declaration cannot express.
#[test]
fn declarations_are_whole() {
    let mut names = BTreeSet::new();
    for program in all() {
        let kernel = &program.kernel;
        let name = kernel.name;
        assert!(names.insert(name), "{name}: declared twice");
        assert!(kernel.bindings.len() <= 8, "{name}: {} bindings", kernel.bindings.len());
        assert!(kernel.params.len() <= 31, "{name}: {} parameter words", kernel.params.len());
        assert!(!(program.cases)().is_empty(), "{name}: has no case");
        for class in ALL_CLASSES {
            let able = kernel.variants.iter().any(|variant| variant.classes.contains(class));
            assert!(able, "{name}: no variant for {class:?}");
        }
        assert_eq!(fault_offence(kernel, program.fault), None, "{name}");
    }
    let exemplar = all().into_iter().find(|p| p.kernel.name == "activation_forward").expect("the exemplar");
    assert!(fault_offence(&exemplar.kernel, ("no such text", "x")).is_some(), "the rule finds a fault that is nowhere");
}

/// What is wrong with a planted fault: it must be an edit of text that the kernel compiles.
fn fault_offence(kernel: &Kernel, (text, wrong): (&str, &str)) -> Option<String> {
    let mut inside = true;
    let mut section = String::new();
    for line in kernel.wgsl.lines() {
        match line.trim().strip_prefix("//# entry ") {
            Some(entry) => inside = entry.trim() == kernel.name,
            None if inside => section += &format!("{line}\n"),
            None => {}
        }
    }
    (text.is_empty() || text == wrong || !section.contains(text)).then(|| format!("{text:?} is not in its section"))
}

/// The Rust files below a folder.
fn sources<'a>(tree: &'a Tree, below: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
    let ours = move |path: &str| path.starts_with(below) && path.ends_with(".rs");
    tree.iter().filter(move |(path, _)| ours(path)).map(|(path, text)| (path.as_str(), text.as_str()))
}

/// The layer of a file: the first folder (or file) below src.
fn layer(path: &str) -> Option<&str> {
    path.strip_prefix("src/")?.split(['/', '.']).next()
}

/// The stem of a tile program: `src/program/STEM.rs` or anything in `src/program/STEM/`.
fn stem(path: &str) -> Option<String> {
    let stem = path.strip_prefix("src/program/")?.split(['/', '.']).next()?;
    (stem != "mod").then(|| stem.to_owned())
}

/// Files of `src/program` that carry a shader, and the shader's stem.
fn shader_uses(tree: &Tree) -> Vec<(&str, String)> {
    let mut found = Vec::new();
    for (path, text) in sources(tree, "src/program/") {
        let ends = text.match_indices(".wgsl\")").map(|(end, _)| end);
        let shader = |end: usize| text[..end].rsplit_once("shaders/").map(|(_, shader)| shader.to_owned());
        let shaders: BTreeSet<String> = ends.filter_map(shader).collect();
        found.extend(shaders.into_iter().map(|shader| (path, shader)));
    }
    found
}

/// The layers that a file names, through `crate::` or enough `super::`.
fn named_layers(path: &str, code: &str) -> BTreeSet<String> {
    let parts: Vec<&str> = path.trim_start_matches("src/").trim_end_matches(".rs").split('/').collect();
    let depth = parts.len() - usize::from(parts.last() == Some(&"mod"));
    let up = "super::".repeat(depth);
    let mut tails: Vec<&str> = code.match_indices("crate::").map(|(at, word)| &code[at + word.len()..]).collect();
    let climbs = code.match_indices(&up).filter(|(at, _)| !code[..*at].ends_with("super::"));
    tails.extend(climbs.map(|(at, word)| &code[at + word.len()..]));
    let known = |name: &&str| LAYERS.iter().any(|(layer, _)| layer == name);
    tails.into_iter().flat_map(heads).filter(known).map(str::to_owned).collect()
}

/// The first names of a path, or of each path of a group in braces.
fn heads(tail: &str) -> Vec<&str> {
    let Some(group) = tail.trim_start().strip_prefix('{') else { return vec![first_word(tail)] };
    let (mut depth, mut start, mut names) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                names.push(first_word(&group[start..at]));
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                names.push(first_word(&group[start..at]));
                start = at + 1;
            }
            _ => {}
        }
    }
    names
}

fn first_word(text: &str) -> &str {
    let text = text.trim_start();
    &text[..text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len())]
}

fn has_word(text: &str, word: &str) -> bool {
    let edge = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric() && c != '_');
    let whole = |at: usize| edge(text[..at].chars().next_back()) && edge(text[at + word.len()..].chars().next());
    text.match_indices(word).any(|(at, _)| whole(at))
}

/// Lines that hold one of the marks.
fn holding(tree: &Tree, marks: &[&str]) -> Vec<String> {
    let mut offences = Vec::new();
    for (path, text) in tree {
        for (number, line) in text.lines().enumerate() {
            offences.extend(marks.iter().filter(|m| line.contains(**m)).map(|m| format!("{path}:{}: {m}", number + 1)));
        }
    }
    offences
}

/// Paths below our folders that documents quote in backticks: (document, file, test after `::`).
fn quoted_paths(tree: &Tree) -> Vec<(&str, String, Option<String>)> {
    let mut found = Vec::new();
    for (document, text) in tree.iter().filter(|(path, _)| path.ends_with(".md")) {
        for quoted in text.split('`').skip(1).step_by(2) {
            let (file, test) = quoted.split_once("::").map_or((quoted, None), |(f, t)| (f, Some(t.to_owned())));
            let ours = FOLDERS.iter().any(|folder| file.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/')));
            let pattern = file.chars().any(|c| c.is_whitespace() || c.is_ascii_uppercase() || "*{<".contains(c));
            if ours && !pattern {
                found.push((document.as_str(), file.to_owned(), test));
            }
        }
    }
    found
}

/// Names of functions with the line they begin on and the lines they have; `code` has no comments and no text.
fn functions(code: &str) -> Vec<(String, usize, usize)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        if code[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let name = first_word(&code[at + 3..]);
        let Some(open) = code[at..].find(['{', ';']).map(|o| at + o).filter(|o| code[*o..].starts_with('{')) else {
            continue;
        };
        let mut depth = 0;
        let close = code[open..].char_indices().find(|(_, c)| {
            depth += i32::from(*c == '{') - i32::from(*c == '}');
            depth == 0
        });
        let end = close.map_or(code.len(), |(length, _)| open + length);
        let line = |upto: usize| code[..upto].matches('\n').count() + 1;
        if !name.is_empty() {
            found.push((name.to_owned(), line(at), line(end) - line(at) + 1));
        }
    }
    found
}

/// The text with comments, strings and characters blanked; lines stay.
fn code(text: &str) -> String {
    let bytes: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = match (bytes[at], bytes.get(at + 1)) {
            ('/', Some('/')) => line_end(&bytes, at),
            ('/', Some('*')) => comment_end(&bytes, at),
            ('"', _) => string_end(&bytes, at),
            ('r', Some('"' | '#')) if !is_name(&bytes, at) => raw_end(&bytes, at),
            ('\'', Some('\\')) => bytes[at + 3..].iter().position(|c| *c == '\'').map_or(bytes.len(), |e| at + e + 4),
            ('\'', _) if bytes.get(at + 2) == Some(&'\'') => at + 3,
            _ => at,
        };
        if end == at {
            out.push(bytes[at]);
            at += 1;
        } else {
            out.extend(bytes[at..end.min(bytes.len())].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    out
}

fn is_name(bytes: &[char], at: usize) -> bool {
    at > 0 && (bytes[at - 1].is_alphanumeric() || bytes[at - 1] == '_')
}

fn line_end(bytes: &[char], at: usize) -> usize {
    bytes[at..].iter().position(|c| *c == '\n').map_or(bytes.len(), |e| at + e)
}

fn comment_end(bytes: &[char], at: usize) -> usize {
    bytes[at + 2..].windows(2).position(|w| w == ['*', '/']).map_or(bytes.len(), |e| at + e + 4)
}

fn string_end(bytes: &[char], at: usize) -> usize {
    let mut end = at + 1;
    while end < bytes.len() && bytes[end] != '"' {
        end += if bytes[end] == '\\' { 2 } else { 1 };
    }
    end + 1
}

/// The end of `r"..."` or `r#"..."#`; `at` itself where it is a raw identifier.
fn raw_end(bytes: &[char], at: usize) -> usize {
    let hashes = bytes[at + 1..].iter().take_while(|c| **c == '#').count();
    let open = at + 1 + hashes;
    if bytes.get(open) != Some(&'"') {
        return at;
    }
    let closes =
        |end: &usize| bytes[*end] == '"' && bytes[end + 1..].iter().take_while(|c| **c == '#').count() >= hashes;
    (open + 1..bytes.len()).find(closes).map_or(bytes.len(), |end| end + 1 + hashes)
}
