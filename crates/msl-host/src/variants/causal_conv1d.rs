//! Causal conv1d: forward, backward, final state and one-step update.
//!
//! The full product of width, layout, activation, bias, states, ids and two dtypes has tens of thousands of kernels.
//! Lowered are every width x layout x type of ids with the other options on, every combination of the other options at
//! one width, and every pair of dtypes.

use super::{IndexWidth, indices, note, tensor};
use crate::server::{Label, Recorder};
use conv_cases::causal_conv1d::{UpdateCase, update_cases};
use conv_kernels::causal_conv1d::{
    CausalConv1dProblem, Conv1dLayout, Gradients, Inputs, OptionalShapes, Pass, Plan, UNROLLED_WIDTH,
    UpdateProblem, backward, eligible, final_state, forward, update,
};
use conv_kernels::conv3d::Activation;
use conv_kernels::{FloatType, IndexType, Limits};
use cubecl::prelude::Client;

const ACTIVATIONS: [Activation; 3] = [Activation::None, Activation::Relu, Activation::Silu];
const IDS: [Option<IndexType>; 3] = [None, Some(IndexType::I32), Some(IndexType::I64)];

/// One call.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// B, C, T.
    pub extents: [usize; 3],
    /// W.
    pub width: usize,
    /// Order of the axes.
    pub layout: Conv1dLayout,
    /// Activation.
    pub activation: Activation,
    /// Whether there is a bias.
    pub bias: bool,
    /// Whether there is an initial state.
    pub initial: bool,
    /// Type of the sequence ids, if there are any.
    pub ids: Option<IndexType>,
    /// Type of x.
    pub dtype: FloatType,
    /// Type of weight and bias.
    pub weight_dtype: FloatType,
}

impl Call {
    fn new(layout: Conv1dLayout, dtype: FloatType) -> Self {
        Self {
            extents: [2, 5, 33],
            width: 4,
            layout,
            activation: Activation::Silu,
            bias: true,
            initial: true,
            ids: None,
            dtype,
            weight_dtype: dtype,
        }
    }

    /// The problem of the call.
    ///
    /// # Errors
    ///
    /// None for the calls of [`table`].
    pub fn problem(&self) -> Result<CausalConv1dProblem, conv_kernels::ConvError> {
        let [b, c, t] = self.extents;
        let x = if self.layout == Conv1dLayout::Bct { [b, c, t] } else { [b, t, c] };
        let optional = OptionalShapes {
            bias: self.bias.then_some(c),
            initial_state: self.initial.then_some([b, c, self.width - 1]),
            seq_idx: self.ids.map(|_| [b, t]),
        };
        let weight = [c, self.width];
        let Self { layout, activation, dtype, weight_dtype, .. } = *self;
        CausalConv1dProblem::new(x, weight, optional, layout, activation, dtype, weight_dtype)
    }

    /// `f16`, or `f16 x f32` where the weight has another dtype.
    fn dtypes(&self) -> String {
        let (x, w) = (self.dtype.name(), self.weight_dtype.name());
        if x == w { x.into() } else { format!("{x} x {w}") }
    }

    fn options(&self, plan: Plan) -> String {
        let mut words = vec![format!("{:?}", self.layout).to_lowercase()];
        if plan == Plan::Unrolled {
            words.push(format!("width {}", self.width));
        }
        if self.activation != Activation::None {
            words.push(format!("{:?}", self.activation).to_lowercase());
        }
        for (on, word) in [(self.bias, "bias"), (self.initial, "initial")] {
            if on {
                words.push(word.into());
            }
        }
        words.extend(self.ids.map(|ids| format!("ids {}", ids.name())));
        words.join(" ")
    }
}

