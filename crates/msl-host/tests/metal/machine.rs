//! The executor itself: simdgroup matrices, exchange between lanes, rounding, and the faults that it reports.

use cubecl::cmma::{self, MatrixIdent, MatrixLayout};
use cubecl::prelude::*;
use half::{bf16, f16};
use msl_host::Recorder;

/// `c [m, n] = a [m, k] * b`, an 8 x 8 tile per simdgroup, two simdgroups per threadgroup; b is `[k, n]`, or
/// `[n, k]` read by columns.
#[cube(launch)]
fn matrix_product<I: Float, O: Float>(
    a: &[I],
    b: &[I],
    c: &mut [O],
    #[comptime] n: usize,
    #[comptime] k: usize,
    #[comptime] by_columns: bool,
) {
    let tile = (CUBE_POS_X * 2u32 + UNIT_POS / 32u32) as usize;
    let row = tile / comptime!(n / 8) * 8usize;
    let column = tile % comptime!(n / 8) * 8usize;
    let sum = cmma::Matrix::<O>::from_value(
        MatrixIdent::Accumulator,
        8usize,
        8usize,
        8usize,
        MatrixLayout::Undefined,
        O::new(0.0),
    );
    for step in 0..comptime!(k / 8) {
        let at = row * k + step * 8usize;
        let left = cmma::Matrix::<I>::from_slice(
            MatrixIdent::A,
            8usize,
            8usize,
            8usize,
            MatrixLayout::RowMajor,
            &a[at..a.len()],
            comptime!(k as u32),
        );
        if comptime!(by_columns) {
            let at = column * k + step * 8usize;
            let right = cmma::Matrix::<I>::from_slice(
                MatrixIdent::B,
                8usize,
                8usize,
                8usize,
                MatrixLayout::ColMajor,
                &b[at..b.len()],
                comptime!(k as u32),
            );
            cmma::execute(&left, &right, &sum, &sum);
        } else {
            let at = step * 8usize * n + column;
            let right = cmma::Matrix::<I>::from_slice(
                MatrixIdent::B,
                8usize,
                8usize,
                8usize,
                MatrixLayout::RowMajor,
                &b[at..b.len()],
                comptime!(n as u32),
            );
            cmma::execute(&left, &right, &sum, &sum);
        }
    }
    let end = c.len();
    cmma::store(&mut c[row * n + column..end], &sum, comptime!(n as u32), MatrixLayout::RowMajor);
}

/// 64 results of each exchange.
#[cube(launch)]
fn exchanges(x: &[f32], y: &mut [f32]) {
    let lane = UNIT_POS as usize;
    let value = x[lane];
    y[lane] = plane_sum(value);
    y[64usize + lane] = plane_max(value);
    y[128usize + lane] = plane_shuffle_xor(value, 5u32);
    y[192usize + lane] = plane_shuffle(value, 7u32);
    y[256usize + lane] = plane_inclusive_sum(value);
    y[320usize + lane] = plane_exclusive_sum(value);
    y[384usize + lane] = plane_shuffle_up(value, 1u32);
    y[448usize + lane] = plane_shuffle_down(value, 2u32);
}

#[cube(launch)]
fn convert<O: Float>(x: &[f32], y: &mut [O]) {
    if ABSOLUTE_POS < y.len() {
        y[ABSOLUTE_POS] = O::cast_from(x[ABSOLUTE_POS]);
    }
}

/// Counts threads, the largest index, the smallest, and the indices' bits.
#[cube(launch)]
fn atomics(y: &mut [Atomic<u32>]) {
    let index = ABSOLUTE_POS as u32;
    y[0].fetch_add(1u32);
    y[1].fetch_max(index);
    y[2].fetch_min(index + 5u32);
    y[3].fetch_or(index);
}

