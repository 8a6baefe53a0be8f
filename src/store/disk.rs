//! A store on a disk, which is the checkpoint too: the files of all arrays, which of them is current, and the order in which
//! what is new becomes so. It must never know a device, nor what a tensor is for.
//!
//! Kept aside (the default), every array has two places, `a` and `b`. A step reads the current one and writes the other; a
//! commit syncs what was written and then replaces the manifest, which says which place is current. In place, an array has one;
//! what a visit is about to replace goes to the [`journal`](super::journal) first, whole and synced, then to its place. Either
//! way all writes, syncs and renames go through one queue in order ([`Stream`]), so whatever moment a crash picks, the last
//! step that was committed is whole, or can be completed. An array that was never written is its formula, and takes no bytes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Tensor;
use super::block::Block;
use super::cells::{Cells, Rest, Spot};
use super::durable::{self, Access, Disk, ReadError, WriteError};
use super::format::Format;
use super::journal::{Found, Interrupted, Journal, Mark, Replacement};
use super::manifest::{MANIFEST, Manifest, Side};
use super::plan::Kept;
use super::role::{self, ROLES, Role};
use super::stream::{Stats, Stream, StreamError};
use super::volume::{Array, Extent, Volume, VolumeError};

/// Why a store on a disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// A file or folder could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A file could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A file is not what was once written.
    #[error("{}: damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A folder of another store.
    #[error("{}: {reason}", path.display())]
    Differs {
        /// The folder or file.
        path: PathBuf,
        /// What differs, and the cure.
        reason: String,
    },
    /// The disk is too small.
    #[error(
        "--store disk:{}: {needed} bytes are needed and {available} are free; make room, choose another disk, or use {cure}",
        path.display()
    )]
    Room {
        /// The folder.
        path: PathBuf,
        /// Bytes that will be written.
        needed: u64,
        /// Bytes there are.
        available: u64,
        /// What takes fewer.
        cure: &'static str,
    },
    /// A step that was cut short after it began to replace weights.
    #[error("{}: step {step} was cut short while it replaced weights; complete it with `gaufre train --resume RUN`", path.display())]
    Interrupted {
        /// The folder.
        path: PathBuf,
        /// The step.
        step: u64,
    },
    /// A folder without a store.
    #[error("{}: no store in it; was the run begun with --store disk?", path.display())]
    None {
        /// The folder.
        path: PathBuf,
    },
    /// A state that cannot be written.
    #[error("the state of the run cannot be written: {reason}")]
    State {
        /// What is wrong with it.
        reason: String,
    },
    /// Traffic in the background failed.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The layout of the files.
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

type Result<T> = std::result::Result<T, DiskError>;

/// Where a store on a disk lies, and how it is used.
#[derive(Clone)]
pub struct Archive {
    /// Its folder.
    pub folder: PathBuf,
    /// Whether there is one place for every array, and a journal, instead of two places.
    pub in_place: bool,
    /// Whether nothing there may be changed, as where a model is only asked.
    pub read_only: bool,
    /// Bytes of host memory for what is read ahead, and as much for what waits to be written.
    pub stream_bytes: u64,
    /// Bytes of gradients and layer inputs that may have to wait on the disk.
    pub scratch_bytes: u64,
    /// Whether all gradients of a step wait for its end; where not, those of a group are dropped before the next begins, but
    /// those that are [shared](Tensor::shared).
    pub gradients_wait: bool,
    /// Whether nothing is ever updated, so that parameters and states stay formulas and take no room.
    pub dry: bool,
    /// Bytes of one spilled matrix; 0 where none is.
    pub spill_bytes: u64,
    /// The disk.
    pub disk: Arc<dyn Disk>,
}

/// What was found in the folder.
#[derive(Debug)]
pub struct Opened {
    /// Which arrays are on the disk, by tensor and role.
    pub present: Vec<[bool; ROLES]>,
    /// The state of the last commit.
    pub state: Option<serde_json::Value>,
    /// A step that is to be completed.
    pub interrupted: Option<Interrupted>,
}

