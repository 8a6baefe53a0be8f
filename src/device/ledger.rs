//! A device's ledger: what each program run counted, did and took, kept only where it was asked for. Counts are those of the
//! device's own counters; names and work come from the launch or from whoever scheduled it. It must never know a program.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Counters, Device, Kernel, Launch, Result, Variant};
use crate::device::Access;
use crate::wafer::{Cost, Work};

/// One run of a program: all its launches, and what passed between them.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Run {
    /// Name of its kernel.
    pub program: &'static str,
    /// Number of the phase that it belongs to, from 1; 0 before the first: see [`Ledger::phase_of`].
    pub phase: usize,
    /// When it began, in seconds since the ledger was opened.
    pub begun: f64,
    /// Seconds until the device was done; 0 on a blank device, where nothing is done.
    pub seconds: f64,
    /// Launches: supersteps, where it ran in such.
    pub dispatches: u64,
    /// Blocks delivered into inboxes.
    pub messages: u64,
    /// Bytes of those blocks.
    pub exchanged_bytes: u64,
    /// Links crossed by blocks; 0 on a blank device, as no closed form says.
    pub hops: u64,
    /// Bytes that crossed a link, once for each link; 0 on a blank device.
    pub link_bytes: u64,
    /// Rows and columns of blocks, one tile each.
    pub blocks: (u32, u32),
    /// What it did.
    pub work: Work,
}

/// What a scheduled program says of itself.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Name of its kernel.
    pub program: &'static str,
    /// What it does.
    pub work: Work,
    /// Rows and columns of blocks.
    pub blocks: (u32, u32),
}

/// Sums over the runs of one program.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Entry {
    /// Name of its kernel.
    pub program: &'static str,
    /// How often it ran.
    pub runs: u64,
    /// Launches.
    pub dispatches: u64,
    /// Blocks delivered into inboxes.
    pub messages: u64,
    /// Bytes of those blocks.
    pub exchanged_bytes: u64,
    /// What it did, and how often.
    pub work: Vec<(Work, u64)>,
    /// Seconds measured.
    pub seconds: f64,
}

impl Entry {
    /// What can be counted, without what was measured.
    pub fn counts(&self) -> (&'static str, u64, Cost) {
        let Entry { dispatches, messages, exchanged_bytes, .. } = *self;
        (self.program, self.runs, Cost { dispatches, messages, exchanged_bytes })
    }
}

/// What was written down.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// Names of the phases, as [`Device::phase`] was told.
    pub phases: Vec<String>,
    /// Every run, in order.
    pub runs: Vec<Run>,
    /// Kernels launched, each once a variant.
    pub kernels: Vec<(&'static Kernel, &'static Variant)>,
}

impl Ledger {
    /// The sums by program, by name.
    pub fn programs(&self) -> Vec<Entry> {
        let mut entries: Vec<Entry> = Vec::new();
        for run in &self.runs {
            let at = entries.iter().position(|e| e.program == run.program).unwrap_or_else(|| {
                entries.push(Entry { program: run.program, ..Entry::default() });
                entries.len() - 1
            });
            let entry = &mut entries[at];
            entry.runs += 1;
            entry.dispatches += run.dispatches;
            entry.messages += run.messages;
            entry.exchanged_bytes += run.exchanged_bytes;
            entry.seconds += run.seconds;
            match entry.work.iter_mut().find(|(work, _)| *work == run.work) {
                Some((_, times)) => *times += 1,
                None => entry.work.push((run.work, 1)),
            }
        }
        entries.sort_by_key(|entry| entry.program);
        entries
    }

    /// The name of the phase that a run belongs to.
    pub fn phase_of(&self, run: &Run) -> Option<&str> {
        run.phase.checked_sub(1).map(|at| self.phases[at].as_str())
    }

    /// The sums over all programs.
    pub fn total(&self) -> Cost {
        let mut sum = Cost::default();
        for run in &self.runs {
            sum.dispatches += run.dispatches;
            sum.messages += run.messages;
            sum.exchanged_bytes += run.exchanged_bytes;
        }
        sum
    }
}

/// The ledger of a device, open.
pub(super) struct Book {
    opened: Instant,
    pages: Mutex<Pages>,
}

