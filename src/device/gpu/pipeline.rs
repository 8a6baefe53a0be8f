//! From a kernel to a pipeline, and from views to a bind group: both made once and kept. It must never know what a
//! kernel computes.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::sync::Arc;

use super::GpuBuffer;
use super::faults::{self, Faults};
use crate::device::kernel::{Access, Kernel, Lane, Launch, Variant};
use crate::device::{DeviceError, Limits, Result, SramUse, shader};

/// A compiled kernel.
pub struct Pipeline {
    pub raw: wgpu::ComputePipeline,
    layout: wgpu::BindGroupLayout,
    number: u64,
}

/// How pipelines of a device are made.
pub struct Compiler {
    pub device: wgpu::Device,
    pub faults: Arc<Faults>,
    /// Bindings that a program may have.
    pub max_bindings: u32,
    /// Compile without run-time checks; whoever opened the device vouches for every kernel it gets.
    pub trusted: bool,
}

/// Pipelines by the addresses of kernel and variant: both live as long as the program, and a checker's altered copy of a
/// kernel has the name of the original but not its address.
#[derive(Default)]
pub struct Pipelines(HashMap<(usize, usize), Arc<Pipeline>>);

impl Pipelines {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The pipeline of a kernel in a variant, compiled where it is not there yet.
    pub fn get(
        &mut self,
        compiler: &Compiler,
        kernel: &'static Kernel,
        variant: &'static Variant,
        limits: &Limits,
    ) -> Result<Arc<Pipeline>> {
        let key = (std::ptr::from_ref(kernel).addr(), std::ptr::from_ref(variant).addr());
        if let Some(pipeline) = self.0.get(&key) {
            return Ok(pipeline.clone());
        }
        let pipeline = Arc::new(compiler.compile(kernel, variant, limits, self.0.len() as u64)?);
        self.0.insert(key, pipeline.clone());
        Ok(pipeline)
    }
}

impl Compiler {
    fn compile(&self, kernel: &Kernel, variant: &Variant, limits: &Limits, number: u64) -> Result<Pipeline> {
        let source = shader::expand(kernel, variant)?;
        SramUse::of(kernel, variant, &source)?.check(kernel.name, limits)?;
        if kernel.bindings.len() > self.max_bindings as usize {
            return Err(DeviceError::Sram {
                program: kernel.name.into(),
                what: "bindings (a count, not bytes)".into(),
                needed: kernel.bindings.len() as u64,
                available: self.max_bindings.into(),
            });
        }
        let label = Some(kernel.name);
        self.faults.scoped(
            &self.device,
            |error| faults::refused(kernel.name, error),
            || {
                let module = self.module(kernel.name, source);
                let layout = self.layout(kernel);
                let pipeline_layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                    label,
                    bind_group_layouts: &[Some(&layout)],
                    immediate_size: 4 * (1 + kernel.params.len() as u32),
                });
                let raw = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                    label,
                    layout: Some(&pipeline_layout),
                    module: &module,
                    entry_point: label,
                    compilation_options: wgpu::PipelineCompilationOptions {
                        constants: &[],
                        zero_initialize_workgroup_memory: false,
                    },
                    cache: None,
                });
                Pipeline { raw, layout, number }
            },
        )
    }

    fn module(&self, name: &str, source: String) -> wgpu::ShaderModule {
        let descriptor =
            wgpu::ShaderModuleDescriptor { label: Some(name), source: wgpu::ShaderSource::Wgsl(source.into()) };
        if !self.trusted {
            return self.device.create_shader_module(descriptor);
        }
        // Divisions keep their guards: they are rare in tile programs, and cost little.
        let checks = wgpu::ShaderRuntimeChecks {
            bounds_checks: false,
            force_loop_bounding: false,
            ..wgpu::ShaderRuntimeChecks::checked()
        };
        // Safety: `trusted` comes from `Device::open_trusted` alone, whose caller vouches that every kernel launched
        // stays inside its views and its workgroup arrays and that its loops end. For the kernels of this crate the
        // test-suite proves it: each runs, in every case, between sentinels with these checks on, and a trusted device
        // gives equal bits.
        unsafe { self.device.create_shader_module_trusted(descriptor, checks) }
    }

    fn layout(&self, kernel: &Kernel) -> wgpu::BindGroupLayout {
        let entries: Vec<_> = kernel
            .bindings
            .iter()
            .zip(0..)
            .map(|(b, binding)| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Storage { read_only: b.access == Access::Read },
                    has_dynamic_offset: false,
                    // Stated, so that the size is held against it once per bind group, not at each dispatch.
                    min_binding_size: NonZeroU64::new(if b.lane == Lane::Vec4 { 16 } else { 4 }),
                },
                count: None,
            })
            .collect();
        self.device
            .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(kernel.name), entries: &entries })
    }
}

/// Bind groups of one generation; when it is full it becomes the old one, and what is still used moves on.
const GENERATION: usize = 4096;

/// Bind groups by pipeline and views: those used among the last [`GENERATION`] new ones, at least.
#[derive(Default)]
pub struct BindGroups {
    young: HashMap<Box<[u64]>, wgpu::BindGroup>,
    old: HashMap<Box<[u64]>, wgpu::BindGroup>,
    key: Vec<u64>,
}

impl BindGroups {
    /// The bind group of a launch whose views lie in `buffers`.
    pub fn get(
        &mut self,
        compiler: &Compiler,
        pipeline: &Pipeline,
        launch: &Launch<'_>,
        buffers: &[&GpuBuffer],
    ) -> Result<wgpu::BindGroup> {
        self.key.clear();
        self.key.push(pipeline.number);
        for (view, buffer) in launch.views.iter().zip(buffers) {
            self.key.extend([buffer.number, view.offset as u64, view.len as u64]);
        }
        if let Some(group) = self.young.get(self.key.as_slice()) {
            return Ok(group.clone());
        }
        let group = match self.old.remove(self.key.as_slice()) {
            Some(group) => group,
            None => compiler.bind(pipeline, launch, buffers)?,
        };
        if self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(self.key.as_slice().into(), group.clone());
        Ok(group)
    }

    /// Forgets every bind group of buffers that are gone: it would keep their memory.
    pub fn forget(&mut self, buffers: &[u64]) {
        let gone = |key: &[u64]| key[1..].iter().step_by(3).any(|number| buffers.contains(number));
        self.young.retain(|key, _| !gone(key));
        self.old.retain(|key, _| !gone(key));
    }
}

impl Compiler {
    fn bind(&self, pipeline: &Pipeline, launch: &Launch<'_>, buffers: &[&GpuBuffer]) -> Result<wgpu::BindGroup> {
        let name = launch.kernel.name;
        let entries: Vec<_> = launch
            .views
            .iter()
            .zip(buffers)
            .zip(0..)
            .map(|((view, buffer), binding)| wgpu::BindGroupEntry {
                binding,
                resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer: &buffer.raw,
                    offset: view.offset as u64 * 4,
                    size: NonZeroU64::new(view.len as u64 * 4),
                }),
            })
            .collect();
        self.faults.scoped(
            &self.device,
            |error| faults::typed(name, 0, error),
            || {
                self.device.create_bind_group(&wgpu::BindGroupDescriptor {
                    label: Some(name),
                    layout: &pipeline.layout,
                    entries: &entries,
                })
            },
        )
    }
}
