//! causal conv1d: every case x dtype x pass x eligible plan against the f64 reference.

mod behaviour;
pub(crate) mod decoding;
mod errors;
mod limits;
mod reference;
mod repeats;
mod states;
pub(crate) mod streaming;
mod tables;
mod views;

use crate::support::{Buffer, client, output, read_all, round, upload};
use conv_cases::causal_conv1d::{self as cases, Case, SeqIdx};
use conv_cases::fill;
use conv_kernels::causal_conv1d::{
    self as op, CausalConv1dProblem, Conv1dLayout, OptionalShapes, Pass, Plan, eligible, reference as oracle,
};
use conv_kernels::conv3d::Activation;
use conv_kernels::tolerance::{Expected, Guard};
use conv_kernels::{FloatType, IndexOperand, IndexType, Limits, row_major};
use cubecl::prelude::*;

/// The problem of a case.
pub(crate) fn problem(case: &Case, dtype: FloatType, weight_dtype: FloatType) -> CausalConv1dProblem {
    let layout = if case.btc { Conv1dLayout::Btc } else { Conv1dLayout::Bct };
    let x = if case.btc { [case.b, case.t, case.c] } else { [case.b, case.c, case.t] };
    let optional = OptionalShapes {
        bias: case.bias.then_some(case.c),
        initial_state: case.initial.then_some([case.b, case.c, case.w - 1]),
        seq_idx: (case.seq_idx != SeqIdx::None).then_some([case.b, case.t]),
        residual: case.residual.then_some(x),
    };
    let activation = if case.silu { Activation::Silu } else { Activation::None };
    CausalConv1dProblem::new(x, [case.c, case.w], optional, layout, activation, dtype, weight_dtype)
        .unwrap_or_else(|error| panic!("{case}: {error}"))
}

pub(crate) fn normal(seed: u64, length: usize) -> Vec<f32> {
    fill::normal(seed, length)
}

/// Every optional input, both layouts, lengths that are no multiple of a unit's steps.
pub(crate) fn sample() -> Vec<Case> {
    let base = Case {
        silu: true,
        initial: true,
        seq_idx: SeqIdx::WithPadding,
        residual: true,
        ..Case::new("sample", [2, 5, 37], 4)
    };
    vec![
        base.clone(),
        Case { btc: true, residual: false, ..base.clone() },
        Case { seq_idx: SeqIdx::None, silu: false, c: 40, btc: true, ..base.clone() },
        Case { seq_idx: SeqIdx::None, silu: false, w: 9, t: 5, ..base },
    ]
}

/// The inputs of a problem on the device.
pub(crate) struct Tensors {
    pub(crate) x: Buffer,
    pub(crate) weight: Buffer,
    pub(crate) bias: Option<Buffer>,
    pub(crate) state: Option<Buffer>,
    pub(crate) ids: Option<(Vec<i64>, IndexOperand)>,
    pub(crate) residual: Option<Buffer>,
    pub(crate) dy: Buffer,
    pub(crate) dfinal: Option<Buffer>,
}

/// Uploads `fill(seed, length)` for each input of the problem.
pub(crate) fn tensors(
    client: &Client,
    problem: &CausalConv1dProblem,
    ids: &[i32],
    with_dfinal: bool,
    fill: &dyn Fn(u64, usize) -> Vec<f32>,
) -> Tensors {
    tensors_with(client, problem, (ids, IndexType::I32), with_dfinal, fill)
}

/// [`tensors`] with ids of a type.
fn tensors_with(
    client: &Client,
    problem: &CausalConv1dProblem,
    (ids, index): (&[i32], IndexType),
    with_dfinal: bool,
    fill: &dyn Fn(u64, usize) -> Vec<f32>,
) -> Tensors {
    let tensor = |seed: u64, shape: &[usize], dtype: FloatType| {
        upload(client, &fill(seed, shape.iter().product()), shape, dtype)
    };
    let (x, state) = (problem.x_shape(), problem.state_shape());
    Tensors {
        x: tensor(1, &x, problem.dtype),
        weight: tensor(2, &problem.weight_shape(), problem.weight_dtype),
        bias: problem.bias.then(|| tensor(3, &[problem.channels], problem.weight_dtype)),
        state: problem.initial_state.then(|| tensor(4, &state, problem.state_dtype)),
        ids: problem.seq_idx.then(|| {
            let ids: Vec<i64> = ids.iter().map(|id| i64::from(*id)).collect();
            let shape = problem.seq_idx_shape();
            let operand = upload_indices(client, &ids, &shape, &row_major(&shape), index);
            (ids, operand)
        }),
        residual: problem.residual.then(|| tensor(7, &x, problem.dtype)),
        dy: tensor(5, &x, problem.dtype),
        dfinal: with_dfinal.then(|| tensor(6, &state, problem.state_dtype)),
    }
}

