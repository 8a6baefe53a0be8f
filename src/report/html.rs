//! `report.html`: a run on one page that needs nothing but a browser. It is made from the files of the run folder alone, so
//! that it can be made again at any time. It must never know how a run is trained.

mod chart;
pub(super) mod number;

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use super::history::{History, ReadError, Step};
use super::{Finish, Observer, ReportError, Result, Start, StepLine};
use chart::{Chart, Line, Style};

/// What is known when a run starts, kept as `start.json`: what the page says beside the configuration.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(default)]
struct Known {
    gaufre: String,
    device: String,
    model: String,
    parameters: u64,
    train_tokens: u64,
    validation_tokens: u64,
    vocab_size: usize,
    steps: u64,
    step_tokens: u64,
}

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub enum PageError {
    /// A file of the run could not be read.
    Read(#[from] ReadError),
    /// The page could not be written.
    Write(#[from] ReportError),
}

/// Writes `start.json` when a run starts, and the page when it is over. Whoever writes `metrics.jsonl` must be told first.
#[derive(Default)]
pub struct Page(Option<PathBuf>);

impl Observer for Page {
    fn started(&mut self, start: &Start<'_>) -> Result<()> {
        let known = Known {
            gaufre: env!("CARGO_PKG_VERSION").into(),
            device: start.device.into(),
            model: start.model.into(),
            parameters: start.parameters,
            train_tokens: start.train_tokens,
            validation_tokens: start.validation_tokens,
            vocab_size: start.vocab_size,
            steps: start.steps,
            step_tokens: start.step_tokens,
        };
        let path = start.folder.join("start.json");
        let text = serde_json::to_string_pretty(&known).map_err(std::io::Error::from);
        text.and_then(|t| fs::write(&path, t)).map_err(|source| ReportError { path, source })?;
        self.0 = Some(start.folder.into());
        Ok(())
    }

    fn step(&mut self, _: &StepLine) -> Result<()> {
        Ok(())
    }

    fn evaluation(&mut self, _: u64, _: f64) -> Result<()> {
        Ok(())
    }

    fn finished(&mut self, _: &Finish) -> Result<()> {
        let Some(folder) = &self.0 else { return Ok(()) };
        match write(folder) {
            Ok(_) => Ok(()),
            Err(PageError::Write(error)) => Err(error),
            Err(PageError::Read(ReadError { path, reason })) => {
                Err(ReportError { path, source: std::io::Error::other(reason) })
            }
        }
    }
}

/// Most bytes of a small file of the run that are read.
const FILE_BYTES: u64 = 1 << 20;
/// Samples shown, the newest, and characters of each.
const SAMPLES: usize = 6;
const SAMPLE_CHARACTERS: usize = 2000;

/// Makes `report.html` of a run folder, as far as the run has come. Returns where it is.
///
/// # Errors
/// [`PageError`] names the file.
pub fn write(folder: &Path) -> std::result::Result<PathBuf, PageError> {
    let page = page(folder)?;
    let path = folder.join("report.html");
    fs::write(&path, page).map_err(|source| ReportError { path: path.clone(), source })?;
    Ok(path)
}

fn page(folder: &Path) -> std::result::Result<String, ReadError> {
    let history = History::read(&folder.join("metrics.jsonl"))?;
    let wrong = |path: PathBuf, reason: String| ReadError { path, reason };
    let config = folder.join("config.toml");
    let config = match small(&config)? {
        Some(text) => text.parse::<toml::Table>().map_err(|e| wrong(config, e.message().replace('\n', " ")))?,
        None => toml::Table::new(),
    };
    let known = folder.join("start.json");
    let known: Known = match small(&known)? {
        Some(text) => serde_json::from_str(&text).map_err(|e| wrong(known, e.to_string()))?,
        None => Known::default(),
    };
    Ok(html(&history, &config, &known, &samples(&folder.join("samples"))?))
}

/// A small text file, if it is there.
fn small(path: &Path) -> std::result::Result<Option<String>, ReadError> {
    let failed = |reason: String| ReadError { path: path.into(), reason };
    match fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed(e.to_string())),
        Ok(about) if about.len() > FILE_BYTES => Err(failed(format!("longer than {FILE_BYTES} bytes"))),
        Ok(_) => fs::read_to_string(path).map(Some).map_err(|e| failed(e.to_string())),
    }
}

