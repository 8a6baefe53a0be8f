//! The wafers that exist, as numbers: what a cost in cycles and seconds is reckoned from. It must never know a program: a
//! number here is published, or derived here from what is published, and its comment says which.
//!
//! "HC34" is the vendor's talk at Hot Chips 34, "SC24" the vendor's and Argonne's tutorial slides at SC24, "SDK" the examples
//! and documents of the vendor's SDK, "HPDC'24" arXiv 2404.15888, "SC20" arXiv 2010.03660.

/// A wafer-scale engine: a grid of tiles (a core, its SRAM, its router), each joined to four neighbours by a link in either
/// direction, and a link that leaves the wafer.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    /// Its name, in small letters.
    pub name: &'static str,
    /// Tiles along x that the fabric has.
    pub fabric_width: u64,
    /// Tiles along y that the fabric has.
    pub fabric_height: u64,
    /// Tiles along x that a program may use.
    pub width: u64,
    /// Tiles along y that a program may use.
    pub height: u64,
    /// SRAM of a tile in bytes, for code and data.
    pub tile_sram_bytes: u64,
    /// Cycles a second.
    pub clock_hz: f64,
    /// Bits that a link carries a cycle, in each direction; a wavelet is as long.
    pub link_bits: u64,
    /// Cycles from a router to the next.
    pub hop_cycles: u64,
    /// Cycles from a core to its router, or back (T_R).
    pub ramp_cycles: u64,
    /// Bytes a second that enter the wafer; as many may leave it at the same time.
    pub off_wafer_bytes_per_second: f64,
    /// Multiply-adds of a tile a cycle, 16-bit operands.
    pub macs_16: u64,
    /// Multiply-adds of a tile a cycle, 32-bit operands.
    pub macs_32: u64,
    /// Bits that a tile reads from its SRAM a cycle.
    pub sram_read_bits: u64,
    /// Bits that a tile writes to its SRAM a cycle.
    pub sram_write_bits: u64,
}

/// WSE-1 (CS-1, 2019).
///
/// - Fabric: 84 dies of 4,539 tiles (SC20). Derived: 4,539 = 51 x 89 is the one split in the proportion of a die (17 mm x
///   30 mm), in 12 x 7 dies.
/// - Usable: the rectangle of SC20's solver, which has room for its mesh of 600 x 595 lines.
/// - SRAM: 48 KiB; 16 bytes read and 8 written a cycle (SC20).
/// - Clock: not published. Derived: 0.86 PF are "about one third" of the peak (SC20), so 2.58 PF / (602 * 595 tiles * 8
///   operations) = 0.90 GHz, no surer than that third. The published 9 PB/s give 0.94 GHz, 100 Pb/s of fabric 0.98 GHz.
/// - Link: derived from those 100 Pb/s over 400,000 tiles, 278 bits a cycle, of which four links in two directions of 32
///   bits are 256.
/// - Hop and ramp: derived, those of WSE-2.
/// - Off the wafer: twelve ports of 100 Gb/s Ethernet (press).
/// - 16 bit: derived, as many as 16 bytes read and 8 written feed. 32 bit: derived, that of WSE-2.
pub const WSE1: Machine = Machine {
    name: "wse-1",
    fabric_width: 612,
    fabric_height: 623,
    width: 602,
    height: 595,
    tile_sram_bytes: 48 * 1024,
    clock_hz: 0.90e9,
    link_bits: 32,
    hop_cycles: 1,
    ramp_cycles: 2,
    off_wafer_bytes_per_second: 150e9,
    macs_16: 4,
    macs_32: 1,
    sram_read_bits: 128,
    sram_write_bits: 64,
};

/// WSE-2 (CS-2, 2021).
///
/// - Fabric: `--fabric-dims=757,996`; usable: seven columns and two rows less, which the host's traffic takes (SDK).
/// - SRAM: 48 KiB in 8 banks, two reads and a write of 64 bits a cycle (HC34).
/// - Clock: 850 MHz, by which the SDK's examples and HPDC'24 convert cycles; 1.1 GHz is the most (HC34).
/// - Link: 32 bits a cycle in each direction, a hop a cycle (SDK).
/// - Ramp: 2 cycles, measured (HPDC'24).
/// - Off the wafer: twelve ports of 100 Gb/s Ethernet, 1.2 Tb/s (SC24).
/// - 16 bit: four multiply-adds wide (HC34). 32 bit: derived from the 1.785 PF that the vendor draws as the roof of 32-bit
///   arithmetic (SC24), about one; unsure.
pub const WSE2: Machine = Machine {
    name: "wse-2",
    fabric_width: 757,
    fabric_height: 996,
    width: 750,
    height: 994,
    tile_sram_bytes: super::WSE2_TILE_SRAM as u64,
    clock_hz: 0.85e9,
    link_bits: 32,
    hop_cycles: 1,
    ramp_cycles: 2,
    off_wafer_bytes_per_second: 150e9,
    macs_16: 4,
    macs_32: 1,
    sram_read_bits: 128,
    sram_write_bits: 64,
};

