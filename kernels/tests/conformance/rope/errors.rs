//! Bad input: the class and the exact sentence, before any launch.

use super::upload_positions;

use crate::support::{Buffer, client, output, upload_indices};
use conv_kernels::rope::{RopeAngles, RopeAxes, RopeLayout, RopePairs, RopeProblem, RopeScaling, rotate};
use conv_kernels::{FloatType, IndexOperand, IndexType, Limits};

#[test]
fn bad_input_is_refused() {
    let new = |tokens, layout, base, f0| {
        let error = RopeProblem::rope2d(tokens, layout, base, f0, FloatType::F32);
        format!("{:?}", error.expect_err("a refusal"))
    };
    let bhnd = RopeLayout::Bhnd;
    let huge = 1usize << 31;
    let of = |angles| {
        let error = RopeProblem::new([1, 2, 3, 24], bhnd, angles, FloatType::F32);
        error.expect_err("a refusal").to_string()
    };
    let angles = RopeAngles { pairs: RopePairs::Halves, ..RopeAngles::rope2d(100.0, 1.0) };
    let rows = [
        (
            new([1, 2, 3, 6], bhnd, 100.0, 1.0),
            "Invalid(\"rope: the head dimension 6 is not a multiple of 4\")",
        ),
        (
            new([1, 2, 3, 8], bhnd, 0.0, 1.0),
            "Invalid(\"rope: the base is 0, it must be positive and finite\")",
        ),
        (
            new([1, 2, 3, 8], bhnd, -100.0, 1.0),
            "Invalid(\"rope: the base is -100, it must be positive and finite\")",
        ),
        (
            new([1, 2, 3, 8], bhnd, f32::NAN, 1.0),
            "Invalid(\"rope: the base is NaN, it must be positive and finite\")",
        ),
        (new([1, 2, 3, 8], bhnd, 100.0, f32::INFINITY), "Invalid(\"rope: f0 is inf, it must be finite\")"),
        (
            new([1, 2, 3, 8], bhnd, 100.0, -1_048_577.0),
            "Invalid(\"rope: f0 -1048577 with base 100 rotates by up to 1048577 radians from one position \
             to the next, the limit is 1048576\")",
        ),
        (
            new([1, 2, 3, 8], bhnd, 0.0009765625, 32769.0),
            "Invalid(\"rope: f0 32769 with base 0.0009765625 rotates by up to 1048608 radians from one \
             position to the next, the limit is 1048576\")",
        ),
        (
            new([huge, 1, huge, 8], bhnd, 100.0, 1.0),
            "TooLarge(\"rope: tokens [2147483648, 1, 2147483648, 8] have more elements than can be addressed\")",
        ),
        (
            of(RopeAngles { axes: RopeAxes::Even(4), ..angles }),
            "rope: there are 4 axes, the op serves one, two and three",
        ),
        (
            of(RopeAngles { axes: RopeAxes::Dims([0; 3]), ..angles }),
            "rope: there are 0 axes, the op serves one, two and three",
        ),
        (
            of(RopeAngles { axes: RopeAxes::Dims([8, 9, 7]), ..angles }),
            "rope: an axis has 9 elements of a head ([8, 9, 7]), they must be pairs",
        ),
        (
            of(RopeAngles { axes: RopeAxes::Dims([8, 8, 10]), ..angles }),
            "rope: the axes take 26 elements of a head (Dims([8, 8, 10])), it has 24",
        ),
        (
            of(RopeAngles { axes: RopeAxes::Sections([4, 4, 5]), ..angles }),
            "rope: the axes take 26 elements of a head (Sections([4, 4, 5])), it has 24",
        ),
        (
            of(RopeAngles { axes: RopeAxes::Interleaved([2, 4, 5]), ..angles }),
            "rope: of 11 pairs dealt in turn axis 2 cannot get 5 (sections [2, 4, 5])",
        ),
        (
            of(RopeAngles { axes: RopeAxes::Sections([4, 4, 4]), pairs: RopePairs::HalvesOfAxes, ..angles }),
            "rope: sections are parts of one list of pairs, they have no halves of their own",
        ),
        (
            of(RopeAngles { scaling: RopeScaling::Ntk(0.0), ..angles }),
            "rope: the scaling factor is 0, it must be positive and finite",
        ),
        (
            RopeProblem::new(
                [1, 2, 3, 25],
                bhnd,
                RopeAngles { axes: RopeAxes::Dims([8; 3]), ..angles },
                FloatType::F32,
            )
            .expect_err("a refusal")
            .to_string(),
            "rope: the head dimension 25 is odd",
        ),
        (
            RopeProblem::new(
                [1, 2, 3, 32],
                bhnd,
                RopeAngles { axes: RopeAxes::Dims([8; 3]), ..angles },
                FloatType::F32,
            )
            .and_then(|problem| problem.with_rotated(32))
            .expect_err("a refusal")
            .to_string(),
            "rope: the axes take 24 elements of a head (Dims([8, 8, 8])), not 32",
        ),
    ];
    for (error, expected) in rows {
        assert_eq!(error, expected);
    }

    let client = client();
    let limits = Limits::of(&client);
    let problem = RopeProblem::rope2d([1, 2, 3, 8], bhnd, 100.0, 1.0, FloatType::F32).expect("sound");
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
    let no_f32 = Limits { dtypes: vec![FloatType::F16], ..limits.clone() };
    let rows = [
        (
            call(&limits, &other, &positions, &good),
            "rope: the token tensor has shape [1, 3, 2, 8], the problem needs [1, 2, 3, 8]",
        ),
        (call(&limits, &half, &positions, &good), "rope: the token tensor is f16, the problem needs f32"),
        (
            call(&limits, &good, &positions, &other),
            "rope: out has shape [1, 3, 2, 8], the problem needs [1, 2, 3, 8]",
        ),
        (
            call(&limits, &good, &turned, &good),
            "rope: the positions have shape [1, 2, 3], tokens [1, 2, 3, 8] need [1, 3, 2] (batch, tokens, axes)",
        ),
        (call(&no_f32, &good, &positions, &good), "rope: this device cannot hold f32 tensors, it serves f16"),
    ];
    for (error, expected) in rows {
        assert_eq!(error, expected);
    }
    if !IndexType::I64.served_by(&client) {
        let wide = upload_positions(&client, &problem, &[0; 6], IndexType::I64);
        let message = "rope: this device cannot read i64 indices, convert them to i32";
        assert_eq!(call(&limits, &good, &wide, &good), message);
    }
}
