//! Models in and out of folders of Hugging Face: equal bytes there and back, and what is refused by name. GPT-2 here, what
//! is every family's in tests/hugging_face/families.rs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use gaufre::model::hugging_face::{read_config, stored_as};
use gaufre::model::{Config, Table};
use gaufre::program::initial::word;
use gaufre::train::hugging_face::HuggingFace;
use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize_to_file};

mod families;

const CONFIG: &str = r#"{"model_type": "gpt2", "n_layer": 2, "n_head": 3, "n_embd": 12, "n_positions": 16,
    "vocab_size": 259, "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new", "n_ctx": 16, "resid_pdrop": 0.1}"#;

/// Type, dimensions and bytes.
type Raw = (Dtype, Vec<usize>, Vec<u8>);

/// A folder as transformers would write it, before it is written.
#[derive(Clone)]
struct Model {
    config: String,
    tensors: BTreeMap<String, Raw>,
}

/// The name of a tensor in a checkpoint of the bare transformer.
fn bare(name: &str) -> &str {
    let prefixes = ["transformer.", "gpt_neox.", "model."];
    prefixes.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name)
}

impl Model {
    /// Random weights of a type, for a `config.json`; `whole`: named as in checkpoints of the model with its head.
    fn new(config: &str, dtype: Dtype, whole: bool) -> Model {
        let mut tensors = BTreeMap::new();
        let model = read_config("tiny", config).unwrap();
        for (number, parameter) in Table::new(&model).parameters.iter().enumerate() {
            let stored = stored_as(&model, parameter);
            let shape = stored.order.shape(parameter.rows, parameter.cols, parameter.vector);
            let bytes = (0..parameter.count()).flat_map(|i| {
                let x = word(number as u64, i) as f32 / u32::MAX as f32 - 0.5;
                match dtype {
                    Dtype::F16 => f16::from_f32(x).to_le_bytes().to_vec(),
                    Dtype::BF16 => bf16::from_f32(x).to_le_bytes().to_vec(),
                    _ => x.to_le_bytes().to_vec(),
                }
            });
            let name = if whole { &stored.name } else { bare(&stored.name) };
            tensors.insert(name.to_owned(), (dtype, shape, bytes.collect()));
        }
        Model { config: config.into(), tensors }
    }

    fn config(&self) -> Config {
        read_config("tiny", &self.config).unwrap()
    }