const JOURNAL: &str = "journal";
/// Keys of spilled matrices, beside those of cells.
const SPILLED: u64 = 1 << 63;

/// One array on the disk.
struct Shelf {
    name: String,
    /// Number in the volumes.
    array: usize,
    /// The place that is current; `None` while it is its formula.
    side: Option<Side>,
    /// Whether a panel was written since the last commit.
    changed: bool,
}

/// The store of a folder, open.
pub struct DiskStore {
    archive: Archive,
    volumes: [Option<Volume>; 2],
    shelves: Vec<[Option<Shelf>; ROLES]>,
    /// Where the gradients of each tensor begin in their file.
    gradients: Vec<u64>,
    stream: Stream,
    /// The place of two of each gradient that was put in this step, and whether the journal counts on what is there.
    waiting: HashMap<u64, (u64, bool)>,
    /// Whether the journal counts on the first place of all others.
    taken_up: bool,
    /// Cells that were written to the other place since the last commit.
    newer: BTreeSet<u64>,
    /// In place: what the journal will hold.
    updated: BTreeMap<u64, (Spot, Arc<Block>)>,
    /// Steps committed; `None` before the first commit, when nothing there is worth keeping.
    committed: Option<u64>,
}

impl DiskStore {
    /// Opens the folder, or makes it.
    ///
    /// # Errors
    /// [`DiskError`]; nothing was changed then but by a journal, which is played first.
    pub fn open(archive: &Archive, tensors: &[Tensor], arrays: &[[Kept; ROLES]]) -> Result<(DiskStore, Opened)> {
        let folder = &archive.folder;
        let (layout, numbers) = layout(tensors, arrays);
        let manifest = Manifest::read(&folder.join(MANIFEST))?;
        if manifest.is_none() && archive.read_only {
            return Err(DiskError::None { path: folder.clone() });
        }
        if let Some(found) = manifest.as_ref().filter(|m| m.in_place != archive.in_place) {
            let cure = if found.in_place { "add --in-place" } else { "leave --in-place out" };
            let reason = format!("this store was begun {}; {cure}", if found.in_place { "in place" } else { "aside" });
            return Err(DiskError::Differs { path: folder.clone(), reason });
        }
        let sides: &[Side] = if archive.in_place { &[Side::A] } else { &[Side::A, Side::B] };
        if manifest.is_none() {
            expect_room(archive, lasting_bytes(tensors, arrays, archive.in_place))?;
        }
        let (mut volumes, mut files) = ([None, None], Vec::new());
        for &side in sides {
            let place = folder.join(if side == Side::A { "a" } else { "b" });
            let paths: Vec<PathBuf> = layout.iter().map(|file| place.join(&file.name)).collect();
            let volume = Volume::new(layout.iter().map(|file| file.arrays.clone()).collect());
            let disk = archive.disk.as_ref();
            match manifest {
                Some(_) => volume.open(disk, &paths)?,
                None => {
                    disk.create_folder(&place).map_err(|source| WriteError { path: place.clone(), source })?;
                    volume.create(disk, &paths)?;
                }
            }
            volumes[side as usize] = Some(volume);
            files.extend(paths);
        }
        let shelf = |tensor: &Tensor, role: Role, array: usize| {
            let name = format!("{}{}", role.prefix(), tensor.name);
            let side = manifest.as_ref().and_then(|m| m.arrays.get(&name)).copied();
            Shelf { name, array, side, changed: false }
        };
        let shelves: Vec<[Option<Shelf>; ROLES]> = tensors
            .iter()
            .zip(&numbers)
            .map(|(tensor, numbers)| role::ALL.map(|role| Some(shelf(tensor, role, numbers[role as usize]?))))
            .collect();
        for name in ["gradients.scratch", "inputs.scratch"].map(|name| folder.join(name)) {
            if !archive.read_only {
                // What waits there may be what an interrupted step goes on from.
                let access = if name.exists() { Access::Write } else { Access::Create };
                let made = archive.disk.open(&name, access).map(|_| ());
                made.map_err(|source| WriteError { path: name.clone(), source })?;
                files.push(name);
            }
        }
        let stream = Stream::open(archive.disk.clone(), files, archive.stream_bytes)?;
        let gradients = gradient_places(tensors, archive.gradients_wait);
        let mut store = DiskStore {
            archive: archive.clone(),
            volumes,
            shelves,
            gradients,
            stream,
            waiting: HashMap::new(),
            taken_up: false,
            newer: BTreeSet::new(),
            updated: BTreeMap::new(),
            committed: manifest.as_ref().map(|m| m.step),
        };
        let interrupted = store.recover()?;
        let present = store
            .shelves
            .iter()
            .map(|s| role::ALL.map(|role| s[role as usize].as_ref().is_some_and(|s| s.side.is_some())))
            .collect();
        Ok((store, Opened { present, state: manifest.map(|m| m.state), interrupted }))
    }

