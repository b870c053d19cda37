//! What the model of `conv_kernels::Chip` predicts for conv3d's workloads on chips that need not be there:
//! the chosen plan, its milliseconds, and MLX's by the same rates. For causal conv3d's layers also what
//! reading x and the cache as two tensors costs. Nothing is run and nothing is measured.

use crate::options::{Options, Size};
use anyhow::Result;
use comfy_table::Table;
use conv_kernels::conv3d::{Algorithm, Conv3dProblem, Pass, plan, predicted_seconds};
use conv_kernels::{FloatType, Limits};

/// Taps along H and W and the tile's outputs of MLX's Winograd.
const TAPS: usize = 3;
const OUTPUTS: usize = 6;

/// Prints a table per storage type.
///
/// # Errors
/// For a workload that is no valid problem.
pub(crate) fn run(options: &Options, chips: &[String]) -> Result<()> {
    println!("Predicted milliseconds (MLX's in brackets) by counted operations and bytes; nothing was run.");
    let chips: Vec<_> = chips.iter().map(|name| (name, Limits::named(name))).collect();
    for dtype in options.dtypes() {
        streams(options, dtype, &chips)?;
        let cases = crate::conv3d::cases(options, Size::Full);
        if cases.is_empty() {
            continue;
        }
        let mut table = Table::new();
        table.load_preset(comfy_table::presets::ASCII_MARKDOWN);
        let names = chips.iter().flat_map(|(name, _)| [format!("{name}: plan"), "ms (MLX)".into()]);
        table.set_header(["layer".to_string(), "pass".into()].into_iter().chain(names));
        let mut ratios = vec![(0.0, 0); chips.len()];
        for case in cases {
            let problem = crate::conv3d::problem(&case, dtype)?;
            for pass in [Pass::Forward, Pass::InputGradient, Pass::WeightGradient] {
                let mut row = vec![case.name.clone(), pass.name().into()];
                for ((_, limits), ratio) in chips.iter().zip(&mut ratios) {
                    let plan = plan(&problem, pass, Algorithm::Auto, limits)?;
                    let ours = 1e3 * predicted_seconds(&problem, pass, &plan, limits);
                    let theirs = mlx(&problem, pass, limits).map(|seconds| 1e3 * seconds);
                    let theirs_text = theirs.map_or("-".into(), |ms| format!("{ms:.3}"));
                    row.extend([plan.name(), format!("{ours:.3} ({theirs_text})")]);
                    if let Some(theirs) = theirs {
                        *ratio = (ratio.0 + (theirs / ours).ln(), ratio.1 + 1);
                    }
                }
                table.add_row(row);
            }
        }
        println!("\n{}\n{table}", dtype.name());
        for ((name, _), (sum, count)) in chips.iter().zip(ratios) {
            let mean = (sum / f64::from(count.max(1))).exp();
            println!("{name}: MLX's time over ours, geometric mean of {count} passes: {mean:.2}");
        }
    }
    Ok(())
}

/// Prints what the layers of a decoder take as streams, and as conv3d of frames that were joined before.
fn streams(options: &Options, dtype: FloatType, chips: &[(&String, Limits)]) -> Result<()> {
    let cases = crate::causal_conv3d::cases(options, Size::Full);
    let served = chips.iter().filter(|(_, limits)| limits.dtypes.contains(&dtype));
    for (name, limits) in served.filter(|_| !cases.is_empty()) {
        let mut table = Table::new();
        table.load_preset(comfy_table::presets::ASCII_MARKDOWN);
        table.set_header(["layer", "calls", "stream: plan", "ms", "joined before: plan", "ms", "ratio"]);
        let mut steps: Vec<(&str, [f64; 2])> = Vec::new();
        for workload in &cases {
            let problem = crate::conv3d::problem(&workload.case, dtype)?;
            let [stream, joined] = crate::causal_conv3d::predicted(&problem, workload.cached(), limits)?;
            let [a, b] = [&stream, &joined].map(|(_, seconds)| 1e3 * seconds);
            table.add_row([
                workload.case.name.clone(),
                workload.calls.to_string(),
                stream.0,
                format!("{a:.3}"),
                joined.0,
                format!("{b:.3}"),
                format!("{:.2}", a / b),
            ]);
            if !steps.iter().any(|(step, _)| *step == workload.step) {
                steps.push((&workload.step, [0.0; 2]));
            }
            let step = steps.iter_mut().find(|(step, _)| *step == workload.step);
            let (_, sums) = step.expect("it was added");
            let calls = workload.calls as f64;
            *sums = [sums[0] + calls * a, sums[1] + calls * b];
        }
        println!("\n{} on {name}\n{table}", dtype.name());
        for (step, [stream, joined]) in steps {
            println!(
                "{step}: {stream:.1} ms as a stream, {joined:.1} ms joined before: {:.3}",
                stream / joined
            );
        }
    }
    Ok(())
}

