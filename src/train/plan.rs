//! The plan of a run, before it: a training step on a blank device, which takes and counts everything and computes nothing;
//! and what that step would take on a wafer and here. It must never know how a plan is shown.

use super::config::{Config, Size};
use super::hugging_face::HuggingFace;
use super::run::{self, TrainError};
use super::step::{Setup, SetupError, Trainer};
use super::{needs, peaks};
use crate::device::{Class, Counters, Device, DeviceError, Ledger, Limits, SramUse, expand, workgroup_variables};
use crate::model::{Activations, Config as Model, Gpt, Micro, Pass, Recompute, Shape, Table, Visit};
use crate::program::matmul::NT;
use crate::program::schedule::Schedule;
use crate::report::plan as told;
use crate::store::plan::Need;
use crate::store::role::{ALL, array};
use crate::store::{self, Format, Placement, Role, Spill, StoreError, Tensor};
use crate::wafer::{Bound, Machine, Step, Tile, Visit as Streamed, WSE2, Work};

/// What steps would run, in closed form.
#[derive(Clone, Debug)]
pub struct Counted {
    /// The first step: what was never updated is made up from its formula there.
    pub first: Ledger,
    /// Every step after it.
    pub later: Ledger,
    /// What a device would have counted in a later step; its levels of memory are those of the whole run.
    pub counters: Counters,
}

/// Counts the steps of a trainer on a blank device. A store on a disk is counted as one in host memory, whose panels take the
/// same slots.
///
/// # Errors
/// As [`Trainer::new`]: what a run would be refused for.
///
/// # Panics
/// On a device that is not blank, whose results would be of no use.
pub fn count(blank: &Device, setup: &Setup) -> Result<Counted, SetupError> {
    assert!(blank.is_blank(), "a plan is made on a blank device");
    let mut setup = setup.clone();
    let spill = setup.spill();
    if setup.placement == Placement::Disk {
        setup.placement = Placement::Ram;
        setup.spill = Some(if spill == Spill::Disk { Spill::Ram } else { spill });
    }
    let (shape, vocabulary) = (setup.shape, setup.model.vocab_size as u32);
    let mut trainer = Trainer::new(blank.clone(), setup)?;
    let ids = |shift: u32| (0..shape.rows() as u32).map(|i| (i + shift) % vocabulary).collect::<Vec<_>>();
    let batches = vec![Micro { inputs: ids(0), targets: ids(1) }; shape.micro_batches];
    blank.take_ledger();
    trainer.step(1, 1e-3, &batches)?;
    let (first, before) = (blank.take_ledger(), blank.counters());
    trainer.step(2, 1e-3, &batches)?;
    Ok(Counted { first, later: blank.take_ledger(), counters: blank.counters().since(&before) })
}

/// Ids of the vocabulary that a model without one of its own is counted with: those of --tokenizer byte.
const OPEN_VOCABULARY: usize = 256;

/// Plans a run as it is configured; data is not looked at.
///
/// # Errors
/// [`TrainError`]: what a run would be refused for before its first step, but for memory or disk that is not free now, which
/// the plan says.
pub fn of(config: &Config) -> Result<told::Plan, TrainError> {
    // Data takes no part in a plan.
    Config { data: vec![".".into()], ..config.clone() }.check()?;
    let init = config.init.as_deref().map(HuggingFace::open).transpose()?;
    let model = run::model_of(config, init.as_ref())?;
    let open = model.vocab_size == 0;
    let model = if open { model.with_vocabulary(OPEN_VOCABULARY)? } else { model };
    let shape = config.shape(model.context)?;
    let device = Device::open(&config.device, config.threads)?;
    let sram_bytes = config.wafer.sram(device.limits());
    let device = device.with_tile_sram(sram_bytes);
    let tiles = config.wafer.wafer(config.defects.as_ref(), &model, &shape)?;
    let setup = run::setup(config, model, shape, tiles, &device);
    let needs = needs::needs(config, &setup, &device)?;
    let machine = machine(config, &setup, sram_bytes);
    let (plans, too_large) = Counts::of(&device, &setup)?;
    let too_large = too_large.map(|e| format!("{e}; lower --batch-size or --seq-len"));
    let sram = sram(&plans.kernels, &machine)?;
    let programs = programs(&plans);
    let messages = programs.iter().map(|p| p.messages).sum();
    let micro_tokens = (setup.shape.batch * setup.shape.seq_len) as u64;
    let on_wafer = on_wafer(&setup, &machine, &plans.micro);
    let pass_bytes = Table::new(&setup.model).count() * value_bytes(&setup);
    Ok(told::Plan {
        model: setup.model.name.clone(),
        parameters: needs.parameters,
        open_vocabulary: open.then_some(OPEN_VOCABULARY),
        asked: asked(config),
        micro_tokens,
        micro_batches: setup.shape.micro_batches as u64,
        seq_len: setup.shape.seq_len as u64,
        wafer: wafer(config, &setup, &machine),
        device: crate::report::device::line(&device),
        refused: needs::check(config, &setup, &device, false).err().map(|e| e.to_string()).or(too_large),
        roles: roles(&setup),
        tensors: tensors(&setup, &device)?,
        memory: memory(&needs),
        largest: largest(config, &setup, &device, &machine, &sram),
        map: map(&plans.fabric, &machine, &sram),
        sram,
        programs,
        stream: told::Stream {
            pass_bytes,
            pass_seconds: machine.off_wafer_seconds(pass_bytes),
            disk_bytes: needs.traffic,
        },
        on_wafer,
        here: here(config, &setup, &device, &needs, messages)?,
    })
}

