//! What a device can run: the declaration of a kernel, its bindings, parameters and variants, and one launch of it.
//!
//! A [`Kernel`] carries everything at once (WGSL, native functions, bindings, parameters), so a device never knows a
//! program by name. The WGSL prelude (parameter struct, bindings, constants) is generated from this declaration: it is
//! written once, here, and a shader file holds only the code of the tile.

use super::buffer::{Elem, View};

/// Types of a parameter word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// `u32` in WGSL and Rust.
    U32,
    /// `f32` in WGSL and Rust.
    F32,
}

/// Types that can be a field of a parameter struct made with [`params!`](crate::params).
pub trait ParamWord {
    /// Its WGSL type.
    const WORD: Word;
}

impl ParamWord for u32 {
    const WORD: Word = Word::U32;
}

impl ParamWord for f32 {
    const WORD: Word = Word::F32;
}

/// Declares the parameters of a kernel: a plain struct of `u32` and `f32` fields, the list of its fields from which the
/// WGSL `struct Params` is generated, and `words()`, the fields as the words of a launch. In WGSL they are read as `p.NAME`,
/// beside `p.groups`, which every kernel has.
///
/// ```
/// gaufre::params! {
///     /// Parameters of a kernel that scales.
///     pub struct ScaleParams {
///         /// Elements.
///         len: u32,
///         /// What each is multiplied by.
///         factor: f32,
///     }
/// }
/// assert_eq!(ScaleParams::FIELDS[1].0, "factor");
/// assert_eq!(ScaleParams { len: 3, factor: 1.0 }.words(), [3, 1.0f32.to_bits()]);
/// ```
#[macro_export]
macro_rules! params {
    ($(#[$meta:meta])* $vis:vis struct $name:ident { $($(#[$fmeta:meta])* $field:ident : $ty:ty),* $(,)? }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, $crate::bytemuck::Pod, $crate::bytemuck::Zeroable)]
        #[bytemuck(crate = "::gaufre::bytemuck")]
        $vis struct $name { $($(#[$fmeta])* pub $field: $ty),* }

        impl $name {
            /// Names and types of the words, in order.
            pub const FIELDS: &'static [(&'static str, $crate::device::Word)] =
                &[$((stringify!($field), <$ty as $crate::device::ParamWord>::WORD)),*];

            /// The fields as words, in order.
            #[allow(dead_code)]
            pub fn words(&self) -> Vec<u32> {
                $crate::bytemuck::pod_collect_to_vec($crate::bytemuck::bytes_of(self))
            }
        }
    };
}

/// How a kernel sees one of its buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// `var<storage, read>`.
    Read,
    /// `var<storage, read_write>`.
    Write,
}

/// WGSL type of the elements of a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// `array<f32>`.
    F32,
    /// `array<vec4<f32>>`: offset and length of the view must be multiples of 4. Native code sees plain floats.
    Vec4,
    /// `array<u32>`.
    U32,
}

impl Lane {
    /// The element type of the buffer behind it.
    pub fn elem(self) -> Elem {
        match self {
            Lane::F32 | Lane::Vec4 => Elem::F32,
            Lane::U32 => Elem::U32,
        }
    }
}

/// One buffer of a kernel, in binding order.
#[derive(Clone, Copy, Debug)]
pub struct Binding {
    /// Name of the WGSL variable.
    pub name: &'static str,
    /// Element type.
    pub lane: Lane,
    /// Read or read and write.
    pub access: Access,
}

/// Shorthand for a read-only binding.
pub const fn read(name: &'static str, lane: Lane) -> Binding {
    Binding { name, lane, access: Access::Read }
}

/// Shorthand for a read-and-write binding.
pub const fn write(name: &'static str, lane: Lane) -> Binding {
    Binding { name, lane, access: Access::Write }
}

/// Which kind of machine a variant of a kernel is shaped for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// A GPU: many invocations, shared memory.
    Gpu,
    /// A WGSL adapter that runs on the CPU: few invocations, large register tiles.
    Software,
    /// Native code: `host` and the oracle.
    Native,
}

/// One shape of a kernel: named constants that become WGSL `const`s and are seen by `//# repeat` and `//# if`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant {
    /// Its name in tables and in the run folder.
    pub name: &'static str,
    /// The machines that it is for.
    pub classes: &'static [Class],
    /// Constants. `WG` is the number of invocations of a workgroup and must be there when the kernel has WGSL code.
    pub constants: &'static [(&'static str, u32)],
}

/// Every class.
pub const ALL_CLASSES: &[Class] = &[Class::Gpu, Class::Software, Class::Native];

impl Variant {
    /// The value of a constant.
    ///
    /// # Panics
    /// When the variant has no such constant.
    pub fn get(&self, name: &str) -> u32 {
        self.constants
            .iter()
            .find(|(n, _)| *n == name)
            .unwrap_or_else(|| panic!("variant {} has no constant {name}", self.name))
            .1
    }
}

