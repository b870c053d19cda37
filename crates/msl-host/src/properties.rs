//! The device that every kernel is lowered for: an M1 as CubeCL's wgpu backend would describe it on macOS 15.
//!
//! Comptime code reads these properties (matrix shapes, subgroup size, shared memory), so the text equals a
//! Mac's only as far as they do. Each number names its source: wgpu-hal 30.0.1 (`metal/adapter.rs`),
//! cubecl-wgpu 0.11.3 (`runtime.rs`, `backend/metal.rs`) or Apple's Metal feature set tables.

use cubecl::ir::{AddressType, ElemType, FloatKind, IntKind, Type, UIntKind};
use cubecl_common::profile::TimingMethod;
use cubecl_cpp::metal::{arch::MetalArchitecture, supported_cmma_combinations_metal};
use cubecl_cpp::shared::register_wmma_features;
use cubecl_ir::features::{AtomicUsage, Features, Plane, TypeUsage};
use cubecl_ir::{DeviceIdentity, DeviceProperties, HardwareProperties, MemoryDeviceProperties};

/// Threadgroup memory of every Apple GPU (feature set tables, "Maximum total threadgroup memory allocation";
/// no family has more; wgpu-hal `metal/adapter.rs:1012`).
pub const THREADGROUP_BYTES: usize = 32 * 1024;

/// Threads of one threadgroup (feature set tables, Apple4 and later; wgpu-hal `metal/adapter.rs:997`).
pub const THREADS: u32 = 1024;

/// Threads of one simdgroup on Apple silicon (cubecl-wgpu `runtime.rs`, `apple_silicon`).
pub const SIMD_WIDTH: u32 = 32;

/// Buffers a kernel may bind: Metal's 31, less two that wgpu keeps (`MAX_USABLE_BUFFERS`, wgpu-hal
/// `metal/adapter.rs:1390`), less the one that cubecl-wgpu leaves to wgpu's buffer lengths (`runtime.rs`,
/// `max_bindings`).
pub const BINDINGS: u32 = 28;

/// Threadgroups along one grid axis (wgpu-hal `metal/adapter.rs:1446`).
pub const THREADGROUPS_PER_AXIS: u32 = 65_535;

/// Bytes of the largest buffer: wgpu's cap while it validates indirect calls, which it does unless told
/// otherwise (wgpu-core `instance.rs`).
const BUFFER_BYTES: u64 = u32::MAX as u64;

/// Offset alignment of a buffer: the larger of macOS' constant buffer alignment (wgpu-hal
/// `metal/adapter.rs:887`) and wgpu's 32 for storage buffers.
const BUFFER_ALIGNMENT: u64 = 256;

/// An M1: Apple7, macOS 15, native MSL. Mirrors `register_features` of cubecl-wgpu's `backend/metal.rs`.
pub fn apple_m1() -> DeviceProperties {
    let hardware = HardwareProperties {
        load_width: 128,
        vector_register_count: None,
        plane_size_min: SIMD_WIDTH,
        plane_size_max: SIMD_WIDTH,
        max_bindings: BINDINGS,
        max_shared_memory_size: THREADGROUP_BYTES,
        max_cube_count: (THREADGROUPS_PER_AXIS, THREADGROUPS_PER_AXIS, THREADGROUPS_PER_AXIS),
        max_units_per_cube: THREADS,
        max_cube_dim: (THREADS, THREADS, THREADS),
        num_streaming_multiprocessors: None,
        num_cpu_cores: None,
        last_level_cache_size: None,
        num_tensor_cores: None,
        min_tensor_cores_dim: None,
        max_vector_size: 4,
        cube_mma_reserved_shared_memory: 0,
    };
    let identity = DeviceIdentity { name: "Apple M1 (lowered, not run)".into(), ..DeviceIdentity::default() };
    let memory = MemoryDeviceProperties::new(BUFFER_BYTES, BUFFER_ALIGNMENT);
    let mut properties =
        DeviceProperties::new(Features::default(), memory, hardware, TimingMethod::System, identity);
    register_types(&mut properties);
    register_wmma_features(supported_cmma_combinations_metal(&MetalArchitecture::Metal3), &mut properties);
    properties.features.alignment = true;
    properties.features.device_memory_scope = true;
    properties.features.plane.insert(Plane::Ops);
    properties.features.plane.insert(Plane::Sync);
    properties.features.plane.insert(Plane::NonUniformControlFlow);
    properties
}

/// The same machine on macOS 14, where CubeCL lowers to WGSL. Mirrors `register_types` of cubecl-wgpu's
/// `backend/wgsl.rs`: no bfloat, no matrices, 32-bit indices.
pub fn apple_m1_before_macos_15() -> DeviceProperties {
    let mut properties = apple_m1();
    properties.features = Features::default();
    properties.register_address_type(AddressType::U32);
    let computed = [
        ElemType::Index,
        ElemType::UInt(UIntKind::U32),
        ElemType::Int(IntKind::I32),
        ElemType::Float(FloatKind::F16),
        ElemType::Float(FloatKind::F32),
        ElemType::Bool,
    ];
    for elem in computed {
        properties.register_type_usage(elem, TypeUsage::all());
    }
    properties
}

/// The same list as `register_types` of cubecl-wgpu's `backend/metal.rs`.
fn register_types(properties: &mut DeviceProperties) {
    properties.register_address_type(AddressType::U32);
    properties.register_address_type(AddressType::U64);
    let computed = [
        ElemType::Index,
        ElemType::UInt(UIntKind::U8),
        ElemType::UInt(UIntKind::U16),
        ElemType::UInt(UIntKind::U32),
        ElemType::UInt(UIntKind::U64),
        ElemType::Int(IntKind::I8),
        ElemType::Int(IntKind::I16),
        ElemType::Int(IntKind::I32),
        ElemType::Int(IntKind::I64),
        ElemType::Float(FloatKind::F16),
        ElemType::Float(FloatKind::BF16),
        ElemType::Float(FloatKind::F32),
        ElemType::Bool,
    ];
    for elem in computed {
        properties.register_type_usage(elem, TypeUsage::all());
    }
    for kind in [FloatKind::E4M3, FloatKind::E5M2, FloatKind::UE8M0, FloatKind::E2M1x2] {
        properties.register_type_usage(ElemType::Float(kind), TypeUsage::Conversion | TypeUsage::Buffer);
    }
    for elem in [ElemType::Int(IntKind::I32), ElemType::UInt(UIntKind::U32)] {
        properties.register_atomic_type_usage(Type::atomic(elem), AtomicUsage::all());
    }
    let float = Type::atomic(ElemType::Float(FloatKind::F32));
    properties.register_atomic_type_usage(float, AtomicUsage::Add | AtomicUsage::LoadStore);
}
