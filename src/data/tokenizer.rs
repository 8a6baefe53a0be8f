//! Tokenizers: text to ids and back. `byte` has an id for each byte; `char` one for each character of its text, in order;
//! others come from a `tokenizer.json`. They must never know which file a text is from.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::DataError;
use super::bpe::{Bpe, END_OF_TEXT};
use super::error::one_line;

/// How text becomes tokens.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum TokenizerKind {
    /// A token a byte: 256 ids, any data.
    Byte,
    /// A token a character: the ids are the sorted characters of the text.
    Char,
    /// That of a `tokenizer.json`, Hugging Face's or a run's.
    File(PathBuf),
}

impl std::str::FromStr for TokenizerKind {
    type Err = String;

    fn from_str(text: &str) -> Result<TokenizerKind, String> {
        match text {
            "byte" => Ok(TokenizerKind::Byte),
            "char" => Ok(TokenizerKind::Char),
            file if file.ends_with(".json") => Ok(TokenizerKind::File(file.into())),
            other => Err(format!("{other:?} is no tokenizer; give byte, char, or a tokenizer.json")),
        }
    }
}

impl TryFrom<String> for TokenizerKind {
    type Error = String;

    fn try_from(text: String) -> Result<TokenizerKind, String> {
        text.parse()
    }
}

impl std::fmt::Display for TokenizerKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            TokenizerKind::Byte => f.write_str("byte"),
            TokenizerKind::Char => f.write_str("char"),
            TokenizerKind::File(path) => path.display().fmt(f),
        }
    }
}

impl From<TokenizerKind> for String {
    fn from(kind: TokenizerKind) -> String {
        kind.to_string()
    }
}

/// A tokenizer.
#[derive(Clone, Debug)]
pub struct Tokenizer(Vocabulary);

#[derive(Clone, Debug)]
enum Vocabulary {
    Byte,
    /// Sorted, without repetition.
    Char(Vec<char>),
    Bpe(Arc<Bpe>),
}

/// Two are equal when the same would be saved of them.
impl PartialEq for Tokenizer {
    fn eq(&self, other: &Tokenizer) -> bool {
        self.to_json() == other.to_json()
    }
}

/// What is saved of a tokenizer.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    kind: String,
    /// The characters in the order of their ids (`char` only).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    characters: String,
}

impl Tokenizer {
    /// The tokenizer of bytes.
    pub fn byte() -> Tokenizer {
        Tokenizer(Vocabulary::Byte)
    }

    /// The tokenizer of the characters that a text has.
    pub fn characters(text: &str) -> Tokenizer {
        Tokenizer::of_characters(text.chars().collect())
    }

    pub(super) fn of_characters(characters: BTreeSet<char>) -> Tokenizer {
        Tokenizer(Vocabulary::Char(characters.into_iter().collect()))
    }

