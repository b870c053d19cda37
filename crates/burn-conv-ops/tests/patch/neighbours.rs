//! Element-wise operations around a convolution fuse as they do without the patch.

use crate::support::{assert_all_served, counted, gpu, is_ours, launches, normal, set_patched};
use burn::module::Param;
use burn::nn::conv::Conv3dConfig;
use burn::tensor::activation::relu;
use burn::tensor::{Tensor, TensorData};

pub(crate) fn neighbours_still_fuse() {
    let device = gpu();
    let conv = Conv3dConfig::new([4, 4], [1, 1, 1]).init(&device);
    // Parameters are made when they are first asked for.
    let _made = (conv.weight.val(), conv.bias.as_ref().map(Param::val));
    let (x, other) = (normal(1, [1, 4, 2, 3, 4], &device), normal(2, [1, 4, 2, 3, 4], &device));
    let chain = |x: Tensor<5>| relu(x * other.clone() + 0.5).exp() - other.clone();
    let run = || -> TensorData { chain(conv.forward(chain(conv.forward(chain(x.clone()))))).into_data() };
    set_patched(true);
    // The first run makes the plans.
    for _ in 0..2 {
        let ((_, kernels), report) = counted(|| launches(run));
        assert_all_served("two convolutions between three chains", &report, 2);
        let others: Vec<_> = kernels.iter().filter(|name| !is_ours(name)).collect();
        // Fifteen operations in three kernels.
        assert_eq!(others.len(), 3, "{kernels:?}");
    }
}
