//! The device under test, its name, and the limits that results are measured against.

use crate::measure::{Clocks, Timer, Times};
use crate::options::DeviceChoice;
use anyhow::{Context, Result, anyhow};
use conv_kernels::{FloatType, Limits};
use cubecl::device::WgpuDeviceKind;
use cubecl::prelude::*;
use cubecl::server::Handle;
use cubecl::std::throughput::measure_peak_throughput;
use cubecl::throughput::compute_throughput_key;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// An opened device. Burn's device of the same kind shares its queue, so both are timed by the same clock.
pub(crate) struct Device {
    pub(crate) client: Client,
    pub(crate) burn: burn::tensor::Device,
    pub(crate) limits: Limits,
    /// What the adapter calls itself.
    pub(crate) name: String,
    /// Runtime and shader language.
    pub(crate) backend: &'static str,
    /// Whether it is no card but a program on the CPU.
    pub(crate) software: bool,
}

impl Device {
    /// Opens the chosen adapter.
    pub(crate) fn open(choice: DeviceChoice) -> Result<Self> {
        let kind = match choice {
            DeviceChoice::Default => WgpuDeviceKind::DefaultDevice,
            DeviceChoice::Software => WgpuDeviceKind::Cpu,
        };
        #[cfg(feature = "vulkan")]
        let open = cubecl::Device::vulkan;
        #[cfg(not(feature = "vulkan"))]
        let open = cubecl::Device::wgpu;
        let missing = match choice {
            DeviceChoice::Default => {
                "no GPU was found; `--device software` runs on the CPU through a software adapter"
            }
            DeviceChoice::Software => {
                "no software adapter was found (Debian and Ubuntu: `apt-get install mesa-vulkan-drivers`)"
            }
        };
        let device = open(kind).map_err(|error| anyhow!("{missing} ({error})"))?;
        let client = device.client();
        let identity = &client.properties().identity;
        Ok(Self {
            limits: Limits::of(&client),
            name: identity.name.clone(),
            backend: client.name(),
            software: identity.physical.is_none(),
            burn: burn::tensor::Device::new(device),
            client,
        })
    }

    /// The adapter's name as a folder name.
    pub(crate) fn slug(&self) -> String {
        // What stands in parentheses is the driver's business.
        let name = self.name.split('(').next().unwrap_or_default().trim().to_lowercase();
        let words = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
        words.collect::<Vec<_>>().join("-")
    }
}

/// What the device can do at most, as measured at the start of a run.
#[derive(Clone, Debug)]
pub(crate) struct Roofline {
    /// Bytes per second of a plain copy, reads and writes counted.
    pub(crate) copy: f64,
    /// What a launch of a kernel that does nothing takes.
    pub(crate) launch: Times,
    /// Operations per second per storage type: matrix units where they take it, fused multiply-adds
    /// elsewhere.
    pub(crate) compute: Vec<(FloatType, f64)>,
}

impl Roofline {
    /// Measures the device.
    pub(crate) fn measure(device: &Device, clocks: Option<Rc<Clocks>>) -> Result<Self> {
        let copy = copy_bandwidth(device, clocks.clone())?;
        let launch = empty_launch(device, clocks)?;
        // The probes are sized for a GPU and take minutes on a CPU.
        let compute = if device.software { Vec::new() } else { peaks(device) };
        Ok(Self { copy, launch, compute })
    }

    /// The shortest time in seconds that `work` can take, if the limit that binds it is known.
    pub(crate) fn bound(&self, work: &crate::bench::Work, dtype: FloatType) -> Option<f64> {
        let memory = work.bytes / self.copy;
        if work.memory_bound {
            return Some(memory);
        }
        let (_, peak) = self.compute.iter().find(|(of, _)| *of == dtype)?;
        Some(memory.max(work.flops / peak))
    }
}

fn peaks(device: &Device) -> Vec<(FloatType, f64)> {
    let f32 = FloatType::F32.elem();
    let peak = |dtype: &FloatType| {
        let matrices = &device.client.features().matmul.cmma;
        let takes = |m: &&cubecl::features::MmaConfig| {
            m.a_type == dtype.elem() && m.b_type == dtype.elem() && m.cd_type == f32
        };
        // The largest tile, then plain arithmetic, which is fp32 whatever the storage type.
        let tile = matrices.iter().filter(takes).max_by_key(|m| m.m * m.n * m.k).map(|m| (m.m, m.n, m.k));
        let measured = |tile: Option<(u32, u32, u32)>| {
            let input = if tile.is_some() { dtype.elem() } else { f32 };
            let key = compute_throughput_key(tile, input, f32);
            measure_peak_throughput(&device.client, key).ok().map(|value| value.ops_per_s())
        };
        let best = [tile.and_then(|tile| measured(Some(tile))), measured(None)].into_iter().flatten();
        best.filter(|peak| peak.is_finite()).reduce(f64::max).map(|peak| (*dtype, peak))
    };
    device.limits.dtypes.iter().filter_map(peak).collect()
}

/// Vectors of four fp32 numbers.
const VECTOR: usize = 4;