    /// The kind of it; that of a file is told without its name.
    pub fn kind(&self) -> &'static str {
        match &self.0 {
            Vocabulary::Byte => "byte",
            Vocabulary::Char(_) => "char",
            Vocabulary::Bpe(_) => "tokenizer.json",
        }
    }

    /// Whether it takes any bytes, not only text.
    pub fn takes_bytes(&self) -> bool {
        matches!(self.0, Vocabulary::Byte)
    }

    /// What stands between documents where nothing else was asked for: `<|endoftext|>`, if it has that.
    pub fn end_of_text(&self) -> Option<u32> {
        match &self.0 {
            Vocabulary::Bpe(bpe) => bpe.id(END_OF_TEXT),
            _ => None,
        }
    }

    /// The ids that a text may begin after when nothing is asked: a new document, a new line, or else any token.
    pub fn opening(&self) -> Vec<u32> {
        match self.end_of_text() {
            Some(id) => vec![id],
            None => self.encode("\n").ok().filter(|ids| !ids.is_empty()).unwrap_or_else(|| vec![0]),
        }
    }

    /// The ids of something that stands between documents: one special token, or any text.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn separator(&self, text: &str) -> Result<Vec<u32>, DataError> {
        match &self.0 {
            Vocabulary::Bpe(bpe) if bpe.id(text).is_some() => Ok(bpe.id(text).into_iter().collect()),
            _ => self.encode(text),
        }
    }

    /// Number of ids.
    pub fn vocab_size(&self) -> usize {
        match &self.0 {
            Vocabulary::Byte => 256,
            Vocabulary::Char(characters) => characters.len(),
            Vocabulary::Bpe(bpe) => bpe.vocab_size,
        }
    }

    /// The ids of a text.
    ///
    /// # Errors
    /// [`DataError::UnknownCharacter`] names the first character without an id.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        match &self.0 {
            Vocabulary::Byte => Ok(text.bytes().map(u32::from).collect()),
            Vocabulary::Bpe(bpe) => bpe.encode(text),
            Vocabulary::Char(characters) => {
                let id = |(offset, character): (usize, char)| match characters.binary_search(&character) {
                    Ok(id) => Ok(id as u32),
                    Err(_) => Err(DataError::UnknownCharacter { character, offset, known: characters.len() }),
                };
                text.char_indices().map(id).collect()
            }
        }
    }

    /// The ids of bytes that are UTF-8, or of any where the tokenizer takes such.
    pub(super) fn encode_bytes(&self, bytes: &[u8]) -> Result<Vec<u32>, DataError> {
        match &self.0 {
            Vocabulary::Byte => Ok(bytes.iter().map(|b| u32::from(*b)).collect()),
            _ => self.encode(&String::from_utf8_lossy(bytes)),
        }
    }

    /// The text of ids; bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`DataError::UnknownToken`] names the first id outside the vocabulary.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, DataError> {
        if let Vocabulary::Bpe(bpe) = &self.0 {
            tokens.iter().try_for_each(|&token| self.expect(token))?;
            return bpe.decode(tokens);
        }
        let mut bytes = Vec::with_capacity(tokens.len());
        for &token in tokens {
            self.append(token, &mut bytes)?;
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn expect(&self, token: u32) -> Result<(), DataError> {
        let vocabulary = self.vocab_size();
        match (token as usize) < vocabulary {
            true => Ok(()),
            false => Err(DataError::UnknownToken { token, vocabulary }),
        }
    }

    /// Appends the bytes of a token; those of a `tokenizer.json` have none of their own.
    fn append(&self, token: u32, bytes: &mut Vec<u8>) -> Result<(), DataError> {
        self.expect(token)?;
        match &self.0 {
            Vocabulary::Byte => bytes.push(token as u8),
            Vocabulary::Char(characters) => {
                bytes.extend_from_slice(characters[token as usize].encode_utf8(&mut [0; 4]).as_bytes());
            }
            Vocabulary::Bpe(bpe) => bytes.extend_from_slice(bpe.decode(&[token])?.as_bytes()),
        }
        Ok(())
    }

    /// What to save of it, as JSON: for a `tokenizer.json`, its own text.
    pub fn to_json(&self) -> String {
        let characters = match &self.0 {
            Vocabulary::Byte => String::new(),
            Vocabulary::Char(c) => c.iter().collect(),
            Vocabulary::Bpe(bpe) => return bpe.json.clone(),
        };
        let saved = Saved { kind: self.kind().into(), characters };
        serde_json::to_string_pretty(&saved).expect("two strings are JSON")
    }

    /// The tokenizer of a `tokenizer.json`: what [`Tokenizer::to_json`] gave, or Hugging Face's.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] where the file cannot be read or holds something else.
    pub fn load(path: &Path) -> Result<Tokenizer, DataError> {
        let wrong = |reason: String| DataError::Tokenizer { path: path.into(), reason: one_line(reason) };
        let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
        Tokenizer::from_json(text).map_err(wrong)
    }

    pub(super) fn from_json(text: String) -> Result<Tokenizer, String> {
        #[derive(serde::Deserialize)]
        struct Head {
            model: Option<serde::de::IgnoredAny>,
        }
        let head: Head = serde_json::from_str(&text).map_err(|e| e.to_string())?;
        if head.model.is_some() {
            return Ok(Tokenizer(Vocabulary::Bpe(Arc::new(Bpe::parse(text)?))));
        }
        let saved: Saved = serde_json::from_str(&text).map_err(|e| e.to_string())?;
        match saved.kind.as_str() {
            "byte" => Ok(Tokenizer::byte()),
            "char" => {
                let characters: Vec<char> = saved.characters.chars().collect();
                if characters.is_empty() || !characters.is_sorted_by(|a, b| a < b) {
                    return Err("its characters are not sorted, or there are none".into());
                }
                Ok(Tokenizer(Vocabulary::Char(characters)))
            }
            other => Err(format!("its kind is {other:?}; byte and char are known")),
        }
    }
}

