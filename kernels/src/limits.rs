//! Device limits as plain data: plans are functions of it and can be tested without a device.

use crate::chip::Chip;
use crate::dtype::FloatType;
use crate::error::ConvError;
use cubecl::features::TypeUsage;
use cubecl::ir::{AddressType, DeviceProperties, ElemType, UIntKind};
use cubecl::prelude::*;
use std::sync::{Arc, Mutex, PoisonError};

/// The limits of each device that was asked for, by its properties, which a device's clients share.
static OF_DEVICES: Mutex<Vec<(Arc<DeviceProperties>, Arc<Limits>)>> = Mutex::new(Vec::new());

/// A device's limits and the budgets of plans.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Threadgroups per grid axis. At most 65,535 (wgpu's value for Metal and WebGPU; some Vulkan drivers
    /// report more and then fail).
    pub cubes_per_axis: u32,
    /// Threads per threadgroup.
    pub units_per_cube: u32,
    /// Bytes of threadgroup memory. At most 32 KiB, Apple's limit, so that every plan runs there too.
    pub shared_bytes: usize,
    /// Buffers that one kernel can bind, its argument buffer included.
    pub bindings: usize,
    /// Bytes of the largest buffer a kernel can bind.
    pub buffer_bytes: u64,
    /// Elements up to which 32-bit offsets are used. Some kernels compare offsets as signed numbers, hence
    /// 2^31 - 1; tests of 64-bit offsets set less.
    pub narrow_elements: usize,
    /// Whether the device has 64-bit offsets (WGSL: no).
    pub wide_index: bool,
    /// Limit on the iterations of all loops of one thread, on devices that end loops silently: Mesa's
    /// software driver (llvmpipe) leaves every loop after 65,535, and a loop of n iterations counts as n + 1.
    /// `None` on real devices.
    pub loop_iterations: Option<usize>,
    /// Storage types that the device supports.
    pub dtypes: Vec<FloatType>,
    /// Whether a 32-bit word can be reinterpreted as two 16-bit floats, so that eight of them move as four
    /// words. WGSL's compiler cannot; it is also the only one without 16-bit integers, which is how it is
    /// recognised.
    pub halves_in_words: bool,
    /// FLOP of one dispatch. Larger work is split into dispatches of whole waves; a single wave may take up
    /// to ten times as many.
    pub dispatch_operations: f64,
    /// Whether the kernels unroll their longest inner loops, and GEMMs prefetch the next stage into
    /// registers. NVIDIA's driver needs both. Apple's compiler unrolls by itself and is slow on unrolled
    /// code, and its GPUs hide latency by occupancy; a software device compiles it for seconds per kernel.
    pub unroll: bool,
    /// MMA with fp32 accumulators: the input type, and the size (M = N = K) of a fragment.
    pub matrices: Vec<(FloatType, usize)>,
    /// Threadgroups in one wave, which fills the device: split-K aims at this count.
    pub cubes_in_flight: usize,
    /// Bytes of workspace a plan may ask for beyond inputs and outputs.
    pub workspace_bytes: u64,
    /// What the device does in a second.
    pub chip: Chip,
}

impl Limits {
    /// Refuses a storage type that the device lacks.
    ///
    /// # Errors
    /// [`ConvError::UnservedDtype`] whose sentence begins with `op`.
    pub fn check_dtype(&self, op: &str, dtype: FloatType) -> Result<(), ConvError> {
        if self.dtypes.contains(&dtype) {
            return Ok(());
        }
        let names: Vec<_> = self.dtypes.iter().map(|dtype| dtype.name()).collect();
        let (name, names) = (dtype.name(), names.join(", "));
        let message = format!("{op}: this device cannot hold {name} tensors, it serves {names}");
        Err(ConvError::UnservedDtype { dtype, served: self.dtypes.clone(), message })
    }

    /// The limits of the device behind `client`.
    pub fn of(client: &Client) -> Self {
        Self::of_properties(client.properties())
    }

    /// The limits of a device that CubeCL describes so. Its memory is the largest device-local heap through
    /// Vulkan, and what Metal recommends a program to stay below (`recommendedMaxWorkingSetSize`). Through
    /// WGSL none is reported: wgpu 30's `AdapterInfo` and limits name no capacity, and `max_page_size` bounds
    /// one buffer. Then the chip's table decides.
    pub(crate) fn of_properties(properties: &DeviceProperties) -> Self {
        let hardware = &properties.hardware;
        let (x, y, z) = hardware.max_cube_count;
        let nvidia = properties.identity.name.contains("NVIDIA");
        let software = properties.identity.name.contains("llvmpipe");
        let chip = Chip::of(&properties.identity.name);
        Self {
            cubes_per_axis: x.min(y).min(z).min(65_535),
            units_per_cube: hardware.max_units_per_cube.min(1024),
            shared_bytes: hardware.max_shared_memory_size.min(32 * 1024),
            bindings: hardware.max_bindings as usize,
            buffer_bytes: properties.memory.max_page_size,
            wide_index: properties.supports_address(AddressType::U64),
            dtypes: FloatType::ALL.into_iter().filter(|dtype| dtype.served_by(properties)).collect(),
            loop_iterations: software.then_some(60_000),
            halves_in_words: properties
                .type_usage(ElemType::UInt(UIntKind::U16))
                .contains(TypeUsage::Arithmetic),
            unroll: nvidia,
            dispatch_operations: chip.dispatch_operations,
            matrices: mma_fragments(properties),
            cubes_in_flight: chip.threadgroups,
            workspace_bytes: chip.workspace_of(properties.memory.max_memory()),
            chip,
            ..Self::apple_m1()
        }
    }

