//! `gaufre plan`: what a run will take, before it: on a wafer and on this machine, as a text, as JSON or as a page to look at.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;

use super::demo;
use super::typed::Typed;
use crate::train::config::Config;
use crate::train::plan;

/// The wafer that is planned for where none is named.
const WAFER: &str = "wse2";

/// Flags of the verb: those of a run, of which the ones that change no size are of no matter.
#[derive(clap::Args)]
#[command(mut_arg("wafer", |arg| arg.default_value(WAFER)))]
pub struct Flags {
    #[command(flatten)]
    config: Config,
    /// Print JSON: bytes, seconds and counts
    #[arg(long)]
    json: bool,
    /// Write a page to look at, which needs nothing but a browser
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// Flags, and which of them a person typed.
pub type Args = Typed<Flags>;

/// Prints the plan.
pub fn run(Args { flags, typed }: Args) -> anyhow::Result<ExitCode> {
    let Flags { mut config, json, html } = flags;
    demo::sizes(&mut config, &typed);
    let plan = plan::of(&config)?;
    if let Some(path) = &html {
        std::fs::write(path, plan.html())
            .with_context(|| format!("--html {}: cannot write the page", path.display()))?;
        eprintln!("the page is {}", path.display());
    }
    let text = if json { serde_json::to_string_pretty(&plan)? + "\n" } else { plan.text() };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
