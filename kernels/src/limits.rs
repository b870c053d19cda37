//! What a device allows, as plain data: plans are functions of it and can be tested without a device.

use crate::dtype::FloatType;
use cubecl::features::TypeUsage;
use cubecl::ir::{AddressType, ElemType, UIntKind};
use cubecl::prelude::*;

/// A device's limits and the budgets that plans keep.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Cubes per grid axis. Never above 65,535 (wgpu's Metal and WebGPU value; some Vulkan drivers report
    /// more and then fail).
    pub cubes_per_axis: u32,
    /// Units of one cube.
    pub units_per_cube: u32,
    /// Bytes of one cube's shared memory. Never above 32 KiB, Apple's limit, so that what runs here runs
    /// there.
    pub shared_bytes: usize,
    /// Buffers that one kernel can bind, that of its arguments included.
    pub bindings: usize,
    /// Bytes of the largest buffer a kernel can bind.
    pub buffer_bytes: u64,
    /// Elements up to which 32-bit offsets are used. Offsets are compared as signed numbers in some kernels,
    /// hence 2^31 - 1; less serves tests of the kernels with 64-bit offsets.
    pub narrow_elements: usize,
    /// Whether 64-bit element offsets can be had (WGSL: no).
    pub wide_index: bool,
    /// Iterations that all loops of one thread may make together, where the device ends them silently: Mesa's
    /// software driver (llvmpipe) leaves every loop once 65,535 are spent, a loop of n iterations taking n +
    /// 1 of them. `None` on real devices.
    pub loop_iterations: Option<usize>,
    /// Storage types the device serves.
    pub dtypes: Vec<FloatType>,
    /// Whether a 32-bit word can be taken for two 16-bit floats, so that eight of them move as four words.
    /// WGSL's compiler does not translate that; it is also the one without 16-bit integers.
    pub halves_in_words: bool,
    /// Arithmetic operations of one dispatch; larger work is split, into dispatches that fill the device, if
    /// need be with up to ten times as many. 25 GFLOP is 20 ms on an M1-class GPU, below what the macOS
    /// watchdog kills while a display is active. On NVIDIA, where 25 GFLOP are over before the device is full
    /// (7 % of Winograd's time on an H200), ten times that: 50 ms on the smallest of them.
    pub dispatch_operations: f64,
    /// Whether the longest inner loops are unrolled here: NVIDIA's driver wants it. Apple's compiler takes
    /// very long over unrolled code and unrolls by itself; a software device compiles it for seconds per
    /// kernel.
    pub unroll: bool,
    /// Matrix units with fp32 accumulators: the type of what they multiply and the rows, columns and terms of
    /// a fragment.
    pub matrices: Vec<(FloatType, usize)>,
    /// Cubes that keep the device busy: sums are split until there are so many.
    pub cubes_in_flight: usize,
    /// Bytes of workspace a plan may ask for beyond inputs and outputs.
    pub workspace_bytes: u64,
    /// Arithmetic operations that the device does in the time of moving a byte: 41 TFLOP/s of the engine
    /// beside 4.07 TB/s of a copy on an H200; 2.6 TFLOP/s beside 68 GB/s on an M1, which the devices that
    /// were not measured share.
    pub operations_per_byte: f64,
}

impl Limits {
    /// The limits of the device behind `client`.
    pub fn of(client: &Client) -> Self {
        let properties = client.properties();
        let hardware = &properties.hardware;
        let (x, y, z) = hardware.max_cube_count;
        let nvidia = properties.identity.name.contains("NVIDIA");
        let software = properties.identity.name.contains("llvmpipe");
        Self {
            cubes_per_axis: x.min(y).min(z).min(65_535),
            units_per_cube: hardware.max_units_per_cube.min(1024),
            shared_bytes: hardware.max_shared_memory_size.min(32 * 1024),
            bindings: hardware.max_bindings as usize,
            buffer_bytes: properties.memory.max_page_size,
            wide_index: properties.supports_address(AddressType::U64),
            dtypes: FloatType::ALL.into_iter().filter(|dtype| dtype.served_by(client)).collect(),
            loop_iterations: software.then_some(60_000),
            halves_in_words: properties
                .type_usage(ElemType::UInt(UIntKind::U16))
                .contains(TypeUsage::Arithmetic),
            unroll: nvidia,
            dispatch_operations: if nvidia { 250e9 } else { 25e9 },
            matrices: matrices(client),
            cubes_in_flight: if nvidia { 528 } else { 64 },
            operations_per_byte: if nvidia { 10.0 } else { 40.0 },
            ..Self::apple_m1()
        }
    }

    /// The smallest machine the project promises to serve: an M1 through wgpu's Metal backend.
    pub fn apple_m1() -> Self {
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
            dispatch_operations: 25e9,
            unroll: false,
            matrices: vec![(FloatType::F32, 8), (FloatType::F16, 8)],
            // Two cubes of 256 units for each of an M1 Max's 32 cores; four for each of an H200's 132
            // multiprocessors.
            cubes_in_flight: 64,
            workspace_bytes: 256 << 20,
            operations_per_byte: 40.0,
        }
    }
}

/// The square fragments that the device offers: the largest of each type.
fn matrices(client: &Client) -> Vec<(FloatType, usize)> {
    let offered = &client.properties().features.matmul.cmma;
    // The kernels count on 32 threads of a subgroup, whatever the driver chooses.
    let hardware = &client.properties().hardware;
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
    let types = FloatType::ALL.into_iter().filter(|dtype| subgroups && dtype.served_by(client));
    types.filter_map(largest).collect()
}
