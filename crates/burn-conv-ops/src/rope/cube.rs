//! RoPE through `conv-kernels`.

use crate::backend::RopePositions;
use crate::backend::cube::{allocate, index_operand, operand, owned};
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use conv_kernels::rope::{Positions, RopeGrid, RopeProblem, RopeVolume, Rotation, rotate_all};
use conv_kernels::{ConvError, IndexOperand, Limits, Operand};

/// Tokens and their positions as the kernels see them, and the result: the tokens' own memory where nobody
/// else has it.
struct Turn {
    tokens: Operand,
    positions: Places,
    out: CubeTensor,
    problem: RopeProblem,
}

/// Positions as the kernels see them.
enum Places {
    Index(IndexOperand),
    Float(Operand),
    Grid(RopeGrid),
    Volume(RopeVolume),
    Offset(i32),
}

impl Places {
    fn of(positions: &RopePositions<CubeBackend>) -> Result<Self, ConvError> {
        Ok(match positions {
            RopePositions::Index(positions) => Self::Index(index_operand(positions)?),
            RopePositions::Float(positions) => Self::Float(operand(positions)?),
            RopePositions::Grid(grid) => Self::Grid(*grid),
            RopePositions::Volume(volume) => Self::Volume(*volume),
            RopePositions::Offset(offset) => Self::Offset(*offset),
        })
    }

    fn positions(&self) -> Positions<'_> {
        match self {
            Self::Index(positions) => Positions::Index(positions),
            Self::Float(positions) => Positions::Float(positions),
            Self::Grid(grid) => Positions::Grid(*grid),
            Self::Volume(volume) => Positions::Volume(*volume),
            Self::Offset(offset) => Positions::Offset(*offset),
        }
    }
}

impl Turn {
    fn of(
        tokens: CubeTensor,
        positions: &RopePositions<CubeBackend>,
        problem: RopeProblem,
    ) -> Result<Self, ConvError> {
        // Asked before `operand` shares the memory.
        let owned = owned(&tokens);
        let (from, positions) = (operand(&tokens)?, Places::of(positions)?);
        let out = if owned { tokens } else { allocate(&tokens, &problem.tokens_shape(), tokens.dtype) };
        Ok(Self { tokens: from, positions, out, problem })
    }
}

/// Rotates one or two tensors in one launch.
fn turn(turns: &[Turn], inverse: bool) -> Result<(), ConvError> {
    let client = &turns[0].out.client;
    let outs: Vec<Operand> = turns.iter().map(|turn| operand(&turn.out)).collect::<Result<_, _>>()?;
    let rotations: Vec<Rotation> = turns
        .iter()
        .zip(&outs)
        .map(|(turn, out)| Rotation {
            problem: turn.problem,
            tokens: &turn.tokens,
            positions: turn.positions.positions(),
            out,
        })
        .collect();
    rotate_all(client, &Limits::shared(client), &rotations, inverse)
}

pub(crate) fn rotate(
    tokens: CubeTensor,
    positions: &RopePositions<CubeBackend>,
    problem: RopeProblem,
    inverse: bool,
) -> Result<CubeTensor, ConvError> {
    let turns = [Turn::of(tokens, positions, problem)?];
    turn(&turns, inverse)?;
    let [only] = turns;
    Ok(only.out)
}

pub(crate) fn rotate_qk(
    [q, k]: [CubeTensor; 2],
    [q_positions, k_positions]: [&RopePositions<CubeBackend>; 2],
    [q_problem, k_problem]: [RopeProblem; 2],
) -> Result<(CubeTensor, CubeTensor), ConvError> {
    let turns = [Turn::of(q, q_positions, q_problem)?, Turn::of(k, k_positions, k_problem)?];
    turn(&turns, false)?;
    let [q, k] = turns;
    Ok((q.out, k.out))
}
