//! Causal conv3d: a conv3d whose windows end at the present frame, for clips that come in pieces.
//!
//! ```text
//! frames     | cache or padding | x                      |      KD = 3
//! windows      [ .  .  . ]                                      ends at frame 0 of x
//!                 [ .  .  . ]                                   ends at frame 1
//! new cache                               | . . |               what the next window still reads
//! ```

mod check;
pub(crate) mod nn;
mod options;

pub use options::{CausalConv3dOptions, FirstFrames, PaddingPairs};

use crate::conv::renamed;
use crate::conv3d::{self, try_stream};
use crate::{ConvError, or_panic};
use burn::tensor::Tensor;
use check::OP;

/// Causal conv3d: (y `[N, O, OD, OH, OW]`, new cache) of x `[N, C, D, H, W]`, weight `[O, C/groups, KD, KH,
/// KW]`, bias `[O]` and the cache of the frames before x. Rounding, non-finite values and range:
/// [`conv3d`](crate::conv3d()).
///
/// Window i ends at frame `i * depth_stride` of the clip. The cache `[N, C, (KD-1) * dilation, H, W]` holds
/// the frames before x; without one, x is the clip's beginning and the frames before it are zeros or copies
/// of the first frame ([`FirstFrames`]). The new cache holds the last frames of \[cache or padding, x\], so
/// that a clip in pieces of any lengths gives the whole clip's y:
///
/// ```no_run
/// use burn::tensor::{Device, Distribution, Tensor};
/// use burn_conv_ops::{CausalConv3dOptions, causal_conv3d};
///
/// let device = Device::default();
/// let weight = Tensor::<5>::random([32, 16, 3, 3, 3], Distribution::Default, &device);
/// let piece = |frames| Tensor::<5>::random([1, 16, frames, 32, 32], Distribution::Default, &device);
/// let options = CausalConv3dOptions::new().with_plane_padding(1);
/// let (first, cache) = causal_conv3d(piece(1), weight.clone(), None, None, options);
/// let (next, cache) = causal_conv3d(piece(4), weight, None, Some(cache), options);
/// assert_eq!((first.dims()[2], next.dims()[2]), (1, 4));
/// ```
///
/// With a depth stride s a piece may also end between two windows: the new cache then holds only the frames
/// from the next window's first on, which are up to s - 1 fewer, and the next call takes it like that. After
/// pieces whose frames are multiples of s it always has `(KD-1) * dilation` frames. (Wan's downsampling, KD
/// = 3 and s = 2, keeps one frame.)
///
/// Gradients flow to x, weight, bias and cache, and through the new cache.
///
/// On a GPU, pieces have the bits of the whole clip given in one call: neither the plan nor its sums depend
/// on the number of frames. Every plan reads the cache where it is.
/// [`nn::CausalConv3d::forward`](crate::nn::CausalConv3d::forward), which has a whole clip, takes any plan:
/// its results differ by rounding. So do gradients, and the CPU backend's results.
///
/// # Panics
/// Where [`try_causal_conv3d`] returns an error.
pub fn causal_conv3d(
    x: Tensor<5>,
    weight: Tensor<5>,
    bias: Option<Tensor<1>>,
    cache: Option<Tensor<5>>,
    options: CausalConv3dOptions,
) -> (Tensor<5>, Tensor<5>) {
    or_panic(try_causal_conv3d(x, weight, bias, cache, options))
}

/// [`causal_conv3d`] with errors as values.
///
/// # Errors
/// As [`try_conv3d`](crate::try_conv3d), when the cache does not fit x and the weight, and when cache and x
/// hold no whole window or end before the next one begins. Nothing is launched then.
pub fn try_causal_conv3d(
    x: Tensor<5>,
    weight: Tensor<5>,
    bias: Option<Tensor<1>>,
    cache: Option<Tensor<5>>,
    options: CausalConv3dOptions,
) -> Result<(Tensor<5>, Tensor<5>), ConvError> {
    try_piece(x, weight, bias, cache, None, options)
}

/// [`causal_conv3d`] with a residual of y's shape and x's dtype, added after the activation and before y is
/// rounded, as by [`conv3d_with_residual`](crate::conv3d_with_residual). Pieces with the residual's frames
/// have the bits of the whole clip.
///
/// # Panics
/// Where [`try_causal_conv3d_with_residual`] returns an error.
pub fn causal_conv3d_with_residual(
    x: Tensor<5>,
    weight: Tensor<5>,
    bias: Option<Tensor<1>>,
    cache: Option<Tensor<5>>,
    residual: Tensor<5>,
    options: CausalConv3dOptions,
) -> (Tensor<5>, Tensor<5>) {
    or_panic(try_causal_conv3d_with_residual(x, weight, bias, cache, residual, options))
}

