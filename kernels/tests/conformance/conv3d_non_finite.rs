//! NaN and infinities: which results they reach under every plan. `conv_kernels::conv3d` documents the
//! contract, `reference::reach` computes it per result.

use crate::conv3d::{Inputs, Oracle, PASSES, computed, inputs, problem, result_shape};
use crate::support::{Buffer, client, upload};
use conv_cases::conv3d::{Conv3dCase, Padding};
use conv_cases::fill;
use conv_kernels::conv3d::reference::{Reach, reach};
use conv_kernels::conv3d::{Conv3dProblem, NonFinite, PaddingMode, Pass, Plan, eligible};
use conv_kernels::{FloatType, Limits};

/// Problems that reach every kernel: padding, windows that do not exist, stride remainders, groups, few
/// channels on either side.
fn cases() -> Vec<Conv3dCase> {
    let case =
        |name: &str, shape, o, kernel| Conv3dCase { bias: false, ..Conv3dCase::new(name, shape, o, kernel) };
    let padding = [(1, 1); 3];
    vec![
        Conv3dCase { padding, ..case("dense", [2, 5, 3, 7, 9], 6, [3, 3, 3]) },
        case("no_padding", [1, 17, 3, 6, 9], 16, [2, 3, 3]),
        Conv3dCase { padding, replicate: true, ..case("replicate", [1, 5, 3, 7, 6], 6, [3, 3, 3]) },
        Conv3dCase {
            padding,
            modes: Some([Padding::Circular, Padding::Zeros, Padding::Reflect]),
            ..case("modes", [1, 5, 3, 7, 6], 6, [3, 3, 3])
        },
        Conv3dCase { padding, stride: [1, 2, 3], ..case("strided", [1, 6, 3, 8, 10], 7, [3, 3, 3]) },
        Conv3dCase {
            dilation: [1, 2, 1],
            stride: [2, 1, 1],
            ..case("dilated", [1, 4, 5, 8, 7], 5, [2, 2, 3])
        },
        Conv3dCase { padding, groups: 2, ..case("groups", [1, 6, 2, 6, 8], 4, [3, 3, 3]) },
        Conv3dCase { padding, groups: 5, ..case("depthwise", [1, 5, 4, 7, 9], 5, [3, 3, 3]) },
        Conv3dCase {
            stride: [1, 2, 2],
            groups: 3,
            ..case("depthwise_strided", [1, 3, 4, 8, 9], 3, [3, 3, 3])
        },
        Conv3dCase { padding, ..case("head", [1, 7, 3, 8, 10], 2, [3, 3, 3]) },
        Conv3dCase { padding, stride: [1, 2, 2], ..case("stem", [1, 3, 3, 9, 9], 20, [3, 3, 3]) },
        case("run", [1, 33, 4, 4, 8], 18, [3, 1, 1]),
        case("width", [1, 16, 1, 1, 8], 16, [1, 1, 3]),
        case("one_row", [1, 1, 1, 1, 8], 1, [1, 1, 3]),
        Conv3dCase { stride: [2, 2, 2], ..case("patches", [1, 5, 5, 6, 7], 18, [2, 2, 2]) },
    ]
}

/// `values` with one element replaced by a non-finite one: the first, the last or one between, by `variant`.
fn with_non_finite(values: &[f64], variant: usize) -> Vec<f32> {
    let mut replaced: Vec<_> = values.iter().map(|value| *value as f32).collect();
    let at = [0, values.len() - 1, values.len() / 2 + values.len() / 7][variant % 3];
    replaced[at] = [f32::INFINITY, f32::NAN, f32::NEG_INFINITY][variant % 3];
    replaced
}

/// The operands of a pass, in the reference's order.
fn operands(pass: Pass, inputs: &mut Inputs) -> [&mut Buffer; 2] {
    let Inputs { x, w, dy, .. } = inputs;
    match pass {
        Pass::Forward => [x, w],
        Pass::InputGradient => [w, dy],
        Pass::WeightGradient => [x, dy],
    }
}

