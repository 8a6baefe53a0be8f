//! A plan for a terminal: short tables, aligned. It must never say what the page does not.

use super::{IDEAL, Plan, Program, Sram, Tensor};
use crate::report::device::{bytes, rounded_bytes};
use crate::report::html::number::count;

/// Which way a column is aligned.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    Left,
    Right,
}

use Side::{Left, Right};

/// Lines of cells, each column as wide as its widest, two spaces apart.
fn table<const N: usize>(sides: [Side; N], rows: &[[String; N]]) -> String {
    let widths: [usize; N] =
        std::array::from_fn(|i| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or_default());
    let mut text = String::new();
    for row in rows {
        let cell = |i: usize| match sides[i] {
            Left => format!("{:<1$}", row[i], widths[i]),
            Right => format!("{:>1$}", row[i], widths[i]),
        };
        text += (0..N).map(cell).collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

/// A time in the unit that leaves three digits.
pub(super) fn seconds(time: f64) -> String {
    let digits = |value: f64| match value {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    };
    match time {
        _ if !time.is_finite() => "unknown".into(),
        0.0 => "0".into(),
        ..1e-6 => format!("{} ns", digits(time * 1e9)),
        ..1e-3 => format!("{} us", digits(time * 1e6)),
        ..1.0 => format!("{} ms", digits(time * 1e3)),
        ..600.0 => format!("{} s", digits(time)),
        ..36_000.0 => format!("{} min", digits(time / 60.0)),
        _ => format!("{} h", digits(time / 3600.0)),
    }
}

/// A rate of tokens.
pub(super) fn rate(tokens_per_second: f64) -> String {
    match tokens_per_second {
        10.0.. => count(tokens_per_second.round() as u64),
        rate => format!("{rate:.2}"),
    }
}

/// A share, as a percentage.
pub(super) fn percent(share: f64) -> String {
    match 100.0 * share {
        0.0 => "0 %".into(),
        percent @ ..0.01 => format!("{percent:.4} %"),
        percent @ ..1.0 => format!("{percent:.2} %"),
        percent => format!("{percent:.0} %"),
    }
}

/// The shape of a micro-batch and a step.
pub(super) fn batch(plan: &Plan) -> String {
    let (sequences, micro) = (plan.micro_tokens / plan.seq_len, plan.micro_batches);
    let times = if micro > 1 { format!(" x {micro}") } else { String::new() };
    format!("{sequences} x {}{times} = {} tokens a step", plan.seq_len, count(plan.step_tokens()))
}

/// The largest micro-batches, on the wafer and here.
pub(super) fn largest(plan: &Plan) -> (String, String) {
    (count(plan.largest.wafer), count(plan.largest.here))
}

/// Whether the plan fits, in a few words each: on the wafer, and here.
pub(super) fn fit(plan: &Plan) -> (String, String) {
    let wafer = match plan.fits_wafer() {
        true => "fits".to_owned(),
        false => "does not fit: lower --batch-size, or take a larger --wafer".to_owned(),
    };
    (wafer, plan.refused.as_ref().map_or("fits".into(), |reason| format!("does not fit: {reason}")))
}

/// What is dead of the wafer.
pub(super) fn dead(plan: &Plan) -> String {
    let (wide, high) = plan.wafer.placed_on;
    format!("placed on {wide} x {high} tiles, of which {} are dead", count(plan.wafer.dead))
}

pub(super) fn of(plan: &Plan) -> String {
    let wafer = &plan.wafer;
    let mut out = format!(
        "{}: {} parameters, {}\nwafer: {}, each tile of {}; {} of {} tiles have work, on average {} of the busiest tile's\n{}\n",
        plan.model,
        count(plan.parameters),
        batch(plan),
        wafer.name,
        bytes(wafer.tile_sram_bytes),
        count(plan.map.busy),
        count(wafer.width * wafer.height),
        percent(plan.map.balance),
        plan.device,
    );
    if plan.wafer.dead > 0 {
        out += &format!("{}\n", dead(plan));
    }
    if let Some(ids) = plan.open_vocabulary {
        out += &format!("the model takes the vocabulary of its data; counted with the {ids} ids of --tokenizer byte\n");
    }
    for part in [times(plan), fits(plan), kept(plan), tensors(plan), sram(plan), programs(plan)] {
        out.push('\n');
        out += &part;
    }
    out
}

fn times(plan: &Plan) -> String {
    let (wafer, here) = (&plan.on_wafer, &plan.here);
    let row = |name: &str, wafer: String, here: String| [name.to_owned(), wafer, here];
    let rows = [
        row("a step, predicted", format!("on {}", plan.wafer.name), "here".into()),
        row("computing", seconds(wafer.compute_seconds), seconds(here.compute_seconds)),
        row("fabric", seconds(wafer.fabric_seconds), seconds(here.exchange_seconds)),
        row("weights streaming", seconds(wafer.link_seconds), seconds(here.stream_seconds)),
        row("in all", seconds(wafer.total_seconds), seconds(here.total_seconds)),
        row("tokens a second", rate(wafer.tokens_per_second), rate(here.tokens_per_second)),
        row("bound by", wafer.bound.into(), here.bound.into()),
        row("largest --batch-size", largest(plan).0, largest(plan).1),
    ];
    let stream = &plan.stream;
    table([Left, Right, Right], &rows)
        + &format!(
            "what the wafer takes is {IDEAL}\none pass of all weights, {}, takes the link of the wafer {}; here {} pass between memory and disk a step\n",
            rounded_bytes(stream.pass_bytes),
            seconds(stream.pass_seconds),
            rounded_bytes(stream.disk_bytes),
        )
}

fn fits(plan: &Plan) -> String {
    let mut rows = vec![["memory here", "needed", "there is"].map(str::to_owned)];
    rows.extend(plan.memory.iter().map(|memory| {
        let there = memory.available.map_or("not known".into(), rounded_bytes);
        [memory.place.to_owned(), rounded_bytes(memory.needed), there]
    }));
    let (wafer, here) = fit(plan);
    table([Left, Right, Right], &rows) + &format!("on the wafer: {wafer}\nhere: {here}\n")
}

fn kept(plan: &Plan) -> String {
    let mut rows = vec![["kept of a parameter", "as", "bytes"].map(str::to_owned)];
    rows.extend(plan.roles.iter().map(|role| [role.name.into(), role.format.clone(), rounded_bytes(role.bytes)]));
    table([Left, Left, Right], &rows)
}

fn tensors(plan: &Plan) -> String {
    let mut rows =
        vec![["tensor", "shape", "number", "bytes", "panels", "blocks of", "on tiles", "on a tile"].map(str::to_owned)];
    let by = |(a, b): (u64, u64)| format!("{a} x {b}");
    rows.extend(plan.tensors.iter().map(|tensor: &Tensor| {
        [
            tensor.name.clone(),
            by(tensor.shape),
            count(tensor.count),
            rounded_bytes(tensor.weight_bytes),
            count(tensor.panels),
            by(tensor.block),
            by(tensor.tiles),
            count(tensor.on_a_tile),
        ]
    }));
    table([Left, Right, Right, Right, Right, Right, Right, Right], &rows)
        + "of each panel, tile (x, y) has blocks x, x + width, ... of its rows (outputs) and y, y + height, ... of its\n\
           columns (inputs)\n"
}

fn sram(plan: &Plan) -> String {
    let head = [
        "SRAM of a tile",
        "workgroup",
        "accumulators",
        "saved state",
        "high-water mark",
        "share",
        "workgroup variables",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(plan.sram.iter().map(|sram: &Sram| {
        let variables: Vec<String> = sram.variables.iter().map(|(name, bytes)| format!("{name} {bytes}")).collect();
        let number = |n: u32| count(n.into());
        [
            sram.program.into(),
            number(sram.workgroup()),
            number(sram.accumulators),
            number(sram.state),
            number(sram.total),
            percent(sram.share),
            variables.join(", "),
        ]
    }));
    table([Left, Right, Right, Right, Right, Right, Left], &rows)
        + "bytes of a tile while it plays a program; saved state: what lies there between two supersteps\n"
}

fn programs(plan: &Plan) -> String {
    let head = ["a step", "runs", "launches", "supersteps", "messages", "bytes moved", "multiply-adds"];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(plan.programs.iter().map(|p: &Program| {
        let macs = if p.macs > 0 { format!("{:.3e}", p.macs as f64) } else { "-".into() };
        let bytes = if p.bytes > 0 { rounded_bytes(p.bytes) } else { "-".into() };
        [p.name.into(), count(p.runs), count(p.launches), count(p.supersteps), count(p.messages), bytes, macs]
    }));
    table([Left, Right, Right, Right, Right, Right, Right], &rows)
        + "launches: as scheduled here; supersteps, messages and bytes: on the wafer, with --schedule superstep\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits() {
        let shown = [0.0, 3.2e-8, 1.53e-5, 0.0123, 0.5, 7.0, 59.96, 500.0, 1234.0, 99_000.0].map(seconds);
        let wanted =
            ["0", "32.0 ns", "15.3 us", "12.3 ms", "500 ms", "7.00 s", "60.0 s", "500 s", "20.6 min", "27.5 h"];
        assert_eq!(shown, wanted);
    }

    #[test]
    fn columns_are_aligned() {
        let rows = [["a", "1"], ["bcd", "10"]].map(|row| row.map(str::to_owned));
        assert_eq!(table([Left, Right], &rows), "a     1\nbcd  10\n");
    }
}
