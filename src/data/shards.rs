//! Prepared data: a folder of shards, files of ids behind a header, with an index that says how many there are, how they
//! are split, which tokenizer made them and what each file's checksum is. It must never know how text became ids.
//!
//! A shard is a header of 64 bytes and then ids of 16 or 32 bits, all little-endian: magic (8 bytes), version (u32), bytes
//! of an id (u32), size of the vocabulary, number of ids, XXH3 of the tokenizer's JSON, XXH3 of the ids (u64 each),
//! and zeros. Each field also follows from the index, so that no bit of a file can change unnoticed.

use std::fs::{self, File};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::error::one_line;
use super::tokens::{Mapped, Piece, Tokens, Width};
use super::{DataError, Tokenizer};

/// Name of the index; a folder that has it is prepared data.
const INDEX: &str = "index.json";
/// Name of the tokenizer.
const TOKENIZER: &str = "tokenizer.json";
/// First bytes of a shard.
const MAGIC: [u8; 8] = *b"GAUFRETK";
/// Version of index and shards.
pub(super) const VERSION: u32 = 1;
/// Bytes of a shard's header.
const HEADER: usize = 64;

/// What an index says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Index {
    /// `gaufre tokens`.
    format: String,
    version: u32,
    /// `u16` or `u32`.
    dtype: String,
    vocab_size: usize,
    pub documents: u64,
    pub tokens: usize,
    /// Of these, the first are to train on and the others for validation; none of those where both are equal.
    pub train_tokens: usize,
    /// Bytes of text, or of ids, that they came from.
    pub source_bytes: u64,
    /// `byte`, `char` or `tokenizer.json`.
    tokenizer: String,
    tokenizer_xxh3: Sum,
    shards: Vec<Shard>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Shard {
    file: String,
    tokens: usize,
    xxh3: Sum,
}

/// The index as a file: a checksum of its own stands beside it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    index: Index,
    xxh3: Sum,
}

/// A checksum, written in hexadecimal: JSON's numbers need not hold 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct Sum(u64);

impl TryFrom<String> for Sum {
    type Error = String;

    fn try_from(text: String) -> Result<Sum, String> {
        u64::from_str_radix(&text, 16).map(Sum).map_err(|_| format!("{text:?} is no checksum"))
    }
}

impl From<Sum> for String {
    fn from(sum: Sum) -> String {
        format!("{:016x}", sum.0)
    }
}

impl Index {
    fn sum(&self) -> Sum {
        Sum(xxh3_64(&serde_json::to_vec(self).expect("an index is JSON")))
    }
}

/// Writes prepared data into a folder that appears when it is whole.
pub(super) struct Writer {
    /// Where it will be.
    folder: PathBuf,
    /// Where it is until then.
    part: PathBuf,
    width: Width,
    shard_tokens: usize,
    index: Index,
    open: Option<Open>,
    bytes: Vec<u8>,
}

struct Open {
    path: PathBuf,
    file: BufWriter<File>,
    tokens: usize,
    hash: Box<Xxh3>,
}

