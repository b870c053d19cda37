//! A tensor as the kernels see it: a device buffer, a shape, strides in elements and a storage type.
//!
//! # Safety of the arguments
//!
//! Kernels index buffers unchecked, by an operand's shape and strides. These must describe its `handle`:
//! `contiguous` and `empty` guarantee it for the requested shape, and the Burn crate copies them from the
//! tensor that owns the handle. The conformance tests surround every buffer with guards.

use crate::dtype::FloatType;
use crate::error::{ConvError, DeviceLimit};
use crate::limits::Limits;
use cubecl::ir::AddressType;
use cubecl::prelude::*;
use cubecl::server::Handle;
use cubecl::zspace::{Shape, Strides};

/// A tensor on the device, with any strides: permuted, sliced (through the handle's offset) and expanded
/// (stride 0) tensors are read in place.
#[derive(Clone, Debug)]
pub struct Operand {
    /// The buffer, starting at the tensor's first element.
    pub handle: Handle,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// Distance in elements between neighbours along each axis.
    pub strides: Vec<usize>,
    /// Storage type.
    pub dtype: FloatType,
}

impl Operand {
    /// A row-major tensor over `handle`.
    pub fn contiguous(handle: Handle, shape: &[usize], dtype: FloatType) -> Self {
        Self { handle, shape: shape.to_vec(), strides: row_major(shape), dtype }
    }

    /// A fresh row-major tensor with undefined contents.
    pub(crate) fn empty(client: &Client, shape: &[usize], dtype: FloatType) -> Self {
        let bytes = shape.iter().product::<usize>() * dtype.size();
        // At least one vector: devices refuse to bind less.
        Self::contiguous(client.empty(bytes.max(16)), shape, dtype)
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the tensor has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Elements from the first to one past the last that the strides reach.
    pub(crate) fn extent(&self) -> usize {
        if self.is_empty() {
            return 0;
        }
        1 + self.shape.iter().zip(&self.strides).map(|(size, stride)| (size - 1) * stride).sum::<usize>()
    }

    /// The tensor with a buffer that can be bound: devices refuse empty bindings, so a tensor without
    /// elements gets a buffer that no kernel reads.
    pub(crate) fn bindable(&self, client: &Client) -> Self {
        let handle = if self.is_empty() { client.empty(256) } else { self.handle.clone() };
        Self { handle, ..self.clone() }
    }

    /// Whether the elements are in row-major order without gaps.
    pub(crate) fn is_row_major(&self) -> bool {
        self.strides == row_major(&self.shape)
    }

    /// Whether the tensor starts at a multiple of `width` elements.
    pub(crate) fn is_aligned(&self, width: usize) -> bool {
        let start = self.handle.offset_start.unwrap_or(0);
        start.is_multiple_of((width * self.dtype.size()) as u64)
    }

    /// Whether runs of `run` elements along an axis can be read and written in vectors of `width`, wherever
    /// on the other axes they are: elements are adjacent, every run is whole vectors and every vector is
    /// aligned.
    pub(crate) fn has_vectors(&self, axis: usize, run: usize, width: usize) -> bool {
        let others = self.strides.iter().enumerate().filter(|(other, _)| *other != axis);
        self.strides[axis] == 1
            && run.is_multiple_of(width)
            && others.map(|(_, stride)| stride).all(|stride| stride.is_multiple_of(width))
            && self.is_aligned(width)
    }

    /// The tensor as a kernel argument, with its shape and strides.
    pub(crate) fn tensor_arg(&self) -> TensorArg {
        // SAFETY: shape and strides describe `handle`, see the module.
        unsafe {
            TensorArg::from_raw_parts(
                self.handle.clone(),
                Strides::new(&self.strides),
                Shape::from(self.shape.clone()),
            )
        }
    }

    /// The elements from the first to the last that the strides reach, in vectors of `width`, for kernels
    /// that get the strides separately.
    pub(crate) fn buffer_arg(&self, width: usize) -> BufferArg {
        // SAFETY: the extent is that of the shape and strides, which describe `handle`, see the module.
        unsafe { BufferArg::from_raw_parts(self.handle.clone(), self.extent().max(1).div_ceil(width)) }
    }
}

/// Strides of a row-major tensor of `shape`.
pub fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis].max(1);
    }
    strides
}

/// The index width that reaches every element of `operands` and a linear index up to `extra`.
///
/// # Errors
/// [`ConvError::DeviceLimit`] if the device has no such index type.
pub(crate) fn address_type(
    op: &str,
    operands: &[&Operand],
    extra: usize,
    limits: &Limits,
) -> Result<AddressType, ConvError> {
    let largest = operands.iter().map(|operand| operand.extent()).max().unwrap_or(0).max(extra);
    if largest <= limits.narrow_elements {
        return Ok(AddressType::U32);
    }
    if !limits.wide_index {
        let most = limits.narrow_elements;
        let message = format!("{op}: {largest} elements pass the 32-bit index range of this device ({most})");
        let limit = DeviceLimit::IndexedElements;
        return Err(ConvError::device_limit(limit, largest as u64, most as u64, message));
    }
    Ok(AddressType::U64)
}

/// Refuses an operand of another shape or storage type than the problem's. `name` is a singular noun or an
/// option's name, here and in all checks: the sentences go on with `has` and `is`.
pub(crate) fn check_operand(
    op: &str,
    name: &str,
    operand: &Operand,
    shape: &[usize],
    dtype: FloatType,
) -> Result<(), ConvError> {
    check_shape(op, name, &operand.shape, shape)?;
    if operand.dtype != dtype {
        let (got, expected) = (operand.dtype.name(), dtype.name());
        let message = format!("{op}: {name} is {got}, the problem needs {expected}");
        return Err(ConvError::dtype(name, &[expected], got, message));
    }
    Ok(())
}

/// Refuses an operand of another shape than the problem's.
pub(crate) fn check_shape(op: &str, name: &str, got: &[usize], expected: &[usize]) -> Result<(), ConvError> {
    if got == expected {
        return Ok(());
    }
    let message = format!("{op}: {name} has shape {got:?}, the problem needs {expected:?}");
    Err(ConvError::shape(name, expected, got, message))
}
