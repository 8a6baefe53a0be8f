//! `gaufre devices`: what there is on this machine to train on.

use std::io::Write;
use std::process::ExitCode;

use crate::device::{AdapterInfo, list};
use crate::report::device::{bytes, simd};

/// The verb has no flags.
#[derive(clap::Args)]
pub struct Args {}

/// Prints a table of the devices, then limits and features of each adapter.
pub fn run(_: &Args) -> anyhow::Result<ExitCode> {
    write!(std::io::stdout(), "{}", table(&list(), cores(), &simd()))?;
    Ok(ExitCode::SUCCESS)
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn table(adapters: &[AdapterInfo], threads: usize, simd: &str) -> String {
    let mut rows = vec![
        ["--device", "name", "kind", "backend", "driver"].map(String::from),
        ["host".into(), format!("{threads} threads, {simd}"), "native".into(), "f32".into(), "none needed".into()],
        ["oracle", "the references, slow", "native", "f64", "none needed"].map(String::from),
    ];
    for a in adapters {
        rows.push([flag(a), a.name.clone(), a.kind.into(), a.backend.clone(), a.driver.clone()]);
    }
    let widths: [usize; 5] =
        std::array::from_fn(|i| rows.iter().map(|r| r[i].chars().count()).max().unwrap_or_default());
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    for a in adapters {
        let limits: Vec<String> = a.limits.iter().map(|(name, value)| limit(name, *value)).collect();
        let features: Vec<String> = a.features.iter().map(|(name, there)| format!("{name} {there}")).collect();
        text.push_str(&format!(
            "\n{}\n  limits: {}\n  features: {}\n",
            flag(a),
            limits.join(", "),
            features.join(", ")
        ));
    }
    if adapters.is_empty() {
        text.push_str("\nNo GPU answers, nor a software adapter: install a Vulkan driver to have one.\n");
    }
    text
}

/// What to type to have the adapter.
fn flag(adapter: &AdapterInfo) -> String {
    match adapter.kind {
        "software" => "software".into(),
        _ => format!("gpu:{}", adapter.name),
    }
}

/// A limit for people: bytes in their unit.
fn limit(name: &str, value: u64) -> String {
    match name.contains("byte") {
        true => format!("{} {}", name.replace(", bytes", "").replace(" bytes", ""), bytes(value)),
        false => format!("{name} {value}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_is_listed_with_what_to_type() {
        let adapter = AdapterInfo {
            name: "Some GPU".into(),
            backend: "Vulkan".into(),
            kind: "discrete GPU",
            driver: "some driver 1.2".into(),
            limits: vec![("binding bytes", 1 << 27), ("bindings of a program", 8)],
            features: vec![("f16", "yes".into())],
        };
        let text = table(&[adapter], 3, "AVX-512");
        assert!(text.contains("gpu:Some GPU  Some GPU              discrete GPU  Vulkan   some driver 1.2"), "{text}");
        assert!(text.contains("limits: binding 128 MiB, bindings of a program 8\n  features: f16 yes"), "{text}");
        assert!(text.contains("host          3 threads, AVX-512"), "{text}");
        assert!(table(&[], 1, "").contains("No GPU answers"));
    }
}
