//! Initial parameters: equal bits on every device and for every cut into panels, and the distribution of normal values.

use crate::rig;
use gaufre::device::Device;
use gaufre::program::initial::{self, Initial, Kind};
use gaufre::program::{Matrix, check};

const NORMAL: Initial = Initial { seed: 0x0123_4567_89ab_cdef, tensor: 7, kind: Kind::Normal { std: 0.02 } };

#[test]
fn within_bound_on_every_device() {
    for device in rig::devices("initial") {
        for program in initial::PROGRAMS {
            check::assert_within_bound(program, &device);
        }
    }
}

#[test]
fn equal_bits_on_every_device_and_cut() {
    let (rows, cols, first_row) = (9, 77, 1usize << 33);
    let want: Vec<u32> = (0..rows * cols)
        .map(|i| initial::value(&NORMAL, first_row as u64 * cols as u64 + i as u64).to_bits())
        .collect();
    let mut devices = rig::devices("initial");
    devices.extend([1, 3].map(|n| Device::host(n).expect("host")));
    devices.push(Device::oracle().expect("oracle"));
    for device in &devices {
        let whole = Matrix::new(device, "tensor", rows, cols).expect("buffer");
        let mut from = 0;
        for cut in [4, 1, 4] {
            initial::run(device, &NORMAL, &whole.rows(from, cut), first_row + from).expect("run");
            from += cut;
        }
        let got: Vec<u32> = whole.download(device).expect("download").iter().map(|x| x.to_bits()).collect();
        assert_eq!(got, want, "{}", device.name());
        let exact = whole.download_f64(device).expect("download");
        assert!(exact.iter().zip(&want).all(|(x, w)| *x == f64::from(f32::from_bits(*w))), "{}", device.name());
    }
}

/// Values must not depend on the machine or change between releases: an FNV-1a hash of enough of them to meet most of
/// the table.
#[test]
fn values_are_pinned() {
    let hash = (0..10_000).fold(0xcbf2_9ce4_8422_2325u64, |h, i| {
        (h ^ u64::from(initial::value(&NORMAL, i).to_bits())).wrapping_mul(0x0100_0000_01b3)
    });
    assert_eq!(hash, 0xdc2a_692a_ef9a_9a43, "{hash:#x}");
}

#[test]
fn constants_keep_the_padding_zero() {
    for device in rig::devices("initial") {
        let matrix = Matrix::new(&device, "tensor", 3, 13).expect("buffer");
        for (kind, want) in [(NORMAL.kind, None), (Kind::One, Some(1.0)), (Kind::Zero, Some(0.0))] {
            device.upload(&matrix.view, &[7.0f32; 48]).expect("upload");
            initial::run(&device, &Initial { kind, ..NORMAL }, &matrix, 0).expect("run");
            let all = device.download(&matrix.view).expect("download");
            for row in all.chunks(16) {
                assert!(row[13..].iter().all(|&x| x == 0.0), "{kind:?} on {}", device.name());
                assert!(row[..13].iter().all(|&x| want.is_none_or(|w| x == w)), "{kind:?} on {}", device.name());
            }
        }
    }
}

/// Mean, variance, kurtosis and the Kolmogorov-Smirnov distance of a million values; different seeds and tensors share
/// none.
#[test]
fn normal_values_are_normal() {
    let n = 1 << 20;
    let mut xs: Vec<f64> = (0..n).map(|i| initial::normal(11, i)).collect();
    let moment = |k: i32| xs.iter().map(|x| x.powi(k)).sum::<f64>() / n as f64;
    let sigma = 1.0 / (n as f64).sqrt();
    // Five standard errors of each moment; the table's end takes 0.01 from the kurtosis of 3.
    assert!(moment(1).abs() < 5.0 * sigma, "mean {}", moment(1));
    assert!((moment(2) - 1.0).abs() < 5.0 * 2f64.sqrt() * sigma, "variance {}", moment(2));
    assert!((moment(4) - 3.0).abs() < 0.03 + 5.0 * 96f64.sqrt() * sigma, "kurtosis {}", moment(4));
    xs.sort_by(f64::total_cmp);
    let distance = xs
        .iter()
        .enumerate()
        .map(|(i, x)| {
            let cdf = 0.5 * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2);
            (cdf - i as f64 / n as f64).abs().max((cdf - (i + 1) as f64 / n as f64).abs())
        })
        .fold(0.0, f64::max);
    // 1.95 is the 0.1 % point of Kolmogorov's distribution; the table is 4096 steps of either sign.
    assert!(distance < 1.95 * sigma + 1.0 / 8192.0, "distance {distance}");
    let other = Initial { tensor: 8, ..NORMAL };
    let equal = (0..1000).filter(|&i| initial::value(&NORMAL, i) == initial::value(&other, i)).count();
    assert!(equal < 10, "{equal} equal values of two tensors");
}