#[derive(Default)]
struct Pages {
    ledger: Ledger,
    /// Whether a scheduled program is running, whose launches are its own.
    inside: bool,
}

impl Book {
    pub fn open() -> Book {
        Book { opened: Instant::now(), pages: Mutex::default() }
    }

    fn with<R>(&self, f: impl FnOnce(&mut Pages) -> R) -> R {
        f(&mut self.pages.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn now(&self) -> Duration {
        self.opened.elapsed()
    }
}

impl Device {
    /// The same device with a ledger. What runs is then waited for, program by program, so that its time is its own: slower.
    ///
    /// # Panics
    /// When there is a clone of the device, or a buffer was made by one.
    pub fn with_ledger(self) -> Device {
        self.altered(|shared| shared.book = Some(Book::open()))
    }

    /// What was written down since the ledger was opened or taken last; nothing where there is none.
    pub fn take_ledger(&self) -> Ledger {
        self.0.book.as_ref().map_or_else(Ledger::default, |book| book.with(|pages| std::mem::take(&mut pages.ledger)))
    }

    /// Seconds since the ledger was opened: the clock of [`Run::begun`]. 0 where there is none.
    pub fn ledger_seconds(&self) -> f64 {
        self.0.book.as_ref().map_or(0.0, |book| book.now().as_secs_f64())
    }

    /// What runs from now on belongs to a phase of this name. Costs nothing where there is no ledger.
    pub fn phase(&self, name: impl FnOnce() -> String) {
        let Some(book) = &self.0.book else { return };
        book.with(|pages| pages.ledger.phases.push(name()));
    }

    /// Runs a scheduled program: what `run` launches and exchanges is written down as one run of it.
    ///
    /// # Errors
    /// What `run` says, and the device of the work.
    pub fn span(&self, span: impl FnOnce() -> Span, run: impl FnOnce() -> Result<()>) -> Result<()> {
        let Some(book) = &self.0.book else { return run() };
        let (begun, before) = (book.now(), self.counters());
        book.with(|pages| pages.inside = true);
        let done = run().and_then(|()| self.wait());
        book.with(|pages| pages.inside = false);
        done?;
        let ended = book.now();
        self.write_down(book, span(), begun, ended, &self.counters().since(&before));
        Ok(())
    }

    /// One launch: a run of its own, unless it is part of a scheduled program.
    pub(super) fn noted(&self, launch: &Launch<'_>, run: impl FnOnce() -> Result<()>) -> Result<()> {
        let Some(book) = &self.0.book else { return run() };
        let (kernel, variant) = (launch.kernel, launch.variant);
        let inside = book.with(|pages| {
            let known = |(k, v): &(&Kernel, &Variant)| std::ptr::eq(*k, kernel) && std::ptr::eq(*v, variant);
            if !pages.ledger.kernels.iter().any(known) {
                pages.ledger.kernels.push((kernel, variant));
            }
            pages.inside
        });
        if inside {
            return run();
        }
        let (begun, before) = (book.now(), self.counters());
        run()?;
        self.wait()?;
        let ended = book.now();
        let written = launch.views.iter().zip(kernel.bindings).filter(|(_, b)| b.access == Access::Write);
        let elements = written.map(|(view, _)| view.len as u64).max().unwrap_or(0);
        let span = Span { program: kernel.name, work: Work::Local { elements }, blocks: (1, launch.groups) };
        self.write_down(book, span, begun, ended, &self.counters().since(&before));
        Ok(())
    }

    fn write_down(&self, book: &Book, span: Span, begun: Duration, ended: Duration, counted: &Counters) {
        let Span { program, work, blocks } = span;
        book.with(|pages| {
            pages.ledger.runs.push(Run {
                program,
                phase: pages.ledger.phases.len(),
                begun: begun.as_secs_f64(),
                seconds: if self.is_blank() { 0.0 } else { (ended - begun).as_secs_f64() },
                dispatches: counted.dispatches,
                messages: counted.messages,
                exchanged_bytes: counted.exchanged_bytes,
                hops: counted.hops,
                link_bytes: counted.link_bytes,
                blocks,
                work,
            });
        });
    }
}
