//! What `gaufre train` trains on when nothing is named: the source of this program, so that a fresh clone has something to
//! show. It must never know how a model is trained.

use std::path::{Path, PathBuf};

use crate::train::config::Config;

/// The model that may come without data.
const MODEL: &str = "demo";

/// Steps of the demo and what goes with them: two minutes on two cores.
const STEPS: u64 = 2500;
const BATCH_SIZE: usize = 8;
const LR: f64 = 2e-3;

/// The configuration with the demo's data, where no other was named, and with the demo's values for what was not `given`.
/// An error says what to name.
pub(super) fn fill(mut config: Config, given: &[String]) -> anyhow::Result<Config> {
    if !config.data.is_empty() || config.model != MODEL || config.init.is_some() {
        return Ok(config);
    }
    let here = std::env::current_dir().unwrap_or_default();
    let Some(root) = [Path::new(env!("CARGO_MANIFEST_DIR")), &here].into_iter().find(|root| is_checkout(root)) else {
        anyhow::bail!(
            "--data is missing, and there is no source of gaufre here to train the demo on; give text files or folders, as \
             in: gaufre train --data FOLDER"
        );
    };
    config.data = sources(root);
    sizes(&mut config, given);
    let missing = |key: &str| !given.iter().any(|k| k == key);
    if missing("steps") {
        config.steps = STEPS;
    }
    if missing("lr") {
        config.lr = LR;
    }
    if missing("eval_every") {
        config.eval_every = config.steps.div_ceil(4);
    }
    Ok(config)
}

/// The demo's sizes, where no other model or data is named, for what was not `given`.
pub(super) fn sizes(config: &mut Config, given: &[String]) {
    let demo = config.model == MODEL && config.init.is_none() && !given.iter().any(|key| key == "data");
    if demo && !given.iter().any(|key| key == "batch_size") {
        config.batch_size = BATCH_SIZE;
    }
}

/// Whether a folder holds the source of this program.
fn is_checkout(root: &Path) -> bool {
    let package = std::fs::read_to_string(root.join("Cargo.toml")).unwrap_or_default();
    package.contains("name = \"gaufre\"") && root.join("src").is_dir() && root.join("shaders").is_dir()
}

/// `src`, `shaders` and `*.md` of a checkout, as they may be named from here.
fn sources(root: &Path) -> Vec<PathBuf> {
    let mut pages: Vec<PathBuf> = std::fs::read_dir(root)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "md"))
        .collect();
    pages.sort();
    // The end of it is held out: that should be like the rest, which most of all is Rust.
    pages.into_iter().chain([root.join("shaders"), root.join("src")]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_demo_without_data_is_filled() {
        let demo = fill(Config::default(), &["lr".into()]).unwrap();
        assert!(demo.data.len() >= 4 && demo.data.iter().any(|p| p.ends_with("src")), "{:?}", demo.data);
        assert_eq!((demo.steps, demo.lr), (STEPS, Config::default().lr));
        let named = Config { data: vec!["text".into()], ..Config::default() };
        assert_eq!(fill(named.clone(), &[]).unwrap(), named);
        let other = Config { model: "gpt2".into(), ..Config::default() };
        assert_eq!(fill(other.clone(), &[]).unwrap(), other);
        assert!(!is_checkout(Path::new("src")));
    }
}
