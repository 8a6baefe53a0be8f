//! Rotary positions in a `config.json`: the two ways in which versions of transformers write them, read as one. It must never
//! know a family.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::refused;
use crate::model::config::{Config, ModelError};
use crate::program::rotary::Scaling;

/// What stands in a dictionary `rope_scaling` (older versions) or `rope_parameters` (newer ones).
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(default)]
pub(super) struct Parameters {
    rope_type: Option<String>,
    /// The same, older.
    r#type: Option<String>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

/// What a file says of rotary positions; `theta`, `partial` and `original_context` stand beside the dictionaries.
#[derive(Clone, Debug, Default)]
pub(super) struct Given {
    pub scaling: Option<Parameters>,
    pub parameters: Option<Parameters>,
    pub theta: Option<f64>,
    pub partial: Option<f64>,
    pub original_context: Option<usize>,
    pub context: usize,
}

/// What it means.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rope {
    pub base: f64,
    /// Share of a head's columns that turn, where it is said.
    pub partial: Option<f64>,
    pub scaling: Option<Scaling>,
}

/// The base where none is said.
const BASE: f64 = 10000.0;

impl Given {
    /// Reads it as transformers does: what stands in a dictionary comes before what stands beside it, and `rope_scaling`
    /// before `rope_parameters`.
    ///
    /// # Errors
    /// [`ModelError`] names the field.
    pub fn read(self, name: &str) -> Result<Rope, ModelError> {
        let (field, found) = match (self.scaling, self.parameters) {
            (Some(scaling), _) => ("rope_scaling", scaling),
            (None, found) => ("rope_parameters", found.unwrap_or_default()),
        };
        if let Some((key, _)) = found.others.iter().find(|(_, value)| value.is_object()) {
            return Err(refused(name, field, key, "positions that differ by layer cannot be read"));
        }
        let kind = found.rope_type.or(found.r#type).unwrap_or("default".into());
        let context = found.original_max_position_embeddings;
        let scaling = match kind.as_str() {
            "default" => None,
            "llama3" if self.original_context.is_some_and(|beside| context.is_some_and(|c| c != beside)) => {
                let beside = self.original_context.unwrap_or_default();
                let cure = format!("{field} says another; versions of transformers do not agree which one counts");
                return Err(refused(name, "original_max_position_embeddings", beside, &cure));
            }
            "llama3" => {
                let needed = |value: Option<f64>, key: &str| {
                    value.ok_or_else(|| refused(name, field, "llama3", &format!("{key} is missing in it")))
                };
                Some(Scaling {
                    factor: needed(found.factor, "factor")?,
                    low_freq_factor: needed(found.low_freq_factor, "low_freq_factor")?,
                    high_freq_factor: needed(found.high_freq_factor, "high_freq_factor")?,
                    original_context: context.or(self.original_context).unwrap_or(self.context),
                })
            }
            other => {
                return Err(refused(name, field, format!("{other:?}"), "only default and llama3 can be read"));
            }
        };
        let base = found.rope_theta.or(self.theta).unwrap_or(BASE);
        Ok(Rope { base, partial: found.partial_rotary_factor.or(self.partial), scaling })
    }
}

/// The dictionary `rope_scaling` of a model: every version reads it, and `rope_theta` beside it.
pub(super) fn scaling(config: &Config) -> Value {
    match config.rotary.as_ref().and_then(|r| r.scaling.as_ref()) {
        None => Value::Null,
        Some(scaling) => json!({
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        }),
    }
}

/// The base of a model.
pub(super) fn base(config: &Config) -> f64 {
    config.rotary.as_ref().map_or(BASE, |r| r.base)
}
