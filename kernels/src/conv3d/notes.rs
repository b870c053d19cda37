//! What a caller may want to know about a plan before it runs: error, workspace, spread of NaN.

use super::pass::Pass;
use super::winograd::WinogradTile;
use crate::dtype::FloatType;
use crate::tolerance::Guard;
use std::fmt;

/// How far a non-finite input spreads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NonFinite {
    /// To the results whose windows hold it.
    Window,
    /// To whole H x W tiles of this many by this many results, some of whose windows hold it.
    Tile(usize),
    /// From an element of dy, of windows with a stride along H or W: to every position of the stride x stride
    /// blocks of dx that its window reaches, also those that none of its taps reaches.
    Blocks,
}

/// Properties of a plan.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Notes {
    /// Winograd's tile.
    pub tile: Option<WinogradTile>,
    /// The type of the factors that are multiplied; accumulation is always fp32.
    pub domain: FloatType,
    /// The error of results kept in fp32, on normally distributed data; storage in a half type rounds once
    /// more.
    pub error: Guard,
    /// Bytes of packed weights and of Winograd's intermediate tensors. Split-K partials come on top, within
    /// `Limits::workspace_bytes`.
    pub workspace_bytes: u64,
    /// How far a non-finite input spreads.
    pub non_finite: NonFinite,
}

impl Notes {
    /// Those of an fp32 sum of fp32 products, without a workspace: what most plans start from.
    pub(super) fn of_sum(pass: Pass) -> Self {
        Self {
            tile: None,
            domain: FloatType::F32,
            error: if pass == Pass::WeightGradient { Guard::WEIGHT_GRADIENT } else { Guard::SUM },
            workspace_bytes: 0,
            non_finite: NonFinite::Window,
        }
    }
}

impl fmt::Display for Notes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(tile) = self.tile {
            write!(f, "{}, ", tile.name())?;
        }
        write!(
            f,
            "products in {}, error {:.0e} RMS and {:.0e} at most of the results' RMS, workspace {} bytes, ",
            self.domain.name(),
            self.error.rms,
            self.error.max,
            self.workspace_bytes
        )?;
        match self.non_finite {
            NonFinite::Window => write!(f, "a NaN reaches the windows that hold it"),
            NonFinite::Tile(size) => write!(f, "a NaN reaches whole tiles of {size}x{size} results"),
            NonFinite::Blocks => write!(f, "a NaN reaches whole blocks of a stride by a stride"),
        }
    }
}
