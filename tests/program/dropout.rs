//! Dropout: equal bits on every device and for every cut into rows; how much is kept; other keys drop other elements;
//! the gradient meets the mask of the forward pass.

use crate::rig;
use gaufre::device::Device;
use gaufre::program::{Matrix, check, dropout, initial};

const KEY: u64 = 0x0123_4567_89ab_cdef;

#[test]
fn within_bound_on_every_device() {
    for device in rig::devices("dropout") {
        check::assert_within_bound(&dropout::DROP, &device);
    }
}

fn normal(len: usize, seed: u64) -> Vec<f32> {
    (0..len).map(|i| initial::normal(seed, i as u64) as f32).collect()
}

fn matrix(device: &Device, rows: usize, cols: usize, values: &[f32]) -> Matrix {
    let m = Matrix::new(device, "x", rows, cols).expect("buffer");
    m.upload(device, values).expect("upload");
    m
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// What lies at each index is multiplied by the factor that the host states for it: whole, cut into rows, anywhere in a
/// larger matrix, by any number of threads. The last matrix is more than one task of the host.
#[test]
fn equal_bits_on_every_device_and_cut() {
    let mut devices = rig::devices("dropout");
    devices.extend([1, 3].map(|n| Device::host(n).expect("host")));
    devices.push(Device::oracle().expect("oracle"));
    for (rows, cols, first_row, rate) in [(9, 77, 0, 0.1), (9, 77, 1usize << 33, 0.5), (300, 88, 7, 0.25)] {
        let values = normal(rows * cols, 3);
        let factor = |i: usize| dropout::factor(KEY, first_row as u64 * cols as u64 + i as u64, rate);
        let exact: Vec<f64> = values.iter().enumerate().map(|(i, x)| f64::from(*x) * f64::from(factor(i))).collect();
        let want: Vec<f32> = values.iter().enumerate().map(|(i, x)| x * factor(i)).collect();
        for device in &devices {
            let oracle = device.name() == Device::oracle().expect("oracle").name();
            for cuts in [vec![rows], vec![4, 1, rows - 5]] {
                let whole = matrix(device, rows, cols, &values);
                let mut from = 0;
                for cut in cuts {
                    let part = whole.rows(from, cut);
                    dropout::run_rows(device, &part, first_row + from, KEY, rate).expect("run");
                    from += cut;
                }
                if oracle {
                    assert_eq!(whole.download_f64(device).expect("download"), exact);
                } else {
                    let got = whole.download(device).expect("download");
                    assert_eq!(bits(&got), bits(&want), "{rows} x {cols} on {}", device.name());
                }
            }
        }
    }
}

/// Each element is kept with probability 1 - rate: within five standard deviations of it.
#[test]
fn the_share_that_is_kept_is_one_minus_the_rate() {
    let n = 1u64 << 20;
    for rate in [0.001f32, 0.1, 0.25, 0.5, 0.9, 0.999] {
        let kept = (0..n).filter(|&i| dropout::factor(KEY, i, rate) != 0.0).count() as f64;
        let keep = 1.0 - f64::from(rate);
        let sigma = (n as f64 * keep * (1.0 - keep)).sqrt();
        assert!((kept - n as f64 * keep).abs() <= 5.0 * sigma, "{kept} of {n} kept at {rate}");
        // So the mean stays what it was.
        let mean = (0..n).map(|i| f64::from(dropout::factor(KEY, i, rate))).sum::<f64>() / n as f64;
        assert!((mean - 1.0).abs() <= 5.0 * sigma / (n as f64 * keep) + 1e-6, "mean factor {mean} at {rate}");
    }
}

/// Two masks that know nothing of each other agree in a share `keep^2 + rate^2` of their elements. So does a mask and
/// itself, shifted, and its words are not those of another stream of the same seed.
#[test]
fn other_keys_drop_other_elements() {
    let (n, rate) = (1u64 << 18, 0.3f32);
    let keep = 1.0 - f64::from(rate);
    let want = keep * keep + (1.0 - keep) * (1.0 - keep);
    let sigma = (n as f64 * want * (1.0 - want)).sqrt();
    let kept = |key: u64, index: u64| dropout::factor(key, index, rate) != 0.0;
    let threshold = (f64::from(rate) * 2f64.powi(32)).ceil() as u32;
    let others: [(&str, &dyn Fn(u64) -> bool); 5] = [
        ("next key", &|i| kept(KEY + 1, i)),
        ("high word of the key", &|i| kept(KEY ^ 1 << 63, i)),
        ("next index", &|i| kept(KEY, i + 1)),
        ("index with another high word", &|i| kept(KEY, i + (1 << 34))),
        ("other stream", &|i| initial::word(KEY, i) >= threshold),
    ];
    for (name, other) in others {
        let alike = (0..n).filter(|&i| kept(KEY, i) == other(i)).count() as f64;
        assert!((alike - n as f64 * want).abs() <= 5.0 * sigma, "{name}: {alike} of {n} alike");
    }
}

/// `<dy, dropout(x)> = <dropout(dy), x>`, term by term: the gradient passes where the value passed, with its factor.
#[test]
fn the_gradient_meets_the_same_mask() {
    let (rows, cols, rate) = (13, 84, 0.5);
    let (x, dy) = (normal(rows * cols, 1), normal(rows * cols, 2));
    for device in rig::devices("dropout") {
        let [y, dx] = [&x, &dy].map(|values| {
            let m = matrix(&device, rows, cols, values);
            dropout::run(&device, &m, KEY, rate).expect("run");
            m.download(&device).expect("download")
        });
        // At a rate of one half the factor is 2 and all products are exact.
        for i in 0..rows * cols {
            let (left, right) = (f64::from(dy[i]) * f64::from(y[i]), f64::from(dx[i]) * f64::from(x[i]));
            assert!(left == right, "{left} and {right} at {i} on {}", device.name());
        }
        assert!(y.contains(&0.0) && y.iter().any(|x| *x != 0.0));
    }
}

#[test]
fn a_rate_of_zero_changes_nothing() {
    for device in rig::devices("dropout") {
        let values = [1.0, -0.0, 1e-45, f32::MAX, -3.5, 0.0, f32::MIN_POSITIVE, -1e-40];
        let m = matrix(&device, 1, 8, &values);
        dropout::run(&device, &m, KEY, 0.0).expect("run");
        assert_eq!(bits(&m.download(&device).expect("download")), bits(&values), "{}", device.name());
        assert!((0..1000).all(|i| dropout::factor(KEY, i, 0.0) == 1.0));
    }
}

#[test]
fn columns_beside_a_slice_stay_as_they_are() {
    let (rows, cols) = (5, 40);
    let values = normal(rows * cols, 4);
    for device in rig::devices("dropout") {
        let m = matrix(&device, rows, cols, &values);
        dropout::run(&device, &m.columns(8, 12), KEY, 0.5).expect("run");
        for (i, got) in m.download(&device).expect("download").iter().enumerate() {
            let (row, col) = (i / cols, i % cols);
            let inside = (8..20).contains(&col);
            let factor = if inside { dropout::factor(KEY, (row * 12 + col - 8) as u64, 0.5) } else { 1.0 };
            assert_eq!(got.to_bits(), (values[i] * factor).to_bits(), "{i} on {}", device.name());
        }
    }
}

#[test]
fn rates_that_are_none_are_refused() {
    for rate in [1.0, 1.5, -0.1, f32::NAN, f32::INFINITY] {
        let refused = std::panic::catch_unwind(|| dropout::factor(KEY, 0, rate));
        assert!(refused.is_err(), "{rate}");
    }
}
