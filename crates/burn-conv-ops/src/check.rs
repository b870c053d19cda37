//! What every `try_` function checks before anything is launched: dtypes, devices, and what the device can
//! hold.

use burn::tensor::{DType, Device, Tensor};
use conv_kernels::{ConvError, DeviceLimit, FloatType, IndexType, Limits};
use std::sync::Arc;

/// The storage type of a float tensor.
pub(crate) fn float_type(op: &str, name: &str, dtype: DType) -> Result<FloatType, ConvError> {
    match dtype {
        DType::F32 => Ok(FloatType::F32),
        DType::F16 => Ok(FloatType::F16),
        DType::BF16 => Ok(FloatType::Bf16),
        DType::QFloat(_) => {
            Err(ConvError::Unsupported(format!("{op}: {name} is quantized, dequantize it first")))
        }
        other => {
            let got = other.name();
            let message = format!("{op}: {name} is {got}, the op serves f32, f16 and bf16");
            Err(ConvError::dtype(name, &FloatType::ALL.map(FloatType::name), got, message))
        }
    }
}

/// The storage type of an integer tensor.
pub(crate) fn index_type(op: &str, name: &str, dtype: DType) -> Result<IndexType, ConvError> {
    match dtype {
        DType::I32 => Ok(IndexType::I32),
        DType::I64 => Ok(IndexType::I64),
        other => {
            let got = other.name();
            let message = format!("{op}: {name} is {got}, the op reads i32 and i64");
            Err(ConvError::dtype(name, &[IndexType::I32.name(), IndexType::I64.name()], got, message))
        }
    }
}

/// Refuses an integer tensor that the device's kernels cannot read.
pub(crate) fn index(op: &str, name: &str, dtype: DType, device: &Device) -> Result<(), ConvError> {
    let dtype = index_type(op, name, dtype)?;
    #[cfg(feature = "cubecl")]
    if let Some(device) = cube(device)
        && !dtype.served_by(&device.client())
    {
        let dtype = dtype.name();
        let message = format!("{op}: {name} is {dtype}, which this device cannot read; convert it to i32");
        return Err(ConvError::dtype(name, &[IndexType::I32.name()], dtype, message));
    }
    let _ = (dtype, device);
    Ok(())
}

/// The storage type that all of these share.
pub(crate) fn same_dtype<'a>(
    op: &str,
    operands: impl Iterator<Item = (&'a str, DType)>,
) -> Result<FloatType, ConvError> {
    let mut first: Option<(&str, FloatType)> = None;
    for (name, dtype) in operands {
        let dtype = float_type(op, name, dtype)?;
        match first {
            Some((of, expected)) if expected != dtype => {
                let (expected, got) = (expected.name(), dtype.name());
                let message =
                    format!("{op}: {of} is {expected} and {name} is {got}, they must have one dtype");
                return Err(ConvError::dtype(name, &[expected], got, message));
            }
            Some(_) => {}
            None => first = Some((name, dtype)),
        }
    }
    first.map(|(_, dtype)| dtype).ok_or_else(|| ConvError::Invalid(format!("{op}: no operands")))
}

/// What [`same_device_and_dtype`] compares of an operand. Its name in errors is a singular noun or an
/// option's name: the sentences go on with `has` and `is`.
pub(crate) type Operand<'a> = (&'a str, Device, DType);

/// An operand by its name in errors.
pub(crate) fn operand<'a, const D: usize>(name: &'a str, tensor: &Tensor<D>) -> Operand<'a> {
    (name, tensor.device(), tensor.dtype())
}

/// Refuses operands of different devices or dtypes; their storage type.
pub(crate) fn same_device_and_dtype(op: &str, operands: &[Operand<'_>]) -> Result<FloatType, ConvError> {
    let devices: Vec<_> = operands.iter().map(|(name, device, _)| (*name, device.clone())).collect();
    same_device(op, &devices)?;
    same_dtype(op, operands.iter().map(|(name, _, dtype)| (*name, *dtype)))
}

/// Refuses operands of different devices, or of different gradient checkpointing strategies.
pub(crate) fn same_device(op: &str, operands: &[(&str, Device)]) -> Result<(), ConvError> {
    let (first_name, first) = &operands[0];
    for (name, device) in &operands[1..] {
        if device != first {
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
pub(crate) fn fits(op: &str, shape: &[usize], dtype: FloatType, limits: &Limits) -> Result<(), ConvError> {
    // The problem's validation keeps the product far below 2^64.
    let bytes = shape.iter().product::<usize>() as u64 * dtype.size() as u64;
    if bytes > limits.buffer_bytes {
        let most = limits.buffer_bytes;
        let message = format!(
            "{op}: the output {shape:?} needs {bytes} bytes, the largest buffer of this device has {most}"
        );
        return Err(ConvError::device_limit(DeviceLimit::BufferBytes, bytes, most, message));
    }
    Ok(())
}

/// What the device allows. The CPU backends have no limits of their own: plans are only checked against the
/// geometry there.
pub(crate) fn limits(device: &Device) -> Arc<Limits> {
    #[cfg(feature = "cubecl")]
    if let Some(device) = cube(device)
        && !composes(&device)
    {
        return Limits::shared(&device.client());
    }
    let _ = device;
    Arc::new(Limits { buffer_bytes: u64::MAX, workspace_bytes: u64::MAX, ..Limits::apple_m1() })
}

/// The CubeCL device that a device is, with or without gradients.
#[cfg(feature = "cubecl")]
pub(crate) fn cube(device: &Device) -> Option<burn_cubecl::CubeDevice> {
    match device.clone().without_autodiff().as_dispatch() {
        burn::backend::DispatchDevice::Cube(device) => Some(device.clone()),
        #[allow(unreachable_patterns, reason = "with one backend there is no other device")]
        _ => None,
    }
}

/// Whether the ops are composed from Burn's own on this device: on CubeCL's CPU runtime, with the feature
/// `cpu`.
#[cfg(feature = "cubecl")]
pub(crate) fn composes(device: &burn_cubecl::CubeDevice) -> bool {
    cfg!(feature = "cpu") && matches!(device, burn_cubecl::CubeDevice::Cpu(_))
}
