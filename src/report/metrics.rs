//! `metrics.jsonl`: a line per step, evaluation and event, for programs. A value that is not finite is `null`. A run that
//! goes on first cuts off what was written after its checkpoint, so that in the end the file is that of a run that never
//! stopped, apart from times and memory.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Seek, SeekFrom, Write};
use std::path::PathBuf;

use super::{Event, Finish, Observer, ReportError, Result, Start, StepLine};

/// Writes `metrics.jsonl` into the folder of the run. Lines reach the disk at evaluations, checkpoints and the end.
#[derive(Default)]
pub struct Metrics(Option<Open>);

struct Open {
    path: PathBuf,
    file: BufWriter<File>,
    bytes_per_token: Option<f64>,
    /// Share of the measured peak that one token a second is.
    mfu_of_a_token: f64,
}

#[derive(serde::Serialize)]
struct Step {
    step: u64,
    loss: f64,
    grad_norm: f64,
    lr: f64,
    tokens: u64,
    tokens_per_second: f64,
    mfu: f64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    skipped: bool,
}

#[derive(serde::Serialize)]
struct Evaluation {
    step: u64,
    val_loss: f64,
    perplexity: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    bits_per_byte: Option<f64>,
}

#[derive(serde::Serialize)]
struct Memory {
    step: u64,
    peak_device_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_process_bytes: Option<u64>,
}

#[derive(serde::Serialize)]
struct Traffic {
    step: u64,
    seconds: f64,
    bound: &'static str,
    bytes_read: u64,
    bytes_written: u64,
    read_bandwidth: f64,
    write_bandwidth: f64,
    read_wait: f64,
    write_wait: f64,
}

#[derive(serde::Serialize)]
struct Spike {
    step: u64,
    spike: f64,
    mean: f64,
    sigma: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    rolled_back_to: Option<u64>,
}

/// Bits per byte of a text, from nats a token and bytes a token.
pub fn bits_per_byte(loss: f64, bytes_per_token: f64) -> f64 {
    loss / std::f64::consts::LN_2 / bytes_per_token
}

impl Open {
    fn new(start: &Start<'_>) -> io::Result<Open> {
        let path = start.folder.join("metrics.jsonl");
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
        let kept = start.resumed.map_or(Ok(0), |step| end_of_step(&file, step))?;
        file.set_len(kept)?;
        file.seek(SeekFrom::End(0))?;
        Ok(Open {
            path,
            file: BufWriter::new(file),
            bytes_per_token: start.bytes_per_token,
            mfu_of_a_token: start.step_flops / start.step_tokens as f64 / start.peak_flops,
        })
    }

    fn line(&mut self, value: &impl serde::Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.file, value)?;
        self.file.write_all(b"\n")
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.flush()?;
        self.file.get_ref().sync_all()
    }
}

/// Bytes up to the end of the last line of a step; where it has none, up to the first line after it. The last, as a run
/// that went back to an earlier checkpoint did some steps twice.
fn end_of_step(file: &File, step: u64) -> io::Result<u64> {
    #[derive(serde::Deserialize)]
    struct Line {
        step: u64,
    }
    let (mut file, mut at, mut own, mut before) = (BufReader::new(file), 0, None, None);
    let mut text = Vec::new();
    loop {
        text.clear();
        at += file.read_until(b'\n', &mut text)? as u64;
        match serde_json::from_slice::<Line>(&text) {
            Ok(line) if text.ends_with(b"\n") => {
                if line.step == step {
                    own = Some(at);
                } else if line.step > step {
                    before.get_or_insert(at - text.len() as u64);
                }
            }
            // Torn when the writer was killed, or the end.
            _ => return Ok(own.or(before).unwrap_or(at - text.len() as u64)),
        }
    }
}

impl Metrics {
    /// Does something to the file, once there is one.
    fn write(&mut self, act: impl FnOnce(&mut Open) -> io::Result<()>) -> Result<()> {
        match &mut self.0 {
            Some(open) => act(open).map_err(|source| ReportError { path: open.path.clone(), source }),
            None => Ok(()),
        }
    }
}

impl Observer for Metrics {
    fn started(&mut self, start: &Start<'_>) -> Result<()> {
        let failed = |source| ReportError { path: start.folder.join("metrics.jsonl"), source };
        self.0 = Some(Open::new(start).map_err(failed)?);
        Ok(())
    }

    fn step(&mut self, s: &StepLine) -> Result<()> {
        let &StepLine { step, loss, grad_norm, lr, tokens, tokens_per_second, skipped } = s;
        self.write(|open| {
            let mfu = tokens_per_second * open.mfu_of_a_token;
            open.line(&Step { step, loss, grad_norm, lr, tokens, tokens_per_second, mfu, skipped })
        })
    }

