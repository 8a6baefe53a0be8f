//! The files of a store that lives on disk: safetensors, laid out beforehand so that any rows of any array can be read and
//! written in their place. A file is created as a header and a hole; what was never written takes no room. It must never
//! know what an array is for, nor when it is read or written.
//!
//! The header is padded so that the data begins on a page. Arrays of whole pages come first, so each of them begins on a
//! page and can pass the page cache by; then the others, the largest first, of which the first still does. The format
//! allows no gaps, so no more can be had: give a file of its own to another large array that does not end on a page.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

use super::block::Block;
use super::direct::PAGE_BYTES;
use super::durable::{self, Access, Disk, ReadError, WriteError};
use super::format::Format;
use super::safetensors::{self, Dtype, Fault, Limits};

/// One array of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Array {
    /// Its name, once in its file.
    pub name: String,
    /// How its values rest.
    pub format: Format,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// True for arrays of one dimension (one row).
    pub vector: bool,
}

impl Array {
    /// Bytes of all of it.
    pub fn bytes(&self) -> u64 {
        self.format.bytes(self.rows, self.cols) as u64
    }

    fn dtype(&self) -> Dtype {
        match self.format {
            Format::F32 => Dtype::F32,
            Format::Bf16 => Dtype::BF16,
            Format::Q8Signed | Format::Q8Unsigned => Dtype::U8,
        }
    }

    /// That of its elements; a quantised row is a row of bytes.
    fn shape(&self) -> Vec<usize> {
        let elements = self.format.row_bytes(self.cols) / self.dtype().bytes();
        if self.vector { vec![elements] } else { vec![self.rows, elements] }
    }
}

/// A range of bytes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    /// Number of the file.
    pub file: usize,
    /// Where it begins in the file.
    pub offset: u64,
    /// Its bytes.
    pub bytes: u64,
}

/// Why the files of a volume cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A file could not be created.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A file could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A file is no safetensors file.
    #[error("{}: {fault}", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: Fault,
    },
    /// A file holds other arrays.
    #[error("{}: {reason}; is it of another model, or kept in other formats?", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// Result of a call of a volume.
pub type Result<T> = std::result::Result<T, VolumeError>;

struct Placed {
    array: Array,
    file: usize,
    /// From the beginning of the file.
    offset: u64,
}

struct Layout {
    /// Length, text and padding: all that comes before the data.
    head: Vec<u8>,
    bytes: u64,
}

/// Where each array of some files lies.
pub struct Volume {
    arrays: Vec<Placed>,
    files: Vec<Layout>,
}

impl Volume {
    /// Lays out files of arrays. An array's number counts through all files, in the order that they are given here.
    ///
    /// # Panics
    /// When a name comes twice in a file, a vector has several rows, or an array or a file is empty.
    pub fn new(files: Vec<Vec<Array>>) -> Volume {
        let mut volume = Volume { arrays: Vec::new(), files: Vec::new() };
        for (file, arrays) in files.into_iter().enumerate() {
            assert!(!arrays.is_empty(), "file {file} has no array");
            let mut names = HashSet::new();
            for a in &arrays {
                assert!(names.insert(&a.name) && a.name != "__metadata__", "{} comes twice in file {file}", a.name);
                assert!(a.bytes() > 0 && (!a.vector || a.rows == 1), "{a:?}");
            }
            let (offsets, data) = place(&arrays);
            let head = head(&arrays, &offsets);
            let start = head.len() as u64;
            volume.files.push(Layout { head, bytes: start + data });
            let placed = arrays.into_iter().zip(offsets);
            volume.arrays.extend(placed.map(|(array, offset)| Placed { array, file, offset: start + offset }));
        }
        volume
    }

    /// The number of the array of a name in a file.
    pub fn find(&self, file: usize, name: &str) -> Option<usize> {
        self.arrays.iter().position(|p| p.file == file && p.array.name == name)
    }

    /// An array.
    pub fn array(&self, array: usize) -> &Array {
        &self.arrays[array].array
    }

