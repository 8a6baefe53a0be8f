//! `gaufre export`: writes the model of a run as a folder that other software reads.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::store::export::Rounding;
use crate::train::folder::Folder;
use crate::train::hugging_face;

/// Flags of the verb.
#[derive(clap::Args)]
pub struct Args {
    /// Folder of the run
    run: PathBuf,
    /// Folder to write: config.json, model.safetensors and tokenizer.json, as Hugging Face's transformers reads them
    folder: PathBuf,
    /// Type of the weights
    #[arg(long, value_name = "f32|f16|bf16", default_value = "f32", value_parser = rounding)]
    dtype: Rounding,
}

/// Writes the folder and says where it is.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    hugging_face::export(&Folder::open(&args.run)?, &args.folder, args.dtype)?;
    writeln!(std::io::stdout(), "{}", args.folder.display())?;
    Ok(ExitCode::SUCCESS)
}

fn rounding(word: &str) -> Result<Rounding, String> {
    match word {
        "f32" => Ok(Rounding::F32),
        "f16" => Ok(Rounding::F16),
        "bf16" => Ok(Rounding::BF16),
        _ => Err("must be f32, f16 or bf16".into()),
    }
}
