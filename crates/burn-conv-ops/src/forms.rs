//! How the kernels' enums are written in configuration files. `conv-kernels` knows nothing of serde; each
//! form here mirrors one enum, and the compiler checks that it mirrors it whole.

use burn::serde::{Deserialize, Serialize};
use conv_kernels::causal_conv1d::Conv1dLayout;
use conv_kernels::conv3d::{Activation, Algorithm, PaddingMode, WinogradTile};
use conv_kernels::rope::{RopeAxes, RopeLayout, RopePairs, RopeScaling};

#[derive(Serialize, Deserialize)]
#[serde(crate = "burn::serde", remote = "Activation")]
pub(crate) enum ActivationForm {
    None,
    Relu,
    Silu,
}

#[derive(Serialize, Deserialize)]
#[serde(crate = "burn::serde", remote = "PaddingMode")]
pub(crate) enum PaddingModeForm {
    Zeros,
    Replicate,
}

#[derive(Serialize, Deserialize)]
#[serde(crate = "burn::serde", remote = "Algorithm")]
pub(crate) enum AlgorithmForm {
    Auto,
    NoWinograd,
    Direct,
    ImplicitGemm,
    Winograd(#[serde(with = "WinogradTileForm")] WinogradTile),
}

#[derive(Serialize, Deserialize)]
#[serde(crate = "burn::serde", remote = "WinogradTile")]
pub(crate) enum WinogradTileForm {
    F2x2,
    F4x4,
    F6x6,
}

#[derive(Serialize, Deserialize)]
#[serde(crate = "burn::serde", remote = "Conv1dLayout")]
pub(crate) enum Conv1dLayoutForm {
    Bct,
    Btc,
}

#[derive(Serialize, Deserialize)]
#[serde(crate = "burn::serde", remote = "RopeLayout")]
pub(crate) enum RopeLayoutForm {
    Bhnd,
    Bnhd,
}

#[derive(Serialize, Deserialize)]
#[serde(crate = "burn::serde", remote = "RopeAxes")]
pub(crate) enum RopeAxesForm {
    Even(usize),
    Dims([usize; 3]),
    Sections([usize; 3]),
    Interleaved([usize; 3]),
}

#[derive(Serialize, Deserialize)]
#[serde(crate = "burn::serde", remote = "RopePairs")]
pub(crate) enum RopePairsForm {
    Neighbours,
    Halves,
    HalvesOfAxes,
}

#[derive(Serialize, Deserialize)]
#[serde(crate = "burn::serde", remote = "RopeScaling")]
pub(crate) enum RopeScalingForm {
    None,
    Linear(f32),
    Ntk(f32),
}
