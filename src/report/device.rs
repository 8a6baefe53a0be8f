//! A device in one line for a person. It must never choose one.

use crate::device::Device;

/// Which device, why, and its limits.
pub fn line(device: &Device) -> String {
    let limits = device.limits();
    let what = match limits.threads {
        0 => format!(
            "binds {}, {} of workgroup memory, {} invocations",
            bytes(limits.binding_bytes),
            bytes(limits.workgroup_bytes.into()),
            limits.invocations
        ),
        _ => format!("{}, memory of the host", simd()),
    };
    format!("device: {}; {what}; tiles of {} SRAM", device.why(), bytes(limits.tile_sram.into()))
}

/// The widest vectors that host kernels use on this machine.
pub fn simd() -> String {
    match format!("{:?}", pulp::Arch::new()).split('(').next() {
        Some("V4") => "AVX-512".into(),
        Some("V3") => "AVX2 and FMA".into(),
        Some("Neon") => "NEON".into(),
        _ => "no SIMD beyond the target's own".into(),
    }
}

/// Bytes in the largest unit that they are a whole number of.
pub fn bytes(n: u64) -> String {
    let unit = [(1u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match unit.iter().find(|(size, _)| n != 0 && n.is_multiple_of(*size)) {
        Some((size, name)) => format!("{} {name}", n / size),
        None => format!("{n} B"),
    }
}

/// Bytes as a person reads them, rounded.
pub fn rounded_bytes(n: u64) -> String {
    format!("{:#}", indicatif::BinaryBytes(n))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_take_the_largest_whole_unit() {
        for (n, text) in [(0, "0 B"), (1000, "1000 B"), (49152, "48 KiB"), (128 << 20, "128 MiB"), (1 << 31, "2 GiB")] {
            assert_eq!(bytes(n), text);
        }
    }

    #[test]
    fn the_line_names_the_device_and_its_limits() {
        let line = line(&Device::host(2).unwrap());
        assert!(line.starts_with("device: host (2 threads)") && line.ends_with("48 KiB SRAM"), "{line}");
    }
}