/// WSE-3 (CS-3, 2024).
///
/// - Fabric: `--fabric-dims=762,1172` (SDK); usable: derived, seven columns and two rows less, as on WSE-2.
/// - SRAM: 44 GB over 900,000 tiles (the vendor), derived: the 48 KiB of WSE-2. Reads and writes: derived from 21 PB/s, 27
///   bytes a cycle, so the 24 of WSE-2.
/// - Clock: 875 MHz, by one study; the vendor names none.
/// - Link: derived, that of WSE-2, which the published 214 Pb/s agree with.
/// - Hop and ramp: 1 and 5 cycles (SC24, page 9).
/// - Off the wafer: 1.2 Tb/s (SC24).
/// - 16 bit: eight multiply-adds wide (the vendor). 32 bit: derived, that of WSE-2, as nothing says more.
pub const WSE3: Machine = Machine {
    name: "wse-3",
    fabric_width: 762,
    fabric_height: 1172,
    width: 755,
    height: 1170,
    tile_sram_bytes: 48 * 1024,
    clock_hz: 0.875e9,
    link_bits: 32,
    hop_cycles: 1,
    ramp_cycles: 5,
    off_wafer_bytes_per_second: 150e9,
    macs_16: 8,
    macs_32: 1,
    sram_read_bits: 128,
    sram_write_bits: 64,
};

/// All machines, the oldest first.
pub const MACHINES: [&Machine; 3] = [&WSE1, &WSE2, &WSE3];

impl Machine {
    /// The machine of a name: `wse-2`, or `cs-2` after the system that holds it; none for any other name.
    pub fn by_name(name: &str) -> Option<&'static Machine> {
        let name = name.to_lowercase().replace("cs-", "wse-");
        MACHINES.into_iter().find(|machine| machine.name == name)
    }

    /// Tiles that a program may use.
    pub fn tiles(&self) -> u64 {
        self.width * self.height
    }

    /// Bytes of SRAM that a program may use.
    pub fn sram_bytes(&self) -> u64 {
        self.tiles() * self.tile_sram_bytes
    }

    /// Multiply-adds a second of all usable tiles, 16-bit operands.
    pub fn peak_macs(&self) -> f64 {
        (self.tiles() * self.macs_16) as f64 * self.clock_hz
    }

    /// Cycles in which a core takes in a wavelet, works, and sends one: its ramp down and up, and the work.
    pub fn turn_cycles(&self) -> u64 {
        2 * self.ramp_cycles + 1
    }

    /// Seconds of so many cycles.
    pub fn seconds(&self, cycles: f64) -> f64 {
        cycles / self.clock_hz
    }

    /// Wavelets that so many bits take.
    pub(super) fn wavelets(&self, bits: u64) -> u64 {
        bits.div_ceil(self.link_bits)
    }

    /// Seconds in which so many bytes enter the wafer, or leave it.
    pub fn off_wafer_seconds(&self, bytes: u64) -> f64 {
        bytes as f64 / self.off_wafer_bytes_per_second
    }

    /// The most tokens whose activations the SRAM of the usable tiles holds, beside `reserved` bytes on every tile for code
    /// and buffers. Weights take no room: they pass.
    ///
    /// # Panics
    /// For a token of no bytes.
    pub fn tokens_max(&self, bytes_per_token: u64, reserved: u64) -> u64 {
        assert!(bytes_per_token > 0, "a token has bytes");
        self.tiles() * self.tile_sram_bytes.saturating_sub(reserved) / bytes_per_token
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_find_their_machines() {
        for (name, wanted) in [("wse-1", &WSE1), ("WSE-2", &WSE2), ("cs-2", &WSE2), ("CS-3", &WSE3)] {
            assert_eq!(Machine::by_name(name), Some(wanted));
        }
        assert_eq!(Machine::by_name("wse-4"), None);
    }

    #[test]
    fn what_is_derived_agrees_with_what_is_published() {
        // Tiles, and petabytes a second of SRAM at the highest clock that is published or derived.
        let near = |value: f64, published: f64, share: f64| (value / published - 1.0).abs() <= share;
        assert_eq!(WSE1.fabric_width * WSE1.fabric_height, 84 * 4539);
        assert_eq!(WSE2.fabric_width * WSE2.fabric_height, 753_972);
        assert!(near(WSE2.peak_macs() * 2.0, 5.07e15, 0.001), "{}", WSE2.peak_macs());
        let sram = |machine: &Machine, tiles: f64, hz: f64| {
            tiles * (machine.sram_read_bits + machine.sram_write_bits) as f64 / 8.0 * hz
        };
        assert!(near(sram(&WSE1, 400e3, WSE1.clock_hz), 9e15, 0.05));
        assert!(near(sram(&WSE2, 850e3, 0.98e9), 20e15, 0.01));
        assert!(near(sram(&WSE3, 900e3, WSE3.clock_hz), 21e15, 0.11));
        // Canary: a wafer of 16-bit links or half the SRAM ports would not agree.
        assert!(!near(sram(&Machine { sram_read_bits: 64, ..WSE2 }, 850e3, 0.98e9), 20e15, 0.01));
        for machine in MACHINES {
            assert!(machine.width <= machine.fabric_width && machine.height <= machine.fabric_height);
        }
    }

    #[test]
    fn tokens_fill_the_sram_and_no_more() {
        let per_token = 28 * 4096 * 2;
        let tokens = WSE2.tokens_max(per_token, 0);
        assert!(tokens * per_token <= WSE2.sram_bytes() && (tokens + 1) * per_token > WSE2.sram_bytes());
        assert!(WSE2.tokens_max(per_token, 8192) < tokens);
        assert_eq!(WSE2.tokens_max(per_token, 1 << 20), 0);
    }
}