    fn evaluation(&mut self, step: u64, val_loss: f64) -> Result<()> {
        self.write(|open| {
            let bits_per_byte = open.bytes_per_token.map(|bytes| bits_per_byte(val_loss, bytes));
            open.line(&Evaluation { step, val_loss, perplexity: val_loss.exp(), bits_per_byte })?;
            open.file.flush()
        })
    }

    fn event(&mut self, event: &Event<'_>) -> Result<()> {
        self.write(|open| match *event {
            Event::Saving => open.sync(),
            Event::Spike { step, loss: spike, mean, sigma, rolled_back: rolled_back_to } => {
                open.line(&Spike { step, spike, mean, sigma, rolled_back_to })
            }
            Event::Memory { step, device_bytes, process_bytes } => {
                open.line(&Memory { step, peak_device_bytes: device_bytes, peak_process_bytes: process_bytes })
            }
            Event::Traffic { step, traffic } => open.line(&Traffic {
                step,
                seconds: traffic.seconds,
                bound: traffic.bound(),
                bytes_read: traffic.bytes_read,
                bytes_written: traffic.bytes_written,
                read_bandwidth: traffic.read_bandwidth,
                write_bandwidth: traffic.write_bandwidth,
                read_wait: traffic.read_wait,
                write_wait: traffic.write_wait,
            }),
            Event::Damaged { .. }
            | Event::Dry { .. }
            | Event::Needs(_)
            | Event::Saved { .. }
            | Event::Stopped { .. }
            | Event::Traced { .. } => Ok(()),
        })
    }

    fn finished(&mut self, _: &Finish) -> Result<()> {
        self.write(Open::sync)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(folder: &std::path::Path, resumed: Option<u64>) -> Start<'_> {
        Start {
            device: "host",
            model: "demo",
            parameters: 1,
            train_tokens: 1,
            validation_tokens: 1,
            vocab_size: 1,
            steps: 2,
            step_tokens: 8,
            folder,
            resumed,
            bytes_per_token: Some(2.0),
            step_flops: 80.0,
            peak_flops: 4000.0,
        }
    }

    #[test]
    fn lines_are_what_programs_expect() {
        let folder = tempfile::tempdir().unwrap();
        let first = StepLine {
            step: 1,
            loss: 4.25,
            grad_norm: 0.5,
            lr: 1e-3,
            tokens: 8,
            tokens_per_second: 100.0,
            skipped: false,
        };
        let mut metrics = Metrics::default();
        metrics.started(&start(folder.path(), None)).unwrap();
        metrics.step(&first).unwrap();
        metrics.step(&StepLine { step: 2, loss: f64::NAN, grad_norm: f64::INFINITY, skipped: true, ..first }).unwrap();
        metrics.evaluation(2, 0.0).unwrap();
        metrics.event(&Event::Memory { step: 2, device_bytes: 5, process_bytes: None }).unwrap();
        metrics.event(&Event::Saving).unwrap();
        let text = std::fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap();
        let expected = concat!(
            r#"{"step":1,"loss":4.25,"grad_norm":0.5,"lr":0.001,"tokens":8,"tokens_per_second":100.0,"mfu":0.25}"#,
            "\n",
            r#"{"step":2,"loss":null,"grad_norm":null,"lr":0.001,"tokens":8,"tokens_per_second":100.0,"mfu":0.25,"skipped":true}"#,
            "\n",
            r#"{"step":2,"val_loss":0.0,"perplexity":1.0,"bits_per_byte":0.0}"#,
            "\n",
            r#"{"step":2,"peak_device_bytes":5}"#,
            "\n",
        );
        assert_eq!(text, expected);
        assert_eq!(bits_per_byte(std::f64::consts::LN_2, 2.0), 0.5);
    }

    #[test]
    fn what_came_after_the_checkpoint_is_cut_off() {
        let lines = |steps: &[u64]| steps.iter().map(|s| format!("{{\"step\":{s},\"x\":1}}\n")).collect::<String>();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let cases: [(String, u64, &[u64]); 6] = [
            (lines(&[1, 2, 2, 3, 4]), 2, &[1, 2, 2]),
            (lines(&[1, 2, 3, 4, 3, 4, 5]), 4, &[1, 2, 3, 4, 3, 4]),
            (lines(&[1, 2, 4]), 3, &[1, 2]),
            (lines(&[1, 2, 3]), 0, &[]),
            (lines(&[1, 2]) + r#"{"step":3,"x""#, 9, &[1, 2]),
            (lines(&[1, 2]) + r#"{"step":3}"#, 3, &[1, 2]),
        ];
        for (text, step, kept) in cases {
            std::fs::write(&path, &text).unwrap();
            Metrics::default().started(&start(folder.path(), Some(step))).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), lines(kept), "{text} {step}");
        }
    }
}
