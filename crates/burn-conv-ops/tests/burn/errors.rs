//! What a call that cannot be served says: one sentence, before anything is launched; and the same sentence
//! as a panic where the function has no `Result`.

use crate::support::{devices, gpu, int_upload, normal};
use burn::backend::DispatchDevice;
use burn::tensor::quantization::{QuantScheme, QuantValue};
use burn::tensor::{DType, Device, IntDType, Tensor};
use burn_conv_ops::{
    Algorithm, CausalConv1dOptions, CausalConv1dUpdateOptions, Conv3dOptions, ConvError, Rope2dOptions,
    RopeGrid, WinogradTile, conv3d, rope2d, try_causal_conv1d, try_causal_conv1d_last_states,
    try_causal_conv1d_seq_idx, try_causal_conv1d_update, try_causal_conv1d_update_steps,
    try_causal_conv1d_with_state, try_conv3d, try_rope2d, try_rope2d_qk,
};
use conv_kernels::Limits;

#[track_caller]
fn assert_says<T>(result: Result<T, ConvError>, sentence: &str) {
    match result {
        Ok(_) => panic!("no error instead of `{sentence}`"),
        Err(error) => assert_eq!(error.to_string(), sentence),
    }
}

#[test]
fn conv3d_names_what_does_not_fit() {
    for (on, device) in devices() {
        let t = |shape: [usize; 5]| normal(1, shape, &device);
        let x = || t([1, 4, 2, 5, 6]);
        let options = Conv3dOptions::new;
        let refused = [
            (
                t([6, 3, 1, 1, 1]),
                options(),
                "conv3d: the weight expects 3 channels per group, the input has 4 channels in 1 groups (4 per group)",
            ),
            (
                t([6, 2, 1, 1, 1]),
                options().with_groups(3),
                "conv3d: 4 input channels cannot be split into 3 groups",
            ),
            (
                t([5, 2, 1, 1, 1]),
                options().with_groups(2),
                "conv3d: 5 output channels cannot be split into 2 groups",
            ),
            (t([6, 4, 1, 1, 1]), options().with_groups(0), "conv3d: groups is 0, it must be at least 1"),
            (
                t([6, 4, 1, 1, 1]),
                options().with_stride([1, 0, 1]),
                "conv3d: the stride of the height axis is 0, it must be at least 1",
            ),
            (
                t([6, 4, 1, 1, 1]),
                options().with_dilation([1, 1, 0]),
                "conv3d: the dilation of the width axis is 0, it must be at least 1",
            ),
            (
                t([6, 4, 0, 1, 1]),
                options(),
                "conv3d: the kernel of the depth axis is 0, it must be at least 1",
            ),
            (
                t([6, 4, 3, 1, 1]),
                options().with_dilation([2, 1, 1]),
                "conv3d: padded input depth 2 is smaller than the dilated kernel depth 5 (kernel 3, dilation 2, padding 0+0)",
            ),
            (
                t([6, 4, 1, 1, 1]),
                options().with_padding([(0, 0), (0, 3_000_000_000), (0, 0)]),
                "conv3d: height padding 3000000000 is larger than 2147483647",
            ),
        ];
        for (weight, options, sentence) in refused {
            assert_says(try_conv3d(x(), weight, None, options), sentence);
        }
        let bias = normal::<1>(1, [5], &device);
        assert_says(
            try_conv3d(x(), t([6, 4, 1, 1, 1]), Some(bias), options()),
            "conv3d: the bias has 5 elements, the weight has 6 output channels",
        );
        let winograd = options().with_algorithm(Algorithm::Winograd(WinogradTile::F2x2));
        let refused = try_conv3d(x(), t([6, 4, 3, 2, 3]), None, winograd.with_padding([1; 3]));
        let refused = refused.expect_err("a 2x3 kernel has no F(2x2)");
        assert!(matches!(refused, ConvError::Unsupported(_)), "{on}: {refused}");
        assert!(refused.to_string().contains("needs a 3x3 kernel in H and W, got 2x3"), "{on}: {refused}");
        let refused =
            try_conv3d(x(), t([6, 4, 3, 3, 3]), None, winograd.with_padding([1; 3]).with_stride([1, 2, 1]));
        let refused = refused.expect_err("stride 2 has no F(2x2)").to_string();
        assert!(refused.contains("needs stride 1 and dilation 1 in H and W"), "{on}: {refused}");
    }
}

