//! NaN and infinities through Burn: the CPU backend and the GPU device keep the contracts of
//! [`burn_conv_ops::conv3d`] and [`burn_conv_ops::causal_conv1d`].

use crate::conv3d::{options, problem};
use crate::support::{devices, int_upload, upload, values};
use burn::tensor::{Device, Tensor};
use burn_conv_ops::{
    Activation, Algorithm, CausalConv1dOptions, Conv1dLayout, causal_conv1d_with_state, conv3d,
};
use conv_cases::conv3d::Conv3dCase;
use conv_cases::fill;
use conv_kernels::conv3d::reference::{self, Reach, reach};
use conv_kernels::conv3d::{Conv3dProblem, Pass};

/// y, dx and dw of x, w and dy.
fn run(case: &Conv3dCase, [x, w, dy]: [&[f32]; 3], device: &Device) -> [Vec<f64>; 3] {
    let device = device.clone().autodiff();
    let x = upload(x, case.input_shape(), &device).require_grad();
    let w = upload(w, case.weight_shape(), &device).require_grad();
    let dy = upload(dy, case.output_shape(), &device);
    // Winograd spreads what is not finite over its tiles.
    let y = conv3d(x.clone(), w.clone(), None, options(case).with_algorithm(Algorithm::NoWinograd));
    let grads = (y.clone() * dy).sum().backward();
    let [dx, dw] = [x, w].map(|tensor| values(tensor.grad(&grads).expect("both are tracked")));
    [values(y.inner()), dx, dw]
}

/// The f64 results of a pass, and how they are reached.
fn expected(problem: &Conv3dProblem, pass: Pass, [x, w, dy]: [&[f64]; 3]) -> (Vec<f64>, Vec<Reach>) {
    let (values, operands) = match pass {
        Pass::Forward => (reference::pre_activation(problem, x, w, None), [x, w]),
        Pass::InputGradient => (reference::input_gradient(problem, w, dy), [w, dy]),
        Pass::WeightGradient => (reference::weight_gradient(problem, x, dy), [x, dy]),
    };
    (values, reach(problem, pass, operands))
}

