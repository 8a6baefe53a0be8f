//! Tokenizers: text to ids and back. `byte` has an id for each byte; `char` one for each character of its text, in order.

use std::collections::BTreeSet;
use std::path::Path;

use super::DataError;

/// How text becomes tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenizerKind {
    /// A token a byte: 256 ids, any data.
    Byte,
    /// A token a character: the ids are the sorted characters of the text.
    Char,
}

/// A tokenizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokenizer(Vocabulary);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Vocabulary {
    Byte,
    /// Sorted, without repetition.
    Char(Vec<char>),
}

/// What is saved of a tokenizer.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    kind: TokenizerKind,
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
        Tokenizer(Vocabulary::Char(text.chars().collect::<BTreeSet<_>>().into_iter().collect()))
    }

    /// Number of ids.
    pub fn vocab_size(&self) -> usize {
        match &self.0 {
            Vocabulary::Byte => 256,
            Vocabulary::Char(characters) => characters.len(),
        }
    }

    /// The ids of a text.
    ///
    /// # Errors
    /// [`DataError::UnknownCharacter`] names the first character without an id.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        match &self.0 {
            Vocabulary::Byte => Ok(text.bytes().map(u32::from).collect()),
            Vocabulary::Char(characters) => {
                let id = |(offset, character): (usize, char)| match characters.binary_search(&character) {
                    Ok(id) => Ok(id as u32),
                    Err(_) => Err(DataError::UnknownCharacter { character, offset, known: characters.len() }),
                };
                text.char_indices().map(id).collect()
            }
        }
    }

    /// The text of ids; bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`DataError::UnknownToken`] names the first id outside the vocabulary.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, DataError> {
        let mut bytes = Vec::with_capacity(tokens.len());
        for &token in tokens {
            self.append(token, &mut bytes)?;
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn append(&self, token: u32, bytes: &mut Vec<u8>) -> Result<(), DataError> {
        let unknown = || DataError::UnknownToken { token, vocabulary: self.vocab_size() };
        match &self.0 {
            Vocabulary::Byte => bytes.push(u8::try_from(token).map_err(|_| unknown())?),
            Vocabulary::Char(characters) => {
                let character = characters.get(token as usize).ok_or_else(unknown)?;
                bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        Ok(())
    }

    /// What to save of it, as JSON.
    pub fn to_json(&self) -> String {
        let saved = match &self.0 {
            Vocabulary::Byte => Saved { kind: TokenizerKind::Byte, characters: String::new() },
            Vocabulary::Char(c) => Saved { kind: TokenizerKind::Char, characters: c.iter().collect() },
        };
        serde_json::to_string_pretty(&saved).expect("a kind and a string are JSON")
    }

    /// The tokenizer that was saved in a file.
    ///
    /// # Errors
    /// [`DataError::Read`], or [`DataError::Tokenizer`] where the file holds something else.
    pub fn load(path: &Path) -> Result<Tokenizer, DataError> {
        let wrong = |reason: String| DataError::Tokenizer { path: path.into(), reason };
        let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
        let saved: Saved = serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))?;
        match saved.kind {
            TokenizerKind::Byte => Ok(Tokenizer::byte()),
            TokenizerKind::Char => {
                let characters: Vec<char> = saved.characters.chars().collect();
                if characters.is_empty() || !characters.is_sorted_by(|a, b| a < b) {
                    return Err(wrong("its characters are not sorted, or there are none".into()));
                }
                Ok(Tokenizer(Vocabulary::Char(characters)))
            }
        }
    }
}

/// Decodes token by token for a reader who watches: gives out whole characters only, and holds back the bytes of one that
/// is not complete yet.
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    held: Vec<u8>,
}

impl<'a> TextStream<'a> {
    /// A stream with nothing held back.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, held: Vec::new() }
    }

    /// The text that one more token completes, often empty or one character. Bytes that no later byte could complete
    /// become U+FFFD.
    ///
    /// # Errors
    /// [`DataError::UnknownToken`].
    pub fn push(&mut self, token: u32) -> Result<String, DataError> {
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

    /// What is still held back, as U+FFFD.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.held).into_owned()
    }
}
