//! The wafer that a run plays on, as a person names it: a grid or a machine, the SRAM of a tile, the defects. It makes the
//! grid of the names; it must never know what runs on it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::config::{Config, ConfigError};
use super::plan;
use super::run::TrainError;
use super::step::Setup;
use crate::data::Shape;
use crate::device::{Class, DEFAULT_TILE_SRAM, Device, Limits, SramUse, expand};
use crate::model::Config as Model;
use crate::program::schedule::Schedule;
use crate::store::Placement;
use crate::wafer::{Defects, MACHINES, Machine, Wafer, WaferError};

/// Most tiles of a side that `auto` takes.
const MOST_AUTO: usize = 32;
/// Rows and columns of the blocks that `auto` counts in.
const BLOCK: usize = 64;

/// A wafer: `auto`, `wse1`, `wse2`, `wse3` or `8x8`, each with the bytes of a tile's SRAM behind a colon where it shall be
/// another.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WaferSpec {
    /// Its tiles.
    pub size: Size,
    /// Bytes of SRAM on each.
    pub sram: Option<u32>,
}

/// The tiles of a wafer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Size {
    /// As many as the work has blocks.
    Auto,
    /// Those that programs may use on a machine.
    Machine(&'static Machine),
    /// So many from left to right and from top to bottom.
    Sides(u32, u32),
}

impl WaferSpec {
    /// The wafer of a model and a batch, with what is dead on it.
    ///
    /// # Errors
    /// [`ConfigError`] for a map of defects that cannot be read, or that leaves nothing.
    pub fn wafer(&self, defects: Option<&Flaws>, model: &Model, shape: &Shape) -> Result<Wafer, ConfigError> {
        let side = |len: usize| len.div_ceil(BLOCK).clamp(1, MOST_AUTO) as u32;
        let (width, height) = match self.size {
            Size::Auto => (side(model.d_model), side(shape.batch_size * shape.seq_len)),
            Size::Machine(machine) => (machine.width as u32, machine.height as u32),
            Size::Sides(width, height) => (width, height),
        };
        match defects {
            None => Ok(Wafer::new(width, height)),
            Some(flaws) => flaws.wafer(width, height),
        }
    }

    /// Bytes of SRAM on a tile of a device: what was said, else that of the machine, else that of a WSE-2 or what an adapter
    /// gives to a workgroup, if that is more.
    pub fn sram(&self, limits: &Limits) -> u32 {
        let adapter = if limits.threads == 0 { limits.workgroup_bytes } else { 0 };
        self.sram.unwrap_or(match self.size {
            Size::Machine(machine) => machine.tile_sram_bytes as u32,
            Size::Auto => DEFAULT_TILE_SRAM.max(adapter),
            Size::Sides(..) => DEFAULT_TILE_SRAM,
        })
    }

    /// What a run in supersteps is told of its tiles.
    pub fn told(wafer: &Wafer, model: &Model, shape: &Shape) -> String {
        let blocks = |len: usize| (len.div_ceil(BLOCK) as u32).max(1);
        let widest = [model.d_model, model.d_ff(), model.vocab_size].into_iter().max().unwrap_or(1);
        let (busy, high) =
            (wafer.width.min(blocks(widest)), wafer.height.min(blocks(shape.batch_size * shape.seq_len)));
        let idle = u64::from(wafer.width) * u64::from(wafer.height) - u64::from(busy) * u64::from(high);
        let mut told = format!("supersteps on {} x {} tiles", wafer.width, wafer.height);
        if idle > 0 {
            told += &format!(", {idle} of them idle: the work has {busy} x {high} blocks at most");
        }
        if !wafer.mesh().is_whole() {
            let (width, height) = wafer.mesh().size();
            told += &format!(", placed on {width} x {height} of which some are dead");
        }
        told
    }
}

/// Holds every program of a step against the SRAM of a tile, before the first dispatch; all of them fit a tile of a WSE-2.
///
/// # Errors
/// [`ConfigError::Value`] with what the largest program needs; what the device says.
pub fn check(config: &Config, setup: &Setup, device: &Device) -> Result<(), TrainError> {
    let available = device.limits().tile_sram;
    if available >= DEFAULT_TILE_SRAM {
        return Ok(());
    }
    let limits = Limits { tile_sram: u32::MAX, ..device.limits().clone() };
    let fused = Setup { schedule: Schedule::Fused, placement: Placement::Resident, archive: None, ..setup.clone() };
    let ledger = plan::count(&Device::blank(device.class(), limits), &fused)?.first;
    let mut most = (0, "");
    for (kernel, variant) in ledger.kernels {
        let needed = match device.class() {
            Class::Native => (kernel.held)(variant).total(),
            _ => SramUse::of(kernel, variant, &expand(kernel, variant)?)?.total,
        };
        most = most.max((needed, kernel.name));
    }
    if most.0 > available {
        let (needed, program) = most;
        let grid = WaferSpec { sram: None, ..config.wafer };
        let cure = format!(
            "{program} needs {needed} bytes of a tile's SRAM, {available} are available; write {grid}:{needed}, or more"
        );
        return Err(ConfigError::Value { flag: "wafer", value: config.wafer.to_string(), cure }.into());
    }
    Ok(())
}

