//! conv3d: each pass of a random problem under its plans, compared with the reference.

mod compare;

use crate::device::{self, CLASSES, Device, may_refuse};
use crate::outcome::{Check, LAUNCH, NO_PLAN, OVER, Outcome, PANIC, REFUSED, WRONG, caught};
use crate::tensors::{self, DATA, OUTPUT_VIEWS, TYPES, VIEWS, dtype, make_non_finite};
use crate::text::{Case, Field};
use compare::{compare, compare_bias};
use conv_cases::fill::hash;
use conv_kernels::conv3d::{
    self as op, Activation, Algorithm, Conv3dProblem, PaddingMode, Pass, Plan, Window,
};
use conv_kernels::{ConvError, Limits};
use conv_testing::buffer::{Buffer, try_read_all};
use conv_testing::conv3d::{
    Inputs, Oracle, padded_work, result_shape, transposed_bias, try_launch, try_launch_transposed,
};

/// The fields of a case of conv3d.
pub const FIELDS: &[Field] = &[
    Field::numbers("x", &[1; 5]),
    Field::numbers("o", &[1]),
    Field::numbers("k", &[1; 3]),
    Field::numbers("s", &[1; 3]),
    Field::numbers("pad", &[0; 6]),
    Field::numbers("d", &[1; 3]),
    Field::numbers("groups", &[1]),
    Field::numbers("replicate", &[0]),
    Field::numbers("modes", &[0; 3]),
    Field::numbers("held", &[0]),
    Field::words("act", &["none", "relu", "silu"]),
    Field::numbers("bias", &[0]),
    Field::numbers("residual", &[0]),
    Field::words("type", TYPES),
    Field::words("data", DATA),
    Field::words("bad", &["none", "nan_x", "inf_x", "nan_dy", "inf_dy", "inf_w"]),
    Field::numbers("seed", &[1]),
    Field::words("x_view", VIEWS),
    Field::words("w_view", VIEWS),
    Field::words("dy_view", VIEWS),
    Field::words("out_view", OUTPUT_VIEWS),
    Field::words("limits", CLASSES),
    Field::words("pass", &["all", "forward", "dx", "dw", "db", "transposed"]),
];

/// Padding by its number in `modes`.
const MODES: [PaddingMode; 4] =
    [PaddingMode::Zeros, PaddingMode::Replicate, PaddingMode::Reflect, PaddingMode::Circular];

/// The first frames of x that are in a cache: `held`, as long as one frame is left.
fn held(case: &Case) -> usize {
    case.extent("held").min(case.extents::<5>("x")[2].saturating_sub(1))
}

/// The problem of a case.
fn problem(case: &Case) -> Result<Conv3dProblem, ConvError> {
    let x = case.extents::<5>("x");
    let [kd, kh, kw] = case.extents("k");
    let [o] = case.extents("o");
    let [groups] = case.extents("groups");
    let pad = case.extents::<6>("pad");
    let window = Window {
        stride: case.extents("s"),
        padding: [(pad[0], pad[1]), (pad[2], pad[3]), (pad[4], pad[5])],
        dilation: case.extents("d"),
        groups,
        padding_mode: if case.is("replicate") {
            [PaddingMode::Replicate; 3]
        } else {
            case.extents::<3>("modes").map(|mode| MODES[mode % MODES.len()])
        },
        activation: match case.word("act") {
            "relu" => Activation::Relu,
            "silu" => Activation::Silu,
            _ => Activation::None,
        },
    };
    let weight = [o, x[1] / groups.max(1), kd, kh, kw];
    let problem =
        Conv3dProblem::new(x, weight, case.is("bias").then_some(o), window, dtype(case.word("type")))?;
    let problem = Conv3dProblem { residual: case.is("residual"), ..problem };
    Ok(if held(case) > 0 { problem.for_streams() } else { problem })
}

