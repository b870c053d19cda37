//! RoPE: a random rotation or its inverse compared with the reference, for one tensor or two, out of place
//! or in place.

use crate::device::{self, CLASSES, Device};
use crate::outcome::{LAUNCH, OVER, Outcome, PANIC, REFUSED, WRONG, caught};
use crate::tensors::{self, OUTPUT_VIEWS, TYPES, VIEWS, dtype};
use crate::text::{Case, Field};
use conv_cases::fill::{self, hash, integer};
use conv_kernels::rope::{
    Positions, RopeAngles, RopeAxes, RopeGrid, RopeLayout, RopePairs, RopeProblem, RopeScaling, RopeVolume,
    Rotation, reference, rotate_all,
};
use conv_kernels::{ConvError, FloatType, IndexType, row_major};
use conv_testing::buffer::{Buffer, try_read_all, upload_indices};

/// The fields of a case of RoPE. `q`: pairs of an axis, or about as many; `copied`: quarters of a head that
/// are not rotated; `base` in tenths; `f0` in hundredths; `reach`: the largest position.
pub const FIELDS: &[Field] = &[
    Field::words("angles", ANGLES),
    Field::words("scaling", &["none", "linear", "ntk"]),
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
    Field::words("positions", &["grid", "i32", "i64", "float", "offset"]),
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

/// Axes and pairs.
pub const ANGLES: &[&str] =
    &["croco", "llama", "gpt_j", "thirds", "video", "parts", "sections", "interleaved", "interleaved_halves"];

/// Where tokens are: spread evenly up to `reach`; next to whole numbers; in -1..1; next to powers of two.
pub const POSITION_KINDS: &[&str] = &["spread", "near_whole", "unit", "powers"];

/// The problem of a case.
fn problem(case: &Case) -> Result<RopeProblem, ConvError> {
    use RopeAxes::{Dims, Even, Interleaved, Sections};
    use RopePairs::{Halves, HalvesOfAxes, Neighbours};
    let [b, h, rows, columns, q] = ["b", "h", "rows", "columns", "q"].map(|name| case.extent(name));
    let (prefix, copied) = (case.extent("prefix"), case.extent("copied"));
    let (axes, pairs, rotated) = match case.word("angles") {
        "llama" => (Even(1), Halves, 2 * q),
        "gpt_j" => (Even(1), Neighbours, 2 * q),
        "thirds" => (Even(3), HalvesOfAxes, 6 * q),
        "video" => (Dims([2 * q + 2, 2 * q, 2 * q]), Neighbours, 6 * q + 2),
        "parts" => (Dims([2 * q, 4 * q, 8]), HalvesOfAxes, 6 * q + 8),
        "sections" => (Sections([q, q + 1, q]), Halves, 6 * q + 2),
        "interleaved" => (Interleaved([q + 2, q, q]), Neighbours, 6 * q + 4),
        "interleaved_halves" => (Interleaved([q + 1, q, q]), Halves, 6 * q + 2),
        _ => (Even(2), HalvesOfAxes, 4 * q),
    };
    let (n, d) = (rows * columns + prefix, rotated + 4 * copied);
    let (layout, shape) = match case.word("layout") {
        "bnhd" => (RopeLayout::Bnhd, [b, n, h, d]),
        _ => (RopeLayout::Bhnd, [b, h, n, d]),
    };
    let (base, f0) = (case.number("base") as f32 / 10.0, case.number("f0") as f32 / 100.0);
    let scaling = match case.word("scaling") {
        "linear" => RopeScaling::Linear(3.0),
        "ntk" => RopeScaling::Ntk(4.0),
        _ => RopeScaling::None,
    };
    let angles = RopeAngles { axes, pairs, base: [base, base * 2.0, base * 3.0], f0, scaling };
    // A head that all axes divide, of which the copied elements are then not rotated.
    RopeProblem::new(shape, layout, angles, dtype(case.word("type")))?
        .with_rotated(rotated)?
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
    let (rows, columns, first) = (case.extent("rows"), case.extent("columns"), (seed % 5) as i32 - 2);
    let grid = RopeGrid { rows, columns, first };
    let volume = RopeVolume { frames: rows, rows: 1, columns, first: [first, 7, -first] };
    let offset = case.number("reach") as i32 + first;
    let axes = problem.angles.count();
    let kind = match case.word("positions") {
        "grid" => ["offset", "grid", "volume"][axes - 1],
        word => word,
    };
    let count: usize = problem.positions_shape().iter().product();
    let wide = |positions: Vec<i64>| positions.into_iter().map(|position| position as f64).collect();
    let mut at: Vec<f64> = match kind {
        "grid" => wide(reference::grid_positions(&problem, grid)),
        "volume" => wide(reference::volume_positions(&problem, volume)),
        "offset" => wide(reference::line_positions(&problem, offset)),
        _ => (0..count as u64).map(|index| f64::from(position_value(case, index))).collect(),
    };
    if kind.starts_with('i') {
        at.iter_mut().for_each(|position| *position = position.round().clamp(-2147483648.0, 2147483647.0));
    }
    let whole: Vec<i64> = at.iter().map(|position| *position as i64).collect();
    let floats: Vec<f32> = at.iter().map(|position| *position as f32).collect();
    let long = kind == "i64" && IndexType::I64.served_by(client);
    let index = if long { IndexType::I64 } else { IndexType::I32 };
    let positions_shape = problem.positions_shape();
    let indices = upload_indices(client, &whole, &positions_shape, &row_major(&positions_shape), index);
    let on_device = tensors::upload(client, &floats, &positions_shape, "plain", FloatType::F32);
    let positions = match kind {
        "grid" => Positions::Grid(grid),
        "volume" => Positions::Volume(volume),
        "offset" => Positions::Offset(offset),
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
        if let Err(error) = compare(&problem, &got, &want, &magnitudes) {
            return Outcome::failed(case, WRONG, format!("tensor {number}: {error}"));
        }
    }
    let direction = if inverse { "inverse" } else { "forward" };
    Outcome::Passed(vec![(direction, format!("rope:{}:{kind}", case.word("angles"))); outs.len()])
}

/// The largest error of cos and sin, in addition to the storage type's rounding.
const ANGLE: f64 = 5e-7;

fn compare(problem: &RopeProblem, got: &[f64], want: &[f64], magnitudes: &[f64]) -> Result<(), String> {
    let d = problem.head_dim;
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        let sum = magnitudes[index] * (ANGLE + 10.0 * FloatType::F32.unit_roundoff());
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