    /// Whether arrays have one place.
    pub fn in_place(&self) -> bool {
        self.archive.in_place
    }

    /// Plays the journal of a step after the last commit.
    fn recover(&mut self) -> Result<Option<Interrupted>> {
        let path = self.archive.folder.join(JOURNAL);
        let Some(committed) = self.committed.filter(|_| self.in_place()) else { return Ok(None) };
        let Some(found) = Found::open(&path)?.filter(|found| found.step() > committed) else { return Ok(None) };
        if self.archive.read_only {
            return Err(DiskError::Interrupted { path: self.archive.folder.clone(), step: found.step() });
        }
        let names: HashMap<String, (usize, Role)> = self.names();
        let unknown =
            |name: &str| DiskError::Damaged { path: path.clone(), reason: format!("it names the array {name}") };
        let mut key = SPILLED;
        let (interrupted, present) = found.play(|name, first_row, rows, block| {
            let &(tensor, role) = names.get(name).ok_or_else(|| unknown(name))?;
            let extent = self.extent(tensor, role, Side::A, first_row, rows);
            key += 1;
            Ok(self.stream.write(key, extent, block)?)
        })?;
        for name in &present {
            let &(tensor, role) = names.get(name).ok_or_else(|| unknown(name))?;
            self.shelf(tensor, role).side = Some(Side::A);
        }
        self.stream.sync()?;
        self.stream.drain()?;
        Ok(Some(interrupted))
    }

    fn names(&self) -> HashMap<String, (usize, Role)> {
        let of = |(tensor, shelves): (usize, &[Option<Shelf>; ROLES])| {
            let named = |role: Role| Some((shelves[role as usize].as_ref()?.name.clone(), (tensor, role)));
            role::ALL.into_iter().filter_map(named).collect::<Vec<_>>()
        };
        self.shelves.iter().enumerate().flat_map(of).collect()
    }

    fn shelf(&mut self, tensor: usize, role: Role) -> &mut Shelf {
        self.shelves[tensor][role as usize].as_mut().expect("an array that is kept on the disk")
    }

    fn extent(&self, tensor: usize, role: Role, side: Side, first_row: usize, rows: usize) -> Extent {
        let array = self.shelves[tensor][role as usize].as_ref().expect("an array that is kept on the disk").array;
        let volume = self.volumes[side as usize].as_ref().expect("a place that there is");
        let extent = volume.extent(array, first_row, rows);
        let before = if side == Side::B { self.volumes[0].as_ref().map_or(0, Volume::files) } else { 0 };
        Extent { file: extent.file + before, ..extent }
    }

    fn scratch(&self, file: usize, offset: u64, bytes: usize) -> Extent {
        let files: usize = self.volumes.iter().flatten().map(Volume::files).sum();
        Extent { file: files + file, offset, bytes: bytes as u64 }
    }

    /// Where a cell is read from.
    fn source(&self, spot: &Spot) -> Extent {
        if spot.role == Role::Gradient {
            return self.gradient(spot);
        }
        let side = self.shelves[spot.tensor][spot.role as usize].as_ref().and_then(|s| s.side);
        let side = match (side, self.newer.contains(&spot.key)) {
            (Some(side), false) => side,
            (Some(side), true) if !self.in_place() => side.other(),
            _ => Side::A,
        };
        self.extent(spot.tensor, spot.role, side, spot.first_row, spot.rows)
    }