impl Tensors {
    pub(crate) fn inputs(&self) -> op::Inputs<'_> {
        op::Inputs {
            x: self.x.operand(),
            weight: self.weight.operand(),
            bias: self.bias.as_ref().map(Buffer::operand),
            initial_state: self.state.as_ref().map(Buffer::operand),
            seq_idx: self.ids.as_ref().map(|(_, operand)| operand),
            residual: self.residual.as_ref().map(Buffer::operand),
        }
    }
}

/// Integers on the device between guard zones of ids that no test uses.
pub(crate) fn upload_indices(
    client: &Client,
    values: &[i64],
    shape: &[usize],
    strides: &[usize],
    dtype: IndexType,
) -> IndexOperand {
    const GUARD: usize = 256;
    assert_eq!(values.len(), shape.iter().product::<usize>());
    let extent =
        values.len().min(1) + shape.iter().zip(strides).map(|(n, s)| n.saturating_sub(1) * s).sum::<usize>();
    let mut memory = vec![0x7abc_def0i64; GUARD + extent + GUARD];
    for (index, value) in values.iter().enumerate() {
        let (mut rest, mut offset) = (index, GUARD);
        for (size, stride) in shape.iter().zip(strides).rev() {
            offset += rest % size * stride;
            rest /= size;
        }
        memory[offset] = *value;
    }
    let bytes: Vec<u8> = match dtype {
        IndexType::I32 => {
            memory.iter().flat_map(|value| i32::try_from(*value).expect("an i32").to_le_bytes()).collect()
        }
        IndexType::I64 => memory.iter().flat_map(|value| value.to_le_bytes()).collect(),
    };
    let handle = client.create_from_slice(&bytes).offset_start((GUARD * dtype.size()) as u64);
    IndexOperand { handle, shape: shape.to_vec(), strides: strides.to_vec(), dtype }
}

