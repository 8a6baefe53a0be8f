//! The background traffic of a store beside a plain loop over the same file with the same requests, in turns: each writes
//! and reads so many gibibytes from end to end. One JSON object.
//! `cargo bench --bench disk -- [--gib N] [--mib PER_BLOCK] [--rounds N] [--folder PATH]`

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use gaufre::store::block::Block;
use gaufre::store::durable::{Access, Disk, RealDisk};
use gaufre::store::stream::Stream;
use gaufre::store::volume::Extent;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let option = |name: &str| arguments.iter().position(|a| a == name).and_then(|i| arguments.get(i + 1));
    let number = |name: &str, default: u64| option(name).map_or(default, |v| v.parse().expect("a number"));
    let (bytes, block, rounds) = (number("--gib", 4) << 30, number("--mib", 64) << 20, number("--rounds", 3));
    let folder = match option("--folder") {
        Some(folder) => tempfile::tempdir_in(folder)?,
        None => tempfile::tempdir()?,
    };
    let free = RealDisk.available(folder.path())?;
    if bytes > free {
        return Err(format!("--gib: {bytes} bytes are to be written, {free} are free; name another --folder").into());
    }
    let path = folder.path().join("file");
    RealDisk.open(&path, Access::Create)?.set_len(bytes)?;
    let extents: Vec<Extent> =
        (0..bytes / block).map(|i| Extent { file: 0, offset: i * block, bytes: block }).collect();
    // The first pass finds the room for a hole, which is none of the stream's business.
    plain(&path, &extents)?;
    let mut rates: [Vec<f64>; 4] = Default::default();
    for _ in 0..rounds {
        let ((write, read), (stream_write, stream_read)) = (plain(&path, &extents)?, through(&path, &extents)?);
        for (rates, seconds) in rates.iter_mut().zip([write, read, stream_write, stream_read]) {
            rates.push((bytes / block * block) as f64 / seconds);
        }
    }
    let [write, read, stream_write, stream_read] = rates.map(|mut rates| {
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    });
    let line = serde_json::json!({
        "bench": "disk", "bytes": bytes, "block_bytes": block, "rounds": rounds, "free_bytes": free,
        "plain_write_bytes_per_second": write, "plain_read_bytes_per_second": read,
        "stream_write_bytes_per_second": stream_write, "stream_read_bytes_per_second": stream_read,
        "write_ratio": stream_write / write, "read_ratio": stream_read / read,
    });
    println!("{line}");
    Ok(())
}

/// Seconds to write and to read one block after another; synced, and nothing of it left in the page cache.
fn plain(path: &Path, extents: &[Extent]) -> std::io::Result<(f64, f64)> {
    let file = RealDisk.open(path, Access::Write)?;
    let mut block = Block::new(extents[0].bytes as usize);
    let start = Instant::now();
    for extent in extents {
        file.write_at(extent.offset, &block)?;
    }
    file.sync()?;
    let write = start.elapsed().as_secs_f64();
    let start = Instant::now();
    extents.iter().try_for_each(|extent| file.read_at(extent.offset, &mut block))?;
    Ok((write, start.elapsed().as_secs_f64()))
}

/// The same through a stream, as a store does it: four blocks ahead, and four behind.
fn through(path: &Path, extents: &[Extent]) -> Result<(f64, f64), gaufre::store::stream::StreamError> {
    let stream = Stream::open(Arc::new(RealDisk), vec![PathBuf::from(path)], 4 * extents[0].bytes)?;
    let start = Instant::now();
    for (key, &extent) in extents.iter().enumerate() {
        let mut block = stream.pool().take(extent.bytes as usize);
        block[0] = key as u8;
        stream.write(key as u64, extent, block)?;
    }
    stream.sync()?;
    stream.drain()?;
    let write = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let mut next = 0;
    for (key, &extent) in extents.iter().enumerate() {
        while extents.get(next).is_some_and(|extent| stream.prefetch(next as u64, *extent)) {
            next += 1;
        }
        assert_eq!(stream.read(key as u64, extent)?[0], key as u8, "block {key}");
    }
    Ok((write, start.elapsed().as_secs_f64()))
}
