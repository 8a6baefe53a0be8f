//! What a run leaves for people: event files framed as TensorBoard wants them, and a page that a browser renders.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use gaufre::report::html::{self, Page};
use gaufre::report::metrics::Metrics;
use gaufre::report::tensorboard::TensorBoard;
use gaufre::report::{Finish, Observer, Start, StepLine};

/// A run of so many steps, with a step that is not finite, told to the observers.
fn run(folder: &Path, steps: u64) {
    let mut observer = (Metrics::default(), (TensorBoard::default(), Page::default()));
    let start = Start {
        device: "device: a machine <of tests>",
        model: "tiny",
        parameters: 1234,
        train_tokens: 1000,
        validation_tokens: 100,
        vocab_size: 65,
        steps,
        step_tokens: 8,
        folder,
        resumed: None,
        bytes_per_token: Some(1.0),
        step_flops: 1e6,
        peak_flops: 1e9,
    };
    fs::write(folder.join("config.toml"), "model = \"tiny\"\ndata = [\"a & b\"]\nlr = 0.001\n").unwrap();
    observer.started(&start).unwrap();
    for step in 1..=steps {
        let loss = if step == 7 { f64::NAN } else { 4.0 / (step as f64).sqrt() };
        let line = StepLine {
            step,
            loss,
            grad_norm: 1.0 / step as f64,
            lr: 1e-3,
            tokens: 8 * step,
            tokens_per_second: 100.0,
            skipped: step == 7,
        };
        observer.step(&line).unwrap();
        if step % 10 == 0 {
            observer.evaluation(step, loss + 0.1).unwrap();
        }
    }
    observer.finished(&Finish { steps, tokens: 8 * steps, seconds: 1.0, skipped: 0 }).unwrap();
}

/// CRC-32C bit by bit, from its polynomial: nothing in common with what wrote the file.
fn masked_crc(data: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in data {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    let crc = !crc;
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The data of each record; lengths and CRCs must hold.
fn records(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        assert_eq!(word(8), masked_crc(&bytes[..8]), "record {}", found.len());
        let data = &bytes[12..12 + length];
        assert_eq!(word(12 + length), masked_crc(data), "record {}", found.len());
        found.push(data);
        bytes = &bytes[16 + length..];
    }
    found
}

/// The fields of a message of protocol buffers: number, value, and the bytes of one that has a length.
fn fields(mut message: &[u8]) -> Vec<(u64, u64, &[u8])> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let (byte, rest) = bytes.split_first().expect("a varint ends");
            *bytes = rest;
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                return value;
            }
        }
    }
    let mut found = Vec::new();
    while !message.is_empty() {
        let key = varint(&mut message);
        let (value, bytes): (u64, &[u8]) = match key & 7 {
            0 => (varint(&mut message), &[]),
            1 => (u64::from_le_bytes(*message.split_off(..8).unwrap().first_chunk().unwrap()), &[]),
            2 => {
                let length = varint(&mut message) as usize;
                (0, message.split_off(..length).unwrap())
            }
            5 => (u32::from_le_bytes(*message.split_off(..4).unwrap().first_chunk().unwrap()).into(), &[]),
            kind => panic!("kind {kind}"),
        };
        found.push((key >> 3, value, bytes));
    }
    found
}

#[test]
fn event_files_hold_what_was_said_and_their_checksums() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), 300);
    let files = fs::read_dir(folder.path()).unwrap().flatten().map(|e| e.path());
    let events: Vec<PathBuf> = files.filter(|p| p.to_string_lossy().contains("events.out.tfevents.")).collect();
    assert_eq!(events.len(), 1);
    let bytes = fs::read(&events[0]).unwrap();
    let records = records(&bytes);
    assert_eq!(fields(records[0]).into_iter().find(|f| f.0 == 3).unwrap().2, b"brain.Event:2");
    assert_eq!(fields(fields(records[1]).into_iter().find(|f| f.0 == 7).unwrap().2), [(1, 1, &[][..])]);
    let mut scalars: BTreeMap<String, Vec<(u64, f32)>> = BTreeMap::new();
    for record in &records[2..] {
        let event = fields(record);
        let step = event.iter().find(|f| f.0 == 2).unwrap().1;
        for (_, _, value) in fields(event.iter().find(|f| f.0 == 5).unwrap().2) {
            let value = fields(value);
            let tag = String::from_utf8(value[0].2.to_vec()).unwrap();
            scalars.entry(tag).or_default().push((step, f32::from_bits(value[1].1 as u32)));
        }
    }
    assert_eq!(scalars.keys().collect::<Vec<_>>(), ["grad_norm", "loss", "lr", "tokens_per_second", "val_loss"]);
    assert_eq!((scalars["loss"].len(), scalars["val_loss"].len()), (300, 30));
    assert_eq!(scalars["loss"][299], (300, (4.0 / 300f64.sqrt()) as f32));
    assert!(scalars["loss"][6].1.is_nan());
}