impl Writer {
    /// A writer that begins a new shard every `shard_tokens` ids.
    pub fn new(folder: &Path, tokenizer: &Tokenizer, shard_tokens: usize) -> Result<Writer, DataError> {
        let mut name = folder.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".{}.part", std::process::id()));
        let part = folder.with_file_name(name);
        fs::create_dir_all(&part).map_err(unwritable(folder))?;
        let json = tokenizer.to_json();
        let width = Width::of(tokenizer.vocab_size());
        let writer = Writer {
            folder: folder.into(),
            width,
            shard_tokens,
            index: Index {
                format: "gaufre tokens".into(),
                version: VERSION,
                dtype: dtype(width).into(),
                vocab_size: tokenizer.vocab_size(),
                documents: 0,
                tokens: 0,
                train_tokens: 0,
                source_bytes: 0,
                tokenizer: tokenizer.kind().into(),
                tokenizer_xxh3: Sum(xxh3_64(json.as_bytes())),
                shards: Vec::new(),
            },
            open: None,
            bytes: Vec::new(),
            part,
        };
        fs::write(writer.part.join(TOKENIZER), json).map_err(unwritable(folder))?;
        Ok(writer)
    }

    /// Number of tokens written.
    pub fn tokens(&self) -> usize {
        self.index.tokens
    }

    /// Appends ids.
    pub fn push(&mut self, mut ids: &[u32]) -> Result<(), DataError> {
        while !ids.is_empty() {
            let open = match self.open.take() {
                Some(open) => open,
                None => self.begin()?,
            };
            let open = self.open.insert(open);
            let (now, later) = ids.split_at(ids.len().min(self.shard_tokens - open.tokens));
            self.bytes.clear();
            now.iter().for_each(|id| self.width.write(*id, &mut self.bytes));
            open.hash.update(&self.bytes);
            open.file.write_all(&self.bytes).map_err(unwritable(&open.path))?;
            open.tokens += now.len();
            self.index.tokens += now.len();
            if open.tokens == self.shard_tokens {
                self.end()?;
            }
            ids = later;
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<Open, DataError> {
        let path = self.part.join(name_of(self.index.shards.len()));
        let mut file = BufWriter::new(File::create(&path).map_err(unwritable(&path))?);
        file.write_all(&[0; HEADER]).map_err(unwritable(&path))?;
        Ok(Open { path, file, tokens: 0, hash: Box::new(Xxh3::new()) })
    }

    /// Closes the shard: its header is known now.
    fn end(&mut self) -> Result<(), DataError> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let name = open.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let shard = Shard { file: name, tokens: open.tokens, xxh3: Sum(open.hash.digest()) };
        let mut file = open.file;
        let header = header(&self.index, self.width, &shard);
        let written = file.seek(SeekFrom::Start(0)).and_then(|_| file.write_all(&header)).and_then(|()| file.flush());
        written.and_then(|()| file.get_ref().sync_all()).map_err(unwritable(&open.path))?;
        self.index.shards.push(shard);
        Ok(())
    }

    /// Completes the index and moves the folder into its place. `replace`: where another made the same meanwhile, that one
    /// stays.
    pub fn finish(mut self, about: impl FnOnce(&mut Index)) -> Result<(), DataError> {
        self.end()?;
        about(&mut self.index);
        let sealed = Sealed { xxh3: self.index.sum(), index: self.index.clone() };
        let text = serde_json::to_vec_pretty(&sealed).expect("an index is JSON");
        let path = self.part.join(INDEX);
        let write = || {
            let mut file = File::create(&path)?;
            file.write_all(&text)?;
            file.sync_all()
        };
        write().map_err(unwritable(&path))?;
        // An empty folder may stand there.
        let _ = fs::remove_dir(&self.folder);
        match fs::rename(&self.part, &self.folder) {
            Ok(()) => Ok(()),
            Err(_) if is_prepared(&self.folder) => Ok(()),
            Err(source) => Err(unwritable(&self.folder)(source)),
        }
    }
}

/// What was not finished goes.
impl Drop for Writer {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.part);
    }
}

fn unwritable(path: &Path) -> impl FnOnce(std::io::Error) -> DataError {
    |source| DataError::Write { path: path.into(), source }
}

/// Name of a shard.
fn name_of(number: usize) -> String {
    format!("{number:05}.tokens")
}

fn dtype(width: Width) -> &'static str {
    match width {
        Width::Two => "u16",
        Width::Four => "u32",
    }
}

/// The header that a shard must have.
fn header(index: &Index, width: Width, shard: &Shard) -> [u8; HEADER] {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(index.version.to_le_bytes());
    bytes.extend((width.bytes() as u32).to_le_bytes());
    for word in [index.vocab_size as u64, shard.tokens as u64, index.tokenizer_xxh3.0, shard.xxh3.0, 0, 0] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.try_into().expect("the fields are 64 bytes")
}

/// Whether a folder is prepared data.
pub(super) fn is_prepared(folder: &Path) -> bool {
    let named = |text: String| text.contains("\"gaufre tokens\"");
    // Either is enough, so that data which has lost the other is refused rather than read as text.
    folder.join(name_of(0)).is_file() || fs::read_to_string(folder.join(INDEX)).is_ok_and(named)
}

