//! The tile of the simple implicit GEMM (`implicit_gemm.rs`): two stages in shared memory, multiplied into a
//! register tile of each thread.
//!
//! ```text
//!                     tile_n
//!               +---------------+          a stage:        tile_k rows of tile_m lhs values (m fastest)
//!               |  rhs stage    | tile_k                   tile_k rows of tile_n rhs values (n fastest)
//!               +---------------+          a thread:       REGISTERS x REGISTERS accumulators
//!   tile_k      | 4x4 | 4x4 |.. |          a threadgroup:  (tile_m / 4) * (tile_n / 4) threads
//! +-------+     +-----+-----+   |
//! | lhs   |     | 4x4 |         | tile_m
//! | stage |     |               |
//! +-------+     +---------------+
//! ```
//!
//! Per stage and threadgroup: `(tile_m + tile_n) * tile_k` loads, `2 * tile_m * tile_n * tile_k` FLOP.

use cubecl::prelude::*;

/// Rows and columns of a thread's register tile.
pub(crate) const REGISTERS: usize = 4;

/// The tile of a threadgroup: see the picture above.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TileConfig {
    /// Rows of the output tile; a multiple of 4 that divides the threads of a threadgroup.
    pub tile_m: usize,
    /// Columns of the output tile; a multiple of 4 that divides the threads of a threadgroup.
    pub tile_n: usize,
    /// K elements of a stage.
    pub tile_k: usize,
}

impl TileConfig {
    /// For outputs of at least 64 rows and columns: 256 threads, 8 KiB of shared memory, 16 FLOP per byte
    /// loaded.
    pub const LARGE: Self = Self { tile_m: 64, tile_n: 64, tile_k: 16 };
    /// For few rows or columns: 64 threads, 4 KiB of shared memory, 8 FLOP per byte loaded.
    pub const SMALL: Self = Self { tile_m: 32, tile_n: 32, tile_k: 16 };

    /// Threads of a threadgroup.
    pub fn threads(&self) -> u32 {
        ((self.tile_m / REGISTERS) * (self.tile_n / REGISTERS)) as u32
    }

    /// Bytes of shared memory of a threadgroup.
    pub fn shared_bytes(&self) -> usize {
        (self.tile_m + self.tile_n) * self.tile_k * size_of::<f32>()
    }

    /// Elements of the lhs stage that one thread loads.
    pub(crate) fn lhs_loads(&self) -> usize {
        self.tile_m * self.tile_k / self.threads() as usize
    }

    /// Elements of the rhs stage that one thread loads.
    pub(crate) fn rhs_loads(&self) -> usize {
        self.tile_n * self.tile_k / self.threads() as usize
    }
}

/// Row of the output tile at which this thread's register tile starts.
#[cube]
pub(crate) fn thread_row(#[comptime] config: TileConfig) -> usize {
    UNIT_POS as usize / comptime!(config.tile_n / REGISTERS) * REGISTERS
}

/// Column of the output tile at which this thread's register tile starts.
#[cube]
pub(crate) fn thread_column(#[comptime] config: TileConfig) -> usize {
    UNIT_POS as usize % comptime!(config.tile_n / REGISTERS) * REGISTERS
}

/// Adds the product of the two stages to the thread's register tile (row-major).
#[cube]
pub(crate) fn multiply_stages(
    lhs: &Shared<[f32]>,
    rhs: &Shared<[f32]>,
    registers: &mut Array<f32>,
    #[comptime] config: TileConfig,
    #[comptime] unroll: bool,
) {
    let row = thread_row(config);
    let column = thread_column(config);
    #[unroll(unroll)]
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
