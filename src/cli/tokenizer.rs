//! `gaufre tokenizer train`: learns a byte-level BPE from text and writes it as a `tokenizer.json`, which Hugging Face's
//! libraries read too.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::data::Tokenizer;
use crate::store::durable::write_whole;

/// The verb has one of its own.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Learn a byte-level BPE from text
    Train(Train),
}

/// Flags of `gaufre tokenizer train`.
#[derive(clap::Args)]
struct Train {
    /// Text files, folders, quoted patterns, .jsonl files
    #[arg(long, required = true, value_name = "PATH", num_args = 1..)]
    data: Vec<PathBuf>,
    /// Number of ids, all bytes and <|endoftext|> among them
    #[arg(long, value_name = "N", default_value_t = 8192)]
    vocab_size: usize,
    /// Field of .jsonl files that holds the text
    #[arg(long, value_name = "NAME", default_value = "text")]
    field: String,
    /// File to write; its name ends in .json
    #[arg(long, value_name = "FILE.json", default_value = "tokenizer.json")]
    out: PathBuf,
}

/// Learns and writes; the file's name goes to standard output.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let Verb::Train(args) = &args.verb;
    let name = args.out.display();
    anyhow::ensure!(
        args.out.extension().is_some_and(|e| e == "json"),
        "--out {name}: must end in .json, by which --tokenizer knows a file"
    );
    anyhow::ensure!(!args.out.exists(), "--out {name}: is there already; choose another file, or remove it");
    let tokenizer = Tokenizer::learn(&args.data, &args.field, args.vocab_size)?;
    write_whole(&args.out, tokenizer.to_json().as_bytes())?;
    let size = tokenizer.vocab_size();
    writeln!(std::io::stderr(), "{size} ids; to use them: gaufre prepare PATH... --tokenizer {name} --out FOLDER")?;
    writeln!(std::io::stdout(), "{name}")?;
    Ok(ExitCode::SUCCESS)
}
