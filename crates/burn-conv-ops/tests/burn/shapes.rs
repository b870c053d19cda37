//! Fusion publishes the shape of a result before it exists and never compares. Here the GPU backend runs
//! without it and every real shape is compared with the published one, which the conformance tests assert on
//! the fused device.

use crate::conv3d::problem;
use crate::support::gpu;
use burn::backend::ops::{FloatTensorOps, IntTensorOps};
use burn::backend::{DispatchDevice, TensorMetadata};
use burn::tensor::{DType, Shape, TensorData};
use burn_conv_ops::backend::{
    CausalConv1dInputs, CausalConv1dProblem, CausalConv1dSteps, Conv3dCall, ConvOps, OptionalTensor,
    RopePositions, RopeProblem, UpdateProblem,
};
use burn_conv_ops::{Activation, Algorithm, Conv1dLayout, RopeGrid, RopeLayout};
use burn_cubecl::{CubeBackend, CubeDevice, tensor::CubeTensor};
use conv_cases::{causal_conv1d, conv3d, fill};
use conv_kernels::FloatType;
use conv_kernels::causal_conv1d::OptionalShapes;

fn device() -> CubeDevice {
    match gpu().as_dispatch() {
        DispatchDevice::Cube(device) => device.clone(),
        other => panic!("{other:?} is not a CubeCL device"),
    }
}

fn tensor(shape: &[usize]) -> CubeTensor {
    let data = TensorData::new(fill::normal(1, shape.iter().product()), shape.to_vec());
    CubeBackend::float_from_data(data, &device())
}

fn assert_shape(what: &str, got: &CubeTensor, want: &[usize]) {
    assert_eq!((got.shape(), got.dtype()), (Shape::from(want.to_vec()), DType::F32), "{what}");
    let data =
        burn::tensor::read_sync(CubeBackend::float_into_data(got.clone())).expect("the launch succeeds");
    assert_eq!(data.num_elements(), want.iter().product::<usize>(), "{what}: elements");
}

#[test]
fn conv3d_results_have_the_published_shapes() {
    for case in conv3d::conformance().iter().chain(&conv3d::empty()) {
        let problem = problem(case);
        let call = Conv3dCall::new(problem, Algorithm::Auto);
        let (x, w) = (tensor(&problem.x_shape()), tensor(&problem.weight_shape()));
        let bias = || OptionalTensor::from(case.bias.then(|| tensor(&[case.o])));
        let y = CubeBackend::conv3d_forward(x.clone(), w.clone(), bias(), OptionalTensor::None, call);
        assert_shape(&case.name, &y, &problem.y_shape());
        let dx = CubeBackend::conv3d_input_gradient(y.clone(), w, call);
        assert_shape(&case.name, &dx, &problem.x_shape());
        let dw = CubeBackend::conv3d_weight_gradient(x, y.clone(), call);
        assert_shape(&case.name, &dw, &problem.weight_shape());
        let db = CubeBackend::conv3d_bias_gradient(y.clone(), call);
        assert_shape(&case.name, &db, &[problem.out_channels]);
        let dpre = CubeBackend::conv3d_activation_gradient(y.clone(), y, Activation::Silu);
        assert_shape(&case.name, &dpre, &problem.y_shape());
    }
}

