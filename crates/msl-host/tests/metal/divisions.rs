//! Integer divisors are checked by the executed text, not by the processor: x86 raises a signal at zero and
//! arm64 does not.

use cubecl::prelude::*;
use msl_host::Recorder;

/// `y[t] = x[2 t] / x[2 t + 1]`, or the remainder.
#[cube(launch_unchecked)]
fn divides<I: Int>(x: &[I], y: &mut [I], #[comptime] remainder: bool) {
    let thread = UNIT_POS as usize;
    let (value, divisor) = (x[2usize * thread], x[2usize * thread + 1usize]);
    if comptime!(remainder) {
        y[thread] = value % divisor;
    } else {
        y[thread] = value / divisor;
    }
}

/// The results for 64 pairs of a number and its divisor, or the launch's error.
fn divide<I: Int + CubeElement>(pair: impl Fn(i64) -> [i64; 2], remainder: bool) -> Result<Vec<i64>, String> {
    let recorder = Recorder::executing();
    let client = recorder.client();
    let values: Vec<I> = (0..64).flat_map(pair).map(I::new).collect();
    let (x, y) = (client.create_from_slice(I::as_bytes(&values)), client.empty(64 * size_of::<I>()));
    // SAFETY: the handles hold as many numbers; faults of kernels on this device are errors.
    unsafe {
        let x = BufferArg::from_raw_parts(x, values.len());
        let y = BufferArg::from_raw_parts(y.clone(), 64);
        divides::launch_unchecked::<I>(client, CubeCount::new_single(), CubeDim::new_1d(64), x, y, remainder);
    }
    let bytes = client.read_one(y).map_err(|error| error.to_string())?;
    Ok(I::from_bytes(&bytes).iter().map(|value| value.to_i64().expect("a small number")).collect())
}

/// `smallest` is the least value of the type.
fn check<I: Int + CubeElement>(smallest: i64) {
    for remainder in [false, true] {
        // Every sign and the whole range.
        let low = if smallest < 0 { -40 } else { 0 };
        let pair = |index: i64| {
            let value = if index == 5 { smallest } else { low + 3 * index };
            [value, if index % 2 == 0 || smallest == 0 { index % 7 + 1 } else { -(index % 5) - 2 }]
        };
        let want = (0..64).map(pair).map(|[a, b]| if remainder { a % b } else { a / b });
        let got = divide::<I>(pair, remainder);
        assert_eq!(got.expect("no divisor is zero"), want.collect::<Vec<_>>());

        let by_zero = divide::<I>(|index| [100 + index, (index - 41).abs()], remainder);
        let error = by_zero.expect_err("a divisor is zero");
        let place = "thread [41, 0, 0] of threadgroup [0, 0, 0]: divides the integer 141 by zero in line ";
        assert!(error.contains(place), "{error}");

        if smallest < 0 {
            let beyond = divide::<I>(|index| [if index == 9 { smallest } else { index }, -1], remainder);
            let error = beyond.expect_err("a quotient is beyond the type");
            let place = format!(
                "thread [9, 0, 0] of threadgroup [0, 0, 0]: divides {smallest}, the least of its type, by -1"
            );
            assert!(error.contains(&place), "{error}");
        }
    }
}

#[test]
fn divisors_of_32_bits_are_checked_by_the_text() {
    check::<i32>(i32::MIN.into());
    check::<u32>(0);
}

#[test]
fn divisors_of_64_bits_are_checked_by_the_text() {
    check::<i64>(i64::MIN);
    check::<u64>(0);
}
