//! The model against PyTorch: logits, losses, gradients and the weights after some steps of AdamW, tensor by tensor, on
//! every device. tests/golden/make.py made the goldens of GPT-2 and says what is in them, make_families.py those of the
//! other families.
//!
//! The yardstick is PyTorch's own f32: a device may lie four times as far from the f64 result as that does, plus the
//! rounding of one store.

use crate::rig;
use gaufre::device::Device;
use gaufre::model::hugging_face::{Stored, locate, read_config};
use gaufre::model::{Config, Micro, Shape, Table};
use gaufre::program::EPS;
use gaufre::program::initial::Kind;
use gaufre::store::Role;
use gaufre::store::order::Order;
use gaufre::train::{Setup, Trainer};
use safetensors::SafeTensors;

#[cfg(feature = "slow")]
mod cut;
mod families;

const WIDE: &[u8] = include_bytes!("golden/wide.safetensors");
const DEEP: &[u8] = include_bytes!("golden/deep.safetensors");
const LR: f32 = 1e-3;
/// Tensors with more elements are kept as a sketch.
const WHOLE: usize = 64;
/// Sums of a sketch.
const SUMS: usize = 64;

/// What PyTorch said of one model.
struct Golden {
    file: SafeTensors<'static>,
    config: Config,
    batch: usize,
    /// What each of our tensors is called there and how it lies, and the key of its initial values.
    tensors: Vec<(Stored, u64)>,
}

/// One quantity of ours held against the golden.
struct Row {
    name: String,
    error: f64,
    allowed: f64,
}

impl Golden {
    fn new(bytes: &'static [u8]) -> Golden {
        let (_, header) = SafeTensors::read_metadata(bytes).unwrap();
        let about = header.metadata().clone().unwrap();
        let (config, tensors) = match about.get("config") {
            Some(text) => {
                let config = read_config("golden", text).unwrap();
                let names: Vec<String> = serde_json::from_str(&about["tensors"]).unwrap();
                let found = locate(&config, names.iter().map(String::as_str)).unwrap();
                let key = |stored: &Stored| names.iter().position(|name| *name == stored.name).unwrap() as u64;
                let tensors = found.into_iter().map(|stored| (stored.clone(), key(&stored))).collect();
                (config, tensors)
            }
            None => {
                let keys = ["heads", "d_model", "layers", "context", "vocab_size"];
                let text: String = keys.iter().map(|key| format!("{key} = {}\n", about[*key])).collect();
                let config = Config::parse("golden", &text).unwrap();
                let own = Table::new(&config).parameters.into_iter().zip(0..);
                let tensors = own.map(|(p, key)| (Stored { name: p.name, order: Order::Same }, key)).collect();
                (config, tensors)
            }
        };
        let batch = about["batch"].parse().unwrap();
        Golden { file: SafeTensors::deserialize(bytes).unwrap(), config, batch, tensors }
    }

    fn values(&self, name: &str) -> Vec<f64> {
        let tensor = self.file.tensor(name).unwrap_or_else(|_| panic!("the golden has no {name}"));
        bytemuck::pod_collect_to_vec(tensor.data())
    }

    /// Tokens of a step, counted from 0: rows of `context + 1`.
    fn batch(&self, step: u64) -> Micro {
        let (context, vocabulary) = (self.config.context, self.config.vocab_size as u64);
        let count = (self.batch * (context + 1)) as u64;
        let ids: Vec<u32> = (0..count).map(|i| (mix(((1000 + step) << 32) + i) % vocabulary) as u32).collect();
        let rows = ids.chunks(context + 1);
        Micro {
            inputs: rows.clone().flat_map(|row| &row[..context]).copied().collect(),
            targets: rows.flat_map(|row| &row[1..]).copied().collect(),
        }
    }

    fn shape(&self) -> Shape {
        Shape { batch: self.batch, seq_len: self.config.context, micro_batches: 1 }
    }

    /// A trainer with the weights that PyTorch began with.
    fn trainer(&self, device: &Device) -> Trainer {
        let setup = Setup { seed: 0, ..Setup::new(self.config.clone(), self.shape()) };
        let mut trainer = Trainer::new(device.clone(), setup).unwrap();
        self.fill(&mut trainer, 0.25);
        trainer
    }

    /// The values that PyTorch began with: noise, in matrices of so large a scale; gains about 1.
    fn fill(&self, trainer: &mut Trainer, scale: f64) {
        for (number, (Stored { order, .. }, key)) in self.tensors.iter().enumerate() {
            let tensor = trainer.store().tensors()[number].clone();
            let gain = tensor.initial.kind == Kind::One;
            let (scale, around) = if tensor.vector { (0.5, f64::from(u8::from(gain))) } else { (scale, 0.0) };
            let value = |i: usize| (around + scale * noise(*key, i as u64)) as f32;
            let (rows, cols) = rows_of(tensor.rows, tensor.cols, tensor.vector);
            let values: Vec<f32> = (0..rows * cols).map(|i| value(order.theirs(i / cols) * cols + i % cols)).collect();
            trainer.store().write(number, Role::Weight, &values).unwrap();
        }
    }