#[cube(launch_unchecked)]
fn copy_kernel<N: Size>(source: &[Vector<f32, N>], target: &mut [Vector<f32, N>]) {
    if ABSOLUTE_POS < target.len() {
        target[ABSOLUTE_POS] = source[ABSOLUTE_POS];
    }
}

/// A launch of the copy kernel over two buffers of `bytes` bytes.
fn copy(device: &Device, source: Handle, target: Handle, bytes: usize) -> impl Fn() + use<> {
    let client = device.client.clone();
    let units = 256;
    let vectors = bytes / (4 * VECTOR);
    let cubes = vectors.div_ceil(units);
    let axis = device.limits.cubes_per_axis as usize;
    let count = CubeCount::Static(cubes.min(axis) as u32, cubes.div_ceil(axis) as u32, 1);
    move || {
        // SAFETY: both buffers hold `vectors` vectors, and the kernel checks its index against the target's
        // length.
        unsafe {
            copy_kernel::launch_unchecked(
                &client,
                count.clone(),
                CubeDim::new_1d(units as u32),
                VECTOR,
                BufferArg::from_raw_parts(source.clone(), vectors),
                BufferArg::from_raw_parts(target.clone(), vectors),
            );
        }
    }
}

/// Rounds of four multiply-adds that a unit of the constant work computes.
const ROUNDS: u32 = 8192;

#[cube(launch_unchecked)]
fn constant_work(target: &mut [f32], rounds: u32) {
    let start = f32::cast_from(UNIT_POS);
    let factor = 0.5f32;
    let (mut a, mut b, mut c, mut d) = (start, start + 1.0, start + 2.0, start + 3.0);
    for _ in 0..rounds {
        a = fma(a, factor, start);
        b = fma(b, factor, start);
        c = fma(c, factor, start);
        d = fma(d, factor, start);
    }
    target[ABSOLUTE_POS] = a + b + c + d;
}

/// Multiply-adds whose time depends on the device's clocks only.
pub(crate) fn clocks(device: &Device) -> Clocks {
    let client = device.client.clone();
    let units = 256;
    let cubes = device.limits.cubes_in_flight.min(device.limits.cubes_per_axis as usize);
    let target = client.empty(4 * cubes * units);
    let launch = move || {
        // SAFETY: the target holds an element for each unit.
        unsafe {
            constant_work::launch_unchecked(
                &client,
                CubeCount::Static(cubes as u32, 1, 1),
                CubeDim::new_1d(units as u32),
                BufferArg::from_raw_parts(target.clone(), cubes * units),
                ROUNDS,
            );
        }
    };
    Clocks { launch: Box::new(launch), best: Cell::new(f64::INFINITY), low: Cell::new(0) }
}

/// Bytes per second that a plain copy kernel moves: what bandwidth-bound ops are measured against.
fn copy_bandwidth(device: &Device, clocks: Option<Rc<Clocks>>) -> Result<f64> {
    let client = &device.client;
    // Large enough that a launch's beginning and end do not count: 256 MiB gave 3.25 TB/s on an H200 that
    // copies at 4.2.
    let bytes = if device.software { 16 << 20 } else { (1 << 30).min(device.limits.buffer_bytes as usize) };
    let data: Vec<u8> = (0..bytes).map(|index| index as u8).collect();
    let (source, target) = (client.create_from_slice(&data), client.empty(bytes));
    let launch = copy(device, source, target.clone(), bytes);
    launch();
    let copied = client.read_one(target.clone()).context("the copy kernel failed")?;
    anyhow::ensure!(
        copied[..] == data[..],
        "the copy kernel copied wrong bytes: this device cannot be measured"
    );
    let times = time(device, clocks, &launch).map_err(|error| anyhow!("copy kernel: {error}"))?;
    Ok(2.0 * bytes as f64 / (times.best().median * 1e-3))
}

#[cube(launch_unchecked)]
fn empty_kernel(target: &mut [f32]) {
    if ABSOLUTE_POS > target.len() {
        target[0] = 0.0f32;
    }
}

/// What is left of a launch when nothing is computed: no row of a small case can be below it.
fn empty_launch(device: &Device, clocks: Option<Rc<Clocks>>) -> Result<Times> {
    let target = device.client.empty(256);
    let launch = || {
        // SAFETY: nothing is written, since no thread's position is beyond the target's length.
        unsafe {
            empty_kernel::launch_unchecked(
                &device.client,
                CubeCount::Static(1, 1, 1),
                CubeDim::new_1d(64),
                BufferArg::from_raw_parts(target.clone(), 64),
            );
        }
    };
    time(device, clocks, &launch).map_err(|error| anyhow!("empty kernel: {error}"))
}

/// Times a probe.
fn time(device: &Device, clocks: Option<Rc<Clocks>>, launch: &dyn Fn()) -> Result<Times, String> {
    let warm_up = Duration::from_millis(if device.software { 0 } else { 500 });
    let timer = Timer { client: device.client.clone(), samples: 15, warm_up, clocks };
    let run = |()| {
        launch();
        Ok(())
    };
    timer.time(|| Ok(()), run, || Ok(()))
}
