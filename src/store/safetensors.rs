//! Safetensors files of strangers: mapped into memory, and refused whole unless every byte is accounted for. It must never
//! know what a tensor is for.
//!
//! A file is the length of its header (u64, little endian), the header (JSON: name to dtype, shape and the range of its
//! bytes), and the bytes of the tensors, which must follow each other without gap or overlap to the very end. The format's
//! own crate collapses repeated names and reads a header of any depth into a map; here each is an error that names the
//! file, the tensor and the value, and what a header may cost is bounded before it is parsed.

mod header;

use std::fmt;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::Mmap;

pub use header::{Fault, read, read_start};

/// What a header may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the header.
    pub header_bytes: u64,
    /// Tensors of the file.
    pub tensors: usize,
}

/// Dimensions that a tensor may have.
pub const MOST_DIMENSIONS: usize = 8;
/// Bytes that a name may have.
pub const NAME_BYTES: usize = 256;

impl Limits {
    /// For files that this crate wrote.
    pub const OWN: Limits = Limits { header_bytes: 1 << 20, tensors: 65_536 };
    /// For files from elsewhere: the header that the format itself allows.
    pub const IMPORT: Limits = Limits { header_bytes: 100_000_000, tensors: 65_536 };
}

macro_rules! dtypes {
    ($($name:ident = $text:literal, $bytes:literal;)+) => {
        /// What an element is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[allow(missing_docs)] // The names say it: kind and bits.
        pub enum Dtype { $($name),+ }

        impl Dtype {
            /// All of them.
            pub const ALL: &[Dtype] = &[$(Dtype::$name),+];

            /// Its name in a header.
            pub fn name(self) -> &'static str {
                match self { $(Dtype::$name => $text),+ }
            }

            /// Bytes of an element.
            pub fn bytes(self) -> usize {
                match self { $(Dtype::$name => $bytes),+ }
            }
        }
    };
}

dtypes! {
    F64 = "F64", 8;
    F32 = "F32", 4;
    F16 = "F16", 2;
    BF16 = "BF16", 2;
    I64 = "I64", 8;
    I32 = "I32", 4;
    I16 = "I16", 2;
    I8 = "I8", 1;
    U64 = "U64", 8;
    U32 = "U32", 4;
    U16 = "U16", 2;
    U8 = "U8", 1;
    Bool = "BOOL", 1;
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// What an element is.
    pub dtype: Dtype,
    /// Elements along each dimension, the last one dense; empty for a scalar.
    pub shape: Vec<usize>,
    /// Its bytes, counted from the end of the header.
    pub bytes: Range<usize>,
}

impl Tensor {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.bytes.len() / self.dtype.bytes()
    }
}

/// What a header says, checked against the length of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// In the order of their bytes.
    pub tensors: Vec<Tensor>,
    /// Free words of whoever wrote the file, in their order.
    pub metadata: Vec<(String, String)>,
    /// Where the bytes of the tensors begin.
    pub data_start: usize,
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It cannot be opened or mapped.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// It is not what it should be.
    #[error("{}: {fault}", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: Fault,
    },
}

/// A file, checked and mapped.
#[derive(Debug)]
pub struct File {
    path: PathBuf,
    map: Mmap,
    layout: Layout,
}

/// Opens a file from elsewhere: [`File::open`] with [`Limits::IMPORT`].
///
/// # Errors
/// [`OpenError`] in one line: the file, the tensor and the value.
pub fn open(path: &Path) -> Result<File, OpenError> {
    File::open(path, Limits::IMPORT)
}

impl File {
    /// Maps a file and checks all of its header. Bytes of tensors are not touched.
    ///
    /// # Errors
    /// [`OpenError`] in one line: the file, the tensor and the value.
    pub fn open(path: &Path, limits: Limits) -> Result<File, OpenError> {
        let failed = |source| OpenError::Read { path: path.into(), source };
        let file = fs::File::open(path).map_err(failed)?;
        if file.metadata().map_err(failed)?.is_dir() {
            return Err(failed(std::io::Error::from(std::io::ErrorKind::IsADirectory)));
        }
        // Safety: the map is only ever read, through `&[u8]` that this struct lends. This crate replaces files whole by a
        // rename (`store::durable`), which leaves a mapped one as it was. The only ones that it writes in place, those of a
        // `store::volume`, it reads by requests and not by a map. Another process that changes a file under a reader gets
        // what every reader by map gives it.
        let map = unsafe { Mmap::map(&file) }.map_err(failed)?;
        match header::read(&map, limits) {
            Ok(layout) => Ok(File { path: path.into(), map, layout }),
            Err(fault) => Err(OpenError::Refused { path: path.into(), fault }),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its tensors in the order of their bytes.
    pub fn tensors(&self) -> &[Tensor] {
        &self.layout.tensors
    }

    /// The free words of whoever wrote it.
    pub fn metadata(&self) -> &[(String, String)] {
        &self.layout.metadata
    }

    /// Bytes of the whole file.
    pub fn file_bytes(&self) -> usize {
        self.map.len()
    }

    /// The tensor of a name.
    pub fn find(&self, name: &str) -> Option<&Tensor> {
        self.layout.tensors.iter().find(|t| t.name == name)
    }

    /// The bytes of a tensor of this file, little endian, on no alignment.
    ///
    /// # Panics
    /// When the tensor is of another, longer file.
    pub fn bytes(&self, tensor: &Tensor) -> &[u8] {
        &self.map[self.layout.data_start..][tensor.bytes.clone()]
    }

    /// Appends elements of a tensor of this file as f32: see [`append_f32`].
    ///
    /// # Panics
    /// When the range does not lie within the tensor.
    pub fn append_f32(&self, tensor: &Tensor, elements: Range<usize>, out: &mut Vec<f32>) -> bool {
        append_f32(tensor.dtype, self.bytes(tensor), elements, out)
    }

    /// Lets the system have back the memory that it holds bytes of a tensor of this file in; they are read again where they
    /// are asked for again. It changes no result, and nothing where the system has no such call.
    ///
    /// # Panics
    /// When the tensor is of another, longer file.
    pub fn release(&self, tensor: &Tensor) {
        let bytes = self.bytes(tensor);
        #[cfg(unix)]
        {
            let start = bytes.as_ptr() as usize - self.map.as_ptr() as usize;
            // Safety: the map is of a file, shared and never written: a page that is dropped comes back with the same bytes.
            // Where the advice fails nothing was dropped.
            let _ = unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, bytes.len()) };
        }
        #[cfg(not(unix))]
        let _ = bytes;
    }
}

/// Appends elements as f32, those of F16 and BF16 exactly; false, and nothing appended, where they are of another dtype.
///
/// # Panics
/// When there are no such elements.
pub fn append_f32(dtype: Dtype, bytes: &[u8], elements: Range<usize>, out: &mut Vec<f32>) -> bool {
    let width = dtype.bytes();
    let bytes = &bytes[elements.start * width..elements.end * width];
    match dtype {
        Dtype::F32 => out.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))),
        Dtype::F16 => out.extend(bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32())),
        Dtype::BF16 => out.extend(bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32())),
        _ => return false,
    }
    true
}
