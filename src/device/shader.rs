//! From a kernel's declaration and shader file to the WGSL a driver sees, and what naga measures in it.
//!
//! A shader file is a shared part followed by sections begun by `//# entry NAME`; a kernel gets the shared part and its
//! own section, behind a prelude made from its declaration (`struct Params`, bindings, the variant's constants). Lines
//! that begin with `//#` are directives: `repeat i 0..N` ... `end` writes its lines once for each value with `${i}`
//! replaced (loops that drivers do not unroll), `if NAME` ... `else` ... `end` keeps lines when a constant is not 0.
//! `${...}` may hold sums and products of such names and integers. It must never know what a kernel computes.

use std::fmt::Write;

use super::kernel::{Access, Held, Kernel, Lane, Variant, Word};
use super::{DeviceError, Limits};

/// The WGSL of a kernel in a variant.
///
/// # Errors
/// [`DeviceError::Program`] with the line, when a directive is malformed or the section is missing.
pub fn expand(kernel: &Kernel, variant: &Variant) -> Result<String, DeviceError> {
    let fail = |reason: String| DeviceError::Program { program: kernel.name.into(), reason };
    let mut source = prelude(kernel, variant);
    let body: Vec<&str> = section(kernel).ok_or_else(|| fail("its shader file has no section of its name".into()))?;
    let mut names: Vec<(String, i64)> = variant.constants.iter().map(|(n, v)| (n.to_string(), i64::from(*v))).collect();
    block(&body, &mut names, &mut source).map_err(fail)?;
    Ok(source)
}

/// What a kernel takes of a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SramUse {
    /// Bytes of workgroup memory, measured by naga.
    pub workgroup: u32,
    /// Bytes of accumulators, as declared.
    pub accumulators: u32,
    /// Bytes of saved state, as declared.
    pub state: u32,
    /// All three, the high-water mark: what must fit the tile's SRAM.
    pub total: u32,
    /// Invocations of a workgroup.
    pub invocations: u32,
}

impl SramUse {
    /// Measures the expanded source of a kernel.
    ///
    /// # Errors
    /// [`DeviceError::Program`] with naga's words, when the source does not parse or validate.
    pub fn of(kernel: &Kernel, variant: &Variant, source: &str) -> Result<SramUse, DeviceError> {
        let (variables, invocations) = measure(kernel.name, source)?;
        let workgroup: u32 = variables.iter().map(|(_, bytes)| bytes).sum();
        let held = (kernel.held)(variant);
        let (Held { accumulators, state }, total) = (held, workgroup.saturating_add(held.total()));
        Ok(SramUse { workgroup, accumulators, state, total, invocations })
    }

    /// Holds it against a tile and an adapter, which wgpu does not do for workgroup memory.
    ///
    /// # Errors
    /// [`DeviceError::Sram`] with what is too small.
    pub fn check(&self, program: &str, limits: &Limits) -> Result<(), DeviceError> {
        let SramUse { workgroup, accumulators, state, .. } = self;
        let tile = format!(
            "tile SRAM ({workgroup} of workgroup memory, {accumulators} of accumulators, {state} of saved state)"
        );
        for (what, needed, available) in [
            (tile.as_str(), self.total, limits.tile_sram),
            ("the adapter's workgroup memory", self.workgroup, limits.workgroup_bytes),
            ("workgroup (invocations, not bytes)", self.invocations, limits.invocations),
        ] {
            if needed > available {
                let (what, needed, available) = (what.into(), needed.into(), available.into());
                return Err(DeviceError::Sram { program: program.into(), what, needed, available });
            }
        }
        Ok(())
    }
}

/// Bytes of workgroup memory that an entry point uses, each variable rounded up to 16 bytes as drivers do.
///
/// # Errors
/// [`DeviceError::Program`] with naga's words, when the source does not parse or validate.
pub fn workgroup_bytes(name: &str, source: &str) -> Result<u32, DeviceError> {
    Ok(workgroup_variables(name, source)?.into_iter().map(|(_, bytes)| bytes).sum())
}

/// The same, variable by variable, in the order of the source.
///
/// # Errors
/// As [`workgroup_bytes`].
pub fn workgroup_variables(name: &str, source: &str) -> Result<Vec<(String, u32)>, DeviceError> {
    measure(name, source).map(|(variables, _)| variables)
}

/// Variables in workgroup memory with their bytes, and number of invocations of an entry point.
fn measure(name: &str, source: &str) -> Result<(Vec<(String, u32)>, u32), DeviceError> {
    let fail = |reason: String| DeviceError::Program { program: name.into(), reason };
    let module = naga::front::wgsl::parse_str(source).map_err(|e| fail(e.emit_to_string(source)))?;
    let mut validator =
        naga::valid::Validator::new(naga::valid::ValidationFlags::all(), naga::valid::Capabilities::IMMEDIATES);
    let info = validator.validate(&module).map_err(|e| fail(e.emit_to_string(source)))?;
    let entry = module
        .entry_points
        .iter()
        .position(|e| e.name == name)
        .ok_or_else(|| fail("no entry point of its name".into()))?;
    let mut layouter = naga::proc::Layouter::default();
    layouter.update(module.to_ctx()).map_err(|e| fail(e.to_string()))?;
    let used = info.get_entry_point(entry);
    let variables = module
        .global_variables
        .iter()
        .filter(|(handle, var)| var.space == naga::AddressSpace::WorkGroup && !used[*handle].is_empty())
        .map(|(_, var)| (var.name.clone().unwrap_or_default(), layouter[var.ty].size.next_multiple_of(16)))
        .collect();
    Ok((variables, module.entry_points[entry].workgroup_size.iter().product()))
}

