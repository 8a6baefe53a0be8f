//! The manifest of a store on a disk: which place of each array is current, and the state of the run beside. What it says is
//! the checkpoint, so it is replaced whole, after all that it names is durable. It must never know what an array holds.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use super::disk::DiskError;
use super::durable::ReadError;

/// File of the manifest.
pub const MANIFEST: &str = "manifest.json";

/// The two places of an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The first.
    A,
    /// The second.
    B,
}

impl Side {
    /// The other one.
    pub fn other(self) -> Side {
        match self {
            Side::A => Side::B,
            Side::B => Side::A,
        }
    }
}

/// The current place of each array: the file that makes a step the last one.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Whether arrays have one place.
    pub in_place: bool,
    /// Steps committed.
    pub step: u64,
    /// Where each array is that is not its formula any more.
    pub arrays: BTreeMap<String, Side>,
    /// What the caller keeps beside.
    pub state: serde_json::Value,
    hash: String,
}

impl Manifest {
    /// With the hash of what it holds.
    pub fn new(in_place: bool, step: u64, arrays: BTreeMap<String, Side>, state: serde_json::Value) -> Manifest {
        let mut manifest = Manifest { in_place, step, arrays, state, hash: String::new() };
        manifest.hash = manifest.digest();
        manifest
    }

    fn digest(&self) -> String {
        let all = (self.in_place, self.step, &self.arrays, &self.state);
        format!("{:032x}", xxh3_128(&serde_json::to_vec(&all).expect("JSON values are written as JSON")))
    }

    /// Reads a manifest; `None` where there is none.
    ///
    /// # Errors
    /// [`DiskError::Damaged`] where it is not what was written, [`DiskError::Read`].
    pub fn read(path: &Path) -> Result<Option<Manifest>, DiskError> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(ReadError { path: path.into(), source }.into()),
        };
        let damaged = |reason: String| DiskError::Damaged { path: path.into(), reason };
        let found: Manifest = serde_json::from_slice(&text).map_err(|e| damaged(e.to_string()))?;
        match found.hash == found.digest() {
            true => Ok(Some(found)),
            false => Err(damaged("its hash is not that of what it holds".into())),
        }
    }
}
