//! Bad input: the class and the exact sentence, before any launch.

use super::upload_positions;

use crate::support::{Buffer, client, output, upload_indices};
use conv_kernels::rope2d::{Rope2dProblem, RopeLayout, rotate};
use conv_kernels::{FloatType, IndexOperand, IndexType, Limits};

#[test]
fn bad_input_is_refused() {
    let new = |tokens, positions, layout, base, f0| {
        let error = Rope2dProblem::new(tokens, positions, layout, base, f0, FloatType::F32);
        format!("{:?}", error.expect_err("a refusal"))
    };
    let bhnd = RopeLayout::Bhnd;
    let huge = 1usize << 31;
    let rows = [
        (
            new([1, 2, 3, 6], [1, 3, 2], bhnd, 100.0, 1.0),
            "Invalid(\"rope2d: the head dimension 6 is not a multiple of 4\")",
        ),
        (
            new([1, 2, 3, 8], [1, 3, 2], bhnd, 0.0, 1.0),
            "Invalid(\"rope2d: the base is 0, it must be positive and finite\")",
        ),
        (
            new([1, 2, 3, 8], [1, 3, 2], bhnd, -100.0, 1.0),
            "Invalid(\"rope2d: the base is -100, it must be positive and finite\")",
        ),
        (
            new([1, 2, 3, 8], [1, 3, 2], bhnd, f32::NAN, 1.0),
            "Invalid(\"rope2d: the base is NaN, it must be positive and finite\")",
        ),
        (
            new([1, 2, 3, 8], [1, 3, 2], bhnd, 100.0, f32::INFINITY),
            "Invalid(\"rope2d: f0 is inf, it must be finite\")",
        ),
        (
            new([1, 2, 3, 8], [1, 3, 2], bhnd, 100.0, -1_048_577.0),
            "Invalid(\"rope2d: f0 -1048577 with base 100 rotates by up to 1048577 radians from one position \
             to the next, the limit is 1048576\")",
        ),
        (
            new([1, 2, 3, 8], [1, 3, 2], bhnd, 0.0009765625, 1025.0),
            "Invalid(\"rope2d: f0 1025 with base 0.0009765625 rotates by up to 1049600 radians from one \
             position to the next, the limit is 1048576\")",
        ),
        (
            new([1, 2, 3, 8], [1, 2, 2], bhnd, 100.0, 1.0),
            "Invalid(\"rope2d: the positions have shape [1, 2, 2], tokens [1, 2, 3, 8] need [1, 3, 2] (batch, tokens, y \
             and x)\")",
        ),
        (
            new([1, 2, 3, 8], [1, 3, 2], RopeLayout::Bnhd, 100.0, 1.0),
            "Invalid(\"rope2d: the positions have shape [1, 3, 2], tokens [1, 2, 3, 8] need [1, 2, 2] (batch, tokens, y \
             and x)\")",
        ),
        (
            new([1, 2, 3, 8], [1, 3, 3], bhnd, 100.0, 1.0),
            "Invalid(\"rope2d: the positions have shape [1, 3, 3], tokens [1, 2, 3, 8] need [1, 3, 2] (batch, tokens, y \
             and x)\")",
        ),
        (
            new([huge, 1, huge, 8], [huge, huge, 2], bhnd, 100.0, 1.0),
            "TooLarge(\"rope2d: tokens [2147483648, 1, 2147483648, 8] have more elements than can be addressed\")",
        ),
    ];
    for (error, expected) in rows {
        assert_eq!(error, expected);
    }

    let client = client();
    let limits = Limits::of(&client);
    let problem =
        Rope2dProblem::new([1, 2, 3, 8], [1, 3, 2], bhnd, 100.0, 1.0, FloatType::F32).expect("sound");
    let good = output(&client, &[1, 2, 3, 8], FloatType::F32);
    let other = output(&client, &[1, 3, 2, 8], FloatType::F32);
    let half = output(&client, &[1, 2, 3, 8], FloatType::F16);
    let positions = upload_positions(&client, &problem, &[0; 6], IndexType::I32);
    let turned = upload_indices(&client, &[0; 6], &[1, 2, 3], &[6, 3, 1], IndexType::I32);
    let call = |limits: &Limits, tokens: &Buffer, positions: &IndexOperand, out: &Buffer| {
        rotate(&client, limits, &problem, tokens.operand(), positions, out.operand(), false)
            .expect_err("a refusal")
            .to_string()
    };
    let small = Limits { buffer_bytes: 4610 * 16 - 1, ..limits.clone() };
    let no_f32 = Limits { dtypes: vec![FloatType::F16], ..limits.clone() };
    let rows = [
        (
            call(&limits, &other, &positions, &good),
            "rope2d: tokens has shape [1, 3, 2, 8], the problem needs [1, 2, 3, 8]",
        ),
        (call(&limits, &half, &positions, &good), "rope2d: tokens is f16, the problem needs f32"),
        (
            call(&limits, &good, &positions, &other),
            "rope2d: out has shape [1, 3, 2, 8], the problem needs [1, 2, 3, 8]",
        ),
        (
            call(&limits, &good, &turned, &good),
            "rope2d: positions has shape [1, 2, 3], the problem needs [1, 3, 2]",
        ),
        (
            call(&small, &good, &positions, &good),
            "rope2d: the table for 8 rotated elements has 73760 bytes, the largest buffer of this device has 73759",
        ),
        (
            call(&no_f32, &good, &positions, &good),
            "rope2d: this device cannot hold f32 tensors, it serves f16",
        ),
    ];
    for (error, expected) in rows {
        assert_eq!(error, expected);
    }
    if !IndexType::I64.served_by(&client) {
        let wide = upload_positions(&client, &problem, &[0; 6], IndexType::I64);
        let message = "rope2d: this device cannot read i64 indices, convert them to i32";
        assert_eq!(call(&limits, &good, &wide, &good), message);
    }
}