/// Launches every pass and plan of the tables in `dtype`.
pub(super) fn record(
    recorder: &Recorder,
    (limits, index): (&Limits, IndexWidth),
    dtype: FloatType,
    refused: &mut Vec<String>,
) {
    let client = recorder.client();
    let serves = |weight_dtype: FloatType, ids: Option<IndexType>| {
        limits.dtypes.contains(&weight_dtype) && ids.is_none_or(|ids| ids.served_by(client))
    };
    for call in table(dtype, index).into_iter().filter(|call| serves(call.weight_dtype, call.ids)) {
        record_call(recorder, limits, &call, refused);
    }
    for (case, activation, weight_dtype) in updates(index).into_iter().filter(|update| serves(update.2, None))
    {
        let shape = ([case.b, case.c], [case.b, case.c, case.s], [case.c, case.w]);
        let bias = case.bias.then_some(case.c);
        let result = UpdateProblem::new(shape.0, shape.1, shape.2, bias, activation, dtype, weight_dtype)
            .map(|problem| record_update(recorder, limits, &problem, &case.name, refused));
        let label = Label { what: "causal_conv1d update".into(), options: dtype.name().into() };
        note(result, &label, &case.name, refused);
    }
}

/// Every decoding problem with every activation and type of the weight.
pub fn updates(index: IndexWidth) -> Vec<(UpdateCase, Activation, FloatType)> {
    let mut updates = Vec::new();
    let few = if index == IndexWidth::Narrow { usize::MAX } else { 2 };
    for case in update_cases().into_iter().take(few) {
        for weight_dtype in FloatType::ALL {
            updates.extend(ACTIVATIONS.map(|activation| (case.clone(), activation, weight_dtype)));
        }
    }
    updates
}

/// Calls that reach every kernel of the op's passes for x of `dtype`.
pub fn table(dtype: FloatType, index: IndexWidth) -> Vec<Call> {
    let mut calls = Vec::new();
    for layout in [Conv1dLayout::Bct, Conv1dLayout::Btc] {
        let base = Call::new(layout, dtype);
        if index == IndexWidth::Wide {
            for activation in [Activation::None, Activation::Silu] {
                calls.extend([None, Some(IndexType::I32)].map(|ids| Call { activation, ids, ..base }));
            }
            continue;
        }
        for ids in IDS {
            calls.extend((1..=UNROLLED_WIDTH + 1).map(|width| Call { width, ids, ..base }));
        }
        for activation in ACTIVATIONS {
            for bits in 0..8 {
                let [bias, initial, packed] = [0, 1, 2].map(|bit| bits >> bit & 1 == 1);
                let ids = packed.then_some(IndexType::I32);
                calls.push(Call { activation, bias, initial, ids, ..base });
            }
        }
        for weight_dtype in FloatType::ALL {
            calls.push(Call { weight_dtype, ..base });
            calls.push(Call {
                weight_dtype,
                bias: false,
                initial: false,
                activation: Activation::None,
                ..base
            });
        }
        // Nothing to compute, and fewer steps than the filter is wide.
        calls.extend([[0, 5, 33], [2, 0, 33], [2, 5, 0], [2, 5, 1]].map(|extents| Call { extents, ..base }));
    }
    calls
}

fn record_call(recorder: &Recorder, limits: &Limits, call: &Call, refused: &mut Vec<String>) {
    let case = format!("B, C, T = {:?}", call.extents);
    let label = |pass: &str, plan: Plan| Label {
        what: format!("causal_conv1d {pass} {} {}", plan.name(), call.dtypes()),
        options: call.options(plan),
    };
    let problem = match call.problem() {
        Ok(problem) => problem,
        Err(error) => return note(Err(error), &label("problem", Plan::Empty), &case, refused),
    };
    for plan in eligible(&problem, Pass::Forward, limits) {
        let label = label("forward", plan);
        let result = recorder.record(&label, |client| {
            let operands = Operands::new(client, call, &problem);
            let y = tensor(client, &problem.x_shape(), call.dtype);
            forward(client, limits, &problem, &plan, &operands.inputs(), &y)
        });
        note(result, &label, &case, refused);
    }
    for plan in eligible(&problem, Pass::Backward, limits) {
        for with_final in [true, false] {
            let mut label = label("backward", plan);
            if with_final {
                label.options += " final";
            }
            let result = recorder
                .record(&label, |client| record_backward(client, limits, call, &problem, plan, with_final));
            note(result, &label, &case, refused);
        }
    }
    let label = Label {
        what: format!("causal_conv1d final state {}", call.dtype.name()),
        options: if call.initial { "initial".into() } else { "-".into() },
    };
    let result = recorder.record(&label, |client| {
        let operands = Operands::new(client, call, &problem);
        let out = tensor(client, &problem.state_shape(), call.dtype);
        final_state(client, limits, &problem, &operands.x, operands.initial.as_ref(), &out)
    });
    note(result, &label, &case, refused);
}

