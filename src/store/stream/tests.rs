//! Tests of the stream: random traffic against a plain map, and a disk whose operations fail.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicIsize, Ordering::SeqCst};
use std::time::Duration;

use proptest::prelude::*;

use super::super::durable::{DiskFile, RealDisk};
use super::*;

/// A disk one of whose random accesses fails, or panics; the rest it leaves to the disk of this machine.
struct Faulty {
    /// Operations until then.
    left: AtomicIsize,
    panics: bool,
    /// What each access takes, so that requests meet.
    pause: Duration,
}

impl Faulty {
    fn new(at: isize) -> Arc<Faulty> {
        Arc::new(Faulty { left: AtomicIsize::new(at), panics: false, pause: Duration::ZERO })
    }

    fn met(&self) -> bool {
        self.left.load(SeqCst) < 0
    }
}

/// The disk, as its files have it.
#[derive(Clone)]
struct Shaky(Arc<Faulty>);

impl Shaky {
    fn pass(&self) -> io::Result<()> {
        thread::sleep(self.0.pause);
        match self.0.left.fetch_sub(1, SeqCst) {
            0 if self.0.panics => panic!("planted"),
            0 => Err(io::Error::from_raw_os_error(5)),
            _ => Ok(()),
        }
    }
}

struct ShakyFile(Box<dyn RandomFile>, Shaky);

impl RandomFile for ShakyFile {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.1.pass()?;
        self.0.read_at(offset, bytes)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.1.pass()?;
        self.0.write_at(offset, bytes)
    }

    fn file_bytes(&self) -> io::Result<u64> {
        self.0.file_bytes()
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.0.set_len(bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.1.pass()?;
        self.0.sync()
    }
}

impl Disk for Shaky {
    fn share(&self) -> Arc<dyn Disk> {
        Arc::new(self.clone())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        RealDisk.create(path)
    }

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        RealDisk.create_folder(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(from, to)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        RealDisk.sync_folder(path)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove_file(path)
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove_folder(path)
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn RandomFile>> {
        self.pass()?;
        Ok(Box::new(ShakyFile(RealDisk.open(path, access)?, self.clone())))
    }

    fn available(&self, path: &Path) -> io::Result<u64> {
        RealDisk.available(path)
    }
}

/// Files of this many bytes; keys alternate between them.
const FILES: usize = 2;
const KEYS: u64 = 9;
/// Bytes of a key's range: some of whole pages, some not.
const RANGES: [u64; KEYS as usize] = [8192, 4096, 12_288, 5000, 4096, 1, 20_000, 4097, 100];

fn extent(key: u64) -> Extent {
    let file = key as usize % FILES;
    let before = (0..key).filter(|k| *k as usize % FILES == file).map(|k| RANGES[k as usize]).sum();
    Extent { file, offset: before, bytes: RANGES[key as usize] }
}

/// A folder with the files, all zeros.
fn files() -> (tempfile::TempDir, Vec<PathBuf>) {
    let folder = tempfile::tempdir().unwrap();
    let paths: Vec<PathBuf> = (0..FILES).map(|f| folder.path().join(format!("file-{f}"))).collect();
    paths.iter().for_each(|path| fs::write(path, vec![0; 50_000]).unwrap());
    (folder, paths)
}

fn filled(stream: &Stream, key: u64, byte: u8) -> Block {
    let mut block = stream.pool().take(extent(key).bytes as usize);
    block.fill(byte);
    block
}

/// Whether the files hold just these bytes, one for each key.
fn hold(paths: &[PathBuf], bytes: &[u8]) -> bool {
    let files: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
    bytes.iter().enumerate().all(|(key, byte)| {
        let at = extent(key as u64);
        files[at.file][at.offset as usize..][..at.bytes as usize].iter().all(|b| b == byte)
    })
}

#[derive(Clone, Debug)]
enum Op {
    Prefetch(u64),
    Read(u64),
    Forget(u64),
    Write(u64, u8),
    Sync,
    /// A job that must find all that was written before it, and nothing that is written after it.
    Look,
    Drain,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..KEYS).prop_map(Op::Prefetch),
        6 => (0..KEYS).prop_map(Op::Read),
        1 => (0..KEYS).prop_map(Op::Forget),
        6 => (0..KEYS, 1u8..).prop_map(|(key, byte)| Op::Write(key, byte)),
        1 => Just(Op::Sync),
        1 => Just(Op::Look),
        1 => Just(Op::Drain),
    ]
}

