//! What the `try_` functions check before anything is launched: dtypes, devices, shapes, and what the device
//! serves.

mod decoding;

pub(crate) use decoding::{
    causal_conv1d_last_states, causal_conv1d_packed, causal_conv1d_seq_idx, causal_conv1d_update,
    causal_conv1d_update_steps,
};

use crate::ops::Conv3dCall;
use crate::options::{CausalConv1dOptions, CausalConv1dState, Conv3dOptions, Rope2dOptions, Rope2dPositions};
use burn::tensor::{DType, Device, Tensor};
use conv_kernels::causal_conv1d::{self, CausalConv1dProblem, OptionalShapes};
use conv_kernels::conv3d::{self, Activation, Conv3dProblem, Pass, WinogradTile};
use conv_kernels::rope2d::{Rope2dProblem, RopeLayout};
use conv_kernels::{ConvError, FloatType, IndexType, Limits};

pub(crate) fn conv3d(
    x: &Tensor<5>,
    weight: &Tensor<5>,
    bias: Option<&Tensor<1>>,
    options: &Conv3dOptions,
) -> Result<Conv3dCall, ConvError> {
    const OP: &str = "conv3d";
    let mut operands = vec![("x", x.dtype(), x.device()), ("the weight", weight.dtype(), weight.device())];
    operands.extend(bias.map(|bias| ("the bias", bias.dtype(), bias.device())));
    same_device(OP, operands.iter().map(|(name, _, device)| (*name, device)))?;
    let dtype = same_dtype(OP, operands.iter().map(|(name, dtype, _)| (*name, *dtype)))?;
    #[cfg(feature = "autodiff")]
    let bias_is_tracked = bias.is_some_and(Tensor::is_tracked);
    let bias = bias.map(|bias| bias.dims()[0]);
    let problem = Conv3dProblem::new(x.dims(), weight.dims(), bias, options.window(), dtype)?;
    let limits = limits(&x.device());
    fits(OP, &problem.y_shape(), dtype, &limits)?;
    conv3d::plan(&problem, Pass::Forward, options.algorithm, &limits)?;
    // A backward pass has nowhere to report an error: its plans are made here.
    #[cfg(feature = "autodiff")]
    {
        let tracked = [x.is_tracked(), weight.is_tracked(), bias_is_tracked];
        for (pass, tracked) in [Pass::InputGradient, Pass::WeightGradient].into_iter().zip(tracked) {
            if tracked {
                conv3d::gradient_plan(&problem, pass, options.algorithm, &limits)?;
            }
        }
        if options.activation == Activation::Silu && tracked.contains(&true) {
            // What a tracked call keeps.
            fits(OP, &problem.y_shape(), FloatType::F32, &limits)?;
        }
    }
    Ok(Conv3dCall { problem, algorithm: options.algorithm })
}

/// The tile of filters that a checked call could be given transformed: where its plan is Winograd's and none
/// of its tensors is on a device with gradients.
pub(crate) fn prepared_tile(
    x: &Tensor<5>,
    weight: &Tensor<5>,
    bias: Option<&Tensor<1>>,
    call: &Conv3dCall,
) -> Option<WinogradTile> {
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    {
        use burn::backend::DispatchDevice::Cube;
        let others = [Some(weight.device()), bias.map(Tensor::device)];
        let plain = others.iter().flatten().all(|device| matches!(device.as_dispatch(), Cube(_)));
        if let Cube(device) = x.device().as_dispatch()
            && plain
            && let Ok(conv3d::Plan::Winograd(config)) =
                conv3d::plan(&call.problem, Pass::Forward, call.algorithm, &Limits::of(&device.client()))
        {
            return Some(config.tile);
        }
    }
    let _ = (x, weight, bias, call);
    None
}

