//! Every program, in every variant, fits the portable budget of a tile; every class has a variant.

use gaufre::device::{ALL_CLASSES, Class, DEFAULT_TILE_SRAM, SramUse, expand, workgroup_variables};
use gaufre::program;

/// Workgroup memory that every adapter has which this crate is for.
const WORKGROUP: u32 = 32 * 1024;

#[test]
fn every_program_fits_a_tile_in_every_variant() {
    for program in program::all() {
        let kernel = &program.kernel;
        assert!(kernel.bindings.len() <= 8, "{}: {} bindings", kernel.name, kernel.bindings.len());
        assert!(kernel.params.len() <= 31, "{}: {} words", kernel.name, kernel.params.len());
        for class in ALL_CLASSES {
            kernel.variant(*class);
        }
        for variant in kernel.variants.iter().filter(|v| v.classes.iter().any(|c| *c != Class::Native)) {
            let source = expand(kernel, variant).unwrap();
            let used = SramUse::of(kernel, variant, &source).unwrap();
            let name = format!("{} {}", kernel.name, variant.name);
            assert!(used.workgroup <= WORKGROUP, "{name}: {used:?}");
            assert!(used.total <= DEFAULT_TILE_SRAM, "{name}: {used:?}");
            assert!(used.invocations <= 256, "{name}: {used:?}");
            let variables = workgroup_variables(kernel.name, &source).unwrap();
            assert!(
                variables.iter().all(|(variable, bytes)| !variable.is_empty() && *bytes > 0),
                "{name}: {variables:?}"
            );
            assert_eq!(variables.iter().map(|(_, bytes)| bytes).sum::<u32>(), used.workgroup, "{name}");
            assert_eq!(used.invocations, variant.get("WG"), "{name}: WG is not the workgroup's size");
        }
    }
}

#[test]
fn names_of_programs_and_variants_are_unique() {
    let mut names = std::collections::HashSet::new();
    for program in program::all() {
        assert!(names.insert(program.kernel.name), "two programs are called {}", program.kernel.name);
        let variants: std::collections::HashSet<_> = program.kernel.variants.iter().map(|v| v.name).collect();
        assert_eq!(variants.len(), program.kernel.variants.len(), "{}", program.kernel.name);
    }
}
