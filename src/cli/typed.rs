//! Flags, and which of them a person typed: what was typed wins over a file, and over values that go with a default.

use clap::parser::ValueSource;

/// Flags of a verb, and the names of those that were typed.
pub struct Typed<F> {
    /// The flags.
    pub flags: F,
    /// Names of those that stood on the command line.
    pub typed: Vec<String>,
}

impl<F: clap::Args> clap::Args for Typed<F> {
    fn augment_args(command: clap::Command) -> clap::Command {
        F::augment_args(command)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        F::augment_args_for_update(command)
    }
}

impl<F: clap::FromArgMatches> clap::FromArgMatches for Typed<F> {
    fn from_arg_matches(found: &clap::ArgMatches) -> Result<Self, clap::Error> {
        let typed = |id: &&clap::Id| found.value_source(id.as_str()) == Some(ValueSource::CommandLine);
        let typed = found.ids().filter(typed).map(ToString::to_string).collect();
        Ok(Typed { flags: F::from_arg_matches(found)?, typed })
    }

    fn update_from_arg_matches(&mut self, found: &clap::ArgMatches) -> Result<(), clap::Error> {
        *self = Typed::from_arg_matches(found)?;
        Ok(())
    }
}
