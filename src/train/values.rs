//! Words that a person types into values that are meant: places, numbers of bytes. One spelling for flags and for
//! `config.toml`. It must never know which flag a word came from.

use std::path::PathBuf;
use std::str::FromStr;

use serde::de::value::{Error as TextError, StrDeserializer};
use serde::{Deserialize, Deserializer, Serialize};

use crate::store::Placement;

/// Largest integer that TOML holds.
pub(super) const MOST: u64 = i64::MAX as u64;

/// Where the parameters live, written `resident`, `ram`, `disk` or `disk:FOLDER`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Home {
    /// On the device.
    Resident,
    /// In host memory.
    Ram,
    /// On a disk: in the folder named, else in `store` in the folder of the run.
    Disk(Option<PathBuf>),
}

impl Home {
    /// Where panels stay.
    pub fn placement(&self) -> Placement {
        match self {
            Home::Resident => Placement::Resident,
            Home::Ram => Placement::Ram,
            Home::Disk(_) => Placement::Disk,
        }
    }
}

impl FromStr for Home {
    type Err = String;

    fn from_str(text: &str) -> Result<Home, String> {
        match (text, text.split_once(':')) {
            ("resident", _) => Ok(Home::Resident),
            ("ram", _) => Ok(Home::Ram),
            ("disk", _) => Ok(Home::Disk(None)),
            (_, Some(("disk", folder))) if !folder.is_empty() => Ok(Home::Disk(Some(folder.into()))),
            _ => Err(format!("{text:?} is no place; write resident, ram, disk or disk:FOLDER")),
        }
    }
}

impl TryFrom<String> for Home {
    type Error = String;

    fn try_from(text: String) -> Result<Home, String> {
        text.parse()
    }
}

impl From<Home> for String {
    fn from(home: Home) -> String {
        match home {
            Home::Resident => "resident".into(),
            Home::Ram => "ram".into(),
            Home::Disk(None) => "disk".into(),
            Home::Disk(Some(folder)) => format!("disk:{}", folder.display()),
        }
    }
}

/// A value by its name in TOML, so that flags and files take the same words.
pub(super) fn named<T: for<'a> Deserialize<'a>>(text: &str) -> Result<T, TextError> {
    T::deserialize(StrDeserializer::new(text))
}

/// A number of things.
pub(super) fn whole<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("must be a whole number from 0 to {MOST}"))
}

/// A number of bytes: plain, or with a unit.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 8] = [
        ("", 1),
        ("B", 1),
        ("KIB", 1 << 10),
        ("MIB", 1 << 20),
        ("GIB", 1 << 30),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
    ];
    let text = text.trim();
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len()));
    let unit = unit.trim().to_ascii_uppercase();
    let value = UNITS.iter().find(|(name, _)| *name == unit).and_then(|&(_, scale)| match number.parse::<u64>() {
        Ok(whole) => whole.checked_mul(scale),
        Err(_) => number.parse().ok().map(|x: f64| x * scale as f64).filter(|x| *x < MOST as f64).map(|x| x as u64),
    });
    value
        .filter(|&n| n <= MOST)
        .ok_or_else(|| format!("{text:?} is no number of bytes; write 512MiB, 2GB or plain bytes"))
}

pub(super) fn bytes_of_toml<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(u64),
        Text(String),
    }
    match Either::deserialize(deserializer)? {
        Either::Number(n) => Ok(n),
        Either::Text(text) => bytes(&text).map_err(serde::de::Error::custom),
    }
}

/// The same, where it may be left out.
pub(super) fn maybe_bytes_of_toml<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    bytes_of_toml(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_units() {
        for (text, n) in [("17", 17), ("512MiB", 512 << 20), ("2GB", 2_000_000_000), ("1.5 kib", 1536), ("3B", 3)] {
            assert_eq!(bytes(text), Ok(n), "{text}");
        }
        for text in ["", "MiB", "-1", "1e3", "2XB", "99999999999GB", "9223372036854775808", "1.2.3"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn places_are_written_as_they_are_read() {
        for text in ["resident", "ram", "disk", "disk:a/b"] {
            assert_eq!(String::from(text.parse::<Home>().unwrap()), text);
        }
        assert!("disk:".parse::<Home>().is_err() && "tape".parse::<Home>().is_err());
    }
}
