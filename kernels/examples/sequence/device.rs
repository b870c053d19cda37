//! The device, tensors on it, what a row is checked against and how it is timed.

use conv_cases::fill;
use conv_kernels::{ConvError, FloatType, Limits, Operand};
use cubecl::future::block_on;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::server::Handle;
use half::{bf16, f16};
use std::time::Instant;

const SAMPLES: usize = 64;
const UNITS: usize = 256;

/// A tensor whose elements are a function of their index: multiples of 1/128 in -2..2, exact in every type.
#[derive(Clone, Copy)]
pub(crate) struct Field(pub(crate) u32);

impl Field {
    pub(crate) fn get(self, index: usize) -> f64 {
        let mixed = (index as u32).wrapping_add(self.0.wrapping_mul(0x3C6E_F372)).wrapping_mul(0x9E37_79B1);
        let mixed = (mixed ^ (mixed >> 15)).wrapping_mul(0x85EB_CA77);
        f64::from((mixed >> 23) as i32 - 256) / 128.0
    }

    pub(crate) fn on(self, client: &Client, shape: &[usize], dtype: FloatType) -> Operand {
        let out = empty(client, shape, dtype);
        let (count, extent) = cubes(out.len());
        // SAFETY: elements past the last are left out.
        unsafe {
            fill_kernel::launch_unchecked(
                client,
                count,
                CubeDim::new_1d(UNITS as u32),
                BufferArg::from_raw_parts(out.handle.clone(), extent),
                self.0,
                dtype.elem(),
            );
        }
        out
    }
}

#[cube(launch_unchecked)]
fn fill_kernel<E: Float>(out: &mut [E], seed: u32, #[define(E)] _dtype: ElemType) {
    if ABSOLUTE_POS < out.len() {
        let mixed = (ABSOLUTE_POS as u32 + seed * 0x3C6E_F372u32) * 0x9E37_79B1u32;
        let mixed = (mixed ^ (mixed >> 15u32)) * 0x85EB_CA77u32;
        out[ABSOLUTE_POS] = E::cast_from(f32::cast_from(i32::cast_from(mixed >> 23u32) - 256i32) / 128.0f32);
    }
}

#[cube(launch_unchecked)]
fn copy_kernel(from: &[Vector<f32, Const<4>>], to: &mut [Vector<f32, Const<4>>]) {
    if ABSOLUTE_POS < to.len() {
        to[ABSOLUTE_POS] = from[ABSOLUTE_POS];
    }
}

#[cube(launch_unchecked)]
fn empty_kernel(out: &mut [f32]) {
    if ABSOLUTE_POS > out.len() {
        out[0] = 0.0f32;
    }
}

/// As [`empty_kernel`], with as many buffers as a forward pass.
#[cube(launch_unchecked)]
fn empty_kernel_of_six(a: &[f32], b: &[f32], c: &[f32], d: &[f32], e: &[f32], out: &mut [f32]) {
    if ABSOLUTE_POS > out.len() {
        let at = ABSOLUTE_POS;
        out[0] = a[at] + b[at] + c[at] + d[at] + e[at];
    }
}

/// Elements of a tensor at the places in `at`.
#[cube(launch_unchecked)]
fn gather_kernel<E: Float>(from: &[E], at: &[u32], out: &mut [f32], #[define(E)] _dtype: ElemType) {
    if ABSOLUTE_POS < out.len() {
        out[ABSOLUTE_POS] = f32::cast_from(from[at[ABSOLUTE_POS] as usize]);
    }
}

fn cubes(length: usize) -> (CubeCount, usize) {
    let cubes = length.div_ceil(UNITS);
    let x = cubes.min(32_768);
    (CubeCount::Static(x as u32, cubes.div_ceil(x).max(1) as u32, 1), length)
}

pub(crate) fn empty(client: &Client, shape: &[usize], dtype: FloatType) -> Operand {
    Operand::contiguous(client.empty(shape.iter().product::<usize>() * dtype.size()), shape, dtype)
}

/// A tensor of NaN.
pub(crate) fn poisoned(client: &Client, shape: &[usize], dtype: FloatType) -> Operand {
    let out = empty(client, shape, dtype);
    let nan: Vec<u8> = match dtype {
        FloatType::F32 => f32::NAN.to_le_bytes().repeat(4),
        FloatType::F16 => f16::NAN.to_le_bytes().repeat(8),
        FloatType::Bf16 => bf16::NAN.to_le_bytes().repeat(8),
    };
    let vectors = (out.len() * dtype.size() / 16).max(1);
    let from = client.create_from_slice(&nan);
    let (count, _) = cubes(vectors);
    // SAFETY: vectors past the last are left out.
    unsafe {
        poison_kernel::launch_unchecked(
            client,
            count,
            CubeDim::new_1d(UNITS as u32),
            BufferArg::from_raw_parts(from, 1),
            BufferArg::from_raw_parts(out.handle.clone(), vectors),
        );
    }
    out
}

