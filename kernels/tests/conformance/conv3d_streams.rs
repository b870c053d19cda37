//! conv3d of clips in pieces: first frames in a tensor of their own, forward pass and weight gradient under
//! every plan that reads them.

use crate::conv3d::{Inputs, Oracle, inputs, one_tile_each, problem, result_shape};
use crate::device::EXECUTED;
use crate::support::{Buffer, client, output, upload, upload_strided};
use conv_cases::conv3d::{Activation, Conv3dCase, Padding};
use conv_cases::fill;
use conv_kernels::conv3d::{
    self, Algorithm, Conv3dProblem, GemmTile, Pass, Plan, WinogradTile, eligible, forward, forward_cached,
    reads_cache, weight_gradient, weight_gradient_cached,
};
use conv_kernels::{FloatType, Limits};
use conv_testing::conv3d::check_exact;
use cubecl::prelude::*;

/// Draws so many values from a seed.
type Fill<'a> = &'a dyn Fn(u64, usize) -> Vec<f32>;

/// Cached frames of a case, and the case of the joined input.
type Stream = (usize, Conv3dCase);

/// Caches of one and several frames, padding of every mode next to them, strides, dilation, groups, vectors
/// of whole frames and images.
fn streams() -> Vec<Stream> {
    use Padding::{Circular, Reflect, Replicate, Zeros};
    let new = |name: &str, x, o, kernel| Conv3dCase::new(&format!("stream_{name}"), x, o, kernel);
    let plane = [(0, 0), (1, 1), (1, 1)];
    vec![
        (2, Conv3dCase { padding: plane, residual: true, ..new("plane", [1, 9, 5, 6, 7], 10, [3; 3]) }),
        (2, new("frames", [2, 17, 4, 4, 8], 33, [3, 1, 1])),
        // The first frame repeated before the clip: two modes. Partly filled tiles of dw in each group, two
        // segments of a row, depth taps before and behind the clip.
        (
            2,
            Conv3dCase {
                padding: [(2, 1), (1, 1), (1, 0)],
                modes: Some([Replicate, Padding::Zeros, Padding::Zeros]),
                groups: 2,
                ..new("first", [2, 36, 4, 2, 66], 6, [3, 3, 2])
            },
        ),
        (
            3,
            Conv3dCase {
                padding: [(1, 2), (1, 2), (2, 1)],
                modes: Some([Replicate, Reflect, Circular]),
                activation: Activation::Relu,
                ..new("modes", [2, 5, 4, 5, 6], 9, [3; 3])
            },
        ),
        (
            1,
            Conv3dCase {
                padding: [(2, 1), (1, 1), (0, 2)],
                stride: [2, 2, 1],
                dilation: [2, 1, 2],
                groups: 2,
                ..new("strided", [2, 4, 6, 7, 6], 6, [3, 3, 2])
            },
        ),
        (2, Conv3dCase { padding: plane, groups: 4, ..new("depthwise", [1, 4, 3, 5, 6], 4, [3; 3]) }),
        // Frames that fill tiles of shared memory, with padding of two modes.
        (
            2,
            Conv3dCase {
                padding: [(1, 1), (1, 1), (1, 1)],
                modes: Some([Replicate, Zeros, Zeros]),
                groups: 3,
                ..new("depthwise_frames", [2, 3, 6, 17, 24], 3, [3; 3])
            },
        ),
        (
            3,
            Conv3dCase {
                padding: [(1, 2), (2, 1), (0, 1)],
                stride: [2, 1, 2],
                dilation: [1, 2, 1],
                groups: 3,
                ..new("depthwise_strided", [2, 3, 6, 6, 7], 3, [3, 3, 2])
            },
        ),
        // Tiles of which the cache has as many frames as windows overlap, more, or none.
        (2, Conv3dCase { padding: plane, ..new("few_outputs", [1, 9, 14, 6, 7], 3, [3; 3]) }),
        (
            3,
            Conv3dCase {
                padding: [(1, 1), (1, 1), (0, 1)],
                modes: Some([Replicate, Zeros, Zeros]),
                groups: 2,
                ..new("few_outputs_of_groups", [2, 6, 6, 6, 7], 4, [3; 3])
            },
        ),
    ]
}

/// The frames `first..end` of a five-axis tensor, by another layout than row-major where `strided`.
pub(crate) fn frames(
    client: &Client,
    of: &Buffer,
    (first, end): (usize, usize),
    strided: bool,
    dtype: FloatType,
) -> Buffer {
    let [n, c, d, h, w] = of.operand().shape[..] else { panic!("five axes") };
    let values = of.values();
    let kept = end - first;
    let mut part = Vec::with_capacity(n * c * kept * h * w);
    for channel in 0..n * c {
        let frame = |at: usize| (channel * d + at) * h * w;
        part.extend(values[frame(first)..frame(end)].iter().map(|value| *value as f32));
    }
    let shape = [n, c, kept, h, w];
    if !strided {
        return upload(client, &part, &shape, dtype);
    }
    // Channels fastest: images are not C channels apart where there are several.
    let strides = [c * kept * h * w, 1, h * w * c, w * c, c];
    upload_strided(client, &part, &shape, &strides, dtype)
}

