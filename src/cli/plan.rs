//! `gaufre plan`: what a run will take, before it: on a wafer and on this machine, as a text, as JSON or as a page to look at.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;

use crate::train::config::Config;
use crate::train::plan;

/// The wafer that is planned for where none is named.
const WAFER: &str = "wse2";

/// Flags of the verb: those of a run, of which the ones that change no size are of no matter.
#[derive(clap::Args)]
#[command(mut_arg("wafer", |arg| arg.default_value(WAFER)))]
pub struct Args {
    #[command(flatten)]
    config: Config,
    /// Print JSON: bytes, seconds and counts
    #[arg(long)]
    json: bool,
    /// Write a page to look at, which needs nothing but a browser
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// Prints the plan.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let plan = plan::of(&args.config)?;
    if let Some(path) = &args.html {
        std::fs::write(path, plan.html())
            .with_context(|| format!("--html {}: cannot write the page", path.display()))?;
        eprintln!("the page is {}", path.display());
    }
    let text = if args.json { serde_json::to_string_pretty(&plan)? + "\n" } else { plan.text() };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