fn record_backward(
    client: &Client,
    limits: &Limits,
    call: &Call,
    problem: &CausalConv1dProblem,
    plan: Plan,
    with_final: bool,
) -> Result<(), conv_kernels::ConvError> {
    let operands = Operands::new(client, call, problem);
    let of_inputs = Operands::new(client, call, problem);
    let dy = tensor(client, &problem.x_shape(), call.dtype);
    let dfinal = with_final.then(|| tensor(client, &problem.state_shape(), call.dtype));
    let gradients = Gradients {
        x: &of_inputs.x,
        weight: &of_inputs.weight,
        bias: of_inputs.bias.as_ref(),
        initial_state: of_inputs.initial.as_ref(),
    };
    backward(client, limits, problem, &plan, &operands.inputs(), &dy, dfinal.as_ref(), &gradients)
}

/// The inputs of a call, or their gradients.
struct Operands {
    x: conv_kernels::Operand,
    weight: conv_kernels::Operand,
    bias: Option<conv_kernels::Operand>,
    initial: Option<conv_kernels::Operand>,
    ids: Option<conv_kernels::IndexOperand>,
}

impl Operands {
    fn new(client: &Client, call: &Call, problem: &CausalConv1dProblem) -> Self {
        Self {
            x: tensor(client, &problem.x_shape(), call.dtype),
            weight: tensor(client, &problem.weight_shape(), call.weight_dtype),
            bias: call.bias.then(|| tensor(client, &[problem.channels], call.weight_dtype)),
            initial: call.initial.then(|| tensor(client, &problem.state_shape(), call.dtype)),
            ids: call.ids.map(|ids| indices(client, &problem.seq_idx_shape(), ids)),
        }
    }

    fn inputs(&self) -> Inputs<'_> {
        Inputs {
            x: &self.x,
            weight: &self.weight,
            bias: self.bias.as_ref(),
            initial_state: self.initial.as_ref(),
            seq_idx: self.ids.as_ref(),
        }
    }
}

fn record_update(
    recorder: &Recorder,
    limits: &Limits,
    problem: &UpdateProblem,
    case: &str,
    refused: &mut Vec<String>,
) {
    let UpdateProblem { dtype, weight_dtype, .. } = *problem;
    let mut options = format!("{:?} weight {}", problem.activation, weight_dtype.name()).to_lowercase();
    if problem.bias {
        options += " bias";
    }
    let label = Label { what: format!("causal_conv1d update {}", dtype.name()), options };
    let result = recorder.record(&label, |client| {
        let [x, y] = [(); 2].map(|()| tensor(client, &problem.x_shape(), dtype));
        let [state, new_state] = [(); 2].map(|()| tensor(client, &problem.state_shape(), dtype));
        let weight = tensor(client, &problem.weight_shape(), weight_dtype);
        let bias = problem.bias.then(|| tensor(client, &[problem.channels], weight_dtype));
        update(client, limits, problem, &x, &state, &weight, bias.as_ref(), &y, &new_state)
    });
    note(result, &label, case, refused);
}
