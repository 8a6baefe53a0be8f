//! The header of a safetensors file, from bytes that nobody vouches for to a layout in which each range is known to lie in
//! the file. It must never allocate by a number that it has not checked.

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{Dtype, Layout, Limits, MOST_DIMENSIONS, NAME_BYTES, Tensor};

/// What is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // The fields are the words of the messages.
pub enum Fault {
    /// Not even the length of a header.
    #[error("{bytes} bytes are no safetensors file: it begins with 8 bytes of length; is the file whole?")]
    Short { bytes: u64 },
    /// A header longer than allowed.
    #[error("the header has {bytes} bytes, at most {most} are read; is this a safetensors file?")]
    HeaderTooLong { bytes: u64, most: u64 },
    /// A header longer than the file.
    #[error("the header should have {bytes} bytes, {left} are left in the file; is the file whole?")]
    HeaderTruncated { bytes: u64, left: u64 },
    /// A header that is not the JSON it should be.
    #[error("the header is not as it should be: {reason}")]
    Header { reason: String },
    /// A name that comes twice.
    #[error("tensor {name}: the name comes twice")]
    Duplicate { name: String },
    /// A name that is too long.
    #[error("tensor {name}: a name of {bytes} bytes, at most {NAME_BYTES} are read")]
    Name { name: String, bytes: usize },
    /// An element of no known kind.
    #[error("tensor {name}: dtype {dtype} is not known; known are {}", known())]
    Dtype { name: String, dtype: String },
    /// No element at all.
    #[error("tensor {name}: shape {shape:?} has no elements")]
    Empty { name: String, shape: Vec<u64> },
    /// A shape that no memory holds.
    #[error("tensor {name}: shape {shape:?} of {dtype} overflows the count of bytes")]
    Overflow { name: String, shape: Vec<u64>, dtype: Dtype },
    /// Offsets that run backwards.
    #[error("tensor {name}: data_offsets [{begin}, {end}] end before they begin")]
    Backwards { name: String, begin: u64, end: u64 },
    /// Offsets that do not fit the shape.
    #[error("tensor {name}: shape {shape:?} of {dtype} takes {wanted} bytes, data_offsets [{begin}, {end}] hold {}", end - begin)]
    Size { name: String, shape: Vec<u64>, dtype: Dtype, wanted: u64, begin: u64, end: u64 },
    /// Offsets beyond the file.
    #[error(
        "tensor {name}: data_offsets [{begin}, {end}] lie outside of the {bytes} bytes of data; is the file whole?"
    )]
    Outside { name: String, begin: u64, end: u64, bytes: u64 },
    /// Bytes that two tensors claim.
    #[error("tensor {name}: begins at byte {begin}, inside of tensor {before}, which ends at {end}")]
    Overlap { name: String, begin: u64, before: String, end: u64 },
    /// Bytes between two tensors that none claims.
    #[error("tensor {name}: begins at byte {begin}, and bytes {end} to {begin} before it are of no tensor")]
    Gap { name: String, begin: u64, end: u64 },
    /// Bytes after the last tensor.
    #[error("tensor {name}: ends at byte {end}, and {trailing} more bytes follow it; is this the file that was meant?")]
    Trailing { name: String, end: u64, trailing: u64 },
    /// No tensor at all.
    #[error("no tensors in it")]
    Nothing,
}

fn known() -> String {
    Dtype::ALL.iter().map(|d| d.name()).collect::<Vec<_>>().join(", ")
}

/// Reads the layout of a file from all of its bytes; the tensors' own are not looked at.
///
/// # Errors
/// [`Fault`] names the tensor and the value.
pub fn read(file: &[u8], limits: Limits) -> Result<Layout, Fault> {
    read_start(file, file.len(), limits)
}