/// MLX's kernels for a depth tap by Winograd: the padded copy, both transforms and the filters', the product
/// and the sum with the taps before.
const TAP_LAUNCHES: f64 = 6.0;

/// MLX's seconds: the faster of its implicit GEMM and, for 3x3 windows at stride 1, one F(6x6) per depth tap
/// with copies and sums between them; both in whole tiles, with their launches. None for groups,
/// which it does not serve.
fn mlx(problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Option<f64> {
    let window = &problem.window;
    if window.groups > 1 {
        return None;
    }
    let size = problem.dtype.size() as f64;
    let product = |extents: &[usize]| extents.iter().map(|&extent| extent as f64).product::<f64>();
    let (x, w, y) =
        (product(&problem.x_shape()), product(&problem.weight_shape()), product(&problem.y_shape()));
    let channels = [problem.channels, problem.out_channels];
    let [rate, bandwidth] = [limits.chip.matrices, limits.chip.bandwidth];
    let positions = y / problem.out_channels as f64;
    let taps = w / product(&channels);
    let [input, output] = channels.map(|channels| channels as f64);
    let inputs = x / input;
    let extents = match pass {
        Pass::Forward => [positions, output, input * taps],
        // A strided window leaves each input element a part of the taps.
        Pass::InputGradient => [inputs, input, output * taps * (positions / inputs).min(1.0)],
        Pass::WeightGradient => [output, input * taps, positions],
    };
    let launch = limits.chip.launch;
    let gemm = launch + (padded(extents) / rate).max((x + w + y) * size / bandwidth);
    let strides = window.stride.iter().chain(&window.dilation).all(|&step| step == 1);
    if pass == Pass::WeightGradient || problem.kernel[1..] != [TAPS; 2] || !strides {
        return Some(gemm);
    }
    let [_, _, depth, height, width] = problem.y_shape();
    let tiles = problem.batch * depth * height.div_ceil(OUTPUTS) * width.div_ceil(OUTPUTS);
    let points = (OUTPUTS + TAPS - 1) * (OUTPUTS + TAPS - 1);
    let [v, m] = channels.map(|channels| product(&[points, tiles, channels]));
    let operations = points as f64 * padded([tiles as f64, output, input]);
    // The padded copy, the transforms, the product and the sum with the taps before.
    let bytes = size * (3.0 * x + 2.0 * v + 2.0 * m + 4.0 * y);
    let tap = TAP_LAUNCHES * launch + operations / rate + bytes / bandwidth;
    let winograd = problem.kernel[0] as f64 * tap;
    Some(gemm.min(winograd))
}

/// FLOP of a GEMM's M, N and K in MLX's tiles of 64x64x16, or 64x32x16 for few columns.
fn padded([m, n, k]: [f64; 3]) -> f64 {
    let whole = |extent: f64, tile: f64| (extent / tile).ceil() * tile;
    2.0 * whole(m, 64.0) * whole(n, if n <= 32.0 { 32.0 } else { 64.0 }) * whole(k, 16.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use conv_kernels::FloatType;
    use conv_kernels::conv3d::Window;

    /// Published for an M3 Max in bf16 (ml-explore/mlx #3785): implicit GEMM and Winograd.
    #[test]
    fn the_rates_give_mlx_s_published_times() {
        let limits = Limits::apple("Apple M3 Max");
        let published = [
            ([41, 60, 104], 256, [71.0, 28.0]),
            ([41, 120, 208], 512, [1128.0, 335.0]),
            ([17, 64, 64], 256, [20.0, 9.0]),
        ];
        for ([d, h, w], channels, times) in published {
            let window = Window { padding: [(1, 1); 3], ..Window::default() };
            let (x, weight) = ([1, channels, d, h, w], [channels, channels, 3, 3, 3]);
            let layer = Conv3dProblem::new(x, weight, None, window, FloatType::Bf16).expect("a layer");
            // The weight gradient's model is the implicit GEMM alone.
            for (pass, time) in [Pass::WeightGradient, Pass::Forward].into_iter().zip(times) {
                let model = 1e3 * mlx(&layer, pass, &limits).expect("one group");
                assert!((model / time - 1.0).abs() < 0.12, "{x:?}: {model:.1} ms, published {time}");
            }
        }
    }
}
