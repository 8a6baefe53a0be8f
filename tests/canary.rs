//! Every comparator is run on something wrong and must say so: bounds, sentinels, poison, schedules, training steps.

use crate::rig;
use gaufre::device::Device;
use gaufre::model::PRESETS;
use gaufre::program::check::{self, Fault, Truth};
use gaufre::program::schedule::Fabric;
use gaufre::program::{Case, Program, activation, all};
use gaufre::train::conformance::{self, Gradients, Part, Row, Step, compare_step, same_bits, tiny};

/// A training step that no device runs: smooth values, with the rounding of f32 everywhere but on the oracle.
fn step(device: &Device) -> Gradients {
    let exact = device.name().starts_with("oracle");
    let value = |x: f64| if exact { x } else { f64::from(x as f32) };
    let tensor = |scale: f64| (1..200).map(|i| value(scale * (f64::from(i) * 0.7).sin())).collect();
    let gradients = vec![("weight".into(), tensor(0.1)), ("bias".into(), tensor(3.0))];
    Gradients { loss: value(2.0_f64.sqrt()), gradients }
}

#[test]
fn every_planted_fault_is_caught_on_host() {
    let found = conformance::run(&rig::host(), 1, true, &tiny::steps(), &|_| {});
    for program in all() {
        let name = program.kernel.name;
        let planted = found.canaries.iter().filter(|canary| canary.subject == name).count();
        assert!(planted > program.kernel.bindings.len(), "{name}: {planted} faults planted");
    }
    let names =
        |part| found.rows.iter().filter(|row| row.part == part).map(|row| row.name.as_str()).collect::<Vec<_>>();
    let mut played =
        ["matmul_nt", "matmul_nn", "matmul_tn", "attention_forward", "attention_backward"].map(String::from).to_vec();
    let losses = ["cross_entropy_forward", "cross_entropy_backward", "cross_entropy_sum"];
    played.extend(losses.into_iter().chain(["column_sum", "grad_norm_finish"]).map(String::from));
    for norm in ["layer_norm", "rms_norm"] {
        played.extend(["forward", "backward", "gain_backward"].map(|pass| format!("{norm}_{pass}")));
    }
    played.push("training step of gpt2-tiny".into());
    let tiny = PRESETS.iter().filter(|(name, _)| name.ends_with("-tiny"));
    played.extend(tiny.map(|(name, _)| format!("training step of {name}")));
    assert_eq!(names(Part::Schedule), played);
    for program in all().iter().filter(|program| program.kernel.host.is_some()) {
        let reference = format!("{}, reference", program.kernel.name);
        assert!(names(Part::Program).contains(&reference.as_str()), "{reference} was not checked");
    }
    let missed: Vec<_> = found.canaries.iter().filter(|canary| !canary.caught).collect();
    assert!(missed.is_empty(), "missed: {missed:#?}");
    let failed: Vec<_> = found.rows.iter().filter(|row| !row.passed).collect();
    assert!(failed.is_empty(), "failed without a fault: {failed:#?}");
}

#[test]
fn a_fault_in_wgsl_is_caught_on_an_adapter() {
    let Some(device) = rig::adapter("canary") else { return };
    let (text, wrong) = activation::FORWARD.fault;
    let kernel = activation::FORWARD.kernel.copy();
    let wgsl = Box::leak(kernel.wgsl.replace(text, wrong).into_boxed_str());
    let edited = Box::leak(Box::new(gaufre::device::Kernel { wgsl, ..kernel }));
    let truth = Truth::of(&activation::FORWARD, 1).expect("the oracle runs anywhere");
    assert!(truth.catches(edited, &device, None).expect("the edit compiles").is_some());
    assert!(truth.catches(&activation::FORWARD.kernel, &device, None).expect("it runs").is_none());
    assert!(truth.catches(&activation::FORWARD.kernel, &device, Some(&Fault::Idle)).expect("it runs").is_some());
}

#[test]
fn a_variant_that_no_case_runs_in_fails() {
    let program: &'static Program = Box::leak(Box::new(Program {
        kernel: activation::FORWARD.kernel.copy(),
        bound: activation::FORWARD.bound,
        cases: || {
            (activation::FORWARD.cases)()
                .into_iter()
                .map(|case| {
                    let Case { label, fills, launch } = case;
                    Case { label, fills, launch: Box::new(move |variant| (launch(variant).0, 0)) }
                })
                .collect()
        },
        fault: activation::FORWARD.fault,
    }));
    let reports = check::run(program, &rig::host(), 1).expect("the host runs it");
    assert!(!reports.is_empty());
    for report in reports {
        assert!(!report.passed() && report.place == "no case runs in this variant", "{report}");
    }
}

