//! Which adapters are there, and which of them a name means. It must never open one, nor take another than the name
//! says: what cannot be had is an error that lists what can.

use super::DeviceError;

/// What is known of an adapter before it is opened.
#[derive(Clone, Debug)]
pub struct AdapterInfo {
    /// The driver's name for it.
    pub name: String,
    /// `Vulkan`, `Metal` or `Dx12`.
    pub backend: String,
    /// `discrete GPU`, `integrated GPU`, `virtual GPU`, `software` or `other`.
    pub kind: &'static str,
    /// Driver, and its version as the driver writes it.
    pub driver: String,
    /// Limits that matter to tile programs: name and value (bytes, counts).
    pub limits: Vec<(&'static str, u64)>,
    /// Features that matter to tile programs: name and what there is of it (`no` where there is nothing).
    pub features: Vec<(&'static str, String)>,
}

/// What a name means here.
pub enum Choice {
    /// The embedded device.
    Host,
    /// The f64 oracle.
    Oracle,
    /// An adapter.
    Adapter(Box<Found>),
}

/// An adapter that can be opened.
pub struct Found {
    pub(super) adapter: wgpu::Adapter,
    info: wgpu::AdapterInfo,
}

impl Found {
    /// True for an adapter whose shaders run on the CPU.
    pub fn is_cpu(&self) -> bool {
        self.info.device_type == wgpu::DeviceType::Cpu
    }

    /// Its name and backend, for people.
    pub fn title(&self) -> String {
        format!("{} ({}, {})", self.info.name, kind(self.info.device_type), self.info.backend)
    }

    fn is_hardware(&self) -> bool {
        use wgpu::DeviceType::{DiscreteGpu, IntegratedGpu, VirtualGpu};
        matches!(self.info.device_type, DiscreteGpu | IntegratedGpu | VirtualGpu)
    }

    fn describe(&self) -> AdapterInfo {
        AdapterInfo {
            name: self.info.name.clone(),
            backend: self.info.backend.to_string(),
            kind: kind(self.info.device_type),
            driver: format!("{} {}", self.info.driver, self.info.driver_info).trim().into(),
            limits: limits(&self.adapter.limits()),
            features: features(&self.adapter, &self.info),
        }
    }
}

/// What the name means here, and why, in words that can be followed by the name of the device.
///
/// # Errors
/// [`DeviceError::NotFound`] lists what is there.
pub fn choose(name: &str) -> Result<(Choice, String), DeviceError> {
    let asked = || format!("{name} was asked for");
    let missing = |found: &[Found]| DeviceError::NotFound { wanted: name.into(), found: listing(found) };
    let take = |mut found: Vec<Found>, fits: &dyn Fn(&Found) -> bool| match found.iter().position(fits) {
        Some(at) => Ok(found.swap_remove(at)),
        None => Err(missing(&found)),
    };
    let found = match name {
        "host" => return Ok((Choice::Host, asked())),
        "oracle" => return Ok((Choice::Oracle, asked())),
        "auto" => {
            return Ok(match take(adapters(), &Found::is_hardware) {
                Ok(found) => {
                    let reason = format!("auto: a {} answers", kind(found.info.device_type));
                    (Choice::Adapter(Box::new(found)), reason)
                }
                Err(_) => (Choice::Host, "auto: no hardware adapter answers".into()),
            });
        }
        "gpu" => take(adapters(), &|f| !f.is_cpu())?,
        "software" => take(adapters(), &Found::is_cpu)?,
        _ => {
            let part = name.strip_prefix("gpu:").filter(|part| !part.is_empty()).map(str::to_lowercase);
            let part = part.ok_or_else(|| missing(&adapters()))?;
            take(adapters(), &|f| f.info.name.to_lowercase().contains(&part))?
        }
    };
    Ok((Choice::Adapter(Box::new(found)), asked()))
}

/// Every adapter that answers, in the order in which names choose.
pub fn list() -> Vec<AdapterInfo> {
    adapters().iter().map(Found::describe).collect()
}

/// Adapters of the native backends, discrete GPUs first. A machine without any driver or loader has none.
///
/// wgpu asks for the surfaces of Wayland wherever they are offered, and Mesa's implicit device-select layer then looks for
/// a compositor: without a session it prints a line on `XDG_RUNTIME_DIR`. Only the environment turns the layer off
/// (`NODEVICE_SELECT=1`), and that belongs to the user.
fn adapters() -> Vec<Found> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    // Not the defaults: DEBUG makes DX12 skip optimisation, VALIDATION_INDIRECT_CALL builds pipelines for indirect
    // dispatches, which this crate has none of, and lowers the limits of buffers.
    descriptor.flags = wgpu::InstanceFlags::empty();
    let instance = wgpu::Instance::new(descriptor);
    let mut found: Vec<Found> = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()))
        .into_iter()
        .map(|adapter| Found { info: adapter.get_info(), adapter })
        .collect();
    found.sort_by_key(|f| match f.info.device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    });
    found
}

fn listing(found: &[Found]) -> String {
    let named = found.iter().map(|f| match f.is_cpu() {
        true => format!("software ({})", f.info.name),
        false => format!("gpu:{}", f.info.name),
    });
    named.chain(["host".into(), "oracle".into()]).collect::<Vec<_>>().join(", ")
}

fn kind(device_type: wgpu::DeviceType) -> &'static str {
    match device_type {
        wgpu::DeviceType::DiscreteGpu => "discrete GPU",
        wgpu::DeviceType::IntegratedGpu => "integrated GPU",
        wgpu::DeviceType::VirtualGpu => "virtual GPU",
        wgpu::DeviceType::Cpu => "software",
        wgpu::DeviceType::Other => "other",
    }
}

fn limits(limits: &wgpu::Limits) -> Vec<(&'static str, u64)> {
    vec![
        ("buffer bytes", limits.max_buffer_size),
        ("binding bytes", limits.max_storage_buffer_binding_size),
        ("bindings of a program", limits.max_storage_buffers_per_shader_stage.into()),
        ("workgroup memory bytes", limits.max_compute_workgroup_storage_size.into()),
        ("invocations of a workgroup", limits.max_compute_invocations_per_workgroup.into()),
        ("workgroups of a dimension", limits.max_compute_workgroups_per_dimension.into()),
        ("alignment of a binding, bytes", limits.min_storage_buffer_offset_alignment.into()),
        ("immediate bytes", limits.max_immediate_size.into()),
    ]
}

fn features(adapter: &wgpu::Adapter, info: &wgpu::AdapterInfo) -> Vec<(&'static str, String)> {
    let there = adapter.features();
    let yes = |feature: wgpu::Features| if there.contains(feature) { "yes" } else { "no" }.to_string();
    let subgroups = match there.contains(wgpu::Features::SUBGROUP) {
        true => format!("{} to {}", info.subgroup_min_size, info.subgroup_max_size),
        false => "no".into(),
    };
    let matrices: Vec<String> = match there.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
        true => adapter
            .cooperative_matrix_properties()
            .iter()
            .map(|m| format!("{}x{}x{} {:?} to {:?}", m.m_size, m.n_size, m.k_size, m.ab_type, m.cr_type))
            .collect(),
        false => vec![],
    };
    vec![
        ("immediates", yes(wgpu::Features::IMMEDIATES)),
        ("f16", yes(wgpu::Features::SHADER_F16)),
        ("subgroups", subgroups),
        ("timestamps", yes(wgpu::Features::TIMESTAMP_QUERY)),
        ("cooperative matrix", if matrices.is_empty() { "no".into() } else { matrices.join(", ") }),
    ]
}
