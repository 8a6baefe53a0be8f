//! Files of ids that other programs made: nanoGPT's `.bin`, which is ids of 16 bits and nothing else, and llm.c's, whose
//! header of 256 words says which of two widths. It must never know what an id stands for.

use std::fs::File;
use std::path::Path;

use super::files::failed;
use super::tokens::{Mapped, Width};
use super::{DataError, Tokenizer};

/// Bytes of llm.c's header: 256 words of 32 bits.
const HEADER: usize = 1024;

/// llm.c's formats: magic number, version, width of an id (`dev/data/data_common.py` in its repository).
const FORMATS: [(u32, u32, Width); 2] = [(20_240_520, 1, Width::Two), (20_240_801, 7, Width::Four)];

/// llm.c's other files of this family, which hold no running text: multiple-choice questions.
const QUESTIONS: u32 = 20_240_522;

/// Maps a `.bin` file, its length and header checked, and every id held against the vocabulary.
pub(super) fn open(path: &Path, tokenizer: &Tokenizer) -> Result<Mapped, DataError> {
    let wrong = |reason: String| DataError::Ids { path: path.into(), reason };
    let file = File::open(path).map_err(failed(path))?;
    let bytes = file.metadata().map_err(failed(path))?.len();
    if bytes == 0 {
        return Err(DataError::Empty { paths: path.display().to_string() });
    }
    if !bytes.is_multiple_of(2) {
        return Err(wrong(format!("{bytes} bytes are no whole number of 16-bit ids; it is cut off, or no such file")));
    }
    let raw = Mapped::open(&file, 0, Width::Two).map_err(failed(path))?;
    let word = |i: usize| raw.payload().get(4 * i..4 * i + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let magic = word(0).unwrap_or_default();
    if magic == QUESTIONS {
        return Err(wrong("holds questions of llm.c, not running text; give a file of tokens".into()));
    }
    let (mapped, header, width) = match FORMATS.iter().find(|f| f.0 == magic) {
        // As ids of 16 bits the magic number would be two particular ids: no text begins so by chance.
        None => (raw, 0, Width::Two),
        Some(&(_, version, width)) => {
            if bytes < HEADER as u64 {
                return Err(wrong(format!("{bytes} bytes, but the header of llm.c has {HEADER}; it is cut off")));
            }
            let (found, count) = (word(1).unwrap_or_default(), word(2).unwrap_or_default());
            if found != version {
                return Err(wrong(format!("version {found} of llm.c's magic {magic}; version {version} is known")));
            }
            let expected = HEADER as u64 + count as u64 * width.bytes() as u64;
            if bytes != expected {
                let reason = format!("{bytes} bytes, but the header says {count} ids, which need {expected}");
                return Err(wrong(reason + "; it is cut off or has more appended"));
            }
            (Mapped::open(&file, HEADER, width).map_err(failed(path))?, HEADER, width)
        }
    };
    let vocabulary = tokenizer.vocab_size();
    match mapped.beyond(vocabulary) {
        None => Ok(mapped),
        Some((index, token)) => {
            let offset = header as u64 + index as u64 * width.bytes() as u64;
            Err(DataError::Beyond { path: path.into(), offset, token, vocabulary })
        }
    }
}