fn prelude(kernel: &Kernel, variant: &Variant) -> String {
    let mut out = String::from("struct Params {\n    groups: u32,\n");
    for (name, word) in kernel.params {
        let ty = if *word == Word::U32 { "u32" } else { "f32" };
        let _ = writeln!(out, "    {name}: {ty},");
    }
    out.push_str("}\nvar<immediate> p: Params;\n");
    for (i, b) in kernel.bindings.iter().enumerate() {
        let ty = match b.lane {
            Lane::F32 => "f32",
            Lane::Vec4 => "vec4<f32>",
            Lane::U32 => "u32",
        };
        let access = if b.access == Access::Read { "read" } else { "read_write" };
        let _ = writeln!(out, "@group(0) @binding({i}) var<storage, {access}> {}: array<{ty}>;", b.name);
    }
    for (name, value) in variant.constants {
        let _ = writeln!(out, "const {name}: u32 = {value}u;");
    }
    out
}

/// The shared part of the file and the kernel's own section.
fn section<'a>(kernel: &Kernel) -> Option<Vec<&'a str>>
where
    Kernel: 'a,
{
    let (mut lines, mut inside, mut found) = (Vec::new(), true, false);
    for line in kernel.wgsl.lines() {
        if let Some(name) = line.trim().strip_prefix("//# entry ") {
            inside = name.trim() == kernel.name;
            found |= inside;
        } else if inside {
            lines.push(line);
        }
    }
    found.then_some(lines)
}

/// Writes lines, carrying out directives; `names` are the constants and the counters of the repeats around.
fn block(lines: &[&str], names: &mut Vec<(String, i64)>, out: &mut String) -> Result<(), String> {
    let mut at = 0;
    while at < lines.len() {
        let Some(directive) = lines[at].trim().strip_prefix("//#") else {
            out.push_str(&substitute(lines[at], names)?);
            out.push('\n');
            at += 1;
            continue;
        };
        let words: Vec<&str> = directive.split_whitespace().collect();
        let (middle, end) = extent(lines, at)?;
        match words.as_slice() {
            ["repeat", counter, range] => {
                let (from, to) = range.split_once("..").ok_or(format!("{directive}: wants FROM..TO"))?;
                for i in value(from, names)?..value(to, names)? {
                    names.push(((*counter).into(), i));
                    block(&lines[at + 1..end], names, out)?;
                    names.pop();
                }
            }
            ["if", condition] => {
                let kept = if value(condition, names)? != 0 {
                    &lines[at + 1..middle.unwrap_or(end)]
                } else {
                    &lines[middle.map_or(end, |m| m + 1)..end]
                };
                block(kept, names, out)?;
            }
            _ => return Err(format!("unknown directive: {directive}")),
        }
        at = end + 1;
    }
    Ok(())
}

/// Where the directive at `at` has its `else` (if any) and its `end`.
fn extent(lines: &[&str], at: usize) -> Result<(Option<usize>, usize), String> {
    let (mut depth, mut middle) = (0, None);
    for (i, line) in lines.iter().enumerate().skip(at) {
        match line.trim().strip_prefix("//#").map(|d| d.split_whitespace().next().unwrap_or("")) {
            Some("repeat" | "if") => depth += 1,
            Some("else") if depth == 1 => middle = Some(i),
            Some("end") => {
                depth -= 1;
                if depth == 0 {
                    return Ok((middle, i));
                }
            }
            _ => {}
        }
    }
    Err(format!("no end for: {}", lines[at].trim()))
}

fn substitute(line: &str, names: &[(String, i64)]) -> Result<String, String> {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("${") {
        let (expression, tail) = after.split_once('}').ok_or(format!("unclosed ${{ in: {line}"))?;
        out.push_str(before);
        let _ = write!(out, "{}", value(expression, names)?);
        rest = tail;
    }
    out.push_str(rest);
    Ok(out)
}

/// A sum of products of names and integers.
fn value(expression: &str, names: &[(String, i64)]) -> Result<i64, String> {
    let atom = |word: &str| {
        let word = word.trim();
        word.parse()
            .ok()
            .or_else(|| names.iter().rev().find(|(n, _)| n == word).map(|(_, v)| *v))
            .ok_or(format!("unknown name {word:?} in {expression:?}"))
    };
    expression.split('+').map(|term| term.split('*').map(atom).product::<Result<i64, String>>()).sum()
}
