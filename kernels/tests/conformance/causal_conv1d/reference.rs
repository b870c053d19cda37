//! The f64 reference itself against PyTorch, finite differences, adjoint identities, layouts. No device.

use super::problem as problem_of;
use crate::conv3d_reference::{assert_same, golden, tensor};
use conv_cases::causal_conv1d::{self as cases, Case, SeqIdx};
use conv_cases::fill;
use conv_kernels::FloatType;
use conv_kernels::causal_conv1d::{CausalConv1dProblem, UpdateProblem, reference};
use conv_kernels::conv3d::Activation;
use reference::Inputs;
use safetensors::SafeTensors;
use serde::Deserialize;

/// A problem in the metadata of `golden/causal_conv1d.safetensors`; golden/README.md has the schema.
#[derive(Deserialize)]
struct Golden {
    name: String,
    kind: String,
    b: usize,
    c: usize,
    #[serde(default)]
    t: usize,
    w: usize,
    #[serde(default)]
    s: usize,
    bias: bool,
    silu: bool,
    #[serde(default)]
    initial: bool,
    #[serde(default, rename = "final")]
    last: bool,
    #[serde(default)]
    seq_idx: bool,
}

fn i32s(file: &SafeTensors, name: &str) -> Vec<i64> {
    let view = file.tensor(name).expect("the ids");
    view.data()
        .chunks_exact(4)
        .map(|bytes| i32::from_le_bytes(bytes.try_into().expect("4 bytes")).into())
        .collect()
}

/// `[B, C, T]` values in the order of `[B, T, C]`.
fn transposed(values: &[f64], [b, c, t]: [usize; 3]) -> Vec<f64> {
    let mut out = Vec::with_capacity(values.len());
    for row in 0..b {
        for step in 0..t {
            out.extend((0..c).map(|channel| values[(row * c + channel) * t + step]));
        }
    }
    out
}

#[test]
fn pytorch_agrees() {
    let (bytes, problems) = golden::<Golden>("causal_conv1d.safetensors");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let (mut forwards, mut updates) = (0, 0);
    for (index, golden) in problems.iter().enumerate() {
        let get = |name: &str| tensor(&file, &format!("{index}.{name}"));
        let activation = if golden.silu { Activation::Silu } else { Activation::None };
        let &Golden { b, c, t, w, s, .. } = golden;
        let bias = golden.bias.then(|| get("b"));
        if golden.kind == "update" {
            updates += 1;
            let (f32, shape) = (FloatType::F32, [b, c, s]);
            let problem =
                UpdateProblem::new([b, c], shape, [c, w], golden.bias.then_some(c), activation, f32, f32)
                    .expect(&golden.name);
            let (y, state) =
                reference::update(&problem, &get("x"), &get("state"), &get("w"), bias.as_deref());
            assert_same(&format!("{} y", golden.name), &y, &get("y"));
            assert_same(&format!("{} state", golden.name), &state, &get("new_state"));
            continue;
        }
        forwards += 1;
        for btc in [false, true] {
            let what = |name: &str| format!("{} btc {btc} {name}", golden.name);
            let case = Case {
                bias: golden.bias,
                silu: golden.silu,
                initial: golden.initial,
                seq_idx: if golden.seq_idx { SeqIdx::WithPadding } else { SeqIdx::None },
                btc,
                ..Case::new(&golden.name, [b, c, t], w)
            };
            let problem = problem_of(&case, FloatType::F32, FloatType::F32);
            let steps = |name: &str| if btc { transposed(&get(name), [b, c, t]) } else { get(name) };
            let (x, weight, initial) = (steps("x"), get("w"), golden.initial.then(|| get("initial")));
            let ids = golden.seq_idx.then(|| i32s(&file, &format!("{index}.seq_idx")));
            let inputs = Inputs {
                x: &x,
                weight: &weight,
                bias: bias.as_deref(),
                initial_state: initial.as_deref(),
                seq_idx: ids.as_deref(),
                residual: None,
            };
            assert_same(&what("y"), &reference::forward(&problem, &inputs), &steps("y"));
            let dfinal = golden.last.then(|| get("dfinal"));
            let gradients = reference::backward(&problem, &inputs, &steps("dy"), dfinal.as_deref());
            assert_same(&what("dx"), &gradients.x, &steps("dx"));
            assert_same(&what("dw"), &gradients.weight, &get("dw"));
            if golden.bias {
                assert_same(&what("db"), &gradients.bias, &get("db"));
            }
            if golden.initial {
                assert_same(&what("dinitial"), &gradients.initial_state, &get("dinitial"));
            }
            if golden.last {
                let last = reference::final_state(&problem, &inputs);
                assert_same(&what("final"), &last, &get("final"));
            }
        }
    }
    assert!(forwards >= 20 && updates >= 5, "{forwards} forward and {updates} update problems");
}

