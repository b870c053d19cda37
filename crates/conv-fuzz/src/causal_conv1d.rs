//! Causal conv1d: both passes of a random problem under each plan against the reference, and the sequence in
//! two pieces.

use crate::device::{self, CLASSES, Device, may_refuse};
use crate::outcome::{Check, LAUNCH, NO_PLAN, OVER, Outcome, PANIC, REFUSED, WRONG, caught};
use crate::tensors::{
    self, DATA, OUTPUT_VIEWS, TYPES, VIEWS, check_non_finite, dtype, is_guarded, make_non_finite,
};
use crate::text::{Case, Field};
use conv_cases::fill::hash;
use conv_kernels::causal_conv1d::{
    self as op, CausalConv1dProblem, Conv1dLayout, OptionalShapes, Pass, Plan,
};
use conv_kernels::conv3d::Activation;
use conv_kernels::{ConvError, IndexType, Limits, row_major};
use conv_testing::buffer::{Buffer, try_read_all, upload_indices};
use conv_testing::causal_conv1d::{Results, Tensors, launch_into, oracles, plans, results};

/// The fields of a case of causal conv1d.
pub const FIELDS: &[Field] = &[
    Field::numbers("b", &[1]),
    Field::numbers("c", &[1]),
    Field::numbers("t", &[1]),
    Field::numbers("w", &[1]),
    Field::words("layout", &["bct", "btc"]),
    Field::numbers("bias", &[0]),
    Field::words("act", &["none", "relu", "silu"]),
    Field::numbers("initial", &[0]),
    Field::words("ids", IDS),
    Field::words("id_type", &["i32", "i64"]),
    Field::numbers("residual", &[0]),
    Field::numbers("dfinal", &[0]),
    Field::words("type", TYPES),
    Field::words("w_type", &["same", "f32", "f16"]),
    Field::words("state_type", &["same", "f32"]),
    Field::words("data", DATA),
    Field::words("bad", BAD),
    Field::numbers("seed", &[1]),
    Field::words("x_view", VIEWS),
    Field::words("w_view", VIEWS),
    Field::words("dy_view", VIEWS),
    Field::words("out_view", OUTPUT_VIEWS),
    Field::words("limits", CLASSES),
    Field::numbers("cut", &[0]),
];

/// Ids: none; sequences; sequences and padding; padding before and after one sequence; only padding.
pub const IDS: &[&str] = &["none", "sequences", "padded", "ends", "padding"];

/// Non-finite values: none; in x, dy or the initial state; at padding.
pub const BAD: &[&str] = &["none", "nan_x", "inf_x", "nan_dy", "nan_state", "nan_padding"];

/// The ids of a case, row by row.
fn ids(case: &Case) -> Vec<i64> {
    let (b, t, seed) = (case.extent("b"), case.extent("t"), case.number("seed") as u64);
    let longest = case.extent("w") as u64 + 2;
    let mut ids = Vec::with_capacity(b * t);
    let mut run = 0u64;
    for row in 0..b {
        let start = ids.len();
        while ids.len() - start < t {
            run += 1;
            let left = t - (ids.len() - start);
            let number = hash(hash(seed, 77), run);
            let length = (1 + number as usize % longest as usize).min(left);
            let (id, length) = match case.word("ids") {
                "padding" => (-1, left),
                "ends" => {
                    let ends = ids.len() == start || left <= length;
                    (
                        if ends { -1 } else { row as i64 },
                        if ends { length } else { left - left.min(longest as usize) / 2 },
                    )
                }
                "padded" if number >> 32 & 3 == 0 => (-1 - (run % 2) as i64, length),
                _ => ((run ^ 1) as i64, length),
            };
            ids.extend(std::iter::repeat_n(id, length.clamp(1, left)));
        }
    }
    ids
}

