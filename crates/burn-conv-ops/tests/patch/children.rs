//! What needs a process of its own: this executable, started again with the name of a task.

use crate::models::{Network, Pair};
use crate::support::{gpu, normal, owned};
use burn::backend::fusion::stream::Context;
use burn::backend::fusion::{FuserProperties, FuserStatus, OperationFuser};
use burn::backend::ir::OperationIr;
use burn::nn::conv::Conv3dConfig;
use burn::tensor::Tensor;
use burn_conv_ops::patch::report;
use burn_conv_ops::{Algorithm, PatchError, PatchOptions, WinogradTile, is_patched, patch, patch_conv3d};
use burn_cubecl::CubeDevice;
use burn_cubecl::fusion::{
    CubeFuser, CubeFusionHandle, CubeOptimization, FallbackOperation, FusedOperation, OptimizationProvider,
    register,
};
use burn_cubecl_fusion::optim::elemwise::{ElementWiseFuser, ElemwiseOptimization};
use std::process::Command;
use std::sync::OnceLock;

const TASK: &str = "CONV_PATCH_TASK";

/// Runs the task that the environment names; whether it names one.
pub(crate) fn run() -> bool {
    let Ok(task) = std::env::var(TASK) else { return false };
    match task.as_str() {
        "too_late" => too_late(),
        "kind_too_late" => kind_too_late(),
        "name_taken" => name_taken(),
        "steps" => steps(),
        "left" => left(),
        "missed" => missed(),
        other => panic!("there is no task `{other}`"),
    }
    true
}

/// What the task writes to stderr.
fn child(task: &str, environment: &[(&str, &str)]) -> String {
    let this = std::env::current_exe().expect("this executable has a path");
    let output = Command::new(this).env(TASK, task).envs(environment.iter().copied()).output();
    let output = output.expect("this executable starts");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{task}: {}\n{text}", output.status);
    text
}

fn too_late() {
    let x: Tensor<1> = normal(1, [4], &gpu());
    (x + 1.0).into_data();
    let error = patch(PatchOptions::new().with_device(gpu())).expect_err("a tensor operation ran");
    assert!(matches!(error, PatchError::TooLate(_)), "{error:?}");
    assert!(!is_patched());
    eprintln!("{error}");
    // Asked for again it is as late.
    let again = patch(PatchOptions::new().with_device(gpu())).expect_err("a tensor operation ran");
    assert_eq!(again, error);
}

pub(crate) fn too_late_is_an_error() {
    let text = child("too_late", &[]);
    assert!(text.contains("before conv3d, conv_transpose3d was asked for"), "{text}");
}

fn kind_too_late() {
    patch(PatchOptions::new().with_device(gpu())).expect("before the first tensor operation");
    let x: Tensor<1> = normal(1, [4], &gpu());
    (x + 1.0).into_data();
    let error = patch(PatchOptions::all().with_device(gpu())).expect_err("a tensor operation ran");
    eprintln!("{error}");
    assert!(is_patched(), "an error changes nothing");
    patch_conv3d().expect("what was asked for early can be switched at any time");
}

pub(crate) fn a_kind_asked_for_too_late_is_an_error() {
    let text = child("kind_too_late", &[]);
    assert!(
        text.contains("before conv1d, conv2d, conv_transpose1d, conv_transpose2d was asked for"),
        "{text}"
    );
}

/// What another version of this crate would register.
struct Namesake;

impl OptimizationProvider for Namesake {
    type Operation = ElemwiseOptimization;

    fn name(&self) -> &str {
        "burn-conv-ops"
    }

    fn fuser(&self, device: &CubeDevice) -> CubeFuser {
        CubeFuser::new(ElementWiseFuser::new(device.clone()))
    }
}

fn name_taken() {
    register(Namesake).expect("before the first tensor operation");
    let error = patch(PatchOptions::new().with_device(gpu())).expect_err("the name is taken");
    assert!(matches!(error, PatchError::NameTaken(_)), "{error:?}");
    assert!(!is_patched());
    eprintln!("{error}");
}

pub(crate) fn another_version_is_an_error() {
    let text = child("name_taken", &[]);
    assert!(text.contains("an optimization named `burn-conv-ops` is registered with Burn already"), "{text}");
}

/// Writes the lines of the log to stderr.
fn log_lines() {
    struct Lines;
    impl log::Log for Lines {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }
        fn log(&self, record: &log::Record<'_>) {
            if record.target() == "burn_conv_ops" {
                eprintln!("{} {}", record.level(), record.args());
            }
        }
        fn flush(&self) {}
    }
    log::set_logger(&Lines).expect("there is no other logger");
    log::set_max_level(log::LevelFilter::Info);
}

/// Six equal steps, with a line before each.
fn steps() {
    log_lines();
    patch(PatchOptions::new().with_device(gpu())).expect("before the first tensor operation");
    let device = gpu().autodiff();
    let pair = Pair::new(&device);
    for index in 0..6 {
        gpu().sync().expect("the device works");
        eprintln!("step {index}");
        let gradients = pair.loss(0, &device).backward();
        // Runs all; the gradients are dropped after it, in any order.
        pair.first.weight.val().grad(&gradients).expect("it is tracked").into_data();
    }
    gpu().sync().expect("the device works");
    let report = report();
    assert_eq!((report.recorded(), report.served()), (6 * 7, 6 * 7), "{report}");
}