/// Compares a case's forward pass and weight gradient, its first frames in a cache, with the reference
/// under the eligible plans that `picks` keeps. With `exact` some caches and inputs have other layouts than
/// row-major, both the same one under plans that read no other; without, all are as the list of kernels has
/// them.
pub(crate) fn check(
    (client, limits): (&Client, &Limits),
    stream: &Stream,
    fill: &dyn Fn(u64, usize) -> Vec<f32>,
    exact: bool,
    picks: &dyn Fn(Vec<Plan>) -> Vec<Plan>,
) {
    check_passes((client, limits), stream, (&[Pass::Forward, Pass::WeightGradient], fill, exact), picks);
}

fn check_passes(
    (client, limits): (&Client, &Limits),
    (held, case): &Stream,
    (passes, fill, exact): (&[Pass], Fill, bool),
    picks: &dyn Fn(Vec<Plan>) -> Vec<Plan>,
) {
    for &dtype in &limits.dtypes {
        let problem = problem(case, dtype).for_streams();
        let inputs = inputs(client, &problem, fill);
        let all = problem.input[0];
        for &pass in passes {
            let plans = picks(eligible(&problem, pass, limits));
            assert!(plans.contains(&Plan::Direct) && plans.len() > 1, "{case}: {plans:?}");
            let oracle = Oracle::new(&problem, pass, &inputs, &plans);
            for (round, plan) in plans.iter().enumerate() {
                let parts = [(0, *held), (*held, all)];
                let strided = |part: usize| match plan {
                    Plan::Window(_) | Plan::FewOutputs(_) | Plan::Depthwise(_) => {
                        exact && dtype == FloatType::F32
                    }
                    _ => exact && (round + part) % 3 == 2,
                };
                let [cache, x] =
                    [0, 1].map(|part| frames(client, &inputs.x, parts[part], strided(part), dtype));
                let out = output(client, &result_shape(&problem, pass), dtype);
                launch((client, limits), &problem, (pass, plan), &inputs, [&cache, &x, &out]);
                let got = out.read(client);
                let what = format!("{case}, {held} cached, {} {} {}", dtype.name(), pass.name(), plan.name());
                let inexact = matches!(plan, Plan::Winograd(config) if config.tile != WinogradTile::F2x2);
                let result = if exact && !inexact {
                    check_exact(&got, oracle.values(), dtype)
                } else {
                    oracle.check(plan, pass, dtype, &got, !exact).map(|_| ())
                };
                result.unwrap_or_else(|error| panic!("{what}: {error}"));
            }
        }
    }
}

fn launch(
    (client, limits): (&Client, &Limits),
    problem: &Conv3dProblem,
    (pass, plan): (Pass, &Plan),
    inputs: &Inputs,
    [cache, x, out]: [&Buffer; 3],
) {
    let [cache, x, out] = [cache, x, out].map(Buffer::operand);
    let one_layout = matches!(plan, Plan::Window(_) | Plan::FewOutputs(_) | Plan::Depthwise(_));
    assert!(reads_cache(plan, x, cache) || !one_layout);
    let (w, dy) = (inputs.w.operand(), inputs.dy.operand());
    match pass {
        Pass::Forward => {
            forward_cached(client, limits, problem, plan, [x, w, out], (cache, None, inputs.added()))
        }
        _ => weight_gradient_cached(client, limits, problem, plan, [x, dy, out], cache),
    }
    .unwrap_or_else(|error| panic!("{problem:?} {}: {error}", plan.name()));
}

#[test]
fn frames_of_a_cache_are_read_like_those_of_the_clip() {
    let client = client();
    let limits = Limits::of(&client);
    for (round, stream) in streams().iter().enumerate() {
        // On a software device one tile of each kind.
        let picks = |plans: Vec<Plan>| {
            if EXECUTED && stream.1.name == "stream_modes" { plans } else { one_tile_each(plans, round) }
        };
        check((&client, &limits), stream, &|seed, length| fill::integers(seed, length, -4, 4), true, &picks);
    }
    check((&client, &limits), &streams()[0], &fill::normal, false, &|plans| one_tile_each(plans, 0));
}

/// NVIDIA's structure of the kernels that tell frames of a cache from others as a whole: blocks, channels and
/// stages prefetched.
#[test]
fn frames_of_a_cache_are_prefetched() {
    let client = client();
    let dtypes = vec![FloatType::F32];
    let limits = Limits { unroll: true, dtypes, ..Limits::of(&client) };
    let served = |plan: &Plan| {
        matches!(plan, Plan::Direct | Plan::Window(_) | Plan::FewOutputs(_) | Plan::Gemm(GemmTile::Mma(_)))
    };
    for (held, case) in streams() {
        let few = case.name.starts_with("stream_few");
        if !few
            && (limits.matrices.is_empty() || !["stream_plane", "stream_frames"].contains(&&case.name[..]))
        {
            continue;
        }
        let picks = |mut plans: Vec<Plan>| {
            plans.retain(served);
            plans
        };
        let plans = picks(eligible(&problem(&case, FloatType::F32).for_streams(), Pass::Forward, &limits));
        let meant = |plan: &Plan| match plan {
            Plan::FewOutputs(tile) => few && tile.prefetch,
            Plan::Window(_) => !few,
            _ => false,
        };
        assert!(plans.iter().any(meant), "{case}: {plans:?}");
        let fill = |seed, length| fill::integers(seed, length, -4, 4);
        let passes = [Pass::Forward, Pass::WeightGradient];
        check_passes((&client, &limits), &(held, case), (&passes, &fill, true), &picks);
    }
}