    /// Where a gradient waits. There are two places, so that what the journal counts on stays until the next one.
    fn gradient(&self, spot: &Spot) -> Extent {
        let row = spot.array.format.row_bytes(spot.array.cols) as u64;
        let place = self.waiting.get(&spot.key).map_or(0, |(place, _)| *place);
        let begin = self.gradients[spot.tensor] + place * self.gradients[self.gradients.len() - 1];
        self.scratch(0, begin + spot.first_row as u64 * row, spot.bytes())
    }

    /// Begins a step: no gradient waits.
    pub fn begin_step(&mut self) {
        self.waiting.clear();
        self.taken_up = false;
    }

    /// Takes up a step that was cut short: the gradients that wait are in their first place, and counted on.
    pub fn take_up(&mut self) {
        self.taken_up = true;
    }

    /// Memory for the values of a cell.
    pub fn block(&self, bytes: usize) -> Block {
        self.stream.pool().take(bytes)
    }

    /// The values of a cell that rests on the disk, packed.
    ///
    /// # Errors
    /// What the disk says.
    pub fn get(&mut self, spot: &Spot) -> Result<Arc<Block>> {
        if let Some((_, block)) = self.updated.get(&spot.key) {
            return Ok(block.clone());
        }
        Ok(self.stream.read(spot.key, self.source(spot))?)
    }

    /// Begins to read the panels of an array that rest on the disk and are in no slot, as far as read-ahead reaches.
    ///
    /// # Errors
    /// What the disk says.
    pub fn ahead(&mut self, cells: &Cells, arrays: &[[Kept; ROLES]], tensor: usize, role: Role) -> Result<()> {
        let Some((_, cut)) = arrays[tensor][role as usize] else { return Ok(()) };
        for panel in cut.panels() {
            let number = cells.index(tensor, role, panel.index);
            let cell = &cells.all[number];
            let wanted = cell.place.is_none() && matches!(cell.rest, Rest::Disk);
            if !wanted || self.updated.contains_key(&(number as u64)) {
                continue;
            }
            let spot = cells.spot(number, arrays);
            if !self.stream.prefetch(spot.key, self.source(&spot)) {
                break;
            }
        }
        Ok(())
    }

    /// Takes the new values of a cell.
    ///
    /// # Errors
    /// What the disk says, also of earlier work in the background.
    pub fn put(&mut self, spot: &Spot, block: Block) -> Result<()> {
        let block = Arc::new(block);
        if spot.role == Role::Gradient {
            let settled = self.taken_up;
            let place = self.waiting.entry(spot.key).or_insert((0, settled));
            if std::mem::take(&mut place.1) {
                place.0 ^= 1;
            }
            return Ok(self.stream.write(spot.key, self.gradient(spot), block)?);
        }
        self.shelf(spot.tensor, spot.role).changed = true;
        // Before the first commit nothing there is worth keeping: what is new goes to its place at once.
        if self.in_place() && self.committed.is_some() {
            self.updated.insert(spot.key, (*spot, block));
            return Ok(());
        }
        self.newer.insert(spot.key);
        Ok(self.stream.write(spot.key, self.source(spot), block)?)
    }

