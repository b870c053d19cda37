//! Runs one recorded convolution on this crate's kernels.
//!
//! Nothing is copied: conv1d and conv2d become conv3d by axes of one element in the tensors' metadata. A call
//! that cannot be served ends in an error before anything is launched, with all operands in place. What was
//! decided for a call is kept with its operation ([`Last`]) for the next one of the same problem.

mod transposed;

use super::op::{Call, Pass};
use super::predict::{self, Left};
use crate::backend::Conv3dCall;
use crate::conv3d::cube::{self, Decided};
use crate::patch::BurnSeconds;
use burn::backend::fusion::stream::Context;
use burn::backend::ir::TensorIr;
use burn::tensor::Shape;
use burn_cubecl::cubecl::zspace::{Strides, metadata::Metadata};
use burn_cubecl::fusion::CubeFusionHandle;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeBackend, CubeDevice};
use conv_kernels::ConvError;
use conv_kernels::conv3d::{self, Algorithm, Conv3dProblem};

/// The last call of an operation, with what was decided for it: a pure function of the rest.
#[derive(Default)]
pub(super) struct Last(Option<(Conv3dCall, conv3d::Pass, CubeDevice, Decided)>);

impl Last {
    /// What is decided for a call on the tensor's device: as at the last call where nothing has changed.
    fn decided(&mut self, call: &Conv3dCall, pass: conv3d::Pass, tensor: &CubeTensor) -> &mut Decided {
        let same = self
            .0
            .as_ref()
            .is_some_and(|(of, for_pass, device, _)| (of, *for_pass, device) == (call, pass, &tensor.device));
        if !same {
            self.0 = None;
        }
        let (.., decided) =
            self.0.get_or_insert_with(|| (*call, pass, tensor.device.clone(), Decided::on(&tensor.client)));
        decided
    }
}

/// Computes and registers the result.
pub(super) fn serve(
    call: &Call<'_>,
    algorithm: Algorithm,
    burn_seconds: Option<BurnSeconds>,
    last: &mut Last,
    context: &mut Context<CubeFusionHandle>,
) -> Result<(), Left> {
    let operands = Operands {
        first: operand(call.first, call, context)?,
        second: call.second.map(|ir| operand(ir, call, context)).transpose()?,
        bias: call.bias.map(|ir| operand(ir, call, context)).transpose()?,
        out: extents(&context.tensors[&call.out.id].shape)?,
    };
    let result = compute(call, algorithm, burn_seconds, last, &operands)?;
    let id = context.tensors[&call.out.id].id;
    context.handles.register_float_tensor::<CubeBackend>(&id, result);
    Ok(())
}

/// Tensors with five axes, a bias with one.
struct Operands {
    first: CubeTensor,
    second: Option<CubeTensor>,
    bias: Option<CubeTensor>,
    /// Of the bias' gradient: its length and no other axes.
    out: [usize; 5],
}

fn compute(
    call: &Call<'_>,
    algorithm: Algorithm,
    burn_seconds: Option<BurnSeconds>,
    last: &mut Last,
    operands: &Operands,
) -> Result<CubeTensor, Left> {
    let Operands { first, second, bias, out } = operands;
    let (first_dims, out) = (dims(first), *out);
    let bias_length = bias.as_ref().map(|bias| bias.meta.shape()[0]);
    let problem = |x: [usize; 5], weight: [usize; 5], bias: Option<usize>, y: [usize; 5]| {
        let dtype = crate::check::float_type(call.kind.name(), "the result", call.out.dtype)?;
        let problem = Conv3dProblem::new(x, weight, bias, call.window, dtype)?;
        if problem.y_shape() != y {
            let expected = problem.y_shape();
            let name = call.kind.name();
            return Err(ConvError::Unsupported(format!(
                "{name}: y is {y:?} where a convolution gives {expected:?}"
            )));
        }
        Ok(Conv3dCall::new(problem, algorithm))
    };
    let second = || second.as_ref().ok_or_else(|| missing(call));
    let result = match call.kind.pass {
        Pass::Forward => {
            let weight = second()?;
            if bias.is_none()
                && let Some(problem) = transposed::weight_gradient(call, first, weight, out)
            {
                let call_of_dw = Conv3dCall::new(problem, algorithm);
                let decided = last.decided(&call_of_dw, conv3d::Pass::WeightGradient, first);
                let dw = transposed::compute(decided, call_of_dw, first, weight)?;
                return Ok(lowered(dw, call.kind.rank));
            }
            let call = problem(first_dims, dims(weight), bias_length, out)?;
            let decided = last.decided(&call, conv3d::Pass::Forward, first);
            predict::check(&call, conv3d::Pass::Forward, decided, burn_seconds)?;
            cube::forward_by(decided, first, weight, [bias.as_ref(), None], &call, false)?.0
        }
        Pass::InputGradient => {
            let weight = second()?;
            let call = problem(out, dims(weight), None, first_dims)?;
            let decided = last.decided(&call, conv3d::Pass::InputGradient, first);
            predict::check(&call, conv3d::Pass::InputGradient, decided, burn_seconds)?;
            cube::input_gradient_by(decided, first, weight, &call)?
        }
        Pass::Transposed => {
            let weight = second()?;
            let gradient = problem(out, dims(weight), None, first_dims)?;
            if let Some(length) = bias_length.filter(|length| *length != out[1]) {
                let (name, channels) = (call.kind.name(), out[1]);
                return Err(ConvError::Invalid(format!(
                    "{name}: the bias has {length} elements, the result has {channels} channels"
                ))
                .into());
            }
            let decided = last.decided(&gradient, conv3d::Pass::InputGradient, first);
            cube::transposed_by(decided, first, weight, bias.as_ref(), &gradient, false)?.0
        }
        Pass::WeightGradient => {
            let dy = second()?;
            let call = problem(first_dims, out, None, dims(dy))?;
            let decided = last.decided(&call, conv3d::Pass::WeightGradient, first);
            predict::check(&call, conv3d::Pass::WeightGradient, decided, burn_seconds)?;
            cube::weight_gradient_by(decided, first, dy, &call)?
        }
        Pass::BiasGradient => {
            // A sum over all but the channels, the same for every convolution with this result.
            let [n, o, d, h, w] = first_dims;
            let call = problem([n, 1, d, h, w], [o, 1, 1, 1, 1], None, first_dims)?;
            return Ok(cube::bias_gradient(first, &call)?);
        }
    };
    Ok(lowered(result, call.kind.rank))
}

