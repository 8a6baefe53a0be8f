//! A trace: what ran when, in the JSON that Chrome's tracing and Perfetto open. An outer event for each step, in it one for each
//! phase, in that one for each run of a program with what the device counted. It must never know what a program computes.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Event, Finish, Observer, ReportError, Result, Start, StepLine};
use crate::device::{Ledger, Run};

/// What a traced run says to a person beforehand.
pub const SLOWER: &str =
    "traced: each program is waited for before the next, which is slower than a run without --trace";

/// A trace in the making. It is written whole, at the end.
pub struct Trace {
    path: PathBuf,
    about: Vec<(&'static str, String)>,
    events: Vec<Value>,
}

/// Number of the one process, and of its track.
const PROCESS: u32 = 1;
const TRACK: u32 = 1;

impl Trace {
    /// A trace for a file; `about` says what is traced, by name and value.
    pub fn new(path: &Path, about: Vec<(&'static str, String)>) -> Trace {
        Trace { path: path.into(), about, events: Vec::new() }
    }

    /// Says one thing more of what is traced.
    pub fn say(&mut self, name: &'static str, value: String) {
        self.about.push((name, value));
    }

    /// What was written down from `begun` to `ended`, in seconds since the ledger was opened, as one outer event.
    pub fn add(&mut self, name: &str, (begun, ended): (f64, f64), ledger: &Ledger) {
        let counted = ledger.total();
        let args = json!({
            "programs": ledger.runs.len(),
            "supersteps": counted.dispatches,
            "messages": counted.messages,
            "bytes": counted.exchanged_bytes,
        });
        self.events.push(complete(name, "step", (begun, ended), args));
        for part in ledger.runs.chunk_by(|a, b| a.phase == b.phase) {
            let (first, last) = (&part[0], &part[part.len() - 1]);
            if let Some(name) = ledger.phase_of(first) {
                let time = (first.begun, last.begun + last.seconds);
                self.events.push(complete(name, "visit", time, json!({ "programs": part.len() })));
            }
            self.events.extend(part.iter().map(program));
        }
    }

    /// The file's JSON.
    pub fn json(&self) -> Value {
        let about: serde_json::Map<String, Value> =
            self.about.iter().map(|(name, value)| ((*name).into(), json!(value))).collect();
        let device = self
            .about
            .iter()
            .find(|(name, _)| *name == "device")
            .map_or("a device", |(_, value)| value.split(';').next().unwrap_or_default());
        let named = |what: &str, name: &str| json!({ "ph": "M", "pid": PROCESS, "tid": TRACK, "name": what, "args": { "name": name } });
        let mut events = vec![
            named("process_name", &format!("gaufre on {device}")),
            named("thread_name", "steps, visits, programs"),
        ];
        events.extend(self.events.iter().cloned());
        json!({ "displayTimeUnit": "ms", "otherData": about, "traceEvents": events })
    }

    /// Writes the file.
    ///
    /// # Errors
    /// [`ReportError`] with the path.
    pub fn write(&self) -> Result<()> {
        let failed = |source| ReportError { path: self.path.clone(), source };
        let mut file = BufWriter::new(fs::File::create(&self.path).map_err(failed)?);
        serde_json::to_writer(&mut file, &self.json()).map_err(|e| failed(e.into()))?;
        file.flush().map_err(failed)
    }
}

/// One run of a program.
fn program(run: &Run) -> Value {
    let args = json!({
        "supersteps": run.dispatches,
        "messages": run.messages,
        "bytes": run.exchanged_bytes,
        "hops": run.hops,
        "link_bytes": run.link_bytes,
        "blocks": format!("{} x {}", run.blocks.0, run.blocks.1),
        "work": run.work,
    });
    complete(run.program, "program", (run.begun, run.begun + run.seconds), args)
}

/// A complete event, its times in microseconds.
fn complete(name: &str, kind: &str, (begun, ended): (f64, f64), args: Value) -> Value {
    let micro = |seconds: f64| (seconds * 1e9).round() / 1e3;
    json!({
        "ph": "X", "pid": PROCESS, "tid": TRACK, "cat": kind, "name": name,
        "ts": micro(begun), "dur": micro(ended) - micro(begun), "args": args,
    })
}

impl Observer for Trace {
    fn started(&mut self, start: &Start<'_>) -> Result<()> {
        self.say("device", start.device.trim_start_matches("device: ").into());
        self.say("model", start.model.into());
        self.say("parameters", start.parameters.to_string());
        self.say("step_tokens", start.step_tokens.to_string());
        // A place that cannot be written is said now, not after hours.
        self.write()
    }

    fn step(&mut self, _: &StepLine) -> Result<()> {
        Ok(())
    }

    fn evaluation(&mut self, _: u64, _: f64) -> Result<()> {
        Ok(())
    }

    fn event(&mut self, event: &Event<'_>) -> Result<()> {
        if let Event::Traced { step, seconds, ledger } = event {
            self.add(&format!("step {step}"), *seconds, ledger);
        }
        Ok(())
    }

    fn finished(&mut self, _: &Finish) -> Result<()> {
        self.write()
    }
}
