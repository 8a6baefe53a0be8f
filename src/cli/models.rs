//! `gaufre models`: the models that are built in, and what it takes to train each on this machine.

use std::io::Write;
use std::process::ExitCode;

use serde_json::json;

use crate::device::Device;
use crate::model::hugging_face::Family;
use crate::model::{PRESETS, preset};
use crate::report::device::rounded_bytes;
use crate::train::needs::{self, Bytes, Room, SEQUENCE, Ways};

/// Flags of the verb.
#[derive(clap::Args)]
pub struct Args {
    /// Print JSON, sizes in bytes
    #[arg(long)]
    json: bool,
}

/// Ids of the vocabulary that a model without one of its own is counted with: those of --tokenizer byte.
const OPEN_VOCABULARY: usize = 256;

/// One model.
struct Row {
    name: &'static str,
    family: &'static str,
    /// Whether it takes the vocabulary of its data.
    open: bool,
    ways: Ways,
}

/// Prints a row for each model.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let device = Device::host(0)?;
    let row = |(name, _): &(&'static str, &str)| {
        let config = preset(name)?;
        let open = config.vocab_size == 0;
        let config = config.with_vocabulary(OPEN_VOCABULARY)?;
        let family = Family::of(&config).model_type;
        anyhow::Ok(Row { name, family, open, ways: needs::of_model(&config, &device)? })
    };
    let rows = PRESETS.iter().map(row).collect::<anyhow::Result<Vec<Row>>>()?;
    let text = match args.json {
        true => serde_json::to_string_pretty(&rows.iter().map(for_programs).collect::<Vec<_>>())? + "\n",
        false => for_people(&rows),
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn word(room: Room) -> &'static str {
    match room {
        Room::Resident => "fits",
        Room::Streamed => "streams",
        Room::NoDisk => "too large for the free disk here",
        Room::NoMemory => "too large for the free memory here",
    }
}

fn for_programs(row: &Row) -> serde_json::Value {
    let Ways { resident, streamed } = row.ways;
    json!({
        "name": row.name,
        "family": row.family,
        "parameters": resident.parameters,
        "open_vocabulary": row.open,
        "bf16_bytes": 2 * resident.parameters,
        "f32_bytes": 4 * resident.parameters,
        "resident": { "memory_bytes": resident.ram.needed },
        "streamed": { "memory_bytes": streamed.ram.needed, "disk_bytes": streamed.disk.needed },
        "free": { "memory_bytes": resident.ram.available, "disk_bytes": streamed.disk.available },
        "here": word(row.ways.room()),
    })
}

fn for_people(rows: &[Row]) -> String {
    let head = ["model", "family", "parameters", "bf16", "f32", "memory", "streamed", "disk", "here"].map(String::from);
    let mut cells = vec![head];
    for row in rows {
        let Ways { resident, streamed } = row.ways;
        cells.push([
            row.name.into(),
            row.family.into(),
            format!("{}{}", grouped(resident.parameters), if row.open { "*" } else { "" }),
            rounded_bytes(2 * resident.parameters),
            rounded_bytes(4 * resident.parameters),
            rounded_bytes(resident.ram.needed),
            rounded_bytes(streamed.ram.needed),
            rounded_bytes(streamed.disk.needed),
            word(row.ways.room()).into(),
        ]);
    }
    let widths: [usize; 9] =
        std::array::from_fn(|i| cells.iter().map(|r| r[i].chars().count()).max().unwrap_or_default());
    let mut text = String::new();
    for row in &cells {
        let cell = |i: usize| match i {
            0 | 1 | 8 => format!("{:<1$}", row[i], widths[i]),
            _ => format!("{:>1$}", row[i], widths[i]),
        };
        text += (0..row.len()).map(cell).collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    let free = |bytes: Option<Bytes>| bytes.and_then(|b| b.available).map_or("unknown".into(), rounded_bytes);
    let first = rows.first().map(|row| row.ways);
    text + &format!(
        "\nmemory: to train all of it in f32 with AdamW ({} are free).\n\
         streamed, disk: the same with --store disk --in-place --param-dtype bf16 --optimizer adafactor --clip layer\n\
         ({} of disk are free). One sequence a step, of {SEQUENCE} tokens or of the model's context.\n\
         * with the {OPEN_VOCABULARY} ids of --tokenizer byte: the model takes the vocabulary of its data.\n",
        free(first.map(|ways| ways.resident.ram)),
        free(first.map(|ways| ways.streamed.disk)),
    )
}

/// A number with a comma before every three digits.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let first = digits.len() % 3;
    let (head, rest) = digits.split_at(first);
    let threes = rest.as_bytes().chunks(3).map(|three| String::from_utf8_lossy(three).into_owned());
    let parts: Vec<String> = Some(head.to_owned()).filter(|head| !head.is_empty()).into_iter().chain(threes).collect();
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_three() {
        let shown: Vec<String> = [0, 12, 999, 1000, 20_554_567_680].into_iter().map(grouped).collect();
        assert_eq!(shown, ["0", "12", "999", "1,000", "20,554,567,680"]);
    }
}