/// The ledgers that a plan is made of.
struct Counts {
    /// Of a step as it is configured.
    here: Ledger,
    /// Of a step in supersteps on the wafer.
    fabric: Ledger,
    /// Of one micro-batch, weights whole on the device.
    micro: Ledger,
    /// Of one layer, in the shapes that tiles have: for their kernels.
    kernels: Ledger,
}

impl Counts {
    /// The ledgers, and why the device could not hold the step, where a buffer is too large for it.
    fn of(device: &Device, setup: &Setup) -> Result<(Counts, Option<SetupError>), SetupError> {
        let limits = Limits { binding_bytes: u64::MAX, buffer_bytes: u64::MAX, ..device.limits().clone() };
        let on = |class: Class, setup: &Setup| {
            Ok::<_, SetupError>(count(&Device::blank(class, limits.clone()), setup)?.later)
        };
        let (here, too_large) = match count(&device.blank_like(), setup) {
            Ok(counted) => (counted.later, None),
            Err(error) if is_too_large(&error) => (on(device.class(), setup)?, Some(error)),
            Err(error) => return Err(error),
        };
        let whole = one_micro_batch(setup);
        // A tile is a workgroup: what native code needs instead says nothing about one.
        let tiles = if device.class() == Class::Native { Class::Gpu } else { device.class() };
        let counts = Counts {
            here,
            fabric: on(device.class(), &Setup { schedule: Schedule::Superstep, ..setup.clone() })?,
            micro: on(device.class(), &whole)?,
            kernels: on(tiles, &one_layer(&whole))?,
        };
        Ok((counts, too_large))
    }
}

/// Whether a buffer is larger than the device binds.
fn is_too_large(error: &SetupError) -> bool {
    use DeviceError::TooLarge;
    matches!(error, SetupError::Device(TooLarge { .. }) | SetupError::Store(StoreError::Device(TooLarge { .. })))
}

/// One micro-batch, fused, with all weights on the device.
fn one_micro_batch(setup: &Setup) -> Setup {
    Setup {
        shape: Shape { micro_batches: 1, ..setup.shape },
        placement: Placement::Resident,
        device_memory: None,
        spare: None,
        spill: None,
        schedule: Schedule::Fused,
        recompute: if setup.recompute == Recompute::None { Recompute::None } else { Recompute::Layer },
        ..setup.clone()
    }
}

/// The same of a model of one layer, whose programs and buffers are those of all.
fn one_layer(setup: &Setup) -> Setup {
    Setup { model: Model { layers: 1, ..setup.model.clone() }, ..setup.clone() }
}

/// The machine that is asked for, as far as its tiles work, or else a WSE-2 of as many tiles.
fn machine(config: &Config, setup: &Setup, tile_sram_bytes: u32) -> Machine {
    let whole = match config.wafer.size {
        Size::Machine(machine) => machine,
        Size::Auto | Size::Sides(..) => &WSE2,
    };
    let (width, height) = (setup.wafer.width.into(), setup.wafer.height.into());
    Machine { width, height, tile_sram_bytes: tile_sram_bytes.into(), ..whole.clone() }
}

