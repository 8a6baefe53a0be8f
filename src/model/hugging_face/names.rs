//! The names of tensors: ours against those of a family, one table of pairs for each. It must never know a value.

use std::collections::BTreeSet;

use super::Family;
use crate::model::config::Config;
use crate::model::table::{Parameter, Table};
use crate::store::order::Order;

/// How a family calls its tensors.
pub(super) struct Names {
    /// What checkpoints of the whole model write before all names but the head's; those of the bare transformer do not.
    pub prefix: &'static str,
    /// The list of blocks, which is `h` here.
    pub layers: &'static str,
    /// Ours and theirs, where they differ: tables and the last norm as they are, parts of a block without its number.
    pub pairs: &'static [(&'static str, &'static str)],
    /// The head. The first is written; all are read.
    pub heads: &'static [&'static str],
    /// Buffers of old versions, which are passed over: parts of a block, or beside the blocks.
    pub buffers: &'static [&'static str],
}

impl Names {
    /// The names that a tensor may have, without the prefix; the first is written.
    fn bare(&self, ours: &str) -> Vec<String> {
        let (stem, kind) = ours.rsplit_once('.').unwrap_or((ours, ""));
        let theirs =
            |part: &str| self.pairs.iter().find(|(own, _)| *own == part).map_or(part.to_owned(), |p| p.1.into());
        match stem.strip_prefix("h.").and_then(|rest| rest.split_once('.')) {
            Some((number, part)) => vec![format!("{}.{number}.{}.{kind}", self.layers, theirs(part))],
            None if stem == "lm_head" => self.heads.iter().map(|head| format!("{head}.{kind}")).collect(),
            None => vec![format!("{}.{kind}", theirs(stem))],
        }
    }

    /// The same with it, where there is one.
    fn full(&self, ours: &str) -> Vec<String> {
        let prefix = if ours.starts_with("lm_head.") { "" } else { self.prefix };
        self.bare(ours).into_iter().map(|name| format!("{prefix}{name}")).collect()
    }

    fn is_buffer(&self, name: &str) -> bool {
        let name = name.strip_prefix(self.prefix).unwrap_or(name);
        let part = name.strip_prefix(self.layers).and_then(|rest| rest.strip_prefix('.'));
        let part = part.and_then(|rest| rest.split_once('.'));
        let part = part.filter(|(number, _)| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()));
        self.buffers.contains(&part.map_or(name, |(_, part)| part))
    }
}

/// Where a tensor of the table stands in a checkpoint of transformers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its name there.
    pub name: String,
    /// How it lies there.
    pub order: Order,
}

/// Why the names of a checkpoint do not fit a model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NamesError {
    /// A tensor of the model that is not there.
    #[error("tensor {name} is missing: the checkpoint is not of the model that its config.json describes")]
    Missing {
        /// The tensor, without prefix.
        name: String,
    },
    /// A tensor that the model does not have.
    #[error("tensor {name} is not one of the model that config.json describes")]
    Extra {
        /// The tensor.
        name: String,
    },
}

/// Where each tensor of a model stands among the names of a checkpoint, in the order of its table. Buffers of old versions
/// are passed over, and so are the [`heads`] of a model whose head is the token table.
///
/// # Errors
/// [`NamesError`] names the first tensor that is missing or too many.
pub fn locate<'a>(config: &Config, names: impl Iterator<Item = &'a str>) -> Result<Vec<Stored>, NamesError> {
    let family = Family::of(config);
    let heads = heads(config);
    let tied = |name: &str| config.tied && heads.iter().any(|head| head == name);
    let mut left: BTreeSet<&str> = names.filter(|name| !family.names.is_buffer(name) && !tied(name)).collect();
    let mut stored = Vec::new();
    for parameter in Table::new(config).parameters {
        let bare = family.names.bare(&parameter.name);
        let mut known = family.names.full(&parameter.name).into_iter().chain(bare.iter().cloned());
        let name = known.find(|name| left.remove(name.as_str()));
        let name = name.ok_or_else(|| NamesError::Missing { name: bare[0].clone() })?;
        stored.push(Stored { name, order: (family.order)(config, &parameter) });
    }
    match left.first() {
        Some(name) => Err(NamesError::Extra { name: (*name).to_owned() }),
        None => Ok(stored),
    }
}

/// How a tensor of a model is written for transformers. A part that the family does not have keeps its name:
/// [`write_config`](super::write_config) refuses such a model.
pub fn stored_as(config: &Config, parameter: &Parameter) -> Stored {
    let family = Family::of(config);
    Stored { name: family.names.full(&parameter.name).swap_remove(0), order: (family.order)(config, parameter) }
}

/// The names of the head's weight in checkpoints of a model. Where the head is the token table a file may hold it all the
/// same: then it must equal that.
pub fn heads(config: &Config) -> Vec<String> {
    Family::of(config).names.full("lm_head.weight")
}