/// The same from the start of a file of `file_bytes` bytes; a header that does not end in `start` is refused.
///
/// # Errors
/// As [`read`].
pub fn read_start(start: &[u8], file_bytes: usize, limits: Limits) -> Result<Layout, Fault> {
    let Some((length, rest)) = start.split_first_chunk::<8>() else {
        return Err(Fault::Short { bytes: start.len() as u64 });
    };
    let bytes = u64::from_le_bytes(*length);
    if bytes > limits.header_bytes {
        return Err(Fault::HeaderTooLong { bytes, most: limits.header_bytes });
    }
    let left = file_bytes.saturating_sub(8);
    let truncated = Fault::HeaderTruncated { bytes, left: left as u64 };
    let header = usize::try_from(bytes).ok().filter(|n| *n <= left).and_then(|n| rest.get(..n)).ok_or(truncated)?;
    if header.first() != Some(&b'{') {
        return Err(Fault::Header { reason: "it does not begin with {".into() });
    }
    let mut parser = serde_json::Deserializer::from_slice(header);
    let raw = Header { most: limits.tensors }.deserialize(&mut parser).and_then(|raw| parser.end().map(|()| raw));
    let raw = raw.map_err(|e| Fault::Header { reason: e.to_string() })?;
    let tensors = tile(raw.tensors, (left - header.len()) as u64)?;
    Ok(Layout { tensors, metadata: raw.metadata, data_start: 8 + header.len() })
}

/// A tensor as the header has it.
struct RawTensor {
    name: String,
    dtype: String,
    shape: Vec<u64>,
    offsets: [u64; 2],
}

/// Checks each tensor, then that all together are the data: each byte of one tensor exactly.
fn tile(raw: Vec<RawTensor>, data: u64) -> Result<Vec<Tensor>, Fault> {
    let mut names = HashSet::new();
    for tensor in &raw {
        if tensor.name.len() > NAME_BYTES {
            return Err(Fault::Name { name: shown(&tensor.name), bytes: tensor.name.len() });
        }
        if !names.insert(tensor.name.as_str()) {
            return Err(Fault::Duplicate { name: shown(&tensor.name) });
        }
    }
    let mut tensors = raw.into_iter().map(|t| check(t, data)).collect::<Result<Vec<_>, _>>()?;
    tensors.sort_by_key(|t| (t.bytes.start, t.bytes.end));
    let mut before: Option<&Tensor> = None;
    for tensor in &tensors {
        let (begin, end) = (tensor.bytes.start as u64, before.map_or(0, |t| t.bytes.end as u64));
        let name = || shown(&tensor.name);
        match before {
            Some(other) if begin < end => {
                return Err(Fault::Overlap { name: name(), begin, before: shown(&other.name), end });
            }
            _ if begin > end => return Err(Fault::Gap { name: name(), begin, end }),
            _ => before = Some(tensor),
        }
    }
    let last = before.ok_or(Fault::Nothing)?;
    let end = last.bytes.end as u64;
    if end < data {
        return Err(Fault::Trailing { name: shown(&last.name), end, trailing: data - end });
    }
    Ok(tensors)
}

/// Checks one tensor against the bytes of data that there are.
fn check(raw: RawTensor, data: u64) -> Result<Tensor, Fault> {
    let RawTensor { name, dtype, shape, offsets: [begin, end] } = raw;
    let Some(&dtype) = Dtype::ALL.iter().find(|d| d.name() == dtype) else {
        return Err(Fault::Dtype { name: shown(&name), dtype: shown(&dtype) });
    };
    if shape.contains(&0) {
        return Err(Fault::Empty { name: shown(&name), shape });
    }
    let Some(wanted) = shape.iter().try_fold(dtype.bytes() as u64, |n, &side| n.checked_mul(side)) else {
        return Err(Fault::Overflow { name: shown(&name), shape, dtype });
    };
    if end < begin {
        return Err(Fault::Backwards { name: shown(&name), begin, end });
    }
    if end - begin != wanted {
        return Err(Fault::Size { name: shown(&name), shape, dtype, wanted, begin, end });
    }
    if end > data {
        return Err(Fault::Outside { name: shown(&name), begin, end, bytes: data });
    }
    // All of them are at most the bytes of the file now, so they fit.
    let shape = shape.into_iter().map(|side| side as usize).collect();
    Ok(Tensor { name, dtype, shape, bytes: begin as usize..end as usize })
}

