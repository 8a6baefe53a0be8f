//! `gaufre check`: runs the conformance test on a device and prints it, as a table for people and as JSON for machines.
//! It decides nothing: what passes is told by `train::conformance`.

use std::cell::RefCell;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::device::Device;
use crate::report::trace::{SLOWER, Trace};
use crate::train::conformance::{self, Canary, Conformance, Part, Row, tiny};

/// Check every tile program, both schedules and a training step on this machine against an f64 oracle.
#[derive(clap::Args, Clone, Debug)]
pub struct Check {
    /// The device: auto, gpu, gpu:NAME, software or host.
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Threads of the host device; 0: all cores.
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// Seed of all inputs.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Write the result as JSON to a file, or to standard output with "-"; the table then goes to standard error.
    #[arg(long, value_name = "FILE|-")]
    pub json: Option<PathBuf>,
    /// Write what ran when, and what it moved, as a Chrome trace that Perfetto opens; each program is waited for, which is
    /// slower.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Plant faults too: each must be caught.
    #[arg(long)]
    pub canary: bool,
}

/// The trace of a check, where one is asked for: an outer event for each subject, which lasts until the next begins.
struct Traced<'a> {
    device: &'a Device,
    trace: Option<RefCell<(Trace, String, f64)>>,
}

impl Traced<'_> {
    fn begin<'a>(args: &Check, device: &'a Device) -> Result<Traced<'a>> {
        let Some(path) = &args.trace else { return Ok(Traced { device, trace: None }) };
        eprintln!("{SLOWER}");
        let about = vec![
            ("gaufre", env!("CARGO_PKG_VERSION").to_owned()),
            ("device", device.name().to_owned()),
            ("model", "every program, and the tiny model of each family".into()),
            ("schedule", "fused, and superstep where a program has one".into()),
            ("wafer", "several small grids".into()),
        ];
        let trace = Trace::new(path, about);
        // A place that cannot be written is said now.
        trace.write()?;
        Ok(Traced { device, trace: Some(RefCell::new((trace, String::new(), 0.0))) })
    }

    /// What ran until now was of the subject before this one.
    fn next(&self, subject: &str) {
        let Some(trace) = &self.trace else { return };
        let (trace, before, begun) = &mut *trace.borrow_mut();
        let (ledger, now) = (self.device.take_ledger(), self.device.ledger_seconds());
        if !before.is_empty() {
            trace.add(before, (*begun, now), &ledger);
        }
        (*before, *begun) = (subject.to_owned(), now);
    }

    fn end(&self) -> Result<()> {
        self.next("");
        Ok(self.trace.as_ref().map_or(Ok(()), |trace| trace.borrow().0.write())?)
    }
}

/// Runs the check. Exit code 1 when anything failed or was missed.
///
/// # Errors
/// When there is no such device, or the JSON cannot be written.
pub fn run(args: &Check) -> Result<ExitCode> {
    let start = Instant::now();
    let device = Device::open(&args.device, args.threads)?;
    let device = if args.trace.is_some() { device.with_ledger() } else { device };
    let bar = indicatif::ProgressBar::new_spinner();
    let traced = Traced::begin(args, &device)?;
    let said = |what: &str| {
        bar.set_message(what.to_owned());
        traced.next(what);
    };
    let found = conformance::run(&device, args.seed, args.canary, &tiny::steps(), &said);
    bar.finish_and_clear();
    traced.end()?;
    let table = table(&found, start.elapsed().as_secs_f64());
    match args.json.as_deref() {
        Some(path) if path == Path::new("-") => {
            eprint!("{table}");
            serde_json::to_writer_pretty(std::io::stdout().lock(), &json(&found))?;
            println!();
        }
        Some(path) => {
            print!("{table}");
            let text = serde_json::to_vec_pretty(&json(&found))?;
            std::fs::write(path, text).with_context(|| format!("{}: cannot write the report", path.display()))?;
        }
        None => print!("{table}"),
    }
    std::io::stdout().flush()?;
    Ok(if found.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The whole report, with counts.
fn json(found: &Conformance) -> serde_json::Value {
    let caught = found.canaries.iter().filter(|canary| canary.caught).count();
    serde_json::json!({
        "device": found.device,
        "seed": found.seed,
        "passed": found.passed(),
        "cases": found.rows.iter().map(|row| row.cases).sum::<usize>(),
        "elements": found.rows.iter().map(|row| row.elements).sum::<usize>(),
        "failed": found.rows.iter().filter(|row| !row.passed).count(),
        "rows": found.rows,
        "canaries_planted": found.canaries.len(),
        "canaries_caught": caught,
        "canaries": found.canaries,
    })
}

fn table(found: &Conformance, seconds: f64) -> String {
    let mut out = format!("gaufre check on {}, seed {}\n", found.device, found.seed);
    let width = found.rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
    for (part, title) in [
        (Part::Program, "tile programs against the f64 oracle"),
        (Part::Schedule, "superstep against fused, bit for bit"),
        (Part::Step, "one training step of each family against the f64 oracle"),
    ] {
        out += &format!(
            "\n{title}\n     {:<width$}{:>7}{:>10}{:>13}  worst place\n",
            "", "cases", "elements", "worst/bound"
        );
        for row in found.rows.iter().filter(|row| row.part == part) {
            out += &line(row, width);
        }
    }
    out += &planted(&found.canaries);
    let failed = found.rows.iter().filter(|row| !row.passed).count();
    let missed = found.canaries.iter().filter(|canary| !canary.caught).count();
    let verdict = match (found.passed(), failed, missed) {
        (true, ..) => "PASSED".to_owned(),
        (false, 0, 0) => "FAILED: a part was not run".to_owned(),
        (false, failed, missed) => format!("FAILED: {failed} rows out of bound, {missed} faults missed"),
    };
    out + &format!("\n{verdict} ({} rows, {seconds:.1} s)\n", found.rows.len())
}

fn line(row: &Row, width: usize) -> String {
    let mark = if row.passed { "ok  " } else { "FAIL" };
    let Row { name, cases, elements, worst, place, .. } = row;
    format!("{mark} {name:<width$}{cases:>7}{elements:>10}{worst:>13.3e}  {place}\n")
}

/// One line a subject, with each fault that went unseen below it; the JSON has them all, and what caught each.
fn planted(canaries: &[Canary]) -> String {
    if canaries.is_empty() {
        return String::new();
    }
    let mut out = String::from("\nplanted faults that were caught\n");
    for subject in canaries.chunk_by(|a, b| a.subject == b.subject) {
        let caught = subject.iter().filter(|canary| canary.caught).count();
        let mark = if caught == subject.len() { "ok  " } else { "FAIL" };
        out += &format!("{mark} {caught:>3} of {:<3}  {}\n", subject.len(), subject[0].subject);
        for canary in subject.iter().filter(|canary| !canary.caught) {
            out += &format!("     MISSED  {}: {}\n", canary.fault, canary.by);
        }
    }
    out
}
