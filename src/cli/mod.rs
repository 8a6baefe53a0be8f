//! What a person types: one file a verb. Nothing below knows of a command line.

mod check;
mod demo;
mod devices;
mod eval;
mod export;
mod generate;
mod inspect;
mod logits;
mod models;
mod plan;
mod prepare;
mod report;
mod tokenizer;
mod train;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

/// Trains transformers on an emulated wafer-scale engine.
#[derive(clap::Parser)]
#[command(name = "gaufre", version)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Train a model on text
    Train(Box<train::Args>),
    /// Tokenise data once, for many runs
    Prepare(prepare::Args),
    /// Make a tokenizer
    Tokenizer(tokenizer::Args),
    /// Write text with a trained model
    Generate(generate::Args),
    /// Write a trained model for other software to read
    Export(export::Args),
    /// Say how well a trained model predicts a text
    Eval(eval::Args),
    /// Hold every program against the f64 oracle on a device of this machine
    Check(check::Check),
    /// Show the tensors of a run or of a safetensors file
    Inspect(inspect::Args),
    /// Make the page report.html of a run
    Report(report::Args),
    /// Say what a run will take, on a wafer and on this machine, before it is begun
    Plan(Box<plan::Args>),
    /// List the models that are built in, and what each needs on this machine
    Models(models::Args),
    /// List the devices of this machine
    Devices(devices::Args),
}

/// Reads a command line, the name of the command first.
///
/// # Errors
/// What clap says of a wrong one, and also its help: see [`refuse`].
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    // A negative number is a value to refuse with its flag, not an unknown flag.
    let takes_value = |arg: clap::Arg| match arg.get_action() {
        clap::ArgAction::Set | clap::ArgAction::Append => arg.allow_negative_numbers(true),
        _ => arg,
    };
    let verbs: Vec<String> = Cli::command().get_subcommands().map(|c| c.get_name().to_string()).collect();
    let command = verbs.iter().fold(Cli::command(), |all, verb| all.mut_subcommand(verb, |c| c.mut_args(takes_value)));
    Cli::from_arg_matches(&command.try_get_matches_from(arguments)?)
}

/// Prints help where that was asked for; else one line that says what is wrong, with exit code 2.
pub fn refuse(usage: &clap::Error) -> ExitCode {
    if !usage.use_stderr() || usage.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        usage.exit();
    }
    let text = usage.render().to_string();
    let said = text.lines().map(str::trim).take_while(|l| !l.starts_with("Usage:")).filter(|l| !l.is_empty());
    let said: Vec<&str> = said.filter(|l| !l.starts_with("For more information")).collect();
    eprintln!("{} (see --help)", said.join("; "));
    ExitCode::from(2)
}

/// An error and its causes in one line, each said once.
pub fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if line.is_empty() {
            line = cause;
        } else if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line.replace('\n', " ")
}

impl Cli {
    /// Does what was typed.
    ///
    /// # Errors
    /// What goes wrong, typed below and untyped here.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.verb {
            Verb::Prepare(args) => prepare::run(&args),
            Verb::Tokenizer(args) => tokenizer::run(&args),
            Verb::Train(args) => train::run(*args),
            Verb::Generate(args) => generate::run(&args),
            Verb::Check(args) => check::run(&args),
            Verb::Inspect(args) => inspect::run(&args),
            Verb::Report(args) => report::run(&args),
            Verb::Export(args) => export::run(&args),
            Verb::Eval(args) => eval::run(&args),
            Verb::Plan(args) => plan::run(&args),
            Verb::Models(args) => models::run(&args),
            Verb::Devices(args) => devices::run(&args),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_cause_is_said_once() {
        let cause = std::io::Error::other("no\nroom");
        let error = anyhow::Error::from(cause).context("cannot write a: no\nroom").context("run");
        assert_eq!(one_line(&error), "run: cannot write a: no room");
    }
}