/// The newest samples, by the last number in their names: names and texts.
fn samples(folder: &Path) -> std::result::Result<Vec<(String, String)>, ReadError> {
    let mut found = Vec::new();
    for path in fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
        let Some(name) = path.file_stem().map(|n| n.to_string_lossy().into_owned()) else { continue };
        let number = name.rsplit(|c: char| !c.is_ascii_digit()).find(|n| !n.is_empty());
        found.push((number.and_then(|n| n.parse::<u64>().ok()), name, path));
    }
    found.sort();
    let mut texts = Vec::new();
    for (_, name, path) in found.into_iter().rev().filter(|(.., path)| path.is_file()).take(SAMPLES) {
        if let Some(text) = small(&path)? {
            texts.push((name, text.chars().take(SAMPLE_CHARACTERS).collect()));
        }
    }
    Ok(texts)
}

fn html(history: &History, config: &toml::Table, known: &Known, samples: &[(String, String)]) -> String {
    let last = history.steps.last();
    let model = match config.get("model").and_then(toml::Value::as_str) {
        _ if !known.model.is_empty() => &known.model,
        Some(name) => name,
        None => "a run",
    };
    let model = escaped(model);
    let device = escaped(known.device.trim_start_matches("device: "));
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\">\n<meta http-equiv=\"Content-Security-Policy\" \
         content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:\">\n\
         <link rel=\"icon\" href=\"data:,\">\n<title>{model} - Gaufre</title>\n<style>\n{}</style>\n</head>\n<body>\n<main>\n",
        include_str!("html/page.css")
    );
    let _ = writeln!(out, "<header>{WAFER}<div><h1>{model}</h1><p>{}</p></div></header>", headline(history, known));
    out += &facts(history);
    out += &charts(history);
    out += "<div class=\"pair\">\n";
    out += &table("Configuration", &configuration(config));
    out += "<div>\n";
    out += &table("Results", &results(history, known));
    out += &written(samples);
    out += "</div>\n</div>\n";
    let version = if known.gaufre.is_empty() { env!("CARGO_PKG_VERSION") } else { &known.gaufre };
    let tokens = last.map_or(0, |s| s.tokens);
    let _ = writeln!(
        out,
        "<footer>{device}{}Gaufre {}, {} tokens trained on</footer>",
        if device.is_empty() { "" } else { "<br>" },
        escaped(version),
        number::count(tokens)
    );
    let _ = write!(out, "</main>\n<script>\n{}</script>\n</body>\n</html>\n", include_str!("html/page.js"));
    out
}

/// The mark: a wafer of tiles.
pub(super) const WAFER: &str = "<svg viewBox=\"0 0 44 44\" aria-hidden=\"true\"><g fill=\"currentColor\">\
    <rect x=\"13\" y=\"2\" width=\"8\" height=\"8\" rx=\"2\"/><rect x=\"23\" y=\"2\" width=\"8\" height=\"8\" rx=\"2\"/>\
    <rect x=\"3\" y=\"12\" width=\"8\" height=\"8\" rx=\"2\"/><rect x=\"13\" y=\"12\" width=\"8\" height=\"8\" rx=\"2\"/>\
    <rect x=\"23\" y=\"12\" width=\"8\" height=\"8\" rx=\"2\" opacity=\".55\"/><rect x=\"33\" y=\"12\" width=\"8\" height=\"8\" rx=\"2\"/>\
    <rect x=\"3\" y=\"22\" width=\"8\" height=\"8\" rx=\"2\"/><rect x=\"13\" y=\"22\" width=\"8\" height=\"8\" rx=\"2\" opacity=\".55\"/>\
    <rect x=\"23\" y=\"22\" width=\"8\" height=\"8\" rx=\"2\"/><rect x=\"33\" y=\"22\" width=\"8\" height=\"8\" rx=\"2\"/>\
    <rect x=\"13\" y=\"32\" width=\"8\" height=\"8\" rx=\"2\"/><rect x=\"23\" y=\"32\" width=\"8\" height=\"8\" rx=\"2\"/></g></svg>";

