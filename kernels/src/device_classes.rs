//! Devices that lack something, as data: planning must find a plan on each, or refuse in one sentence.

use crate::dtype::FloatType;
use crate::limits::Limits;
use cubecl::features::{Features, MmaConfig, TypeUsage};
use cubecl::ir::{
    AddressType, DeviceIdentity, DeviceProperties, ElemType, FloatKind, HardwareProperties,
    MemoryDeviceProperties, UIntKind,
};
use cubecl::profile::TimingMethod;

/// WebGPU's defaults, small integrated GPUs, Vulkan drivers without matrix units or with subgroups of other
/// sizes than 32 (which have none for these kernels), a software driver, GPUs without 16-bit types; AMD's,
/// Intel's and Qualcomm's as their drivers describe them.
pub(crate) fn device_classes() -> Vec<Limits> {
    let m1 = Limits::apple_m1;
    let plain = || Limits { matrices: Vec::new(), ..m1() };
    let webgpu = || Limits {
        shared_bytes: 16 * 1024,
        units_per_cube: 256,
        bindings: 8,
        buffer_bytes: 128 << 20,
        wide_index: false,
        halves_in_words: false,
        ..plain()
    };
    let mut classes = vec![
        m1(),
        Limits::h200(),
        Limits { matrices: vec![(FloatType::F16, 16)], unroll: true, cubes_in_flight: 528, ..m1() },
        webgpu(),
        Limits { dtypes: vec![FloatType::F32], ..webgpu() },
        // 64-bit offsets and 16-bit pairs, but few bindings and small buffers.
        Limits { wide_index: true, halves_in_words: true, ..webgpu() },
        // Matrix units, but little threadgroup memory for their stages.
        Limits { shared_bytes: 16 * 1024, units_per_cube: 256, ..m1() },
        Limits { bindings: 8, ..m1() },
        Limits { wide_index: false, buffer_bytes: 128 << 20, ..plain() },
        Limits { wide_index: false, loop_iterations: Some(60_000), ..plain() },
        Limits { workspace_bytes: 1 << 20, buffer_bytes: 1 << 20, dtypes: vec![FloatType::F32], ..m1() },
    ];
    classes.extend(adapters().iter().map(|adapter| Limits::of_properties(&adapter.properties())));
    classes
}

/// An adapter as its driver describes it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Adapter {
    pub(crate) name: &'static str,
    /// The smallest and the largest subgroup.
    pub(crate) subgroups: [u32; 2],
    pub(crate) shared_bytes: usize,
    pub(crate) threads: u32,
    pub(crate) buffer_bytes: u64,
    pub(crate) memory: Option<u64>,
    /// Fragments of 16 for f16, as cooperative matrices offer them.
    pub(crate) fragments: bool,
    /// SPIR-V; else WGSL, which has no 64-bit offsets and no 16-bit integers.
    pub(crate) spirv: bool,
}

/// What a WebGPU adapter offers at least.
const LEAST: Adapter = Adapter {
    name: "",
    subgroups: [8, 128],
    shared_bytes: 16 * 1024,
    threads: 256,
    buffer_bytes: 128 << 20,
    memory: None,
    fragments: false,
    spirv: false,
};

/// Through Vulkan and through WGSL at its least, by vendor.
pub(crate) fn adapters() -> [Adapter; 8] {
    let vulkan = |name, subgroups, shared_kib: usize, gib: u64| Adapter {
        name,
        subgroups,
        shared_bytes: 1024 * shared_kib,
        threads: 1024,
        buffer_bytes: 2 << 30,
        memory: Some(gib << 30),
        spirv: true,
        ..LEAST
    };
    [
        // RDNA 3 and later have matrix instructions, of subgroups that are not always of 32.
        Adapter { fragments: true, ..vulkan("AMD Radeon RX 7900 XTX (RADV NAVI31)", [32, 64], 64, 24) },
        Adapter { name: "AMD Radeon 680M", subgroups: [32, 64], ..LEAST },
        vulkan("Intel(R) Iris(R) Xe Graphics (TGL GT2)", [8, 32], 64, 12),
        Adapter { fragments: true, ..vulkan("Intel(R) Arc(tm) A770 Graphics (DG2)", [8, 32], 64, 16) },
        Adapter { name: "Intel(R) UHD Graphics 630", subgroups: [8, 32], ..LEAST },
        vulkan("Adreno (TM) 740", [64, 128], 32, 6),
        Adapter { name: "Adreno (TM) 650", subgroups: [64, 64], ..LEAST },
        // An adapter that nobody knows.
        Adapter { name: "Mali-G715", subgroups: [16, 16], ..LEAST },
    ]
}

impl Adapter {
    /// As CubeCL's wgpu backend describes it.
    pub(crate) fn properties(&self) -> DeviceProperties {
        let axis = 65_535;
        let hardware = HardwareProperties {
            load_width: 128,
            vector_register_count: None,
            plane_size_min: self.subgroups[0],
            plane_size_max: self.subgroups[1],
            max_bindings: if self.spirv { 64 } else { 8 },
            max_shared_memory_size: self.shared_bytes,
            max_cube_count: (axis, axis, axis),
            max_units_per_cube: self.threads,
            max_cube_dim: (self.threads, self.threads, 64),
            num_streaming_multiprocessors: None,
            num_cpu_cores: None,
            last_level_cache_size: None,
            num_tensor_cores: None,
            min_tensor_cores_dim: None,
            max_vector_size: 4,
            cube_mma_reserved_shared_memory: 0,
        };
        let mut memory = MemoryDeviceProperties::new(self.buffer_bytes, 256);
        memory.set_max_memory(self.memory.unwrap_or(0));
        let identity = DeviceIdentity { name: self.name.into(), ..DeviceIdentity::default() };
        let mut properties =
            DeviceProperties::new(Features::default(), memory, hardware, TimingMethod::System, identity);
        properties.register_address_type(AddressType::U32);
        properties.register_type_usage(ElemType::Float(FloatKind::F32), TypeUsage::all());
        if self.spirv {
            properties.register_address_type(AddressType::U64);
            properties.register_type_usage(ElemType::Float(FloatKind::F16), TypeUsage::all());
            properties.register_type_usage(ElemType::UInt(UIntKind::U16), TypeUsage::all());
        }
        if self.fragments {
            let [half, single] = [FloatType::F16, FloatType::F32].map(FloatType::elem);
            let fragment = MmaConfig { a_type: half, b_type: half, cd_type: single, m: 16, n: 16, k: 16 };
            properties.features.matmul.cmma.insert(fragment);
        }
        properties
    }
}