#[test]
fn causal_conv1d_results_have_the_published_shapes() {
    for ([b, c, t], w) in
        [([2, 3, 9], 4), ([1, 5, 2], 4), ([2, 3, 4], 1), ([2, 3, 0], 3), ([0, 3, 4], 2), ([2, 0, 4], 2)]
    {
        for (layout, optional) in [
            (Conv1dLayout::Bct, true),
            (Conv1dLayout::Btc, true),
            (Conv1dLayout::Bct, false),
            (Conv1dLayout::Btc, false),
        ] {
            let x_shape = layout.swapped([b, c, t]);
            let state_shape = [b, c, w - 1];
            let shapes = OptionalShapes {
                bias: optional.then_some(c),
                initial_state: optional.then_some(state_shape),
                seq_idx: None,
                residual: optional.then_some(x_shape),
            };
            let f32 = FloatType::F32;
            let problem =
                CausalConv1dProblem::new(x_shape, [c, w], shapes, layout, Activation::Silu, f32, f32)
                    .expect("the problem is sound");
            let inputs = || CausalConv1dInputs::<CubeBackend> {
                x: tensor(&x_shape),
                weight: tensor(&[c, w]),
                bias: optional.then(|| tensor(&[c])).into(),
                initial_state: optional.then(|| tensor(&state_shape)).into(),
                seq_idx: None.into(),
                residual: optional.then(|| tensor(&x_shape)).into(),
            };
            let what = format!("{problem:?}");
            let y = CubeBackend::causal_conv1d(inputs(), problem);
            assert_shape(&what, &y, &x_shape);
            let initial = inputs().initial_state;
            let last = CubeBackend::causal_conv1d_final_state(inputs().x, initial, None.into(), problem);
            assert_shape(&what, &last, &state_shape);
            let gradients = CubeBackend::causal_conv1d_backward(inputs(), y, problem);
            assert_shape(&what, &gradients.x, &x_shape);
            assert_shape(&what, &gradients.weight, &[c, w]);
            let (db, dinitial) = (gradients.bias.into_option(), gradients.initial_state.into_option());
            assert_eq!((db.is_some(), dinitial.is_some()), (optional, optional), "{what}");
            db.iter().for_each(|db| assert_shape(&what, db, &[c]));
            dinitial.iter().for_each(|dinitial| assert_shape(&what, dinitial, &state_shape));
        }
    }
    for case in causal_conv1d::update_cases() {
        let (x, state, w) = ([case.b, case.c], [case.b, case.c, case.s], [case.c, case.w]);
        let f32 = FloatType::F32;
        let problem = UpdateProblem::new(x, state, w, None, Activation::None, f32, f32)
            .unwrap_or_else(|error| panic!("{}: {error}", case.name));
        let none = OptionalTensor::None;
        let (y, next) =
            CubeBackend::causal_conv1d_update(tensor(&x), tensor(&state), tensor(&w), none, problem);
        assert_shape(&case.name, &y, &x);
        assert_shape(&case.name, &next, &state);
        let x = [case.b, case.c, case.steps];
        let slots = TensorData::new((0..case.b as i32).rev().collect(), [case.b]);
        let inputs = CausalConv1dSteps::<CubeBackend> {
            x: tensor(&x),
            state: tensor(&state),
            weight: tensor(&w),
            bias: OptionalTensor::None,
            lengths: None.into(),
            slots: Some(CubeBackend::int_from_data(slots, &device())).into(),
        };
        let (y, next) = CubeBackend::causal_conv1d_update_steps(inputs, problem);
        assert_shape(&case.name, &y, &x);
        assert_shape(&case.name, &next, &state);
    }
    let bounds = CubeBackend::int_from_data(TensorData::new(vec![0i32, 3, 7], [3]), &device());
    for length in [0, 1, 9] {
        for (layout, x) in [(Conv1dLayout::Bct, [1, 5, 7]), (Conv1dLayout::Btc, [1, 7, 5])] {
            let last = CubeBackend::causal_conv1d_last_states(tensor(&x), bounds.clone(), length, layout);
            assert_shape("last states", &last, &[2, 5, length]);
        }
        let ids = CubeBackend::causal_conv1d_seq_idx(bounds.clone(), length);
        assert_eq!((ids.shape(), ids.dtype()), (Shape::from([1, length]), bounds.dtype()), "ids");
    }
}

#[test]
fn rope2d_results_have_the_published_shapes() {
    for (layout, shape) in
        [(RopeLayout::Bhnd, [2, 3, 5, 8]), (RopeLayout::Bnhd, [2, 5, 3, 8]), (RopeLayout::Bhnd, [2, 3, 0, 8])]
    {
        let count = if layout == RopeLayout::Bhnd { shape[2] } else { shape[1] };
        let problem =
            RopeProblem::rope2d(shape, layout, 100.0, 1.0, FloatType::F32).expect("the problem is sound");
        let positions = TensorData::new(vec![3i32; 2 * count * 2], [2, count, 2]);
        let positions = RopePositions::Index(CubeBackend::int_from_data(positions, &device()));
        let grid = RopePositions::Grid(RopeGrid { rows: 1, columns: count, first: 2 });
        let floats = RopePositions::Float(tensor(&[2, count, 2]));
        for positions in [positions, grid, floats] {
            let y = CubeBackend::rope(tensor(&shape), positions.clone(), problem, false);
            assert_shape(&format!("{problem:?} {positions:?}"), &y, &shape);
            let (q, k) =
                CubeBackend::rope_qk(y, tensor(&shape), positions.clone(), positions, problem, problem);
            assert_shape("q", &q, &shape);
            assert_shape("k", &k, &shape);
        }
    }
}
