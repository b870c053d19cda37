//! Causal conv1d, its gradients and final state through `conv-kernels`.

use crate::backend::cube::{allocate, index_operand, operand};
use crate::backend::portable::dtype_of;
use crate::backend::{CausalConv1dGradients, CausalConv1dInputs};
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use conv_kernels::causal_conv1d::{self, CausalConv1dProblem, Gradients, Inputs, Pass};
use conv_kernels::{ConvError, IndexOperand, Limits, Operand};

/// The inputs as the kernels see them.
struct Operands {
    x: Operand,
    weight: Operand,
    bias: Option<Operand>,
    initial_state: Option<Operand>,
    seq_idx: Option<IndexOperand>,
    residual: Option<Operand>,
}

impl Operands {
    fn of(inputs: &CausalConv1dInputs<CubeBackend>) -> Result<Self, ConvError> {
        Ok(Self {
            x: operand(&inputs.x)?,
            weight: operand(&inputs.weight)?,
            bias: inputs.bias.as_option().map(operand).transpose()?,
            initial_state: inputs.initial_state.as_option().map(operand).transpose()?,
            seq_idx: inputs.seq_idx.as_option().map(index_operand).transpose()?,
            residual: inputs.residual.as_option().map(operand).transpose()?,
        })
    }

    fn inputs(&self) -> Inputs<'_> {
        Inputs {
            x: &self.x,
            weight: &self.weight,
            bias: self.bias.as_ref(),
            initial_state: self.initial_state.as_ref(),
            seq_idx: self.seq_idx.as_ref(),
            residual: self.residual.as_ref(),
        }
    }
}

pub(crate) fn forward(
    inputs: &CausalConv1dInputs<CubeBackend>,
    problem: &CausalConv1dProblem,
) -> Result<CubeTensor, ConvError> {
    let x = &inputs.x;
    let limits = Limits::shared(&x.client);
    let y = allocate(x, &problem.x_shape(), x.dtype);
    let plan = causal_conv1d::plan(problem, Pass::Forward, &limits)?;
    let operands = Operands::of(inputs)?;
    causal_conv1d::forward(&x.client, &limits, problem, &plan, &operands.inputs(), &operand(&y)?)?;
    Ok(y)
}

pub(crate) fn backward(
    inputs: &CausalConv1dInputs<CubeBackend>,
    dy: &CubeTensor,
    problem: &CausalConv1dProblem,
) -> Result<CausalConv1dGradients<CubeBackend>, ConvError> {
    let (x, weight) = (&inputs.x, &inputs.weight);
    let limits = Limits::shared(&x.client);
    let dx = allocate(x, &problem.x_shape(), x.dtype);
    let dw = allocate(x, &problem.weight_shape(), weight.dtype);
    let db = problem.bias.then(|| allocate(x, &[problem.channels], weight.dtype));
    let state_dtype = dtype_of(problem.state_dtype);
    let dinitial = problem.initial_state.then(|| allocate(x, &problem.state_shape(), state_dtype));
    let plan = causal_conv1d::plan(problem, Pass::Backward, &limits)?;
    let operands = Operands::of(inputs)?;
    let out = [operand(&dx)?, operand(&dw)?];
    let optional = [db.as_ref().map(operand).transpose()?, dinitial.as_ref().map(operand).transpose()?];
    let out = Gradients {
        x: &out[0],
        weight: &out[1],
        bias: optional[0].as_ref(),
        initial_state: optional[1].as_ref(),
    };
    let dy = operand(dy)?;
    causal_conv1d::backward(&x.client, &limits, problem, &plan, &operands.inputs(), &dy, None, &out)?;
    Ok(CausalConv1dGradients { x: dx, weight: dw, bias: db.into(), initial_state: dinitial.into() })
}

pub(crate) fn final_state(
    x: &CubeTensor,
    initial: Option<&CubeTensor>,
    ids: Option<&CubeTensor>,
    problem: &CausalConv1dProblem,
) -> Result<CubeTensor, ConvError> {
    let limits = Limits::shared(&x.client);
    let state = allocate(x, &problem.state_shape(), dtype_of(problem.state_dtype));
    let initial = initial.map(operand).transpose()?;
    let ids = ids.map(index_operand).transpose()?;
    let (from, to) = (operand(x)?, operand(&state)?);
    causal_conv1d::final_state(&x.client, &limits, problem, &from, initial.as_ref(), ids.as_ref(), &to)?;
    Ok(state)
}
