//! `gaufre prepare`: tokenises data once, for many runs. It decides nothing: what data may be is told by `data`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use crate::data::{Plan, TokenizerKind, prepare};
use crate::report::device::bytes;

/// Flags of the verb.
#[derive(clap::Args)]
pub struct Args {
    /// Text files, folders, quoted patterns, .jsonl files, .bin files of nanoGPT or llm.c
    #[arg(required = true, value_name = "PATH")]
    data: Vec<PathBuf>,
    /// Folder to make; leave it alone while a run uses it
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// What a token is
    #[arg(long, value_name = "byte|char|FILE.json", default_value = "char")]
    tokenizer: TokenizerKind,
    /// What to validate on
    #[arg(long, value_name = "PATH", num_args = 1..)]
    val_data: Vec<PathBuf>,
    /// Share of the tokens, at their end, kept for validation [default: 0.1; of .bin files, and with --val-data, 0]
    #[arg(long, value_name = "SHARE")]
    val_split: Option<f64>,
    /// Field of .jsonl files that holds the text
    #[arg(long, value_name = "NAME", default_value = "text")]
    field: String,
    /// Text or special token between two documents [default: <|endoftext|> where the tokenizer has it, else nothing]
    #[arg(long, value_name = "TEXT")]
    separator: Option<String>,
    /// Tokens of one file of the folder
    #[arg(long, value_name = "N", default_value_t = 100_000_000)]
    shard_tokens: usize,
}

/// Prepares; a summary goes to standard error, the folder to standard output.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let plan = Plan {
        data: args.data.clone(),
        val_data: args.val_data.clone(),
        tokenizer: args.tokenizer.clone(),
        val_split: args.val_split,
        field: args.field.clone(),
        separator: args.separator.clone(),
    };
    let start = Instant::now();
    let made = prepare(&plan, &args.out, args.shard_tokens)?;
    let seconds = start.elapsed().as_secs_f64();
    let rate = bytes((made.source_bytes as f64 / seconds) as u64);
    let mut said = std::io::stderr();
    for path in &made.skipped {
        writeln!(said, "left out: {}, binary", path.display())?;
    }
    writeln!(
        said,
        "{} documents, {} tokens to train on, {} for validation, vocabulary {}; {seconds:.1} s, {rate}/s",
        made.documents, made.train_tokens, made.validation_tokens, made.vocab_size
    )?;
    writeln!(said, "to train on them: gaufre train --data {}", args.out.display())?;
    writeln!(std::io::stdout(), "{}", args.out.display())?;
    Ok(ExitCode::SUCCESS)
}
