//! Causal conv1d: the inputs of a problem on the device, launches of both passes, and the expected results.

use crate::buffer::{Buffer, output, read_all, round, upload, upload_indices};
use conv_kernels::causal_conv1d::{
    self as op, CausalConv1dProblem, Pass, Plan, eligible, reference as oracle,
};
use conv_kernels::conv3d::Activation;
use conv_kernels::tolerance::{Expected, Guard};
use conv_kernels::{ConvError, FloatType, IndexOperand, IndexType, Limits, row_major};
use cubecl::prelude::*;

/// The inputs of a problem on the device.
pub struct Tensors {
    /// `[B, C, T]` or `[B, T, C]`.
    pub x: Buffer,
    /// `[C, W]`.
    pub weight: Buffer,
    /// `[C]`.
    pub bias: Option<Buffer>,
    /// `[B, C, W-1]`.
    pub state: Option<Buffer>,
    /// `[B, T]`.
    pub ids: Option<(Vec<i64>, IndexOperand)>,
    /// Of x's shape.
    pub residual: Option<Buffer>,
    /// Of x's shape.
    pub dy: Buffer,
    /// Of the state's shape.
    pub dfinal: Option<Buffer>,
}

/// Uploads `fill(seed, length)` for each input of the problem, and ids of the given type.
pub fn tensors_with(
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
    /// What both passes read.
    pub fn inputs(&self) -> op::Inputs<'_> {
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

/// The results of the op, by name.
pub type Results = Vec<(&'static str, Buffer)>;

/// Launches both passes, each under its plan.
pub fn launch(
    (client, limits): (&Client, &Limits),
    problem: &CausalConv1dProblem,
    plans: [Plan; 2],
    tensors: &Tensors,
) -> Results {
    let results = results(problem, &|shape, dtype| output(client, shape, dtype));
    launch_into((client, limits), problem, plans, tensors, &results)
        .unwrap_or_else(|error| panic!("{problem:?}: {error}"));
    results
}

/// The tensors of a problem's results, made by `of(shape, dtype)`.
pub fn results(problem: &CausalConv1dProblem, of: &dyn Fn(&[usize], FloatType) -> Buffer) -> Results {
    let (x, state) = (problem.x_shape(), problem.state_shape());
    let (dtype, weight_dtype, state_dtype) = (problem.dtype, problem.weight_dtype, problem.state_dtype);
    let mut results = vec![
        ("y", of(&x, dtype)),
        ("final state", of(&state, state_dtype)),
        ("dx", of(&x, dtype)),
        ("dw", of(&problem.weight_shape(), weight_dtype)),
    ];
    results.extend(problem.bias.then(|| ("db", of(&[problem.channels], weight_dtype))));
    results.extend(problem.initial_state.then(|| ("dinitial", of(&state, state_dtype))));
    results
}

/// [`launch`] into tensors that [`results`] made.
///
/// # Errors
/// Those of the passes.
///
/// # Panics
/// When a result is missing.
pub fn launch_into(
    (client, limits): (&Client, &Limits),
    problem: &CausalConv1dProblem,
    [forward, backward]: [Plan; 2],
    tensors: &Tensors,
    results: &Results,
) -> Result<(), ConvError> {
    let result =
        |name: &str| results.iter().find(|(other, _)| *other == name).map(|(_, buffer)| buffer.operand());
    let of = |name: &str| result(name).expect("a result");
    let inputs = tensors.inputs();
    let gradients = op::Gradients {
        x: of("dx"),
        weight: of("dw"),
        bias: result("db"),
        initial_state: result("dinitial"),
    };
    let dfinal = tensors.dfinal.as_ref().map(Buffer::operand);
    op::forward(client, limits, problem, &forward, &inputs, of("y"))?;
    let (initial, ids) = (inputs.initial_state, inputs.seq_idx);
    op::final_state(client, limits, problem, inputs.x, initial, ids, of("final state"))?;
    op::backward(client, limits, problem, &backward, &inputs, tensors.dy.operand(), dfinal, &gradients)
}

/// The values of results, with one wait for the device.
pub fn read_results(client: &Client, results: &[Results]) -> Vec<Vec<(&'static str, Vec<f64>)>> {
    let buffers: Vec<&Buffer> = results.iter().flatten().map(|(_, buffer)| buffer).collect();
    let mut values = read_all(client, &buffers).into_iter();
    results
        .iter()
        .map(|results| results.iter().map(|(name, _)| *name).zip(values.by_ref()).collect())
        .collect()
}

/// Pairs of plans, forward and backward, that cover every eligible plan.
pub fn plans(problem: &CausalConv1dProblem, limits: &Limits) -> Vec<[Plan; 2]> {
    let [forward, backward] = [Pass::Forward, Pass::Backward].map(|pass| eligible(problem, pass, limits));
    let at = |plans: &[Plan], index: usize| plans[index.min(plans.len() - 1)];
    (0..forward.len().max(backward.len())).map(|index| [at(&forward, index), at(&backward, index)]).collect()
}

/// An expected result: values, magnitudes and number of terms of the longest sum, for the error bound.
pub struct Oracle {
    values: Vec<f64>,
    magnitudes: Vec<f64>,
    terms: usize,
    dtype: FloatType,
    guard: Guard,
}

/// The f64 results, in the order of [`launch`].
pub fn oracles(problem: &CausalConv1dProblem, tensors: &Tensors) -> Vec<Oracle> {
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
    /// The expected result and the RMS guard for normally distributed data.
    pub fn expected(&self) -> (Expected<'_>, Guard) {
        let Self { values, magnitudes, terms, dtype, guard } = self;
        (Expected { values, magnitudes, terms: *terms, dtype: *dtype, slope: 1.0 }, *guard)
    }

    /// Compares a result; with `exact`, bit for bit, for integer data.
    ///
    /// # Errors
    /// A report with the worst element.
    pub fn check(&self, name: &str, got: &[f64], exact: bool) -> Result<(), String> {
        self.check_with(name, got, exact, true)
    }

    /// [`check`](Self::check); the RMS guard applies only to `random` data.
    ///
    /// # Errors
    /// A report with the worst element.
    pub fn check_with(&self, name: &str, got: &[f64], exact: bool, random: bool) -> Result<(), String> {
        if exact || name == "final state" {
            // Sums of small integers are exact in fp32 and have one final rounding; the final state is a
            // copy.
            let want = |index: usize| f64::from(round(self.values[index] as f32, self.dtype));
            return match (0..self.values.len()).find(|index| got[*index] != want(*index)) {
                Some(index) => {
                    Err(format!("element {index}: got {}, exactly {} expected", got[index], want(index)))
                }
                None => Ok(()),
            };
        }
        let (expected, guard) = self.expected();
        expected.check(got, random.then_some(guard)).map(|_| ())
    }
}
