//! The register-tiled product of two shared-memory stages, common to the implicit GEMM and the
//! Winograd-domain GEMM.
//!
//! ```text
//!                     tile_n
//!               +---------------+          a stage: tile_k rows of tile_m lhs values (transposed: m fastest)
//!               |  rhs stage    | tile_k            tile_k rows of tile_n rhs values (n fastest)
//!               +---------------+          a unit:  REGISTERS x REGISTERS outputs in registers
//!   tile_k      | 4x4 | 4x4 |.. |          a cube:  (tile_m / 4) * (tile_n / 4) units
//! +-------+     +-----+-----+   |
//! | lhs   |     | 4x4 |         | tile_m
//! | stage |     |               |
//! +-------+     +---------------+
//! ```
//!
//! Per stage and cube: `(tile_m + tile_n) * tile_k` loads from memory, `2 * tile_m * tile_n * tile_k`
//! operations.

use cubecl::prelude::*;

/// Rows and columns of a unit's outputs.
pub(crate) const REGISTERS: usize = 4;

/// Tile of a cube: see the picture above.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TileConfig {
    /// Rows of the output tile; a multiple of 4 that divides the cube's units.
    pub tile_m: usize,
    /// Columns of the output tile; a multiple of 4 that divides the cube's units.
    pub tile_n: usize,
    /// Depth of a stage.
    pub tile_k: usize,
}

impl TileConfig {
    /// For outputs of at least 64 rows and columns: 256 units, 8 KiB of shared memory, 16 operations per byte
    /// loaded.
    pub const LARGE: Self = Self { tile_m: 64, tile_n: 64, tile_k: 16 };
    /// For few rows or columns: 64 units, 4 KiB of shared memory, 8 operations per byte loaded.
    pub const SMALL: Self = Self { tile_m: 32, tile_n: 32, tile_k: 16 };

    /// Units of a cube.
    pub fn units(&self) -> u32 {
        ((self.tile_m / REGISTERS) * (self.tile_n / REGISTERS)) as u32
    }

    /// Bytes of shared memory of a cube.
    pub fn shared_bytes(&self) -> usize {
        (self.tile_m + self.tile_n) * self.tile_k * size_of::<f32>()
    }

    /// Elements of the lhs stage that one unit loads.
    pub(crate) fn lhs_loads(&self) -> usize {
        self.tile_m * self.tile_k / self.units() as usize
    }

    /// Elements of the rhs stage that one unit loads.
    pub(crate) fn rhs_loads(&self) -> usize {
        self.tile_n * self.tile_k / self.units() as usize
    }
}

/// Row of the output tile at which this unit's registers start.
#[cube]
pub(crate) fn unit_row(#[comptime] config: TileConfig) -> usize {
    UNIT_POS as usize / comptime!(config.tile_n / REGISTERS) * REGISTERS
}

/// Column of the output tile at which this unit's registers start.
#[cube]
pub(crate) fn unit_column(#[comptime] config: TileConfig) -> usize {
    UNIT_POS as usize % comptime!(config.tile_n / REGISTERS) * REGISTERS
}

/// Adds the product of the two stages to the unit's registers (row-major).
#[cube]
pub(crate) fn multiply_stages(
    lhs: &Shared<[f32]>,
    rhs: &Shared<[f32]>,
    registers: &mut Array<f32>,
    #[comptime] config: TileConfig,
) {
    let row = unit_row(config);
    let column = unit_column(config);
    #[unroll]
    for k in 0..config.tile_k {
        let mut a = Array::<f32>::new(REGISTERS);
        let mut b = Array::<f32>::new(REGISTERS);
        #[unroll]
        for i in 0..REGISTERS {
            a[i] = lhs[k * config.tile_m + row + i];
            b[i] = rhs[k * config.tile_n + column + i];
        }
        #[unroll]
        for i in 0..REGISTERS {
            #[unroll]
            for j in 0..REGISTERS {
                registers[i * REGISTERS + j] = fma(a[i], b[j], registers[i * REGISTERS + j]);
            }
        }
    }
}