/// What `steps` writes, with the log of Burn's fusion layer.
fn steps_text() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| child("steps", &[("BURN_FUSION_LOG", "full")]))
}

pub(crate) fn repeated_steps_hit_the_plan_cache() {
    let text = steps_text();
    // Plans that are made and plans that are found, of segments with a convolution.
    let plans = |step: usize, what: &str| {
        let start = text.find(&format!("step {step}\n")).expect("a line for each step");
        let end = text.find(&format!("step {}\n", step + 1)).unwrap_or(text.len());
        let segments = text[start..end].split("[plan] ").skip(1);
        segments.filter(|segment| segment.starts_with(what) && segment.contains("Module::Conv3d")).count()
    };
    let counts: Vec<_> =
        (0..6).map(|step| [plans(step, "exploration completed"), plans(step, "cache hit")]).collect();
    assert!(counts[0][0] > 0, "{counts:?}");
    for counts in &counts[3..] {
        assert!(counts[0] == 0 && counts[1] > 0, "(made, found) in a step: {counts:?}");
    }
    assert!(!text.contains("[repair]"), "Burn dropped fusions");
}

pub(crate) fn each_kind_is_announced_once() {
    let text = steps_text();
    for kind in ["conv3d", "conv3d_x_backward", "conv3d_weight_backward", "conv3d_bias_backward"] {
        let line = format!("INFO patch: {kind} runs on the kernels of burn-conv-ops\n");
        assert_eq!(text.matches(&line).count(), 1, "{kind}\n{text}");
    }
}

/// Two convolutions that the forced algorithm does not serve.
fn left() {
    log_lines();
    let options = PatchOptions::new().with_device(gpu());
    let options = options.with_algorithm(Algorithm::Winograd(WinogradTile::F4x4));
    patch(options).expect("before the first tensor operation");
    let conv = Conv3dConfig::new([4, 4], [1, 1, 1]).init(&gpu());
    for seed in [1, 2] {
        owned(conv.forward(normal(seed, [1, 4, 2, 3, 4], &gpu())));
    }
    let report = report();
    assert_eq!((report.recorded(), report.declined()), (2, 2), "{report}");
}

pub(crate) fn the_reason_why_one_is_left_is_said_once() {
    let text = child("left", &[]);
    let lines: Vec<_> = text.lines().filter(|line| line.contains("left to Burn")).collect();
    let want =
        "INFO patch: a conv3d was left to Burn: conv3d: winograd_4x4 needs a 3x3 kernel in H and W, got 1x1";
    assert_eq!(lines, [want], "{text}");
}

/// Takes whole blocks, before the patch does, and leaves all to Burn.
struct Unfused;

impl OptimizationProvider for Unfused {
    type Operation = Block;

    fn fuser(&self, _: &CubeDevice) -> CubeFuser {
        CubeFuser::new(Block(0))
    }
}

/// Its operations.
#[derive(Clone)]
struct Block(usize);

impl OperationFuser<CubeOptimization> for Block {
    fn fuse(&mut self, _: &OperationIr) {
        self.0 += 1;
    }

    fn finish(&mut self) -> CubeOptimization {
        CubeOptimization::new(self.clone())
    }

    fn reset(&mut self) {
        self.0 = 0;
    }

    fn status(&self) -> FuserStatus {
        if self.0 == 0 { FuserStatus::Open } else { FuserStatus::Closed }
    }

    fn properties(&self) -> FuserProperties {
        FuserProperties { score: u64::MAX, ready: true }
    }

    fn len(&self) -> usize {
        self.0
    }

    fn clone_dyn(&self) -> Box<dyn OperationFuser<CubeOptimization>> {
        Box::new(self.clone())
    }
}

impl FusedOperation for Block {
    const NAME: &'static str = "unfused";

    type State = usize;

    fn num_ops_fused(&self) -> usize {
        self.0
    }

    fn max_relative_shape_id(&self) -> Option<usize> {
        None
    }

    fn run(
        &mut self,
        context: &mut Context<CubeFusionHandle>,
        fallback: &dyn Fn(usize) -> Box<dyn FallbackOperation>,
    ) {
        (0..self.0).for_each(|index| fallback(index).run(context));
    }

    fn to_state(&self) -> usize {
        self.0
    }

    fn from_state(_: &CubeDevice, state: usize) -> Self {
        Self(state)
    }
}

/// Two convolutions in blocks that another optimization takes.
fn missed() {
    log_lines();
    register(Unfused).expect("before the first tensor operation");
    patch(PatchOptions::new().with_device(gpu())).expect("before the first tensor operation");
    let conv = Conv3dConfig::new([4, 4], [1, 1, 1]).init(&gpu());
    for seed in [1, 2] {
        owned(conv.forward(normal(seed, [1, 4, 2, 3, 4], &gpu())));
    }
    let report = report();
    assert_eq!((report.recorded(), report.missed()), (2, 2), "{report}");
}

pub(crate) fn what_is_missed_is_said_once() {
    let text = child("missed", &[]);
    let lines: Vec<_> = text.lines().filter(|line| line.contains("left to Burn")).collect();
    assert_eq!(lines, ["INFO patch: a conv3d was left to Burn: its block ran without the patch"], "{text}");
}
