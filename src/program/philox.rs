//! Random words as a pure function of a key and a counter, so that any device, thread or cut of a tensor draws the
//! same: Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011), all
//! integer.
//!
//! Its WGSL, `shaders/philox.wgsl`, is put before the shaders of the programs that draw from it. It must never know
//! what its words decide.

/// The text of a shader file behind that of Philox, whose path is said too where it is not two folders up.
macro_rules! with_philox {
    ($file:literal) => {
        concat!(include_str!("../../shaders/philox.wgsl"), include_str!($file))
    };
    ($philox:literal, $file:literal) => {
        concat!(include_str!($philox), include_str!($file))
    };
}
pub(super) use with_philox;

/// Last word of the counter for initial values. It keeps the streams of one key apart.
pub(super) const PARAMETERS: u32 = 0;
/// The same for [`word`](super::initial::word).
pub(super) const WORDS: u32 = 1;
/// The same for [`round`](super::round), which uses the bytes above the lowest one as well.
pub(super) const ROUNDING: u32 = 2;
/// The same for [`dropout`](super::dropout).
pub(super) const DROPOUT: u32 = 3;

/// The two words of a key.
pub(super) fn key(seed: u64) -> [u32; 2] {
    [seed as u32, (seed >> 32) as u32]
}

/// Philox4x32-10: four random words for a counter and a key.
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    philox_lanes(counter.map(|c| [c]), key).map(|[c]| c)
}

/// The same for `N` counters side by side.
#[inline(always)]
pub(super) fn philox_lanes<const N: usize>(mut c: [[u32; N]; 4], mut key: [u32; 2]) -> [[u32; N]; 4] {
    for _ in 0..10 {
        let [c0, c1, c2, c3] = &mut c;
        for (((c0, c1), c2), c3) in c0.iter_mut().zip(c1).zip(c2).zip(c3) {
            let a = u64::from(*c0) * 0xD251_1F53;
            let b = u64::from(*c2) * 0xCD9E_8D57;
            let (x, y) = ((b >> 32) as u32 ^ *c1 ^ key[0], (a >> 32) as u32 ^ *c3 ^ key[1]);
            (*c0, *c1, *c2, *c3) = (x, b as u32, y, a as u32);
        }
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    c
}

/// Elements with the index of the first.
pub(super) type Indexed<'a> = (u64, &'a mut [f32]);

/// Divides a run of elements that begins at index `first`, where a block of words serves `BLOCK` elements: what stands
/// before the first whole block and what is left at the end, and between them, with the number of their first block,
/// groups of `GROUP` elements, a multiple of `BLOCK`, for [`philox_lanes`].
#[inline(always)]
pub(super) fn aligned<const BLOCK: usize, const GROUP: usize>(
    first: u64,
    run: &mut [f32],
) -> ([Indexed<'_>; 2], (u64, &mut [[f32; GROUP]])) {
    let head = (first.wrapping_neg() % BLOCK as u64).min(run.len() as u64) as usize;
    let (head, rest) = run.split_at_mut(head);
    let begin = first + head.len() as u64;
    let (groups, tail) = rest.as_chunks_mut::<GROUP>();
    let end = begin + (GROUP * groups.len()) as u64;
    ([(first, head), (end, tail)], (begin / BLOCK as u64, groups))
}
