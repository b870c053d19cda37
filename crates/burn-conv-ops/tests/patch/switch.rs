//! Switching, refusing, and several threads.

use crate::models::{Network, Pair};
use crate::support::{assert_all_served, assert_close, counted, gpu, normal, owned, set_patched};
use burn::nn::conv::{Conv2dConfig, Conv3dConfig};
use burn::tensor::{Device, TensorData};
use burn_conv_ops::patch::{BurnSeconds, Pass, Report};
use burn_conv_ops::{Algorithm, PatchError, PatchOptions, WinogradTile, is_patched, patch, unpatch};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

fn run(pair: &Pair, seed: u64) -> TensorData {
    owned(pair.forward(seed, &gpu()))
}

pub(crate) fn what_is_refused_is_burns() {
    let device = gpu();
    let conv = Conv3dConfig::new([4, 4], [1, 1, 1]).init(&device);
    let run = || owned(conv.forward(normal(1, [1, 4, 2, 3, 4], &device)));
    set_patched(false);
    let burns = run();
    // Winograd serves no filter of one tap.
    let options = PatchOptions::all().with_device(gpu());
    patch(options.with_algorithm(Algorithm::Winograd(WinogradTile::F4x4))).expect("this process is patched");
    let (result, report) = counted(run);
    assert_eq!((report.recorded(), report.served(), report.declined()), (1, 0, 1), "{report}");
    assert_eq!(result, burns);
    // Without a switch for the kind nothing is counted.
    patch(PatchOptions::all().with_device(gpu()).with_conv3d(false)).expect("this process is patched");
    let (result, report) = counted(run);
    assert_eq!((report.recorded(), report.served(), report.declined()), (0, 0, 0), "{report}");
    assert_eq!(result, burns);
    set_patched(true);
    let (result, report) = counted(run);
    assert_all_served("with the default algorithm", &report, 1);
    assert_close("with the default algorithm", &result, &burns, 1e-5);
}

/// Predictions that differ by pass: each operation decides by itself.
pub(crate) fn what_is_predicted_slower_is_burns() {
    let device = gpu().autodiff();
    let conv = Conv3dConfig::new([4, 6], [3, 3, 3]).init(&device);
    // y and the gradients of x, weight and bias.
    let run = || {
        let x = normal::<5>(1, [2, 4, 3, 5, 6], &device).require_grad();
        let y = conv.forward(x.clone());
        let gradients = y.clone().square().mean().backward();
        let [dw, db] = [
            owned(conv.weight.val().grad(&gradients).expect("it is tracked")),
            owned(conv.bias.as_ref().expect("it has one").val().grad(&gradients).expect("it is tracked")),
        ];
        [owned(y.inner()), owned(x.grad(&gradients).expect("it is tracked")), dw, db]
    };
    set_patched(false);
    let burns = run();
    let with = |options: PatchOptions| {
        patch(options.with_device(gpu())).expect("this process is patched");
        counted(run)
    };
    let counts = |report: &Report, op: &str| {
        let count = report.op(op).expect("a kind of operation");
        [count.recorded, count.served, count.declined, count.slower]
    };
    let all = PatchOptions::all;
    // Burn takes no time forward, and forever for gradients.
    let forward =
        all().with_burn_seconds(|_, pass, _| Some(if pass == Pass::Forward { 0.0 } else { f64::INFINITY }));
    let (result, report) = with(forward.clone());
    assert_eq!(counts(&report, "conv3d"), [1, 0, 0, 1], "{report}");
    assert_eq!(
        (report.recorded(), report.served(), report.slower(), report.missed()),
        (4, 3, 1, 0),
        "{report}"
    );
    assert!(report.to_string().contains("conv3d: 0 of 1 served, 0 declined, 1 faster by Burn\n"), "{report}");
    assert_eq!(result[0], burns[0]);
    for (got, want) in result.iter().zip(&burns) {
        assert_close("gradients are served", got, want, 1e-4);
    }
    // All that can be predicted; the bias' gradient is a sum.
    let (result, report) = with(all().with_burn_seconds(|_, _, _| Some(0.0)));
    assert_eq!((report.served(), report.slower(), report.declined()), (1, 3, 0), "{report}");
    assert_eq!(result[..3], burns[..3]);
    // What is not known, slower, forced or not asked for is served.
    for options in [
        all().with_burn_seconds(|_, _, _| None),
        all().with_burn_seconds(|_, _, _| Some(f64::INFINITY)),
        forward.clone().with_algorithm(Algorithm::ImplicitGemm),
        forward.with_leave_slower(false),
    ] {
        let (result, report) = with(options);
        assert_all_served("with other options", &report, 4);
        for (got, want) in result.iter().zip(&burns) {
            assert_close("with other options", got, want, 1e-4);
        }
    }
    set_patched(true);
    // A problem as the model asks for it: conv2d has one frame.
    let conv = Conv2dConfig::new([4, 6], [3, 3]).init(&device);
    let planar: BurnSeconds = |problem, pass, limits| {
        let asked = problem.x_shape() == [2, 4, 1, 5, 6] && pass == Pass::Forward;
        (asked && limits.dtypes.contains(&problem.dtype)).then_some(0.0)
    };
    patch(all().with_burn_seconds(planar).with_device(gpu())).expect("this process is patched");
    let (_, report) = counted(|| owned(conv.forward(normal::<4>(1, [2, 4, 5, 6], &device)).inner()));
    assert_eq!(counts(&report, "conv2d"), [1, 0, 0, 1], "{report}");
    set_patched(true);
}

