//! Philox against its published vectors. What its WGSL computes is held, bit for bit, by the tests of the programs that
//! draw from it: `initial`, `round`, `dropout`.

use gaufre::program::philox::philox;

/// The vectors of the Random123 distribution.
#[test]
fn philox_known_answers() {
    let cases = [
        ([0; 4], [0; 2], [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]),
        ([u32::MAX; 4], [u32::MAX; 2], [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]),
        (
            [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
            [0xa4093822, 0x299f31d0],
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
        ),
    ];
    for (counter, key, want) in cases {
        assert_eq!(philox(counter, key), want);
    }
}
