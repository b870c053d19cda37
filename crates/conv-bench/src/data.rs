//! Deterministic inputs that are cheap at any size, and results read back.
//!
//! An input is a function of the index: a hash picks one of 65,536 samples of N(0, 1), rounded to the storage
//! type. The host can evaluate it anywhere without keeping the tensor, and so can a peer in another process,
//! which gets the samples and the seed.

use conv_cases::fill;
use conv_kernels::{FloatType, Operand, row_major};
use cubecl::prelude::*;
use half::{bf16, f16};
use std::sync::OnceLock;
use std::thread;

/// Samples in a table, a power of two.
const SAMPLES: usize = 1 << 16;

/// Samples of N(0, 1) rounded to one storage type.
#[derive(Debug)]
struct Table {
    values: Vec<f64>,
    encoded: Vec<u8>,
}

fn table(dtype: FloatType) -> &'static Table {
    static TABLES: [OnceLock<Table>; 3] = [const { OnceLock::new() }; 3];
    TABLES[dtype as usize].get_or_init(|| {
        let encoded = encode(&fill::normal(7, SAMPLES), dtype);
        let values = (0..SAMPLES).map(|index| decode(&encoded, dtype, index)).collect();
        Table { values, encoded }
    })
}

/// The values of one input tensor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source {
    seed: u64,
    dtype: FloatType,
    /// None: all ones.
    table: Option<&'static Table>,
}

impl Source {
    /// Values that look like N(0, 1).
    pub(crate) fn normal(seed: u64, dtype: FloatType) -> Self {
        Self { seed: fill::hash(seed, 0), dtype, table: Some(table(dtype)) }
    }

    /// All ones: what Burn's `backward` starts from.
    pub(crate) fn ones(dtype: FloatType) -> Self {
        Self { seed: 0, dtype, table: None }
    }

    /// Element `index`.
    pub(crate) fn get(&self, index: usize) -> f64 {
        self.table.map_or(1.0, |table| table.values[self.slot(index)])
    }

    /// The first `len` elements.
    pub(crate) fn values(&self, len: usize) -> Vec<f64> {
        (0..len).map(|index| self.get(index)).collect()
    }

    /// What a peer needs to compute the same values.
    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    /// The first `len` elements as the device stores them.
    pub(crate) fn bytes(&self, len: usize) -> Vec<u8> {
        self.bytes_in(&[len], Memory::RowMajor)
    }

    /// A tensor's elements as they lie in memory.
    fn bytes_in(&self, shape: &[usize], memory: Memory) -> Vec<u8> {
        let (size, len) = (self.dtype.size(), shape.iter().product());
        let Some(table) = self.table else { return encode(&vec![1.0; len], self.dtype) };
        let mut bytes = vec![0; len * size];
        let share = len.div_ceil(thread::available_parallelism().map_or(1, usize::from)).max(1);
        thread::scope(|scope| {
            for (part, bytes) in bytes.chunks_mut(share * size).enumerate() {
                scope.spawn(move || {
                    for (index, element) in bytes.chunks_exact_mut(size).enumerate() {
                        let index = memory.element(shape, part * share + index);
                        let slot = self.slot(index) * size;
                        element.copy_from_slice(&table.encoded[slot..slot + size]);
                    }
                });
            }
        });
        bytes
    }

    /// One multiplication each way spreads neighbouring indices over the table.
    fn slot(&self, index: usize) -> usize {
        let mut z = (index as u64 ^ self.seed).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        (z >> 48) as usize % SAMPLES
    }
}

/// The samples of N(0, 1) rounded to a storage type, as fp32.
pub(crate) fn samples(dtype: FloatType) -> Vec<f32> {
    table(dtype).values.iter().map(|value| *value as f32).collect()
}

