//! Placeholder: initial.
use super::Program;
/// Programs of this file.
pub static PROGRAMS: [&Program; 0] = [];

/// A pseudo-random word: a pure function of seed and index.
pub fn word(seed: u64, index: u64) -> u32 {
    let mut z = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(index.wrapping_mul(0xBF58_476D_1CE4_E5B9));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (z >> 32) as u32
}

/// A standard normal value: a pure function of seed and index.
pub fn normal(seed: u64, index: u64) -> f64 {
    let u = (word(seed, 2 * index) as f64 + 0.5) / 4294967296.0;
    let v = (word(seed, 2 * index + 1) as f64 + 0.5) / 4294967296.0;
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}