    /// [`Limits::of`], computed once for each device of the process: what calls by the thousand ask.
    pub fn shared(client: &Client) -> Arc<Self> {
        let properties = client.properties_shared();
        let mut known = OF_DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, limits)) = known.iter().find(|(of, _)| Arc::ptr_eq(of, &properties)) {
            return Arc::clone(limits);
        }
        let limits = Arc::new(Self::of(client));
        known.push((properties, Arc::clone(&limits)));
        limits
    }

    /// The smallest supported machine: an M1 through wgpu's Metal backend.
    pub fn apple_m1() -> Self {
        Self::apple("Apple M1")
    }

    /// An H200 through Vulkan and SPIR-V, as far as plans ask.
    pub fn h200() -> Self {
        let chip = Chip::of("NVIDIA H200");
        Self {
            dtypes: vec![FloatType::F32, FloatType::F16],
            dispatch_operations: chip.dispatch_operations,
            unroll: true,
            matrices: vec![(FloatType::F16, 16)],
            cubes_in_flight: chip.threadgroups,
            workspace_bytes: chip.workspace_bytes,
            chip,
            ..Self::apple_m1()
        }
    }

    /// A device by its name, for predictions without it: an H200 for NVIDIA's, else a Mac.
    pub fn named(name: &str) -> Self {
        let nvidia = name.contains("NVIDIA") || name.eq_ignore_ascii_case("h200");
        if nvidia { Self::h200() } else { Self::apple(name) }
    }

    /// A Mac with a chip of this name through wgpu's Metal backend.
    pub fn apple(name: &str) -> Self {
        let chip = Chip::of(name);
        Self {
            cubes_per_axis: 65_535,
            units_per_cube: 1024,
            shared_bytes: 32 * 1024,
            bindings: 28,
            buffer_bytes: 4 << 30,
            narrow_elements: i32::MAX as usize,
            wide_index: true,
            loop_iterations: None,
            halves_in_words: true,
            dtypes: FloatType::ALL.to_vec(),
            dispatch_operations: chip.dispatch_operations,
            unroll: false,
            matrices: vec![(FloatType::F32, 8), (FloatType::F16, 8)],
            cubes_in_flight: chip.threadgroups,
            workspace_bytes: chip.workspace_bytes,
            chip,
        }
    }
}

/// The device's square MMA fragments with fp32 accumulators: the largest of each input type.
fn mma_fragments(properties: &DeviceProperties) -> Vec<(FloatType, usize)> {
    let offered = &properties.features.matmul.cmma;
    // The kernels need subgroups of exactly 32 threads.
    let hardware = &properties.hardware;
    let subgroups = [hardware.plane_size_min, hardware.plane_size_max] == [32; 2];
    let square = |dtype: FloatType, size: u32| {
        offered.iter().any(|each| {
            [each.m, each.n, each.k] == [size; 3]
                && [each.a_type, each.b_type] == [dtype.elem(); 2]
                && each.cd_type == FloatType::F32.elem()
        })
    };
    let largest =
        |dtype| [16, 8].into_iter().find(|size| square(dtype, *size)).map(|size| (dtype, size as usize));
    let types = FloatType::ALL.into_iter().filter(|dtype| subgroups && dtype.served_by(properties));
    types.filter_map(largest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device_classes::{Adapter, adapters};

    /// Whatever an adapter's driver offers, these kernels take matrix units only with subgroups of exactly
    /// 32, and no more than every device has.
    #[test]
    fn adapters_are_what_their_drivers_describe() {
        for adapter in adapters() {
            let limits = Limits::of_properties(&adapter.properties());
            assert!(limits.matrices.is_empty() && !limits.unroll, "{adapter:?}");
            assert_eq!(limits.shared_bytes, adapter.shared_bytes.min(32 * 1024));
            assert_eq!((limits.units_per_cube, limits.buffer_bytes), (adapter.threads, adapter.buffer_bytes));
            assert_eq!((limits.wide_index, limits.halves_in_words), (adapter.spirv, adapter.spirv));
            assert_eq!(limits.dtypes.contains(&FloatType::F16), adapter.spirv);
            assert_eq!(limits.chip, Chip::of(adapter.name));
            assert_eq!(limits.cubes_in_flight, limits.chip.threadgroups);
            assert_eq!(limits.workspace_bytes, limits.chip.workspace_of(adapter.memory));
        }
        let workspaces =
            adapters().map(|adapter| Limits::of_properties(&adapter.properties()).workspace_bytes >> 20);
        assert_eq!(workspaces, [1024, 256, 512, 768, 256, 256, 256, 256]);
    }

    /// The sizes of subgroups alone decide: 8, 16, 64 and 128 have none, nor does a range that holds 32.
    #[test]
    fn matrix_units_need_subgroups_of_32() {
        for size in [8, 16, 32, 64, 128] {
            for subgroups in [[size; 2], [size, 2 * size], [size / 2, size]] {
                let adapter = Adapter { subgroups, fragments: true, ..adapters()[0] };
                let matrices = Limits::of_properties(&adapter.properties()).matrices;
                let fragments = if subgroups == [32; 2] { vec![(FloatType::F16, 16)] } else { Vec::new() };
                assert_eq!(matrices, fragments, "{subgroups:?}");
            }
        }
    }
}