/// What thread `UNIT_POS` does, by number.
#[cube(launch_unchecked)]
fn misbehaves(x: &[f32], y: &mut [f32], #[comptime] how: u32) {
    let thread = UNIT_POS as usize;
    let mut shared = Shared::<[f32]>::new_slice(64usize);
    if comptime!(how == 0) {
        y[thread] = x[thread + 1usize];
    } else if comptime!(how == 1) {
        y[thread + 1usize] = x[thread];
    } else if comptime!(how == 2) {
        if thread < 5usize {
            sync_cube();
        }
        y[thread] = x[thread];
    } else if comptime!(how == 3) {
        y[thread] = f32::cast_from(7u32 / u32::cast_from(x[thread] - 1.0f32));
    } else if comptime!(how == 4) {
        shared[thread] = x[thread];
        y[thread] = shared[63usize - thread];
    } else {
        shared[thread + 1usize] = x[thread];
        sync_cube();
        y[thread] = shared[thread];
    }
}

/// What the lanes of a simdgroup do with matrices, by number.
#[cube(launch_unchecked)]
fn matrices_misbehave(x: &[f32], y: &mut [f32], #[comptime] how: u32) {
    let thread = UNIT_POS as usize;
    let at = thread / comptime!(if how == 0 { 31usize } else { 32usize });
    let left = cmma::Matrix::<f32>::from_slice(
        MatrixIdent::A,
        8usize,
        8usize,
        8usize,
        MatrixLayout::RowMajor,
        &x[at..x.len()],
        8u32,
    );
    let right = cmma::Matrix::<f32>::from_slice(
        MatrixIdent::B,
        8usize,
        8usize,
        8usize,
        MatrixLayout::RowMajor,
        &y[0usize..64usize],
        8u32,
    );
    if comptime!(how == 1) {
        // The next lane has not loaded its elements yet.
        y[(thread + 2usize) % 64usize] = 7.0f32;
    }
    let sum = cmma::Matrix::<f32>::from_value(
        MatrixIdent::Accumulator,
        8usize,
        8usize,
        8usize,
        MatrixLayout::Undefined,
        f32::new(0.0),
    );
    if comptime!(how == 2 || how == 3) {
        if thread != 3usize {
            cmma::execute(&left, &right, &sum, &sum);
        }
    } else {
        cmma::execute(&left, &right, &sum, &sum);
    }
    if comptime!(how != 3) {
        cmma::store(&mut y[0usize..64usize], &sum, 8u32, MatrixLayout::RowMajor);
    }
}

fn upload<E: Float + CubeElement>(client: &Client, values: &[E]) -> (cubecl::server::Handle, BufferArg) {
    let handle = client.create_from_slice(E::as_bytes(values));
    // SAFETY: the handle holds these values.
    (handle.clone(), unsafe { BufferArg::from_raw_parts(handle, values.len()) })
}

fn product_is_exact<I: Float + CubeElement, O: Float + CubeElement>(by_columns: bool) {
    let recorder = Recorder::executing();
    let client = recorder.client();
    let (m, n, k) = (16, 24, 40);
    let small = |index: usize| (index * 7 % 5) as f32 - 2.0;
    let convert = |value: f32| I::new(value);
    let a: Vec<f32> = (0..m * k).map(small).collect();
    let b: Vec<f32> = (0..k * n).map(|index| small(index + 3)).collect();
    let (_, a_argument) = upload(client, &a.iter().map(|v| convert(*v)).collect::<Vec<I>>());
    let (_, b_argument) = upload(client, &b.iter().map(|v| convert(*v)).collect::<Vec<I>>());
    let (c, c_argument) = upload(client, &vec![O::new(-1.0); m * n]);
    let groups = CubeCount::Static((m * n / 64 / 2) as u32, 1, 1);
    let threads = CubeDim::new_1d(64);
    matrix_product::launch::<I, O>(
        client, groups, threads, a_argument, b_argument, c_argument, n, k, by_columns,
    );
    let bytes = client.read_one(c).expect("the launch succeeds");
    let got: Vec<f64> = O::from_bytes(&bytes).iter().map(|value| value.to_f64().expect("a number")).collect();
    for (index, got) in got.into_iter().enumerate() {
        let (row, column) = (index / n, index % n);
        let term = |i: usize| a[row * k + i] * if by_columns { b[column * k + i] } else { b[i * n + column] };
        let want: f32 = (0..k).map(term).sum();
        assert_eq!(got, f64::from(want), "({row}, {column})");
    }
}