fn play(ops: &[Op], budget: u64, pause: Duration) {
    let (_folder, paths) = files();
    let disk = Shaky(Arc::new(Faulty { left: AtomicIsize::new(-1), panics: false, pause }));
    let stream = Stream::open(Arc::new(disk), paths.clone(), budget).unwrap();
    let mut model = vec![0; KEYS as usize];
    let saw = Arc::new(AtomicBool::new(true));
    for op in ops {
        match *op {
            Op::Prefetch(key) => drop(stream.prefetch(key, extent(key))),
            Op::Read(key) => {
                let block = stream.read(key, extent(key)).unwrap();
                let whole = block.len() as u64 == extent(key).bytes && block.iter().all(|b| *b == model[key as usize]);
                assert!(whole, "key {key}: {} for {}", block[0], model[key as usize]);
            }
            Op::Forget(key) => stream.forget(key),
            Op::Write(key, byte) => {
                stream.write(key, extent(key), filled(&stream, key, byte)).unwrap();
                model[key as usize] = byte;
            }
            Op::Sync => stream.sync().unwrap(),
            Op::Look => {
                let (paths, model, saw) = (paths.clone(), model.clone(), Arc::clone(&saw));
                let look = move |_: &dyn Disk| {
                    saw.fetch_and(hold(&paths, &model), SeqCst);
                    Ok(())
                };
                stream.run(Box::new(look)).unwrap();
            }
            Op::Drain => {
                stream.drain().unwrap();
                assert!(hold(&paths, &model));
            }
        }
    }
    for key in 0..KEYS {
        assert!(stream.read(key, extent(key)).unwrap().iter().all(|b| *b == model[key as usize]), "key {key}");
    }
    drop(stream);
    assert!(hold(&paths, &model), "a stream that is dropped ends what was queued");
    assert!(saw.load(SeqCst), "a job found other bytes than were written before it");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_traffic_agrees_with_a_map(
        ops in prop::collection::vec(op(), 1..80),
        budget in prop_oneof![Just(0u64), Just(9000), Just(1 << 20)],
        pause in 0u64..200,
    ) {
        play(&ops, budget, Duration::from_micros(pause));
    }
}

/// Every kind of request, the last of them a manifest.
fn script(stream: &Stream, manifest: &Path) -> Result<()> {
    for key in 0..KEYS {
        stream.prefetch(key, extent(key));
    }
    for key in 0..KEYS {
        stream.read(key, extent(key))?;
        stream.write(key, extent(key), filled(stream, key, 7))?;
    }
    stream.sync()?;
    let manifest = manifest.to_path_buf();
    stream.run(Box::new(move |disk| {
        let written = disk.create(&manifest).map(drop);
        written.map_err(|source| WriteError { path: manifest, source })
    }))?;
    stream.drain()
}

#[test]
fn any_operation_may_fail_once_and_is_told_ever_after() {
    let mut failures = 0;
    for at in 0.. {
        let (folder, paths) = files();
        let manifest = folder.path().join("manifest");
        let disk = Faulty::new(at);
        let done = Stream::open(Arc::new(Shaky(Arc::clone(&disk))), paths.clone(), 10_000).and_then(|stream| {
            let done = script(&stream, &manifest);
            if let Err(error) = &done {
                let said = error.to_string();
                // An error of a read that a caller waits for is told once; one from the background stays.
                if let Err(again) = stream.drain() {
                    assert_eq!(again.to_string(), said, "operation {at}");
                    assert_eq!(stream.sync().unwrap_err().to_string(), said);
                    assert_eq!(stream.read(0, extent(0)).unwrap_err().to_string(), said);
                    assert_eq!(stream.write(0, extent(0), filled(&stream, 0, 1)).unwrap_err().to_string(), said);
                    assert_eq!(stream.run(Box::new(|_| Ok(()))).unwrap_err().to_string(), said);
                    assert!(!stream.prefetch(0, extent(0)));
                }
            }
            done
        });
        if !disk.met() {
            done.unwrap();
            assert!(manifest.exists() && hold(&paths, &[7; KEYS as usize]));
            break;
        }
        let said = done.expect_err("the disk failed").to_string();
        assert!(said.contains("file-") && said.contains("os error 5"), "operation {at}: {said}");
        assert!(!manifest.exists(), "operation {at}: a manifest of what is not durable");
        failures += 1;
    }
    assert!(failures > 20, "only {failures} operations");
}

#[test]
fn a_panic_in_the_background_reaches_the_caller() {
    let (_folder, paths) = files();
    let disk = Faulty { left: AtomicIsize::new(3), panics: true, pause: Duration::ZERO };
    let stream = Stream::open(Arc::new(Shaky(Arc::new(disk))), paths, 1 << 20).unwrap();
    let play = || (0..4).for_each(|key| stream.write(key, extent(key), filled(&stream, key, 1)).unwrap());
    assert!(catch_unwind(AssertUnwindSafe(|| (play(), stream.drain()))).is_err());
}

#[test]
fn traffic_is_counted_and_kept_within_its_budget() {
    let (_folder, paths) = files();
    let stream = Stream::open(Arc::new(RealDisk), paths, 25_000).unwrap();
    assert!(stream.prefetch(0, extent(0)) && stream.prefetch(2, extent(2)) && stream.prefetch(0, extent(0)));
    assert!(!stream.prefetch(3, extent(3)), "{} bytes of 25000 are taken", RANGES[0] + RANGES[2]);
    stream.forget(0);
    stream.read(2, extent(2)).unwrap();
    // Larger than the budget allows beside another, and than all of it.
    stream.write(6, extent(6), filled(&stream, 6, 1)).unwrap();
    stream.write(4, extent(4), filled(&stream, 4, 1)).unwrap();
    stream.drain().unwrap();
    let stats = stream.take_stats();
    assert_eq!(stats.bytes_written, RANGES[6] + RANGES[4]);
    assert!(stats.bytes_read >= RANGES[2] && stats.read_seconds > 0.0 && stats.write_seconds > 0.0, "{stats:?}");
    assert_eq!(stream.take_stats(), Stats::default());
    assert_eq!(stream.files().len(), FILES);
}