pub(crate) fn causal_conv1d(
    x: &Tensor<3>,
    weight: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    state: &CausalConv1dState,
    options: &CausalConv1dOptions,
) -> Result<CausalConv1dProblem, ConvError> {
    const OP: &str = "causal_conv1d";
    let CausalConv1dState { initial, initial_seq_idx, seq_idx, residual } = state;
    let (initial, seq_idx, residual) = (initial.as_ref(), seq_idx.as_ref(), residual.as_ref());
    decoding::initial_seq_idx(OP, initial_seq_idx.as_ref(), seq_idx)?;
    let mut devices = vec![("x", x.device()), ("the weight", weight.device())];
    devices.extend(bias.map(|bias| ("the bias", bias.device())));
    devices.extend(initial.map(|initial| ("the initial state", initial.device())));
    devices.extend(seq_idx.map(|seq_idx| ("seq_idx", seq_idx.device())));
    devices.extend(residual.map(|residual| ("the residual", residual.device())));
    same_device(OP, devices.iter().map(|(name, device)| (*name, device)))?;
    let residual_dtype = residual.map(|residual| ("the residual", residual.dtype()));
    let dtypes = [("x", x.dtype())].into_iter().chain(residual_dtype);
    let dtype = same_dtype(OP, dtypes)?;
    let bias_dtype = bias.map(|bias| ("the bias", bias.dtype()));
    let weight_dtype = same_dtype(OP, [("the weight", weight.dtype())].into_iter().chain(bias_dtype))?;
    if let Some(seq_idx) = seq_idx {
        index(OP, "seq_idx", seq_idx.dtype(), &seq_idx.device())?;
    }
    let optional = OptionalShapes {
        bias: bias.map(|bias| bias.dims()[0]),
        initial_state: initial.map(|initial| initial.dims()),
        seq_idx: seq_idx.map(|seq_idx| seq_idx.dims()),
        residual: residual.map(|residual| residual.dims()),
    };
    let (layout, activation) = (options.layout, options.activation);
    let mut problem =
        CausalConv1dProblem::new(x.dims(), weight.dims(), optional, layout, activation, dtype, weight_dtype)?;
    if let Some(initial) = initial {
        problem = problem.with_state_dtype(float_type(OP, "the initial state", initial.dtype())?)?;
    }
    let limits = limits(&x.device());
    served(OP, problem.state_dtype, &limits)?;
    causal_conv1d::plan(&problem, causal_conv1d::Pass::Forward, &limits)?;
    // A backward pass that the device cannot run is refused here, not when it is asked for.
    #[cfg(feature = "autodiff")]
    if x.device().gradient_checkpointing_strategy().is_some() {
        causal_conv1d::plan(&problem, causal_conv1d::Pass::Backward, &limits)?;
    }
    fits(OP, &problem.x_shape(), dtype, &limits)?;
    Ok(problem)
}

pub(crate) fn rope2d(
    tokens: &Tensor<4>,
    positions: &Rope2dPositions,
    options: &Rope2dOptions,
) -> Result<Rope2dProblem, ConvError> {
    const OP: &str = "rope2d";
    const POSITIONS: &str = "the position tensor";
    let [b, first, second, _] = tokens.dims();
    let device = match positions {
        Rope2dPositions::Index(positions) => Some(positions.device()),
        Rope2dPositions::Float(positions) => Some(positions.device()),
        Rope2dPositions::Grid(_) => None,
    };
    let mut devices = vec![("the token tensor", tokens.device())];
    devices.extend(device.map(|device| (POSITIONS, device)));
    same_device(OP, devices.iter().map(|(name, device)| (*name, device)))?;
    let dtype = float_type(OP, "the token tensor", tokens.dtype())?;
    let shape = match positions {
        Rope2dPositions::Index(positions) => {
            index(OP, POSITIONS, positions.dtype(), &positions.device())?;
            positions.dims()
        }
        Rope2dPositions::Float(positions) => {
            if positions.dtype() != DType::F32 {
                return Err(ConvError::Unsupported(format!(
                    "{OP}: {POSITIONS} is {}, the op reads numbers in f32",
                    positions.dtype().name()
                )));
            }
            positions.dims()
        }
        Rope2dPositions::Grid(_) => [b, if options.layout == RopeLayout::Bhnd { second } else { first }, 2],
    };
    let (base, f0) = (options.base, options.f0);
    let mut problem = Rope2dProblem::new(tokens.dims(), shape, options.layout, base, f0, dtype)?
        .with_prefix(options.prefix)?;
    if let Some(rotated) = options.rotated {
        problem = problem.with_rotated(rotated)?;
    }
    if let Rope2dPositions::Grid(grid) = positions {
        problem.check_grid(*grid)?;
    }
    let limits = limits(&tokens.device());
    served(OP, dtype, &limits)?;
    fits(OP, &problem.tokens_shape(), dtype, &limits)?;
    problem.check_table(matches!(positions, Rope2dPositions::Float(_)), &limits)?;
    Ok(problem)
}

/// Whether one call serves queries and keys: of one dtype, on one device, with one checkpointing strategy.
pub(crate) fn together(tensors: [&Tensor<4>; 2], positions: [&Rope2dPositions; 2]) -> bool {
    let mut devices: Vec<Device> = tensors.iter().map(|tensor| tensor.device()).collect();
    for positions in positions {
        match positions {
            Rope2dPositions::Index(positions) => devices.push(positions.device()),
            Rope2dPositions::Float(positions) => devices.push(positions.device()),
            Rope2dPositions::Grid(_) => {}
        }
    }
    let [q, k] = tensors;
    q.dtype() == k.dtype() && same_device("rope2d", devices.iter().map(|device| ("a tensor", device))).is_ok()
}