/// A function that runs a kernel on the CPU, at one precision.
pub type NativeFn<F> = fn(&mut Args<'_, F>);

/// What one tile holds beside its workgroup memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Running sums in the registers of all lanes, while the tile runs.
    pub accumulators: u32,
    /// What the tile saves: what stays with it, or is handed on to the next tile, between supersteps.
    pub state: u32,
}

impl Held {
    /// Of a program whose tiles add nothing up and save nothing.
    pub const NOTHING: Held = Held { accumulators: 0, state: 0 };

    /// Both.
    pub fn total(&self) -> u32 {
        self.accumulators.saturating_add(self.state)
    }
}

/// A kernel: one entry point of a tile program.
pub struct Kernel {
    /// Unique name; also the name of the WGSL entry point.
    pub name: &'static str,
    /// The shader file's text: a shared part, then sections begun by `//# entry NAME`.
    pub wgsl: &'static str,
    /// Buffers, in binding order; at most 8.
    pub bindings: &'static [Binding],
    /// Parameter words after the implicit first one, `groups`; at most 31.
    pub params: &'static [(&'static str, Word)],
    /// Shapes; the first that names a device's class is the default there.
    pub variants: &'static [Variant],
    /// What one tile holds beside its workgroup memory.
    pub held: fn(&Variant) -> Held,
    /// The plain reference at f32.
    pub reference_f32: NativeFn<f32>,
    /// The plain reference at f64: the oracle.
    pub reference_f64: NativeFn<f64>,
    /// A faster kernel for the `host` device, where speed needs one.
    pub host: Option<NativeFn<f32>>,
}

impl Kernel {
    /// The same declaration again, to be altered: how checkers replace one function of it.
    pub fn copy(&self) -> Kernel {
        Kernel { ..*self }
    }

    /// The default variant for a class.
    ///
    /// # Panics
    /// When no variant names the class; a test holds every kernel against every class.
    pub fn variant(&self, class: Class) -> &'static Variant {
        self.variants
            .iter()
            .find(|v| v.classes.contains(&class))
            .unwrap_or_else(|| panic!("{}: no variant for {class:?}", self.name))
    }
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kernel({})", self.name)
    }
}

/// One launch of a kernel over `groups` tiles.
#[derive(Debug)]
pub struct Launch<'a> {
    /// What to run.
    pub kernel: &'static Kernel,
    /// Which shape of it.
    pub variant: &'static Variant,
    /// Number of workgroups; the device folds it over two dimensions where it exceeds one.
    pub groups: u32,
    /// Parameter words: the bytes of the kernel's parameter struct.
    pub params: &'a [u32],
    /// Views, in binding order.
    pub views: &'a [View],
}

/// What native code sees of a launch: parameters and the bound slices, in binding order.
pub struct Args<'a, F> {
    /// Number of tiles launched.
    pub groups: u32,
    /// The variant launched (block shapes for code that runs tile by tile).
    pub variant: &'static Variant,
    pub(super) words: &'a [u32],
    pub(super) slots: Vec<Slot<'a, F>>,
}

pub(super) enum Slot<'a, F> {
    Read(&'a [F]),
    Write(&'a mut [F]),
    ReadIds(&'a [u32]),
    WriteIds(&'a mut [u32]),
    Taken,
}

impl<'a, F> Args<'a, F> {
    /// The parameters, as the struct declared with [`params!`](crate::params).
    pub fn params<P: bytemuck::AnyBitPattern>(&self) -> P {
        bytemuck::pod_read_unaligned(bytemuck::cast_slice(self.words))
    }

    /// The floats of binding `i`, which must be read-only.
    pub fn read(&self, i: usize) -> &'a [F] {
        match self.slots[i] {
            Slot::Read(s) => s,
            _ => panic!("binding {i} is not a read-only float buffer"),
        }
    }

    /// The integers of binding `i`, which must be read-only.
    pub fn ids(&self, i: usize) -> &'a [u32] {
        match self.slots[i] {
            Slot::ReadIds(s) => s,
            _ => panic!("binding {i} is not a read-only integer buffer"),
        }
    }

    /// The floats of binding `i`, to write; each binding can be taken once.
    pub fn write(&mut self, i: usize) -> &'a mut [F] {
        match std::mem::replace(&mut self.slots[i], Slot::Taken) {
            Slot::Write(s) => s,
            _ => panic!("binding {i} is not a writable float buffer, or was taken twice"),
        }
    }

    /// The integers of binding `i`, to write; each binding can be taken once.
    pub fn write_ids(&mut self, i: usize) -> &'a mut [u32] {
        match std::mem::replace(&mut self.slots[i], Slot::Taken) {
            Slot::WriteIds(s) => s,
            _ => panic!("binding {i} is not a writable integer buffer, or was taken twice"),
        }
    }
}
