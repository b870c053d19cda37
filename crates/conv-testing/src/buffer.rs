//! Tensors between guard zones.
//!
//! Every buffer is `[guard | tensor | guard]`. Guards of inputs are NaN: an out-of-bounds read poisons the
//! result. Outputs start as NaN between numeric guards: a skipped element stays NaN, and an out-of-bounds
//! write changes a guard, even if it writes a NaN that was read from an input's guard.

use conv_kernels::{FloatType, IndexOperand, IndexType, Operand, row_major};
use cubecl::prelude::*;
use cubecl::server::Handle;
use half::{bf16, f16};

/// Elements of a guard zone. A multiple of 256 bytes for every type, as buffer offsets must be.
const GUARD: usize = 256;

/// A device tensor between guard zones.
pub struct Buffer {
    operand: Operand,
    whole: Handle,
    rounded: Vec<f32>,
    guard: f32,
}

/// The guard value of outputs: exact in every type, and never the result of a test.
const OUTPUT_GUARD: f32 = -61_440.0;

/// A tensor holding `values` in row-major order, rounded to `dtype`.
pub fn upload(client: &Client, values: &[f32], shape: &[usize], dtype: FloatType) -> Buffer {
    upload_strided(client, values, shape, &row_major(shape), dtype)
}

/// As [`upload`], laid out with `strides`; gaps between elements hold NaN. A stride of 0 repeats elements,
/// whose values must be equal.
pub fn upload_strided(
    client: &Client,
    values: &[f32],
    shape: &[usize],
    strides: &[usize],
    dtype: FloatType,
) -> Buffer {
    upload_guarded(client, values, (shape, strides), dtype, f32::NAN)
}

/// Elements from a tensor's first to its last in memory; 0 without elements.
pub fn extent(shape: &[usize], strides: &[usize]) -> usize {
    if shape.contains(&0) {
        return 0;
    }
    1 + shape.iter().zip(strides).map(|(size, stride)| (size - 1) * stride).sum::<usize>()
}

fn upload_guarded(
    client: &Client,
    values: &[f32],
    (shape, strides): (&[usize], &[usize]),
    dtype: FloatType,
    guard: f32,
) -> Buffer {
    assert_eq!(values.len(), shape.iter().product::<usize>());
    let rounded: Vec<f32> = values.iter().map(|value| round(*value, dtype)).collect();
    let extent = extent(shape, strides);
    let mut memory = vec![guard; GUARD + extent.next_multiple_of(2) + GUARD];
    for (index, value) in rounded.iter().enumerate() {
        memory[GUARD + element_offset(index, shape, strides)] = *value;
    }
    let whole = client.create_from_slice(&encode(&memory, dtype));
    let handle = whole.clone().offset_start((GUARD * dtype.size()) as u64);
    let operand = Operand { handle, shape: shape.to_vec(), strides: strides.to_vec(), dtype };
    Buffer { operand, whole, rounded, guard }
}

/// A row-major tensor full of NaN.
pub fn output(client: &Client, shape: &[usize], dtype: FloatType) -> Buffer {
    output_strided(client, shape, &row_major(shape), dtype)
}

/// As [`output`], laid out with `strides`.
pub fn output_strided(client: &Client, shape: &[usize], strides: &[usize], dtype: FloatType) -> Buffer {
    let values = vec![f32::NAN; shape.iter().product()];
    upload_guarded(client, &values, (shape, strides), dtype, OUTPUT_GUARD)
}

impl Buffer {
    /// The tensor as launches take it.
    pub fn operand(&self) -> &Operand {
        &self.operand
    }

    /// The uploaded values as the device sees them, row-major.
    pub fn values(&self) -> Vec<f64> {
        self.rounded.iter().map(|value| f64::from(*value)).collect()
    }

    /// The tensor's current values, row-major. Panics if a guard or a gap was written.
    pub fn read(&self, client: &Client) -> Vec<f64> {
        read_all(client, &[self]).remove(0)
    }

    fn decode(&self, bytes: &[u8]) -> Result<Vec<f64>, String> {
        let Operand { shape, strides, dtype, .. } = &self.operand;
        let mut memory = decode(bytes, *dtype);
        let values = (0..self.rounded.len())
            .map(|index| f64::from(memory[GUARD + element_offset(index, shape, strides)]))
            .collect();
        for index in 0..self.rounded.len() {
            memory[GUARD + element_offset(index, shape, strides)] = self.guard;
        }
        let same = |value: f32| if self.guard.is_nan() { value.is_nan() } else { value == self.guard };
        match memory.iter().position(|value| !same(*value)) {
            None => Ok(values),
            Some(at) => Err(format!(
                "memory outside a tensor of shape {shape:?} was written (element {at} of its buffer)"
            )),
        }
    }
}

/// [`Buffer::read`] for several tensors with one wait for the device.
pub fn read_all(client: &Client, buffers: &[&Buffer]) -> Vec<Vec<f64>> {
    try_read_all(client, buffers).unwrap_or_else(|error| panic!("{error}"))
}

/// [`read_all`] with an error instead of a panic.
///
/// # Errors
/// When a launch that should have written one of the tensors failed, or memory outside one was written.
pub fn try_read_all(client: &Client, buffers: &[&Buffer]) -> Result<Vec<Vec<f64>>, String> {
    let bytes =
        client.read(buffers.iter().map(|buffer| buffer.whole.clone()).collect()).map_err(|error| {
            let text = error.to_string();
            let lines = text.lines().map(str::trim).take_while(|line| *line != "Backtrace:");
            format!("a launch failed: {}", lines.collect::<Vec<_>>().join(" "))
        })?;
    buffers.iter().zip(bytes).map(|(buffer, bytes)| buffer.decode(&bytes)).collect()
}

/// Integers on the device between guard zones with an id that no test uses.
pub fn upload_indices(
    client: &Client,
    values: &[i64],
    shape: &[usize],
    strides: &[usize],
    dtype: IndexType,
) -> IndexOperand {
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
        other => panic!("no integers as {}", other.name()),
    };
    let handle = client.create_from_slice(&bytes).offset_start((GUARD * dtype.size()) as u64);
    IndexOperand { handle, shape: shape.to_vec(), strides: strides.to_vec(), dtype }
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
pub fn round(value: f32, dtype: FloatType) -> f32 {
    match dtype {
        FloatType::F32 => value,
        FloatType::F16 => f16::from_f32(value).to_f32(),
        FloatType::Bf16 => bf16::from_f32(value).to_f32(),
        other => panic!("no numbers as {}", other.name()),
    }
}

fn encode(values: &[f32], dtype: FloatType) -> Vec<u8> {
    match dtype {
        FloatType::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        FloatType::F16 => values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
        FloatType::Bf16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
        other => panic!("no numbers as {}", other.name()),
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
        other => panic!("no numbers as {}", other.name()),
    }
}
