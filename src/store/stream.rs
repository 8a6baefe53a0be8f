//! The traffic between memory and disk, in the background: blocks are read ahead and written behind, each within a budget
//! of bytes. It must never know what a block holds.
//!
//! **Order.** One thread does all writes, syncs and jobs, strictly in the order in which they were queued, and after one
//! that failed it does none. That is the whole argument for durability: a job that was queued after some writes and a sync
//! (a manifest, a rename) runs when those writes are durable, or never.
//!
//! **Freshness.** A key names one range of a file, and ranges of two keys do not overlap. From the moment that a write is
//! queued a read of its key gives the new bytes: those that wait come from memory, and what was read ahead before, or is
//! being read, is dropped. Calls about one key come from one thread at a time.
//!
//! **Errors** of background work stay: every later call returns the first one.

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use super::block::{Block, Pool};
use super::durable::{Access, Disk, RandomFile, ReadError, WriteError};
use super::volume::Extent;

/// Threads that read ahead. Two keep a disk busy where one would leave it idle between two requests.
const READERS: usize = 2;

/// Why background traffic failed.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// A file could not be opened or read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A file could not be written or made durable, or a job could not be done.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl StreamError {
    /// The same once more: an error of the system is no value that can be cloned.
    fn again(&self) -> StreamError {
        let copy = |e: &io::Error| {
            e.raw_os_error().map_or_else(|| io::Error::new(e.kind(), e.to_string()), io::Error::from_raw_os_error)
        };
        match self {
            StreamError::Read(e) => ReadError { path: e.path.clone(), source: copy(&e.source) }.into(),
            StreamError::Write(e) => WriteError { path: e.path.clone(), source: copy(&e.source) }.into(),
        }
    }
}

/// Result of a call of a stream.
pub type Result<T> = std::result::Result<T, StreamError>;

/// What a stream does in its turn.
pub type Job = Box<dyn FnOnce(&dyn Disk) -> std::result::Result<(), WriteError> + Send>;

/// What passed since the last time it was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    /// Bytes read from the disk.
    pub bytes_read: u64,
    /// Bytes written to the disk.
    pub bytes_written: u64,
    /// Seconds in which the disk read, summed over the threads that waited for it.
    pub read_seconds: f64,
    /// Seconds in which the writer was at work, syncs and jobs included.
    pub write_seconds: f64,
    /// Seconds that callers spent in [`Stream::read`].
    pub read_wait_seconds: f64,
    /// Seconds that callers waited for room in [`Stream::write`], and for the end in [`Stream::drain`].
    pub write_wait_seconds: f64,
}

/// Background reading and writing of some files. Dropped, it ends what was queued and drops errors: [`Stream::drain`]
/// before that tells them.
pub struct Stream {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    disk: Arc<dyn Disk>,
    paths: Vec<PathBuf>,
    files: Vec<Box<dyn RandomFile>>,
    budget: u64,
    pool: Pool,
    state: Mutex<State>,
    /// Anything in the state changed. Requests are large and threads few, so one bell serves all.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    ahead: HashMap<u64, Ahead>,
    /// Keys and tickets to read, the first first. A ticket that is no longer its key's is passed over.
    wanted: VecDeque<(u64, u64)>,
    ahead_bytes: u64,
    /// For each key the newest bytes that are not on the disk yet.
    behind: HashMap<u64, Behind>,
    tasks: VecDeque<Task>,
    behind_bytes: u64,
    /// Whether the writer is at a task that it took from the queue.
    writing: bool,
    tickets: u64,
    failed: Option<Failure>,
    closing: bool,
    stats: Stats,
}

/// A block that is to be read, is being read, or was read ahead.
struct Ahead {
    ticket: u64,
    extent: Extent,
    fetch: Fetch,
}

enum Fetch {
    Queued,
    Reading,
    Ready(Arc<Block>),
}

struct Behind {
    ticket: u64,
    extent: Extent,
    block: Arc<Block>,
}

enum Task {
    Write { key: u64, ticket: u64, extent: Extent, block: Arc<Block> },
    Run(Job),
    Sync,
}

