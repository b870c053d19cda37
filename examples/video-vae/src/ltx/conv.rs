//! The convolution of LTX: over past frames, or over the frames of either side.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use burn_conv_ops::FirstFrames;
use burn_conv_ops::nn::{CausalConv3d, CausalConv3dConfig};

use crate::layers::{frames_from, joined};
use crate::stream::Stream;

/// 3x3x3, zeros around the plane, the first frame repeated before the clip. Two-sided, it is the causal
/// convolution of the frame after, with the last frame repeated behind the clip.
#[derive(Module, Debug)]
pub(super) struct Conv {
    conv: CausalConv3d,
    causal: bool,
    stride: usize,
}

impl Conv {
    pub(super) fn new(channels: [usize; 2], causal: bool, device: &Device) -> Self {
        Self::strided(channels, 1, causal, device)
    }

    /// Every second frame, row and column.
    pub(super) fn halving(channels: usize, causal: bool, device: &Device) -> Self {
        Self::strided([channels; 2], 2, causal, device)
    }

    fn strided(channels: [usize; 2], stride: usize, causal: bool, device: &Device) -> Self {
        let conv = CausalConv3dConfig::new(channels, [3; 3])
            .with_depth_stride(stride)
            .with_stride(stride)
            .with_plane_padding(1)
            .with_first(FirstFrames::Replicate)
            .init(device);
        Self { conv, causal, stride }
    }

    /// The frames of a causal convolution, plus a tensor of their shape. Of a two-sided one, whose frames lag
    /// behind those of x, none.
    pub(super) fn forward_with_residual(
        &self,
        x: &Tensor<5>,
        residual: &Tensor<5>,
        stream: &mut Stream,
    ) -> Option<Tensor<5>> {
        self.causal.then(|| {
            let frames = &mut stream.slot().frames;
            self.conv.forward_streaming_with_residual(x.clone(), residual.clone(), frames)
        })
    }

    /// The frames that the next ones complete.
    pub(super) fn forward(&self, x: Option<Tensor<5>>, stream: &mut Stream) -> Option<Tensor<5>> {
        let ends = stream.ends();
        let slot = stream.slot();
        if self.causal {
            return x.map(|x| self.conv.forward_streaming(x, &mut slot.frames));
        }
        let last = |frames: &Tensor<5>| frames.clone().narrow(2, frames.dims()[2] - 1, 1);
        let behind = if ends { x.as_ref().or(slot.frames.as_ref()).map(last) } else { None };
        let x = joined(x, behind)?;
        let begins = slot.begins();
        if self.stride == 1 {
            // The causal output of the first frame is that of the frame before it.
            let y = self.conv.forward_streaming(x, &mut slot.frames);
            return frames_from(y, usize::from(begins));
        }
        if begins {
            slot.frames = Some(x.clone().narrow(2, 0, 1));
        }
        let kept = slot.frames.as_ref().map_or(0, |frames| frames.dims()[2]);
        if kept + x.dims()[2] < 3 {
            slot.frames = joined(slot.frames.take(), Some(x));
            return None;
        }
        Some(self.conv.forward_streaming(x, &mut slot.frames))
    }
}