    /// Where rows `first_row .. first_row + rows` of an array lie.
    ///
    /// # Panics
    /// When there are no such rows.
    pub fn extent(&self, array: usize, first_row: usize, rows: usize) -> Extent {
        let Placed { array, file, offset } = &self.arrays[array];
        assert!(first_row + rows <= array.rows, "rows {first_row}+{rows} of {array:?}");
        let before = array.format.bytes(first_row, array.cols) as u64;
        Extent { file: *file, offset: offset + before, bytes: array.format.bytes(rows, array.cols) as u64 }
    }

    /// Number of files.
    pub fn files(&self) -> usize {
        self.files.len()
    }

    /// Bytes of a file, its header included.
    pub fn file_bytes(&self, file: usize) -> u64 {
        self.files[file].bytes
    }

    /// Bytes of all files, their headers included.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|f| f.bytes).sum()
    }

    /// Creates the files, all values zero, each at its path: headers and holes, durable when it returns.
    ///
    /// # Errors
    /// [`VolumeError::Write`].
    ///
    /// # Panics
    /// When there are not as many paths as files.
    pub fn create(&self, disk: &dyn Disk, paths: &[PathBuf]) -> Result<()> {
        assert_eq!(paths.len(), self.files.len(), "a path for each file");
        for (path, file) in paths.iter().zip(&self.files) {
            let create = || {
                let open = disk.open(path, Access::Create)?;
                open.set_len(file.bytes)?;
                open.write_at(0, &Block::of(&file.head))?;
                open.sync()
            };
            create().map_err(|source| WriteError { path: path.clone(), source })?;
        }
        let mut folders: Vec<&Path> = paths.iter().map(|path| durable::parent(path)).collect();
        folders.dedup();
        for folder in folders {
            disk.sync_folder(folder).map_err(|source| WriteError { path: folder.into(), source })?;
        }
        Ok(())
    }

    /// Checks that each path is a file of exactly these arrays, where this volume has them.
    ///
    /// # Errors
    /// [`VolumeError`] names the first array that is missing, unknown, of another kind or elsewhere.
    ///
    /// # Panics
    /// When there are not as many paths as files.
    pub fn open(&self, disk: &dyn Disk, paths: &[PathBuf]) -> Result<()> {
        assert_eq!(paths.len(), self.files.len(), "a path for each file");
        paths.iter().enumerate().try_for_each(|(file, path)| self.check(disk, file, path))
    }

    fn check(&self, disk: &dyn Disk, file: usize, path: &Path) -> Result<()> {
        let read = |source| ReadError { path: path.into(), source };
        let refused = |fault| VolumeError::Refused { path: path.into(), fault };
        let content = |reason| Err(VolumeError::Content { path: path.into(), reason });
        let open = disk.open(path, Access::Read).map_err(read)?;
        let bytes = open.file_bytes().map_err(read)?;
        let bytes = usize::try_from(bytes).map_err(|_| read(io::ErrorKind::FileTooLarge.into()))?;
        // As long as a header of ours may be: of a longer one the parser says so before it looks for it.
        let mut start = vec![0; bytes.min(8 + Limits::OWN.header_bytes as usize)];
        open.read_at(0, &mut start).map_err(read)?;
        let found = safetensors::read_start(&start, bytes, Limits::OWN).map_err(refused)?;
        let ours = || self.arrays.iter().filter(|p| p.file == file);
        for Placed { array, offset, .. } in ours() {
            let name = &array.name;
            let Some(theirs) = found.tensors.iter().find(|t| t.name == *name) else {
                return content(format!("array {name} is missing"));
            };
            let (dtype, shape) = (array.dtype(), array.shape());
            if theirs.dtype != dtype || theirs.shape != shape {
                let reason = format!("{name} is {} {:?}, the run has {dtype} {shape:?}", theirs.dtype, theirs.shape);
                return content(reason);
            }
            let theirs = (found.data_start + theirs.bytes.start) as u64;
            if theirs != *offset {
                return content(format!("{name} begins at byte {theirs}, the run has it at {offset}"));
            }
        }
        match found.tensors.iter().find(|t| ours().all(|p| p.array.name != t.name)) {
            Some(unknown) => content(format!("array {} is not of this run", unknown.name)),
            None => Ok(()),
        }
    }
}