fn inputs(device: &Device, case: &Case, problem: &Conv3dProblem) -> Inputs {
    let bad = case.word("bad");
    let tensor = |number: u64, name: &str, shape: &[usize], view: &str| {
        let (seed, length) = (case.number("seed"), shape.iter().product());
        let mut values = tensors::values(case.word("data"), seed, number, length);
        match bad.split_once('_') {
            Some(("nan", of)) if of == name => make_non_finite(&mut values, seed, f32::NAN),
            Some(("inf", of)) if of == name => make_non_finite(&mut values, seed, f32::INFINITY),
            _ => {}
        }
        tensors::upload(&device.client, &values, shape, view, problem.dtype)
    };
    Inputs {
        x: tensor(1, "x", &problem.x_shape(), case.word("x_view")),
        w: tensor(2, "w", &problem.weight_shape(), case.word("w_view")),
        bias: problem.bias.then(|| tensor(3, "bias", &[problem.out_channels], "plain")),
        // Of dy's shape; no pass reads both.
        residual: problem.residual.then(|| tensor(5, "residual", &problem.y_shape(), case.word("dy_view"))),
        dy: tensor(4, "dy", &problem.y_shape(), case.word("dy_view")),
    }
}

/// A pass of a case: its name in a line, and the passes that it launches. db comes with dw; the transposed
/// forward pass is an input gradient with bias and activation.
const PASSES: [(&str, Pass); 5] = [
    ("forward", Pass::Forward),
    ("dx", Pass::InputGradient),
    ("dw", Pass::WeightGradient),
    ("db", Pass::WeightGradient),
    ("transposed", Pass::InputGradient),
];

/// The plans of a case for one pass, the automatic one first if the case includes it.
fn plans(
    case: &Case,
    device: &Device,
    problem: &Conv3dProblem,
    pass: Pass,
    limits: &Limits,
) -> Result<Vec<(String, Plan)>, ConvError> {
    let all = || op::eligible(problem, pass, limits).into_iter().map(|plan| (plan.name(), plan));
    // A line without a plan runs every plan; a random case picks some.
    let most_work = if case.plan.is_empty() { 20 * device.most_work() } else { device.most_work() };
    // Large problems run under the plans that compute little more.
    let products = problem.y_shape().iter().product::<usize>() * problem.group_channels() * problem.taps();
    let most_work = most_work.max(4 * products);
    let affordable = |plan: &Plan| padded_work(problem, pass, plan) <= most_work;
    let auto = || op::plan(problem, pass, Algorithm::Auto, limits).map(|plan| ("auto".to_string(), plan));
    let picked = case.plan.strip_prefix("pick").and_then(|number| number.parse::<u64>().ok());
    Ok(match (case.plan.as_str(), picked) {
        ("auto", _) => vec![auto()?],
        ("", _) => std::iter::once(auto()?).chain(all().filter(|(_, plan)| affordable(plan))).collect(),
        (_, Some(number)) => {
            let auto = auto()?;
            let mut others: Vec<_> = all().filter(|(_, plan)| *plan != auto.1 && affordable(plan)).collect();
            let rank = |name: &str| name.bytes().fold(number, |sum, byte| hash(sum, u64::from(byte)));
            others.sort_by_key(|(name, _)| rank(name));
            others.truncate(PICKED);
            std::iter::once(auto).chain(others).collect()
        }
        (name, None) => all().filter(|(each, _)| each == name).collect(),
    })
}

/// Plans of a `pick` in addition to the automatic one.
const PICKED: usize = 2;

/// Whether the case names a plan that exists on matrix units alone, by an M1's limits.
pub fn needs_matrix_units(case: &Case) -> bool {
    let Ok(problem) = problem(case) else { return false };
    let passes = PASSES.iter().filter(|pass| ["all", pass.0].contains(&case.word("pass")));
    let passes: Vec<Pass> = passes.map(|(_, pass)| *pass).collect();
    let is_served = |limits: &Limits| {
        let mut plans = passes.iter().flat_map(|pass| op::eligible(&problem, *pass, limits));
        plans.any(|plan| plan.name() == case.plan)
    };
    let apple = Limits::apple_m1();
    let without = Limits { matrices: Vec::new(), ..apple.clone() };
    is_served(&apple) && !is_served(&without)
}

