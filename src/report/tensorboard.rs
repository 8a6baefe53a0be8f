//! Event files that TensorBoard reads: scalars of each step and evaluation. It must never know what is done with them.
//!
//! An event file is a list of records. A record is the length of its data (u64), the masked CRC-32C of the length, the
//! data, and the masked CRC-32C of the data, all little endian; the data is an `Event` message of protocol buffers, few
//! enough fields to write by hand. The first event names the version of the format.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Finish, Observer, ReportError, Result, Start, StepLine};

/// Writes `events.out.tfevents.*` into the folder of the run; a record is in the file as soon as its step is done.
#[derive(Default)]
pub struct TensorBoard(Option<Open>);

struct Open {
    path: PathBuf,
    file: File,
    /// Whether the step that this file begins at is in it.
    begun: bool,
}

/// What an event says.
enum What<'a> {
    /// The version of the format: field 3 of `Event`.
    FileVersion(&'a str),
    /// A run begins, or goes on, at this step: what older files say of it and later steps does not count. Field 7.
    SessionStart,
    /// Values by their tags: field 5.
    Scalars(&'a [(&'a str, f64)]),
}

impl TensorBoard {
    fn write(&mut self, step: u64, what: What<'_>) -> Result<()> {
        let Some(open) = &mut self.0 else { return Ok(()) };
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
        let mut bytes = Vec::new();
        if !std::mem::replace(&mut open.begun, true) {
            bytes.extend(record(&event(seconds, 0, What::FileVersion("brain.Event:2"))));
            bytes.extend(record(&event(seconds, step, What::SessionStart)));
        }
        bytes.extend(record(&event(seconds, step, what)));
        open.file.write_all(&bytes).map_err(|source| ReportError { path: open.path.clone(), source })
    }
}

impl Observer for TensorBoard {
    fn started(&mut self, start: &Start<'_>) -> Result<()> {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let path = start.folder.join(format!("events.out.tfevents.{seconds:010}.gaufre.{}", std::process::id()));
        // A resumed run adds a file of its own: TensorBoard reads all of a folder in the order of their names.
        match File::options().create_new(true).append(true).open(&path) {
            Ok(file) => self.0 = Some(Open { path, file, begun: false }),
            Err(source) => return Err(ReportError { path, source }),
        }
        Ok(())
    }

    fn step(&mut self, line: &StepLine) -> Result<()> {
        let scalars = [
            ("loss", line.loss),
            ("lr", line.lr),
            ("grad_norm", line.grad_norm),
            ("tokens_per_second", line.tokens_per_second),
        ];
        self.write(line.step, What::Scalars(&scalars))
    }

    fn evaluation(&mut self, step: u64, val_loss: f64) -> Result<()> {
        self.write(step, What::Scalars(&[("val_loss", val_loss)]))
    }

    fn finished(&mut self, _: &Finish) -> Result<()> {
        match &self.0 {
            Some(Open { path, file, .. }) => {
                file.sync_all().map_err(|source: io::Error| ReportError { path: path.clone(), source })
            }
            None => Ok(()),
        }
    }
}

/// Data as a record.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut bytes = Vec::with_capacity(data.len() + 16);
    bytes.extend(length);
    bytes.extend(masked_crc(&length).to_le_bytes());
    bytes.extend(data);
    bytes.extend(masked_crc(data).to_le_bytes());
    bytes
}

/// CRC-32C, turned and moved, so that data which holds CRCs of its own does not fool the check.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// An `Event`: wall time (1, double), step (2, int64), and one of what may be said.
fn event(seconds: f64, step: u64, what: What<'_>) -> Vec<u8> {
    let mut message = Message::default();
    message.double(1, seconds);
    message.whole(2, step);
    match what {
        What::FileVersion(version) => message.bytes(3, version.as_bytes()),
        What::SessionStart => {
            let mut session = Message::default();
            session.whole(1, 1);
            message.bytes(7, &session.0);
        }
        What::Scalars(scalars) => {
            let mut summary = Message::default();
            for (tag, value) in scalars {
                let mut scalar = Message::default();
                scalar.bytes(1, tag.as_bytes());
                scalar.float(2, *value as f32);
                summary.bytes(1, &scalar.0);
            }
            message.bytes(5, &summary.0);
        }
    }
    message.0
}

/// A message of protocol buffers: each field is its number and its kind in one varint, then its value.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn whole(&mut self, field: u64, value: u64) {
        self.varint(field << 3);
        self.varint(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.varint(field << 3 | 1);
        self.0.extend(value.to_le_bytes());
    }

    fn float(&mut self, field: u64, value: f32) {
        self.varint(field << 3 | 5);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_framed_as_the_format_wants() {
        // The check value of CRC-32C for "123456789" is 0xe3069283.
        assert_eq!(masked_crc(b"123456789"), 0xe306_9283u32.rotate_right(15).wrapping_add(0xa282_ead8));
        let bytes = record(b"abc");
        assert_eq!((bytes.len(), &bytes[..8], &bytes[12..15]), (19, &[3, 0, 0, 0, 0, 0, 0, 0][..], &b"abc"[..]));
    }

    #[test]
    fn an_event_is_the_message_it_should_be() {
        let mut expected = vec![0x09];
        expected.extend(1.5f64.to_le_bytes());
        expected.extend([0x10, 0xac, 0x02, 0x2a, 10, 0x0a, 8, 0x0a, 1, b'x', 0x15]);
        expected.extend(2.0f32.to_le_bytes());
        assert_eq!(event(1.5, 300, What::Scalars(&[("x", 2.0)])), expected);
    }
}