#[test]
fn the_page_is_whole_and_asks_for_nothing() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("samples")).unwrap();
    fs::write(folder.path().join("samples/step-9.txt"), "old").unwrap();
    fs::write(folder.path().join("samples/step-10.txt"), "<script>alert(1)</script>").unwrap();
    run(folder.path(), 100);
    let page = fs::read_to_string(folder.path().join("report.html")).unwrap();
    for part in ["tiny", "Learning rate", "a &amp; b", "a machine &lt;of tests&gt;", "&lt;script&gt;alert", "1,234"] {
        assert!(page.contains(part), "{part:?} is missing");
    }
    assert!(page.find("step-10").unwrap() < page.find("step-9<").unwrap(), "the newest sample comes first");
    for outside in ["http:", "https:", "//", "src=", "@import", "url(", "<script>alert"] {
        let comment = page.contains("\n// ");
        let found = page.matches(outside).count();
        assert!(found == usize::from(outside == "//" && comment), "{outside:?} is in it {found} times");
    }
    assert_eq!(page.matches("<svg viewBox=\"0 0 1000").count(), 4);
    assert!(page.len() < 200_000, "{}", page.len());
}

#[test]
fn a_page_can_be_made_of_anything_that_a_run_leaves() {
    let folder = tempfile::tempdir().unwrap();
    let error = html::write(folder.path()).unwrap_err().to_string();
    assert!(error.contains("metrics.jsonl"), "{error}");
    for text in
        ["", "{\"step\":1,\"loss\":null,\"lr\":0.1}\n", "{\"step\":5,\"loss\":1e308,\"lr\":1e-300,\"grad_norm\":0}\n"]
    {
        fs::write(folder.path().join("metrics.jsonl"), text).unwrap();
        let page = fs::read_to_string(html::write(folder.path()).unwrap()).unwrap();
        assert!(page.ends_with("</html>\n") && !page.contains("NaN") && !page.contains("inf,"), "{text}");
    }
    fs::write(folder.path().join("metrics.jsonl"), "{}\n").unwrap();
    let error = html::write(folder.path()).unwrap_err().to_string();
    assert!(error.contains("metrics.jsonl: line 1: missing field `step`"), "{error}");
}

#[test]
fn a_browser_renders_the_page() {
    let browsers = ["chromium", "chromium-browser", "google-chrome"];
    let runs = |name: &&&str| Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success());
    let Some(browser) = browsers.iter().find(runs) else {
        eprintln!("NOT RUN: a_browser_renders_the_page: none of {browsers:?} is installed");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), 100);
    // Where the pointer comes over the page, the script must find values: a click of our own stands for one.
    let page = folder.path().join("report.html");
    let probe = "<script>const box = document.querySelector('.plot').getBoundingClientRect();\
        document.querySelector('.plot').dispatchEvent(new PointerEvent('pointermove',\
        {clientX: box.left + box.width, clientY: box.top + 9}));</script></body>";
    fs::write(&page, fs::read_to_string(&page).unwrap().replace("</body>", probe)).unwrap();
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args(["--enable-logging=stderr", "--dump-dom"])
        .arg(format!("--user-data-dir={}", folder.path().join("profile").display()))
        .arg(format!("file://{}", page.display()))
        .output()
        .unwrap();
    let (dom, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{log}");
    for class in ["raw", "strong", "dotted", "dots"] {
        assert!(dom.contains(&format!("<path class=\"{class}\" d=\"M")), "{class} is not drawn");
    }
    assert!(dom.contains("<b>step 100</b><div>each step 0.4</div>"), "no values under the pointer");
    assert!(!log.contains("CONSOLE"), "{log}");
}
