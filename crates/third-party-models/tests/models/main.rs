//! Models that nobody here wrote, as crates.io has them: the same outputs, losses and gradients with Burn's
//! kernels, with these kernels through `patch`, and on Flex.
//!
//! A harness of its own: the registration precedes the first tensor operation of the process.

#[path = "../../../burn-conv-ops/tests/patch/alike.rs"]
mod alike;
mod compare;
mod images;
mod regions;
mod sound;
#[path = "../../../burn-conv-ops/tests/patch/support.rs"]
#[allow(dead_code, reason = "what burn-conv-ops' own tests of `patch` measure and compare with")]
mod support;
mod video;

use burn_conv_ops::{PatchOptions, patch};
use support::{run_serially, trial};

fn main() {
    let options = PatchOptions::all().with_device(support::gpu());
    patch(options).expect("before the first tensor operation");
    let trials = [
        ("v_jepa_is_the_same", video::v_jepa_is_the_same as fn()),
        ("v_jepas_patches_are_the_same", video::v_jepas_patches_are_the_same),
        ("resnet_18_has_the_same_outputs", images::resnet_18_has_the_same_outputs),
        ("resnet_18_trains_alike", regions::resnet_18_trains_alike),
        ("a_bottleneck_resnet_is_the_same", images::a_bottleneck_resnet_is_the_same),
        ("whisper_is_the_same", sound::whisper_is_the_same),
        ("a_conformer_is_the_same", sound::a_conformer_is_the_same),
    ];
    run_serially(trials.map(trial).into());
}