/// Decodes token by token for a reader who watches: gives out whole characters only, and holds back the bytes of one that
/// is not complete yet.
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    /// Bytes of an incomplete character.
    held: Vec<u8>,
    /// Of a `tokenizer.json`, whose tokens have no bytes of their own: the tokens since the last whole piece of text, after
    /// those of the piece before, of which there are `context`.
    tokens: Vec<u32>,
    context: usize,
}

impl<'a> TextStream<'a> {
    /// A stream with nothing held back.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, held: Vec::new(), tokens: Vec::new(), context: 0 }
    }

    /// The text that one more token completes, often empty or one character. Bytes that no later byte could complete
    /// become U+FFFD.
    ///
    /// # Errors
    /// [`DataError::UnknownToken`].
    pub fn push(&mut self, token: u32) -> Result<String, DataError> {
        if let Vocabulary::Bpe(bpe) = &self.tokenizer.0 {
            self.tokenizer.expect(token)?;
            self.tokens.push(token);
            return self.advance(bpe);
        }
        self.tokenizer.append(token, &mut self.held)?;
        let mut text = String::new();
        loop {
            match std::str::from_utf8(&self.held) {
                Ok(rest) => {
                    text.push_str(rest);
                    self.held.clear();
                    return Ok(text);
                }
                Err(error) => {
                    let valid = error.valid_up_to();
                    text.push_str(&String::from_utf8_lossy(&self.held[..valid]));
                    let Some(bad) = error.error_len() else {
                        self.held.drain(..valid);
                        return Ok(text);
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    self.held.drain(..valid + bad);
                }
            }
        }
    }

    /// What the tokens held say beyond the piece before. A decoder may write a token otherwise at the start of a text, so
    /// each is decoded behind its neighbours.
    fn advance(&mut self, bpe: &Bpe) -> Result<String, DataError> {
        // A character has at most four bytes, so more tokens than that cannot be waiting for its end.
        const LONGEST_WAIT: usize = 4;
        let before = bpe.decode(&self.tokens[..self.context])?;
        let all = bpe.decode(&self.tokens)?;
        let waiting = all.ends_with(char::REPLACEMENT_CHARACTER) && self.tokens.len() - self.context < LONGEST_WAIT;
        if waiting {
            return Ok(String::new());
        }
        let text = all.get(before.len()..).unwrap_or_default().to_owned();
        self.tokens.drain(..self.context);
        self.context = self.tokens.len();
        Ok(text)
    }

    /// What is still held back, as U+FFFD.
    pub fn finish(self) -> String {
        if let Vocabulary::Bpe(bpe) = &self.tokenizer.0 {
            let text = |tokens| bpe.decode(tokens).unwrap_or_default();
            let before = text(&self.tokens[..self.context]).len();
            let all = text(&self.tokens);
            let rest = all.get(before..).unwrap_or_default();
            // Tokens that wait and cannot be decoded still stand for something.
            let lost = rest.is_empty() && self.tokens.len() > self.context;
            return if lost { char::REPLACEMENT_CHARACTER.into() } else { rest.to_owned() };
        }
        String::from_utf8_lossy(&self.held).into_owned()
    }
}
