//! RoPE2D: a random rotation or its inverse compared with the reference, for one tensor or two, out of place
//! or in place.

use crate::device::{self, CLASSES, Device};
use crate::outcome::{LAUNCH, OVER, Outcome, PANIC, REFUSED, WRONG, caught};
use crate::tensors::{self, OUTPUT_VIEWS, TYPES, VIEWS, dtype};
use crate::text::{Case, Field};
use conv_cases::fill::{self, hash, integer};
use conv_kernels::rope2d::{Positions, Rope2dProblem, RopeGrid, RopeLayout, Rotation, reference, rotate_all};
use conv_kernels::{ConvError, FloatType, IndexType, row_major};
use conv_testing::buffer::{Buffer, try_read_all, upload_indices};

/// The fields of a case of RoPE2D. `q`: frequencies per axis; `copied`: quarters of a head that are not
/// rotated; `base` in tenths; `f0` in hundredths; `reach`: the largest position.
pub const FIELDS: &[Field] = &[
    Field::numbers("b", &[1]),
    Field::numbers("h", &[1]),
    Field::numbers("rows", &[1]),
    Field::numbers("columns", &[1]),
    Field::numbers("q", &[1]),
    Field::numbers("copied", &[0]),
    Field::numbers("prefix", &[0]),
    Field::words("layout", &["bhnd", "bnhd"]),
    Field::numbers("base", &[1000]),
    Field::numbers("f0", &[100]),
    Field::words("positions", &["grid", "i32", "i64", "float"]),
    Field::words("places", POSITION_KINDS),
    Field::numbers("reach", &[0]),
    Field::numbers("inverse", &[0]),
    Field::numbers("pair", &[0]),
    Field::numbers("in_place", &[0]),
    Field::words("type", TYPES),
    Field::numbers("seed", &[1]),
    Field::words("x_view", VIEWS),
    Field::words("out_view", OUTPUT_VIEWS),
    Field::words("limits", CLASSES),
];

/// Where tokens are: spread evenly up to `reach`; next to whole numbers; in -1..1; next to powers of two.
pub const POSITION_KINDS: &[&str] = &["spread", "near_whole", "unit", "powers"];

/// The problem of a case.
fn problem(case: &Case) -> Result<Rope2dProblem, ConvError> {
    let [b, h, rows, columns, q] = ["b", "h", "rows", "columns", "q"].map(|name| case.extent(name));
    let (prefix, copied) = (case.extent("prefix"), case.extent("copied"));
    let (n, d) = (rows * columns + prefix, 4 * (q + copied));
    let (layout, shape) = match case.word("layout") {
        "bnhd" => (RopeLayout::Bnhd, [b, n, h, d]),
        _ => (RopeLayout::Bhnd, [b, h, n, d]),
    };
    let (base, f0) = (case.number("base") as f32 / 10.0, case.number("f0") as f32 / 100.0);
    Rope2dProblem::new(shape, [b, n, 2], layout, base, f0, dtype(case.word("type")))?
        .with_rotated(4 * q)?
        .with_prefix(prefix)
}

/// A position of the kind that a case names.
fn position_value(case: &Case, index: u64) -> f32 {
    let seed = hash(case.number("seed") as u64, 31);
    let reach = case.number("reach");
    let whole = integer(seed, index, -reach, reach) as f32;
    let fraction = fill::normal(hash(seed, index), 1)[0];
    let tiny = 2f32.powi(-(integer(seed ^ 9, index, 1, 149) as i32));
    match case.word("places") {
        "near_whole" if hash(seed, index).is_multiple_of(2) => whole + tiny,
        "near_whole" => whole - tiny,
        "unit" => fraction.sin(),
        "powers" => 2f32.powi(integer(seed ^ 7, index, -30, 20) as i32) * fraction.signum(),
        _ if case.word("positions") == "float" => whole + fraction,
        _ => whole,
    }
}