/// [`causal_conv3d_with_residual`] with errors as values.
///
/// # Errors
/// As [`try_causal_conv3d`], and when the residual does not have y's shape.
pub fn try_causal_conv3d_with_residual(
    x: Tensor<5>,
    weight: Tensor<5>,
    bias: Option<Tensor<1>>,
    cache: Option<Tensor<5>>,
    residual: Tensor<5>,
    options: CausalConv3dOptions,
) -> Result<(Tensor<5>, Tensor<5>), ConvError> {
    try_piece(x, weight, bias, cache, Some(residual), options)
}

/// The next frames of a clip, with or without a residual.
pub(crate) fn try_piece(
    x: Tensor<5>,
    weight: Tensor<5>,
    bias: Option<Tensor<1>>,
    cache: Option<Tensor<5>>,
    residual: Option<Tensor<5>>,
    options: CausalConv3dOptions,
) -> Result<(Tensor<5>, Tensor<5>), ConvError> {
    let frames = check::check(&x, &weight, bias.as_ref(), cache.as_ref(), &options)?;
    let kept = frames.kept()?;
    let cache = cache.filter(|cache| cache.dims()[2] > 0);
    let next = last_frames(&x, cache.as_ref(), kept, options.first);
    let options = options.conv3d(frames.padding);
    let y = try_stream(x, cache, weight, (bias, residual), &options);
    Ok((y.map_err(|error| renamed(error, OP, "conv3d", "the cache and x"))?, next))
}

/// y alone, for a whole clip.
pub(crate) fn try_whole(
    x: Tensor<5>,
    weight: Tensor<5>,
    bias: Option<Tensor<1>>,
    residual: Option<Tensor<5>>,
    options: &CausalConv3dOptions,
) -> Result<Tensor<5>, ConvError> {
    let frames = check::check(&x, &weight, bias.as_ref(), None, options)?;
    conv3d::try_whole(x, weight, bias, residual, &options.conv3d(frames.padding))
        .map_err(|error| renamed(error, OP, "conv3d", "the cache and x"))
}

/// The last `kept` frames of \[cache or padding, x\].
fn last_frames(x: &Tensor<5>, cache: Option<&Tensor<5>>, kept: usize, first: FirstFrames) -> Tensor<5> {
    let [n, c, frames, h, w] = x.dims();
    let (device, dtype) = (x.device(), x.dtype());
    if kept == 0 {
        return Tensor::empty([n, c, 0, h, w], (&device, dtype));
    }
    if kept <= frames {
        return last_frames_of(x, kept);
    }
    let missing = kept - frames;
    let before = match (cache, first) {
        (Some(cache), _) => cache.clone().narrow(2, cache.dims()[2] - missing, missing),
        (None, FirstFrames::Zeros) => Tensor::zeros([n, c, missing, h, w], (&device, dtype)),
        (None, FirstFrames::Replicate) => x.clone().narrow(2, 0, 1).expand([n, c, missing, h, w]),
    };
    Tensor::cat(vec![before, x.clone()], 2)
}

/// The last `kept` frames of x, in memory of their own.
fn last_frames_of(x: &Tensor<5>, kept: usize) -> Tensor<5> {
    let [n, c, frames, h, w] = x.dims();
    let last = x.clone().narrow(2, frames - kept, kept);
    // A backward pass keeps x anyway.
    #[cfg(feature = "autodiff")]
    if x.is_tracked() {
        return last;
    }
    if kept == frames || !is_view(x, frames - kept) {
        return last;
    }
    let cache = Tensor::empty([n, c, kept, h, w], (&x.device(), x.dtype()));
    cache.slice_assign([0..n, 0..c, 0..kept, 0..h, 0..w], last)
}

/// Whether the frames of a contiguous x behind the first `skipped` are a view of its memory, which then lives
/// as long as they do: at offsets that the device's buffers may begin at, and always on the CPU backend.
fn is_view(x: &Tensor<5>, skipped: usize) -> bool {
    #[cfg(feature = "cubecl")]
    if let Some(device) = crate::check::cube(&x.device()) {
        let [_, _, _, h, w] = x.dims();
        let offset = (skipped * h * w * x.dtype().size()) as u64;
        return offset.is_multiple_of(device.client().properties().memory.alignment);
    }
    let _ = (x, skipped);
    true
}
