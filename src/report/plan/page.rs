//! A plan as one page that needs nothing but a browser: a map of the wafer, bars of time, SRAM and traffic, a timeline of a
//! step, tables. It must never reach for a network, nor need a script.

use std::fmt::Write;

use super::text::{batch, dead, fit, largest, percent, rate, seconds};
use super::{IDEAL, Plan, Sram};
use crate::report::device::{bytes, rounded_bytes};
use crate::report::html::number::count;
use crate::report::html::{WAFER, escaped};

pub(super) fn of(plan: &Plan) -> String {
    let (model, wafer) = (escaped(&plan.model), escaped(&plan.wafer.name));
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\">\n<meta http-equiv=\"Content-Security-Policy\" \
         content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n<link rel=\"icon\" href=\"data:,\">\n\
         <title>{model} on {wafer} - Gaufre</title>\n<style>\n{}{}</style>\n</head>\n<body>\n<main>\n",
        include_str!("../html/page.css"),
        include_str!("page.css")
    );
    let _ = writeln!(
        out,
        "<header>{WAFER}<div><h1>{model} on {wafer}</h1><p>{} parameters, {}</p></div></header>",
        count(plan.parameters),
        batch(plan)
    );
    out += &facts(plan);
    out += &notices(plan);
    out += "<div class=\"columns\">\n";
    out += &map(plan);
    let _ = writeln!(out, "<div>\n{}{}{}</div>\n</div>", wafer_bars(plan), here_bars(plan), memory(plan));
    out += &timeline(plan);
    out += &sram(plan);
    out += &traffic(plan);
    out += &tensors(plan);
    out += &asked(plan);
    let _ = write!(
        out,
        "<footer>{}<br>Gaufre {}; what the wafer takes is {IDEAL}</footer>\n</main>\n</body>\n</html>\n",
        escaped(plan.device.trim_start_matches("device: ")),
        env!("CARGO_PKG_VERSION")
    );
    out
}

/// The few numbers to know first.
fn facts(plan: &Plan) -> String {
    let (wafer, here) = (&plan.on_wafer, &plan.here);
    let (most, most_here) = largest(plan);
    let micro = plan.micro_tokens / plan.seq_len;
    let facts = [
        ("Step on the wafer", seconds(wafer.total_seconds), format!("bound by {}", wafer.bound)),
        ("Tokens a second", rate(wafer.tokens_per_second), "on the wafer".into()),
        ("Largest micro-batch", most, format!("sequences in its SRAM, asked: {micro}")),
        ("Tiles with work", percent(plan.map.busy as f64 / tiles(plan)), format!("{} tiles", count(plan.map.busy))),
        ("Step here", seconds(here.total_seconds), format!("bound by {}", here.bound)),
        ("Tokens a second", rate(here.tokens_per_second), format!("here; largest micro-batch: {most_here}")),
    ];
    let mut out = String::from("<dl class=\"facts\">\n");
    for (at, (name, value, about)) in facts.iter().enumerate() {
        let class = if at == 0 { " class=\"first\"" } else { "" };
        let _ = writeln!(out, "<div><dt>{name}</dt><dd{class}>{value}<small>{about}</small></dd></div>");
    }
    out + "</dl>\n"
}

fn tiles(plan: &Plan) -> f64 {
    (plan.wafer.width * plan.wafer.height) as f64
}

/// What does not fit, where something does not.
fn notices(plan: &Plan) -> String {
    let (wafer, here) = fit(plan);
    let mut out = String::new();
    if !plan.fits_wafer() {
        let _ = write!(out, "<p>On the wafer: {}</p>", escaped(&wafer));
    }
    if plan.refused.is_some() {
        let _ = write!(out, "<p>Here: {}</p>", escaped(&here));
    }
    if plan.wafer.dead > 0 {
        let _ = write!(out, "<p>The tiles are {}; work moves past them.</p>", dead(plan));
    }
    if let Some(ids) = plan.open_vocabulary {
        let _ = write!(
            out,
            "<p>The model takes the vocabulary of its data; counted with the {ids} ids of --tokenizer byte.</p>"
        );
    }
    if out.is_empty() { out } else { format!("<section class=\"notice\"><h2>To know</h2>{out}</section>\n") }
}

/// Units of the map's drawing from left to right.
const SIDE: f64 = 1000.0;
/// A grid of at most so many tiles a side is drawn tile by tile.
const DRAWN: u64 = 64;
/// Around the tiles, for the wafer and the words.
const MARGIN: f64 = 60.0;
/// A corner with all work is drawn again where the wafer has at least so many times its sides.
const SMALL: u64 = 6;