/// The problem of a case.
fn problem(case: &Case) -> Result<CausalConv1dProblem, ConvError> {
    let [b, c, t, w] = ["b", "c", "t", "w"].map(|name| case.extent(name));
    let (layout, x) = match case.word("layout") {
        "btc" => (Conv1dLayout::Btc, [b, t, c]),
        _ => (Conv1dLayout::Bct, [b, c, t]),
    };
    let optional = OptionalShapes {
        bias: case.is("bias").then_some(c),
        initial_state: case.is("initial").then_some([b, c, w.saturating_sub(1)]),
        seq_idx: (case.word("ids") != "none").then_some([b, t]),
        residual: case.is("residual").then_some(x),
    };
    let activation = match case.word("act") {
        "relu" => Activation::Relu,
        "silu" => Activation::Silu,
        _ => Activation::None,
    };
    let of = dtype(case.word("type"));
    let of_weight = if case.word("w_type") == "same" { of } else { dtype(case.word("w_type")) };
    let of_state = if case.word("state_type") == "same" { of } else { dtype(case.word("state_type")) };
    CausalConv1dProblem::new(x, [c, w], optional, layout, activation, of, of_weight)?
        .with_state_dtype(of_state)
}

/// Row-major values of each input, from which the whole problem and its pieces are made.
struct Values {
    x: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    state: Vec<f32>,
    residual: Vec<f32>,
    dy: Vec<f32>,
    dfinal: Vec<f32>,
    ids: Vec<i64>,
}

fn values(case: &Case, problem: &CausalConv1dProblem) -> Values {
    let of =
        |tensor: u64, length: usize| tensors::values(case.word("data"), case.number("seed"), tensor, length);
    let steps = problem.x_shape().iter().product();
    let states = problem.state_shape().iter().product();
    let ids = if problem.seq_idx { ids(case) } else { Vec::new() };
    let mut values = Values {
        x: of(1, steps),
        weight: of(2, problem.weight_shape().iter().product()),
        bias: of(3, problem.channels),
        state: of(4, states),
        residual: of(7, steps),
        dy: of(5, steps),
        dfinal: of(6, states),
        ids,
    };
    let seed = case.number("seed");
    match case.word("bad") {
        "nan_x" => make_non_finite(&mut values.x, seed, f32::NAN),
        "inf_x" => make_non_finite(&mut values.x, seed, f32::INFINITY),
        "nan_dy" => make_non_finite(&mut values.dy, seed, f32::NAN),
        "nan_state" => make_non_finite(&mut values.state, seed, f32::NAN),
        "nan_padding" if problem.seq_idx => {
            for index in 0..steps {
                if values.ids[step(problem, index)] < 0 {
                    for tensor in [&mut values.x, &mut values.dy, &mut values.residual] {
                        tensor[index] = f32::NAN;
                    }
                }
            }
        }
        _ => {}
    }
    values
}

/// The step, counted over all rows, of an element of x.
fn step(problem: &CausalConv1dProblem, index: usize) -> usize {
    let [row, _, step] = problem.x_element(index);
    row * problem.length + step
}

fn tensors_of(device: &Device, case: &Case, problem: &CausalConv1dProblem, values: &Values) -> Tensors {
    let client = &device.client;
    let (x, state) = (problem.x_shape(), problem.state_shape());
    let of = |values: &[f32], shape: &[usize], view: &str, dtype| {
        tensors::upload(client, values, shape, case.word(view), dtype)
    };
    let plain =
        |values: &[f32], shape: &[usize], dtype| tensors::upload(client, values, shape, "plain", dtype);
    let (dtype, weight_dtype, state_dtype) = (problem.dtype, problem.weight_dtype, problem.state_dtype);
    Tensors {
        x: of(&values.x, &x, "x_view", dtype),
        weight: of(&values.weight, &problem.weight_shape(), "w_view", weight_dtype),
        bias: problem.bias.then(|| plain(&values.bias, &[problem.channels], weight_dtype)),
        state: problem.initial_state.then(|| of(&values.state, &state, "x_view", state_dtype)),
        ids: problem.seq_idx.then(|| {
            let shape = problem.seq_idx_shape();
            let wide = case.word("id_type") == "i64" && IndexType::I64.served_by(client);
            let index = if wide { IndexType::I64 } else { IndexType::I32 };
            (values.ids.clone(), upload_indices(client, &values.ids, &shape, &row_major(&shape), index))
        }),
        residual: problem.residual.then(|| of(&values.residual, &x, "dy_view", dtype)),
        dy: of(&values.dy, &x, "dy_view", dtype),
        dfinal: case.is("dfinal").then(|| plain(&values.dfinal, &state, state_dtype)),
    }
}