#[test]
fn dtypes_must_agree_and_be_served() {
    for (_, device) in devices() {
        let x = normal(1, [1, 2, 2, 3, 3], &device);
        let w = normal(2, [2, 2, 1, 1, 1], &device);
        let half = |tensor: &Tensor<5>| tensor.clone().cast(DType::F16);
        assert_says(
            try_conv3d(x.clone(), half(&w), None, Conv3dOptions::new()),
            "conv3d: x is f32 and the weight is f16, they must have one dtype",
        );
        let bias = normal::<1>(3, [2], &device).cast(DType::F16);
        assert_says(
            try_conv3d(x.clone(), w.clone(), Some(bias.clone()), Conv3dOptions::new()),
            "conv3d: x is f32 and the bias is f16, they must have one dtype",
        );
        let (x, w) = (normal(1, [1, 2, 4], &device), normal(2, [2, 3], &device));
        assert_says(
            try_causal_conv1d(x.clone(), w.clone(), Some(bias), CausalConv1dOptions::new()),
            "causal_conv1d: the weight is f32 and the bias is f16, they must have one dtype",
        );
        let initial = normal(3, [1, 2, 2], &device).cast(DType::F16);
        assert_says(
            try_causal_conv1d_with_state(x, w, None, initial),
            "causal_conv1d: x is f32 and the state is f16, a state is of x's dtype or f32",
        );
    }
    let device = Device::flex();
    let double = |shape| normal::<5>(1, shape, &device).cast(DType::F64);
    assert_says(
        try_conv3d(double([1, 2, 2, 3, 3]), double([2, 2, 1, 1, 1]), None, Conv3dOptions::new()),
        "conv3d: x is f64, the op serves f32, f16 and bf16",
    );
    let positions = int_upload(&[0, 0], [1, 1, 2], &device);
    for dtype in [IntDType::U8, IntDType::I16] {
        assert_says(
            try_rope2d(normal(1, [1, 1, 1, 4], &device), positions.clone().cast(dtype), Rope2dOptions::new()),
            &format!("rope: the position tensor is {}, the op reads i32 and i64", DType::from(dtype).name()),
        );
    }
    let scheme = QuantScheme::default().with_value(QuantValue::Q8S);
    let quantized = normal::<5>(1, [1, 2, 2, 4, 4], &device).quantize_dynamic(&scheme);
    assert_says(
        try_conv3d(quantized, normal(2, [2, 2, 1, 1, 1], &device), None, Conv3dOptions::new()),
        "conv3d: x is quantized, dequantize it first",
    );
}

#[test]
fn devices_and_checkpointing_must_agree() {
    let (cpu, gpu) = (Device::flex(), gpu());
    let x = |device: &Device| normal(1, [1, 2, 2, 3, 3], device);
    let w = |device: &Device| normal(2, [2, 2, 1, 1, 1], device);
    assert_says(
        try_conv3d(x(&cpu), w(&gpu), None, Conv3dOptions::new()),
        &format!("conv3d: x is on {cpu:?} and the weight is on {gpu:?}, they must be on one device"),
    );
    assert_says(
        try_rope2d(normal(1, [1, 1, 1, 4], &gpu), int_upload(&[0, 0], [1, 1, 2], &cpu), Rope2dOptions::new()),
        &format!(
            "rope: the token tensor is on {gpu:?} and the position tensor is on {cpu:?}, they must be on one device"
        ),
    );
    let plain = cpu.clone().autodiff();
    let checkpointing = plain.clone().gradient_checkpointing();
    assert_says(
        try_conv3d(x(&plain), w(&checkpointing), None, Conv3dOptions::new()),
        "conv3d: the gradient checkpointing of x is Disabled and that of the weight is Balanced, they must agree",
    );
    // A tensor without autodiff is a constant next to one with.
    assert!(try_conv3d(x(&cpu), w(&plain), None, Conv3dOptions::new()).is_ok());
    let tokens = normal(1, [1, 1, 1, 4], &plain).require_grad();
    let turned = try_rope2d(tokens.clone(), int_upload(&[1, 2], [1, 1, 2], &cpu), Rope2dOptions::new());
    let grads = turned.expect("positions are never tracked").sum().backward();
    assert!(tokens.grad(&grads).is_some());
}

#[test]
fn a_device_refuses_dtypes_it_lacks() {
    let device = gpu();
    let served: Vec<_> = limits(&device).dtypes.iter().map(|dtype| dtype.name()).collect();
    let served = served.join(", ");
    let x = normal(1, [1, 1, 1, 4], &device);
    let positions = int_upload(&[0, 0], [1, 1, 2], &device);
    if !served.contains("bf16") {
        // The tensor itself cannot be made by a cast on such a device, only named by its dtype.
        let x = Tensor::<4>::empty([1, 1, 1, 4], (&device, DType::BF16));
        assert_says(
            try_rope2d(x, positions.clone(), Rope2dOptions::new()),
            &format!("rope: this device cannot hold bf16 tensors, it serves {served}"),
        );
    }
    assert!(try_rope2d(x, positions, Rope2dOptions::new()).is_ok());
}

