//! What a disk may do to a run: every operation fails once, a bit flips, a file ends early. The error names the file, what
//! was whole stays whole, and the run goes on from it to the same bits.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::desk::{Desk, Left, assert_equal, begin, go_on, left, until};
use gaufre::report::{Event, Finish, Observer, Start, StepLine};
use gaufre::store::checkpoint;
use gaufre::store::durable::{Access, Disk, DiskFile, RandomFile, RealDisk};
use gaufre::train::config::Config;
use gaufre::train::{Control, Summary, TrainError, resume};

/// How an operation fails.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// EIO.
    Broken,
    /// ENOSPC.
    Full,
    /// Half of what was to be written is, then the disk is full; other operations fail at once.
    Short,
}

pub const FAULTS: [Fault; 3] = [Fault::Broken, Fault::Full, Fault::Short];

impl Fault {
    fn error(self) -> io::Error {
        io::Error::from_raw_os_error(if self == Fault::Broken { 5 } else { 28 })
    }
}

/// A disk one of whose operations fails, once.
pub struct FaultyDisk {
    fault: Fault,
    /// Operations until then; below 0 it has happened.
    left: Mutex<isize>,
}

impl FaultyDisk {
    pub fn new(at: usize, fault: Fault) -> FaultyDisk {
        FaultyDisk { fault, left: Mutex::new(at as isize) }
    }

    /// Counts an operation.
    fn passes(&self) -> bool {
        let mut left = self.left.lock().unwrap();
        *left -= 1;
        *left != -1
    }

    fn pass(&self) -> io::Result<()> {
        if self.passes() { Ok(()) } else { Err(self.fault.error()) }
    }

    pub fn met(&self) -> bool {
        *self.left.lock().unwrap() < 0
    }
}

/// A file on it. The disk outlives every file, but a boxed file cannot say so: it shares the count.
struct FaultyFile {
    inner: Box<dyn DiskFile>,
    disk: &'static FaultyDisk,
}

impl Write for FaultyFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.disk.passes() {
            return self.inner.write(bytes);
        }
        if self.disk.fault == Fault::Short {
            self.inner.write_all(&bytes[..bytes.len() / 2])?;
        }
        Err(self.disk.fault.error())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl DiskFile for FaultyFile {
    fn sync(&mut self) -> io::Result<()> {
        self.disk.pass()?;
        self.inner.sync()
    }
}

/// A file of random access on it.
struct FaultyRandomFile {
    inner: Box<dyn RandomFile>,
    disk: &'static FaultyDisk,
}

impl RandomFile for FaultyRandomFile {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.disk.pass()?;
        self.inner.read_at(offset, bytes)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if self.disk.passes() {
            return self.inner.write_at(offset, bytes);
        }
        if self.disk.fault == Fault::Short {
            self.inner.write_at(offset, &bytes[..bytes.len() / 2])?;
        }
        Err(self.disk.fault.error())
    }

    fn file_bytes(&self) -> io::Result<u64> {
        self.disk.pass()?;
        self.inner.file_bytes()
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.disk.pass()?;
        self.inner.set_len(bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.pass()?;
        self.inner.sync()
    }
}

impl Disk for &'static FaultyDisk {
    fn share(&self) -> Arc<dyn Disk> {
        Arc::new(*self)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.pass()?;
        Ok(Box::new(FaultyFile { inner: RealDisk.create(path)?, disk: self }))
    }

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.pass()?;
        RealDisk.create_folder(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.pass()?;
        RealDisk.rename(from, to)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.pass()?;
        RealDisk.sync_folder(path)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.pass()?;
        RealDisk.remove_file(path)
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        self.pass()?;
        RealDisk.remove_folder(path)
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn RandomFile>> {
        self.pass()?;
        Ok(Box::new(FaultyRandomFile { inner: RealDisk.open(path, access)?, disk: self }))
    }

    fn available(&self, path: &Path) -> io::Result<u64> {
        self.pass()?;
        RealDisk.available(path)
    }
}

/// A short run that writes checkpoints, removes them, and ends.
fn short(desk: &Desk, out: &str) -> Config {
    Config { steps: 4, save_every: 1, keep: 1, eval_every: 4, ..desk.config(out) }
}

#[test]
fn every_operation_may_fail_once() {
    let desk = Desk::new();
    begin(&short(&desk, "whole"), Control::default()).unwrap();
    let whole = left(&desk.path("whole"));
    let mut failures = 0;
    for at in 0.. {
        let all_met = FAULTS.iter().enumerate().all(|(i, &fault)| {
            // Each operation fails in one of the three ways; in the long tier in all of them.
            if !cfg!(feature = "slow") && at % FAULTS.len() != i {
                return true;
            }
            let met = fails_and_goes_on(&desk, at, fault, &whole);
            failures += u32::from(met);
            met
        });
        if !all_met {
            break;
        }
    }
    println!("{failures} failures of the disk, each named, each without loss");
    assert!(failures > 60, "only {failures} operations");
}

/// Whether the run met the fault.
fn fails_and_goes_on(desk: &Desk, at: usize, fault: Fault, whole: &Left) -> bool {
    let what = format!("operation {at} {fault:?}");
    let out = format!("fails-{at}-{fault:?}");
    let config = short(desk, &out);
    // Leaked: a few words for each case.
    let disk: &'static FaultyDisk = Box::leak(Box::new(FaultyDisk::new(at, fault)));
    let result = begin(&config, Control { disk: &disk, ..Control::default() });
    if !disk.met() {
        assert!(result.is_ok(), "{what}");
        return false;
    }
    let error = result.expect_err(&what).to_string();
    assert!(error.contains(&out), "{what} does not name its file: {error}");
    assert!(error.contains("os error") && error.contains("choose"), "{what}: {error}");
    let run = desk.path(&out);
    for (step, path) in checkpoint::list(&run.join("checkpoints")).unwrap() {
        let state: serde_json::Value = checkpoint::read_state(&path).expect("every checkpoint with a name is whole");
        assert_eq!(state["step"].as_u64(), Some(step), "{what}");
    }
    match run.join("config.toml").exists() {
        true => go_on(&config, Control::default()),
        false => begin(&config, Control::default()),
    }
    .unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_equal(whole, &left(&run), &what);
    fs::remove_dir_all(run).unwrap();
    true
}