fn map(plan: &Plan) -> String {
    let (width, height) = (plan.wafer.width as f64, plan.wafer.height as f64);
    let scale = SIDE / width.max(height);
    let (wide, high) = (width * scale, height * scale);
    // The disc that the wafer was cut from goes through its corners.
    let radius = (wide * wide + high * high).sqrt() / 2.0;
    let (middle, centre) = (wide / 2.0, high / 2.0);
    let side = 2.0 * radius + MARGIN;
    let mut out = format!(
        "<section class=\"map\"><h2>The wafer</h2>\n<div class=\"views\">\
         <label><input type=\"radio\" name=\"view\" class=\"to-work\" checked>work of a step</label>\
         <label><input type=\"radio\" name=\"view\" class=\"to-sram\">SRAM, at most</label>\
         <label><input type=\"radio\" name=\"view\" class=\"to-traffic\">link traffic</label></div>\n\
         <svg viewBox=\"{:.1} {:.1} {side:.1} {side:.1}\" role=\"img\" aria-label=\"map of the wafer\" \
         shape-rendering=\"crispEdges\">\n<circle class=\"disc\" shape-rendering=\"auto\" cx=\"{middle:.1}\" cy=\"{centre:.1}\" \
         r=\"{radius:.1}\"/>\n{}<text x=\"{middle:.1}\" y=\"-16\">{} tiles</text>\
         <text transform=\"translate(-16 {centre:.1}) rotate(-90)\">{} tiles</text>\n</svg>\n",
        middle - side / 2.0,
        centre - side / 2.0,
        drawn(plan, (plan.wafer.width, plan.wafer.height), scale),
        count(plan.wafer.width),
        count(plan.wafer.height),
    );
    out += &corner(plan);
    let _ = write!(
        out,
        "<div class=\"ramp work\"><b></b>idle <i></i>the busiest tile</div>\
         <div class=\"ramp sram\"><b></b>unused <i></i>all {}</div>\
         <div class=\"ramp traffic\"><b></b>nothing <i></i>{} to a tile in a step</div>\n<p>{} of {} tiles have work in a step, its blocks cut and \
         placed as the emulation does; on average a tile has {} of what the busiest has.</p></section>\n",
        bytes(plan.wafer.tile_sram_bytes),
        rounded_bytes(plan.map.most_bytes as u64),
        count(plan.map.busy),
        count(plan.wafer.width * plan.wafer.height),
        percent(plan.map.balance)
    );
    out
}

/// The first `width x height` tiles of the wafer: work, SRAM and traffic.
fn drawn(plan: &Plan, (width, height): (u64, u64), scale: f64) -> String {
    let (wide, high) = (width as f64 * scale, height as f64 * scale);
    let mut out = format!("<rect class=\"idle\" width=\"{wide:.1}\" height=\"{high:.1}\"/>\n");
    for (class, cells) in [("work", &plan.map.work), ("sram", &plan.map.sram), ("traffic", &plan.map.traffic)] {
        let _ = writeln!(out, "<g class=\"{class}\">{}</g>", rectangles(plan, cells, (width, height), scale));
    }
    if width.max(height) <= DRAWN {
        let mut lines = String::new();
        lines.extend((1..width).map(|x| format!("M{:.1} 0V{high:.1}", x as f64 * scale)));
        lines.extend((1..height).map(|y| format!("M0 {:.1}H{wide:.1}", y as f64 * scale)));
        let _ = writeln!(out, "<path class=\"between\" d=\"{lines}\"/>");
    }
    out
}

/// Where all work is in a corner too small to be seen: that corner again, larger.
fn corner(plan: &Plan) -> String {
    let map = &plan.map;
    let busy = |row: usize, column: usize| map.work[row][column] > 0.0;
    let column = (0..map.columns.len() - 1).rev().find(|c| (0..map.work.len()).any(|r| busy(r, *c)));
    let row = (0..map.work.len()).rev().find(|r| (0..map.columns.len() - 1).any(|c| busy(*r, c)));
    let (Some(column), Some(row)) = (column, row) else { return String::new() };
    let (width, height) = (map.columns[column + 1], map.rows[row + 1]);
    if width * SMALL > plan.wafer.width || height * SMALL > plan.wafer.height {
        return String::new();
    }
    let scale = SIDE / width.max(height) as f64;
    format!(
        "<div class=\"corner\"><p>The corner that has work, {} x {} tiles:</p><svg viewBox=\"0 0 {:.1} {:.1}\" \
         shape-rendering=\"crispEdges\">\n{}</svg></div>\n",
        count(width),
        count(height),
        width as f64 * scale,
        height as f64 * scale,
        drawn(plan, (width, height), scale)
    )
}