impl FromStr for WaferSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<WaferSpec, String> {
        let (name, sram) = text.split_once(':').map_or((text, None), |(name, sram)| (name, Some(sram)));
        let side = |s: &str| s.parse().ok().filter(|n| (1..=65535).contains(n));
        let machine = MACHINES.into_iter().find(|m| m.name.replace('-', "").eq_ignore_ascii_case(name));
        let size = match (name, machine) {
            ("auto", _) => Some(Size::Auto),
            (_, Some(machine)) => Some(Size::Machine(machine)),
            _ => name.split_once('x').and_then(|(w, h)| Some(Size::Sides(side(w)?, side(h)?))),
        };
        let size = size.ok_or_else(|| {
            format!("{text:?} is no wafer; write auto, wse1, wse2, wse3, or 8x8 for a grid, each side 1 to 65535")
        })?;
        let bytes = |text: &str| super::values::bytes(text).ok().and_then(|bytes| u32::try_from(bytes).ok());
        let sram = sram.map(|text| {
            let cure = || format!("{text:?} is no SRAM of a tile; write 8x8:48KiB, or a number of bytes");
            bytes(text).filter(|bytes| *bytes > 0).ok_or_else(cure)
        });
        Ok(WaferSpec { size, sram: sram.transpose()? })
    }
}

impl fmt::Display for WaferSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.size {
            Size::Auto => f.write_str("auto")?,
            Size::Machine(machine) => f.write_str(&machine.name.replace('-', "").to_lowercase())?,
            Size::Sides(width, height) => write!(f, "{width}x{height}")?,
        }
        self.sram.map_or(Ok(()), |sram| write!(f, ":{sram}"))
    }
}

impl TryFrom<String> for WaferSpec {
    type Error = String;

    fn try_from(text: String) -> Result<WaferSpec, String> {
        text.parse()
    }
}

impl From<WaferSpec> for String {
    fn from(tiles: WaferSpec) -> String {
        tiles.to_string()
    }
}

/// What is dead on a wafer: `RATE:SEED`, or the file of a map.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Flaws {
    /// Each tile and link with a probability, drawn by a seed.
    Drawn {
        /// The probability.
        rate: f64,
        /// The seed.
        seed: u64,
    },
    /// What a file names: see [`Defects::parse`].
    Map(PathBuf),
}

impl Flaws {
    fn wafer(&self, width: u32, height: u32) -> Result<Wafer, ConfigError> {
        let wrong = |error: WaferError| ConfigError::Value {
            flag: "defects",
            value: String::from(self.clone()),
            cure: error.to_string(),
        };
        let defects = match self {
            Flaws::Drawn { rate, seed } => Defects::random(width, height, *rate, *seed),
            Flaws::Map(path) => {
                let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Value {
                    flag: "defects",
                    value: path.display().to_string(),
                    cure: format!("{error}; give a map of defects, or RATE:SEED as in 0.01:7"),
                })?;
                Defects::parse(&text, &path.display().to_string()).map_err(wrong)?
            }
        };
        Wafer::with_defects(width, height, &defects).map_err(wrong)
    }
}

impl From<String> for Flaws {
    fn from(text: String) -> Flaws {
        let drawn = text.split_once(':').and_then(|(rate, seed)| Some((rate.parse().ok()?, seed.parse().ok()?)));
        match drawn {
            Some((rate, seed)) if (0.0..=1.0).contains(&rate) => Flaws::Drawn { rate, seed },
            _ => Flaws::Map(text.into()),
        }
    }
}

impl From<&str> for Flaws {
    fn from(text: &str) -> Flaws {
        text.to_owned().into()
    }
}

impl From<Flaws> for String {
    fn from(flaws: Flaws) -> String {
        match flaws {
            Flaws::Drawn { rate, seed } => format!("{rate}:{seed}"),
            Flaws::Map(path) => path.display().to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_was_read() {
        for text in ["auto", "wse1", "wse2", "wse3", "8x8", "757x996", "auto:65536", "3x2:4096"] {
            assert_eq!(text.parse::<WaferSpec>().unwrap().to_string(), text);
        }
        assert_eq!("4x4:48KiB".parse::<WaferSpec>().unwrap().sram, Some(48 * 1024));
        let wse2 = "wse2".parse::<WaferSpec>().unwrap();
        let Size::Machine(machine) = wse2.size else { panic!("{wse2:?}") };
        assert_eq!((machine.width, machine.height), (750, 994));
        for bad in ["", "8", "0x8", "8x8:", "8x8:0", "wse4", "8x65536", "8x8:5GiB", "axb"] {
            let told = bad.parse::<WaferSpec>().unwrap_err();
            assert!(told.contains("8x8"), "{told}");
        }
    }

    #[test]
    fn defects_are_drawn_or_read() {
        assert_eq!(Flaws::from("0.01:7"), Flaws::Drawn { rate: 0.01, seed: 7 });
        assert_eq!(Flaws::from("map.txt"), Flaws::Map("map.txt".into()));
        assert_eq!(String::from(Flaws::from("0.5:9")), "0.5:9");
        let told = Flaws::from("2:7").wafer(4, 4).unwrap_err().to_string();
        assert!(told.contains("--defects 2:7") && told.contains("RATE:SEED"), "{told}");
        let told = Flaws::from("1:7").wafer(4, 4).unwrap_err().to_string();
        assert!(told.contains("no tile of the 4 x 4"), "{told}");
    }
}