/// What the run is, in one line.
fn headline(history: &History, known: &Known) -> String {
    let done = history.steps.last().map_or(0, |s| s.step);
    let steps = match known.steps > done {
        true => format!("{} of {} steps", number::count(done), number::count(known.steps)),
        false => format!("{} steps", number::count(done)),
    };
    let size = match known.parameters {
        0 => String::new(),
        n => format!("{} parameters, ", number::count(n)),
    };
    let each =
        if known.step_tokens > 0 { format!(" of {} tokens", number::count(known.step_tokens)) } else { String::new() };
    format!("{size}{steps}{each}")
}

/// The few numbers to know first.
fn facts(history: &History) -> String {
    let mut facts: Vec<(&str, String, String)> = Vec::new();
    if let Some((step, loss)) = best(history) {
        let about = format!("best, at step {}", number::count(step));
        facts.push(("Validation loss", format!("{loss:.4}"), about));
        facts.push((
            "Perplexity",
            if loss < 9.0 { format!("{:.2}", loss.exp()) } else { number::short(loss.exp()) },
            format!("{:.3} bits a token", loss / std::f64::consts::LN_2),
        ));
    }
    if let Some(loss) = smoothed(&history.steps).into_iter().map(|p| p.1).rfind(|l| l.is_finite()) {
        facts.push(("Training loss", format!("{loss:.4}"), "at the end, smoothed".into()));
    }
    if let Some(rate) = median(history.steps.iter().map(|s| s.tokens_per_second)) {
        facts.push(("Throughput", number::count(rate as u64), "tokens a second, median".into()));
    }
    if let Some(last) = history.steps.last() {
        facts.push(("Time in steps", number::time(seconds(history)), format!("{} tokens", number::count(last.tokens))));
    }
    let mut out = String::from("<dl class=\"facts\">\n");
    for (at, (name, value, about)) in facts.iter().enumerate() {
        let class = if at == 0 { " class=\"first\"" } else { "" };
        let _ = writeln!(out, "<div><dt>{name}</dt><dd{class}>{value}<small>{about}</small></dd></div>");
    }
    out + "</dl>\n"
}

fn charts(history: &History) -> String {
    let series = |value: fn(&Step) -> f64| history.steps.iter().map(|s| (s.step as f64, value(s))).collect::<Vec<_>>();
    let evaluations = history.evaluations.iter().map(|(step, loss)| (*step as f64, *loss)).collect::<Vec<_>>();
    let mut lines = vec![
        Line { name: "each step", style: Style::Raw, points: series(|s| s.loss) },
        Line { name: "training, smoothed", style: Style::Strong, points: smoothed(&history.steps) },
    ];
    if !evaluations.is_empty() {
        lines.push(Line { name: "validation", style: Style::Dotted, points: evaluations });
    }
    let mut out = Chart { title: "Loss", unit: "nats a token, over steps", lines, from_zero: false, tall: true }.html();
    out += "<div class=\"trio\">\n";
    let small = [
        ("Learning rate", "", series(|s| s.lr)),
        ("Gradient norm", "before clipping", series(|s| s.grad_norm)),
        ("Throughput", "tokens a second", series(|s| s.tokens_per_second)),
    ];
    for ((title, unit, points), name) in small.into_iter().zip(["rate", "norm", "tokens/s"]) {
        let lines = vec![Line { name, style: Style::Strong, points }];
        out += &Chart { title, unit, lines, from_zero: true, tall: false }.html();
    }
    out + "</div>\n"
}