#[test]
fn simdgroup_matrices_multiply_in_every_type() {
    for by_columns in [false, true] {
        product_is_exact::<f32, f32>(by_columns);
        product_is_exact::<f16, f32>(by_columns);
        product_is_exact::<f16, f16>(by_columns);
        product_is_exact::<bf16, bf16>(by_columns);
    }
}

#[test]
fn lanes_exchange_values() {
    let recorder = Recorder::executing();
    let client = recorder.client();
    let x: Vec<f32> = (0..64).map(|index| (index * index % 23) as f32).collect();
    let (_, x_argument) = upload(client, &x);
    let (y, y_argument) = upload(client, &vec![-1.0f32; 512]);
    exchanges::launch(client, CubeCount::Static(1, 1, 1), CubeDim::new_1d(64), x_argument, y_argument);
    let bytes = client.read_one(y).expect("the launch succeeds");
    let got = f32::from_bytes(&bytes);
    for (index, value) in x.iter().enumerate() {
        let (group, lane) = (&x[index / 32 * 32..][..32], index % 32);
        let want = [
            group.iter().sum(),
            group.iter().copied().fold(0.0, f32::max),
            group[lane ^ 5],
            group[7],
            group[..=lane].iter().sum(),
            group[..lane].iter().sum(),
            // Lanes without a neighbour keep their own value.
            if lane < 1 { *value } else { group[lane - 1] },
            if lane > 29 { *value } else { group[lane + 2] },
        ];
        for (operation, want) in want.into_iter().enumerate() {
            assert_eq!(got[64 * operation + index], want, "operation {operation}, thread {index}");
        }
    }
}

#[test]
fn atomics_lose_nothing() {
    let recorder = Recorder::executing();
    let client = recorder.client();
    let start = [0u32, 0, u32::MAX, 0];
    let bytes: Vec<u8> = start.iter().flat_map(|value| value.to_le_bytes()).collect();
    let y = client.create_from_slice(&bytes);
    // SAFETY: the handle holds four numbers.
    let argument = unsafe { BufferArg::from_raw_parts(y.clone(), 4) };
    atomics::launch(client, CubeCount::Static(3, 1, 1), CubeDim::new_1d(64), argument);
    let bytes = client.read_one(y).expect("the launch succeeds");
    let got: Vec<u32> =
        bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().expect("4 bytes"))).collect();
    assert_eq!(got, [192, 191, 5, 255]);
}

/// Halves on every side of a rounding boundary, subnormals, overflow, infinities.
fn boundary_values() -> Vec<f32> {
    let mut values =
        vec![0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MIN_POSITIVE, 1e-45, f32::MAX, f32::NAN];
    let halves = (0..0x7c00u16).step_by(13).map(|bits| f16::from_bits(bits).to_f32());
    let bfloats = (0..0x7f80u16).step_by(29).map(|bits| bf16::from_bits(bits).to_f32());
    for exact in halves.chain(bfloats).chain([65_504.0, 65_519.0, 65_520.0, 6e-8, 3e-8, 2.9e-8]) {
        let bits = exact.to_bits();
        // The value, the midpoints to the next value of either type, and the neighbours of all.
        for step in [0u32, 1, 0xfff, 0x1000, 0x1001, 0x7fff, 0x8000, 0x8001] {
            let value = f32::from_bits(bits.saturating_add(step));
            values.extend([value, -value]);
        }
    }
    values
}

fn rounds<O: Float + CubeElement>(round: fn(f32) -> f32) {
    let recorder = Recorder::executing();
    let client = recorder.client();
    let values = boundary_values();
    let (_, x) = upload(client, &values);
    let (y, y_argument) = upload(client, &vec![O::new(-1.0); values.len()]);
    let groups = CubeCount::Static(values.len().div_ceil(64) as u32, 1, 1);
    convert::launch::<O>(client, groups, CubeDim::new_1d(64), x, y_argument);
    let bytes = client.read_one(y).expect("the launch succeeds");
    for (value, got) in values.iter().zip(O::from_bytes(&bytes)) {
        let (got, want) = (got.to_f32().expect("a float"), round(*value));
        assert!(
            got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()),
            "{value:e}: {got:e}, not {want:e}"
        );
    }
}