/// The rectangles of alike tiles among the first `width x height`, the more the darker; by the root, so that little is seen.
fn rectangles(plan: &Plan, cells: &[Vec<f64>], (width, height): (u64, u64), scale: f64) -> String {
    let (columns, rows) = (&plan.map.columns, &plan.map.rows);
    let mut out = String::new();
    for (y, row) in cells.iter().enumerate().filter(|(y, _)| rows[*y] < height) {
        for (x, share) in row.iter().enumerate().filter(|(x, share)| **share > 0.0 && columns[*x] < width) {
            let (x, x1, y, y1) = (columns[x], columns[x + 1], rows[y], rows[y + 1]);
            let at = |from: u64, to: u64| (from as f64 * scale, (to - from) as f64 * scale);
            let ((left, wide), (top, high)) = (at(x, x1), at(y, y1));
            let _ = write!(
                out,
                "<rect class=\"tile\" x=\"{left:.2}\" y=\"{top:.2}\" width=\"{wide:.2}\" height=\"{high:.2}\" \
                 fill-opacity=\"{:.3}\"><title>tiles {x} to {} by {y} to {}: {}</title></rect>",
                0.1 + 0.9 * share.min(1.0).sqrt(),
                x1 - 1,
                y1 - 1,
                percent(*share)
            );
        }
    }
    out
}