    /// Holds a quantity against the golden. `size` is what the rounding of a store is relative to: its own norm, or that
    /// of the tensor that it is a part of.
    fn row<T: Copy + Into<f64>>(&self, name: &str, ours: &[T], size: Option<f64>) -> Row {
        let about = self.values(&format!("{name}/distance"));
        let (yardstick, norm) = (about[0], about[1]);
        let exact = self.values(name);
        let error = if ours.len() > WHOLE {
            let sums = sketch(ours);
            distance(&sums, &exact) / (SUMS as f64).sqrt()
        } else {
            let ours: Vec<f64> = ours.iter().map(|&x| x.into()).collect();
            distance(&ours, &exact)
        };
        Row { name: name.into(), error, allowed: 4.0 * yardstick + EPS * size.unwrap_or(norm) }
    }

    /// A tensor as it lies there, or the parts of a bias of queries, keys and values. The gradient of keys that no position
    /// turns is zero in exact arithmetic: it is compared absolutely, as a part of the whole. What AdamW makes of such a
    /// gradient is noise over noise, so that part after some steps says nothing, and nothing depends on it.
    fn tensor<T: Copy + Into<f64>>(&self, what: &str, number: usize, ours: &[T], rows: &mut Vec<Row>) {
        let (Stored { name, order }, _) = &self.tensors[number];
        let table = Table::new(&self.config);
        let parameter = &table.parameters[number];
        let (count, cols) = rows_of(parameter.rows, parameter.cols, parameter.vector);
        if parameter.name.ends_with(".attn.c_attn.bias") {
            let size = ours.iter().map(|&x| x.into() * x.into()).sum::<f64>().sqrt();
            for (part, values) in self.bias_parts(ours) {
                if !values.is_empty() && (what == "gradient" || part != "k") {
                    rows.push(self.row(&format!("{what}/{name}.{part}"), &values, Some(size)));
                }
            }
            return;
        }
        let theirs: Vec<T> =
            (0..count).flat_map(|row| ours[order.ours(row) * cols..][..cols].iter().copied()).collect();
        rows.push(self.row(&format!("{what}/{name}"), &theirs, None));
    }