#[test]
fn halves_round_to_nearest_even() {
    rounds::<f16>(|value| f16::from_f32(value).to_f32());
    rounds::<bf16>(|value| bf16::from_f32(value).to_f32());
}

/// The error of a launch of `threads` on buffers of `length` floats, or its results.
fn misbehave(
    launch: impl FnOnce(&Client, CubeCount, CubeDim, BufferArg, BufferArg),
    threads: u32,
    length: usize,
) -> Result<Vec<f32>, String> {
    let recorder = Recorder::executing_any();
    let client = recorder.client();
    let (_, x) = upload(client, &vec![1.0f32; length]);
    let (y, y_argument) = upload(client, &vec![2.0f32; length]);
    launch(client, CubeCount::Static(1, 1, 1), CubeDim::new_1d(threads), x, y_argument);
    let bytes = client.read_one(y).map_err(|error| error.to_string())?;
    Ok(f32::from_bytes(&bytes).to_vec())
}

#[test]
fn faults_are_reported_with_the_thread_and_the_place() {
    let misbehave = |how| {
        misbehave(
            // SAFETY: none is needed: faults of kernels on this device are errors.
            |client, groups, threads, x, y| unsafe {
                misbehaves::launch_unchecked(client, groups, threads, x, y, how)
            },
            64,
            64,
        )
    };
    let expected = [
        (0, "thread [63, 0, 0] of threadgroup [0, 0, 0]: accesses byte 256 of buffer 0, which has 256 bytes"),
        (1, "thread [63, 0, 0] of threadgroup [0, 0, 0]: accesses byte 256 of buffer 1, which has 256 bytes"),
        (2, "thread 5 has ended"),
        (3, "divides the integer 7 by zero in line "),
        (5, "index 64 of an array of 64 elements"),
    ];
    for (how, message) in expected {
        let error = misbehave(how).expect_err("the launch fails");
        assert!(error.contains(message), "{how}: {error}");
    }
    // The system does not report every address; the launch fails all the same.
    let recorder = Recorder::executing_edited(Box::new(|text| {
        let read = regex::Regex::new(r"&(\w+)\[(\w+)\];").expect("a pattern");
        read.replace(text, "&$1[$2 + (1ul << 61)];").into_owned()
    }));
    let (x, y) = (upload(recorder.client(), &[1.0f32; 65]), upload(recorder.client(), &[2.0f32; 64]));
    // SAFETY: none is needed: faults of kernels on this device are errors.
    unsafe {
        let (groups, threads) = (CubeCount::new_single(), CubeDim::new_1d(64));
        misbehaves::launch_unchecked(recorder.client(), groups, threads, x.1, y.1, 0);
    }
    let error = recorder.client().read_one(y.0).expect_err("the launch fails").to_string();
    assert!(error.contains("threadgroup [0, 0, 0]: accesses "), "{error}");
    // Uninitialized memory is NaN.
    let unsynchronized = misbehave(4).expect("nothing faults");
    assert!(unsynchronized.iter().any(|value| value.is_nan()), "{unsynchronized:?}");
}

#[test]
fn lanes_that_do_not_share_a_matrix_are_reported() {
    let misbehave = |how| {
        misbehave(
            // SAFETY: none is needed: faults of kernels on this device are errors.
            |client, groups, threads, x, y| unsafe {
                matrices_misbehave::launch_unchecked(client, groups, threads, x, y, how)
            },
            32,
            96,
        )
    };
    let expected = [
        (0, "lane 31 of 32 executes Load"),
        (1, "row 0, column 2 of the matrix loaded at line"),
        (2, "lane 3 of 32 executes Store"),
        (
            3,
            "thread [3, 0, 0] of threadgroup [0, 0, 0]: 3 matrix operations since its simdgroup synchronized",
        ),
    ];
    for (how, message) in expected {
        let error = misbehave(how).expect_err("the launch fails");
        assert!(error.contains(message), "{how}: {error}");
    }
}
