//! The plan against what a device does: a training step on a blank device and one on a real device write down the same runs,
//! launches, messages and bytes of each program, and the trace of the real one sums to them.

use crate::rig;
use gaufre::device::{Device, Entry, Ledger};
use gaufre::model::{Config, Shape};
use gaufre::program::schedule::{Routing, Schedule};
use gaufre::report::trace::Trace;
use gaufre::store::{Format, Placement};
use gaufre::train::conformance::tiny;
use gaufre::train::{Setup, Trainer, plan};
use gaufre::wafer::{Cost, Defects, Wafer, Work};

const SCHEDULES: [(Schedule, (u32, u32)); 3] =
    [(Schedule::Fused, (8, 8)), (Schedule::Superstep, (3, 2)), (Schedule::Superstep, (8, 8))];

/// Every device that is there, with a ledger.
fn devices(test: &str) -> Vec<Device> {
    rig::devices(test).into_iter().map(Device::with_ledger).collect()
}

/// The ledgers of two training steps, and that the device's own counters are their sum.
fn measured(device: &Device, setup: &Setup) -> [Ledger; 2] {
    let mut trainer = Trainer::new(device.clone(), setup.clone()).unwrap();
    let batches = tiny::batches(setup.model.vocab_size as u32);
    device.take_ledger();
    [1, 2].map(|step| {
        let before = device.counters();
        trainer.step(step, 1e-3, &batches[..setup.shape.micro_batches]).unwrap();
        let (counted, ledger) = (device.counters().since(&before), device.take_ledger());
        let Cost { dispatches, messages, exchanged_bytes } = ledger.total();
        let own = (counted.dispatches, counted.messages, counted.exchanged_bytes);
        assert_eq!((dispatches, messages, exchanged_bytes), own, "what ran outside of the ledger");
        ledger
    })
}

fn counts(ledger: &Ledger) -> Vec<(&'static str, u64, Cost)> {
    ledger.programs().iter().map(Entry::counts).collect()
}

/// Kinds of work that were done, and how often.
fn work(ledger: &Ledger) -> Vec<Vec<(Work, u64)>> {
    ledger.programs().into_iter().map(|entry| entry.work).collect()
}

fn setup(model: &Config, (schedule, (width, height)): (Schedule, (u32, u32))) -> Setup {
    tiny::setup(model, schedule, Wafer::new(width, height))
}

#[test]
fn the_plan_of_each_family_is_what_a_device_counts() {
    for device in devices("plan against trace") {
        for model in tiny::models() {
            for run in SCHEDULES {
                let setup = setup(&model, run);
                let planned = plan::count(&device.blank_like(), &setup).unwrap();
                let measured = measured(&device, &setup);
                for (planned, measured) in [&planned.first, &planned.later].into_iter().zip(&measured) {
                    let place = format!("{} {run:?} on {}", model.name, device.name());
                    assert_eq!(counts(planned), counts(measured), "{place}");
                    assert_eq!(work(planned), work(measured), "{place}");
                    assert_eq!(planned.phases, measured.phases, "{place}");
                }
            }
        }
    }
}

#[test]
fn other_routes_and_dead_tiles_are_planned_too() {
    let device = Device::host(2).unwrap().with_ledger();
    let flawed = Wafer::with_defects(5, 4, &Defects::random(5, 4, 0.1, 3)).unwrap();
    assert!(!flawed.mesh().is_whole());
    for (model, wafer, routing) in [
        (0, flawed.clone(), Routing::Broadcast),
        (0, flawed, Routing::WeightStream),
        (1, Wafer::new(3, 2), Routing::WeightStream),
    ] {
        let setup = Setup { wafer, routing, ..setup(&tiny::models()[model], SCHEDULES[1]) };
        let planned = plan::count(&device.blank_like(), &setup).unwrap();
        let measured = measured(&device, &setup);
        assert_eq!(counts(&planned.first), counts(&measured[0]), "{routing:?}");
        assert_eq!(counts(&planned.later), counts(&measured[1]), "{routing:?}");
        assert_eq!(work(&planned.later), work(&measured[1]), "{routing:?}");
        assert!(measured[1].runs.iter().map(|run| run.hops).sum::<u64>() > 0);
    }
}

#[test]
fn a_plan_for_something_else_differs() {
    let device = Device::host(1).unwrap().with_ledger();
    let model = &tiny::models()[0];
    let setup = setup(model, SCHEDULES[1]);
    let counted = counts(&measured(&device, &setup)[1]);
    let planned = |setup: &Setup| counts(&plan::count(&device.blank_like(), setup).unwrap().later);
    assert_eq!(planned(&setup), counted);
    let shape = setup.shape;
    for other in [
        Setup { wafer: Wafer::new(2, 2), ..setup.clone() },
        Setup { schedule: Schedule::Fused, ..setup.clone() },
        Setup { shape: Shape { batch: shape.batch + 1, ..shape }, ..setup.clone() },
        Setup { shape: Shape { micro_batches: 1, ..shape }, ..setup.clone() },
    ] {
        assert_ne!(planned(&other), counted);
    }
}

