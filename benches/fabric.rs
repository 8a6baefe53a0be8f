//! What the emulated fabric costs: one training step fused and in supersteps, by program and whole, in one run. One JSON
//! object a line; `ratio` is superstep over fused.
//! `cargo bench --bench fabric -- [--device NAME] [--wafer 8x8] [--rounds N]`

use std::collections::BTreeMap;
use std::time::Instant;

use gaufre::device::Device;
use gaufre::model::{Config, Micro, Shape};
use gaufre::program::initial::word;
use gaufre::program::schedule::{Routing, Schedule};
use gaufre::train::{Setup, Trainer};
use gaufre::wafer::Wafer;

/// Two layers of a small GPT, four sequences of 128 tokens.
const MODEL: &str = "layers = 2\nheads = 4\nd_model = 256\ncontext = 128\nvocab_size = 512\n";
const SHAPE: Shape = Shape { batch: 4, seq_len: 128, micro_batches: 1 };

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let option = |name: &str| arguments.iter().position(|a| a == name).and_then(|i| arguments.get(i + 1));
    let name = option("--device").map_or("host", String::as_str);
    let rounds: usize = option("--rounds").map_or(Ok(3), |n| n.parse())?;
    let (width, height) = option("--wafer").map_or("8x8", String::as_str).split_once('x').ok_or("--wafer is 8x8")?;
    let wafer = Wafer::new(width.parse()?, height.parse()?);
    let fused = measure(name, Schedule::Fused, Routing::Broadcast, &wafer, rounds)?;
    for routing in [Routing::Broadcast, Routing::WeightStream] {
        let stepped = measure(name, Schedule::Superstep, routing, &wafer, rounds)?;
        for (program, seconds) in &stepped.1 {
            let Some(base) = fused.1.get(program) else { continue };
            say(name, &wafer, routing, program, *base, *seconds)?;
        }
        say(name, &wafer, routing, "whole step", fused.0, stepped.0)?;
    }
    Ok(())
}

/// Prints one line.
fn say(device: &str, wafer: &Wafer, routing: Routing, what: &str, fused: f64, superstep: f64) -> Outcome<()> {
    let line = serde_json::json!({
        "device": device,
        "wafer": format!("{}x{}", wafer.width, wafer.height),
        "route": routing,
        "what": what,
        "fused_ms": 1e3 * fused,
        "superstep_ms": 1e3 * superstep,
        "ratio": superstep / fused,
    });
    println!("{line}");
    Ok(())
}

/// Seconds of a step, and of each program in one: the least of some rounds after one that warms up.
fn measure(
    name: &str,
    schedule: Schedule,
    routing: Routing,
    wafer: &Wafer,
    rounds: usize,
) -> Outcome<(f64, BTreeMap<&'static str, f64>)> {
    let model = Config::parse("small", MODEL)?;
    let vocabulary = model.vocab_size as u32;
    let ids = |key: u64| (0..SHAPE.rows() as u64).map(|i| word(key, i) % vocabulary).collect();
    let batches = [Micro { inputs: ids(1), targets: ids(2) }];
    let setup = || Setup { schedule, routing, wafer: wafer.clone(), ..Setup::new(model.clone(), SHAPE) };
    let mut trainer = Trainer::new(Device::open(name, 0)?, setup())?;
    let mut step = 0;
    let mut timed = |trainer: &mut Trainer| -> Outcome<f64> {
        step += 1;
        let begun = Instant::now();
        trainer.step(step, 1e-3, &batches)?;
        trainer.device().wait()?;
        Ok(begun.elapsed().as_secs_f64())
    };
    timed(&mut trainer)?;
    let mut whole = f64::INFINITY;
    for _ in 0..rounds {
        whole = whole.min(timed(&mut trainer)?);
    }
    let mut trainer = Trainer::new(Device::open(name, 0)?.with_ledger(), setup())?;
    timed(&mut trainer)?;
    trainer.device().take_ledger();
    let mut programs: BTreeMap<&'static str, f64> = BTreeMap::new();
    for _ in 0..rounds {
        timed(&mut trainer)?;
        for entry in trainer.device().take_ledger().programs() {
            let least = programs.entry(entry.program).or_insert(f64::INFINITY);
            *least = least.min(entry.seconds);
        }
    }
    Ok((whole, programs))
}
