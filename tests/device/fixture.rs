//! Kernels that tests launch: small, of integers, so that every device must give the same words.

use gaufre::device::{
    ALL_CLASSES, Args, Buffer, Device, Elem, Held, Kernel, Lane, Launch, Result, Variant, read, write,
};

gaufre::params! {
    /// Parameters of [`STEP`].
    pub struct StepParams {
        /// Elements.
        len: u32,
        /// Factor.
        factor: u32,
    }
}

/// The only variant.
pub static VARIANTS: [Variant; 1] = [Variant { name: "only", classes: ALL_CLASSES, constants: &[("WG", 64)] }];

/// `y = y * factor + x`, wrapping: launches do not commute.
pub static STEP: Kernel = Kernel {
    name: "test_step",
    wgsl: "//# entry test_step
@compute @workgroup_size(WG, 1, 1)
fn test_step(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = wid.y * nwg.x + wid.x;
    let i = group * WG + lane;
    if (group < p.groups && i < p.len) {
        y[i] = y[i] * p.factor + x[i];
    }
}",
    bindings: &[read("x", Lane::U32), write("y", Lane::U32)],
    params: StepParams::FIELDS,
    variants: &VARIANTS,
    held: |_| Held::NOTHING,
    reference_f32: step_reference,
    reference_f64: step_reference,
    host: None,
};

fn step_reference<F>(args: &mut Args<'_, F>) {
    let p: StepParams = args.params();
    for (y, &x) in args.write_ids(1).iter_mut().zip(args.ids(0)).take(p.len as usize) {
        *y = y.wrapping_mul(p.factor).wrapping_add(x);
    }
}

/// Launches `y = y * factor + x` with a kernel that has the form of [`STEP`].
pub fn step(device: &Device, kernel: &'static Kernel, factor: u32, x: &Buffer, y: &Buffer) -> Result<()> {
    let len = y.len() as u32;
    device.launch(&Launch {
        kernel,
        variant: kernel.variant(device.class()),
        groups: len.div_ceil(64),
        params: &[len, factor],
        views: &[x.all(), y.all()],
    })
}

/// A buffer of integers that holds `words`.
pub fn filled(device: &Device, label: &str, words: &[u32]) -> Buffer {
    let buffer = device.buffer(label, Elem::U32, words.len()).expect("room for a small buffer");
    device.upload(&buffer.all(), words).expect("an upload of the buffer's length");
    buffer
}

/// Words that differ from each other and from zero.
pub fn words(len: usize) -> Vec<u32> {
    (1..=len as u32).map(|i| i.wrapping_mul(0x9e37_79b9) | 1).collect()
}