/// Runs a case.
pub fn run(device: &Device, case: &Case) -> Outcome {
    let problem = match problem(case) {
        Ok(problem) => problem,
        Err(error) => return Outcome::Skipped(error.to_string()),
    };
    let shapes = [problem.x_shape(), problem.weight_shape(), problem.y_shape()];
    let elements = shapes.iter().map(|shape| shape.iter().product::<usize>()).max().unwrap_or(0);
    if problem.multiply_adds() > 3e7 || elements > 1 << 21 {
        return Outcome::Skipped("the problem is too large".into());
    }
    let class = case.word("limits");
    let span = tensors::largest_span(case, &[&shapes[0], &shapes[1], &shapes[2]]);
    let limits = device::limits(class, &device.limits, span * problem.dtype.size());
    if !device.limits.dtypes.contains(&problem.dtype) {
        return Outcome::Skipped("the device lacks the type".into());
    }
    let inputs = inputs(device, case, &problem);
    let mut checks = Vec::new();
    for (word, pass) in PASSES {
        if !matches!(case.word("pass"), "all") && case.word("pass") != word {
            continue;
        }
        let zeros = problem.window.padding_mode == [PaddingMode::Zeros; 3];
        if word == "transposed" && !zeros {
            continue;
        }
        let mut of_pass = case.clone();
        of_pass.set_word("pass", word);
        let plans = match caught(|| plans(case, device, &problem, pass, &limits)) {
            Ok(Ok(plans)) => plans,
            Ok(Err(_)) if may_refuse(class) => continue,
            Ok(Err(error)) => return Outcome::failed(&of_pass, NO_PLAN, error.to_string()),
            Err(panic) => return Outcome::failed(&of_pass, PANIC, panic),
        };
        match run_pass(device, &of_pass, &problem, (word, pass), &limits, &inputs, plans) {
            Ok(more) => checks.extend(more),
            Err(failed) => return failed,
        }
    }
    Outcome::Passed(checks)
}

