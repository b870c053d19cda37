//! Tensors between guard zones.
//!
//! Every buffer is `[guard | tensor | guard]` with NaN guards, and outputs start as NaN: a kernel that reads beside a
//! tensor poisons its result, one that writes beside it destroys a guard, one that skips an element leaves NaN.

pub(crate) use crate::device::client;
use conv_kernels::{FloatType, Operand, row_major};
use cubecl::prelude::*;
use cubecl::server::Handle;
use half::{bf16, f16};

/// Elements of a guard zone. A multiple of 256 bytes for every type, as buffer offsets must be.
const GUARD: usize = 256;

/// The half and full types that the device serves.
pub(crate) fn dtypes() -> Vec<FloatType> {
    conv_kernels::Limits::of(&client()).dtypes
}

/// A device tensor between guard zones.
pub(crate) struct Buffer {
    operand: Operand,
    whole: Handle,
    rounded: Vec<f32>,
}

/// A tensor holding `values` in row-major order, rounded to `dtype`.
pub(crate) fn upload(client: &Client, values: &[f32], shape: &[usize], dtype: FloatType) -> Buffer {
    upload_strided(client, values, shape, &row_major(shape), dtype)
}

/// As [`upload`], laid out with `strides`; gaps between elements hold NaN. Strides of 0 repeat: the values given for
/// repeated elements must be equal.
pub(crate) fn upload_strided(
    client: &Client,
    values: &[f32],
    shape: &[usize],
    strides: &[usize],
    dtype: FloatType,
) -> Buffer {
    assert_eq!(values.len(), shape.iter().product::<usize>());
    let rounded: Vec<f32> = values.iter().map(|value| round(*value, dtype)).collect();
    let extent = if values.is_empty() {
        0
    } else {
        1 + shape.iter().zip(strides).map(|(size, stride)| (size - 1) * stride).sum::<usize>()
    };
    let mut memory = vec![f32::NAN; GUARD + extent.next_multiple_of(2) + GUARD];
    for (index, value) in rounded.iter().enumerate() {
        memory[GUARD + element_offset(index, shape, strides)] = *value;
    }
    let whole = client.create_from_slice(&encode(&memory, dtype));
    let handle = whole.clone().offset_start((GUARD * dtype.size()) as u64);
    let operand = Operand { handle, shape: shape.to_vec(), strides: strides.to_vec(), dtype };
    Buffer { operand, whole, rounded }
}

/// A row-major tensor full of NaN.
pub(crate) fn output(client: &Client, shape: &[usize], dtype: FloatType) -> Buffer {
    upload(client, &vec![f32::NAN; shape.iter().product()], shape, dtype)
}

impl Buffer {
    pub(crate) fn operand(&self) -> &Operand {
        &self.operand
    }

    /// The uploaded values as the device sees them, row-major.
    pub(crate) fn values(&self) -> Vec<f64> {
        self.rounded.iter().map(|value| f64::from(*value)).collect()
    }

    /// The tensor's present values, row-major. Panics when a guard or a gap was written.
    pub(crate) fn read(&self, client: &Client) -> Vec<f64> {
        read_all(client, &[self]).remove(0)
    }
}

/// [`Buffer::read`] for several tensors with one wait for the device.
pub(crate) fn read_all(client: &Client, buffers: &[&Buffer]) -> Vec<Vec<f64>> {
    let bytes = client
        .read(buffers.iter().map(|buffer| buffer.whole.clone()).collect())
        .expect("the launches succeed");
    buffers
        .iter()
        .zip(bytes)
        .map(|(buffer, bytes)| {
            let Operand { shape, strides, dtype, .. } = &buffer.operand;
            let mut memory = decode(&bytes, *dtype);
            let values = (0..buffer.rounded.len())
                .map(|index| f64::from(memory[GUARD + element_offset(index, shape, strides)]))
                .collect();
            for index in 0..buffer.rounded.len() {
                memory[GUARD + element_offset(index, shape, strides)] = f32::NAN;
            }
            let touched = memory.iter().position(|value| !value.is_nan());
            assert_eq!(touched, None, "memory beside a tensor of shape {shape:?} was written");
            values
        })
        .collect()
}

fn element_offset(index: usize, shape: &[usize], strides: &[usize]) -> usize {
    let mut rest = index;
    let mut offset = 0;
    for (size, stride) in shape.iter().zip(strides).rev() {
        offset += rest % size * stride;
        rest /= size;
    }
    offset
}

/// `value` rounded to `dtype`.
pub(crate) fn round(value: f32, dtype: FloatType) -> f32 {
    match dtype {
        FloatType::F32 => value,
        FloatType::F16 => f16::from_f32(value).to_f32(),
        FloatType::Bf16 => bf16::from_f32(value).to_f32(),
    }
}

fn encode(values: &[f32], dtype: FloatType) -> Vec<u8> {
    match dtype {
        FloatType::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        FloatType::F16 => values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
        FloatType::Bf16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
    }
}

fn decode(bytes: &[u8], dtype: FloatType) -> Vec<f32> {
    let pairs = || bytes.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
    match dtype {
        FloatType::F32 => bytes
            .chunks_exact(4)
            .map(|word| f32::from_le_bytes([word[0], word[1], word[2], word[3]]))
            .collect(),
        FloatType::F16 => pairs().map(|pair| f16::from_le_bytes(pair).to_f32()).collect(),
        FloatType::Bf16 => pairs().map(|pair| bf16::from_le_bytes(pair).to_f32()).collect(),
    }
}