fn normal(seed: u64, length: usize) -> Vec<f64> {
    fill::normal(seed, length).into_iter().map(f64::from).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// A point or a direction in the space of all inputs.
#[derive(Clone)]
struct Point {
    x: Vec<f64>,
    weight: Vec<f64>,
    bias: Vec<f64>,
    state: Vec<f64>,
    residual: Vec<f64>,
}

impl Point {
    fn random(seed: u64, problem: &CausalConv1dProblem) -> Self {
        let of = |seed, shape: &[usize]| normal(seed, shape.iter().product());
        Self {
            x: of(seed, &problem.x_shape()),
            weight: of(seed + 1, &problem.weight_shape()),
            bias: of(seed + 2, &[problem.channels]),
            state: of(seed + 3, &problem.state_shape()),
            residual: of(seed + 4, &problem.x_shape()),
        }
    }

    fn moved(&self, by: f64, direction: &Self) -> Self {
        let step = |from: &[f64], along: &[f64]| {
            from.iter().zip(along).map(|(from, along)| from + by * along).collect()
        };
        Self {
            x: step(&self.x, &direction.x),
            weight: step(&self.weight, &direction.weight),
            bias: step(&self.bias, &direction.bias),
            state: step(&self.state, &direction.state),
            residual: step(&self.residual, &direction.residual),
        }
    }

    fn inputs<'a>(&'a self, problem: &CausalConv1dProblem, ids: &'a [i64]) -> Inputs<'a> {
        Inputs {
            x: &self.x,
            weight: &self.weight,
            bias: problem.bias.then_some(&self.bias),
            initial_state: problem.initial_state.then_some(&self.state),
            seq_idx: problem.seq_idx.then_some(ids),
            residual: problem.residual.then_some(&self.residual),
        }
    }
}

/// Problems small enough for many evaluations, every option among them.
fn small() -> Vec<(Case, CausalConv1dProblem, Vec<i64>)> {
    let cases: Vec<_> = cases::conformance().into_iter().filter(|case| case.macs() < 6000).collect();
    assert!(cases.len() >= 60 && cases.iter().any(|case| case.t + 1 < case.w), "{} small cases", cases.len());
    cases
        .into_iter()
        .map(|case| {
            let problem = problem_of(&case, FloatType::F32, FloatType::F32);
            let ids = cases::seq_idx(&case).into_iter().map(i64::from).collect();
            (case, problem, ids)
        })
        .collect()
}

/// `<y, dy> + <final state, dfinal>` changes along a direction as the gradients say.
#[test]
fn finite_differences_agree() {
    for (case, problem, ids) in small() {
        let (point, direction) = (Point::random(1, &problem), Point::random(11, &problem));
        let (dy, dfinal) = (normal(21, point.x.len()), normal(22, point.state.len()));
        let loss = |point: &Point| {
            let inputs = point.inputs(&problem, &ids);
            dot(&reference::forward(&problem, &inputs), &dy)
                + dot(&reference::final_state(&problem, &inputs), &dfinal)
        };
        let gradients = reference::backward(&problem, &point.inputs(&problem, &ids), &dy, Some(&dfinal));
        let none = Point::random(11, &problem).moved(-1.0, &direction);
        let mut axes = vec![
            ("x", dot(&gradients.x, &direction.x), Point { x: direction.x.clone(), ..none.clone() }),
            (
                "w",
                dot(&gradients.weight, &direction.weight),
                Point { weight: direction.weight.clone(), ..none.clone() },
            ),
        ];
        if problem.bias {
            let along = Point { bias: direction.bias.clone(), ..none.clone() };
            axes.push(("bias", dot(&gradients.bias, &direction.bias), along));
        }
        if problem.initial_state {
            let along = Point { state: direction.state.clone(), ..none.clone() };
            axes.push(("state", dot(&gradients.initial_state, &direction.state), along));
        }
        if problem.residual {
            // dy, except at padding.
            let along = Point { residual: direction.residual.clone(), ..none.clone() };
            let token = |index: usize| {
                let t = if case.btc { index / case.c % case.t } else { index % case.t };
                ids.is_empty() || ids[index / (case.c * case.t) * case.t + t] >= 0
            };
            let slope = (0..dy.len()).filter(|index| token(*index)).map(|i| dy[i] * direction.residual[i]);
            axes.push(("residual", slope.sum(), along));
        }
        for (name, slope, along) in axes {
            let h = 1e-6;
            let difference = (loss(&point.moved(h, &along)) - loss(&point.moved(-h, &along))) / (2.0 * h);
            let scale = 1.0 + slope.abs();
            assert!(
                (difference - slope).abs() <= 1e-5 * scale,
                "{case} {name}: {difference}, gradient {slope}"
            );
        }
    }
}

/// Without bias and activation the op is bilinear, and its gradients are the adjoints:
/// `<y, g> = <x, dx> + <state, dstate> = <w, dw>`.
#[test]
fn adjoint_identities_hold() {
    for (case, problem, ids) in small() {
        let problem =
            CausalConv1dProblem { bias: false, residual: false, activation: Activation::None, ..problem };
        let point = Point::random(31, &problem);
        let g = normal(41, point.x.len());
        let inputs = point.inputs(&problem, &ids);
        let gradients = reference::backward(&problem, &inputs, &g, None);
        let forward = dot(&reference::forward(&problem, &inputs), &g);
        let state = inputs.initial_state.map_or(0.0, |state| dot(state, &gradients.initial_state));
        let close = |other: f64| (forward - other).abs() <= 1e-9 * (1.0 + forward.abs());
        assert!(close(dot(&point.x, &gradients.x) + state), "{case}");
        assert!(close(dot(&point.weight, &gradients.weight)), "{case}");
    }
}

/// Values at padding are never read, and padding receives no gradient.
#[test]
fn padding_is_isolated() {
    let mut padded = 0;
    for (case, problem, ids) in small().into_iter().filter(|(case, ..)| case.seq_idx == SeqIdx::WithPadding) {
        let point = Point::random(51, &problem);
        let (mut x, mut dy) = (point.x.clone(), normal(61, point.x.len()));
        let clean = reference::backward(&problem, &point.inputs(&problem, &ids), &dy, None);
        for index in 0..x.len() {
            let [b, _, t] = problem.x_element(index);
            if ids[b * case.t + t] < 0 {
                (x[index], dy[index]) = (f64::NAN, f64::NAN);
                padded += 1;
                assert_eq!(clean.x[index], 0.0, "{case}");
            }
        }
        let dirty = Point { x, ..point };
        let inputs = dirty.inputs(&problem, &ids);
        assert!(reference::forward(&problem, &inputs).iter().all(|y| y.is_finite()), "{case}");
        assert_eq!(reference::backward(&problem, &inputs, &dy, None), clean, "{case}");
    }
    assert!(padded > 100);
}

/// Decoding step by step equals the whole sequence.
#[test]
fn updates_add_up_to_the_forward_pass() {
    for (case, problem, ids) in
        small().into_iter().filter(|(case, ..)| case.seq_idx == SeqIdx::None && !case.btc && !case.residual)
    {
        let point = Point::random(71, &problem);
        let inputs = point.inputs(&problem, &ids);
        let whole = reference::forward(&problem, &inputs);
        let (f32, bias) = (FloatType::F32, problem.bias.then_some(case.c));
        let update = UpdateProblem::new(
            [case.b, case.c],
            problem.state_shape(),
            problem.weight_shape(),
            bias,
            problem.activation,
            f32,
            f32,
        )
        .expect("the shapes of the case");
        let zeros = vec![0.0; point.state.len()];
        let mut state = inputs.initial_state.map_or(zeros, <[f64]>::to_vec);
        for t in 0..case.t {
            let at = |values: &[f64]| -> Vec<f64> { values.chunks(case.t).map(|row| row[t]).collect() };
            let (y, next) = reference::update(&update, &at(&point.x), &state, &point.weight, inputs.bias);
            assert_same(&format!("{case} step {t}"), &y, &at(&whole));
            state = next;
        }
        assert_eq!(state, reference::final_state(&problem, &inputs), "{case}");
    }
}