/// Runs a case.
pub fn run(device: &Device, case: &Case) -> Outcome {
    let problem = match problem(case) {
        Ok(problem) => problem,
        Err(error) => return Outcome::Skipped(error.to_string()),
    };
    let elements = problem.batch * problem.channels * (problem.length + problem.width);
    if elements * problem.width > 4_000_000 {
        return Outcome::Skipped("the problem is too large".into());
    }
    if [problem.dtype, problem.weight_dtype].iter().any(|dtype| !device.limits.dtypes.contains(dtype)) {
        return Outcome::Skipped("the device lacks the type".into());
    }
    let class = case.word("limits");
    let (x, w, state) = (problem.x_shape(), problem.weight_shape(), problem.state_shape());
    let span = tensors::largest_span(case, &[&x, &w, &state]);
    let limits = device::limits(class, &device.limits, span.max(elements) * 4);
    let mut auto = Vec::new();
    for pass in [Pass::Forward, Pass::Backward] {
        match op::plan(&problem, pass, &limits) {
            Ok(plan) => auto.push(plan),
            Err(_) if may_refuse(class) => return Outcome::Passed(Vec::new()),
            Err(error) => return Outcome::failed(case, NO_PLAN, error.to_string()),
        }
    }
    let values = values(case, &problem);
    let tensors = tensors_of(device, case, &problem, &values);
    let mut checks = Vec::new();
    for plans in plans(&problem, &limits) {
        let name = plans.map(Plan::name).join("/");
        if !case.plan.is_empty() && case.plan != name {
            continue;
        }
        let named = Case { plan: name, ..case.clone() };
        match check(device, &named, &problem, &limits, (plans, plans[..] == auto[..]), &tensors) {
            Ok(more) => checks.extend(more),
            Err(failed) => return failed,
        }
        if let Err(failed) = pieces(device, &named, &problem, &limits, plans, &values, &tensors) {
            return failed;
        }
    }
    Outcome::Passed(checks)
}

/// Launches both passes, each under its plan, and reads the results.
fn computed(
    device: &Device,
    case: &Case,
    problem: &CausalConv1dProblem,
    limits: &Limits,
    (plans, auto): ([Plan; 2], bool),
    tensors: &Tensors,
) -> Result<Option<Vec<Vec<f64>>>, Outcome> {
    let client = &device.client;
    let of = |shape: &[usize], dtype| tensors::output(client, shape, case.word("out_view"), dtype);
    let outputs: Results = results(problem, &of);
    device.forget();
    match caught(|| launch_into((client, limits), problem, plans, tensors, &outputs)) {
        Ok(Ok(())) => {}
        Ok(Err(error)) if auto => {
            return Err(Outcome::failed(case, REFUSED, error.to_string()));
        }
        Ok(Err(_)) => return Ok(None),
        Err(panic) => return Err(Outcome::failed(case, PANIC, panic)),
    }
    if let Some(message) = device.over(limits) {
        return Err(Outcome::failed(case, OVER, message));
    }
    let buffers: Vec<&Buffer> = outputs.iter().map(|(_, buffer)| buffer).collect();
    let read = caught(|| try_read_all(client, &buffers)).and_then(|read| read);
    read.map(Some).map_err(|error| Outcome::failed(case, LAUNCH, error))
}

/// Compares every result with the reference.
fn check(
    device: &Device,
    case: &Case,
    problem: &CausalConv1dProblem,
    limits: &Limits,
    plans: ([Plan; 2], bool),
    tensors: &Tensors,
) -> Result<Vec<Check>, Outcome> {
    let Some(got) = computed(device, case, problem, limits, plans, tensors)? else { return Ok(Vec::new()) };
    let exact = case.word("data") == "integers" && problem.activation != Activation::Silu;
    let names = ["y", "final state", "dx", "dw"].into_iter();
    let names = names.chain(problem.bias.then_some("db")).chain(problem.initial_state.then_some("dinitial"));
    let mut checks = Vec::new();
    for ((name, oracle), got) in names.zip(oracles(problem, tensors)).zip(&got) {
        let result = if case.word("bad") != "none" {
            let (expected, _) = oracle.expected();
            let right = |index: usize| (got[index] - expected.values[index]).abs() <= expected.bound(index);
            // Any non-finite element may spread to its channel's dw: taps are also multiplied with the
            // columns before the first step.
            let spread =
                |index: usize| name == "dw" && may_be_non_finite(problem, tensors, index / problem.width);
            check_non_finite(got, expected.values, spread, right)
        } else {
            oracle.check_with(name, got, exact, plain_data(case) && is_guarded(&oracle.expected().0))
        };
        if let Err(error) = result {
            return Err(Outcome::failed(case, WRONG, format!("{name}: {error}")));
        }
        checks.push((name, case.plan.clone()));
    }
    Ok(checks)
}