/// The tensor behind `ir`, with five axes unless it has one.
fn operand(
    ir: &TensorIr,
    call: &Call<'_>,
    context: &Context<CubeFusionHandle>,
) -> Result<CubeTensor, ConvError> {
    let name = call.kind.name();
    let global = &context.tensors[&ir.id];
    let handle = context.handles.get_handle_ref(&global.id).ok_or_else(|| missing(call))?;
    if handle.dtype != call.out.dtype {
        let (operand, result) = (handle.dtype.name(), call.out.dtype.name());
        return Err(ConvError::Unsupported(format!("{name}: an operand is {operand}, the result {result}")));
    }
    if handle.tiles.is_some() {
        return Err(ConvError::Unsupported(format!("{name}: an operand is stored in tiles")));
    }
    let (shape, strides) = (&global.shape, &handle.strides);
    Ok(CubeTensor {
        client: handle.client.clone(),
        handle: handle.handle.clone(),
        device: handle.device.clone(),
        meta: Box::new(if shape.rank() > 1 {
            lifted(shape, strides)?
        } else {
            handle.metadata(shape.clone())
        }),
        dtype: handle.dtype,
        qparams: None,
    })
}

fn missing(call: &Call<'_>) -> ConvError {
    ConvError::Invalid(format!("{}: an operand has no data", call.kind.name()))
}

/// The five extents of a shape `[N, C, ..]`, axes of one element before the others. A shape of one axis is
/// followed by such axes.
fn extents(shape: &[usize]) -> Result<[usize; 5], ConvError> {
    let mut five = [1; 5];
    match shape {
        [length] => five[0] = *length,
        [n, c, axes @ ..] if (1..=3).contains(&axes.len()) => {
            (five[0], five[1]) = (*n, *c);
            five[5 - axes.len()..].copy_from_slice(axes);
        }
        _ => {
            return Err(ConvError::Unsupported(format!(
                "burn-conv-ops: a convolution has an operand of shape {shape:?}, expected 1 or 3 to 5 axes"
            )));
        }
    }
    Ok(five)
}

/// Metadata with five axes. An axis of one element has the stride that a contiguous tensor would give it.
fn lifted(shape: &[usize], strides: &[usize]) -> Result<Metadata, ConvError> {
    let extents = extents(shape)?;
    let (outer, inner) = strides.split_at(2);
    let mut five = [shape[2] * inner[0]; 5];
    five[..2].copy_from_slice(outer);
    five[5 - inner.len()..].copy_from_slice(inner);
    Ok(Metadata::new(Shape::from(extents), Strides::new(&five)))
}

/// The tensor without the axes that `lifted` adds for this rank.
fn lowered(tensor: CubeTensor, rank: usize) -> CubeTensor {
    if rank == 3 {
        return tensor;
    }
    let kept = |sizes: &[usize]| [&sizes[..2], &sizes[5 - rank..]].concat();
    let (shape, strides) = (kept(tensor.meta.shape()), kept(tensor.meta.strides()));
    view(tensor, &shape, &strides)
}

/// The same memory with another shape.
fn view(mut tensor: CubeTensor, shape: &[usize], strides: &[usize]) -> CubeTensor {
    *tensor.meta = Metadata::new(Shape::from(shape.to_vec()), Strides::new(strides));
    tensor
}

fn dims(tensor: &CubeTensor) -> [usize; 5] {
    tensor.meta.shape().dims()
}