enum Failure {
    Error(StreamError),
    /// A thread of the stream panicked; its message was printed.
    Panic,
}

impl Stream {
    /// Opens files to read and write, with `budget` bytes of blocks read ahead and as many written behind.
    ///
    /// # Errors
    /// [`StreamError::Read`] names the file that cannot be opened.
    pub fn open(disk: Arc<dyn Disk>, files: Vec<PathBuf>, budget: u64) -> Result<Stream> {
        let open =
            |path: &PathBuf| disk.open(path, Access::Write).map_err(|source| ReadError { path: path.clone(), source });
        let opened = files.iter().map(open).collect::<std::result::Result<_, _>>()?;
        // Both budgets, and half of one for what is in the hands of callers.
        let most = usize::try_from(budget.saturating_mul(5) / 2).unwrap_or(usize::MAX);
        let shared = Arc::new(Shared {
            disk,
            paths: files,
            files: opened,
            budget,
            pool: Pool::new(most),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let start = |run: fn(&Shared)| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || run(&shared))
        };
        let mut threads = vec![start(Shared::write_all)];
        threads.extend((0..READERS).map(|_| start(Shared::read_all)));
        Ok(Stream { shared, threads })
    }

    /// The files, by number.
    pub fn files(&self) -> &[PathBuf] {
        &self.shared.paths
    }

    /// Where blocks come from and go back to: take those that are to be written from here.
    pub fn pool(&self) -> &Pool {
        &self.shared.pool
    }

    /// Begins to read a block ahead. False when there is no room for it, or after an error; true also when it is there
    /// already, on its way, or waiting to be written.
    pub fn prefetch(&self, key: u64, extent: Extent) -> bool {
        let mut state = self.shared.lock();
        if state.ahead.contains_key(&key) {
            return true;
        }
        if state.failed.is_some() || state.ahead_bytes + extent.bytes > self.shared.budget {
            return false;
        }
        let ticket = state.ticket();
        let fetch = match state.behind.get(&key) {
            Some(behind) => Fetch::Ready(behind.of(extent)),
            None => Fetch::Queued,
        };
        if matches!(fetch, Fetch::Queued) {
            state.wanted.push_back((key, ticket));
        }
        state.ahead_bytes += extent.bytes;
        state.ahead.insert(key, Ahead { ticket, extent, fetch });
        self.shared.changed.notify_all();
        true
    }

    /// The newest bytes of a key: those that wait to be written, or were read ahead (and are given away by this), or are
    /// read now.
    ///
    /// # Errors
    /// [`StreamError`]: of this read, which does not stay, or the first one of background work.
    ///
    /// # Panics
    /// When the key was used for another extent.
    pub fn read(&self, key: u64, extent: Extent) -> Result<Arc<Block>> {
        let start = Instant::now();
        let found = match self.shared.find(key, extent) {
            Ok(None) => self.shared.fetch(extent).map(Arc::new),
            Ok(Some(block)) => Ok(block),
            Err(error) => Err(error),
        };
        self.shared.lock().stats.read_wait_seconds += start.elapsed().as_secs_f64();
        found
    }

    /// Drops what was read ahead for a key.
    pub fn forget(&self, key: u64) {
        self.shared.lock().drop_ahead(key);
    }

    /// Queues a block to be written, and waits while there is no room for it.
    ///
    /// # Errors
    /// The first [`StreamError`] of background work; the block is then not written.
    ///
    /// # Panics
    /// When the block is not as long as the extent, or its file is none of the stream's.
    pub fn write(&self, key: u64, extent: Extent, block: impl Into<Arc<Block>>) -> Result<()> {
        let block: Arc<Block> = block.into();
        assert_eq!(block.len() as u64, extent.bytes, "bytes of {extent:?}");
        assert!(extent.file < self.shared.files.len(), "the file of {extent:?}");
        let start = Instant::now();
        let mut state = self.shared.lock();
        // A block that is larger than the budget is let in alone.
        while state.failed.is_none() && state.behind_bytes > 0 && state.behind_bytes + extent.bytes > self.shared.budget
        {
            state = self.shared.wait(state);
        }
        state.stats.write_wait_seconds += start.elapsed().as_secs_f64();
        state.check()?;
        state.drop_ahead(key);
        let ticket = state.ticket();
        state.behind_bytes += extent.bytes;
        state.behind.insert(key, Behind { ticket, extent, block: Arc::clone(&block) });
        state.tasks.push_back(Task::Write { key, ticket, extent, block });
        self.shared.changed.notify_all();
        Ok(())
    }

