//! Two tiles talk: a rod, hot at its left end, is cut in two halves, one a tile. A tile sees its own SRAM and what lies in
//! its inbox, and nothing else. So heat flows in supersteps: the fabric carries the cells at the cut to the neighbour's
//! inbox, then both tiles compute one step, and again. One rod that was never cut must have the same bits.
//!
//! `cargo run --release --example 02_two_tiles_talk -- [DEVICE]`

use gaufre::device::{ALL_CLASSES, Args, Device, Elem, Held, Kernel, Lane, Real, Transfer, Variant, read, write};
use gaufre::program;

const TILES: usize = 2;
/// Cells of the rod on one tile.
const CELLS: usize = 16;
const STEPS: usize = 200;

gaufre::params! {
    /// This program needs to be told nothing but the number of tiles, `p.groups`.
    struct NoParams {}
}

/// One step: each cell becomes half of itself and a quarter of either neighbour.
static DIFFUSE: Kernel = Kernel {
    name: "diffuse",
    wgsl: "
        var<workgroup> sram: array<f32, WG>;

        //# entry diffuse
        @compute @workgroup_size(WG, 1, 1)
        fn diffuse(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
            let tile = id.x;
            if (tile >= p.groups) {
                return;
            }
            sram[lane] = rod[tile * WG + lane];
            workgroupBarrier();
            // A neighbour on this tile is in SRAM; one on another tile was delivered before the step.
            var left = inbox[2u * tile];
            var right = inbox[2u * tile + 1u];
            if (lane > 0u) {
                left = sram[lane - 1u];
            }
            if (lane + 1u < WG) {
                right = sram[lane + 1u];
            }
            rod[tile * WG + lane] = fma(0.5, sram[lane], 0.25 * (left + right));
        }",
    bindings: &[read("inbox", Lane::F32), write("rod", Lane::F32)],
    params: NoParams::FIELDS,
    variants: &[Variant { name: "16 cells", classes: ALL_CLASSES, constants: &[("WG", CELLS as u32)] }],
    held: |_| Held::NOTHING,
    reference_f32: diffuse,
    reference_f64: diffuse,
    host: None,
};

/// The same in Rust, tile by tile.
fn diffuse<F: Real>(args: &mut Args<'_, F>) {
    let (inbox, rod) = (args.read(0), args.write(1));
    for (tile, cells) in rod.chunks_mut(CELLS).take(args.groups as usize).enumerate() {
        let next = step(cells, inbox[2 * tile], inbox[2 * tile + 1]);
        cells.copy_from_slice(&next);
    }
}

/// One step of a piece of the rod between what lies left and right of it.
fn step<F: Real>(cells: &[F], left: F, right: F) -> Vec<F> {
    let at = |i: usize| cells.get(i).copied();
    let cell = |i: usize| {
        let (left, right) = (i.checked_sub(1).and_then(at).unwrap_or(left), at(i + 1).unwrap_or(right));
        F::of(0.5).mul_add(cells[i], F::of(0.25) * (left + right))
    };
    (0..cells.len()).map(cell).collect()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = Device::open(std::env::args().nth(1).as_deref().unwrap_or("auto"), 0)?;
    println!("{}", device.why());
    let rod = device.buffer("rod", Elem::F32, TILES * CELLS)?;
    let inbox = device.buffer("inbox", Elem::F32, 2 * TILES)?;
    // Nobody delivers to the outer ends: heat on the left and cold on the right stay there.
    device.upload(&inbox.all(), &[1.0f32, 0.0, 0.0, 0.0])?;

    // Along the one link of this fabric, both ways: (cell that leaves, place in an inbox where it arrives).
    let links = [(CELLS - 1, 2), (CELLS, 1)].map(|(from, to)| Transfer {
        source: rod.clone(),
        source_offset: from,
        source_stride: 1,
        target: inbox.clone(),
        target_offset: to,
        target_stride: 1,
        rows: 1,
        cols: 1,
    });
    for _ in 0..STEPS {
        device.exchange(&links)?;
        program::launch(&device, &DIFFUSE, &NoParams {}, |_| TILES as u32, &[inbox.all(), rod.all()])?;
    }
    let halves = device.download(&rod.all())?;

    let mut whole = vec![0.0f32; TILES * CELLS];
    for _ in 0..STEPS {
        whole = step(&whole, 1.0, 0.0);
    }
    let shown = |cells: &[f32]| cells.iter().step_by(4).map(|x| format!("{x:.3}")).collect::<Vec<_>>().join(" ");
    println!("two tiles: {}\none rod:   {}", shown(&halves), shown(&whole));
    let counted = device.counters();
    println!("{} messages of 4 bytes in {STEPS} supersteps", counted.messages);
    let bits = |cells: &[f32]| cells.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
    if bits(&halves) != bits(&whole) || counted.messages != (2 * STEPS) as u64 {
        return Err("the cut can be seen".into());
    }
    println!("ok: equal bits");
    Ok(())
}