#[cube(launch_unchecked)]
fn poison_kernel(from: &[Vector<f32, Const<4>>], to: &mut [Vector<f32, Const<4>>]) {
    if ABSOLUTE_POS < to.len() {
        to[ABSOLUTE_POS] = from[0];
    }
}

fn at(client: &Client, operand: &Operand, places: &[usize]) -> Vec<f64> {
    let bytes: Vec<u8> = places.iter().flat_map(|place| (*place as u32).to_le_bytes()).collect();
    let places_on_device = client.create_from_slice(&bytes);
    let out = client.empty(places.len() * 4);
    let (count, length) = cubes(places.len());
    // SAFETY: the places are below the operand's length.
    unsafe {
        gather_kernel::launch_unchecked(
            client,
            count,
            CubeDim::new_1d(UNITS as u32),
            BufferArg::from_raw_parts(operand.handle.clone(), operand.len()),
            BufferArg::from_raw_parts(places_on_device, length),
            BufferArg::from_raw_parts(out.clone(), length),
            operand.dtype.elem(),
        );
    }
    f32::from_bytes(&client.read_one_unchecked(out)).iter().map(|value| f64::from(*value)).collect()
}

/// Microseconds of a run: of launches that follow each other, of handing a launch over without waiting, and
/// between the time stamps of the device.
#[derive(Clone, Copy)]
struct Times {
    wall: f64,
    handed: f64,
    device: f64,
}

/// The best of several windows of about 60 ms, for which waiting at the end does not count, of few launches
/// into an idle queue, and of time stamps around a few.
fn time(client: &Client, run: &dyn Fn() -> Result<(), ConvError>) -> Times {
    let wait = || block_on(client.sync()).expect("the device runs");
    let window = |repeats: usize, waits: bool| {
        let start = Instant::now();
        for _ in 0..repeats {
            run().expect("ran before");
        }
        if waits {
            wait();
        }
        let us = start.elapsed().as_secs_f64() * 1e6 / repeats as f64;
        wait();
        us
    };
    window(2, true);
    let repeats = (60_000.0 / window(8, true)).clamp(4.0, 4000.0) as usize;
    let best = |windows: usize, repeats: usize, waits: bool| {
        (0..windows).map(|_| window(repeats, waits)).fold(f64::INFINITY, f64::min)
    };
    let stamped = || {
        let profile = client.profile_start().ok()?;
        for _ in 0..STAMPED {
            run().expect("ran before");
        }
        let ticks = block_on(client.profile_end(profile).ok()?.resolve())?;
        Some(ticks.duration().as_secs_f64() * 1e6 / STAMPED as f64)
    };
    let device = (0..4).filter_map(|_| stamped()).fold(f64::INFINITY, f64::min);
    Times { wall: best(4, repeats, true), handed: best(8, 8, false), device }
}

/// Launches between two time stamps: what the queue takes before it is flushed.
const STAMPED: usize = 12;

/// Runs for so many milliseconds.
fn busy(client: &Client, milliseconds: u128, run: &dyn Fn() -> Result<(), ConvError>) {
    let start = Instant::now();
    while start.elapsed().as_millis() < milliseconds {
        for _ in 0..8 {
            run().expect("ran before");
        }
        block_on(client.sync()).expect("the device runs");
    }
}

/// Places of a tensor, the values that should be there and the sizes of their sums.
pub(crate) type Samples = Vec<(usize, f64, f64)>;