    /// Queues a job after all that was queued before it. It is not done if any of that fails.
    ///
    /// # Errors
    /// The first [`StreamError`] of background work; the job is then not done.
    pub fn run(&self, job: Job) -> Result<()> {
        self.queue(Task::Run(job))
    }

    /// Queues that all files written since the last time become durable.
    ///
    /// # Errors
    /// The first [`StreamError`] of background work.
    pub fn sync(&self) -> Result<()> {
        self.queue(Task::Sync)
    }

    /// Waits until all that was queued is done.
    ///
    /// # Errors
    /// The first [`StreamError`] of background work.
    pub fn drain(&self) -> Result<()> {
        let start = Instant::now();
        let mut state = self.shared.lock();
        while state.writing || !state.tasks.is_empty() {
            state = self.shared.wait(state);
        }
        state.stats.write_wait_seconds += start.elapsed().as_secs_f64();
        state.check()
    }

    /// What passed since the last call.
    pub fn take_stats(&self) -> Stats {
        std::mem::take(&mut self.shared.lock().stats)
    }

    fn queue(&self, task: Task) -> Result<()> {
        let mut state = self.shared.lock();
        state.check()?;
        state.tasks.push_back(task);
        self.shared.changed.notify_all();
        Ok(())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so, and there is nobody to tell.
            let _ = thread.join();
        }
    }
}

impl Behind {
    fn of(&self, extent: Extent) -> Arc<Block> {
        assert_eq!(self.extent, extent, "one key, two extents");
        Arc::clone(&self.block)
    }
}

impl State {
    fn check(&self) -> Result<()> {
        match &self.failed {
            None => Ok(()),
            Some(Failure::Error(error)) => Err(error.again()),
            Some(Failure::Panic) => panic!("a thread of the store's stream panicked; see its message above"),
        }
    }

    fn fail(&mut self, failure: Failure) {
        self.failed.get_or_insert(failure);
    }

    fn ticket(&mut self) -> u64 {
        self.tickets += 1;
        self.tickets
    }

    /// What was read ahead for a key is not wanted. One that is being read gives its room back when its reader is done.
    fn drop_ahead(&mut self, key: u64) {
        if let Some(ahead) = self.ahead.remove(&key)
            && !matches!(ahead.fetch, Fetch::Reading)
        {
            self.ahead_bytes -= ahead.extent.bytes;
        }
    }

    /// The next block to read ahead, marked as being read.
    fn next_wanted(&mut self) -> Option<(u64, u64, Extent)> {
        while let Some((key, ticket)) = self.wanted.pop_front() {
            if let Some(ahead) = self.ahead.get_mut(&key).filter(|a| a.ticket == ticket && self.failed.is_none()) {
                ahead.fetch = Fetch::Reading;
                return Some((key, ticket, ahead.extent));
            }
        }
        None
    }
}

impl Shared {
    /// A panic under the lock comes before anything was changed, so what it guards is whole even then.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest bytes of a key, if they are in memory or on their way to it.
    fn find(&self, key: u64, extent: Extent) -> Result<Option<Arc<Block>>> {
        let mut state = self.lock();
        loop {
            state.check()?;
            let waiting = state.behind.get(&key).map(|behind| behind.of(extent));
            let block = match state.ahead.get(&key) {
                None => return Ok(waiting),
                Some(ahead) => {
                    assert_eq!(ahead.extent, extent, "one key, two extents");
                    match &ahead.fetch {
                        Fetch::Ready(block) => Some(Arc::clone(block)),
                        // Sooner now than in its turn.
                        Fetch::Queued => waiting,
                        Fetch::Reading => {
                            state = self.wait(state);
                            continue;
                        }
                    }
                }
            };
            state.drop_ahead(key);
            return Ok(block);
        }
    }

