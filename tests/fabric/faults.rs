//! Faults of the fabric: messages that are lost, late, sent twice or damaged end in the right answer or in an error that
//! names tile, port and superstep. Without the checks the same faults end in wrong numbers, which shows that they do harm.

use crate::rig;
use gaufre::device::{Device, DeviceError};
use gaufre::program::exchange::{Checks, Faults, Health};
use gaufre::program::schedule::{Fabric, Routing, Schedule};
use gaufre::train::conformance::plays;
use gaufre::wafer::Wafer;

/// Runs a program on inputs of its own, and gives what it wrote.
type Play<'a> = &'a dyn Fn(&Fabric) -> anyhow::Result<Vec<f32>>;

/// Every program that crosses tiles, each with what it gives fused.
fn programs(device: &Device) -> Vec<(Play<'static>, Vec<f32>)> {
    let fused = Fabric::new(device.clone(), Schedule::Fused, Wafer::new(1, 1));
    plays().into_iter().map(|(_, play)| (play, play(&fused).unwrap())).collect()
}

fn fabric(device: &Device, seed: u64) -> Fabric {
    let wafer = Wafer::new(2 + (seed % 3) as u32, 1 + (seed / 3 % 3) as u32);
    let routing = if seed.is_multiple_of(2) { Routing::Broadcast } else { Routing::WeightStream };
    Fabric::new(device.clone(), Schedule::Superstep, wafer).with_routing(routing)
}

fn add(all: &mut Health, one: Health) {
    all.crossings += one.crossings;
    all.faults += one.faults;
    all.damaged += one.damaged;
    all.stale += one.stale;
    all.resent += one.resent;
}

/// Runs seeds and says how many ended right, in an error, and wrong.
fn outcomes(device: &Device, seeds: std::ops::Range<u64>, checks: impl Fn(Faults) -> Checks) -> ([usize; 3], Health) {
    let programs = programs(device);
    let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let (mut ended, mut health) = ([0; 3], Health::default());
    for seed in seeds {
        let (play, want) = &programs[seed as usize % programs.len()];
        let rate = [0.01, 0.05, 0.3][(seed % 7 % 3) as usize];
        let fabric = fabric(device, seed).with_checks(checks(Faults { seed, rate }));
        let end = match play(&fabric) {
            Ok(got) if bits(&got) == bits(want) => 0,
            Ok(_) => 2,
            Err(error) => match error.downcast_ref() {
                Some(DeviceError::Message { tile, superstep, what, .. }) => {
                    let (width, height) = fabric.wafer().mesh().size();
                    assert!(tile.x < width && tile.y < height && *superstep > 0, "{tile:?}, superstep {superstep}");
                    assert!(["missing", "damaged"].contains(what), "{what}");
                    1
                }
                _ => panic!("seed {seed}: {error:#}"),
            },
        };
        ended[end] += 1;
        add(&mut health, fabric.health());
    }
    (ended, health)
}

#[test]
fn a_thousand_faulty_runs_end_right_or_in_an_error() {
    let device = Device::host(1).unwrap();
    let ([right, refused, wrong], health) = outcomes(&device, 0..1000, |faults| Checks::new(Some(faults)));
    assert_eq!(wrong, 0, "wrong numbers in {wrong} of 1000 runs");
    assert_eq!(right + refused, 1000);
    assert!(right > 400 && refused > 20, "{right} right, {refused} refused");
    let Health { faults, damaged, stale, resent, .. } = health;
    assert!(faults > 1000 && damaged > 100 && stale > 100 && resent > 500, "{health:?}");
}

#[test]
fn the_same_faults_do_harm_where_nothing_is_checked() {
    let device = Device::host(1).unwrap();
    let ([.., wrong], health) = outcomes(&device, 0..60, Checks::blind);
    assert!(wrong > 10, "{wrong} of 60 runs are wrong: {health:?}");
}

#[test]
fn adapters_check_as_the_host_does() {
    for device in rig::devices("faults") {
        let ([right, refused, wrong], _) = outcomes(&device, 0..3, |faults| Checks::new(Some(faults)));
        assert_eq!((right + refused, wrong), (3, 0), "{}", device.name());
        let sound = fabric(&device, 4).with_checks(Checks::new(None));
        for (play, want) in programs(&device).into_iter().take(4) {
            assert!(play(&sound).unwrap() == want, "{}", device.name());
        }
        let Health { crossings, faults, damaged, stale, resent } = sound.health();
        assert!(crossings > 0 && [faults, damaged, stale, resent] == [0; 4]);
    }
}

#[test]
fn an_error_says_where() {
    let device = Device::host(1).unwrap();
    let always = Faults { seed: 7, rate: 1.0 };
    let wafer = Wafer::new(2, 2);
    let fabric = Fabric::new(device, Schedule::Superstep, wafer).with_checks(Checks::new(Some(always)));
    let told = plays()[0].1(&fabric).unwrap_err().to_string();
    let parts = ["superstep 1:", "tile (", "port", "checkpoint"];
    assert!(parts.iter().all(|part| told.contains(part)), "{told}");
}
