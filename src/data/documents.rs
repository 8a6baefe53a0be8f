//! Documents, read in blocks, so that a file of any size takes constant memory. It must never know a tokenizer's rules: a
//! block ends where a line ends and the next begins with no white space, or between two words, where GPT-2's rule and its
//! kin end a token too. A tokenizer that treats the start of a text apart does so at the start of each block.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use super::DataError;
use super::error::one_line;
use super::files::{Kind, Source, failed};

/// Bytes of a block, unless its text offers no place to cut.
const BLOCK: usize = 128 << 10;

/// Bytes after which a text is cut between any two characters.
const LONGEST_BLOCK: usize = 16 << 20;

/// Bytes that one line of JSON may have.
const LONGEST_LINE: usize = 256 << 20;

/// A piece of a document.
#[derive(Debug)]
pub(super) struct Block {
    pub bytes: Vec<u8>,
    /// Whether a document begins with it.
    pub first: bool,
}

/// How documents are read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading<'a> {
    /// The field of JSON lines that holds the text.
    pub field: &'a str,
    /// Whether bytes must be UTF-8.
    pub text: bool,
}

/// Gives all blocks of a file of text to `take`.
///
/// # Errors
/// What is wrong with the file, or what `take` returns.
pub(super) fn read(
    source: &Source,
    reading: Reading<'_>,
    take: &mut dyn FnMut(Block) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let file = File::open(&source.path).map_err(failed(&source.path))?;
    match source.kind {
        Kind::JsonLines => lines(&source.path, file, reading.field, take),
        Kind::Text | Kind::Ids => text(&source.path, file, reading.text, take),
    }
}

/// A file that is one document.
fn text(
    path: &Path,
    mut file: File,
    utf8: bool,
    take: &mut dyn FnMut(Block) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let (mut held, mut offset, mut first) = (Vec::new(), 0usize, true);
    // So many bytes of what is held are known to offer no cut.
    let mut searched = 0;
    loop {
        let before = held.len();
        let wanted = BLOCK.saturating_sub(before).max(BLOCK / 2) as u64;
        (&mut file).take(wanted).read_to_end(&mut held).map_err(failed(path))?;
        let end = held.len() == before;
        let cut = match end {
            true => held.len(),
            false => last_cut(&held, searched).unwrap_or(0),
        };
        searched = held.len();
        let forced = cut == 0 && held.len() >= LONGEST_BLOCK;
        let cut = if forced { whole_characters(&held) } else { cut };
        if cut > 0 {
            let rest = held.split_off(cut);
            if utf8 && let Err(error) = std::str::from_utf8(&held) {
                return Err(DataError::NotText { path: path.into(), offset: offset + error.valid_up_to() });
            }
            offset += cut;
            take(Block { bytes: std::mem::replace(&mut held, rest), first })?;
            (first, searched) = (false, 0);
        }
        if end {
            return Ok(());
        }
    }
}

/// The last place to cut, looked for from `from` on: where a line ends in no white space and the next begins with none; or
/// else before a single space between two words, which belongs to the second.
fn last_cut(bytes: &[u8], from: usize) -> Option<usize> {
    let solid = |b: u8| !b.is_ascii_whitespace() && b.is_ascii();
    let from = from.saturating_sub(2);
    let last = |between: u8| bytes[from..].windows(3).rposition(|w| w[1] == between && solid(w[0]) && solid(w[2]));
    last(b'\n').map(|at| from + at + 2).or_else(|| last(b' ').map(|at| from + at + 1))
}

/// Bytes before the last character, which may be incomplete; all of them where they are no UTF-8 anyway.
fn whole_characters(bytes: &[u8]) -> usize {
    let start = bytes.len().saturating_sub(4);
    bytes[start..].iter().rposition(|b| b & 0xc0 != 0x80).map_or(bytes.len(), |at| (start + at).max(1))
}

/// A file with a document a line.
fn lines(
    path: &Path,
    file: File,
    field: &str,
    take: &mut dyn FnMut(Block) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let mut reader = BufReader::with_capacity(BLOCK, file);
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let wrong = |reason: String| DataError::Line { path: path.into(), line: number, reason: one_line(reason) };
        reader.by_ref().take(LONGEST_LINE as u64 + 1).read_until(b'\n', &mut line).map_err(failed(path))?;
        if line.is_empty() {
            return Ok(());
        }
        if line.len() > LONGEST_LINE {
            return Err(wrong(format!("more than {LONGEST_LINE} bytes; one document has to fit")));
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let document = document(&line, field).map_err(wrong)?;
        let mut rest = document.as_bytes();
        let mut first = true;
        while first || !rest.is_empty() {
            let cut = match rest.len() > BLOCK {
                true => last_cut(&rest[..BLOCK], 0).unwrap_or(rest.len()),
                false => rest.len(),
            };
            take(Block { bytes: rest[..cut].to_vec(), first })?;
            (rest, first) = (&rest[cut..], false);
        }
    }
    Ok(())
}

