//! Memory and order: what is uploaded comes back; launches, uploads and exchanges take effect in the order queued.

use super::fixture::{STEP, filled, step, words};
use crate::rig;
use gaufre::device::{Buffer, Elem, Transfer};

#[test]
fn uploads_come_back_at_any_offset_and_length() {
    for device in rig::devices("round trips") {
        let buffer = device.buffer("bytes", Elem::U32, 3000).unwrap();
        assert_eq!(
            device.download_ids(&buffer.all()).unwrap(),
            vec![0; 3000],
            "{}: new buffers are zero",
            device.name()
        );
        let mut want = vec![0; 3000];
        for (offset, len) in [(0, 1), (1, 63), (65, 64), (129, 1000), (2999, 1), (1500, 0)] {
            let part = words(len);
            device.upload(&buffer.view(offset, len), &part).unwrap();
            want[offset..offset + len].copy_from_slice(&part);
            assert_eq!(device.download_ids(&buffer.view(offset, len)).unwrap(), part);
        }
        assert_eq!(device.download_ids(&buffer.all()).unwrap(), want, "{}", device.name());
    }
}

#[test]
fn transfers_longer_than_the_staging_ring_pass_in_pieces() {
    for device in rig::devices("long transfers") {
        let long = words((70 << 20) / 4 + 3);
        let buffer = filled(&device, "long", &long);
        assert!(device.download_ids(&buffer.all()).unwrap() == long, "{}", device.name());
    }
}

#[test]
fn uploads_launches_and_exchanges_keep_their_order() {
    const LEN: usize = 500;
    for device in rig::devices("order") {
        let (x, y) = (filled(&device, "x", &words(LEN)), filled(&device, "y", &words(LEN)));
        let (mut x_want, mut y_want) = (words(LEN), words(LEN));
        for round in 0..1500u32 {
            step(&device, &STEP, round, &x, &y).unwrap();
            y_want.iter_mut().zip(&x_want).for_each(|(y, x)| *y = y.wrapping_mul(round).wrapping_add(*x));
            if round % 3 == 0 {
                device.upload(&x.view(7, 2), &[round, !round]).unwrap();
                (x_want[7], x_want[8]) = (round, !round);
            }
            if round % 5 == 0 {
                device.exchange(&[block(&y, 10, 20, &x, 100, 25, 4, 16)]).unwrap();
                for row in 0..4 {
                    x_want[100 + row * 25..][..16].copy_from_slice(&y_want[10 + row * 20..][..16]);
                }
            }
        }
        assert_eq!(device.download_ids(&y.all()).unwrap(), y_want, "{}", device.name());
        assert_eq!(device.download_ids(&x.all()).unwrap(), x_want, "{}", device.name());
    }
}

#[test]
fn launches_of_more_groups_than_a_dimension_holds_reach_every_element() {
    for device in rig::devices("folded groups") {
        let len = 65535 * 64 + 64 + 1;
        let (x, y) = (filled(&device, "x", &words(len)), device.buffer("y", Elem::U32, len).unwrap());
        step(&device, &STEP, 3, &x, &y).unwrap();
        assert!(device.download_ids(&y.all()).unwrap() == words(len), "{}", device.name());
    }
}

#[test]
fn dropped_buffers_leave_queued_work_alone() {
    for device in rig::devices("dropped buffers") {
        let y = filled(&device, "y", &[0; 64]);
        for round in 0..300 {
            let x = filled(&device, "x", &[round; 64]);
            step(&device, &STEP, 1, &x, &y).unwrap();
        }
        assert_eq!(device.download_ids(&y.all()).unwrap(), [300 * 299 / 2; 64], "{}", device.name());
    }
}

#[test]
fn the_device_counts_what_it_did() {
    for device in rig::devices("counters") {
        let start = device.counters();
        let (x, y) = (filled(&device, "x", &words(96)), filled(&device, "y", &words(96)));
        for _ in 0..3 {
            step(&device, &STEP, 2, &x, &y).unwrap();
        }
        device.exchange(&[block(&x, 0, 8, &y, 0, 16, 3, 5), block(&x, 0, 96, &y, 0, 96, 1, 96)]).unwrap();
        device.download_ids(&y.view(3, 7)).unwrap();
        let now = device.counters();
        let counted = now.since(&start);
        assert_eq!((counted.dispatches, counted.messages), (3, 2), "{}", device.name());
        assert_eq!(counted.exchanged_bytes, (3 * 5 + 96) * 4);
        assert_eq!((counted.uploaded_bytes, counted.downloaded_bytes), (2 * 96 * 4, 7 * 4));
        assert_eq!((counted.allocations, now.allocated_bytes - start.allocated_bytes), (2, 2 * 96 * 4));
        drop((x, y));
        assert_eq!(device.counters().allocated_bytes, start.allocated_bytes);
    }
}

#[expect(clippy::too_many_arguments, reason = "a block is two places and a size")]
fn block(
    source: &Buffer,
    source_offset: usize,
    source_stride: usize,
    target: &Buffer,
    target_offset: usize,
    target_stride: usize,
    rows: usize,
    cols: usize,
) -> Transfer {
    Transfer {
        source: source.clone(),
        source_offset,
        source_stride,
        target: target.clone(),
        target_offset,
        target_stride,
        rows,
        cols,
    }
}
