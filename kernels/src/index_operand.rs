//! An integer tensor that a kernel reads: sequence ids and token positions.

use crate::error::{ConvError, unsupported};
use crate::operand::{check_shape, row_major};
use cubecl::features::TypeUsage;
use cubecl::ir::{ElemType, IntKind};
use cubecl::prelude::*;
use cubecl::server::Handle;
use cubecl::zspace::{Shape, Strides};

/// Storage type of an integer tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum IndexType {
    /// Signed, 32 bits: served by every device.
    I32,
    /// Signed, 64 bits: served where the shader language has the type.
    I64,
}

impl IndexType {
    /// Every storage type.
    pub const ALL: [Self; 2] = [Self::I32, Self::I64];

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::I32 => 4,
            Self::I64 => 8,
        }
    }

    /// CubeCL's name for the type.
    pub fn elem(self) -> ElemType {
        ElemType::Int(match self {
            Self::I32 => IntKind::I32,
            Self::I64 => IntKind::I64,
        })
    }

    /// Name in messages and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::I32 => "i32",
            Self::I64 => "i64",
        }
    }

    /// Whether kernels on this device can read such tensors.
    pub fn served_by(self, client: &Client) -> bool {
        let usage = client.properties().type_usage(self.elem());
        usage.contains(TypeUsage::Buffer)
            && usage.contains(TypeUsage::Conversion)
            && usage.contains(TypeUsage::Arithmetic)
    }
}

/// An integer tensor on the device, read in place with any strides.
#[derive(Clone, Debug)]
pub struct IndexOperand {
    /// The buffer, starting at the tensor's first element.
    pub handle: Handle,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// Distance in elements between neighbours along each axis.
    pub strides: Vec<usize>,
    /// Storage type.
    pub dtype: IndexType,
}

impl IndexOperand {
    /// A row-major tensor over `handle`.
    pub fn contiguous(handle: Handle, shape: &[usize], dtype: IndexType) -> Self {
        Self { handle, shape: shape.to_vec(), strides: row_major(shape), dtype }
    }

    /// Elements from the first to one past the last that the strides reach.
    pub(crate) fn extent(&self) -> usize {
        if self.shape.contains(&0) {
            return 0;
        }
        1 + self.shape.iter().zip(&self.strides).map(|(size, stride)| (size - 1) * stride).sum::<usize>()
    }

    /// The tensor as a kernel argument, with its shape and strides.
    pub(crate) fn tensor_arg(&self) -> TensorArg {
        // SAFETY: the caller's shape and strides describe `handle` (see `Operand`).
        unsafe {
            TensorArg::from_raw_parts(
                self.handle.clone(),
                Strides::new(&self.strides),
                Shape::from(self.shape.clone()),
            )
        }
    }

    /// Refuses a shape other than `shape`, and a storage type that the device cannot read.
    pub(crate) fn check(
        &self,
        op: &str,
        name: &str,
        shape: &[usize],
        client: &Client,
    ) -> Result<(), ConvError> {
        check_shape(op, name, &self.shape, shape)?;
        if !self.dtype.served_by(client) {
            let name = self.dtype.name();
            unsupported!("{op}: this device cannot read {name} indices, convert them to i32");
        }
        Ok(())
    }
}