/// A name for a message: no control characters, and not all of a long one.
fn shown(name: &str) -> String {
    let mut text: String = name.chars().take(48).flat_map(char::escape_debug).collect();
    if name.chars().nth(48).is_some() {
        text.push_str("...");
    }
    text
}

/// The whole header, as it stands.
#[derive(Default)]
struct Raw {
    tensors: Vec<RawTensor>,
    metadata: Vec<(String, String)>,
}

/// Reads the header with at most so many tensors.
struct Header {
    most: usize,
}

impl<'de> DeserializeSeed<'de> for Header {
    type Value = Raw;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Raw, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Header {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut raw = Raw::default();
        let mut described = false;
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                if std::mem::replace(&mut described, true) {
                    return Err(A::Error::custom("__metadata__ comes twice"));
                }
                raw.metadata = map.next_value_seed(Metadata)?;
                continue;
            }
            if raw.tensors.len() == self.most {
                return Err(A::Error::custom(format!("more than {} tensors", self.most)));
            }
            let tensor = map.next_value_seed(Body);
            let (dtype, shape, offsets) =
                tensor.map_err(|e| A::Error::custom(format!("tensor {}: {e}", shown(&name))))?;
            raw.tensors.push(RawTensor { name, dtype, shape, offsets });
        }
        Ok(raw)
    }
}

/// Words by words.
struct Metadata;

impl<'de> DeserializeSeed<'de> for Metadata {
    type Value = Vec<(String, String)>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Metadata {
    type Value = Vec<(String, String)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("__metadata__ as an object of texts")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut words: Vec<(String, String)> = Vec::new();
        let mut keys = HashSet::new();
        while let Some((key, value)) = map.next_entry::<String, String>()? {
            if !keys.insert(key.clone()) {
                return Err(A::Error::custom(format!("__metadata__: {} comes twice", shown(&key))));
            }
            words.push((key, value));
        }
        Ok(words)
    }
}

/// What the header says of one tensor: dtype, shape, offsets.
struct Body;

impl<'de> DeserializeSeed<'de> for Body {
    type Value = (String, Vec<u64>, [u64; 2]);

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Body {
    type Value = (String, Vec<u64>, [u64; 2]);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        while let Some(field) = map.next_key::<String>()? {
            let again = match field.as_str() {
                "dtype" => dtype.replace(map.next_value::<String>()?).is_some(),
                "shape" => shape.replace(map.next_value_seed(Numbers { most: MOST_DIMENSIONS })?).is_some(),
                "data_offsets" => offsets.replace(map.next_value_seed(Numbers { most: 2 })?).is_some(),
                _ => return Err(A::Error::custom(format!("unknown field {}", shown(&field)))),
            };
            if again {
                return Err(A::Error::custom(format!("{field} comes twice")));
            }
        }
        let missing = |field: &str| A::Error::custom(format!("{field} is missing"));
        let offsets: Vec<u64> = offsets.ok_or_else(|| missing("data_offsets"))?;
        let offsets =
            <[u64; 2]>::try_from(offsets).map_err(|_| A::Error::custom("data_offsets are not two numbers"))?;
        Ok((dtype.ok_or_else(|| missing("dtype"))?, shape.ok_or_else(|| missing("shape"))?, offsets))
    }
}

/// A list of at most so many whole numbers.
struct Numbers {
    most: usize,
}

impl<'de> DeserializeSeed<'de> for Numbers {
    type Value = Vec<u64>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Vec<u64>, D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Numbers {
    type Value = Vec<u64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {} whole numbers", self.most)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<u64>, A::Error> {
        let mut numbers = Vec::new();
        while numbers.len() < self.most {
            match list.next_element()? {
                Some(number) => numbers.push(number),
                None => return Ok(numbers),
            }
        }
        match list.next_element::<IgnoredAny>()? {
            None => Ok(numbers),
            Some(_) => Err(A::Error::custom(format!("a list of more than {} numbers", self.most))),
        }
    }
}
