//! Placeholder.
use super::plan::Pass;
use super::problem::Conv3dProblem;
use crate::operand::Operand;
use crate::*;
use cubecl::prelude::*;
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
/// t
pub enum WinogradTile {
    /// a
    F2x2,
    /// b
    F4x4,
    /// c
    F6x6,
}
impl WinogradTile {
    /// all
    pub const ALL: [Self; 2] = [Self::F2x2, Self::F4x4];
    /// n
    pub fn name(self) -> &'static str {
        "w"
    }
}
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
/// t
pub struct WinogradConfig {
    /// t
    pub tile: WinogradTile,
}
pub(crate) fn config(
    _p: &Conv3dProblem,
    _pass: Pass,
    _t: WinogradTile,
    _l: &Limits,
) -> Result<WinogradConfig, ConvError> {
    Err(ConvError::Unsupported("no".into()))
}
pub(crate) fn forward(
    _c: &Client,
    _p: &Conv3dProblem,
    _k: WinogradConfig,
    _l: &Limits,
    _o: [&Operand; 3],
    _b: Option<&Operand>,
) -> Result<(), ConvError> {
    todo!()
}
pub(crate) fn input_gradient(
    _c: &Client,
    _p: &Conv3dProblem,
    _k: WinogradConfig,
    _l: &Limits,
    _o: [&Operand; 3],
) -> Result<(), ConvError> {
    todo!()
}