/// The storage type of a float tensor.
pub(crate) fn float_type(op: &str, name: &str, dtype: DType) -> Result<FloatType, ConvError> {
    match dtype {
        DType::F32 => Ok(FloatType::F32),
        DType::F16 => Ok(FloatType::F16),
        DType::BF16 => Ok(FloatType::Bf16),
        DType::QFloat(_) => {
            Err(ConvError::Unsupported(format!("{op}: {name} is quantized, dequantize it first")))
        }
        other => Err(ConvError::Unsupported(format!(
            "{op}: {name} is {}, the op serves f32, f16 and bf16",
            other.name()
        ))),
    }
}

/// The storage type of an integer tensor.
pub(crate) fn index_type(op: &str, name: &str, dtype: DType) -> Result<IndexType, ConvError> {
    match dtype {
        DType::I32 => Ok(IndexType::I32),
        DType::I64 => Ok(IndexType::I64),
        other => {
            Err(ConvError::Unsupported(format!("{op}: {name} is {}, the op reads i32 and i64", other.name())))
        }
    }
}

/// Refuses an integer tensor that the device's kernels cannot read.
fn index(op: &str, name: &str, dtype: DType, device: &Device) -> Result<(), ConvError> {
    let dtype = index_type(op, name, dtype)?;
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    if let burn::backend::DispatchDevice::Cube(device) = device.clone().without_autodiff().as_dispatch()
        && !dtype.served_by(&device.client())
    {
        let dtype = dtype.name();
        return Err(ConvError::Unsupported(format!(
            "{op}: {name} is {dtype}, which this device cannot read; convert it to i32"
        )));
    }
    let _ = (dtype, device);
    Ok(())
}

/// Refuses a storage type that the device lacks.
fn served(op: &str, dtype: FloatType, limits: &Limits) -> Result<(), ConvError> {
    if limits.dtypes.contains(&dtype) {
        return Ok(());
    }
    let served: Vec<_> = limits.dtypes.iter().map(|dtype| dtype.name()).collect();
    let (dtype, served) = (dtype.name(), served.join(", "));
    Err(ConvError::Unsupported(format!("{op}: this device cannot hold {dtype} tensors, it serves {served}")))
}

/// The storage type that all of these share.
fn same_dtype<'a>(
    op: &str,
    operands: impl Iterator<Item = (&'a str, DType)>,
) -> Result<FloatType, ConvError> {
    let mut first: Option<(&str, FloatType)> = None;
    for (name, dtype) in operands {
        let dtype = float_type(op, name, dtype)?;
        match first {
            Some((of, expected)) if expected != dtype => {
                return Err(ConvError::Invalid(format!(
                    "{op}: {of} is {} and {name} is {}, they must have one dtype",
                    expected.name(),
                    dtype.name()
                )));
            }
            Some(_) => {}
            None => first = Some((name, dtype)),
        }
    }
    first.map(|(_, dtype)| dtype).ok_or_else(|| ConvError::Invalid(format!("{op}: no operands")))
}

/// Refuses operands of different devices, or of different gradient checkpointing strategies.
fn same_device<'a>(op: &str, operands: impl Iterator<Item = (&'a str, &'a Device)>) -> Result<(), ConvError> {
    let operands: Vec<_> = operands.collect();
    let (first_name, first) = operands[0];
    for (name, device) in &operands[1..] {
        if *device != first {
            return Err(ConvError::Invalid(format!(
                "{op}: {first_name} is on {first:?} and {name} is on {device:?}, they must be on one device"
            )));
        }
    }
    #[cfg(feature = "autodiff")]
    {
        let tracked: Vec<_> = operands
            .iter()
            .filter_map(|(name, device)| Some((name, device.gradient_checkpointing_strategy()?)))
            .collect();
        for pair in tracked.windows(2) {
            let ((left, one), (right, other)) = (pair[0], pair[1]);
            if one != other {
                return Err(ConvError::Invalid(format!(
                    "{op}: the gradient checkpointing of {left} is {one:?} and that of {right} is {other:?}, they must \
                     agree"
                )));
            }
        }
    }
    Ok(())
}

/// Refuses a result that no buffer of the device holds.
fn fits(op: &str, shape: &[usize], dtype: FloatType, limits: &Limits) -> Result<(), ConvError> {
    // The problem's validation keeps the product far below 2^64.
    let bytes = shape.iter().product::<usize>() as u64 * dtype.size() as u64;
    if bytes > limits.buffer_bytes {
        return Err(ConvError::TooLarge(format!(
            "{op}: the output {shape:?} needs {bytes} bytes, the largest buffer of this device has {}",
            limits.buffer_bytes
        )));
    }
    Ok(())
}

/// What the device allows. The CPU backend has no limits of its own: plans are only checked against the
/// geometry there.
fn limits(device: &Device) -> Limits {
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    if let burn::backend::DispatchDevice::Cube(device) = device.clone().without_autodiff().as_dispatch() {
        return Limits::of(&device.client());
    }
    let _ = device;
    Limits { buffer_bytes: u64::MAX, workspace_bytes: u64::MAX, ..Limits::apple_m1() }
}