/// Launches a pass under its plans, then compares.
fn run_pass(
    device: &Device,
    case: &Case,
    problem: &Conv3dProblem,
    (word, pass): (&'static str, Pass),
    limits: &Limits,
    inputs: &Inputs,
    plans: Vec<(String, Plan)>,
) -> Result<Vec<Check>, Outcome> {
    let client = &device.client;
    let named = |name: &str| Case { plan: name.into(), ..case.clone() };
    let (with_bias, transposed) = (word == "db", word == "transposed");
    let values =
        |number: u64, length: usize| tensors::values(case.word("data"), case.number("seed"), number, length);
    let of_result = transposed.then(|| transposed_bias(client, problem, &values)).flatten();
    let of_transposed = (inputs, of_result.as_ref());
    let mut launched: Vec<(String, Plan, Vec<Buffer>)> = Vec::new();
    let held = if with_bias || pass == Pass::InputGradient { 0 } else { held(case) };
    let parts = (held > 0).then(|| {
        let part = |frames, view| frames_of(device, &inputs.x, frames, case.word(view), problem);
        [part(0..held, "w_view"), part(held..problem.input[0], "x_view")]
    });
    device.forget();
    for (name, plan) in plans {
        let of = |shape: &[usize]| tensors::output(client, shape, case.word("out_view"), problem.dtype);
        let mut outs = vec![of(&result_shape(problem, pass))];
        outs.extend(with_bias.then(|| of(&[problem.out_channels])));
        let result = caught(|| {
            if with_bias {
                let operands = [inputs.x.operand(), inputs.dy.operand(), outs[0].operand()];
                op::weight_and_bias_gradient(client, limits, problem, &plan, operands, outs[1].operand())
            } else if transposed {
                try_launch_transposed((client, limits), problem, &plan, of_transposed, &outs[0])
            } else if let Some([cache, x]) = &parts {
                launch_cached((client, limits), problem, (pass, &plan), inputs, [cache, x, &outs[0]])
            } else {
                try_launch((client, limits), problem, (pass, &plan), inputs, &outs[0])
            }
        });
        match result {
            Ok(Ok(())) => launched.push((name.clone(), plan, outs)),
            Ok(Err(error)) if name == "auto" => {
                let message = format!("{} was planned, then: {error}", plan.name());
                return Err(Outcome::failed(&named(&name), REFUSED, message));
            }
            // `eligible` may list a plan that the imposed limits refuse.
            Ok(Err(_)) => {}
            Err(panic) => return Err(Outcome::failed(&named(&name), PANIC, panic)),
        }
        if let Some(message) = device.over(limits) {
            let message = format!("{}: {message}", plan.name());
            return Err(Outcome::failed(&named(&name), OVER, message));
        }
    }
    let all: Vec<&Buffer> = launched.iter().flat_map(|(_, _, outs)| outs).collect();
    let all_read = caught(|| try_read_all(client, &all)).and_then(|read| read);
    let mut read = all_read.ok().map(Vec::into_iter);
    let plans: Vec<Plan> = launched.iter().map(|(_, plan, _)| *plan).collect();
    let oracle = if transposed {
        Oracle::transposed(problem, of_transposed, &plans)
    } else {
        Oracle::new(problem, pass, inputs, &plans)
    };
    let mut checks = Vec::new();
    for (name, plan, outs) in &launched {
        let got = match &mut read {
            Some(read) => read.by_ref().take(outs.len()).collect(),
            // One of them failed: find out which.
            None => caught(|| try_read_all(client, &outs.iter().collect::<Vec<_>>()))
                .and_then(|read| read)
                .map_err(|error| {
                Outcome::failed(&named(name), LAUNCH, format!("{}: {error}", plan.name()))
            })?,
        };
        let compared = compare(case, problem, pass, limits, (&oracle, inputs), plan, &got[0]);
        let compared =
            compared.and_then(|()| got.get(1).map_or(Ok(()), |db| compare_bias(case, problem, inputs, db)));
        if let Err(error) = compared {
            return Err(Outcome::failed(&named(name), WRONG, format!("{}: {error}", plan.name())));
        }
        let kind = if name == "auto" { format!("auto:{}", plan.name()) } else { name.clone() };
        checks.push((word, kind));
    }
    Ok(checks)
}

/// Some frames of x as a tensor of their own.
fn frames_of(
    device: &Device,
    x: &Buffer,
    frames: std::ops::Range<usize>,
    view: &str,
    problem: &Conv3dProblem,
) -> Buffer {
    let [n, c, d, h, w] = problem.x_shape();
    let values = x.values();
    let of_channel = |channel: usize| {
        let at = |frame: usize| (channel * d + frame) * h * w;
        values[at(frames.start)..at(frames.end)].iter().map(|value| *value as f32).collect::<Vec<_>>()
    };
    let values: Vec<f32> = (0..n * c).flat_map(of_channel).collect();
    // Views that repeat an axis need equal values along it.
    let view = if matches!(view, "batch" | "inner") { "plain" } else { view };
    tensors::upload(&device.client, &values, &[n, c, frames.len(), h, w], view, problem.dtype)
}

fn launch_cached(
    (client, limits): (&cubecl::prelude::Client, &Limits),
    problem: &Conv3dProblem,
    (pass, plan): (Pass, &Plan),
    inputs: &Inputs,
    [cache, x, out]: [&Buffer; 3],
) -> Result<(), ConvError> {
    let [cache, x, out] = [cache, x, out].map(Buffer::operand);
    let (w, dy) = (inputs.w.operand(), inputs.dy.operand());
    match pass {
        Pass::Forward => {
            let others = (cache, None, inputs.added());
            op::forward_cached(client, limits, problem, plan, [x, w, out], others)
        }
        _ => op::weight_gradient_cached(client, limits, problem, plan, [x, dy, out], cache),
    }
}
