//! Causal conv3d on pieces of a clip: large frames, modes of padding, half precision.

use crate::support::{devices, upload, values};
use burn_conv_ops::{CausalConv3dOptions, PaddingMode, causal_conv3d};
use conv_cases::fill;
use conv_kernels::FloatType;
use conv_kernels::conv3d::{Conv3dProblem, Window, reference};

/// pytorch #194922: rank-5 padding on MPS was wrong from 65,536 elements per frame on. A piece behind a
/// cache, against the f64 reference of the joined frames; integers are exact.
#[test]
fn pieces_of_large_frames_read_every_padding() {
    let modes =
        [PaddingMode::Zeros, PaddingMode::Replicate, PaddingMode::Reflect, PaddingMode::Circular];
    for (mode, size) in modes.into_iter().zip([256, 257, 257, 256]) {
        let padding_mode = [PaddingMode::Zeros, mode, mode];
        let window = Window { padding: [(0, 0), (1, 1), (1, 1)], padding_mode, ..Window::default() };
        let problem = Conv3dProblem::new([1, 1, 4, size, size], [1, 1, 3, 3, 3], None, window, FloatType::F32)
            .expect("a problem");
        let frames = 2 * size * size;
        let clip = fill::integers(1, 2 * frames, -4, 4);
        let (weight, dy) = (fill::integers(2, 27, -4, 4), fill::integers(3, frames, -4, 4));
        let wide = |values: &[f32]| -> Vec<f64> { values.iter().map(|value| f64::from(*value)).collect() };
        let [clip64, weight64, dy64] = [&clip, &weight, &dy].map(|values| wide(values));
        let want = [
            reference::forward(&problem, &clip64, &weight64, None),
            reference::input_gradient(&problem, &weight64, &dy64),
            reference::weight_gradient(&problem, &clip64, &dy64),
        ];
        for (on, device) in devices() {
            let device = device.autodiff();
            let of = |values: &[f32]| upload(values, [1, 1, 2, size, size], &device);
            let [cache, x] = [&clip[..frames], &clip[frames..]].map(|values| of(values).require_grad());
            let weight = upload(&weight, [1, 1, 3, 3, 3], &device).require_grad();
            let options = CausalConv3dOptions::new().with_plane_padding(1).with_plane_mode(mode);
            let (y, _) = causal_conv3d(x.clone(), weight.clone(), None, Some(cache.clone()), options);
            let grads = (y.clone() * of(&dy)).sum().backward();
            let [dcache, dx, dw] =
                [cache, x, weight].map(|tensor| values(tensor.grad(&grads).expect("tracked")));
            let got = [values(y.inner()), [dcache, dx].concat(), dw];
            for (index, name) in ["y", "dx", "dw"].into_iter().enumerate() {
                assert!(got[index] == want[index], "{name}, {mode:?} at {size}x{size} on {on}");
            }
        }
    }
}
