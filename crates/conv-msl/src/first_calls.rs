//! What the first training step of a network compiles on an M1: the kernels and the bytes of Metal text of
//! each layer and pass, under the plans that the choice takes.

use crate::conv3d::launch;
use anyhow::{Result, anyhow};
use conv_cases::conv3d::Conv3dCase;
use conv_kernels::conv3d::{Algorithm, Pass, plan};
use conv_kernels::{FloatType, Limits};
use conv_testing::conv3d::problem;
use msl_host::{Label, Recorder};
use std::fmt::Write as _;

/// The distinct convolutions of R3D-18 on a clip of 16x112x112.
pub fn r3d_18() -> Vec<Conv3dCase> {
    let layer =
        |name: &str, [c, o]: [usize; 2], kernel: [usize; 3], stride: [usize; 3], input: [usize; 3]| {
            let padding = kernel.map(|taps| (taps / 2, taps / 2));
            let [d, h, w] = input;
            Conv3dCase { bias: false, padding, stride, ..Conv3dCase::new(name, [1, c, d, h, w], o, kernel) }
        };
    let mut layers = vec![
        layer("stem", [3, 64], [3, 7, 7], [1, 2, 2], [16, 112, 112]),
        layer("layer1", [64, 64], [3; 3], [1; 3], [16, 56, 56]),
    ];
    for (index, extents) in [(2, [16, 56, 56]), (3, [8, 28, 28]), (4, [4, 14, 14])] {
        let channels = 32 << (index - 1);
        let wider = [channels, 2 * channels];
        layers.push(layer(&format!("layer{index}, first"), wider, [3; 3], [2; 3], extents));
        layers.push(layer(&format!("layer{index}, shortcut"), wider, [1; 3], [2; 3], extents));
        layers.push(layer(
            &format!("layer{index}"),
            [2 * channels; 2],
            [3; 3],
            [1; 3],
            extents.map(|n| n / 2),
        ));
    }
    layers
}

/// A Markdown table of `layers` in `dtype`: kernels that no row above has launched, their text in kB, and the
/// largest text. Passes that need no kernel of their own have no row.
///
/// # Errors
///
/// If a layer is refused or a kernel cannot be lowered.
pub fn table(layers: &[Conv3dCase], dtype: FloatType) -> Result<String> {
    let recorder = Recorder::apple_m1();
    let limits = Limits::of(recorder.client());
    let mut table = String::from(
        "| layer | pass | plan | kernels | text, kB | largest, kB |\n|---|---|---|---|---|---|\n",
    );
    let (mut kernels, mut bytes) = (0, 0);
    for case in layers {
        for pass in [Pass::Forward, Pass::InputGradient, Pass::WeightGradient] {
            let problem = problem(case, dtype)?;
            let plan = plan(&problem, pass, Algorithm::Auto, &limits)?;
            let label = Label { what: case.name.clone(), options: pass.name().into() };
            recorder.record(&label, |client| launch(client, &limits, &problem, pass, &plan))?;
            let log = recorder.log();
            let lowered = log.kernels[kernels..].iter().map(|kernel| kernel.lowered.as_ref());
            let texts = lowered.map(|lowered| lowered.map(|lowered| lowered.msl.len()));
            let texts = texts.collect::<Result<Vec<_>, _>>().map_err(|reason| anyhow!("{reason}"))?;
            kernels = log.kernels.len();
            bytes += texts.iter().sum::<usize>();
            if texts.is_empty() {
                continue;
            }
            let kilobytes = |bytes: usize| bytes as f64 / 1e3;
            let [sum, largest] =
                [texts.iter().sum(), texts.iter().copied().max().unwrap_or(0)].map(kilobytes);
            let (pass, plan) = (pass.name(), plan.name());
            let _ = writeln!(
                table,
                "| {} | {pass} | {plan} | {} | {sum:.0} | {largest:.0} |",
                case.name,
                texts.len()
            );
        }
    }
    let _ = writeln!(table, "| all | | | {kernels} | {:.0} | |", bytes as f64 / 1e3);
    Ok(table)
}