/// The text of one line of JSON.
fn document(line: &[u8], field: &str) -> Result<String, String> {
    use serde_json::Value;
    let text = std::str::from_utf8(line).map_err(|e| format!("not UTF-8 at its byte {}", e.valid_up_to()))?;
    match serde_json::from_str(text.trim_end_matches(['\n', '\r'])) {
        Err(error) => Err(format!("broken JSON at column {}: {}", error.column(), reason(&error))),
        Ok(Value::Object(mut fields)) => match fields.remove(field) {
            Some(Value::String(text)) => Ok(text),
            Some(_) => Err(format!("field {field:?} is no text")),
            None => {
                let there: Vec<&str> = fields.keys().map(String::as_str).take(8).collect();
                Err(format!("no field {field:?}, but {}; name one with --field", there.join(", ")))
            }
        },
        Ok(_) => Err(format!("no object with a field {field:?}")),
    }
}

/// The words of an error without the place, which is that within the line.
fn reason(error: &serde_json::Error) -> String {
    let said = error.to_string();
    said.split(" at line ").next().unwrap_or(&said).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(name: &str, bytes: &[u8], utf8: bool) -> Result<Vec<Block>, DataError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let kind = if name.ends_with("jsonl") { Kind::JsonLines } else { Kind::Text };
        let mut found = Vec::new();
        read(&Source { path, kind }, Reading { field: "text", text: utf8 }, &mut |block| {
            found.push(block);
            Ok(())
        })?;
        Ok(found)
    }

    #[test]
    fn blocks_end_where_a_line_does_and_lose_nothing() {
        let text = "fn main() {\n    let é = 1;\n}\n\n".repeat(20_000);
        let found = blocks("text", text.as_bytes(), true).unwrap();
        assert!(found.len() > 3 && found.iter().all(|b| b.bytes.len() <= 2 * BLOCK));
        assert!(found[1..].iter().all(|b| !b.first) && found[0].first);
        assert_eq!(found.concat(), text.as_bytes());
        for pair in found.windows(2) {
            assert!(pair[0].bytes.ends_with(b"\n") && !pair[1].bytes[0].is_ascii_whitespace());
        }
    }

    trait Concat {
        fn concat(&self) -> Vec<u8>;
    }

    impl Concat for Vec<Block> {
        fn concat(&self) -> Vec<u8> {
            self.iter().flat_map(|b| b.bytes.clone()).collect()
        }
    }

    #[test]
    fn a_text_without_lines_is_cut_between_characters() {
        let text = "é".repeat(LONGEST_BLOCK);
        let found = blocks("text", text.as_bytes(), true).unwrap();
        assert!(found.len() > 1);
        assert_eq!(found.concat(), text.as_bytes());
        // Bytes that are no text are cut somewhere.
        let found = blocks("text", &vec![0x80; LONGEST_BLOCK + 9], false).unwrap();
        assert_eq!(found.concat().len(), LONGEST_BLOCK + 9);
    }

    #[test]
    fn a_place_that_is_not_utf8_is_named_far_into_a_file() {
        let mut bytes = "line\n".repeat(200_000).into_bytes();
        bytes[777_777] = 0xff;
        let error = blocks("text", &bytes, true).unwrap_err();
        assert!(matches!(error, DataError::NotText { offset: 777_777, .. }), "{error}");
        assert_eq!(blocks("text", &bytes, false).unwrap().concat(), bytes);
    }

    #[test]
    fn lines_of_json_are_documents() {
        let text = "{\"text\": \"one\\n\", \"id\": 1}\n\n{\"text\": \"\"}\n{\"id\": 2, \"text\": \"three\"}";
        let found = blocks("a.jsonl", text.as_bytes(), true).unwrap();
        let found: Vec<_> = found.iter().map(|b| (b.bytes.as_slice(), b.first)).collect();
        assert_eq!(found, [(&b"one\n"[..], true), (b"", true), (b"three", true)]);
        for (line, parts) in [
            ("{\"text\": 1}", "is no text"),
            ("{\"body\": \"x\", \"id\": 1}", "no field \"text\", but body, id"),
            ("{\"text\": \"x", "broken JSON at column 11"),
            ("[1]", "no object"),
        ] {
            let error = blocks("a.jsonl", format!("{{\"text\": \"\"}}\n{line}\n").as_bytes(), true).unwrap_err();
            let said = error.to_string();
            assert!(said.contains("line 2") && said.contains(parts), "{said}");
        }
    }
}
