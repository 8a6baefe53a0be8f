//! The blank device: it holds calls against their declarations as others do, counts them, and gives zeros.

use super::fixture::{STEP, filled, step, words};
use gaufre::device::{Device, DeviceError, Elem, Launch, Transfer};
use gaufre::wafer::Cost;

fn devices() -> (Device, Device) {
    let host = Device::host(1).unwrap();
    (host.blank_like(), host)
}

#[test]
fn what_is_counted_is_what_a_device_counts() {
    let (blank, host) = devices();
    let counted = |device: &Device| {
        let (x, y) = (filled(device, "x", &words(100)), filled(device, "y", &words(100)));
        step(device, &STEP, 3, &x, &y).unwrap();
        let moved = Transfer {
            source: x.clone(),
            source_offset: 2,
            source_stride: 10,
            target: y.clone(),
            target_offset: 0,
            target_stride: 8,
            rows: 3,
            cols: 5,
        };
        device.exchange(&[moved]).unwrap();
        drop(device.buffer("short-lived", Elem::F32, 1000).unwrap());
        assert_eq!(device.download_ids(&y.all()).unwrap().len(), 100);
        device.counters()
    };
    let wanted = counted(&host);
    assert_eq!(counted(&blank), wanted);
    assert!(wanted.dispatches == 1 && wanted.messages == 1 && wanted.peak_bytes == 4800);
    assert_eq!(blank.take_ledger().total(), Cost { dispatches: 1, messages: 0, exchanged_bytes: 0 });
}

#[test]
fn nothing_is_kept_and_nothing_is_asked_for() {
    let (blank, _) = devices();
    let buffer = blank.buffer("huge", Elem::F32, 1 << 45).unwrap();
    assert_eq!(blank.counters().allocated_bytes, 1 << 47);
    let view = buffer.view(1 << 40, 3);
    blank.upload(&view, &[1.0f32; 3]).unwrap();
    assert_eq!(blank.download(&view).unwrap(), [0.0; 3]);
    blank.upload_with(&buffer.all(), &mut |_| panic!("there is nothing to fill")).unwrap();
    blank.download_with(&buffer.all(), &mut |_| panic!("there is nothing to show")).unwrap();
}

#[test]
fn wrong_calls_are_refused_as_elsewhere() {
    let (blank, host) = devices();
    let (x, y) = (filled(&blank, "x", &words(8)), filled(&blank, "y", &words(8)));
    let refused = |result: Result<(), DeviceError>| assert!(matches!(result, Err(DeviceError::Usage(_))), "{result:?}");
    refused(blank.upload(&x.all(), &[1u32; 7]));
    refused(blank.download(&x.all()).map(drop));
    refused(step(&blank, &STEP, 3, &x, &x));
    let strange = filled(&host, "of another device", &words(8));
    refused(step(&blank, &STEP, 3, &strange, &y));
    refused(step(&host, &STEP, 3, &x, &strange));
    let variant = STEP.variant(blank.class());
    refused(blank.launch(&Launch { kernel: &STEP, variant, groups: 1, params: &[8, 3], views: &[x.all()] }));
    let before = blank.counters().dispatches;
    step(&blank, &STEP, 3, &x, &y).unwrap();
    assert_eq!(blank.counters().dispatches, before + 1);
}

#[test]
#[should_panic(expected = "counts what it does")]
fn only_a_blank_device_is_told_what_it_counted() {
    Device::host(1).unwrap().count(&Cost { dispatches: 1, messages: 0, exchanged_bytes: 0 });
}