/// One bar: its name, its segments as class, share of the whole and words, and what stands beside it.
struct Bar {
    name: String,
    segments: Vec<(&'static str, f64, String)>,
    value: String,
    about: String,
}

impl Bar {
    /// A bar of one segment.
    fn one(name: &str, class: &'static str, share: f64, value: String) -> Bar {
        Bar { name: name.into(), segments: vec![(class, share, value.clone())], value, about: String::new() }
    }
}

fn bars(bars: &[Bar]) -> String {
    let mut out = String::from("<div class=\"bars\">\n");
    for bar in bars {
        let segment = |(class, share, words): &(&str, f64, String)| {
            let share = if share.is_finite() { 100.0 * share.clamp(0.0, 1.0) } else { 0.0 };
            format!("<i class=\"{class}\" style=\"width:{share:.2}%\" title=\"{}\"></i>", escaped(words))
        };
        let segments: String = bar.segments.iter().map(segment).collect();
        let about =
            if bar.about.is_empty() { String::new() } else { format!("<small>{}</small>", escaped(&bar.about)) };
        let _ = writeln!(
            out,
            "<span class=\"name\">{}</span><span class=\"bar\">{segments}</span><span class=\"value\">{}{about}</span>",
            escaped(&bar.name),
            escaped(&bar.value)
        );
    }
    out + "</div>\n"
}

fn wafer_bars(plan: &Plan) -> String {
    let of = &plan.on_wafer;
    let bar = |name: &str, class, time: f64| Bar::one(name, class, time / of.total_seconds, seconds(time));
    let rows = [
        bar("computing", "", of.compute_seconds),
        bar("fabric", "", of.fabric_seconds),
        bar("weights streaming", "link", of.link_seconds),
        bar("in all, overlapped", "soft", of.total_seconds),
    ];
    let (machine, stream) = (&plan.wafer, &plan.stream);
    format!(
        "<section><h2>A step on {}</h2>\n{}<p>{} of weights pass the link twice a micro-batch, {} each way at {} GB a second; \
         tiles run at {} MHz. A token's activations take {} there, beside {} of each tile for the programs.</p></section>\n",
        escaped(&machine.name),
        bars(&rows),
        rounded_bytes(stream.pass_bytes),
        seconds(stream.pass_seconds),
        machine.link_bytes_per_second / 1e9,
        machine.clock_hz / 1e6,
        rounded_bytes(plan.largest.token_bytes),
        rounded_bytes(plan.largest.reserved),
    )
}

fn here_bars(plan: &Plan) -> String {
    let here = &plan.here;
    let bar = |name: &str, class, time: f64| Bar::one(name, class, time / here.total_seconds, seconds(time));
    let mut rows = vec![bar("computing", "", here.compute_seconds)];
    if here.exchange_seconds > 0.0 {
        rows.push(bar("exchange of blocks", "", here.exchange_seconds));
    }
    if here.stream_seconds > 0.0 {
        rows.push(bar("reading and writing", "link", here.stream_seconds));
    }
    rows.push(bar("in all", "soft", here.total_seconds));
    format!(
        "<section><h2>The same step here</h2>\n{}<p>Measured a moment ago: {:.1} GFLOP/s in a product of matrices{}.</p></section>\n",
        bars(&rows),
        here.product_flops / 1e9,
        match plan.stream.disk_bytes {
            0 => String::new(),
            n => format!("; {} pass between memory and disk in a step", rounded_bytes(n)),
        }
    )
}

/// Above so many visits there is no gap between them.
const GAPS: usize = 120;

/// What the link and the wafer do while a micro-batch passes: of each visit the longer counts.
fn timeline(plan: &Plan) -> String {
    let visits = &plan.on_wafer.visits;
    let whole: f64 = visits.iter().map(|v| v.link_seconds.max(v.wafer_seconds)).sum();
    let (mut link, mut tiles, mut begun) = (String::new(), String::new(), 0.0);
    let gap = if visits.len() > GAPS { 0.0 } else { 0.6 };
    for visit in visits {
        let longer = visit.link_seconds.max(visit.wafer_seconds);
        for (lane, time) in [(&mut link, visit.link_seconds), (&mut tiles, visit.wafer_seconds)] {
            let (x, wide) = (SIDE * begun / whole, SIDE * time / whole);
            let _ = write!(
                lane,
                "<rect class=\"{}\" x=\"{x:.2}\" width=\"{:.2}\" height=\"1\"><title>{}: {}</title></rect>",
                if visit.backward { "backward" } else { "forward" },
                (wide - gap).max(0.3 * wide),
                escaped(&visit.name),
                seconds(time)
            );
        }
        begun += longer;
    }
    let lane = |name: &str, rects: &str| {
        format!(
            "<span class=\"name\">{name}</span><svg viewBox=\"0 0 {SIDE} 1\" preserveAspectRatio=\"none\">{rects}</svg>\n"
        )
    };
    let marks: String = (0..5).map(|n| format!("<span>{}</span>", seconds(whole * f64::from(n) / 4.0))).collect();
    let micro = plan.micro_batches;
    let times = if micro > 1 { format!("; the step has {micro} of them") } else { String::new() };
    format!(
        "<section><h2>A micro-batch on the wafer, from embedding to embedding</h2>\n<div class=\"key\"><span>\
         <i class=\"forward\"></i>forward</span><span><i></i>backward</span><span><i class=\"free\"></i>waiting for the other\
         </span></div>\n<div class=\"lanes\">\n{}{}<span class=\"axis\">{marks}</span>\n</div>\n<p>While one layer is computed, \
         the weights of the next come in; of each the longer counts{times}.</p></section>\n",
        lane("weights stream", &link),
        lane("tiles work", &tiles),
    )
}

fn sram(plan: &Plan) -> String {
    let tile = plan.wafer.tile_sram_bytes as f64;
    let (used, unused): (Vec<&Sram>, Vec<&Sram>) = plan.sram.iter().partition(|sram| sram.total > 0);
    let bar = |sram: &&Sram| {
        let part =
            |name: &str, class, size: u32| (class, f64::from(size) / tile, format!("{name}: {}", count(size.into())));
        let mut segments: Vec<_> = sram.variables.iter().map(|(name, size)| part(name, "", *size)).collect();
        let held = [("accumulators", "soft", sram.accumulators), ("saved state", "kept", sram.state)];
        segments
            .extend(held.into_iter().filter(|(.., size)| *size > 0).map(|(name, class, size)| part(name, class, size)));
        let value = rounded_bytes(sram.total.into());
        Bar { name: sram.program.into(), segments, value, about: percent(sram.share) }
    };
    let rest: Vec<String> = unused.iter().map(|sram| escaped(sram.program)).collect();
    let rest = match rest.is_empty() {
        true => String::new(),
        false => format!(" In registers alone: {}.", rest.join(", ")),
    };
    format!(
        "<section><h2>SRAM of a tile, of {}</h2>\n<div class=\"key\"><span><i></i>variables of the workgroup</span><span>\
         <i class=\"soft\"></i>accumulators</span><span><i class=\"kept\"></i>saved state</span><span><i class=\"free\"></i>free</span>\
         </div>\n{}<p>Beside each program its high-water mark: all of these together.{rest}</p></section>\n",
        bytes(plan.wafer.tile_sram_bytes),
        bars(&used.iter().map(bar).collect::<Vec<_>>())
    )
}

fn traffic(plan: &Plan) -> String {
    let most = plan.programs.iter().map(|p| p.bytes).max().unwrap_or(0).max(1) as f64;
    let mut moving: Vec<_> = plan.programs.iter().filter(|p| p.bytes > 0).collect();
    moving.sort_by_key(|p| std::cmp::Reverse(p.bytes));
    let bar = |p: &&super::Program| Bar {
        about: format!("{} blocks in {} supersteps", count(p.messages), count(p.supersteps)),
        ..Bar::one(p.name, "", p.bytes as f64 / most, rounded_bytes(p.bytes))
    };
    let all: u64 = moving.iter().map(|p| p.bytes).sum();
    let rows: String = plan
        .programs
        .iter()
        .map(|p| {
            let macs = if p.macs > 0 { format!("{:.3e}", p.macs as f64) } else { "-".into() };
            let cells = [count(p.runs), count(p.launches), count(p.supersteps), count(p.messages), macs];
            let cells: String = cells.iter().map(|cell| format!("<td>{cell}</td>")).collect();
            format!("<tr><td>{}</td>{cells}</tr>\n", escaped(p.name))
        })
        .collect();
    format!(
        "<section><h2>What travels between tiles in a step</h2>\n<p>{} in all, as the emulated fabric moves it \
         (--schedule superstep).</p>\n{}</section>\n<section class=\"wide\"><h2>Programs of a step</h2>\n<table>\
         <tr><th></th><th>runs</th><th>launches here</th><th>supersteps</th><th>blocks</th><th>multiply-adds</th></tr>\n{rows}</table></section>\n",
        rounded_bytes(all),
        bars(&moving.iter().map(bar).collect::<Vec<_>>()),
    )
}

fn tensors(plan: &Plan) -> String {
    let by = |(a, b): (u64, u64)| format!("{} x {}", count(a), count(b));
    let rows: String = plan
        .tensors
        .iter()
        .map(|t| {
            let cells = [
                by(t.shape),
                count(t.count),
                rounded_bytes(t.weight_bytes),
                count(t.panels),
                by(t.block),
                by(t.blocks),
                by(t.tiles),
                count(t.on_a_tile),
            ];
            let cells: String = cells.iter().map(|cell| format!("<td>{cell}</td>")).collect();
            format!("<tr><td>{}</td>{cells}</tr>\n", escaped(&t.name))
        })
        .collect();
    format!(
        "<section class=\"wide\"><h2>Where tensors lie</h2>\n<table><tr><th></th><th>rows x columns</th><th>number</th>\
         <th>weights</th><th>panels</th><th>a block</th><th>blocks, x by y</th><th>tiles, x by y</th><th>blocks a tile</th></tr>\n{rows}</table>\n\
         <p>Of each panel, rows (outputs) lie along x and columns (inputs) along y: tile (x, y) has the blocks x, x + {}, ... \
         along x and y, y + {}, ... along y.</p></section>\n",
        count(plan.wafer.width),
        count(plan.wafer.height)
    )
}

fn memory(plan: &Plan) -> String {
    let mut rows = Vec::new();
    for memory in &plan.memory {
        let there = memory.available.map_or(", not bounded".into(), |n| format!(" of {}", rounded_bytes(n)));
        rows.push((memory.place.to_owned(), format!("{}{there}", rounded_bytes(memory.needed))));
    }
    for role in &plan.roles {
        rows.push((format!("{}, as {}", role.name, role.format), rounded_bytes(role.bytes)));
    }
    listed("Memory here", &rows)
}

fn asked(plan: &Plan) -> String {
    let rows: Vec<(String, String)> = plan.asked.iter().map(|(name, value)| ((*name).into(), value.clone())).collect();
    listed("Asked for", &rows)
}

fn listed(title: &str, rows: &[(String, String)]) -> String {
    let row =
        |(name, value): &(String, String)| format!("<tr><td>{}</td><td>{}</td></tr>\n", escaped(name), escaped(value));
    format!("<section><h2>{title}</h2>\n<table>\n{}</table></section>\n", rows.iter().map(row).collect::<String>())
}