#[test]
fn memory_that_is_planned_is_memory_that_is_taken() {
    for device in rig::devices("planned memory") {
        for (schedule, placement) in [
            (SCHEDULES[0], Placement::Resident),
            (SCHEDULES[1], Placement::Resident),
            (SCHEDULES[0], Placement::Ram),
            (SCHEDULES[1], Placement::Ram),
        ] {
            let setup = Setup { placement, param_dtype: Format::Bf16, ..setup(&tiny::models()[1], schedule) };
            let before = device.counters().allocated_bytes;
            let blank = device.blank_like();
            let planned = plan::count(&blank, &setup).unwrap();
            let mut trainer = Trainer::new(device.clone(), setup.clone()).unwrap();
            for step in [1, 2] {
                trainer.step(step, 1e-3, &tiny::batches(setup.model.vocab_size as u32)).unwrap();
            }
            let taken = device.counters().allocated_bytes - before - trainer.fabric().box_bytes();
            assert_eq!(planned.counters.allocated_bytes, taken, "{schedule:?} {placement:?} on {}", device.name());
        }
    }
}

#[test]
fn a_store_that_streams_is_planned_too() {
    let device = Device::host(2).unwrap().with_ledger();
    for memory in [None, Some(4 << 20)] {
        let base = setup(&tiny::models()[0], SCHEDULES[0]);
        let setup = Setup { placement: Placement::Ram, device_memory: memory, ..base };
        let planned = plan::count(&device.blank_like(), &setup).unwrap();
        let [first, later] = measured(&device, &setup);
        assert_eq!(counts(&planned.first), counts(&first), "{memory:?}");
        assert_eq!(counts(&planned.later), counts(&later), "{memory:?}");
    }
}

#[test]
fn a_trace_holds_every_run_and_sums_to_the_ledger() {
    let device = Device::host(1).unwrap().with_ledger();
    let [_, ledger] = measured(&device, &setup(&tiny::models()[0], SCHEDULES[1]));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace.json");
    let mut trace = Trace::new(&path, vec![("device", "a host".into())]);
    let end = device.ledger_seconds();
    trace.add("step 2", (ledger.runs[0].begun, end), &ledger);
    trace.write().unwrap();
    let json: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(json["otherData"]["device"], "a host");
    let events = json["traceEvents"].as_array().unwrap();
    let of = |kind: &str| events.iter().filter(|e| e["cat"] == *kind).collect::<Vec<_>>();
    let sum = |name: &str| of("program").iter().map(|e| e["args"][name].as_u64().unwrap()).sum::<u64>();
    let total = ledger.total();
    assert_eq!(of("program").len(), ledger.runs.len());
    assert_eq!([sum("supersteps"), sum("messages"), sum("bytes")], {
        let Cost { dispatches, messages, exchanged_bytes } = total;
        [dispatches, messages, exchanged_bytes]
    });
    assert!(total.messages > 0 && total.dispatches > ledger.runs.len() as u64);
    let step = of("step")[0];
    assert_eq!(step["args"]["bytes"], total.exchanged_bytes);
    // Two micro-batches turn at the head, each forward and backward.
    assert_eq!(of("visit").iter().filter(|e| e["name"] == "head, backward").count(), 2);
    // Every event lies inside the step, and those of one kind follow each other.
    let time =
        |e: &serde_json::Value| (e["ts"].as_f64().unwrap(), e["ts"].as_f64().unwrap() + e["dur"].as_f64().unwrap());
    let (begun, ended) = time(step);
    for kind in ["visit", "program"] {
        let times: Vec<(f64, f64)> = of(kind).into_iter().map(time).collect();
        assert!(times.iter().all(|(from, to)| *from >= begun - 0.01 && *to <= ended + 0.01 && from <= to), "{kind}");
        assert!(times.windows(2).all(|w| w[0].1 <= w[1].0 + 0.01), "{kind}");
    }
}

#[test]
fn a_device_without_a_ledger_writes_nothing_down() {
    let device = Device::host(1).unwrap();
    let setup = setup(&tiny::models()[0], SCHEDULES[0]);
    let mut trainer = Trainer::new(device.clone(), setup.clone()).unwrap();
    trainer.step(1, 1e-3, &tiny::batches(setup.model.vocab_size as u32)).unwrap();
    let ledger = device.take_ledger();
    assert!(ledger.runs.is_empty() && ledger.phases.is_empty() && ledger.kernels.is_empty());
}
