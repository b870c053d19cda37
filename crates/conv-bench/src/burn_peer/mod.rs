//! Burn's own ops on the same device, through the tensor API a user has.

mod conv3d;
mod sequence;

use crate::data::{Host, Source, first_line};
use burn::tensor::{DType, Device, Tensor, TensorData};
use conv_kernels::FloatType;

pub(crate) use conv3d::{Conv3d, bias_gradient};
pub(crate) use sequence::{CausalConv1d, Rope, Rope2d};

/// Reads a result that Burn was asked for.
pub(crate) type Read = Box<dyn FnOnce() -> Result<Host, String>>;

/// A tensor on Burn's device holding `source`.
pub(crate) fn tensor<const D: usize>(
    device: &Device,
    source: &Source,
    shape: [usize; D],
    dtype: FloatType,
) -> Tensor<D> {
    tensor_of(device, source.bytes(shape.iter().product()), shape, dtype)
}

/// A tensor on Burn's device of its elements' bytes.
pub(crate) fn tensor_of<const D: usize>(
    device: &Device,
    bytes: Vec<u8>,
    shape: [usize; D],
    dtype: FloatType,
) -> Tensor<D> {
    let data = TensorData::from_bytes_vec(bytes, shape, burn_dtype(dtype));
    Tensor::from_data(data, (device, burn_dtype(dtype)))
}

/// Burn's name of a storage type.
pub(crate) fn burn_dtype(dtype: FloatType) -> DType {
    match dtype {
        FloatType::F32 => DType::F32,
        FloatType::F16 => DType::F16,
        FloatType::Bf16 => DType::BF16,
        other => panic!("Burn has no {}", other.name()),
    }
}

/// The tensor as a result to be read, or dropped unread.
pub(crate) fn read<const D: usize>(tensor: Tensor<D>) -> Read {
    Box::new(move || {
        let data = tensor.try_into_data().map_err(|error| first_line(&error.to_string()))?;
        let dtype = FloatType::ALL.into_iter().find(|dtype| burn_dtype(*dtype) == data.dtype());
        let dtype = dtype.ok_or_else(|| format!("the result is {:?}", data.dtype()))?;
        Ok(Host { bytes: data.as_bytes().to_vec(), dtype })
    })
}
