//! RoPE2D through `conv-kernels`.

use super::{allocate, index_operand, operand};
use burn_cubecl::tensor::CubeTensor;
use conv_kernels::rope2d::{self, Rope2dProblem};
use conv_kernels::{ConvError, Limits};

pub(super) fn rotate(
    tokens: &CubeTensor,
    positions: &CubeTensor,
    problem: &Rope2dProblem,
    inverse: bool,
) -> Result<CubeTensor, ConvError> {
    let limits = Limits::of(&tokens.client);
    let out = allocate(tokens, &problem.tokens_shape(), tokens.dtype);
    let (from, at, to) = (operand(tokens)?, index_operand(positions)?, operand(&out)?);
    rope2d::rotate(&tokens.client, &limits, problem, &from, &at, &to, inverse)?;
    Ok(out)
}