/// How a tensor lies in memory. An order lists its axes from the outermost to the innermost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    /// In the order of its shape.
    RowMajor,
    /// In another order, which kernels see as strides.
    Strided(&'static [usize]),
    /// In another order, which kernels see as another shape.
    Permuted(&'static [usize]),
}

impl Memory {
    /// A tensor of `shape` over `handle`.
    fn operand(self, handle: cubecl::server::Handle, shape: &[usize], dtype: FloatType) -> Operand {
        match self {
            Self::RowMajor => Operand::contiguous(handle, shape, dtype),
            Self::Permuted(order) => Operand::contiguous(handle, &permuted(shape, order), dtype),
            Self::Strided(order) => {
                let mut strides = vec![0; shape.len()];
                for (axis, stride) in order.iter().zip(row_major(&permuted(shape, order))) {
                    strides[*axis] = stride;
                }
                Operand { handle, shape: shape.to_vec(), strides, dtype }
            }
        }
    }

    /// The element, counted in the order of `shape`, at a place in memory.
    fn element(self, shape: &[usize], place: usize) -> usize {
        let (Self::Strided(order) | Self::Permuted(order)) = self else { return place };
        let strides = row_major(shape);
        let mut rest = place;
        order.iter().rev().fold(0, |element, axis| {
            let coordinate = rest % shape[*axis];
            rest /= shape[*axis];
            element + coordinate * strides[*axis]
        })
    }

    /// The place in memory of an element, counted in the order of `shape`.
    pub(crate) fn place(self, shape: &[usize], element: usize) -> usize {
        let (Self::Strided(order) | Self::Permuted(order)) = self else { return element };
        let strides = row_major(shape);
        order.iter().fold(0, |place, axis| place * shape[*axis] + element / strides[*axis] % shape[*axis])
    }
}

fn permuted(shape: &[usize], order: &[usize]) -> Vec<usize> {
    order.iter().map(|axis| shape[*axis]).collect()
}

/// A tensor on the device holding `source`.
pub(crate) fn upload(client: &Client, source: &Source, shape: &[usize], memory: Memory) -> Operand {
    let bytes = source.bytes_in(shape, memory);
    memory.operand(client.create_from_slice(&bytes), shape, source.dtype)
}

/// A tensor full of NaN, so that an element that no kernel writes is noticed.
pub(crate) fn unwritten(client: &Client, shape: &[usize], memory: Memory, dtype: FloatType) -> Operand {
    let bytes = vec![0xFF; shape.iter().product::<usize>() * dtype.size()];
    memory.operand(client.create_from_slice(&bytes), shape, dtype)
}

/// A tensor read back.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) bytes: Vec<u8>,
    pub(crate) dtype: FloatType,
}

impl Host {
    /// Waits for the launches that write `operand` and reads it.
    ///
    /// # Errors
    /// When a launch failed.
    pub(crate) fn read(client: &Client, operand: &Operand) -> Result<Self, String> {
        let bytes =
            client.read_one(operand.handle.clone()).map_err(|error| first_line(&error.to_string()))?;
        Ok(Self { bytes: bytes.to_vec(), dtype: operand.dtype })
    }

    /// Number of elements.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    /// Element `index`.
    pub(crate) fn get(&self, index: usize) -> f64 {
        decode(&self.bytes, self.dtype, index)
    }
}

/// A device's error without its stack trace.
pub(crate) fn first_line(text: &str) -> String {
    text.lines().find(|line| !line.trim().is_empty()).unwrap_or("unknown error").trim().to_string()
}

fn encode(values: &[f32], dtype: FloatType) -> Vec<u8> {
    match dtype {
        FloatType::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        FloatType::F16 => values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
        FloatType::Bf16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
        other => panic!("no numbers as {}", other.name()),
    }
}

fn decode(bytes: &[u8], dtype: FloatType, index: usize) -> f64 {
    match dtype {
        FloatType::F32 => {
            let at = index * 4;
            f64::from(f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]))
        }
        FloatType::F16 => f16::from_le_bytes([bytes[index * 2], bytes[index * 2 + 1]]).to_f64(),
        FloatType::Bf16 => bf16::from_le_bytes([bytes[index * 2], bytes[index * 2 + 1]]).to_f64(),
        other => panic!("no numbers as {}", other.name()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_looks_normal_and_equals_its_bytes() {
        for dtype in FloatType::ALL {
            let source = Source::normal(3, dtype);
            let n = 100_003;
            let values = source.values(n);
            let host = Host { bytes: source.bytes(n), dtype };
            assert_eq!(host.len(), n);
            assert!((0..n).all(|index| host.get(index) == values[index]));
            let mean = values.iter().sum::<f64>() / n as f64;
            let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / n as f64;
            let lag = values.windows(2).map(|pair| pair[0] * pair[1]).sum::<f64>() / n as f64;
            let other = Source::normal(4, dtype).values(n);
            let across = values.iter().zip(&other).map(|(a, b)| a * b).sum::<f64>() / n as f64;
            assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.03, "{mean} {variance}");
            assert!(lag.abs() < 0.02 && across.abs() < 0.02, "{lag} {across}");
        }
    }

    #[test]
    fn places_and_elements_are_inverse_to_each_other() {
        let (shape, order) = ([2, 3, 4], &[0, 2, 1]);
        for memory in [Memory::RowMajor, Memory::Strided(order), Memory::Permuted(order)] {
            for index in 0..24 {
                assert_eq!(memory.element(&shape, memory.place(&shape, index)), index);
            }
        }
        // [1, 2, 3] of [2, 3, 4] is [1, 3, 2] of [2, 4, 3].
        assert_eq!(Memory::Strided(order).place(&shape, 12 + 2 * 4 + 3), 12 + 3 * 3 + 2);
        let source = Source::normal(3, FloatType::F32);
        let host = Host { bytes: source.bytes_in(&shape, Memory::Strided(order)), dtype: FloatType::F32 };
        assert_eq!(host.get(12 + 3 * 3 + 2), source.get(12 + 2 * 4 + 3));
    }

    #[test]
    fn ones_are_ones() {
        let source = Source::ones(FloatType::F16);
        assert_eq!(source.values(3), [1.0; 3]);
        assert_eq!(source.bytes(2), [0, 0x3C, 0, 0x3C]);
    }
}