/// Whether an element of a channel's x or dy, or of its state, is not finite.
fn may_be_non_finite(problem: &CausalConv1dProblem, tensors: &Tensors, channel: usize) -> bool {
    let of_x = |index: usize| problem.x_element(index)[1];
    let non_finite =
        |values: Vec<f64>| (0..values.len()).any(|at| !values[at].is_finite() && of_x(at) == channel);
    let state = tensors.state.as_ref().map(Buffer::values).unwrap_or_default();
    let of_state = |index: usize| index / (problem.width - 1).max(1) % problem.channels;
    non_finite(tensors.x.values())
        || non_finite(tensors.dy.values())
        || (0..state.len()).any(|at| !state[at].is_finite() && of_state(at) == channel)
}

/// Whether elements are independent, as the RMS guard requires.
fn plain_data(case: &Case) -> bool {
    ["x_view", "w_view", "dy_view"].iter().all(|view| !matches!(case.word(view), "batch" | "inner"))
}

/// Runs the sequence in two pieces, the second from the first one's final state: y must equal that of the
/// whole. A sequence that ends at the cut passes no state on.
fn pieces(
    device: &Device,
    case: &Case,
    problem: &CausalConv1dProblem,
    limits: &Limits,
    plans: [Plan; 2],
    values: &Values,
    tensors: &Tensors,
) -> Result<(), Outcome> {
    let cut = case.extent("cut");
    let t = problem.length;
    let goes_on = |row: &[i64]| row[cut - 1] == row[cut] && row[cut] >= 0;
    let sound = cut > 0 && cut < t && problem.width > 1 && values.ids.chunks(t.max(1)).all(goes_on);
    if !sound || case.word("bad") != "none" || !plain_data(case) || plans.contains(&Plan::Empty) {
        return Ok(());
    }
    let mut state = values.state.clone();
    let mut initial = problem.initial_state;
    let mut pieces = Vec::new();
    for (from, to) in [(0, cut), (cut, t)] {
        let piece = CausalConv1dProblem { length: to - from, initial_state: initial, ..*problem };
        let part = |values: &[f32]| -> Vec<f32> {
            let inside = |index: &usize| (from..to).contains(&(step(problem, *index) % t));
            (0..values.len()).filter(inside).map(|index| values[index]).collect()
        };
        let of_piece = Values {
            x: part(&values.x),
            weight: values.weight.clone(),
            bias: values.bias.clone(),
            state: std::mem::take(&mut state),
            residual: part(&values.residual),
            dy: part(&values.dy),
            dfinal: values.dfinal.clone(),
            ids: values.ids.chunks(t).flat_map(|row| row[from..to].to_vec()).collect(),
        };
        let inputs = tensors_of(device, case, &piece, &of_piece);
        let Some(got) = computed(device, case, &piece, limits, (plans, false), &inputs)? else {
            return Ok(());
        };
        state = got[1].iter().map(|value| *value as f32).collect();
        initial = true;
        pieces.push((from, to, got[0].clone()));
    }
    let mut y = vec![0.0; tensors.x.values().len()];
    for (from, to, values) in pieces {
        let inside = (0..y.len()).filter(|index| (from..to).contains(&(step(problem, *index) % t)));
        for (index, value) in inside.collect::<Vec<_>>().into_iter().zip(values) {
            y[index] = value;
        }
    }
    let oracle = oracles(problem, tensors).remove(0);
    let exact = case.word("data") == "integers" && problem.activation != Activation::Silu;
    let message = |error: String| Outcome::failed(case, WRONG, format!("y in two pieces: {error}"));
    oracle.check_with("y", &y, exact, false).map_err(message)
}
