//! Half and twice the pixels, and half and twice the frames.
//!
//! The clip's first frame is never mixed with others: it passes the convolutions in time by.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use burn_conv_ops::nn::{CausalConv3d, CausalConv3dConfig};

use crate::layers::{FrameConv, doubled, frames_from, joined};
use crate::stream::{Slot, Stream};

/// Half the pixels in each direction; half the frames if in time too.
#[derive(Module, Debug)]
pub(super) struct Downsample {
    resample: FrameConv,
    time_conv: Option<CausalConv3d>,
}

impl Downsample {
    pub(super) fn new(channels: usize, in_time: bool, device: &Device) -> Self {
        let conv = || CausalConv3dConfig::new([channels; 2], [3, 1, 1]).with_depth_stride(2).init(device);
        Self { resample: FrameConv::halving(channels, device), time_conv: in_time.then(conv) }
    }

    pub(super) fn forward(&self, x: Tensor<5>, stream: &mut Stream) -> Tensor<5> {
        let x = self.resample.forward(x);
        let Some(conv) = &self.time_conv else { return x };
        let slot = stream.slot();
        let first = passing(&x, slot);
        // The first window is the first frame and the two behind it.
        let rest = match &first {
            Some(first) => {
                slot.frames = Some(first.clone());
                frames_from(x, 1)
            }
            None => Some(x),
        };
        let rest = rest.map(|rest| conv.forward_streaming(rest, &mut slot.frames));
        joined(first, rest).expect("a chunk has frames")
    }
}

/// Twice the pixels in each direction; twice the frames if in time too.
#[derive(Module, Debug)]
pub(super) struct Upsample {
    resample: FrameConv,
    time_conv: Option<CausalConv3d>,
}

impl Upsample {
    pub(super) fn new([c_in, c_out]: [usize; 2], in_time: bool, device: &Device) -> Self {
        let conv = || CausalConv3dConfig::new([c_in, 2 * c_in], [3, 1, 1]).init(device);
        Self { resample: FrameConv::same([c_in, c_out], 3, device), time_conv: in_time.then(conv) }
    }

    pub(super) fn forward(&self, x: Tensor<5>, stream: &mut Stream) -> Tensor<5> {
        let x = match &self.time_conv {
            Some(conv) => in_time(conv, x, stream.slot()),
            None => x,
        };
        self.resample.forward(doubled(x))
    }
}

/// Two frames for every frame but the first, which the others do not see.
fn in_time(conv: &CausalConv3d, x: Tensor<5>, slot: &mut Slot) -> Tensor<5> {
    let first = passing(&x, slot);
    let rest = frames_from(x, usize::from(first.is_some()));
    let rest = rest.map(|rest| {
        let [n, c, t, h, w] = rest.dims();
        let pairs = conv.forward_streaming(rest, &mut slot.frames).reshape([n, 2, c, t, h, w]);
        pairs.permute([0, 2, 3, 1, 4, 5]).reshape([n, c, 2 * t, h, w])
    });
    joined(first, rest).expect("a chunk has frames")
}

/// The clip's first frame, if it is reaching the layer.
fn passing(x: &Tensor<5>, slot: &mut Slot) -> Option<Tensor<5>> {
    slot.begins().then(|| x.clone().narrow(2, 0, 1))
}
