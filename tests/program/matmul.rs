//! Matrix products: within the bound in every variant on every device, and equal bits whatever the partition: threads,
//! panels, slices, schedules.

use crate::rig;
use gaufre::device::{Class, Device, Kernel};
use gaufre::program::matmul::{self, Form, Matmul, PANEL_ROWS};
use gaufre::program::schedule::{Fabric, Schedule};
use gaufre::program::{Fill, Matrix, check};
use gaufre::wafer::Wafer;

const FORMS: [Form; 3] = [Form::NT, Form::NN, Form::TN];

/// A matrix of normal values, a function of the seed.
pub fn normal(device: &Device, rows: usize, cols: usize, seed: u64) -> Matrix {
    let matrix = Matrix::new(device, "operand", rows, cols).unwrap();
    device.upload(&matrix.view, &Fill::matrix(rows, cols).words(seed)).unwrap();
    matrix
}

/// Operands of a product and C, all random.
pub fn operands(device: &Device, form: Form, (m, n, k): (usize, usize, usize)) -> [Matrix; 4] {
    let (a, b) = match form {
        Form::NT => ((m, k), (n, k)),
        Form::NN => ((m, k), (k, n)),
        Form::TN => ((k, m), (k, n)),
    };
    [normal(device, a.0, a.1, 1), normal(device, b.0, b.1, 2), normal(device, m, n, 3), normal(device, 1, n, 4)]
}

/// Bits of a matrix with its padding.
pub fn bits(device: &Device, matrix: &Matrix) -> Vec<u32> {
    device.download(&matrix.view).unwrap().into_iter().map(f32::to_bits).collect()
}

/// The bits of one product of random operands.
pub fn product(fabric: &Fabric, form: Form, shape: (usize, usize, usize), bias: bool, accumulate: bool) -> Vec<u32> {
    let device = fabric.device();
    let [a, b, c, row] = operands(device, form, shape);
    let m = Matmul { form, a: &a, b: &b, c: &c, bias: bias.then_some(&row), accumulate };
    matmul::run(fabric, &m).unwrap();
    bits(device, &c)
}

fn fused(device: Device) -> Fabric {
    Fabric::new(device, Schedule::Fused, Wafer::new(4, 4))
}

#[test]
fn within_bound_on_every_device() {
    for device in rig::devices("matmul").into_iter().chain([Device::reference().unwrap()]) {
        for program in matmul::PROGRAMS {
            check::assert_within_bound(program, &device);
        }
    }
}

#[test]
fn every_variant_is_within_bound_on_an_adapter() {
    let Some(device) = rig::adapter("variants of matmul") else { return };
    for program in matmul::PROGRAMS {
        for variant in program.kernel.variants.iter().filter(|v| v.classes != [Class::Native]) {
            let only = Vec::leak(vec![gaufre::device::Variant { classes: gaufre::device::ALL_CLASSES, ..*variant }]);
            let kernel: &'static Kernel = Box::leak(Box::new(Kernel { variants: only, ..program.kernel.copy() }));
            for report in check::run_kernel(program, kernel, &device, 5, None).unwrap() {
                assert!(report.passed(), "{}: {report:?}", variant.name);
            }
        }
    }
}

#[test]
fn equal_bits_for_any_number_of_threads() {
    for form in FORMS {
        for shape in [(37, 211, 84), (1, 768, 600), (3, 5, 7), (300, 2, 1), (129, 515, 1100), (512, 64, 2)] {
            let all: Vec<_> = (1..=3)
                .map(|threads| product(&fused(Device::host(threads).unwrap()), form, shape, true, true))
                .collect();
            assert!(all[0] == all[1] && all[0] == all[2], "{form:?} {shape:?}");
        }
    }
}

/// On the host a lone row of the form NT has an order of its own; tiles, threads and panels must not show in it.
#[test]
fn a_lone_row_has_one_order_of_additions() {
    let (m, n, k) = (1, 200, 3 * PANEL_ROWS - 11);
    for (bias, accumulate) in [(false, false), (true, true)] {
        let of = |threads, schedule| {
            let fabric = Fabric::new(Device::host(threads).unwrap(), schedule, Wafer::new(2, 3));
            product(&fabric, Form::NT, (m, n, k), bias, accumulate)
        };
        let want = of(1, Schedule::Fused);
        for threads in 1..=3 {
            assert!(of(threads, Schedule::Fused) == want && of(threads, Schedule::Superstep) == want, "{threads}");
        }
    }
    let device = rig::host();
    let [a, b, whole, _] = operands(&device, Form::NT, (m, n, k));
    let c = normal(&device, m, n, 3);
    let product = |b: &Matrix, c: &Matrix| {
        let fabric = fused(device.clone());
        matmul::run(&fabric, &Matmul { form: Form::NT, a: &a, b, c, bias: None, accumulate: true }).unwrap();
    };
    product(&b, &whole);
    for (first, rows) in [(0, 64), (64, 8), (72, 128)] {
        product(&b.rows(first, rows), &c.columns(first, rows));
    }
    assert!(bits(&device, &c) == bits(&device, &whole));
}

#[test]
fn row_panels_and_column_slices_give_the_bits_of_one_call() {
    for device in rig::devices("matmul panels") {
        let fabric = fused(device.clone());
        for form in FORMS {
            let (m, n, k) = (21, 232, 84);
            let [a, b, whole, row] = operands(&device, form, (m, n, k));
            let c = normal(&device, m, n, 3);
            let product = |b: &Matrix, c: &Matrix, row: &Matrix| {
                matmul::run(&fabric, &Matmul { form, a: &a, b, c, bias: Some(row), accumulate: true }).unwrap();
            };
            product(&b, &whole, &row);
            for (first, cols) in [(0, 64), (64, 8), (72, 160)] {
                let part = if form == Form::NT { b.rows(first, cols) } else { b.columns(first, cols) };
                product(&part, &c.columns(first, cols), &row.columns(first, cols));
            }
            assert!(bits(&device, &c) == bits(&device, &whole), "{form:?} on {}", device.name());
        }
    }
}

#[test]
fn panels_of_the_contraction_give_the_bits_of_one_call() {
    for device in rig::devices("matmul panels") {
        let fabric = fused(device.clone());
        for (m, n) in [(1, 40), (19, 77)] {
            let k = 3 * PANEL_ROWS + 40;
            let [a, b, whole, _] = operands(&device, Form::NN, (m, n, k));
            let c = normal(&device, m, n, 3);
            let product = |a: &Matrix, b: &Matrix, c: &Matrix| {
                matmul::run(&fabric, &Matmul { form: Form::NN, a, b, c, bias: None, accumulate: true }).unwrap();
            };
            product(&a, &b, &whole);
            for (first, depth) in [(0, 2 * PANEL_ROWS), (2 * PANEL_ROWS, PANEL_ROWS), (3 * PANEL_ROWS, 40)] {
                product(&a.columns(first, depth), &b.rows(first, depth), &c);
            }
            assert!(bits(&device, &c) == bits(&device, &whole), "{m}x{n} on {}", device.name());
        }
    }
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    let device = rig::host();
    let fabric = fused(device.clone());
    let [a, b, c, _] = operands(&device, Form::NT, (8, 9, 10));
    for (form, a, b) in [(Form::NN, &a, &b), (Form::TN, &a, &b), (Form::NT, &b, &a)] {
        let error = matmul::run(&fabric, &Matmul { form, a, b, c: &c, bias: None, accumulate: false }).unwrap_err();
        assert!(error.to_string().contains("do not fit"), "{error}");
    }
}