    /// Queries, keys that positions turn, other keys, values.
    fn bias_parts<T: Copy>(&self, bias: &[T]) -> [(&'static str, Vec<T>); 4] {
        let (turned, size) = (self.config.rotary_dims(), self.config.head_size());
        let [q, k, v] = [0, 1, 2].map(|part| &bias[part * bias.len() / 3..][..bias.len() / 3]);
        let (mut moving, mut still) = (Vec::new(), Vec::new());
        for head in k.chunks(size) {
            moving.extend_from_slice(&head[..turned]);
            still.extend_from_slice(&head[turned..]);
        }
        [("q", q.to_vec()), ("turned", moving), ("k", still), ("v", v.to_vec())]
    }

    /// Everything that is compared.
    fn rows(&self, device: &Device) -> Vec<Row> {
        let mut trainer = self.trainer(device);
        let mut rows = vec![self.row("logits", &logits(&mut trainer, &self.batch(0)), None)];
        for (number, (_, gradient)) in trainer.gradients(&[self.batch(0)]).unwrap().gradients.iter().enumerate() {
            self.tensor("gradient", number, gradient, &mut rows);
        }
        let mut losses = Vec::new();
        let mut norms = Vec::new();
        for step in 0..self.values("loss").len() as u64 {
            let result = trainer.step(step + 1, LR, &[self.batch(step)]).unwrap();
            losses.push(result.loss);
            norms.push(result.grad_norm);
        }
        rows.push(self.row("loss", &losses, None));
        rows.push(self.row("grad_norm", &norms, None));
        for number in 0..trainer.store().tensors().len() {
            let weight = trainer.store().read_f64(number, Role::Weight).unwrap();
            self.tensor("weight", number, &weight, &mut rows);
        }
        rows
    }
}

/// Rows and columns of a tensor, whose elements are its rows where it is a vector.
fn rows_of(rows: usize, cols: usize, vector: bool) -> (usize, usize) {
    if vector { (cols, 1) } else { (rows, cols) }
}

/// All logits of a micro-batch, row by row.
fn logits(trainer: &mut Trainer, batch: &Micro) -> Vec<f64> {
    let (device, vocabulary) = (trainer.device().clone(), trainer.model().config().vocab_size);
    let mut all = vec![f64::NAN; batch.inputs.len() * vocabulary];
    let mut take = |_: usize, first: usize, chunk: &gaufre::program::Matrix| {
        let values = chunk.download_f64(&device)?;
        for (row, values) in all.chunks_mut(vocabulary).zip(values.chunks(chunk.cols)) {
            row[first..first + chunk.cols].copy_from_slice(values);
        }
        Ok(())
    };
    trainer.logits(std::slice::from_ref(batch), &mut take).unwrap();
    all
}

/// Finaliser of SplitMix64 (Steele, Lea, Flood 2014).
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// A multiple of 2^-12 in -1/2 .. 1/2.
fn noise(key: u64, index: u64) -> f64 {
    (mix((key << 32) + index) >> 52) as f64 / 4096.0 - 0.5
}

/// 64 sums of all elements, each with its own signs: summed for each value of each byte of the signs first.
fn sketch<T: Copy + Into<f64>>(values: &[T]) -> Vec<f64> {
    let mut tables = [[0.0; 256]; SUMS / 8];
    for (i, &x) in values.iter().enumerate() {
        for (table, byte) in tables.iter_mut().zip(mix((0xffff << 32) + i as u64).to_le_bytes()) {
            table[usize::from(byte)] += x.into();
        }
    }
    let sum = |k: usize| {
        tables[k / 8].iter().enumerate().map(|(byte, x)| if byte >> (k % 8) & 1 == 1 { *x } else { -x }).sum()
    };
    (0..SUMS).map(sum).collect()
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt()
}

/// Every quantity of the golden was compared, and lies within what is allowed.
fn assert_within(golden: &Golden, rows: &[Row], what: &str) {
    let noise = |name: &&str| name.starts_with("weight/") && name.ends_with(".bias.k");
    let keys = golden.file.names().into_iter().filter(noise).count();
    let quantities = golden.file.len() / 2;
    assert_eq!(rows.len(), quantities - keys, "{what}: all but the key parts after the steps");
    assert_rows(rows, what);
}

/// Every row lies within what is allowed; says which came nearest to its bound.
fn assert_rows(rows: &[Row], what: &str) {
    let worst = rows.iter().max_by(|a, b| (a.error / a.allowed).total_cmp(&(b.error / b.allowed))).unwrap();
    println!(
        "{what}: {} quantities, worst {} at {:.2} of its bound",
        rows.len(),
        worst.name,
        worst.error / worst.allowed
    );
    let bad: Vec<String> = rows
        .iter()
        .filter(|row| !(row.error <= row.allowed))
        .map(|row| format!("{}: {:e} from PyTorch's f64, {:e} allowed", row.name, row.error, row.allowed))
        .collect();
    assert!(bad.is_empty(), "{what}:\n{}", bad.join("\n"));
}

#[test]
fn every_device_agrees_with_pytorch() {
    for device in rig::devices("every_device_agrees_with_pytorch") {
        for (name, bytes) in [("wide", WIDE), ("deep", DEEP)] {
            let golden = Golden::new(bytes);
            assert_within(&golden, &golden.rows(&device), &format!("{} {name}", device.name()));
        }
    }
}

/// In f64 the two agree to far less than one rounding of f32, which is what the oracle's parameters (epsilon, the scale of
/// attention) still have: what is computed is the same function, not a near one.
#[test]
fn the_oracle_is_pytorch_in_f64() {
    let device = Device::oracle().unwrap();
    for bytes in [WIDE, DEEP] {
        let golden = Golden::new(bytes);
        let mut trainer = golden.trainer(&device);
        let error = golden.row("logits", &logits(&mut trainer, &golden.batch(0)), None).error;
        let size = golden.values("logits/distance")[1];
        assert!(error <= EPS * size, "logits: {error:e} of {size:e}");
    }
}

/// The comparison goes red when one weight in a thousand is a thousandth off, and on NaN.
#[test]
fn a_planted_fault_is_found() {
    let golden = Golden::new(DEEP);
    let mut trainer = golden.trainer(&Device::host(2).unwrap());
    let mut ours = logits(&mut trainer, &golden.batch(0));
    let good = golden.row("logits", &ours, None);
    assert!(good.error <= good.allowed);
    ours.iter_mut().step_by(1000).for_each(|x| *x *= 1.001);
    let bad = golden.row("logits", &ours, None);
    assert!(bad.error > 10.0 * bad.allowed, "{:e} {:e}", bad.error, bad.allowed);
    ours[7] = f64::NAN;
    let bad = golden.row("logits", &ours, None);
    assert!(!(bad.error <= bad.allowed));
}
