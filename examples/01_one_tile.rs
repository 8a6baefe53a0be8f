//! One tile: it fetches 64 numbers into its SRAM, adds them up there in a tree, and stores the sum. The order of additions
//! is part of the program, so every device gives the same bits, and this example asks for no less.
//!
//! `cargo run --release --example 01_one_tile -- [DEVICE]`, as in `gaufre devices`; without one: the best that is there.

use gaufre::device::{ALL_CLASSES, Args, Device, Elem, Held, Kernel, Lane, Real, Variant, read, write};
use gaufre::program;

gaufre::params! {
    /// What a launch tells every tile, beside the number of tiles; in WGSL it is `p`.
    struct SumParams {
        /// Numbers to add up, at most 64; the rest of the SRAM counts as zeros.
        len: u32,
    }
}

/// Everything a device must know to run it: the tile's code for devices that take WGSL, native code for those that do not.
/// The declarations of `p`, `x` and `sum` and the constant `WG` are put before the WGSL when it is compiled.
static TREE_SUM: Kernel = Kernel {
    name: "tree_sum",
    wgsl: "
        // The tile's SRAM: all invocations of the workgroup see it, and nobody else.
        var<workgroup> sram: array<f32, WG>;

        //# entry tree_sum
        @compute @workgroup_size(WG, 1, 1)
        fn tree_sum(@builtin(local_invocation_index) lane: u32) {
            sram[lane] = 0.0;
            if (lane < p.len) {
                sram[lane] = x[lane];
            }
            for (var half = WG / 2u; half > 0u; half /= 2u) {
                workgroupBarrier(); // the partner's number must be there before it is taken
                if (lane < half) {
                    sram[lane] += sram[lane + half];
                }
            }
            if (lane == 0u) {
                sum[0] = sram[0];
            }
        }",
    bindings: &[read("x", Lane::F32), write("sum", Lane::F32)],
    params: SumParams::FIELDS,
    // WG is the number of invocations. One shape does for all classes of devices here.
    variants: &[Variant { name: "64 lanes", classes: ALL_CLASSES, constants: &[("WG", 64)] }],
    // The tile keeps nothing beside its workgroup memory.
    held: |_| Held::NOTHING,
    reference_f32: tree_sum,
    reference_f64: tree_sum,
    host: None,
};

/// The same in Rust, at any precision.
fn tree_sum<F: Real>(args: &mut Args<'_, F>) {
    let len = args.params::<SumParams>().len as usize;
    let mut sram = vec![F::zero(); args.variant.get("WG") as usize];
    sram[..len].copy_from_slice(&args.read(0)[..len]);
    let mut half = sram.len() / 2;
    while half > 0 {
        for lane in 0..half {
            sram[lane] = sram[lane] + sram[lane + half];
        }
        half /= 2;
    }
    args.write(1)[0] = sram[0];
}

/// Adds up on one device, by one tile.
fn run(device: &Device, values: &[f32]) -> gaufre::device::Result<f32> {
    let (x, sum) = (device.buffer("x", Elem::F32, values.len())?, device.buffer("sum", Elem::F32, 1)?);
    device.upload(&x.all(), values)?;
    let params = SumParams { len: values.len() as u32 };
    program::launch(device, &TREE_SUM, &params, |_| 1, &[x.all(), sum.all()])?;
    Ok(device.download(&sum.all())?[0]) // waits for what was queued before
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = Device::open(std::env::args().nth(1).as_deref().unwrap_or("auto"), 0)?;
    println!("{}", device.why());
    let sram = device.sram(&TREE_SUM, TREE_SUM.variant(device.class()))?;
    println!("a tile of {} lanes with {} bytes of SRAM in use", sram.invocations, sram.total);

    let values: Vec<f32> = (1..=50).map(|i| 1.0 / i as f32).collect();
    let (sum, plain) = (run(&device, &values)?, run(&Device::reference()?, &values)?);
    println!("1/1 + 1/2 + ... + 1/50 = {sum}, by the plain reference {plain}");
    if sum.to_bits() != plain.to_bits() {
        return Err("the tile and the reference differ".into());
    }
    println!("ok: equal bits");
    Ok(())
}