/// The device, and what it is measured against.
pub(crate) struct Bench {
    pub(crate) client: Client,
    pub(crate) limits: Limits,
    /// Bytes per microsecond: of launches that follow each other, and between time stamps.
    copy: f64,
    copy_on_device: f64,
    empty: f64,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let client = cubecl::Device::default().client();
        let limits = Limits { dispatch_operations: 1e15, ..Limits::of(&client) };
        println!("# {}", client.properties().identity.name);
        let bytes = 512 << 20;
        let from = Field(9).on(&client, &[bytes / 4], FloatType::F32).handle;
        let to = client.empty(bytes);
        let copy = || {
            let (count, vectors) = cubes(bytes / 16);
            // SAFETY: vectors past the last are left out.
            unsafe {
                copy_kernel::launch_unchecked(
                    &client,
                    count,
                    CubeDim::new_1d(UNITS as u32),
                    BufferArg::from_raw_parts(from.clone(), vectors),
                    BufferArg::from_raw_parts(to.clone(), vectors),
                );
            }
            Ok(())
        };
        let small = || few(&to);
        let nothing = || {
            // SAFETY: nothing is written.
            unsafe {
                let grid = CubeCount::Static(1, 1, 1);
                empty_kernel::launch_unchecked(&client, grid, CubeDim::new_1d(64), small());
            }
            Ok(())
        };
        let nothing_of_six = || {
            let inputs = || few(&from);
            // SAFETY: nothing is read or written.
            unsafe {
                let (grid, cube) = (CubeCount::Static(1, 1, 1), CubeDim::new_1d(64));
                let [a, b, c, d, e] = [(); 5].map(|()| inputs());
                empty_kernel_of_six::launch_unchecked(&client, grid, cube, a, b, c, d, e, small());
            }
            Ok(())
        };
        busy(&client, 1000, &copy);
        let times = time(&client, &copy);
        let [copy, copy_on_device] = [times.wall, times.device].map(|us| 2.0 * bytes as f64 / us);
        let places = places(bytes / 4, 1);
        let copied = at(&client, &Operand::contiguous(to.clone(), &[bytes / 4], FloatType::F32), &places);
        assert!(
            copied.iter().zip(&places).all(|(got, place)| *got == Field(9).get(*place)),
            "the copy is a copy"
        );
        let empty = time(&client, &nothing);
        println!("# copy {:.0} GB/s, between time stamps {:.0}", copy / 1e3, copy_on_device / 1e3);
        for (buffers, times) in [(1, empty), (6, time(&client, &nothing_of_six))] {
            let Times { wall, handed, device } = times;
            println!(
                "# empty launch, {buffers} buffers: {wall:.2} us, handed over in {handed:.2} us, on the device {device:.2} us"
            );
        }
        println!(
            "row,dtype,pass,us,GB/s,share_of_copy,of_empty_launch,handed_us,device_us,device_share,error"
        );
        let empty = empty.wall;
        Self { client, limits, copy, copy_on_device, empty }
    }

    /// Prints a row: `want` holds a tensor each with the places and values that its elements should have, and
    /// the sizes of the sums.
    pub(crate) fn row(
        &self,
        name: &str,
        bytes: usize,
        want: &[(&Operand, Samples)],
        run: &dyn Fn() -> Result<(), ConvError>,
    ) {
        if let Err(error) = run() {
            return println!("{name},refused: {error}");
        }
        let mut worst = 0.0f64;
        for (operand, samples) in want {
            let places: Vec<usize> = samples.iter().map(|sample| sample.0).collect();
            for (got, (_, value, size)) in at(&self.client, operand, &places).iter().zip(samples) {
                let bound =
                    (size * 1e-5).max(if operand.dtype == FloatType::F32 { 0.0 } else { size * 4e-3 });
                let error = (got - value).abs() / bound.max(1e-30);
                worst = if error.is_nan() { f64::INFINITY } else { worst.max(error) };
            }
        }
        if worst > 1.0 {
            return println!("{name},WRONG by {worst:.1e} of the bound");
        }
        // Compiling and checking have left the device idle, and an idle device lowers its clocks.
        busy(&self.client, 200, run);
        let Times { wall, handed, device } = time(&self.client, run);
        let rate = bytes as f64 / wall;
        println!(
            "{name},{wall:.2},{:.0},{:.3},{:.2},{handed:.2},{device:.2},{:.3},{worst:.1e}",
            rate / 1e3,
            rate / self.copy,
            wall / self.empty,
            bytes as f64 / device / self.copy_on_device
        );
    }
}

/// A buffer of a few elements.
fn few(handle: &Handle) -> BufferArg {
    // SAFETY: every buffer here has that many.
    unsafe { BufferArg::from_raw_parts(handle.clone(), 4) }
}

/// Places in a tensor: random ones, and the first and last.
pub(crate) fn places(length: usize, seed: u64) -> Vec<usize> {
    let random = (0..SAMPLES).map(|sample| fill::hash(seed, sample as u64) as usize % length);
    random.chain([0, length - 1, length.min(5) - 1]).collect()
}