fn table(title: &str, rows: &[(String, String)]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let row =
        |(name, value): &(String, String)| format!("<tr><td>{}</td><td>{}</td></tr>\n", escaped(name), escaped(value));
    format!("<section><h2>{title}</h2>\n<table>\n{}</table></section>\n", rows.iter().map(row).collect::<String>())
}

fn configuration(config: &toml::Table) -> Vec<(String, String)> {
    let text = |value: &toml::Value| match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Float(number) => format!("{number:?}"),
        toml::Value::Array(list) => {
            let list: Vec<String> = list.iter().map(|v| v.as_str().map_or(v.to_string(), str::to_owned)).collect();
            list.join(" ")
        }
        other => other.to_string(),
    };
    config.iter().map(|(name, value)| (name.replace('_', "-"), text(value))).collect()
}

fn results(history: &History, known: &Known) -> Vec<(String, String)> {
    let mut rows: Vec<(&str, String)> = Vec::new();
    if known.train_tokens > 0 {
        rows.push(("training text", format!("{} tokens", number::count(known.train_tokens))));
        rows.push(("validation text", format!("{} tokens", number::count(known.validation_tokens))));
        rows.push(("vocabulary", number::count(known.vocab_size as u64)));
    }
    if let Some(last) = history.steps.last() {
        if known.train_tokens > 0 {
            rows.push(("passes over the text", format!("{:.2}", last.tokens as f64 / known.train_tokens as f64)));
        }
        rows.push(("loss of the last step", number::short(last.loss)));
        rows.push((
            "gradient norm, median",
            median(history.steps.iter().map(|s| s.grad_norm)).map_or("-".into(), number::short),
        ));
    }
    if let Some((step, loss)) = history.evaluations.last() {
        rows.push(("last validation loss", format!("{loss:.4} at step {}", number::count(*step))));
    }
    let skipped = history.steps.iter().filter(|s| s.skipped).count();
    rows.push(("updates skipped, not finite", skipped.to_string()));
    rows.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn written(samples: &[(String, String)]) -> String {
    if samples.is_empty() {
        return String::new();
    }
    let one = |(name, text): &(String, String)| format!("<h3>{}</h3>\n<pre>{}</pre>\n", escaped(name), escaped(text));
    format!("<section><h2>Samples</h2>\n{}</section>\n", samples.iter().map(one).collect::<String>())
}

fn best(history: &History) -> Option<(u64, f64)> {
    history.evaluations.iter().copied().filter(|(_, l)| l.is_finite()).min_by(|a, b| a.1.total_cmp(&b.1))
}

/// Time in steps: a resumed run has none but these.
fn seconds(history: &History) -> f64 {
    let mut before = 0;
    let mut sum = 0.0;
    for step in &history.steps {
        let tokens = step.tokens.saturating_sub(before) as f64;
        before = step.tokens;
        sum += if step.tokens_per_second > 0.0 { tokens / step.tokens_per_second } else { 0.0 };
    }
    sum
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.filter(|v| v.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// The mean of the losses around each step, of as many on either side, a fortieth of the run in all, so that the curve
/// does not lag; only at the end the past must do, so that one loss does not stand for the result.
fn smoothed(steps: &[Step]) -> Vec<(f64, f64)> {
    let mut sums = vec![(0.0, 0.0)];
    for step in steps {
        let (sum, count) = sums[sums.len() - 1];
        sums.push(if step.loss.is_finite() { (sum + step.loss, count + 1.0) } else { (sum, count) });
    }
    let mean = |at: usize| {
        let reach = (steps.len() / 80).min(at);
        let (from, to) = (sums[at - reach], sums[(at + reach + 1).min(steps.len())]);
        (to.0 - from.0) / (to.1 - from.1)
    };
    steps.iter().enumerate().map(|(at, step)| (step.step as f64, mean(at))).collect()
}

/// Text as HTML.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            '\n' | '\t' => out.push(c),
            c if c.is_control() => out.push(char::REPLACEMENT_CHARACTER),
            c => out.push(c),
        }
    }
    out
}
