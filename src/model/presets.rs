//! The presets: one TOML file a model in `models/`, compiled in, so that an installed binary has them. It must never know
//! more of a model than its name and its text.

use super::config::{Config, ModelError};

macro_rules! presets {
    ($($name:literal),* $(,)?) => {
        /// Names and texts of all presets.
        pub const PRESETS: &[(&str, &str)] = &[$(($name, include_str!(concat!("../../models/", $name, ".toml")))),*];
    };
}

presets![
    "cerebras-gpt-111m",
    "cerebras-gpt-256m",
    "cerebras-gpt-590m",
    "cerebras-gpt-1.3b",
    "cerebras-gpt-2.7b",
    "cerebras-gpt-6.7b",
    "cerebras-gpt-13b",
    "demo",
    "gpt2",
    "gpt2-medium",
    "gpt2-large",
    "gpt2-xl",
    "gpt3-xl",
    "gpt3-13b",
    "gpt3-175b",
    "gpt-j-6b",
    "gpt-j-tiny",
    "gpt-neox-20b",
    "gpt-neox-tiny",
    "llama-3-8b",
    "llama-3.2-1b",
    "llama-tiny",
    "mistral-7b",
    "mistral-tiny",
    "pythia-70m",
    "pythia-160m",
    "pythia-410m",
    "qwen3-0.6b",
    "qwen3-tiny",
    "shakespeare-char",
];

/// The preset of a name.
///
/// # Errors
/// [`ModelError::Unknown`] with the near names.
pub fn preset(name: &str) -> Result<Config, ModelError> {
    match PRESETS.iter().find(|(n, _)| *n == name) {
        Some((n, text)) => Config::parse(n, text),
        None => Err(ModelError::Unknown { wanted: name.into(), near: near(name) }),
    }
}

/// The three presets whose names differ least.
fn near(name: &str) -> String {
    nearest(name, PRESETS.iter().map(|(n, _)| *n), 3)
}

/// Those `count` names that differ least from a word, the nearest first, in one line.
pub fn nearest<'a>(word: &str, names: impl IntoIterator<Item = &'a str>, count: usize) -> String {
    let mut names: Vec<&str> = names.into_iter().collect();
    names.sort_by_key(|n| distance(word, n));
    names.truncate(count);
    names.join(", ")
}

/// Edits from one word to another (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_lists_the_near_ones() {
        let error = preset("gpt2-larg").unwrap_err();
        assert_eq!(error, ModelError::Unknown { wanted: "gpt2-larg".into(), near: "gpt2-large, gpt2-xl, gpt2".into() });
    }
}
