//! Causal conv1d: forward, backward, states and decoding.
//!
//! Kernels are specialized by layout, number of tap registers, presence of states, type of ids, vector width
//! and two dtypes; activation and bias are run-time arguments. The table is the full product, but other
//! weight types appear with the plainest options only.

use crate::{IndexWidth, indices, note_refusal, tensor, understated};
use conv_cases::causal_conv1d::{UpdateCase, update_cases};
use conv_kernels::causal_conv1d::{
    CausalConv1dProblem, Conv1dLayout, DecodingSteps, Gradients, Inputs, NARROW_WIDTH, OptionalShapes, Pass,
    Plan, UpdateProblem, backward, eligible, final_state, forward, last_states, sequence_ids, update,
    update_needs, update_steps,
};
use conv_kernels::conv3d::Activation;
use conv_kernels::{FloatType, IndexType, Limits};
use cubecl::prelude::Client;
use msl_host::{Label, Recorder};

const ACTIVATIONS: [Activation; 3] = [Activation::None, Activation::Relu, Activation::Silu];
const IDS: [Option<IndexType>; 3] = [None, Some(IndexType::I32), Some(IndexType::I64)];

/// The options of one call.
#[derive(Clone, Copy, Debug)]
pub struct CallVariant {
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
    /// Whether there are an initial state and a residual.
    pub initial: bool,
    /// Type of the sequence ids, if there are any.
    pub ids: Option<IndexType>,
    /// Type of x.
    pub dtype: FloatType,
    /// Type of weight and bias.
    pub weight_dtype: FloatType,
    /// Type of the states.
    pub state_dtype: FloatType,
}

