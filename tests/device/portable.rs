//! Every program, in every variant, passes naga's writers for Vulkan, Metal and DX12 with the options that wgpu uses, so
//! that a break on a machine that is not here shows. It must never need a device.

use gaufre::device::{Class, Kernel, expand};
use gaufre::program;
use naga::back::{hlsl, msl, spv};
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};

#[test]
fn every_program_is_written_for_every_backend() {
    let mut written = 0;
    for program in program::all() {
        let kernel = &program.kernel;
        for variant in kernel.variants.iter().filter(|v| v.classes.iter().any(|c| *c != Class::Native)) {
            let source = expand(kernel, variant).unwrap();
            let module = naga::front::wgsl::parse_str(&source).unwrap();
            let info = Validator::new(ValidationFlags::all(), Capabilities::IMMEDIATES).validate(&module).unwrap();
            for checked in [true, false] {
                let name = format!("{} {} checked: {checked}", kernel.name, variant.name);
                spirv(kernel, &module, &info, checked).unwrap_or_else(|e| panic!("{name}: SPIR-V: {e}"));
                metal(kernel, &module, &info, checked).unwrap_or_else(|e| panic!("{name}: MSL: {e}"));
                direct_x(kernel, &module, &info, checked).unwrap_or_else(|e| panic!("{name}: HLSL: {e}"));
                written += 3;
            }
        }
    }
    assert!(written > 0, "no program was written");
}

fn policies(checked: bool) -> BoundsCheckPolicies {
    let policy = if checked { BoundsCheckPolicy::Restrict } else { BoundsCheckPolicy::Unchecked };
    BoundsCheckPolicies {
        index: policy,
        buffer: policy,
        image_load: policy,
        binding_array: BoundsCheckPolicy::Unchecked,
    }
}

/// As wgpu-hal for Vulkan 1.1, the oldest it takes, with the capabilities of a plain compute shader.
fn spirv(kernel: &Kernel, module: &naga::Module, info: &ModuleInfo, checked: bool) -> Result<(), String> {
    use spv::Capability::{Matrix, Shader};
    let options = spv::Options {
        lang_version: (1, 3),
        flags: spv::WriterFlags::LABEL_VARYINGS | spv::WriterFlags::FORCE_POINT_SIZE,
        fake_missing_bindings: false,
        binding_map: kernel_bindings(kernel)
            .map(|(i, b)| (b, spv::BindingInfo { descriptor_set: 0, binding: i, binding_array_size: None }))
            .collect(),
        capabilities: Some([Shader, Matrix].into_iter().collect()),
        bounds_check_policies: policies(checked),
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        force_loop_bounding: checked,
        ..Default::default()
    };
    let entry = spv::PipelineOptions { shader_stage: naga::ShaderStage::Compute, entry_point: kernel.name.into() };
    let words = spv::write_vec(module, info, &options, Some(&entry)).map_err(|e| e.to_string())?;
    if words.is_empty() { Err("nothing was written".into()) } else { Ok(()) }
}

/// As wgpu-hal for MSL 2.3 (macOS 11).
fn metal(kernel: &Kernel, module: &naga::Module, info: &ModuleInfo, checked: bool) -> Result<(), String> {
    let slots = kernel.bindings.len() as u8;
    let resources = msl::EntryPointResources {
        resources: kernel_bindings(kernel)
            .map(|(i, b)| (b, msl::BindTarget { buffer: Some(i as u8), mutable: true, ..Default::default() }))
            .collect(),
        immediates_buffer: Some(slots),
        sizes_buffer: Some(slots + 1),
    };
    let options = msl::Options {
        lang_version: (2, 3),
        per_entry_point_map: [(kernel.name.to_string(), resources)].into_iter().collect(),
        fake_missing_bindings: false,
        bounds_check_policies: policies(checked),
        zero_initialize_workgroup_memory: false,
        force_loop_bounding: checked,
        ..Default::default()
    };
    let entry = msl::PipelineOptions {
        entry_point: Some((naga::ShaderStage::Compute, kernel.name.into())),
        ..Default::default()
    };
    let (text, written) = msl::write_string(module, info, &options, &entry).map_err(|e| e.to_string())?;
    written.entry_point_names.iter().try_for_each(|n| n.as_ref().map(|_| ()).map_err(|e| e.to_string()))?;
    if text.contains(kernel.name) { Ok(()) } else { Err("the entry point is missing".into()) }
}

/// As wgpu-hal for FXC (shader model 5.1), the compiler that every Windows has.
fn direct_x(kernel: &Kernel, module: &naga::Module, info: &ModuleInfo, checked: bool) -> Result<(), String> {
    let target = |register: u32, space: u8| hlsl::BindTarget {
        register,
        space,
        restrict_indexing: checked,
        ..Default::default()
    };
    let options = hlsl::Options {
        shader_model: hlsl::ShaderModel::V5_1,
        binding_map: kernel_bindings(kernel).map(|(i, b)| (b, target(i, 0))).collect(),
        fake_missing_bindings: false,
        special_constants_binding: Some(target(1, 1)),
        immediates_target: Some(target(0, 1)),
        zero_initialize_workgroup_memory: false,
        restrict_indexing: checked,
        force_loop_bounding: checked,
        ..Default::default()
    };
    let entry = hlsl::PipelineOptions { entry_point: Some((naga::ShaderStage::Compute, kernel.name.into())) };
    let mut text = String::new();
    let written =
        hlsl::Writer::new(&mut text, &options, &entry).write(module, info, None).map_err(|e| e.to_string())?;
    written.entry_point_names.iter().try_for_each(|n| n.as_ref().map(|_| ()).map_err(|e| e.to_string()))?;
    if text.contains(kernel.name) { Ok(()) } else { Err("the entry point is missing".into()) }
}

fn kernel_bindings(kernel: &Kernel) -> impl Iterator<Item = (u32, naga::ResourceBinding)> {
    (0..kernel.bindings.len() as u32).map(|binding| (binding, naga::ResourceBinding { group: 0, binding }))
}