/// Runs a case.
pub fn run(device: &Device, case: &Case) -> Outcome {
    let problem = match problem(case) {
        Ok(problem) => problem,
        Err(error) => return Outcome::Skipped(error.to_string()),
    };
    let shape = problem.tokens_shape();
    let length: usize = shape.iter().product();
    if length > 1 << 20 || !device.limits.dtypes.contains(&problem.dtype) {
        return Outcome::Skipped("the problem is too large, or the device lacks the type".into());
    }
    let (client, seed) = (&device.client, case.number("seed"));
    let limits = device::limits(case.word("limits"), &device.limits, 1 << 24);
    let grid =
        RopeGrid { rows: case.extent("rows"), columns: case.extent("columns"), first: (seed % 5) as i32 - 2 };
    let kind = case.word("positions");
    let count: usize = problem.positions_shape().iter().product();
    let mut at: Vec<f64> = match kind {
        "grid" => reference::grid_positions(&problem, grid).into_iter().map(|p| p as f64).collect(),
        _ => (0..count as u64).map(|index| f64::from(position_value(case, index))).collect(),
    };
    if kind.starts_with('i') {
        at.iter_mut().for_each(|position| *position = position.round().clamp(-2147483648.0, 2147483647.0));
    }
    let whole: Vec<i64> = at.iter().map(|position| *position as i64).collect();
    let floats: Vec<f32> = at.iter().map(|position| *position as f32).collect();
    let wide = kind == "i64" && IndexType::I64.served_by(client);
    let index = if wide { IndexType::I64 } else { IndexType::I32 };
    let positions_shape = problem.positions_shape();
    let indices = upload_indices(client, &whole, &positions_shape, &row_major(&positions_shape), index);
    let on_device = tensors::upload(client, &floats, &positions_shape, "plain", FloatType::F32);
    let positions = match kind {
        "grid" => Positions::Grid(grid),
        "float" => Positions::Float(on_device.operand()),
        _ => Positions::Index(&indices),
    };
    let in_place = case.is("in_place");
    let view = if in_place { case.word("out_view") } else { case.word("x_view") };
    let tensor = |number: u64| {
        let values = tensors::values("normal", seed, number, length);
        tensors::upload(client, &values, &shape, view, problem.dtype)
    };
    let sources: Vec<Buffer> = (0..1 + u64::from(case.is("pair"))).map(tensor).collect();
    let apart: Vec<Buffer> = sources
        .iter()
        .map(|_| tensors::output(client, &shape, case.word("out_view"), problem.dtype))
        .collect();
    let outs = if in_place { &sources } else { &apart };
    let rotations: Vec<Rotation> = sources
        .iter()
        .zip(outs)
        .map(|(tokens, out)| Rotation { problem, tokens: tokens.operand(), positions, out: out.operand() })
        .collect();
    let inverse = case.is("inverse");
    device.forget();
    match caught(|| rotate_all(client, &limits, &rotations, inverse)) {
        Ok(Ok(())) => {}
        Ok(Err(_)) if case.word("limits") == "no_f16" => return Outcome::Passed(Vec::new()),
        // A rotation whose angles fp32 positions cannot represent may be refused.
        Ok(Err(ConvError::Unsupported(_))) if kind == "float" => return Outcome::Passed(Vec::new()),
        Ok(Err(error)) => return Outcome::failed(case, REFUSED, error.to_string()),
        Err(panic) => return Outcome::failed(case, PANIC, panic),
    }
    if let Some(message) = device.over(&limits) {
        return Outcome::failed(case, OVER, message);
    }
    let read = caught(|| try_read_all(client, &outs.iter().collect::<Vec<_>>())).and_then(|read| read);
    let results = match read {
        Ok(results) => results,
        Err(error) => return Outcome::failed(case, LAUNCH, error),
    };
    for (number, (source, got)) in sources.iter().zip(results).enumerate() {
        let values = source.values();
        let want = reference::rotate_at(&problem, &values, &at, inverse);
        let magnitudes = reference::magnitude(&problem, &values);
        if let Err(error) = compare(&problem, &at, &got, &want, &magnitudes) {
            return Outcome::failed(case, WRONG, format!("tensor {number}: {error}"));
        }
    }
    let direction = if inverse { "inverse" } else { "forward" };
    Outcome::Passed(vec![(direction, format!("rope2d:{kind}")); outs.len()])
}

/// The largest error relative to a pair's length, in addition to the storage type's rounding and to the f64
/// resolution of the largest angles.
const ANGLE: f64 = 1e-6;

fn compare(
    problem: &Rope2dProblem,
    at: &[f64],
    got: &[f64],
    want: &[f64],
    magnitudes: &[f64],
) -> Result<(), String> {
    let d = problem.head_dim;
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        let row = index / d;
        let token = match problem.layout {
            RopeLayout::Bhnd => {
                row / (problem.heads * problem.tokens) * problem.tokens + row % problem.tokens
            }
            RopeLayout::Bnhd => row / problem.heads,
        };
        let largest = at[2 * token].abs().max(at[2 * token + 1].abs());
        let frequency = reference::frequency(problem, problem.frequencies() - 1).max(1.0);
        let angle = largest * f64::from(problem.f0).abs() * frequency;
        let sum =
            magnitudes[index] * (ANGLE + 10.0 * FloatType::F32.unit_roundoff() + angle * 2f64.powi(-51));
        let bound =
            sum + problem.dtype.unit_roundoff() * (want.abs() + sum) + problem.dtype.subnormal_roundoff();
        let copied = magnitudes[index] == want.abs() && index % d >= problem.rotated;
        let error = (got - want).abs();
        if error.is_nan() || error > bound || (copied && error > 0.0) {
            return Err(format!(
                "element {index}: got {got:e}, reference {want:e}, error {error:e}, bound {bound:e}"
            ));
        }
    }
    Ok(())
}