/// Winograd transforms the cache's frames from the cache and x's from x: the bits of one joined tensor, with
/// regions of the whole result and of single frames, some of them in one of the tensors alone.
#[test]
fn winograd_of_a_cache_has_the_bits_of_joined_frames() {
    let client = client();
    let device = Limits::of(&client);
    let case = Conv3dCase {
        padding: [(0, 0), (1, 1), (0, 2)],
        stride: [2, 1, 1],
        activation: Activation::Relu,
        ..Conv3dCase::new("joined", [2, 3, 7, 9, 8], 5, [3; 3])
    };
    let (whole, held) = (problem(&case, FloatType::F32), 3);
    let stream = whole.for_streams();
    let inputs = inputs(&client, &whole, &fill::normal);
    let x = frames(&client, &inputs.x, (held, 7), false, whole.dtype);
    let cache = frames(&client, &inputs.x, (0, held), true, whole.dtype);
    for (pass, tile) in [Pass::Forward, Pass::WeightGradient]
        .into_iter()
        .flat_map(|pass| WinogradTile::ALL.map(|tile| (pass, tile)))
        .filter(|(pass, tile)| *pass == Pass::Forward || *tile != WinogradTile::F6x6)
    {
        let planned = |problem: &Conv3dProblem, limits: &Limits| {
            conv3d::plan(problem, pass, Algorithm::Winograd(tile), limits).ok()
        };
        let mut least = device.clone();
        while planned(&stream, &Limits { workspace_bytes: least.workspace_bytes / 2, ..least.clone() })
            .is_some()
        {
            least.workspace_bytes /= 2;
        }
        for limits in [&device, &least] {
            let plan = planned(&stream, limits).expect("Winograd serves it");
            let [joined, got] = [(); 2].map(|()| output(&client, &result_shape(&whole, pass), whole.dtype));
            launch((&client, limits), &stream, (pass, &plan), &inputs, [&cache, &x, &got]);
            let (x, w, dy) = (inputs.x.operand(), inputs.w.operand(), inputs.dy.operand());
            let bias = inputs.bias.as_ref().map(Buffer::operand);
            match pass {
                Pass::Forward => forward(&client, limits, &whole, &plan, [x, w, joined.operand()], bias),
                _ => weight_gradient(&client, limits, &whole, &plan, [x, dy, joined.operand()]),
            }
            .expect("the joined frames");
            let bits = |buffer: &Buffer| buffer.read(&client).iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert!(bits(&joined) == bits(&got), "{} {}, {limits:?}", pass.name(), plan.name());
        }
    }
}

#[test]
fn caches_that_do_not_fit_are_refused() {
    let client = client();
    let limits = Limits::of(&client);
    let whole = problem(&Conv3dCase::new("cache", [1, 4, 5, 3, 3], 4, [3; 3]), FloatType::F32);
    let refusal = |problem: Conv3dProblem, cache: [usize; 5], x: [usize; 5]| {
        let [cache, x, w, y] = [cache, x, problem.weight_shape(), problem.y_shape()]
            .map(|shape| upload(&client, &vec![0.0; shape.iter().product()], &shape, FloatType::F32));
        let bias = upload(&client, &[0.0; 4], &[4], FloatType::F32);
        let operands = [x.operand(), w.operand(), y.operand()];
        let others = (cache.operand(), None, Some(bias.operand()));
        forward_cached(&client, &limits, &problem, &Plan::Direct, operands, others)
            .expect_err("a refusal")
            .to_string()
    };
    assert_eq!(
        refusal(whole, [1, 4, 2, 3, 3], [1, 4, 3, 3, 3]),
        "conv3d: a cache of shape [1, 4, 2, 3, 3] was given for [1, 4, 5, 3, 3], which is no problem of a stream"
    );
    assert_eq!(
        refusal(whole.for_streams(), [1, 4, 5, 3, 3], [1, 4, 1, 3, 3]),
        "conv3d: the cache has shape [1, 4, 5, 3, 3], it must hold at least 1 and at most 4 of the 5 frames of \
         [1, 4, 5, 3, 3]"
    );
    assert_eq!(
        refusal(whole.for_streams(), [1, 4, 2, 3, 3], [1, 4, 2, 3, 3]),
        "conv3d: x has shape [1, 4, 2, 3, 3], the problem needs [1, 4, 3, 3, 3]"
    );
}