    /// Writes the folder, in one file or in two with an index.
    fn write(&self, folder: &Path, sharded: bool) {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("config.json"), &self.config).unwrap();
        fs::write(folder.join("tokenizer.json"), r#"{"kind":"byte"}"#).unwrap();
        let views = |part: &dyn Fn(usize) -> bool| -> Vec<(String, TensorView<'_>)> {
            let all = self.tensors.iter().enumerate().filter(|(i, _)| part(*i));
            all.map(|(_, (name, (dtype, shape, bytes)))| {
                (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
            })
            .collect()
        };
        if !sharded {
            serialize_to_file(views(&|_| true), None, &folder.join("model.safetensors")).unwrap();
            return;
        }
        let mut map = BTreeMap::new();
        for shard in 0..2 {
            let file = format!("model-{:05}-of-00002.safetensors", shard + 1);
            let part = views(&|i| i % 2 == shard);
            map.extend(part.iter().map(|(name, _)| (name.clone(), file.clone())));
            serialize_to_file(part, None, &folder.join(file)).unwrap();
        }
        let index = serde_json::json!({ "metadata": { "total_size": 0 }, "weight_map": map });
        fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    }
}

/// A folder to work in.
struct Desk(tempfile::TempDir);

impl Desk {
    fn new() -> Desk {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("text"), "to be or not to be\n".repeat(20)).unwrap();
        Desk(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn gaufre(&self, line: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gaufre"));
        command.env("XDG_RUNTIME_DIR", self.0.path());
        command.args(line.split_whitespace()).current_dir(self.0.path()).output().expect("the command starts")
    }

    fn succeed(&self, line: &str) -> String {
        let output = self.gaufre(line);
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Trains a step that changes nothing: the rate is 0 in f32.
    fn train(&self, init: &str, run: &str, flags: &str) {
        let still = "--steps 1 --lr 1e-60 --weight-decay 0 --batch-size 1 --eval-every 0 --val-split 0 --device host";
        self.succeed(&format!("train --init {init} --data text --tokenizer byte {still} --out {run} {flags}"));
    }
}

/// A file holds the tensors of a model and no others, named as in checkpoints of the whole.
fn same_tensors(model: &Model, path: &Path) {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let config = model.config();
    let parameters = Table::new(&config).parameters;
    for parameter in &parameters {
        let name = stored_as(&config, parameter).name;
        let (dtype, shape, bytes) = model.tensors.get(&name).unwrap_or_else(|| &model.tensors[bare(&name)]);
        let found = file.tensor(&name).unwrap();
        assert_eq!((found.dtype(), found.shape()), (*dtype, shape.as_slice()), "{name}");
        assert!(found.data() == bytes, "{name}: other bytes");
    }
    assert_eq!(file.len(), parameters.len());
}

#[test]
fn import_and_export_give_equal_bytes() {
    let desk = Desk::new();
    for (case, (dtype, word, whole, sharded)) in
        [(Dtype::F32, "f32", false, false), (Dtype::F16, "f16", true, true), (Dtype::BF16, "bf16", true, false)]
            .into_iter()
            .enumerate()
    {
        let mut model = Model::new(CONFIG, dtype, whole);
        let prefix = if whole { "transformer." } else { "" };
        let mask = (Dtype::U8, vec![1, 1, 16, 16], vec![1; 256]);
        model.tensors.insert(format!("{prefix}h.0.attn.bias"), mask);
        let head = model.tensors[&format!("{prefix}wte.weight")].clone();
        model.tensors.insert("lm_head.weight".into(), head);
        let names = ["in", "run", "out"].map(|part| format!("{part}{case}"));
        model.write(&desk.path(&names[0]), sharded);
        desk.train(&names[0], &names[1], "");
        desk.succeed(&format!("export {} {} --dtype {word}", names[1], names[2]));
        same_tensors(&model, &desk.path(&names[2]).join("model.safetensors"));
        let text = fs::read_to_string(desk.path(&names[2]).join("config.json")).unwrap();
        assert_eq!(read_config("tiny", &text).unwrap(), model.config());
    }
}

#[test]
fn what_was_exported_says_the_same() {
    let desk = Desk::new();
    Model::new(CONFIG, Dtype::F32, false).write(&desk.path("in"), true);
    desk.train("in", "run", "");
    desk.succeed("export run out");
    for (folder, file) in [("in", "a"), ("out", "b")] {
        desk.succeed(&format!("eval --init {folder} --data text --dump-logits {file} --device host"));
    }
    let (a, b) = (fs::read(desk.path("a")).unwrap(), fs::read(desk.path("b")).unwrap());
    assert!(a == b, "other logits");
    let logits = SafeTensors::deserialize(&a).unwrap();
    let tokens = "to be or not to be\n".len() * 20;
    assert_eq!(logits.tensor("logits").unwrap().shape(), [tokens, 259]);
    assert_eq!(logits.tensor("tokens").unwrap().data()[..8], [b't', 0, 0, 0, b'o', 0, 0, 0]);
    let written = |from: &str| desk.succeed(&format!("generate {from} --prompt to --max-tokens 20 --top-p 0.9"));
    assert_eq!(written("run"), written("--init out"));
}

#[test]
fn fine_tuning_takes_the_tokenizer_of_the_folder() {
    let desk = Desk::new();
    Model::new(CONFIG, Dtype::F32, false).write(&desk.path("in"), false);
    let flags = "--data text --batch-size 1 --eval-every 0 --val-split 0 --device host";
    desk.succeed(&format!("train --init in --steps 4 --stop-after 2 --out run {flags}"));
    let tokenizer = |folder: &str| gaufre::data::Tokenizer::load(&desk.path(folder).join("tokenizer.json")).unwrap();
    assert_eq!(tokenizer("run"), tokenizer("in"));
    // The folder may go: the run has its own.
    fs::remove_file(desk.path("in/tokenizer.json")).unwrap();
    desk.succeed("train --resume run");
    let without = desk.gaufre(&format!("train --init in --steps 4 --out other {flags}"));
    let error = String::from_utf8_lossy(&without.stderr).into_owned();
    assert!(error.contains("--init in: there is no tokenizer.json") && error.contains("--tokenizer"), "{error}");
    assert!(!without.status.success() && !desk.path("other").exists());
}

#[test]
fn a_model_without_biases_is_exported_with_biases_of_zero() {
    let desk = Desk::new();
    let text = "layers = 1\nheads = 2\nd_model = 8\ncontext = 16\nbias = false\nvocab_size = 256\n";
    fs::write(desk.path("bare.toml"), text).unwrap();
    let flags = "--steps 1 --batch-size 1 --eval-every 0 --val-split 0 --device host --out run";
    desk.succeed(&format!("train --model bare.toml --data text --tokenizer byte {flags}"));
    desk.succeed("export run out");
    let bytes = fs::read(desk.path("out/model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let biases: Vec<_> = file.tensors().into_iter().filter(|(name, _)| name.ends_with("bias")).collect();
    assert_eq!(biases.len(), 7);
    assert!(biases.iter().all(|(_, bias)| bias.data().iter().all(|b| *b == 0)));
    HuggingFace::open(&desk.path("out")).unwrap();
    let taken = desk.gaufre("export run out");
    assert_eq!(taken.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&taken.stderr).contains("out: holds a model already"));
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let good = Model::new(CONFIG, Dtype::F32, false);
    let tensor = |model: &mut Model, name: &str, change: &dyn Fn(&mut Raw)| {
        change(model.tensors.get_mut(name).unwrap());
    };
    type Spoil<'a> = &'a dyn Fn(&mut Model);
    let cases: [(&str, Spoil<'_>, &[&str]); 11] = [
        ("missing", &|m| drop(m.tensors.remove("h.1.ln_2.bias")), &["h.1.ln_2.bias", "missing"]),
        (
            "extra",
            &|m| drop(m.tensors.insert("h.2.ln_1.bias".into(), good.tensors["ln_f.bias"].clone())),
            &["h.2.ln_1"],
        ),
        (
            "twice",
            &|m| drop(m.tensors.insert("transformer.ln_f.bias".into(), good.tensors["ln_f.bias"].clone())),
            &["tensor ln_f.bias"],
        ),
        (
            "misshapen",
            &|m| tensor(m, "h.0.mlp.c_fc.weight", &|t| t.1.reverse()),
            &["h.0.mlp.c_fc.weight", "[48, 12]", "[12, 48]"],
        ),
        ("type", &|m| tensor(m, "wpe.weight", &|t| t.0 = Dtype::I32), &["wpe.weight", "I32", "BF16"]),
        (
            "not a number",
            &|m| tensor(m, "ln_f.weight", &|t| t.2[8..12].copy_from_slice(&f32::NAN.to_le_bytes())),
            &["ln_f.weight", "NaN", "element 2"],
        ),
        (
            "untied",
            &|m| {
                let mut head = m.tensors["wte.weight"].clone();
                head.2[0] ^= 1;
                m.tensors.insert("lm_head.weight".into(), head);
            },
            &["lm_head.weight", "wte.weight"],
        ),
        ("other family", &|m| m.config = m.config.replace("gpt2", "bert"), &["model_type", "bert", "gpt_neox"]),
        ("other function", &|m| m.config = m.config.replace("gelu_new", "mish"), &["activation_function", "mish"]),
        ("other width", &|m| m.config = m.config.replace("12", "24"), &["wte.weight", "[259, 24]"]),
        ("no configuration", &|m| m.config.truncate(20), &["config.json"]),
    ];
    for (name, spoil, parts) in cases {
        let desk = Desk::new();
        let mut model = good.clone();
        spoil(&mut model);
        model.write(&desk.path("in"), name == "extra");
        let said = HuggingFace::open(&desk.path("in")).unwrap_err().to_string();
        assert!(!said.contains('\n'), "{name}: {said}");
        parts.iter().for_each(|part| assert!(said.contains(part), "{name}: {part:?} is not in {said:?}"));
    }
}

#[test]
fn broken_files_are_refused_before_anything_is_written() {
    let first = "model-00001-of-00002.safetensors";
    let index = "model.safetensors.index.json";
    type Spoil<'a> = &'a dyn Fn(&Path);
    let edit = |path: PathBuf, from: &str, to: &str| {
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from));
        fs::write(path, text.replacen(from, to, 1)).unwrap();
    };
    let cut = |path: PathBuf, bytes: usize| {
        let whole = fs::read(&path).unwrap();
        fs::write(path, &whole[..bytes.min(whole.len() - 1)]).unwrap();
    };
    let cases: [(Spoil<'_>, &[&str]); 10] = [
        (&|f| fs::remove_file(f.join(first)).unwrap(), &[first]),
        (&|f| cut(f.join(first), usize::MAX), &[first, "is the file whole?"]),
        (&|f| cut(f.join(first), 4), &[first, "is the file whole?"]),
        (&|f| fs::write(f.join(first), "").unwrap(), &[first]),
        (&|f| fs::write(f.join(index), "{}").unwrap(), &[index, "weight_map"]),
        (&|f| edit(f.join(index), first, "../text"), &[index, "../text"]),
        (&|f| edit(f.join(index), first, "model\\nfirst"), &[index, "model\\nfirst", "is not a name"]),
        (&|f| edit(f.join(index), first, "model-00002-of-00002.safetensors"), &[index, "should be in"]),
        (&|f| edit(f.join(index), "\"wpe.weight\":", "\"wqe.weight\":"), &[index]),
        (&|f| fs::remove_file(f.join("config.json")).unwrap(), &["config.json", "give a folder"]),
    ];
    for (spoil, parts) in cases {
        let desk = Desk::new();
        Model::new(CONFIG, Dtype::F32, false).write(&desk.path("in"), true);
        spoil(&desk.path("in"));
        let output = desk.gaufre("train --init in --data text --tokenizer byte --device host --out run");
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{said}");
        parts.iter().for_each(|part| assert!(said.contains(part), "{part:?} is not in {said:?}"));
        assert!(!desk.path("run").exists(), "{said}");
    }
    let both = Desk::new().gaufre("train --init in --model gpt2 --data text");
    assert_eq!(both.status.code(), Some(2));
}
