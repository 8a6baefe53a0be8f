//! A run that is killed at a random moment, interrupted, or meets a full disk, goes on to the same bits.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::desk::{Desk, assert_equal, left, refused};
use gaufre::program::initial::word;

const KILLS: u64 = if cfg!(feature = "slow") { 50 } else { 5 };

fn train(desk: &Desk, out: &str) -> Command {
    let new = ["train", "--model", "tiny.toml", "--data", "text", "--device", "host", "--threads", "1"];
    let sizes = ["--steps", "300", "--batch-size", "2", "--eval-every", "50", "--save-every", "3", "--out", out];
    let mut command = match desk.path(out).join("config.toml").exists() {
        true => desk.command(&["train", "--resume", out]),
        false => desk.command(&[new.as_slice(), &sizes].concat()),
    };
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn end(mut child: Child) -> Option<i32> {
    child.wait().expect("the command ends").code()
}

#[test]
fn killed_at_random_moments() {
    let desk = Desk::new();
    let clock = Instant::now();
    assert_eq!(end(train(&desk, "whole").spawn().unwrap()), Some(0));
    let length = clock.elapsed();
    let whole = left(&desk.path("whole"));
    let (mut equal, mut interrupted) = (0, 0);
    for trial in 0..KILLS {
        let out = format!("killed-{trial}");
        // Two kills each, so that a run which went on is killed too.
        for kill in 0..2 {
            let mut child = train(&desk, &out).spawn().unwrap();
            let share = f64::from(word(11, 2 * trial + kill)) / f64::from(u32::MAX);
            std::thread::sleep(length.mul_f64(share));
            interrupted += u64::from(child.try_wait().unwrap().is_none());
            // SIGKILL on Unix: nothing of the process runs any more.
            child.kill().unwrap();
            end(child);
        }
        assert_eq!(end(train(&desk, &out).spawn().unwrap()), Some(0), "{out}");
        assert_equal(&whole, &left(&desk.path(&out)), &out);
        let litter = fs::read_dir(desk.path(&out).join("checkpoints")).unwrap();
        let parts = litter.filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|e| e == "part"));
        assert_eq!(parts.count(), 0, "{out}: parts are left behind");
        equal += 1;
    }
    println!("{equal} of {KILLS} killed runs are equal, {interrupted} kills met a run at work");
    assert!(interrupted > KILLS / 2, "only {interrupted} kills met a run at work");
}

#[cfg(unix)]
#[test]
fn interrupted_by_a_person() {
    let desk = Desk::new();
    assert_eq!(end(train(&desk, "whole").spawn().unwrap()), Some(0));
    for (out, signal) in [("int", "-INT"), ("term", "-TERM")] {
        let child = train(&desk, out).spawn().unwrap();
        let metrics = desk.path(out).join("checkpoints");
        let clock = Instant::now();
        while !metrics.exists() && clock.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(1));
        }
        Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        assert_eq!(end(child), Some(130), "{out}");
        assert_eq!(end(train(&desk, out).spawn().unwrap()), Some(0));
        assert_equal(&left(&desk.path("whole")), &left(&desk.path(out)), out);
    }
}

/// A file may not grow beyond a few KiB, as on a disk that is full.
#[cfg(unix)]
#[test]
fn a_full_disk_ends_in_one_line() {
    let desk = Desk::new();
    assert_eq!(end(train(&desk, "whole").spawn().unwrap()), Some(0));
    for blocks in [0, 1, 4, 16, 32, 48] {
        let out = format!("full-{blocks}");
        let mut inner = train(&desk, &out);
        let line: Vec<String> = std::iter::once(inner.get_program())
            .chain(inner.get_args())
            .map(|word| format!("'{}'", word.to_string_lossy()))
            .collect();
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec {}", line.join(" "));
        let output = Command::new("sh").args(["-c", &script]).current_dir(desk.path("")).output().unwrap();
        let error = refused(&output);
        assert!(error.contains(&out) && error.contains("cannot write") || error.contains("--out"), "{error}");
        inner = train(&desk, &out);
        assert_eq!(end(inner.spawn().unwrap()), Some(0));
        assert_equal(&left(&desk.path("whole")), &left(&desk.path(&out)), &out);
    }
}