/// The reach under a plan: Winograd's spreads over tiles, Subpixel's over stride x stride blocks.
fn widen(problem: &Conv3dProblem, pass: Pass, plan: &Plan, limits: &Limits, reach: &[Reach]) -> Vec<Reach> {
    let tile = match plan.notes(problem, pass, limits).non_finite {
        NonFinite::Window => return reach.to_vec(),
        NonFinite::Blocks => return with_blocks(problem, reach),
        NonFinite::Tile(tile) => tile,
        other => unreachable!("{other:?} spreads in a way that this test does not know"),
    };
    let [_, _, _, height, width] = result_shape(problem, pass);
    // Tiles of the padded input, whose edges are folded, stay in their image and channel: no more is checked.
    let folded = pass == Pass::InputGradient && problem.window.padding_mode != [PaddingMode::Zeros; 3];
    let tile = if folded { height * width } else { tile };
    let tile_of = |index: usize| {
        let frame =
            if folded { index / (height * width) / problem.input[0] } else { index / (height * width) };
        (frame, index / width % height / tile, index % width / tile)
    };
    let reached: std::collections::HashSet<_> =
        (0..reach.len()).filter(|index| reach[*index] != Reach::Never).map(tile_of).collect();
    let widened = |index: usize| match reach[index] {
        Reach::Never if reached.contains(&tile_of(index)) => Reach::May,
        same => same,
    };
    (0..reach.len()).map(widened).collect()
}

/// In every frame the positions between those that are reached, and up to a stride beyond.
fn with_blocks(problem: &Conv3dProblem, reach: &[Reach]) -> Vec<Reach> {
    let [_, height, width] = problem.input;
    let [_, rows, columns] = problem.window.stride;
    let mut widened = reach.to_vec();
    for frame in 0..reach.len() / (height * width) {
        let at = |h: usize, w: usize| (frame * height + h) * width + w;
        let positions = (0..height).flat_map(|h| (0..width).map(move |w| (h, w)));
        let reached: Vec<_> = positions.clone().filter(|(h, w)| reach[at(*h, *w)] != Reach::Never).collect();
        let near = |at: usize, of: &dyn Fn(&(usize, usize)) -> usize, stride: usize| {
            let (first, last) = (reached.iter().map(of).min(), reached.iter().map(of).max());
            first.zip(last).is_some_and(|(first, last)| at + stride > first && at < last + stride)
        };
        for (h, w) in positions {
            if reach[at(h, w)] == Reach::Never && near(h, &|at| at.0, rows) && near(w, &|at| at.1, columns) {
                widened[at(h, w)] = Reach::May;
            }
        }
    }
    widened
}

/// A non-finite element makes the results non-finite whose products hold it. A weight (dw: any operand) may
/// do so to other results of its channel. All others keep their values.
#[test]
fn non_finite_elements_reach_what_the_contract_says() {
    let client = client();
    let limits = Limits::of(&client);
    let mut failures = Vec::new();
    for (at, case) in cases().into_iter().enumerate() {
        let problem = problem(&case, FloatType::F32);
        for (pass, operand) in PASSES.into_iter().flat_map(|pass| (0..2).map(move |operand| (pass, operand)))
        {
            let variant = at + operand;
            let mut inputs = inputs(&client, &problem, &fill::normal);
            let values = operands(pass, &mut inputs)[operand].values();
            let shape = operands(pass, &mut inputs)[operand].operand().shape.clone();
            let values = with_non_finite(&values, variant);
            // The oracle replaces them by zero: results that they never reach have that value.
            let finite: Vec<_> =
                values.iter().map(|value| if value.is_finite() { *value } else { 0.0 }).collect();
            *operands(pass, &mut inputs)[operand] = upload(&client, &finite, &shape, FloatType::F32);
            let plans = eligible(&problem, pass, &limits);
            let oracle = Oracle::new(&problem, pass, &inputs, &plans);
            *operands(pass, &mut inputs)[operand] = upload(&client, &values, &shape, FloatType::F32);
            let [first, second] = operands(pass, &mut inputs).map(|buffer| buffer.values());
            let reach = reach(&problem, pass, [&first, &second]);
            for plan in plans {
                let mut got = computed((&client, &limits), &problem, (pass, &plan), &inputs);
                let reach = widen(&problem, pass, &plan, &limits, &reach);
                let missed =
                    (0..got.len()).filter(|at| reach[*at] == Reach::Must && got[*at].is_finite()).count();
                let leaks =
                    (0..got.len()).filter(|at| reach[*at] == Reach::Never && !got[*at].is_finite()).count();
                // `Direct` skips taps in the padding.
                let spread = plan == Plan::Direct
                    && (0..got.len()).any(|at| reach[at] == Reach::May && !got[at].is_finite());
                for (at, got) in got.iter_mut().enumerate() {
                    if reach[at] == Reach::Must || reach[at] == Reach::May && !got.is_finite() {
                        *got = oracle.values()[at];
                    }
                }
                let wrong = oracle.check(&plan, pass, FloatType::F32, &got, false).err();
                if missed + leaks > 0 || wrong.is_some() || spread {
                    failures.push(format!(
                        "{} {} {} operand {operand} variant {variant}: {missed} missed, {leaks} leaks, \
                         spread: {spread}, {wrong:?}",
                        case.name,
                        pass.name(),
                        plan.name()
                    ));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}