    /// In place: writes the journal of what was put since the last call, then replaces it. `waiting`: tensors whose
    /// gradients must outlast a crash; they were put before.
    ///
    /// # Errors
    /// What the disk says, also of earlier work in the background.
    pub fn replace(&mut self, mark: Mark, waiting: Vec<usize>) -> Result<()> {
        let updated = std::mem::take(&mut self.updated);
        self.waiting.values_mut().for_each(|place| place.1 = true);
        for shelves in self.shelves.iter_mut().flatten().flatten().filter(|s| s.changed) {
            shelves.side = Some(Side::A);
        }
        let present = self.shelves.iter().flatten().flatten().filter(|s| s.side.is_some()).map(|s| s.name.clone());
        let replacement = |(spot, block): &(Spot, Arc<Block>)| Replacement {
            array: self.shelves[spot.tensor][spot.role as usize].as_ref().expect("it was put").name.clone(),
            first_row: spot.first_row,
            rows: spot.rows,
            block: block.clone(),
        };
        let journal = Journal::new(mark, waiting, present.collect(), updated.values().map(replacement).collect());
        let path = self.archive.folder.join(JOURNAL);
        // The gradients that wait, and what the journal before replaced, become durable before this one takes its place.
        self.stream.sync()?;
        self.stream.run(Box::new(move |disk| journal.write(disk, &path)))?;
        for (key, (spot, block)) in updated {
            self.stream.write(key, self.source(&spot), block)?;
        }
        Ok(())
    }

    /// Makes everything that was put the checkpoint, with a state beside it.
    ///
    /// # Errors
    /// What the disk says, also of earlier work in the background.
    ///
    /// # Panics
    /// In place, when something was put after the last [`DiskStore::replace`].
    pub fn commit(&mut self, step: u64, state: serde_json::Value) -> Result<()> {
        assert!(self.updated.is_empty(), "what is updated in place goes through the journal");
        for shelf in self.shelves.iter_mut().flatten().flatten().filter(|s| s.changed) {
            shelf.changed = false;
            shelf.side = Some(match shelf.side {
                Some(side) if !self.archive.in_place => side.other(),
                _ => Side::A,
            });
        }
        self.newer.clear();
        let current = |s: &Shelf| Some((s.name.clone(), s.side?));
        let arrays = self.shelves.iter().flatten().flatten().filter_map(current).collect();
        let in_place = self.in_place();
        let manifest = Manifest::new(in_place, step, arrays, state);
        let text = serde_json::to_vec(&manifest).expect("JSON values are written as JSON");
        let path = self.archive.folder.join(MANIFEST);
        self.stream.sync()?;
        let write = move |disk: &dyn Disk| durable::write_on(disk, &path, |file| file.write_all(&text));
        self.stream.run(Box::new(write))?;
        self.committed = Some(step);
        Ok(())
    }

    /// Waits until all that was asked for is done.
    ///
    /// # Errors
    /// What the disk says.
    pub fn drain(&self) -> Result<()> {
        Ok(self.stream.drain()?)
    }

    /// What passed since the last call.
    pub fn traffic(&self) -> Stats {
        self.stream.take_stats()
    }

    fn input(&self, number: usize, bytes: usize) -> Extent {
        self.scratch(1, number as u64 * self.archive.spill_bytes.next_multiple_of(4096), bytes)
    }

    /// Keeps a spilled matrix.
    ///
    /// # Errors
    /// What the disk says.
    pub fn spill(&mut self, number: usize, block: Block) -> Result<()> {
        Ok(self.stream.write(SPILLED | number as u64, self.input(number, block.len()), Arc::new(block))?)
    }

    /// Begins to read a spilled matrix.
    ///
    /// # Errors
    /// What the disk says.
    pub fn spilled_ahead(&mut self, number: usize) -> Result<()> {
        self.stream.prefetch(SPILLED | number as u64, self.input(number, self.archive.spill_bytes as usize));
        Ok(())
    }

    /// A spilled matrix.
    ///
    /// # Errors
    /// What the disk says.
    pub fn spilled(&mut self, number: usize) -> Result<Arc<Block>> {
        Ok(self.stream.read(SPILLED | number as u64, self.input(number, self.archive.spill_bytes as usize))?)
    }
}

/// A file, and what is in it.
struct FileLayout {
    name: String,
    arrays: Vec<Array>,
}

