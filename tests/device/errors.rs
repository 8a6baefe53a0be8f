//! Errors of a device come back typed and name the program or the buffer; none panics, none is lost.

use super::fixture::{STEP, filled, step, words};
use crate::rig;
use gaufre::device::{
    ALL_CLASSES, Buffer, Class, Device, DeviceError, Elem, Held, Kernel, Launch, MAX_WORDS, Transfer, Variant, View,
    Word,
};

/// [`STEP`] with its text edited.
fn edited(from: &str, to: &str) -> &'static Kernel {
    assert!(STEP.wgsl.contains(from));
    Box::leak(Box::new(Kernel { wgsl: STEP.wgsl.replace(from, to).leak(), ..STEP.copy() }))
}

/// What a tile holds beside its workgroup memory: 16 KiB.
const HELD: Held = Held { accumulators: 6 * 1024, state: 10 * 1024 };

fn launched(device: &Device, kernel: &'static Kernel) -> Result<(), DeviceError> {
    let (x, y) = (filled(device, "x", &words(64)), filled(device, "y", &words(64)));
    step(device, kernel, 1, &x, &y)
}

#[test]
fn wgsl_that_does_not_compile_names_the_program_and_leaves_the_device_usable() {
    let Some(device) = rig::adapter("bad WGSL") else { return };
    for (from, to) in [
        ("let i =", "let i ="), // the control: unchanged text must run
        ("let i =", "let i = not_there +"),
        ("p.len", "p.length"),
        ("x[i];", "x[i]"),
        ("x[i];", "f32(x[i]);"),
        ("fn test_step", "fn other"),
        ("//# entry", "//# if UNKNOWN\n//# entry"),
        ("@workgroup_size(WG, 1, 1)", "@workgroup_size(0, 1, 1)"),
    ] {
        match launched(&device, edited(from, to)) {
            Ok(()) if from == to => {}
            Err(DeviceError::Program { program, reason }) if from != to => {
                assert_eq!(program, "test_step");
                assert!(!reason.is_empty());
            }
            other => panic!("{to}: {other:?}"),
        }
    }
    launched(&device, &STEP).expect("the device goes on after refused programs");
    device.wait().unwrap();
}

#[test]
fn what_does_not_fit_the_sram_is_refused_before_the_first_dispatch() {
    let source = |words: u32| {
        edited("    let i =", "    scratch[lane] = lane;\n    let i =").wgsl.replace(
            "//# entry test_step",
            &format!("var<workgroup> scratch: array<u32, {words}>;\n//# entry test_step"),
        )
    };
    for device in rig::devices("SRAM") {
        let tile = device.limits().tile_sram;
        let state = Box::leak(Box::new(Kernel { held: |_| Held { accumulators: 7, state: u32::MAX }, ..STEP.copy() }));
        expect_sram(launched(&device, state), tile.into(), &["7 of accumulators", "4294967295 of saved state"]);
        assert_eq!(device.counters().dispatches, 0, "{}: refused, yet counted", device.name());
        if device.class() == Class::Native {
            continue;
        }
        // 16 KiB held with the rest of the tile as workgroup memory fits; 16 bytes more do not.
        let room = (tile - 16 * 1024).min(device.limits().workgroup_bytes);
        let kernel = |bytes: u32| -> &'static Kernel {
            Box::leak(Box::new(Kernel { wgsl: source(bytes / 4).leak(), held: |_| HELD, ..STEP.copy() }))
        };
        launched(&device, kernel(room)).expect("fits exactly");
        // Where the adapter's workgroup memory is what ends first, the tile is not blamed.
        let parts: &[&str] = match room + 16 + HELD.total() > tile {
            true => &["of workgroup memory", "6144 of accumulators", "10240 of saved state"],
            false => &["the adapter's workgroup memory"],
        };
        expect_sram(launched(&device, kernel(room + 16)), tile.into(), parts);
        let used = device.sram(kernel(4096), &super::fixture::VARIANTS[0]).unwrap();
        assert_eq!((used.workgroup, used.accumulators, used.state), (4096, 6144, 10240));
        assert_eq!((used.total, used.invocations), (20480, 64));
    }
}