impl CallVariant {
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
            state_dtype: dtype,
        }
    }

    /// The problem of the call.
    ///
    /// # Errors
    ///
    /// None for the calls of [`table`].
    pub fn problem(&self) -> Result<CausalConv1dProblem, conv_kernels::ConvError> {
        let [b, c, t] = self.extents;
        let x = self.layout.swapped([b, c, t]);
        let optional = OptionalShapes {
            bias: self.bias.then_some(c),
            initial_state: self.initial.then_some([b, c, self.width - 1]),
            seq_idx: self.ids.map(|_| [b, t]),
            residual: self.initial.then_some(x),
        };
        let weight = [c, self.width];
        let Self { layout, activation, dtype, weight_dtype, .. } = *self;
        CausalConv1dProblem::new(x, weight, optional, layout, activation, dtype, weight_dtype)?
            .with_state_dtype(self.state_dtype)
    }

    /// `f16`, or `f16 x f32` where the weight has another dtype.
    fn dtypes(&self) -> String {
        let (x, w) = (self.dtype.name(), self.weight_dtype.name());
        if x == w { x.into() } else { format!("{x} x {w}") }
    }

    fn options(&self, plan: Plan) -> String {
        let mut words = vec![format!("{:?}", self.layout).to_lowercase()];
        if plan == Plan::Narrow {
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
        if self.state_dtype != self.dtype {
            words.push(format!("states {}", self.state_dtype.name()));
        }
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
    record_decoding(recorder, limits, dtype, refused);
    for (case, activation, weight_dtype) in updates(index).into_iter().filter(|update| serves(update.2, None))
    {
        let shape = ([case.b, case.c], [case.b, case.c, case.s], [case.c, case.w]);
        let bias = case.bias.then_some(case.c);
        let result = UpdateProblem::new(shape.0, shape.1, shape.2, bias, activation, dtype, weight_dtype)
            .map(|problem| record_update(recorder, limits, &problem, &case.name, refused));
        let label = Label { what: "causal_conv1d update".into(), options: dtype.name().into() };
        note_refusal(result, &label, &case.name, refused);
    }
}

/// Decoding problems of some widths with every activation and type of the weight.
pub fn updates(index: IndexWidth) -> Vec<(UpdateCase, Activation, FloatType)> {
    let mut updates = Vec::new();
    let few = if index == IndexWidth::Narrow { 4 } else { 1 };
    // A state of four columns has its own kernel.
    let four = update_cases().into_iter().find(|case| case.s == 4);
    for case in update_cases().into_iter().step_by(13).take(few).chain(four) {
        for weight_dtype in FloatType::ALL {
            updates.extend(ACTIVATIONS.map(|activation| (case.clone(), activation, weight_dtype)));
        }
    }
    updates
}

/// Calls that reach every kernel of the op's passes for x of `dtype`.
pub fn table(dtype: FloatType, index: IndexWidth) -> Vec<CallVariant> {
    let mut calls = Vec::new();
    for layout in [Conv1dLayout::Bct, Conv1dLayout::Btc] {
        let base = CallVariant::new(layout, dtype);
        let plain = CallVariant { bias: false, initial: false, activation: Activation::None, ..base };
        // Extents that allow vector access, and (`base`) that do not.
        let vectors = CallVariant { extents: [2, 8, 32], ..base };
        if index == IndexWidth::Wide {
            calls.extend([None, Some(IndexType::I32)].map(|ids| CallVariant { ids, ..base }));
            continue;
        }
        for ids in IDS {
            for width in [4, NARROW_WIDTH, NARROW_WIDTH + 1] {
                calls.extend([base, vectors].map(|call| CallVariant { width, ids, ..call }));
            }
        }
        for width in [4, NARROW_WIDTH] {
            // SiLU has its own kernel.
            calls.extend([Activation::Relu, Activation::Silu].map(|activation| CallVariant {
                width,
                initial: false,
                activation,
                ..vectors
            }));
        }
        calls.extend([1, 2, 5].map(|width| CallVariant { width, ..base }));
        calls.extend(FloatType::ALL.map(|weight_dtype| CallVariant { weight_dtype, ..plain }));
        // Empty results, fewer steps than the filter is wide, and partial sums.
        calls.extend(
            [[0, 5, 33], [2, 0, 33], [2, 5, 0], [2, 5, 1]].map(|extents| CallVariant { extents, ..base }),
        );
        calls.extend([[20, 128, 8], [300, 5, 8]].map(|extents| CallVariant { extents, ..plain }));
        // fp32 states with 16-bit tensors, as in inference servers.
        let kept = CallVariant { state_dtype: FloatType::F32, ..base };
        if dtype != FloatType::F32 {
            let ids = Some(IndexType::I32);
            calls.extend([
                kept,
                CallVariant { ids, ..kept },
                CallVariant { width: NARROW_WIDTH + 1, ..kept },
            ]);
        }
    }
    calls
}

fn record_call(recorder: &Recorder, limits: &Limits, call: &CallVariant, refused: &mut Vec<String>) {
    let case = format!("B, C, T = {:?}", call.extents);
    let label = |pass: &str, plan: Plan| Label {
        what: format!("causal_conv1d {pass} {} {}", plan.name(), call.dtypes()),
        options: call.options(plan),
    };
    let problem = match call.problem() {
        Ok(problem) => problem,
        Err(error) => return note_refusal(Err(error), &label("problem", Plan::Empty), &case, refused),
    };
    for plan in eligible(&problem, Pass::Forward, limits) {
        let label = label("forward", plan);
        let first = recorder.log().launches.len();
        let result = recorder.record(&label, |client| {
            let operands = Operands::new(client, call, &problem);
            let y = tensor(client, &problem.x_shape(), call.dtype);
            forward(client, limits, &problem, &plan, &operands.inputs(), &y)
        });
        note_refusal(result, &label, &case, refused);
        let needs = plan.needs(&problem, Pass::Forward, limits);
        refused.extend(understated(&recorder.log(), first, &needs, &label));
    }
    for plan in eligible(&problem, Pass::Backward, limits) {
        for with_final in [true, false] {
            let mut label = label("backward", plan);
            if with_final {
                label.options += " final";
            }
            let first = recorder.log().launches.len();
            let result = recorder
                .record(&label, |client| record_backward(client, limits, call, &problem, plan, with_final));
            note_refusal(result, &label, &case, refused);
            let needs = plan.needs(&problem, Pass::Backward, limits);
            refused.extend(understated(&recorder.log(), first, &needs, &label));
        }
    }
    let label = Label {
        what: format!("causal_conv1d final state {}", call.dtype.name()),
        options: call.options(Plan::Empty),
    };
    let result = recorder.record(&label, |client| {
        let operands = Operands::new(client, call, &problem);
        let out = tensor(client, &problem.state_shape(), call.state_dtype);
        let (initial, ids) = (operands.initial.as_ref(), operands.ids.as_ref());
        final_state(client, limits, &problem, &operands.x, initial, ids, &out)
    });
    note_refusal(result, &label, &case, refused);
}

fn record_backward(
    client: &Client,
    limits: &Limits,
    call: &CallVariant,
    problem: &CausalConv1dProblem,
    plan: Plan,
    with_final: bool,
) -> Result<(), conv_kernels::ConvError> {
    let operands = Operands::new(client, call, problem);
    let of_inputs = Operands::new(client, call, problem);
    let dy = tensor(client, &problem.x_shape(), call.dtype);
    let dfinal = with_final.then(|| tensor(client, &problem.state_shape(), call.state_dtype));
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
    residual: Option<conv_kernels::Operand>,
}

impl Operands {
    fn new(client: &Client, call: &CallVariant, problem: &CausalConv1dProblem) -> Self {
        Self {
            x: tensor(client, &problem.x_shape(), call.dtype),
            weight: tensor(client, &problem.weight_shape(), call.weight_dtype),
            bias: call.bias.then(|| tensor(client, &[problem.channels], call.weight_dtype)),
            initial: call.initial.then(|| tensor(client, &problem.state_shape(), call.state_dtype)),
            ids: call.ids.map(|ids| indices(client, &problem.seq_idx_shape(), ids)),
            residual: call.initial.then(|| tensor(client, &problem.x_shape(), call.dtype)),
        }
    }

    fn inputs(&self) -> Inputs<'_> {
        Inputs {
            x: &self.x,
            weight: &self.weight,
            bias: self.bias.as_ref(),
            initial_state: self.initial.as_ref(),
            seq_idx: self.ids.as_ref(),
            residual: self.residual.as_ref(),
        }
    }
}

