//! Trains a tiny model on characters and lets it write.
//!
//! `cargo run --release --example 04_train_text -- [DEVICE] [TEXT FILE]`; without a file: on this very text.

use gaufre::data::{Batches, Order, Tokenizer};
use gaufre::device::Device;
use gaufre::model::{Config, Shape};
use gaufre::train::{Generation, Sampling, Setup, Trainer};

const STEPS: u64 = 150;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let device = Device::open(arguments.next().as_deref().unwrap_or("auto"), 0)?;
    println!("{}", device.why());

    // Text to tokens, tokens to batches: batch n is a function of the seed and n alone.
    let text = match arguments.next() {
        Some(file) => std::fs::read_to_string(file)?,
        None => include_str!("04_train_text.rs").to_owned(),
    };
    let tokenizer = Tokenizer::characters(&text);
    let ids = tokenizer.encode(&text)?;
    let tokens = ids.clone().into();
    let shape = Shape { batch: 8, seq_len: 32, micro_batches: 1 };
    let batches = Batches::new(&tokens, shape.into(), Order::Shuffled, 1);

    // A model of the GPT-2 family: presets by `model::preset("gpt2")`, or written down like this.
    let model = Config::parse("tiny", "layers = 2\nheads = 4\nd_model = 64\ncontext = 32")?;
    let model = model.with_vocabulary(tokenizer.vocab_size())?;
    let mut trainer = Trainer::new(device, Setup::new(model, shape))?;

    let mut losses = Vec::new();
    for step in 1..=STEPS {
        let result = trainer.step(step, 3e-3, &[batches.batch(step - 1, 0).into()])?;
        losses.push(result.loss);
        if step == 1 || step % 25 == 0 {
            println!("step {step}: loss {:.3} nats a character, gradient {:.2}", result.loss, result.grad_norm);
        }
    }

    // Equal seeds write equal text.
    let options = Sampling { temperature: 0.5, top_k: None, top_p: None, seed: 1 };
    let mut model = trainer.live()?;
    let mut generation = Generation::new(&mut model, &ids[..8], options);
    let written = (0..160).map(|_| generation.token()).collect::<Result<Vec<u32>, _>>()?;
    println!("---\n{}{}\n---", tokenizer.decode(&ids[..8])?, tokenizer.decode(&written)?);

    let (first, last) = (losses[0], losses[losses.len() - 1]);
    // Written so that NaN fails.
    if !(last < 0.75 * first) {
        return Err(format!("nothing was learnt: loss {first} to {last}").into());
    }
    println!("ok: loss {first:.3} to {last:.3}");
    Ok(())
}