#[test]
fn a_comparison_fails_on_what_is_not_a_number_and_on_a_bound_that_binds_nothing() {
    let one = 1.0f32.to_bits();
    assert_eq!(check::judge(one, check::POISON, 1.0, 0.0), 0.0);
    assert!(check::judge(one, check::POISON, 1.5, 1.0) <= 1.0);
    let wrong = [
        (check::POISON, 1.0, 1.0),
        (f32::NAN.to_bits(), 1.0, 1.0),
        (f32::INFINITY.to_bits(), 1.0, 1.0),
        (one, 2.0, f64::INFINITY),
        (one, 2.0, f64::NAN),
        (one, 2.0, -5.0),
        (one, f64::NAN, 1.0),
        (one, 2.0, 0.5),
    ];
    for (got, want, bound) in wrong {
        let ratio = check::judge(got, check::POISON, want, bound);
        assert!(ratio > 1.0, "{} for {want} within {bound}: {ratio}", f32::from_bits(got));
    }
}

#[test]
fn what_was_not_run_does_not_pass() {
    assert!(!Row::failed(Part::Program, "none", "no case").passed);
    assert!(!Row::new(Part::Program, "no cases", 0, 8, 0.0, String::new()).passed);
    assert!(!Row::new(Part::Program, "no elements", 3, 0, 0.0, String::new()).passed);
    assert!(!Row::new(Part::Program, "not a number", 3, 8, f64::NAN, String::new()).passed);
    let broken = |_: &Fabric| anyhow::bail!("no step here");
    let steps = [Step { name: "broken".into(), run: Box::new(broken) }];
    let found = conformance::run(&rig::host(), 1, false, &steps, &|_| {});
    assert!(!found.passed());
    assert!(found.rows.iter().any(|row| row.part == Part::Step && !row.passed));
}

#[test]
fn schedules_differ_by_one_bit_or_not_at_all() {
    let x = [1.0f32, -2.0, 0.0];
    assert!(same_bits(&x, &x).is_ok());
    assert!(same_bits(&x, &[1.0, -2.0, -0.0]).is_err(), "the sign of zero is a bit");
    assert!(same_bits(&x, &x[..2]).is_err());
    assert!(same_bits(&[], &[]).is_err());
    assert!(same_bits(&[f32::NAN], &[f32::NAN]).is_err());
    assert!(same_bits(&[0.0; 4], &[0.0; 4]).is_err());
}

#[test]
fn a_step_is_held_to_the_rounding_of_plain_f32() {
    let (host, oracle) = (rig::host(), Device::oracle().expect("the oracle opens anywhere"));
    let (plain, truth) = (step(&host), step(&oracle));
    assert!(compare_step(&plain, &plain, &truth).iter().all(|row| row.passed));
    let fails = |ours: &Gradients, plain: &Gradients, truth: &Gradients| {
        compare_step(ours, plain, truth).iter().any(|row| !row.passed)
    };
    let edited = |edit: fn(&mut Gradients)| {
        let mut wrong = plain.clone();
        edit(&mut wrong);
        wrong
    };
    for wrong in [
        edited(|s| s.loss = f64::NAN),
        edited(|s| s.loss *= 1.0 + 1e-5),
        edited(|s| s.gradients[1].1[7] *= 1.001),
        edited(|s| s.gradients[0].1[0] = f64::INFINITY),
        edited(|s| s.gradients.truncate(1)),
        edited(|s| s.gradients.push(("stranger".into(), vec![1.0]))),
    ] {
        assert!(fails(&wrong, &plain, &truth), "{:?}", wrong.loss);
    }
    let broken = edited(|s| s.gradients[0].1[0] = f64::NAN);
    assert!(fails(&plain, &broken, &truth), "a yardstick that is not a number measures nothing");
    let mut zero = truth.clone();
    zero.gradients[0].1.fill(0.0);
    assert!(fails(&plain, &plain, &zero), "a zero gradient proves nothing");
}