/// Ring buffers with both types of lengths, the last states of packed sequences and their ids.
fn record_decoding(recorder: &Recorder, limits: &Limits, dtype: FloatType, refused: &mut Vec<String>) {
    let served = IndexType::ALL.into_iter().filter(|index| index.served_by(recorder.client()));
    for index in served {
        for (name, ring, slots) in [("ring", true, false), ("slots", false, true), ("ring slots", true, true)]
        {
            record_indexed_update(recorder, limits, (dtype, index), (name, ring, slots), refused);
        }
        let label = Label {
            what: format!("causal_conv1d last states {}", dtype.name()),
            options: format!("bounds {}", index.name()),
        };
        let result = recorder.record(&label, |client| {
            let (x, out) = (tensor(client, &[1, 3, 9], dtype), tensor(client, &[2, 3, 4], dtype));
            last_states(client, limits, Conv1dLayout::Bct, &x, &indices(client, &[3], index), &out)
        });
        note_refusal(result, &label, "two sequences", refused);
        let label = Label { what: "causal_conv1d sequence ids".into(), options: index.name().into() };
        let result = recorder.record(&label, |client| {
            sequence_ids(client, limits, &indices(client, &[3], index), &indices(client, &[1, 9], index))
        });
        note_refusal(result, &label, "two sequences", refused);
    }
}

/// An update with a ring, slots or both.
fn record_indexed_update(
    recorder: &Recorder,
    limits: &Limits,
    (dtype, index): (FloatType, IndexType),
    (name, ring, slots): (&str, bool, bool),
    refused: &mut Vec<String>,
) {
    let label = Label {
        what: format!("causal_conv1d update {}", dtype.name()),
        options: format!("{name} {}", index.name()),
    };
    let problem = UpdateProblem::new([2, 3], [2, 3, 4], [3, 4], None, Activation::None, dtype, dtype);
    let problem = match problem {
        Ok(problem) => problem,
        Err(error) => return note_refusal(Err(error), &label, name, refused),
    };
    let first = recorder.log().launches.len();
    let result = recorder.record(&label, |client| {
        let [x, y] = [(); 2].map(|()| tensor(client, &[2, 3, 2], dtype));
        let state = tensor(client, &[2, 3, 4], dtype);
        let weight = tensor(client, &[3, 4], dtype);
        let [lengths, rows] = [ring, slots].map(|given| given.then(|| indices(client, &[2], index)));
        let steps = DecodingSteps {
            x: &x,
            state: &state,
            weight: &weight,
            bias: None,
            lengths: lengths.as_ref(),
            slots: rows.as_ref(),
            y: &y,
            new_state: &state,
        };
        update_steps(client, limits, &problem, &steps)
    });
    note_refusal(result, &label, name, refused);
    let needs = update_needs(&problem, 2, usize::from(ring) + usize::from(slots));
    refused.extend(understated(&recorder.log(), first, &needs, &label));
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
    let first = recorder.log().launches.len();
    let result = recorder.record(&label, |client| {
        let [x, y] = [(); 2].map(|()| tensor(client, &problem.x_shape(), dtype));
        let [state, new_state] = [(); 2].map(|()| tensor(client, &problem.state_shape(), dtype));
        let weight = tensor(client, &problem.weight_shape(), weight_dtype);
        let bias = problem.bias.then(|| tensor(client, &[problem.channels], weight_dtype));
        update(client, limits, problem, &x, &state, &weight, bias.as_ref(), &y, &new_state)
    });
    note_refusal(result, &label, case, refused);
    refused.extend(understated(&recorder.log(), first, &update_needs(problem, 1, 0), &label));
}