/// Where each array begins in the data, and how long the data is.
fn place(arrays: &[Array]) -> (Vec<u64>, u64) {
    let mut order: Vec<usize> = (0..arrays.len()).collect();
    let key = |&a: &usize| match arrays[a].bytes().is_multiple_of(PAGE_BYTES as u64) {
        true => (false, 0),
        false => (true, u64::MAX - arrays[a].bytes()),
    };
    // The sort is stable: arrays of whole pages stay as they were given.
    order.sort_by_key(key);
    let (mut offsets, mut end) = (vec![0; arrays.len()], 0);
    for a in order {
        offsets[a] = end;
        end += arrays[a].bytes();
    }
    (offsets, end)
}

/// The head of a file: length, and text padded to the end of a page.
fn head(arrays: &[Array], offsets: &[u64]) -> Vec<u8> {
    let mut text = serde_json::Map::new();
    for (array, &begin) in arrays.iter().zip(offsets) {
        let (dtype, shape, end) = (array.dtype().name(), array.shape(), begin + array.bytes());
        let info = serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": [begin, end] });
        text.insert(array.name.clone(), info);
    }
    let text = serde_json::to_vec(&text).expect("plain numbers and names");
    let bytes = (8 + text.len()).next_multiple_of(PAGE_BYTES);
    let mut head = Vec::with_capacity(bytes);
    head.extend_from_slice(&(bytes as u64 - 8).to_le_bytes());
    head.extend_from_slice(&text);
    head.resize(bytes, b' ');
    head
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::super::durable::RealDisk;
    use super::super::safetensors::File;
    use super::*;

    fn array(name: &str, format: Format, rows: usize, cols: usize, vector: bool) -> Array {
        Array { name: name.into(), format, rows, cols, vector }
    }

    fn some_files() -> Vec<Vec<Array>> {
        vec![
            vec![
                array("bias", Format::F32, 1, 33, true),
                array("wte", Format::Bf16, 501, 100, false),
                array("weight", Format::Bf16, 1024, 64, false),
                array("odd", Format::Bf16, 700, 100, false),
                array("wide", Format::F32, 512, 24, false),
            ],
            vec![array("bias", Format::F32, 1, 1024, true), array("moment", Format::Q8Signed, 3, 300, false)],
        ]
    }

    #[test]
    fn whole_pages_come_first_and_what_can_begin_on_a_page_does() {
        let volume = Volume::new(some_files());
        let at = |name| volume.extent(volume.find(0, name).unwrap(), 0, 1).offset;
        for (name, offset) in [("weight", 0), ("wide", 131_072), ("odd", 180_224), ("wte", 320_224), ("bias", 420_424)]
        {
            assert_eq!(at(name), 4096 + offset, "{name}");
        }
        assert_eq!(volume.file_bytes(0), 4096 + 420_424 + 132);
        assert_eq!(volume.bytes(), volume.file_bytes(0) + 4096 + 4096 + 3 * 308);
        let panel = volume.extent(2, 512, 512);
        assert_eq!(panel, Extent { file: 0, offset: 4096 + 65_536, bytes: 65_536 });
        assert_eq!(volume.extent(5, 0, 1), Extent { file: 1, offset: 4096, bytes: 4096 });
    }

    #[test]
    fn every_reader_accepts_what_is_created() {
        let folder = tempfile::tempdir().unwrap();
        let paths = [folder.path().join("a.safetensors"), folder.path().join("b.safetensors")];
        let volume = Volume::new(some_files());
        volume.create(&RealDisk, &paths).unwrap();
        volume.open(&RealDisk, &paths).unwrap();
        let odd = volume.extent(3, 699, 1);
        let file = RealDisk.open(&paths[0], Access::Write).unwrap();
        file.write_at(odd.offset, &[0x80, 0x3f].repeat(100)).unwrap();
        let bytes = fs::read(&paths[0]).unwrap();
        assert_eq!(bytes.len() as u64, volume.file_bytes(0));
        let theirs = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(theirs.len(), 5);
        let ours = File::open(&paths[0], Limits::OWN).unwrap();
        for a in &some_files()[0] {
            let (found, own) = (theirs.tensor(&a.name).unwrap(), ours.find(&a.name).unwrap());
            assert_eq!((found.shape(), found.data()), (&a.shape()[..], ours.bytes(own)), "{}", a.name);
            assert_eq!(found.dtype().to_string(), own.dtype.name());
            let ones = found.data().chunks_exact(2).filter(|b| *b == [0x80, 0x3f]).count();
            assert_eq!(ones, if a.name == "odd" { 100 } else { 0 }, "{}", a.name);
        }
    }

    /// What makes another list of arrays of one.
    type Change = fn(&mut Vec<Array>);

    #[test]
    fn other_files_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = [folder.path().join("x.safetensors")];
        let base = || vec![array("a", Format::F32, 4, 6, false), array("b", Format::Bf16, 4, 8, false)];
        Volume::new(vec![base()]).create(&RealDisk, &path).unwrap();
        let said = |arrays: Vec<Array>| match Volume::new(vec![arrays]).open(&RealDisk, &path) {
            Ok(()) => String::new(),
            Err(error) => error.to_string(),
        };
        assert_eq!(said(base()), "");
        let with = |change: Change| {
            let mut arrays = base();
            change(&mut arrays);
            said(arrays)
        };
        let cases: [(Change, &str); 5] = [
            (|a| a[0].format = Format::Bf16, "a is F32 [4, 6], the run has BF16 [4, 6]"),
            (|a| a[1].rows = 5, "b is BF16 [4, 8], the run has BF16 [5, 8]"),
            (|a| a[1].name = "c".into(), "array c is missing"),
            (|a| drop(a.pop()), "array b is not of this run"),
            (|a| a.insert(0, array("z", Format::F32, 1, 500, true)), "array z is missing"),
        ];
        for (change, wanted) in cases {
            let said = with(change);
            assert!(said.contains(wanted) && said.contains("x.safetensors"), "{said}");
        }
        // The same arrays in other places.
        let text = fs::read(&path[0]).unwrap();
        let moved = String::from_utf8_lossy(&text[8..4096]).replace("[0,96]", "[64,160]").replace("[96,160]", "[0,64]");
        fs::write(&path[0], [&text[..8], moved.as_bytes(), &text[4096..]].concat()).unwrap();
        assert!(said(base()).contains("begins at byte"), "{}", said(base()));
        fs::write(&path[0], &text[..text.len() - 1]).unwrap();
        assert!(said(base()).contains("is the file whole?"), "{}", said(base()));
        fs::write(&path[0], &text[..5]).unwrap();
        assert!(said(base()).contains("5 bytes are no safetensors file"), "{}", said(base()));
        fs::write(&path[0], [u64::MAX.to_le_bytes(); 2].concat()).unwrap();
        assert!(said(base()).contains("at most 1048576 are read"), "{}", said(base()));
        fs::remove_file(&path[0]).unwrap();
        assert!(said(base()).starts_with("cannot read") && said(base()).contains("x.safetensors"));
    }

    proptest! {
        #[test]
        fn every_byte_is_of_one_array(sizes in prop::collection::vec((1usize..70, 1usize..70, any::<bool>()), 1..12)) {
            let format = |narrow| if narrow { Format::Bf16 } else { Format::F32 };
            let arrays = sizes.iter().enumerate().map(|(i, &(rows, cols, narrow))| {
                array(&format!("t{i}"), format(narrow), rows * 64, cols * 8, false)
            });
            let arrays: Vec<Array> = arrays.collect();
            let volume = Volume::new(vec![arrays.clone()]);
            let mut extents: Vec<Extent> = (0..arrays.len()).map(|a| volume.extent(a, 0, arrays[a].rows)).collect();
            for (extent, array) in extents.iter().zip(&arrays) {
                prop_assert_eq!(extent.bytes, array.bytes());
                prop_assert!(array.bytes() % 4096 != 0 || extent.offset % 4096 == 0);
            }
            extents.sort_by_key(|e| e.offset);
            let mut end = extents[0].offset;
            for extent in extents {
                prop_assert_eq!(extent.offset, end);
                end += extent.bytes;
            }
            prop_assert_eq!(end, volume.file_bytes(0));
        }
    }
}
