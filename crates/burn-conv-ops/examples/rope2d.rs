//! Scores of rotated queries and keys depend on where patches are to each other, not on where they are.

use burn::tensor::{Device, Distribution, Int, Tensor};
use burn_conv_ops::{Rope2dOptions, RopeGrid, rope2d_qk};

fn main() {
    let device = Device::default();
    let q = Tensor::<4>::random([1, 12, 196, 64], Distribution::Default, &device); // [B, H, N, D]
    let k = Tensor::<4>::random([1, 12, 196, 64], Distribution::Default, &device);
    let scores = |q: Tensor<4>, k: Tensor<4>| q.matmul(k.swap_dims(2, 3));

    // The patches of a 14 x 14 grid, row by row, without a tensor of positions.
    let grid = RopeGrid { rows: 14, columns: 14, first: 0 };
    let (q0, k0) = rope2d_qk(q.clone(), k.clone(), grid, grid, Rope2dOptions::new());

    // The same patches three rows and five columns further, as a tensor [B, N, 2] of (row, column).
    let index = Tensor::<1, Int>::arange(0..196, &device);
    let (row, column) =
        (index.clone().div_scalar(14).add_scalar(3), index.remainder_scalar(14).add_scalar(5));
    let places = Tensor::stack::<2>(vec![row, column], 1).unsqueeze::<3>();
    let (q1, k1) = rope2d_qk(q, k, places.clone(), places, Rope2dOptions::new());

    let difference = (scores(q0, k0) - scores(q1, k1)).abs().max().into_scalar::<f32>();
    println!("largest difference between the scores: {difference:e}");
    assert!(difference < 1e-3);
}