#[test]
fn non_finite_elements_reach_what_the_contract_says() {
    let case =
        |name: &str, shape, o, kernel| Conv3dCase { bias: false, ..Conv3dCase::new(name, shape, o, kernel) };
    let depth = [(1, 1), (0, 0), (0, 0)];
    let padding = [(1, 1); 3];
    let cases = [
        Conv3dCase { padding: depth, groups: 4, ..case("depthwise", [1, 4, 4, 4, 4], 4, [3, 1, 1]) },
        case("width", [1, 1, 1, 1, 8], 1, [1, 1, 3]),
        case("wide", [1, 16, 1, 1, 8], 16, [1, 1, 3]),
        Conv3dCase { padding, ..case("dense", [2, 5, 3, 5, 6], 6, [3, 3, 3]) },
        Conv3dCase { padding: [(1, 0), (1, 1), (0, 1)], ..case("uneven", [1, 3, 3, 5, 6], 4, [3, 3, 3]) },
        Conv3dCase {
            padding,
            stride: [1, 2, 3],
            groups: 2,
            ..case("strided", [1, 6, 3, 8, 10], 4, [3, 3, 3])
        },
        Conv3dCase { padding, replicate: true, ..case("replicate", [1, 3, 3, 4, 5], 4, [3, 3, 3]) },
    ];
    let mut failures = Vec::new();
    for (on, device) in devices() {
        for case in &cases {
            let problem = problem(case);
            for (operand, turn) in (0..3).flat_map(|operand| (0..3).map(move |turn| (operand, turn))) {
                let shapes = [problem.x_shape(), problem.weight_shape(), problem.y_shape()];
                let mut inputs =
                    [0, 1, 2].map(|at| fill::integers(at as u64, shapes[at].iter().product(), 1, 4));
                let broken = &mut inputs[operand];
                let at = [0, broken.len() - 1, broken.len() / 2 + broken.len() / 7][turn];
                broken[at] = [f32::INFINITY, f32::NAN, f32::NEG_INFINITY][turn];
                let got = run(case, inputs.each_ref().map(Vec::as_slice), &device);
                let wide = inputs.map(|input| input.into_iter().map(f64::from).collect::<Vec<_>>());
                for (pass, got) in
                    [Pass::Forward, Pass::InputGradient, Pass::WeightGradient].into_iter().zip(got)
                {
                    let (want, reach) = expected(&problem, pass, wide.each_ref().map(Vec::as_slice));
                    let wrong = (0..got.len()).filter(|at| match reach[*at] {
                        Reach::Must => got[*at].is_finite(),
                        Reach::May => got[*at].is_finite() && got[*at] != want[*at],
                        Reach::Never => got[*at] != want[*at],
                    });
                    let wrong: Vec<_> = wrong.map(|at| (at, reach[at], got[at], want[at])).collect();
                    if !wrong.is_empty() {
                        let (name, count, pass) = (&case.name, wrong.len(), pass.name());
                        failures
                            .push(format!("{on} {name} {pass} {operand} {turn}: {count}, {:?}", wrong[0]));
                    }
                }
            }
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// A problem of causal conv1d: two rows, three channels.
#[derive(Clone, Copy, Debug)]
struct Sequences {
    steps: usize,
    width: usize,
    packed: bool,
    silu: bool,
    layout: Conv1dLayout,
}

const ROWS: usize = 2;
const CHANNELS: usize = 3;

/// A tensor that holds something which is not finite.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Broken {
    X,
    Dy,
    State,
    Tap,
}

impl Sequences {
    /// Two sequences with padding before, between and behind them; the second row begins with its sequence.
    fn id(&self, row: usize, step: usize) -> i64 {
        let third = self.steps / 3;
        match step + 2 * row {
            0 | 1 if self.packed => -1,
            at if self.packed && at + 2 >= self.steps => -1,
            at if self.packed && at == third => -1,
            at if self.packed && at > third => 1,
            _ => 0,
        }
    }

    /// The id of a column of `[initial state | x]`.
    fn column_id(&self, row: usize, column: usize) -> i64 {
        self.id(row, column.max(self.width - 1) - (self.width - 1))
    }

    /// Whether tap k of a step reads its column.
    fn reads(&self, row: usize, step: usize, tap: usize) -> bool {
        let id = self.id(row, step);
        id >= 0 && self.column_id(row, step + tap) == id
    }

    fn lengths(&self) -> [usize; 4] {
        let rows = ROWS * CHANNELS;
        [rows * self.steps, rows * self.steps, rows * (self.width - 1), CHANNELS * self.width]
    }

    /// y, the final state, dx, dw, db, dinitial; all in `[B, C, T]`.
    fn run(&self, [x, dy, state, weight]: [&[f32]; 4], device: &Device) -> [Vec<f64>; 6] {
        let device = device.clone().autodiff();
        let (steps, history) = ([ROWS, CHANNELS, self.steps], [ROWS, CHANNELS, self.width - 1]);
        let [x, state] =
            [(x, steps), (state, history)].map(|(of, shape)| upload(of, shape, &device).require_grad());
        let weight = upload(weight, [CHANNELS, self.width], &device).require_grad();
        let bias = upload(&[1.0, -1.0, 2.0], [CHANNELS], &device).require_grad();
        let order = |x: Tensor<3>| if self.layout == Conv1dLayout::Bct { x } else { x.swap_dims(1, 2) };
        let mut options = CausalConv1dOptions::from(state.clone()).with_layout(self.layout);
        if self.silu {
            options = options.with_activation(Activation::Silu);
        }
        if self.packed {
            let ids: Vec<i64> =
                (0..ROWS * self.steps).map(|at| self.id(at / self.steps, at % self.steps)).collect();
            options = options.with_seq_idx(int_upload(&ids, [ROWS, self.steps], &device));
        }
        let (y, last) =
            causal_conv1d_with_state(order(x.clone()), weight.clone(), Some(bias.clone()), options);
        let y = order(y);
        let grads = ((y.clone() * upload(dy, steps, &device)).sum() + last.clone().sum()).backward();
        let [dx, dinitial] = [x, state].map(|tensor| values(tensor.grad(&grads).expect("tracked")));
        let dw = values(weight.grad(&grads).expect("the weight is tracked"));
        let db = values(bias.grad(&grads).expect("the bias is tracked"));
        [values(y), values(last), dx, dw, db, dinitial]
    }

    /// How element `at` of a tensor that is not finite reaches each result.
    fn reach(&self, (broken, at): (Broken, usize)) -> [Vec<Reach>; 6] {
        let (steps, history) = (self.steps, self.width - 1);
        let place = |length: usize| (at / length / CHANNELS, at / length % CHANNELS, at % length);
        let is = |of: Broken, length: usize, b, c, index| broken == of && place(length) == (b, c, index);
        let column = |b: usize, c: usize, e: usize| {
            if e < history {
                is(Broken::State, history, b, c, e)
            } else {
                is(Broken::X, steps, b, c, e - history)
            }
        };
        let tap = |c: usize, k: usize| broken == Broken::Tap && at == c * self.width + k;
        let taps = |c: usize| (0..self.width).any(|k| tap(c, k));
        let pre = |b: usize, c: usize, t: usize| {
            (0..self.width).any(|k| self.reads(b, t, k) && (column(b, c, t + k) || tap(c, k)))
        };
        let gradient = |b: usize, c: usize, t: usize| {
            self.id(b, t) >= 0 && (is(Broken::Dy, steps, b, c, t) || self.silu && pre(b, c, t))
        };
        let of = |must: bool, may: bool| match (must, may) {
            (true, _) => Reach::Must,
            (false, true) => Reach::May,
            (false, false) => Reach::Never,
        };
        let each = |length: usize, of: &dyn Fn(usize, usize, usize) -> Reach| -> Vec<Reach> {
            let all = 0..ROWS * CHANNELS * length;
            all.map(|at| of(at / length / CHANNELS, at / length % CHANNELS, at % length)).collect()
        };
        let y = each(steps, &|b, c, t| of(pre(b, c, t), self.id(b, t) >= 0 && taps(c)));
        // Up to the last step that is not padding, without other sequences.
        let last = each(history, &|b, c, m| {
            let end = (0..steps).rev().find(|t| self.id(b, *t) >= 0).expect("a step") + 1;
            let same = self.column_id(b, end + m) == self.id(b, end - 1);
            of(same && column(b, c, end + m), false)
        });
        let columns = |b: usize, c: usize, e: usize| {
            let mut readers = (0..self.width).filter(|k| e >= *k && e - k < steps);
            let reached = readers.any(|k| self.reads(b, e - k, k) && (gradient(b, c, e - k) || tap(c, k)));
            of(reached, taps(c))
        };
        let dx = each(steps, &|b, c, t| columns(b, c, history + t));
        let dinitial = each(history, &|b, c, m| columns(b, c, m));
        let all_steps = || (0..ROWS).flat_map(|b| (0..steps).map(move |t| (b, t)));
        let dw = (0..CHANNELS * self.width).map(|at| {
            let (c, k) = (at / self.width, at % self.width);
            let must =
                all_steps().any(|(b, t)| self.reads(b, t, k) && (gradient(b, c, t) || column(b, c, t + k)));
            let may = (0..ROWS).any(|b| {
                (0..steps + history).any(|e| self.column_id(b, e) >= 0 && column(b, c, e))
                    || (0..steps).any(|t| gradient(b, c, t))
            });
            of(must, may)
        });
        let dw = dw.collect();
        let db = (0..CHANNELS).map(|c| of(all_steps().any(|(b, t)| gradient(b, c, t)), false)).collect();
        [y, last, dx, dw, db, dinitial]
    }
}

#[test]
fn non_finite_elements_of_sequences_reach_what_the_contract_says() {
    let mut failures = Vec::new();
    let problems = [(9, 4), (24, 9)].into_iter().flat_map(|(steps, width)| {
        [false, true].into_iter().flat_map(move |packed| {
            [(false, Conv1dLayout::Bct), (true, Conv1dLayout::Bct), (false, Conv1dLayout::Btc)]
                .map(|(silu, layout)| Sequences { steps, width, packed, silu, layout })
        })
    });
    for ((on, device), problem) in
        problems.flat_map(|problem| devices().into_iter().map(move |device| (device, problem)))
    {
        let mut reached = 0;
        let inputs = [0, 1, 2, 3].map(|at| fill::integers(at as u64, problem.lengths()[at], 1, 4));
        let finite = problem.run(inputs.each_ref().map(Vec::as_slice), &device);
        for (operand, broken) in [Broken::X, Broken::Dy, Broken::State, Broken::Tap].into_iter().enumerate() {
            // SiLU of infinities is another matter.
            let value = match broken {
                Broken::Tap if problem.silu => continue,
                Broken::Tap => f32::INFINITY,
                _ => f32::NAN,
            };
            let length = inputs[operand].len();
            // Steps next to the boundaries of sequences and padding, and others.
            let (steps, third) = (problem.steps, problem.steps / 3);
            let edge = |at: usize| at < 2 || at.abs_diff(third) < 2 || at + 1 == steps;
            for at in (0..length).filter(|at| edge(*at) || at % 11 == 5) {
                let mut inputs = inputs.clone();
                inputs[operand][at] = value;
                let got = problem.run(inputs.each_ref().map(Vec::as_slice), &device);
                let results = ["y", "last", "dx", "dw", "db", "dinitial"].into_iter().zip(&got).zip(&finite);
                for (((name, got), finite), reach) in results.zip(problem.reach((broken, at))) {
                    let wrong = (0..got.len()).filter(|index| match reach[*index] {
                        Reach::Must => got[*index].is_finite(),
                        Reach::May => got[*index].is_finite() && got[*index] != finite[*index],
                        Reach::Never => got[*index] != finite[*index],
                    });
                    reached += reach.iter().filter(|reach| **reach == Reach::Must).count();
                    let wrong: Vec<_> =
                        wrong.map(|at| (at, reach[at], got[at], finite[at])).take(3).collect();
                    if !wrong.is_empty() {
                        failures.push(format!("{on} {problem:?} {broken:?} {at}: {name} {wrong:?}"));
                    }
                }
            }
        }
        assert!(reached > 50, "{on} {problem:?}: {reached}");
    }
    let (count, shown) = (failures.len(), failures.len().min(20));
    assert!(failures.is_empty(), "{count} failures:\n{}", failures[..shown].join("\n"));
}
