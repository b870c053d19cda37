//! A layer's tensors on Burn's device, and the ways to convolve them.

use super::Way;
use crate::burn_peer::{self, Read};
use crate::conv3d::Subject;
use crate::options::Pass;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Tensor, module};
use burn_conv_ops::{CausalConv3dOptions, Conv3dOptions, causal_conv3d, conv3d};
use conv_kernels::conv3d::Conv3dProblem;

/// One layer.
pub(super) struct Layer {
    /// That of the frames joined along depth.
    pub(super) problem: Conv3dProblem,
    /// Frames of the cache.
    pub(super) held: usize,
    tensors: Inputs,
    joined: Tensor<5>,
}

/// What a convolution reads.
#[derive(Clone)]
struct Inputs {
    x: Tensor<5>,
    cache: Option<Tensor<5>>,
    w: Tensor<5>,
}

/// A convolution whose gradients are asked for: y, and the leaves that are tracked.
pub(super) struct Graph {
    y: Tensor<5>,
    leaves: Vec<Tensor<5>>,
}

impl Layer {
    /// The joined frames, whose first are the cache, on the device.
    pub(super) fn upload(device: &Device, subject: &Subject, held: usize) -> Self {
        let problem = subject.problem;
        let (shape, dtype) = (problem.x_shape(), problem.dtype);
        let w = burn_peer::tensor(device, &subject.sources.w, problem.weight_shape(), dtype);
        let bytes = subject.sources.x.bytes(shape.iter().product());
        let frames = |first: usize, count: usize| {
            let [n, c, d, height, width] = shape;
            let frame = height * width * dtype.size();
            let images = bytes.chunks_exact(d * frame);
            let parts: Vec<&[u8]> =
                images.map(|image| &image[first * frame..(first + count) * frame]).collect();
            burn_peer::tensor_of(device, parts.concat(), [n, c, count, height, width], dtype)
        };
        let joined = frames(0, shape[2]);
        let tensors = if held == 0 {
            Inputs { x: joined.clone(), cache: None, w }
        } else {
            Inputs { x: frames(held, shape[2] - held), cache: Some(frames(0, held)), w }
        };
        Self { problem, held, tensors, joined }
    }

    /// What Burn's row is called.
    pub(super) fn burn_name(&self) -> &'static str {
        if self.held == 0 { burn_peer::Conv3d::of(&self.problem).name() } else { "pad+cat+conv3d" }
    }

    /// y and, where there is a cache, the new one.
    pub(super) fn forward(&self, way: Way) -> Vec<Read> {
        let (y, next) = self.convolved(way, self.inputs(way));
        [Some(y), next].into_iter().flatten().map(burn_peer::read).collect()
    }

    /// A graph that tracks what a pass asks for.
    pub(super) fn graph(&self, way: Way, pass: Pass) -> Graph {
        let Inputs { x, cache, w } = self.inputs(way);
        let leaf = |tensor: Tensor<5>, of: Pass| {
            let tensor = tensor.autodiff();
            if of == pass { tensor.require_grad() } else { tensor }
        };
        let inputs = Inputs {
            x: leaf(x, Pass::Dx),
            cache: cache.map(|cache| leaf(cache, Pass::Dx)),
            w: leaf(w, Pass::Dw),
        };
        let (y, _) = self.convolved(way, inputs.clone());
        let leaves = match pass {
            Pass::Dw => vec![inputs.w],
            _ => inputs.cache.into_iter().chain([inputs.x]).collect(),
        };
        Graph { y, leaves }
    }

    /// The gradients of a graph's leaves, from dy all ones.
    pub(super) fn backward(graph: Graph) -> Vec<Read> {
        let mut gradients = graph.y.backward();
        let of_leaf = |leaf: &Tensor<5>| leaf.grad_remove(&mut gradients).map(burn_peer::read);
        graph.leaves.iter().filter_map(of_leaf).collect()
    }

    fn inputs(&self, way: Way) -> Inputs {
        match way {
            Way::Joined => Inputs { x: self.joined.clone(), cache: None, w: self.tensors.w.clone() },
            _ => self.tensors.clone(),
        }
    }

    /// y and the last frames.
    fn convolved(&self, way: Way, Inputs { x, cache, w }: Inputs) -> (Tensor<5>, Option<Tensor<5>>) {
        let [_, height, width] = self.problem.window.padding;
        if way == Way::Causal {
            let options = CausalConv3dOptions::new().with_plane_padding([height, width]);
            let (y, next) = causal_conv3d(x, w, None, cache, options);
            return (y, Some(next));
        }
        let Some(cache) = cache else {
            let y = match way {
                Way::Burn => burn_peer::Conv3d::of(&self.problem).forward(x, w),
                _ => conv3d(x, w, None, Conv3dOptions::new().with_padding([(0, 0), height, width])),
            };
            return (y, None);
        };
        let frames = Tensor::cat(vec![cache, x], 2);
        let next = frames.clone().narrow(2, frames.dims()[2] - self.held, self.held);
        let padded = if [height, width] == [(0, 0); 2] { frames } else { frames.pad([height, width], 0.0) };
        let y = match way {
            Way::Burn => module::conv3d(padded, w, None, ConvOptions::new([1; 3], [0; 3], [1; 3], 1)),
            _ => conv3d(padded, w, None, Conv3dOptions::new()),
        };
        (y, Some(next))
    }
}
