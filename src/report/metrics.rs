//! `metrics.jsonl`: a line per step and per evaluation, for programs. A value that is not finite is `null`.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use super::{Finish, Observer, ReportError, Result, Start, StepLine};

/// Writes `metrics.jsonl` into the folder of the run. Lines reach the disk at evaluations and at the end.
#[derive(Default)]
pub struct Metrics(Option<Open>);

struct Open {
    path: PathBuf,
    file: BufWriter<File>,
}

#[derive(serde::Serialize)]
struct Step {
    step: u64,
    loss: f64,
    grad_norm: f64,
    lr: f64,
    tokens: u64,
    tokens_per_second: f64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    skipped: bool,
}

#[derive(serde::Serialize)]
struct Evaluation {
    step: u64,
    val_loss: f64,
}

impl Metrics {
    /// Does something to the file, once there is one.
    fn write(&mut self, act: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> Result<()> {
        match &mut self.0 {
            Some(open) => act(&mut open.file).map_err(|source| ReportError { path: open.path.clone(), source }),
            None => Ok(()),
        }
    }
}

fn line(file: &mut BufWriter<File>, value: &impl serde::Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *file, value)?;
    file.write_all(b"\n")
}

impl Observer for Metrics {
    fn started(&mut self, start: &Start<'_>) -> Result<()> {
        let path = start.folder.join("metrics.jsonl");
        match File::create(&path) {
            Ok(file) => self.0 = Some(Open { path, file: BufWriter::new(file) }),
            Err(source) => return Err(ReportError { path, source }),
        }
        Ok(())
    }

    fn step(&mut self, s: &StepLine) -> Result<()> {
        let &StepLine { step, loss, grad_norm, lr, tokens, tokens_per_second, skipped } = s;
        self.write(|file| line(file, &Step { step, loss, grad_norm, lr, tokens, tokens_per_second, skipped }))
    }

    fn evaluation(&mut self, step: u64, val_loss: f64) -> Result<()> {
        self.write(|file| {
            line(file, &Evaluation { step, val_loss })?;
            file.flush()
        })
    }

    fn finished(&mut self, _: &Finish) -> Result<()> {
        self.write(|file| {
            file.flush()?;
            file.get_ref().sync_all()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_what_programs_expect() {
        let folder = tempfile::tempdir().unwrap();
        let start = Start {
            device: "host",
            model: "demo",
            parameters: 1,
            train_tokens: 1,
            validation_tokens: 1,
            vocab_size: 1,
            steps: 2,
            step_tokens: 8,
            folder: folder.path(),
        };
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
        metrics.started(&start).unwrap();
        metrics.step(&first).unwrap();
        metrics.step(&StepLine { step: 2, loss: f64::NAN, grad_norm: f64::INFINITY, skipped: true, ..first }).unwrap();
        metrics.evaluation(2, 3.5).unwrap();
        let text = std::fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap();
        let expected = concat!(
            r#"{"step":1,"loss":4.25,"grad_norm":0.5,"lr":0.001,"tokens":8,"tokens_per_second":100.0}"#,
            "\n",
            r#"{"step":2,"loss":null,"grad_norm":null,"lr":0.001,"tokens":8,"tokens_per_second":100.0,"skipped":true}"#,
            "\n",
            r#"{"step":2,"val_loss":3.5}"#,
            "\n",
        );
        assert_eq!(text, expected);
    }
}