fn expect_sram(result: Result<(), DeviceError>, at_most: u64, parts: &[&str]) {
    match result {
        Err(DeviceError::Sram { program, what, needed, available }) => {
            assert!(parts.iter().all(|part| what.contains(part)), "{what}");
            assert_eq!(program, "test_step");
            assert!(needed > available && available <= at_most, "{needed} > {available}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn workgroups_larger_than_the_adapter_takes_are_refused() {
    let Some(device) = rig::adapter("invocations") else { return };
    static HUGE: [Variant; 1] = [Variant { name: "huge", classes: ALL_CLASSES, constants: &[("WG", 8192)] }];
    let kernel = Box::leak(Box::new(Kernel { variants: &HUGE, ..STEP.copy() }));
    match launched(&device, kernel) {
        Err(DeviceError::Sram { program, needed, .. }) => {
            assert_eq!((program.as_str(), needed), ("test_step", 8192))
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn buffers_beyond_the_binding_limit_are_refused_by_name() {
    let Some(device) = rig::adapter("oversize buffers") else { return };
    let limit = device.limits().binding_bytes.min(device.limits().buffer_bytes);
    match device.buffer("too large", Elem::F32, (limit / 4) as usize + 1) {
        Err(DeviceError::TooLarge { label, bytes, limit: said }) => {
            assert_eq!((label.as_str(), bytes, said), ("too large", limit / 4 * 4 + 4, limit));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn contracts_are_held_alike_by_every_device() {
    for device in rig::devices("contracts") {
        let (x, y) = (filled(&device, "x", &words(128)), filled(&device, "y", &words(128)));
        let refused = |result: Result<(), DeviceError>, part: &str| match result {
            Err(DeviceError::Usage(text)) => assert!(text.contains(part), "{}: {text}", device.name()),
            other => panic!("{}: {part}: {other:?}", device.name()),
        };
        // One buffer read and written in a launch, even where the ranges are apart.
        refused(step(&device, &STEP, 1, &x, &x), "a second time");
        let launch = |views: &[View], params: &[u32]| {
            let variant = STEP.variant(device.class());
            device.launch(&Launch { kernel: &STEP, variant, groups: 1, params, views })
        };
        refused(launch(&[x.view(0, 64), x.view(64, 64)], &[64, 1]), "a second time");
        refused(launch(&[x.all()], &[64, 1]), "1 views");
        refused(launch(&[x.all(), y.all()], &[64]), "1 words");
        refused(launch(&[x.all(), y.view(0, 0)], &[64, 1]), "empty");
        let floats = device.buffer("floats", Elem::F32, 128).unwrap();
        refused(launch(&[floats.all(), y.all()], &[64, 1]), "floats");
        // A buffer of another device of the same kind.
        let other = rig::devices("contracts").into_iter().find(|d| d.class() == device.class()).unwrap();
        let foreign = filled(&other, "foreign", &words(128));
        if device.class() != Class::Native {
            refused(step(&device, &STEP, 1, &foreign, &y), "another device");
        }
        static WORDS: [(&str, Word); MAX_WORDS + 1] = [("word", Word::U32); MAX_WORDS + 1];
        let wide: &'static Kernel = Box::leak(Box::new(Kernel { params: &WORDS, ..STEP.copy() }));
        let (variant, params, views) = (wide.variant(device.class()), [1; MAX_WORDS + 1], [x.all(), y.all()]);
        let launch = Launch { kernel: wide, variant, groups: 1, params: &params, views: &views };
        refused(device.launch(&launch), "32 parameter words");
        let moved = |target: &Buffer, rows: usize| {
            device.exchange(&[Transfer {
                source: x.clone(),
                source_offset: 0,
                source_stride: 16,
                target: target.clone(),
                target_offset: 0,
                target_stride: 16,
                rows,
                cols: 16,
            }])
        };
        refused(moved(&x, 1), "within one buffer");
        refused(moved(&floats, 1), "between types");
        refused(moved(&y, 9), "leaves its buffers");
        step(&device, &STEP, 1, &x, &y).expect("the device goes on after refused launches");
        assert!(device.download_ids(&y.all()).is_ok());
    }
}

#[test]
fn names_that_no_device_has_list_what_is_there() {
    for name in ["gpu:no such card", "gpu:", "cuda", ""] {
        match Device::open(name, 0).map(|d| d.name().to_string()) {
            Err(DeviceError::NotFound { wanted, found }) => {
                assert_eq!(wanted, name);
                assert!(found.contains("host"), "{found}");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
    if let Some(adapter) = rig::adapter("names") {
        let listed = gaufre::device::list();
        let found = listed.iter().find(|a| adapter.name().starts_with(&a.name)).expect("the adapter is listed");
        assert!(!found.limits.is_empty() && !found.features.is_empty() && !found.driver.is_empty());
        let by_name = Device::open(&format!("gpu:{}", found.name.to_uppercase()), 0).unwrap();
        assert_eq!(by_name.name(), adapter.name());
    }
    let auto = Device::open("auto", 2).unwrap();
    assert!(auto.why().starts_with("auto: ") && auto.why().ends_with(auto.name()), "{}", auto.why());
    assert_ne!(auto.class(), Class::Software, "auto must not take a software adapter");
}
