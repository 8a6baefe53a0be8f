//! A trusted device (no bounds checks, no bounds on loops) gives the same bits as a checked one, for every program.

use crate::rig;
use gaufre::device::{Buffer, Device, Elem, Launch};
use gaufre::program::{self, Case, Program};

#[test]
fn trusted_and_checked_give_equal_bits() {
    let Some(checked) = rig::adapter("trusted") else { return };
    let name = if checked.class() == gaufre::device::Class::Software { "software" } else { "gpu" };
    // Safety: only programs of this crate are launched, on their own cases.
    let trusted = unsafe { Device::open_trusted(name, 0) }.unwrap();
    assert_eq!(trusted.name(), checked.name());
    for program in program::all() {
        for case in (program.cases)() {
            let (a, b) = (run(program, &case, &checked), run(program, &case, &trusted));
            assert!(a == b, "{}, case {}: bits differ", program.kernel.name, case.label);
        }
    }
}

/// What every buffer holds after a case.
fn run(program: &'static Program, case: &Case, device: &Device) -> Vec<Vec<u32>> {
    let kernel = &program.kernel;
    let buffers: Vec<Buffer> = kernel
        .bindings
        .iter()
        .zip(&case.fills)
        .enumerate()
        .map(|(i, (binding, fill))| {
            let words = fill.words(i as u64);
            let buffer = device.buffer(binding.name, binding.lane.elem(), words.len()).unwrap();
            device.upload(&buffer.all(), &words).unwrap();
            buffer
        })
        .collect();
    let views: Vec<_> = buffers.iter().map(Buffer::all).collect();
    let variant = kernel.variant(device.class());
    let (params, groups) = (case.launch)(variant);
    device.launch(&Launch { kernel, variant, groups, params: &params, views: &views }).unwrap();
    buffers
        .iter()
        .map(|b| match b.elem() {
            Elem::U32 => device.download_ids(&b.all()).unwrap(),
            Elem::F32 => device.download(&b.all()).unwrap().into_iter().map(f32::to_bits).collect(),
        })
        .collect()
}
