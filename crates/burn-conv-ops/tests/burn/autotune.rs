//! The feature `autotune` through Burn's tensors: `Auto` is timed at the first call of a problem and only
//! then, forced plans and streams never are. Launches are counted in the whole process, so this runs alone:
//! `cargo test --workspace --features burn-conv-ops/autotune --test burn autotune`.

use crate::support::{absolute, check, gpu, normal, values};
use burn::tensor::{Device, Tensor};
use burn_conv_ops::{Algorithm, CausalConv3dOptions, Conv3dOptions, causal_conv3d, conv3d};
use conv_kernels::FloatType;
use conv_kernels::conv3d::{Conv3dProblem, Pass, Window, WinogradTile, reference, winograd};
use conv_kernels::tolerance::Expected;
use cubecl_runtime::launched::LaunchedKernels;
use std::sync::{Mutex, PoisonError};

/// Held by a test: launches are counted in the whole process.
static ALONE: Mutex<()> = Mutex::new(());

const X: [usize; 5] = [1, 20, 3, 10, 9];
const WEIGHT: [usize; 5] = [18, 20, 3, 3, 3];

/// y and the gradients of its product with itself, and how many kernels were launched for them.
fn step(options: Conv3dOptions, device: &Device) -> ([Vec<f64>; 3], usize) {
    let device = device.clone().autodiff();
    let (x, w) = (normal(1, X, &device).require_grad(), normal(2, WEIGHT, &device).require_grad());
    let launched = LaunchedKernels::new();
    let y = conv3d(x.clone(), w.clone(), None, options);
    let gradients = (y.clone() * y.clone()).sum().backward();
    let (dx, dw) = (x.grad(&gradients).expect("tracked"), w.grad(&gradients).expect("tracked"));
    let results = [values(y.inner()), values(dx), values(dw)];
    (results, launched.finish().len())
}

#[test]
fn auto_is_timed_once_and_forced_plans_never() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let device = gpu();
    let options = Conv3dOptions::new().with_padding(1);
    for forced in [Algorithm::ImplicitGemm, Algorithm::NoWinograd, Algorithm::Winograd(WinogradTile::F2x2)] {
        let run = || step(options.with_algorithm(forced), &device).1;
        let first = run();
        assert_eq!(first, run(), "{forced:?}");
    }
    let (first, timed) = step(options, &device);
    let (second, launched) = step(options, &device);
    assert!(timed >= launched + 3, "{timed} kernels at first, then {launched}");
    assert_eq!(first, second);

    let window = Window { padding: [(1, 1); 3], ..Window::default() };
    let problem = Conv3dProblem::new(X, WEIGHT, None, window, FloatType::F32).expect("a layer");
    let cpu = Device::flex();
    let [x, w] = [values(normal(1, X, &cpu)), values(normal(2, WEIGHT, &cpu))];
    let y = reference::forward(&problem, &x, &w, None);
    // Winograd may have been the fastest: the magnitudes of its transforms.
    let tile = WinogradTile::F4x4;
    let magnitudes =
        winograd::reference::evaluate(&problem, Pass::Forward, tile, &absolute(&x), &absolute(&w), true);
    let terms = reference::longest_sums(&problem)[0] + 6 * tile.inputs();
    let expected = Expected { values: &y, magnitudes: &magnitudes, terms, dtype: FloatType::F32, slope: 1.0 };
    check("y", &expected, &first[0]);
}

/// A stream's forward pass is never timed: pieces of other numbers of frames, which are other problems, could
/// get other plans, and no longer had the bits of the whole clip.
#[test]
fn a_streams_forward_pass_is_not_timed() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let device = gpu();
    let (x, weight) = (normal(1, X, &device), normal(2, WEIGHT, &device));
    let options = CausalConv3dOptions::new().with_plane_padding(1);
    let in_pieces = |pieces: &[usize]| {
        let launched = LaunchedKernels::new();
        let (mut cache, mut at, mut y) = (None, 0, Vec::new());
        for frames in pieces {
            let piece = x.clone().narrow(2, at, *frames);
            let (part, next) = causal_conv3d(piece, weight.clone(), None, cache, options);
            (cache, at) = (Some(next), at + frames);
            y.push(part);
        }
        let y = values(Tensor::cat(y, 2));
        (y, launched.finish().len())
    };
    let (whole, first) = in_pieces(&[3]);
    assert_eq!(in_pieces(&[3]), (whole.clone(), first), "the first call was timed");
    for pieces in [&[1, 2][..], &[2, 1], &[1, 1, 1]] {
        let (y, first) = in_pieces(pieces);
        assert!(y == whole, "{pieces:?} have other bits");
        assert_eq!(in_pieces(pieces).1, first, "the first call in {pieces:?} was timed");
    }
}