/// The files: one of weights and one of what the optimiser keeps for each group. And the number of each array in them.
fn layout(tensors: &[Tensor], arrays: &[[Kept; ROLES]]) -> (Vec<FileLayout>, Vec<[Option<usize>; ROLES]>) {
    let groups = tensors.iter().map(|t| t.group + 1).max().unwrap_or(0);
    let file = |kind: &str, group: usize| FileLayout {
        name: format!("{kind}-{:05}-of-{groups:05}.safetensors", group + 1),
        arrays: Vec::new(),
    };
    let mut files: Vec<FileLayout> =
        (0..groups).flat_map(|group| [file("model", group), file("optimizer", group)]).collect();
    let mut at = vec![[None; ROLES]; tensors.len()];
    for (number, (tensor, kept)) in tensors.iter().zip(arrays).enumerate() {
        for role in role::ALL.into_iter().filter(|role| role.lasts()) {
            let Some((array, _)) = kept[role as usize] else { continue };
            let file = 2 * tensor.group + usize::from(role != Role::Weight);
            at[number][role as usize] = Some((file, files[file].arrays.len()));
            files[file].arrays.push(Array {
                name: format!("{}{}", role.prefix(), tensor.name),
                format: array.format,
                rows: array.rows,
                cols: array.cols,
                vector: tensor.vector || !array.cut,
            });
        }
    }
    // Arrays are numbered through all files; files without any are left out.
    let first: Vec<usize> = files
        .iter()
        .scan(0, |sum, file| {
            let first = *sum;
            *sum += file.arrays.len();
            Some(first)
        })
        .collect();
    let numbers =
        at.into_iter().map(|roles| roles.map(|at| at.map(|(file, n): (usize, usize)| first[file] + n))).collect();
    files.retain(|file| !file.arrays.is_empty());
    (files, numbers)
}

/// Where the gradients of each tensor begin in their file; the last is its end. Those that do not wait begin anew behind
/// the others with each group.
fn gradient_places(tensors: &[Tensor], wait: bool) -> Vec<u64> {
    let bytes = |t: &Tensor| (Format::F32.bytes(t.rows, t.cols) as u64).next_multiple_of(4096);
    let waits = |t: &Tensor| wait || t.shared;
    let behind: u64 = tensors.iter().filter(|t| waits(t)).map(bytes).sum();
    // By group, all that wait as one.
    let mut ends = HashMap::from([(None, 0)]);
    let mut places: Vec<u64> = Vec::with_capacity(tensors.len() + 1);
    for tensor in tensors {
        let end = ends.entry((!waits(tensor)).then_some(tensor.group)).or_insert(behind);
        places.push(*end);
        *end += bytes(tensor);
    }
    places.extend(ends.into_values().max());
    places
}

/// Whether there is a store in a folder that was committed once.
pub fn is_committed(folder: &Path) -> bool {
    folder.join(MANIFEST).is_file()
}

/// Bytes of the file of the gradients that may wait, once.
pub fn gradient_bytes(tensors: &[Tensor], wait: bool) -> u64 {
    *gradient_places(tensors, wait).last().expect("an end")
}

/// Bytes of what lasts on the disk, in its one place or two, and of the journal of the one.
pub fn lasting_bytes(tensors: &[Tensor], arrays: &[[Kept; ROLES]], in_place: bool) -> u64 {
    let (files, _) = layout(tensors, arrays);
    let file = |file: &FileLayout| -> u64 { file.arrays.iter().map(Array::bytes).sum() };
    let whole: u64 = files.iter().map(file).sum();
    if !in_place {
        return 2 * whole;
    }
    // A journal, and the one that is to take its place, each of a group of weights and of states.
    whole + 2 * files.chunks(2).map(|pair| pair.iter().map(file).sum()).max().unwrap_or(0)
}

fn expect_room(archive: &Archive, lasting: u64) -> Result<()> {
    let Archive { folder, in_place, scratch_bytes, disk, dry, .. } = archive;
    disk.create_folder(folder).map_err(|source| WriteError { path: folder.clone(), source })?;
    let needed = scratch_bytes + if *dry { 0 } else { lasting };
    let available = disk.available(folder).map_err(|source| ReadError { path: folder.clone(), source })?;
    let cure = if *in_place { "--param-dtype bf16, --optimizer adafactor or --clip layer" } else { "--in-place" };
    match needed <= available {
        true => Ok(()),
        false => Err(DiskError::Room { path: folder.clone(), needed, available, cure }),
    }
}