#[test]
fn a_result_that_no_buffer_holds_is_refused() {
    let device = gpu();
    let most = limits(&device).buffer_bytes;
    assert_says(
        try_conv3d(
            normal(1, [1, 2, 1, 1, 1], &device),
            normal(2, [2, 2, 1, 1, 1], &device),
            None,
            Conv3dOptions::new().with_padding([2_000; 3]),
        ),
        &format!(
            "conv3d: the output [1, 2, 4001, 4001, 4001] needs 512384096008 bytes, the largest buffer of this \
             device has {most}"
        ),
    );
}

fn limits(device: &Device) -> Limits {
    match device.as_dispatch() {
        DispatchDevice::Cube(device) => Limits::of(&device.client()),
        other => panic!("{other:?} is not a CubeCL device"),
    }
}

#[test]
fn causal_conv1d_names_what_does_not_fit() {
    for (_, device) in devices() {
        let x = || normal(1, [2, 3, 5], &device);
        let w = |shape: [usize; 2]| normal(2, shape, &device);
        let options = CausalConv1dOptions::new;
        let with = |options: CausalConv1dOptions| try_causal_conv1d_with_state(x(), w([3, 4]), None, options);
        assert_says(
            try_causal_conv1d(x(), w([4, 4]), None, options()),
            "causal_conv1d: the weight has 4 channels, the input has 3",
        );
        assert_says(
            try_causal_conv1d(x(), w([3, 0]), None, options()),
            "causal_conv1d: the weight has width 0, it must be at least 1",
        );
        assert_says(
            try_causal_conv1d(x(), w([3, 4]), Some(normal(1, [2], &device)), options()),
            "causal_conv1d: the bias has 2 elements, the input has 3 channels",
        );
        let error = with(options().with_initial_state(normal(1, [2, 3, 4], &device)));
        assert!(error.expect_err("the state is too long").to_string().contains("[2, 3, 4]"));
        let error = with(options().with_seq_idx(int_upload(&[0; 8], [2, 4], &device)));
        assert!(error.expect_err("the ids are too few").to_string().contains("[2, 4]"));
        assert_says(
            try_causal_conv1d_update(
                normal(1, [2, 3], &device),
                normal(2, [2, 3, 2], &device),
                w([3, 4]),
                None,
                CausalConv1dUpdateOptions::new(),
            ),
            "causal_conv1d_update: the state [2, 3, 2] holds 2 steps, a weight of width 4 needs 3",
        );
    }
}

#[test]
fn decoding_and_packed_sequences_name_what_does_not_fit() {
    for (_, device) in devices() {
        let steps = |state: [usize; 3], options: CausalConv1dUpdateOptions| {
            let (x, w) = (normal(1, [2, 3, 5], &device), normal(2, [3, 4], &device));
            try_causal_conv1d_update_steps(x, normal(3, state, &device), w, None, options)
        };
        let options = CausalConv1dUpdateOptions::new;
        let rows = |count: usize| int_upload(&vec![0; count], [count], &device);
        assert_says(
            steps([3, 3, 4], options()),
            "causal_conv1d_update: the state [3, 3, 4] belongs to 3 rows of 3 channels, the input is [2, 3]",
        );
        assert_says(
            steps([3, 3, 4], options().with_state_indices(rows(3))),
            "causal_conv1d_update: state_indices has shape [3], the input needs [2] (batch)",
        );
        assert_says(
            steps([2, 3, 4], options().with_cache_seqlens(rows(1))),
            "causal_conv1d_update: cache_seqlens has shape [1], the input needs [2] (batch)",
        );
        let other = if rows(0).dtype() == DType::I32 { IntDType::I64 } else { IntDType::I32 };
        let [own, other_name] = [rows(0).dtype(), DType::from(other)].map(|dtype| dtype.name());
        let both = options().with_cache_seqlens(rows(2)).with_state_indices(rows(2).cast(other));
        assert_says(
            steps([3, 3, 4], both),
            &format!(
                "causal_conv1d_update: cache_seqlens is {own} and state_indices is {other_name}, their dtypes must match"
            ),
        );
        assert_says(
            steps([9, 3, 2], options().with_state_indices(rows(2))),
            "causal_conv1d_update: the state [9, 3, 2] holds 2 steps, a weight of width 4 needs 3",
        );
        assert_says(
            steps([9, 5, 4], options().with_state_indices(rows(2))),
            "causal_conv1d_update: the state [9, 5, 4] has 9 slots of 5 channels, the input is [2, 3]",
        );
        assert_says(
            steps([0, 3, 4], options().with_state_indices(rows(2))),
            "causal_conv1d_update: the state [0, 3, 4] has no slots for 2 rows",
        );
        let (x, w) = (normal(1, [2, 3, 5], &device), normal(2, [3, 1], &device));
        let ring = options().with_cache_seqlens(rows(2));
        assert_says(
            try_causal_conv1d_update_steps(x, normal(3, [2, 3, 0], &device), w, None, ring),
            "causal_conv1d_update: a ring of 0 steps holds no state, it must have at least 1",
        );
        assert_says(
            try_causal_conv1d_last_states(normal(1, [2, 3, 5], &device), rows(2), 3, Default::default()),
            "causal_conv1d_last_states: x has shape [2, 3, 5], sequences are packed into one row [1, C, T] or [1, T, C]",
        );
        assert_says(
            try_causal_conv1d_last_states(normal(1, [1, 3, 5], &device), rows(0), 3, Default::default()),
            "causal_conv1d_last_states: cu_seqlens has shape [0], it must be [sequences + 1]",
        );
        assert_says(
            try_causal_conv1d_seq_idx(rows(0), 3),
            "causal_conv1d_seq_idx: cu_seqlens has shape [0], it must be [sequences + 1]",
        );
        let residual = |shape: [usize; 3]| {
            let options = CausalConv1dOptions::new().with_residual(normal(3, shape, &device));
            let (x, w) = (normal(1, [1, 3, 5], &device), normal(2, [3, 4], &device));
            try_causal_conv1d_with_state(x, w, None, options)
        };
        assert!(residual([1, 3, 5]).is_ok());
        assert_says(
            residual([1, 5, 3]),
            "causal_conv1d: the residual has shape [1, 5, 3], the input [1, 3, 5], the shapes must match",
        );
        let tokens = || normal(1, [1, 2, 7, 8], &device);
        assert_says(
            try_rope2d(tokens(), RopeGrid { rows: 2, columns: 3, first: 0 }, Rope2dOptions::new()),
            "rope: a grid of 2 x 3 patches after 0 other tokens was given for 7 tokens",
        );
        let halves = normal(1, [1, 7, 2], &device).cast(DType::F16);
        assert_says(
            try_rope2d(tokens(), halves, Rope2dOptions::new()),
            "rope: the position tensor is f16, the op reads numbers in f32",
        );
        assert_says(
            try_rope2d(tokens(), normal(1, [1, 6, 2], &device), Rope2dOptions::new()),
            "rope: the positions have shape [1, 6, 2], tokens [1, 2, 7, 8] need [1, 7, 2] (batch, tokens, axes)",
        );
    }
}

