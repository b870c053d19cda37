//! `patch()` on unmodified models of `burn::nn`.
//!
//! A harness of its own: the registration precedes the first tensor operation of the process, what is counted
//! is counted for the process, and what comes too late needs another process (`children`).

mod alike;
mod caches;
mod children;
mod cost;
mod models;
mod neighbours;
mod operands;
mod others;
#[path = "../models/squeezenet.rs"]
#[rustfmt::skip]
#[allow(unreachable_pub, clippy::pedantic, reason = "as published; tests/models/README.md")]
mod squeezenet;
mod support;
mod switch;
mod training;

use burn_conv_ops::{PatchOptions, patch};
use support::{run_serially, trial};

fn main() {
    if children::run() {
        return;
    }
    let options = PatchOptions::all().with_device(support::gpu());
    patch(options).expect("before the first tensor operation");
    let trials = [
        ("a_conv3d_resnet_trains_alike", training::a_conv3d_resnet_trains_alike as fn()),
        ("a_residual_conv2d_unet_trains_alike", training::a_residual_conv2d_unet_trains_alike),
        ("a_conv3d_unet_trains_alike", training::a_conv3d_unet_trains_alike),
        ("a_conv1d_network_trains_alike", training::a_conv1d_network_trains_alike),
        ("squeezenet_has_the_same_features", others::squeezenet_has_the_same_features),
        ("squeezenet_trains_alike", others::squeezenet_trains_alike),
        ("transposed_convolutions_agree", training::transposed_convolutions_agree),
        ("a_strided_shortcut_has_its_gradient", training::a_strided_shortcut_has_its_gradient),
        ("a_thousand_steps_leak_nothing", training::a_thousand_steps_leak_nothing),
        ("a_cache_holds_its_own_frames", caches::a_cache_holds_its_own_frames),
        (
            "views_and_dtypes_give_the_bits_of_a_direct_call",
            operands::views_and_dtypes_give_the_bits_of_a_direct_call,
        ),
        (
            "a_filter_longer_than_its_result_is_a_convolution",
            operands::a_filter_longer_than_its_result_is_a_convolution,
        ),
        ("another_shape_has_its_own_plan", operands::another_shape_has_its_own_plan),
        ("an_empty_batch_is_served", operands::an_empty_batch_is_served),
        ("a_bias_of_another_length_is_refused", operands::a_bias_of_another_length_is_refused),
        ("a_transposed_bias_is_fused", operands::a_transposed_bias_is_fused),
        ("devices_have_their_own_tensors", operands::devices_have_their_own_tensors),
        ("neighbours_still_fuse", neighbours::neighbours_still_fuse),
        ("what_is_refused_is_burns", switch::what_is_refused_is_burns),
        ("what_is_predicted_slower_is_burns", switch::what_is_predicted_slower_is_burns),
        ("unpatch_works_at_any_time", switch::unpatch_works_at_any_time),
        (
            "flipping_while_a_model_runs_changes_no_result",
            switch::flipping_while_a_model_runs_changes_no_result,
        ),
        ("threads_share_a_model", switch::threads_share_a_model),
        ("bad_options_are_refused", switch::bad_options_are_refused),
        ("too_late_is_an_error", children::too_late_is_an_error),
        ("a_kind_asked_for_too_late_is_an_error", children::a_kind_asked_for_too_late_is_an_error),
        ("another_version_is_an_error", children::another_version_is_an_error),
        ("repeated_steps_hit_the_plan_cache", children::repeated_steps_hit_the_plan_cache),
        ("each_kind_is_announced_once", children::each_kind_is_announced_once),
        ("the_reason_why_one_is_left_is_said_once", children::the_reason_why_one_is_left_is_said_once),
        ("what_is_missed_is_said_once", children::what_is_missed_is_said_once),
    ];
    let mut trials: Vec<_> = trials.map(trial).into();
    trials.push(trial(("host_cost", cost::host_cost)).with_ignored_flag(true));
    run_serially(trials);
}