    /// Reads a block from the disk.
    fn fetch(&self, extent: Extent) -> Result<Block> {
        let start = Instant::now();
        let mut block = self.pool.take(extent.bytes as usize);
        let read = self.files[extent.file].read_at(extent.offset, &mut block);
        let mut state = self.lock();
        state.stats.read_seconds += start.elapsed().as_secs_f64();
        read.map_err(|source| ReadError { path: self.paths[extent.file].clone(), source })?;
        state.stats.bytes_read += extent.bytes;
        Ok(block)
    }

    /// What a reader does until the stream is closed.
    fn read_all(&self) {
        let mut state = self.lock();
        while !state.closing {
            let Some((key, ticket, extent)) = state.next_wanted() else {
                state = self.wait(state);
                continue;
            };
            drop(state);
            let read = caught(|| self.fetch(extent));
            state = self.lock();
            match (read, state.ahead.get_mut(&key).filter(|a| a.ticket == ticket)) {
                (Ok(block), Some(ahead)) => ahead.fetch = Fetch::Ready(Arc::new(block)),
                (Ok(_), None) => state.ahead_bytes -= extent.bytes,
                // Room and entries do not matter any more: nothing is read ahead after an error.
                (Err(failure), _) => state.fail(failure),
            }
            self.changed.notify_all();
        }
    }

    /// What the writer does until the stream is closed and all is written.
    fn write_all(&self) {
        let mut written = vec![false; self.files.len()];
        let mut state = self.lock();
        loop {
            let Some(task) = state.tasks.pop_front() else {
                if state.closing {
                    return;
                }
                state = self.wait(state);
                continue;
            };
            state.writing = true;
            drop(state);
            let start = Instant::now();
            let place = match &task {
                Task::Write { key, ticket, extent, .. } => Some((*key, *ticket, extent.bytes)),
                _ => None,
            };
            let done = caught(|| self.perform(task, &mut written));
            state = self.lock();
            state.writing = false;
            state.stats.write_seconds += start.elapsed().as_secs_f64();
            if let Some((key, ticket, bytes)) = place {
                state.behind_bytes -= bytes;
                state.stats.bytes_written += if done.is_ok() { bytes } else { 0 };
                if state.behind.get(&key).is_some_and(|b| b.ticket == ticket) {
                    state.behind.remove(&key);
                }
            }
            let undone = match done {
                Ok(()) => VecDeque::new(),
                Err(failure) => {
                    state.fail(failure);
                    std::mem::take(&mut state.tasks)
                }
            };
            self.changed.notify_all();
            if !undone.is_empty() {
                // What a job holds is not dropped under the lock.
                drop(state);
                drop(undone);
                state = self.lock();
            }
        }
    }

    fn perform(&self, task: Task, written: &mut [bool]) -> Result<()> {
        let failed = |file: usize, source| WriteError { path: self.paths[file].clone(), source };
        match task {
            Task::Write { extent, block, .. } => {
                written[extent.file] = true;
                self.files[extent.file].write_at(extent.offset, &block).map_err(|e| failed(extent.file, e))?;
            }
            Task::Run(job) => job(&*self.disk)?,
            Task::Sync => {
                for (file, written) in written.iter_mut().enumerate().filter(|(_, written)| **written) {
                    self.files[file].sync().map_err(|e| failed(file, e))?;
                    *written = false;
                }
            }
        }
        Ok(())
    }
}

/// Work whose panic becomes a failure too: whoever waits for it must not wait for ever.
fn caught<T>(work: impl FnOnce() -> Result<T>) -> std::result::Result<T, Failure> {
    let panic = |_: Box<dyn Any + Send>| Failure::Panic;
    catch_unwind(AssertUnwindSafe(work)).map_err(panic)?.map_err(Failure::Error)
}

#[cfg(test)]
mod tests;
