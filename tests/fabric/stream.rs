//! The weight-stream route, and wafers with defects: products by every route, on every grid, whole or not, have the bits of
//! the fused product; what the device counts is the closed form; defects cost hops and nothing else.

use super::{FORMS, GRIDS, cost};
use crate::program::matmul::{operands, product};
use crate::rig;
use gaufre::device::Device;
use gaufre::program::matmul::{self, Form, Matmul};
use gaufre::program::schedule::{Fabric, Routing, Schedule};
use gaufre::wafer::{Defects, Wafer};
use proptest::prelude::*;

fn fabric(device: &Device, wafer: Wafer, routing: Routing) -> Fabric {
    Fabric::new(device.clone(), Schedule::Superstep, wafer).with_routing(routing)
}

fn fused(device: &Device) -> Fabric {
    Fabric::new(device.clone(), Schedule::Fused, Wafer::new(1, 1))
}

/// A wafer of 6 x 5 with dead tiles and links.
fn scratched() -> Wafer {
    let map = Defects::parse("tile 2 1\ntile 4 3\nlink 0 2 1 2\nlink 3 0 3 1", "map").unwrap();
    Wafer::with_defects(6, 5, &map).unwrap()
}

#[test]
fn every_route_on_every_wafer_gives_the_bits_of_the_fused_product() {
    let devices = rig::devices("weight stream");
    for device in devices.into_iter().chain([Device::reference().unwrap(), Device::oracle().unwrap()]) {
        for form in FORMS {
            for (shape, bias, accumulate) in
                [((37, 211, 84), true, false), ((130, 70, 1030), false, true), ((1, 300, 5), true, true)]
            {
                let want = product(&fused(&device), form, shape, bias, accumulate);
                let whole = GRIDS.map(|(width, height)| Wafer::new(width, height));
                for wafer in whole.into_iter().chain([Wafer::new(8, 8), scratched()]) {
                    for routing in [Routing::Broadcast, Routing::WeightStream] {
                        let got = product(&fabric(&device, wafer.clone(), routing), form, shape, bias, accumulate);
                        assert!(got == want, "{form:?} {shape:?} {routing:?} on {wafer:?} of {}", device.name());
                    }
                }
            }
        }
    }
}

#[test]
fn a_sum_that_went_another_way_would_be_seen() {
    // The canary: a contraction whose blocks are added in another order has other bits.
    let device = rig::host();
    let shape = (37, 70, 1030);
    let [a, b, c, _] = operands(&device, Form::NT, shape);
    let whole = Matmul { form: Form::NT, a: &a, b: &b, c: &c, bias: None, accumulate: false };
    matmul::run(&fused(&device), &whole).unwrap();
    let want = c.download(&device).unwrap();
    for (first, depth, accumulate) in [(512, 518, false), (0, 512, true)] {
        let (a, b) = (a.columns(first, depth), b.columns(first, depth));
        let part = Matmul { a: &a, b: &b, accumulate, ..whole };
        matmul::run(&fabric(&device, Wafer::new(2, 2), Routing::WeightStream), &part).unwrap();
    }
    assert!(c.download(&device).unwrap() != want);
}

#[test]
fn the_device_counts_what_the_route_costs() {
    for device in rig::devices("closed form of the stream") {
        for form in FORMS {
            for accumulate in [false, true] {
                let [a, b, c, _] = operands(&device, form, (70, 211, 1030));
                let product = Matmul { form, a: &a, b: &b, c: &c, bias: None, accumulate };
                for wafer in GRIDS.map(|(w, h)| Wafer::new(w, h)).into_iter().chain([scratched()]) {
                    for routing in [Routing::Broadcast, Routing::WeightStream] {
                        let fabric = fabric(&device, wafer.clone(), routing);
                        matmul::run(&fabric, &product).unwrap();
                        let before = device.counters();
                        matmul::run(&fabric, &product).unwrap();
                        let counted = device.counters().since(&before);
                        let want = matmul::cost(&fabric, &product).unwrap();
                        assert_eq!(cost(&counted), want, "{form:?} {routing:?} {wafer:?}");
                        assert_eq!(counted.allocations, 0, "a second run allocates nothing");
                    }
                }
            }
        }
    }
}

#[test]
fn defects_cost_hops_and_nothing_else() {
    let device = rig::host();
    let counted = |wafer: Wafer| {
        let before = device.counters();
        product(&fabric(&device, wafer, Routing::Broadcast), Form::NT, (260, 300, 90), false, false);
        device.counters().since(&before)
    };
    let scratched = scratched();
    let whole = counted(Wafer::new(scratched.width, scratched.height));
    let round = counted(scratched);
    assert_eq!(cost(&whole), cost(&round));
    assert!(round.hops > whole.hops, "{} hops round defects, {} without", round.hops, whole.hops);
    assert_eq!(whole.link_bytes % 4, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// On random grids, with random defects, blocks and shapes: the bits of the fused product, and the bytes of the closed form.
    #[test]
    fn random_products_on_random_wafers(
        (m, n, k) in (1usize..150, 1usize..150, 1usize..1200),
        (width, height) in (1u32..7, 1u32..7),
        rate in 0.0..0.2f64,
        seed in any::<u64>(),
        stream in any::<bool>(),
        form in 0usize..3,
        accumulate in any::<bool>(),
    ) {
        let device = rig::host();
        let Ok(wafer) = Wafer::with_defects(width, height, &Defects::random(width, height, rate, seed)) else {
            return Ok(());
        };
        let routing = if stream { Routing::WeightStream } else { Routing::Broadcast };
        let want = product(&fused(&device), FORMS[form], (m, n, k), true, accumulate);
        let fabric = fabric(&device, wafer, routing);
        let before = device.counters();
        let got = product(&fabric, FORMS[form], (m, n, k), true, accumulate);
        prop_assert!(got == want);
        let counted = device.counters().since(&before);
        let [a, b, c, row] = operands(&device, FORMS[form], (m, n, k));
        let product = Matmul { form: FORMS[form], a: &a, b: &b, c: &c, bias: Some(&row), accumulate };
        prop_assert_eq!(cost(&counted), matmul::cost(&fabric, &product).unwrap());
    }
}
