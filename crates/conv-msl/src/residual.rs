//! conv3d with a residual: which cases of its table are listed again.

use crate::IndexWidth;
use conv_cases::conv3d::{Activation, Conv3dCase};

/// Convolutions with a residual, which is a kernel of its own where the epilogue adds it; an activation is a
/// run-time argument of all but `Direct`.
pub(super) fn cases(bases: &[Conv3dCase], index: IndexWidth) -> Vec<Conv3dCase> {
    let names: &[&str] = match index {
        IndexWidth::Narrow => {
            &["volume", "plane", "strided", "depthwise", "plane_run", "deep_even", "deep_odd"]
        }
        IndexWidth::Wide => &["volume"],
    };
    let picked = bases.iter().filter(|base| names.contains(&base.name.as_str())).cloned();
    // Contiguous frames whose sums are too short to be split: results are stored in vectors.
    let frames = Conv3dCase {
        padding: [(1, 1), (0, 0), (0, 0)],
        ..Conv3dCase::new("short_plane_run", [1, 9, 3, 4, 8], 10, [3, 1, 1])
    };
    let cases = picked.chain((index == IndexWidth::Narrow).then_some(frames));
    let with_residual = |case: Conv3dCase| {
        let activation = match case.name.as_str() {
            "volume" => Activation::Silu,
            "depthwise" => Activation::Relu,
            _ => Activation::None,
        };
        Conv3dCase { residual: true, activation, ..case }
    };
    cases.map(with_residual).collect()
}