pub(crate) fn unpatch_works_at_any_time() {
    let pair = Pair::new(&gpu());
    set_patched(true);
    let (first, report) = counted(|| run(&pair, 1));
    assert_all_served("patched", &report, 2);
    assert!(is_patched());
    set_patched(false);
    assert!(!is_patched());
    let (second, report) = counted(|| run(&pair, 1));
    assert_eq!((report.recorded(), report.served()), (0, 0), "unpatched\n{report}");
    set_patched(true);
    let (third, report) = counted(|| run(&pair, 1));
    assert_all_served("patched again", &report, 2);
    assert_eq!(first, third);
    assert_ne!(first, second, "Burn's sums have another order; equal bits mean that nothing was switched");
    assert_close("unpatched", &second, &first, 1e-4);
    // With operations that are recorded and have not run.
    let device = gpu().autodiff();
    let pair = Pair::new(&device);
    let step = |off: bool| {
        let loss = pair.loss(0, &device);
        if off {
            unpatch();
        }
        let gradient = pair.first.weight.val().grad(&loss.backward()).expect("it is tracked");
        [owned(loss.inner()), owned(gradient)]
    };
    let whole = step(false);
    for (cut, whole) in step(true).iter().zip(&whole) {
        assert_close("unpatched in the middle", cut, whole, 1e-4);
    }
    set_patched(true);
}

pub(crate) fn flipping_while_a_model_runs_changes_no_result() {
    let pair = Pair::new(&gpu());
    let want: Vec<_> = (0..8).map(|seed| run(&pair, seed)).collect();
    let options = PatchOptions::all().with_device(gpu());
    let done = AtomicBool::new(false);
    let ((), report) = counted(|| {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Relaxed) {
                    unpatch();
                    std::thread::sleep(std::time::Duration::from_micros(300));
                    patch(options.clone()).expect("this process is patched");
                    std::thread::sleep(std::time::Duration::from_micros(300));
                }
            });
            for _ in 0..20 {
                for (seed, want) in want.iter().enumerate() {
                    assert_close("while flipping", &run(&pair, seed as u64), want, 1e-4);
                }
            }
            done.store(true, Relaxed);
        });
    });
    println!("{} of 320 served while flipping", report.served());
    assert_eq!((report.served(), report.missed()), (report.recorded(), 0), "{report}");
    assert!((1..320).contains(&report.served()), "{report}");
    set_patched(true);
}

pub(crate) fn threads_share_a_model() {
    let pair = Pair::new(&gpu());
    set_patched(true);
    let want: Vec<_> = (0..4).map(|seed| run(&pair, seed)).collect();
    let ((), report) = counted(|| {
        std::thread::scope(|scope| {
            for (seed, want) in want.iter().enumerate() {
                let pair = &pair;
                scope.spawn(move || {
                    for _ in 0..20 {
                        assert_eq!(run(pair, seed as u64), *want);
                    }
                });
            }
        });
    });
    assert_all_served("four threads", &report, 4 * 20 * 2);
}

pub(crate) fn bad_options_are_refused() {
    set_patched(false);
    let refused = |options: PatchOptions| {
        let error = patch(options).expect_err("the options are bad");
        assert!(!is_patched(), "an error changes nothing");
        error
    };
    let error = refused(PatchOptions::new().with_device(Device::flex()));
    assert!(matches!(error, PatchError::NotCube(_)), "{error:?}");
    assert!(error.to_string().contains("Flex"), "{error}");
    assert_eq!(refused(PatchOptions::new().with_conv3d(false)), PatchError::Nothing);
    set_patched(true);
}