fn wafer(config: &Config, setup: &Setup, machine: &Machine) -> told::Wafer {
    let name = match config.wafer.size {
        Size::Machine(_) => machine.name.to_owned(),
        Size::Auto | Size::Sides(..) => format!("{} x {} tiles of a {}", machine.width, machine.height, machine.name),
    };
    let mesh = setup.wafer.mesh();
    let (wide, high) = mesh.size();
    let works = |at: u32| mesh.works(Tile { x: at % wide, y: at / wide });
    told::Wafer {
        name,
        width: machine.width,
        height: machine.height,
        placed_on: (wide.into(), high.into()),
        dead: if mesh.is_whole() { 0 } else { (0..wide * high).filter(|at| !works(*at)).count() as u64 },
        tile_sram_bytes: machine.tile_sram_bytes,
        clock_hz: machine.clock_hz,
        link_bytes_per_second: machine.off_wafer_bytes_per_second,
    }
}

/// Bytes of a weight on the link.
fn value_bytes(setup: &Setup) -> u64 {
    if setup.param_dtype == Format::F32 { 4 } else { 2 }
}

/// What was asked for of what changes a plan.
fn asked(config: &Config) -> Vec<(&'static str, String)> {
    let table = toml::Table::try_from(config).expect("a configuration is a table");
    let told = |name: &'static str| {
        let value = table.get(&name.replace('-', "_"))?;
        Some((name, value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
    };
    const NAMES: [&str; 20] = [
        "model",
        "init",
        "wafer",
        "defects",
        "route",
        "schedule",
        "device",
        "batch-size",
        "seq-len",
        "grad-accum",
        "store",
        "in-place",
        "device-memory",
        "param-dtype",
        "master-weights",
        "optimizer",
        "state-dtype",
        "clip",
        "recompute",
        "spill",
    ];
    NAMES.into_iter().filter_map(told).collect()
}

fn roles(setup: &Setup) -> Vec<told::Role> {
    let tensors = Gpt::tensors(&setup.model, setup.seed);
    let training = Some(setup.optimizer.training(setup.master));
    let role = |role: Role| {
        let kept = |t: &Tensor| array(role, t.rows, t.cols, t.vector, setup.param_dtype, training);
        let kept: Vec<_> = tensors.iter().filter_map(kept).collect();
        let format = toml::Value::try_from(kept.first()?.format).expect("a format is a word");
        Some(told::Role {
            name: match role {
                Role::Weight => "weights",
                Role::Gradient => "gradients",
                Role::State1 => "first state",
                Role::State2 => "second state",
                Role::Master => "master copy",
            },
            format: format.as_str().expect("a format is a word").into(),
            bytes: kept.iter().map(|a| a.format.bytes(a.rows, a.cols) as u64).sum(),
        })
    };
    ALL.into_iter().filter_map(role).collect()
}

/// Alike tensors of all layers as one row, with where their blocks lie as operands of a product by rows.
fn tensors(setup: &Setup, device: &Device) -> Result<Vec<told::Tensor>, TrainError> {
    let stored = Gpt::tensors(&setup.model, setup.seed);
    let need = Need {
        placement: setup.placement,
        weights: setup.param_dtype,
        training: Some(setup.optimizer.training(setup.master)),
        budget: setup.budget(&stored)?,
    };
    let cuts = store::plan::Plan::new(device.limits(), &stored, need)?.arrays;
    let variant = NT.kernel.variant(device.class());
    let block = (u64::from(variant.get("TN")), u64::from(variant.get("KB")));
    let (width, height) = (u64::from(setup.wafer.width), u64::from(setup.wafer.height));
    let mut rows: Vec<told::Tensor> = Vec::new();
    for (parameter, kept) in Table::new(&setup.model).parameters.iter().zip(&cuts) {
        let star = |part: &str| if part.parse::<usize>().is_ok() { "*".to_owned() } else { part.to_owned() };
        let name = parameter.name.split('.').map(star).collect::<Vec<_>>().join(".");
        let shape = (parameter.rows as u64, parameter.cols as u64);
        let bytes = parameter.count() * value_bytes(setup);
        if let Some(row) = rows.iter_mut().find(|row| row.name == name && row.shape == shape) {
            row.count += 1;
            row.parameters += parameter.count();
            row.weight_bytes += bytes;
            continue;
        }
        // Each panel begins on the first column of tiles. A vector has a value an output.
        let (panels, rows_of) = kept[0].map_or((1, shape.0), |(_, cut)| (cut.count() as u64, cut.panel(0).rows as u64));
        let (outputs, inputs) = if parameter.vector { (shape.1, 1) } else { (rows_of, shape.1) };
        let blocks = (outputs.div_ceil(block.0), inputs.div_ceil(block.1));
        rows.push(told::Tensor {
            name,
            count: 1,
            shape,
            parameters: parameter.count(),
            weight_bytes: bytes,
            panels,
            block: (block.0.min(outputs), block.1.min(inputs)),
            blocks,
            tiles: (blocks.0.min(width), blocks.1.min(height)),
            on_a_tile: panels * blocks.0.div_ceil(width) * blocks.1.div_ceil(height),
        });
    }
    Ok(rows)
}

fn memory(needs: &needs::Needs) -> Vec<told::Memory> {
    let places = [("device", needs.device), ("host memory", needs.ram), ("disk", needs.disk)];
    let there = |(place, bytes): (&'static str, needs::Bytes)| {
        (bytes.needed > 0).then_some(told::Memory { place, needed: bytes.needed, available: bytes.available })
    };
    places.into_iter().filter_map(there).collect()
}

/// The largest micro-batches that memory has room for.
fn largest(config: &Config, setup: &Setup, device: &Device, machine: &Machine, sram: &[told::Sram]) -> told::Largest {
    let shape = setup.shape;
    let fits = |batch: u64| {
        let shape = Shape { batch: batch as usize, ..shape };
        let asked = Setup { shape, ..setup.clone() };
        let has_room = needs::needs(config, &asked, device).is_ok_and(|needs| needs.ram.fit() && needs.device.fit());
        has_room && Trainer::new(device.blank_like(), one_layer(&one_micro_batch(&asked))).is_ok()
    };
    let most = i32::MAX as u64 / (shape.seq_len * shape.micro_batches) as u64;
    // Values of a token on the device are f32, those on the wafer of 16 bit.
    let one = Shape { batch: 1, micro_batches: 1, ..shape };
    let kept = setup.recompute == Recompute::None;
    let token_bytes = Activations::bytes(&setup.model, &one, kept, false).div_ceil(2 * shape.seq_len as u64);
    let reserved = sram.iter().map(|s| u64::from(s.workgroup())).max().unwrap_or(0);
    told::Largest {
        here: last(most, fits),
        wafer: machine.tokens_max(token_bytes, reserved) / shape.seq_len as u64,
        token_bytes,
        reserved,
    }
}

/// The last number up to `most` that fits, where all below one that does fit; 0 where 1 does not.
fn last(most: u64, fits: impl Fn(u64) -> bool) -> u64 {
    let (mut good, mut bad) = (0, most + 1);
    while good + 1 < bad {
        let next = if good == 0 {
            1
        } else if bad > most {
            (2 * good).min(most)
        } else {
            good + (bad - good) / 2
        };
        if fits(next) {
            good = next;
            if next == most {
                break;
            }
        } else {
            bad = next;
        }
    }
    good
}

/// What each kernel takes of a tile, the hungriest first.
fn sram(ledger: &Ledger, machine: &Machine) -> Result<Vec<told::Sram>, TrainError> {
    let mut rows = Vec::new();
    for (kernel, variant) in &ledger.kernels {
        let source = expand(kernel, variant)?;
        let used = SramUse::of(kernel, variant, &source)?;
        rows.push(told::Sram {
            program: kernel.name,
            variant: variant.name,
            variables: workgroup_variables(kernel.name, &source)?,
            accumulators: used.accumulators,
            state: used.state,
            total: used.total,
            share: f64::from(used.total) / machine.tile_sram_bytes as f64,
        });
    }
    rows.sort_by_key(|row| (std::cmp::Reverse(row.total), row.program));
    Ok(rows)
}

fn programs(counts: &Counts) -> Vec<told::Program> {
    let fabric = counts.fabric.programs();
    let row = |here: crate::device::Entry| {
        let there = fabric.iter().find(|entry| entry.program == here.program);
        told::Program {
            name: here.program,
            runs: here.runs,
            launches: here.dispatches,
            supersteps: there.map_or(0, |t| t.dispatches),
            messages: there.map_or(0, |t| t.messages),
            bytes: there.map_or(0, |t| t.exchanged_bytes),
            macs: here.work.iter().map(|(work, times)| work.macs() * times).sum(),
        }
    };
    counts.here.programs().into_iter().map(row).collect()
}

/// Which tiles play how much of the programs that a fabric runs.
fn map(ledger: &Ledger, machine: &Machine, sram: &[told::Sram]) -> told::Map {
    let mut played: Vec<(&str, told::Played)> = Vec::new();
    for run in ledger.runs.iter().filter(|run| !matches!(run.work, Work::Local { .. })) {
        let (blocks, work) =
            ((run.blocks.0.into(), run.blocks.1.into()), (run.work.macs() + run.work.operations()) as f64);
        match played.iter_mut().find(|(program, p)| *program == run.program && p.blocks == blocks) {
            Some((_, p)) => (p.work, p.bytes) = (p.work + work, p.bytes + run.exchanged_bytes as f64),
            None => {
                let sram = sram.iter().find(|s| s.program == run.program).map_or(0.0, |s| s.share);
                played.push((run.program, told::Played { blocks, work, sram, bytes: run.exchanged_bytes as f64 }));
            }
        }
    }
    let played: Vec<told::Played> = played.into_iter().map(|(_, p)| p).collect();
    told::Map::of((machine.width, machine.height), &played)
}

/// A step on the wafer: what a micro-batch does in each visit, and the weights that pass for it.
fn on_wafer(setup: &Setup, machine: &Machine, micro: &Ledger) -> told::OnWafer {
    let table = Table::new(&setup.model);
    let visits: Vec<Visit> =
        std::iter::once(Visit::Embed).chain((0..setup.model.layers).map(Visit::Layer)).chain([Visit::Head]).collect();
    let streamed = |visit: &Visit| {
        let owned: u64 = table.owned(*visit).map(|i| table.parameters[i].count()).sum();
        // A tied head has the table pass a second time.
        let tied = if *visit == Visit::Head && setup.model.tied { table.parameters[table.tokens].count() } else { 0 };
        Streamed {
            weight_bytes: (owned + tied) * value_bytes(setup),
            forward: works(micro, &visit.phase(Pass::Forward)),
            backward: works(micro, &visit.phase(Pass::Backward)),
        }
    };
    let step = Step {
        visits: visits.iter().map(streamed).collect(),
        micro_tokens: (setup.shape.batch * setup.shape.seq_len) as u64,
        micro_batches: setup.shape.micro_batches as u64,
    };
    let time = machine.step(&step);
    let part = |at: usize, backward: bool| {
        let of = &step.visits[at];
        let works = if backward { &of.backward } else { &of.forward };
        told::Visit {
            name: visits[at].phase(if backward { Pass::Backward } else { Pass::Forward }),
            backward,
            link_seconds: machine.off_wafer_seconds(of.weight_bytes),
            wafer_seconds: machine.seconds(works.iter().map(|work| machine.time(work).cycles()).sum()),
        }
    };
    let forward = (0..visits.len()).map(|at| part(at, false));
    told::OnWafer {
        compute_seconds: time.compute_seconds,
        fabric_seconds: time.fabric_seconds,
        link_seconds: time.link_seconds,
        total_seconds: time.total_seconds,
        tokens_per_second: time.tokens_per_second,
        bound: match time.bound {
            Bound::Compute => "computing",
            Bound::Fabric => "the fabric",
            Bound::Link => "weights streaming",
        },
        visits: forward.chain((0..visits.len()).rev().map(|at| part(at, true))).collect(),
    }
}

/// The works of a phase. Panels are a matter of this machine: products with panels of one matrix, or of matrices side by
/// side, are one product again.
fn works(ledger: &Ledger, phase: &str) -> Vec<Work> {
    let mut works: Vec<Work> = Vec::new();
    let mut last: Option<(&str, usize)> = None;
    for run in ledger.runs.iter().filter(|run| ledger.phase_of(run) == Some(phase)) {
        let Work::Product { m, n, k } = run.work else {
            // The norm of a panel's gradient is taken between two panels.
            if !run.program.starts_with("grad_norm") {
                last = None;
            }
            works.push(run.work);
            continue;
        };
        let joined = last.filter(|(program, _)| *program == run.program).and_then(|(program, at)| {
            let Work::Product { m: m0, n: n0, k: k0 } = works[at] else { return None };
            let whole = match program {
                "matmul_nt" if (m, k) == (m0, k0) => Work::Product { m, n: n + n0, k },
                "matmul_nn" if (m, n) == (m0, n0) => Work::Product { m, n, k: k + k0 },
                "matmul_tn" if (n, k) == (n0, k0) => Work::Product { m: m + m0, n, k },
                _ => return None,
            };
            Some((at, whole))
        });
        match joined {
            Some((at, whole)) => works[at] = whole,
            None => {
                works.push(run.work);
                last = Some((run.program, works.len() - 1));
            }
        }
    }
    works
}

/// A step here, of what is measured now.
fn here(
    config: &Config,
    setup: &Setup,
    device: &Device,
    needs: &needs::Needs,
    messages: u64,
) -> Result<told::Here, TrainError> {
    let product_flops = device.run(|| peaks::flops(device))?;
    let shape = crate::data::Shape {
        batch_size: setup.shape.batch,
        seq_len: setup.shape.seq_len,
        grad_accum: setup.shape.micro_batches,
    };
    let seconds = peaks::step_flops(&setup.model, &shape) / product_flops;
    let (compute_seconds, stream_seconds) = needs.told(config, seconds, &needs::folder(config)).step_seconds;
    let exchange_seconds = match setup.schedule {
        Schedule::Fused => 0.0,
        Schedule::Superstep => messages as f64 * device.run(|| peaks::message(device))?,
    };
    let total_seconds = (compute_seconds + exchange_seconds).max(stream_seconds);
    let bound = match (stream_seconds >= total_seconds, exchange_seconds > compute_seconds) {
        (true, _) => "the disk",
        (false, true) => "exchange of blocks",
        (false, false) => "computing",
    };
    Ok(told::Here {
        product_flops,
        compute_seconds,
        stream_seconds,
        exchange_seconds,
        total_seconds,
        tokens_per_second: (shape.batch_size * shape.seq_len * shape.grad_accum) as f64 / total_seconds,
        bound,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_that_fits_is_found() {
        for most in [1, 2, 7, 100, 1 << 40] {
            for limit in [0, 1, 2, 3, 6, 7, 99, 100, 12_345] {
                assert_eq!(last(most, |n| n <= limit), limit.min(most), "{limit} of {most}");
            }
        }
    }

    #[test]
    fn panels_are_joined_and_matrices_are_not() {
        let device = Device::blank(Class::Native, Device::host(1).unwrap().limits().clone());
        let model = Model::parse("m", "layers = 1\nheads = 2\nd_model = 16\ncontext = 8\nvocab_size = 11").unwrap();
        let setup = Setup::new(model, Shape { batch: 1, seq_len: 8, micro_batches: 1 });
        let ledger = count(&device, &setup).unwrap().later;
        let products = |phase: &str| {
            let all = works(&ledger, phase);
            all.into_iter().filter(|work| matches!(work, Work::Product { .. })).collect::<Vec<_>>()
        };
        let forward = [(48, 16), (16, 16), (64, 16), (16, 64)].map(|(n, k)| Work::Product { m: 8, n, k });
        assert_eq!(products("layer 0, forward"), forward);
        assert_eq!(products("layer 0, backward").len(), 8);
        // Two panels of one matrix, the norm of the first between them.
        let mut cut = ledger.clone();
        let at = cut.runs.iter().position(|run| run.work == forward[0]).unwrap();
        let mut halves = vec![cut.runs[at].clone(), cut.runs[at].clone(), cut.runs[at].clone()];
        halves[0].work = Work::Product { m: 8, n: 32, k: 16 };
        (halves[1].program, halves[1].work) = ("grad_norm_partial", Work::Local { elements: 1 });
        halves[2].work = Work::Product { m: 8, n: 16, k: 16 };
        cut.runs.splice(at..=at, halves);
        let joined = works(&cut, "layer 0, forward");
        assert!(joined.contains(&forward[0]) && joined.len() == works(&ledger, "layer 0, forward").len() + 1);
    }
}