/// What the op computes, by name.
pub(crate) type Results = Vec<(&'static str, Buffer)>;

/// Launches every pass under one plan each.
pub(crate) fn launch(
    (client, limits): (&Client, &Limits),
    problem: &CausalConv1dProblem,
    [forward, backward]: [Plan; 2],
    tensors: &Tensors,
) -> Results {
    let (x, state) = (problem.x_shape(), problem.state_shape());
    let of = |shape: &[usize]| output(client, shape, problem.dtype);
    let of_weight = |shape: &[usize]| output(client, shape, problem.weight_dtype);
    let of_state = || output(client, &state, problem.state_dtype);
    let (y, last, dx, dw) = (of(&x), of_state(), of(&x), of_weight(&problem.weight_shape()));
    let db = problem.bias.then(|| of_weight(&[problem.channels]));
    let dinitial = problem.initial_state.then(of_state);
    let inputs = tensors.inputs();
    let gradients = op::Gradients {
        x: dx.operand(),
        weight: dw.operand(),
        bias: db.as_ref().map(Buffer::operand),
        initial_state: dinitial.as_ref().map(Buffer::operand),
    };
    let dfinal = tensors.dfinal.as_ref().map(Buffer::operand);
    op::forward(client, limits, problem, &forward, &inputs, y.operand())
        .and_then(|()| {
            let (initial, ids) = (inputs.initial_state, inputs.seq_idx);
            op::final_state(client, limits, problem, inputs.x, initial, ids, last.operand())
        })
        .and_then(|()| {
            op::backward(
                client,
                limits,
                problem,
                &backward,
                &inputs,
                tensors.dy.operand(),
                dfinal,
                &gradients,
            )
        })
        .unwrap_or_else(|error| panic!("{problem:?}: {error}"));
    let mut results = vec![("y", y), ("final state", last), ("dx", dx), ("dw", dw)];
    results.extend(db.map(|db| ("db", db)));
    results.extend(dinitial.map(|dinitial| ("dinitial", dinitial)));
    results
}

/// The values of results, with one wait for the device.
pub(crate) fn read_results(client: &Client, results: &[Results]) -> Vec<Vec<(&'static str, Vec<f64>)>> {
    let buffers: Vec<&Buffer> = results.iter().flatten().map(|(_, buffer)| buffer).collect();
    let mut values = read_all(client, &buffers).into_iter();
    results
        .iter()
        .map(|results| results.iter().map(|(name, _)| *name).zip(values.by_ref()).collect())
        .collect()
}

/// Pairs of plans, forward and backward, that reach every eligible plan.
pub(crate) fn plans(problem: &CausalConv1dProblem, limits: &Limits) -> Vec<[Plan; 2]> {
    let [forward, backward] = [Pass::Forward, Pass::Backward].map(|pass| eligible(problem, pass, limits));
    let at = |plans: &[Plan], index: usize| plans[index.min(plans.len() - 1)];
    (0..forward.len().max(backward.len())).map(|index| [at(&forward, index), at(&backward, index)]).collect()
}

/// What a result should be: values, magnitudes, longest sum.
pub(crate) struct Oracle {
    values: Vec<f64>,
    magnitudes: Vec<f64>,
    terms: usize,
    dtype: FloatType,
    guard: Guard,
}

/// The f64 results, in the order of [`launch`].
pub(crate) fn oracles(problem: &CausalConv1dProblem, tensors: &Tensors) -> Vec<Oracle> {
    let (x, weight, dy) = (tensors.x.values(), tensors.weight.values(), tensors.dy.values());
    let bias = tensors.bias.as_ref().map(Buffer::values);
    let state = tensors.state.as_ref().map(Buffer::values);
    let dfinal = tensors.dfinal.as_ref().map(Buffer::values);
    let residual = tensors.residual.as_ref().map(Buffer::values);
    let inputs = oracle::Inputs {
        x: &x,
        weight: &weight,
        bias: bias.as_deref(),
        initial_state: state.as_deref(),
        seq_idx: tensors.ids.as_ref().map(|(ids, _)| &ids[..]),
        residual: residual.as_deref(),
    };
    let values = oracle::backward(problem, &inputs, &dy, dfinal.as_deref());
    let magnitudes = oracle::backward_magnitude(problem, &inputs, &dy, dfinal.as_deref());
    // exp and the division of SiLU add a few units in the last place of a value below the magnitude.
    let extra = if problem.activation == Activation::Silu { 24 } else { 0 };
    let (taps, steps) = (problem.width + 2 + extra, problem.batch * problem.length + extra);
    let (dtype, weight_dtype) = (problem.dtype, problem.weight_dtype);
    let of = |values: Vec<f64>, magnitudes, terms, dtype: FloatType, guard: Guard| Oracle {
        values,
        magnitudes,
        terms,
        dtype,
        guard: guard.stored_as(dtype),
    };
    let last = oracle::final_state(problem, &inputs);
    let zeros = vec![0.0; last.len()];
    let mut oracles = vec![
        of(
            oracle::forward(problem, &inputs),
            oracle::forward_magnitude(problem, &inputs),
            taps,
            dtype,
            Guard::SUM,
        ),
        of(last, zeros, 0, problem.state_dtype, Guard::SUM),
        of(values.x, magnitudes.x, taps, dtype, Guard::SUM),
        of(values.weight, magnitudes.weight, steps, weight_dtype, Guard::WEIGHT_GRADIENT),
    ];
    if problem.bias {
        oracles.push(of(values.bias, magnitudes.bias, steps, weight_dtype, Guard::WEIGHT_GRADIENT));
    }
    if problem.initial_state {
        let dtype = problem.state_dtype;
        oracles.push(of(values.initial_state, magnitudes.initial_state, taps, dtype, Guard::SUM));
    }
    oracles
}

impl Oracle {
    fn check(&self, name: &str, got: &[f64], exact: bool) -> Result<(), String> {
        if exact || name == "final state" {
            // Sums of small integers, exact in fp32, rounded once; the final state is a copy.
            let want = |index: usize| f64::from(round(self.values[index] as f32, self.dtype));
            return match (0..self.values.len()).find(|index| got[*index] != want(*index)) {
                Some(index) => {
                    Err(format!("element {index}: got {}, exactly {} expected", got[index], want(index)))
                }
                None => Ok(()),
            };
        }
        let Self { values, magnitudes, terms, dtype, guard } = self;
        let expected = Expected { values, magnitudes, terms: *terms, dtype: *dtype, slope: 1.0 };
        expected.check(got, Some(*guard)).map(|_| ())
    }
}

/// Which dtypes x and weight have in turn.
fn dtype_pair(dtype: FloatType, turn: usize) -> [FloatType; 2] {
    let other = if dtype == FloatType::F32 { FloatType::F16 } else { FloatType::F32 };
    [dtype, if turn % 3 == 1 { other } else { dtype }]
}

/// Runs a table in x's dtype `dtype`; with `exact`, integer data, ReLU for SiLU, and no tolerance. Returns the cases whose
/// results were compared, none where the device lacks the type.
pub(crate) fn run(table: &[Case], dtype: FloatType, exact: bool) -> Option<Vec<Case>> {
    let client = client();
    let limits = Limits::of(&client);
    if !limits.dtypes.contains(&dtype) {
        return None;
    }
    let mut compared = Vec::new();
    let mut failures = Vec::new();
    let mut checks = 0usize;
    for (turn, case) in table.iter().enumerate() {
        // A weight of another type is a kernel of its own: not with every option.
        let plain = case.w <= 4 && !case.initial && case.seq_idx == SeqIdx::None;
        let [dtype, weight_dtype] = if plain { dtype_pair(dtype, turn) } else { [dtype; 2] };
        let mut problem = problem(case, dtype, weight_dtype);
        if exact && case.silu {
            problem.activation = Activation::Relu;
        }
        let ids = (&cases::seq_idx(case)[..], IndexType::I32);
        let (checked, wrong) = check((&client, &limits), &problem, ids, turn % 2 == 0, exact);
        checks += checked;
        // y, the final state, dx, dw and what the options add, under every plan.
        let results = 4 + usize::from(case.bias) + usize::from(case.initial);
        compared.extend((checked == results * plans(&problem, &limits).len()).then(|| case.clone()));
        failures.extend(wrong.into_iter().map(|wrong| format!("{case}\n  {wrong}")));
    }
    println!("{} cases, {checks} checks", compared.len());
    assert!(failures.is_empty(), "{} of {checks} checks failed:\n{}", failures.len(), failures.join("\n"));
    Some(compared)
}

/// Checks a problem under every eligible plan: the number of checks, and a line for each that failed.
pub(crate) fn check(
    (client, limits): (&Client, &Limits),
    problem: &CausalConv1dProblem,
    ids: (&[i32], IndexType),
    with_dfinal: bool,
    exact: bool,
) -> (usize, Vec<String>) {
    let integers = |seed: u64, length: usize| fill::integers(seed, length, -3, 3);
    let fill: &dyn Fn(u64, usize) -> Vec<f32> = if exact { &integers } else { &normal };
    let tensors = tensors_with(client, problem, ids, with_dfinal, fill);
    let plans = plans(problem, limits);
    let launched: Vec<_> =
        plans.iter().map(|plans| launch((client, limits), problem, *plans, &tensors)).collect();
    let oracles = oracles(problem, &tensors);
    let (mut checks, mut failures) = (0, Vec::new());
    for (plans, results) in plans.iter().zip(read_results(client, &launched)) {
        assert_eq!(results.len(), oracles.len());
        for ((name, got), oracle) in results.iter().zip(&oracles) {
            checks += 1;
            if let Err(error) = oracle.check(name, got, exact) {
                let [forward, backward] = plans.map(Plan::name);
                let dtypes = format!("{} {}", problem.dtype.name(), problem.weight_dtype.name());
                failures.push(format!("{dtypes} {forward}/{backward} {name}: {error}"));
            }
        }
    }
    (checks, failures)
}