/// Opens prepared data: everything that is said of it is checked, every byte against its checksum.
pub(super) fn open(folder: &Path) -> Result<(Index, Tokenizer, Tokens), DataError> {
    let index = read_index(&folder.join(INDEX))?;
    let wrong = |path: &Path, reason: String| DataError::Prepared { path: path.into(), reason };
    let path = folder.join(TOKENIZER);
    let json = fs::read_to_string(&path).map_err(|e| wrong(&path, e.to_string()))?;
    if Sum(xxh3_64(json.as_bytes())) != index.tokenizer_xxh3 {
        return Err(wrong(&path, "not the tokenizer that its index names".into()));
    }
    let tokenizer = Tokenizer::from_json(json).map_err(|e| wrong(&path, one_line(e)))?;
    if tokenizer.vocab_size() != index.vocab_size {
        return Err(wrong(&path, format!("has {} ids, its index says {}", tokenizer.vocab_size(), index.vocab_size)));
    }
    let shard = |shard: &Shard| Ok(Piece::Mapped(open_shard(&folder.join(&shard.file), &index, shard)?));
    let pieces: Vec<Piece> = index.shards.par_iter().map(shard).collect::<Result<_, DataError>>()?;
    Ok((index, tokenizer, Tokens::join(pieces)))
}

fn read_index(path: &Path) -> Result<Index, DataError> {
    let wrong = |reason: String| DataError::Prepared { path: path.into(), reason };
    let text = fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
    /// What any version has.
    #[derive(Deserialize)]
    struct Any {
        index: Version,
    }
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let Any { index: Version { version } } = serde_json::from_str(&text).map_err(|e| wrong(one_line(e)))?;
    if version != VERSION {
        return Err(wrong(format!("version {version}; this is made for {VERSION}")));
    }
    let Sealed { index, xxh3 } = serde_json::from_str(&text).map_err(|e| wrong(one_line(e)))?;
    if index.sum() != xxh3 {
        return Err(wrong("its checksum does not fit; it was changed".into()));
    }
    // From here on the index is as this program, or one that took care to look like it, wrote it.
    let total = index.shards.iter().try_fold(0usize, |sum, s| sum.checked_add(s.tokens));
    let plain = |s: &Shard| {
        Path::new(&s.file).components().count() == 1 && !s.file.contains("..") && !s.file.contains(char::is_control)
    };
    let whole = total == Some(index.tokens) && index.train_tokens <= index.tokens;
    if !whole || index.dtype != dtype(Width::of(index.vocab_size)) || !index.shards.iter().all(plain) {
        return Err(wrong("contradicts itself".into()));
    }
    Ok(index)
}

fn open_shard(path: &Path, index: &Index, shard: &Shard) -> Result<Mapped, DataError> {
    let wrong = |reason: String| DataError::Prepared { path: path.into(), reason };
    let width = Width::of(index.vocab_size);
    let file = File::open(path).map_err(|e| wrong(e.to_string()))?;
    let bytes = file.metadata().map_err(|e| wrong(e.to_string()))?.len();
    let expected = HEADER as u128 + shard.tokens as u128 * width.bytes() as u128;
    if bytes as u128 != expected {
        return Err(wrong(format!("{bytes} bytes, its index says {expected}; it is cut off or was changed")));
    }
    let mapped = Mapped::open(&file, HEADER, width).map_err(|e| wrong(e.to_string()))?;
    let found = mapped.header();
    if found[..8] != MAGIC {
        return Err(wrong("no shard of tokens: its first bytes are not GAUFRETK".into()));
    }
    let version = u32::from_le_bytes([found[8], found[9], found[10], found[11]]);
    if version != VERSION {
        return Err(wrong(format!("version {version}; this is made for {VERSION}")));
    }
    if found != header(index, width, shard) {
        return Err(wrong("its header is not what its index says".into()));
    }
    if xxh3_64(mapped.payload()) != shard.xxh3.0 {
        return Err(wrong("its checksum does not fit; a bit of it has changed".into()));
    }
    match mapped.beyond(index.vocab_size) {
        None => Ok(mapped),
        Some((i, token)) => {
            let offset = (HEADER + i * width.bytes()) as u64;
            Err(DataError::Beyond { path: path.into(), offset, token, vocabulary: index.vocab_size })
        }
    }
}