#[test]
fn rope2d_names_what_does_not_fit() {
    for (_, device) in devices() {
        let tokens = |shape: [usize; 4]| normal(1, shape, &device);
        let at = |count: usize| int_upload(&vec![1; 2 * count], [1, count, 2], &device);
        let options = Rope2dOptions::new;
        assert_says(
            try_rope2d(tokens([1, 2, 3, 6]), at(3), options()),
            "rope: the head dimension 6 is not a multiple of 4",
        );
        assert_says(
            try_rope2d(tokens([1, 2, 3, 8]), at(4), options()),
            "rope: the positions have shape [1, 4, 2], tokens [1, 2, 3, 8] need [1, 3, 2] (batch, tokens, axes)",
        );
        assert_says(
            try_rope2d(tokens([1, 2, 3, 8]), at(3), options().with_base(-1.0)),
            "rope: the base is -1, it must be positive and finite",
        );
        assert_says(
            try_rope2d(tokens([1, 2, 3, 8]), at(3), options().with_f0(f32::INFINITY)),
            "rope: f0 is inf, it must be finite",
        );
        // The keys are at fault.
        assert_says(
            try_rope2d_qk(tokens([1, 2, 3, 8]), tokens([1, 2, 3, 6]), at(3), at(3), options()),
            "rope: the head dimension 6 is not a multiple of 4",
        );
    }
}

#[test]
fn functions_without_a_result_panic_with_the_sentence() {
    let sentence = |call: &(dyn Fn() + std::panic::RefUnwindSafe)| -> String {
        let panic = std::panic::catch_unwind(call).expect_err("the call is refused");
        panic.downcast_ref::<String>().expect("a formatted message").clone()
    };
    for (_, device) in devices() {
        let text = sentence(&|| {
            conv3d(
                normal(1, [1, 4, 2, 3, 3], &device),
                normal(2, [6, 3, 1, 1, 1], &device),
                None,
                Conv3dOptions::new(),
            );
        });
        assert_eq!(
            text,
            "conv3d: the weight expects 3 channels per group, the input has 4 channels in 1 groups (4 per group)"
        );
        let text = sentence(&|| {
            rope2d(
                normal(1, [1, 1, 1, 5], &device),
                int_upload(&[0, 0], [1, 1, 2], &device),
                Rope2dOptions::new(),
            );
        });
        assert_eq!(text, "rope: the head dimension 5 is not a multiple of 4");
    }
}