/// Keeps what is said of damage.
#[derive(Default)]
struct Heard(Vec<String>);

impl Observer for Heard {
    fn started(&mut self, _: &Start<'_>) -> gaufre::report::Result<()> {
        Ok(())
    }
    fn step(&mut self, _: &StepLine) -> gaufre::report::Result<()> {
        Ok(())
    }
    fn evaluation(&mut self, _: u64, _: f64) -> gaufre::report::Result<()> {
        Ok(())
    }
    fn event(&mut self, event: &Event<'_>) -> gaufre::report::Result<()> {
        if let Event::Damaged { reason } = event {
            self.0.push(reason.to_string());
        }
        Ok(())
    }
    fn finished(&mut self, _: &Finish) -> gaufre::report::Result<()> {
        Ok(())
    }
}

fn go_on_heard(config: &Config) -> (Result<Summary, TrainError>, Vec<String>) {
    let mut heard = Heard::default();
    let result = resume(config.out.as_deref().unwrap(), config, Control::default(), &mut heard);
    (result, heard.0)
}

/// What is done to a file.
type Harm = fn(&mut Vec<u8>, usize);

#[test]
fn a_damaged_checkpoint_falls_back_to_the_one_before() {
    let desk = Desk::new();
    begin(&desk.config("whole"), Control::default()).unwrap();
    let whole = left(&desk.path("whole"));
    let config = desk.config("run");
    begin(&config, until(10)).unwrap();
    let run = desk.path("run");
    let newest = run.join("checkpoints/step-000010");
    let harms: [(&str, Harm); 4] = [
        ("a flipped bit", |bytes, at| {
            let at = at * bytes.len() / 8;
            bytes[at] ^= 1 << (at % 8);
        }),
        ("truncated", |bytes, at| bytes.truncate(at * bytes.len() / 8)),
        ("longer", |bytes, at| bytes.extend(std::iter::repeat_n(0, at + 1))),
        ("zeros", |bytes, at| {
            let at = at * bytes.len() / 8;
            bytes[at..].fill(0);
        }),
    ];
    for name in ["model.safetensors", "optimizer.safetensors", "state.json"] {
        let good = fs::read(newest.join(name)).unwrap();
        for (what, harm) in harms {
            for at in [0, 3, 7] {
                let mut bytes = good.clone();
                harm(&mut bytes, at);
                if what == "longer" && name == "state.json" {
                    bytes.push(b'}');
                }
                fs::write(newest.join(name), bytes).unwrap();
                let found = checkpoint_of(&config);
                assert!(found.contains(name), "{name} {what} at {at}: {found}");
            }
        }
        fs::write(newest.join(name), good).unwrap();
    }
    fs::remove_file(newest.join("optimizer.safetensors")).unwrap();
    let (summary, heard) = go_on_heard(&config);
    assert_eq!(summary.unwrap().step, 20);
    assert!(heard.len() == 1 && heard[0].contains("step-000010"), "{heard:?}");
    for (name, bytes) in &whole.files {
        assert!(fs::read(run.join(name)).unwrap() == *bytes, "{name} differs");
    }
}

/// What the newest checkpoint is said to suffer from; nothing is computed.
fn checkpoint_of(config: &Config) -> String {
    let mut heard = Heard::default();
    let stop = Control { stop_after: Some(1), ..Control::default() };
    let scratch = tempfile::tempdir().unwrap();
    let copy = scratch.path().join("run");
    let from = config.out.as_deref().unwrap();
    copy_folder(from, &copy);
    resume(&copy, config, stop, &mut heard).unwrap();
    heard.0.join("; ")
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy_folder(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

#[test]
fn without_a_whole_checkpoint_nothing_is_begun_anew() {
    let desk = Desk::new();
    let config = desk.config("run");
    begin(&config, until(10)).unwrap();
    for (_, path) in checkpoint::list(&desk.path("run/checkpoints")).unwrap() {
        fs::write(path.join("state.json"), "{}").unwrap();
    }
    let (result, heard) = go_on_heard(&config);
    let error = result.unwrap_err().to_string();
    assert!(error.contains("--resume") && error.contains("no checkpoint is whole"), "{error}");
    assert!(!heard.is_empty() && desk.path("run/checkpoints/step-000010").exists());
}

#[test]
fn a_checkpoint_of_another_model_is_refused() {
    let desk = Desk::new();
    let config = desk.config("run");
    begin(&config, until(4)).unwrap();
    // The model's file is changed under the run: its checkpoint no longer fits.
    let other = "layers = 1\nheads = 2\nd_model = 24\ncontext = 8\n";
    fs::write(desk.path("tiny.toml"), other).unwrap();
    let error = go_on(&config, Control::default()).unwrap_err().to_string();
    assert!(error.contains("--model was") && error.contains("\"d_model\":24"), "{error}");
    fs::write(desk.path("run/model.toml"), other).unwrap();
    let error = desk.error(&["generate", "run", "--device", "host"]);
    assert!(error.contains("model.safetensors") && error.contains("wte.weight"), "{error}");
}
