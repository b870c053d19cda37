//! How the kernels' enums are written in configuration files. `conv-kernels` knows nothing of serde; each
//! form here mirrors one enum. The enums may grow: a variant without a form is an error when it is written.

use burn::serde::{Deserialize, Serialize};
use conv_kernels::causal_conv1d::Conv1dLayout;
use conv_kernels::conv3d::{Activation, Algorithm, PaddingMode, WinogradTile};
use conv_kernels::rope::{RopeAxes, RopeLayout, RopePairs, RopeScaling};

#[derive(Serialize, Deserialize)]
#[serde(crate = "burn::serde", remote = "Activation")]
#[non_exhaustive]
pub(crate) enum ActivationForm {
    None,
    Relu,
    Silu,
}

#[derive(Serialize, Deserialize)]
#[serde(crate = "burn::serde", remote = "PaddingMode")]
#[non_exhaustive]
pub(crate) enum PaddingModeForm {
    Zeros,
    Replicate,
    Reflect,
    Circular,
}

/// A padding mode for each axis: a list, or one name for all.
pub(crate) mod padding_modes {
    use super::{PaddingMode, PaddingModeForm};
    use burn::serde::de::Error;
    use burn::serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Clone, Copy, Serialize, Deserialize)]
    #[serde(crate = "burn::serde")]
    struct Mode(#[serde(with = "PaddingModeForm")] PaddingMode);

    #[derive(Deserialize)]
    #[serde(crate = "burn::serde", untagged)]
    enum Modes {
        All(Mode),
        Each(Vec<Mode>),
    }

    pub(crate) fn serialize<S: Serializer, const AXES: usize>(
        modes: &[PaddingMode; AXES],
        to: S,
    ) -> Result<S::Ok, S::Error> {
        modes.map(Mode).as_slice().serialize(to)
    }

    pub(crate) fn deserialize<'a, D: Deserializer<'a>, const AXES: usize>(
        from: D,
    ) -> Result<[PaddingMode; AXES], D::Error> {
        let modes: Vec<_> = match Modes::deserialize(from)? {
            Modes::All(mode) => vec![mode.0; AXES],
            Modes::Each(modes) => modes.into_iter().map(|mode| mode.0).collect(),
        };
        let count = modes.len();
        let expected = format!("one padding mode, or {AXES}");
        modes.try_into().map_err(|_| D::Error::invalid_length(count, &expected.as_str()))
    }
}

#[derive(Serialize, Deserialize)]
#[serde(crate = "burn::serde", remote = "Algorithm")]
#[non_exhaustive]
pub(crate) enum AlgorithmForm {
    Auto,
    NoWinograd,
    Direct,
    ImplicitGemm,
    Winograd(#[serde(with = "WinogradTileForm")] WinogradTile),
}

#[derive(Serialize, Deserialize)]
#[serde(crate = "burn::serde", remote = "WinogradTile")]
#[non_exhaustive]
pub(crate) enum WinogradTileForm {
    F2x2,
    F4x4,
    F6x6,
}

#[derive(Serialize, Deserialize)]
#[serde(crate = "burn::serde", remote = "Conv1dLayout")]
#[non_exhaustive]
pub(crate) enum Conv1dLayoutForm {
    Bct,
    Btc,
}

#[derive(Serialize, Deserialize)]
#[serde(crate = "burn::serde", remote = "RopeLayout")]
#[non_exhaustive]
pub(crate) enum RopeLayoutForm {
    Bhnd,
    Bnhd,
}

#[derive(Serialize, Deserialize)]
#[serde(crate = "burn::serde", remote = "RopeAxes")]
#[non_exhaustive]
pub(crate) enum RopeAxesForm {
    Even(usize),
    Dims([usize; 3]),
    Sections([usize; 3]),
    Interleaved([usize; 3]),
}

#[derive(Serialize, Deserialize)]
#[serde(crate = "burn::serde", remote = "RopePairs")]
#[non_exhaustive]
pub(crate) enum RopePairsForm {
    Neighbours,
    Halves,
    HalvesOfAxes,
}

#[derive(Serialize, Deserialize)]
#[serde(crate = "burn::serde", remote = "RopeScaling")]
#[non_exhaustive]
pub(crate) enum RopeScalingForm {
    None,
    Linear(f32),
    Ntk(f32),
}
