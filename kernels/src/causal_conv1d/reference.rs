//! Causal conv1d and its gradients as f64 loops: the reference for every kernel.
//!
//! ```text
//! pre[b,c,t] = bias[c] + sum over k of weight[c,k] * X(b, c, t - (W-1) + k)
//! y          = activation(pre) + residual
//! dpre       = dy * activation'(pre), 0 at padding
//! dx[b,c,s]  = sum over (t, k) that read step s of weight[c,k] * dpre[b,c,t]
//!              + dfinal of the step's column, if the final state holds it
//! dw[c,k]    = sum over b, t of dpre[b,c,t] * X(b, c, t - (W-1) + k)
//! db[c]      = sum over b, t of dpre[b,c,t]
//! ```
//!
//! Each row is traversed step by step, with the state before the step as a list of W-1 columns.
//!
//! All slices are row-major, x and y in the problem's layout. [`forward_magnitude`] and
//! [`backward_magnitude`] are the same sums over absolute values, for the tolerance model
//! ([`crate::tolerance`]).

use super::problem::{CausalConv1dProblem, Conv1dLayout, UpdateProblem};
use crate::Activation;
use crate::conv3d::reference::{activate, activation_derivative};

/// Inputs of both passes.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// `[B, C, T]` or `[B, T, C]`.
    pub x: &'a [f64],
    /// `[C, W]`.
    pub weight: &'a [f64],
    /// `[C]`.
    pub bias: Option<&'a [f64]>,
    /// `[B, C, W-1]`.
    pub initial_state: Option<&'a [f64]>,
    /// `[B, T]`.
    pub seq_idx: Option<&'a [i64]>,
    /// Of x's shape.
    pub residual: Option<&'a [f64]>,
}

/// Results of [`backward`], each with the shape of its input.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradients {
    /// dx.
    pub x: Vec<f64>,
    /// dw.
    pub weight: Vec<f64>,
    /// db; also if the problem has no bias.
    pub bias: Vec<f64>,
    /// Gradient of the initial state; also if the problem has none.
    pub initial_state: Vec<f64>,
}

/// The element that a tap reads.
#[derive(Clone, Copy)]
enum Source {
    X(usize),
    State(usize),
    /// A step of another sequence, or padding.
    Nothing,
}

impl CausalConv1dProblem {
    fn x_index(&self, b: usize, c: usize, t: usize) -> usize {
        match self.layout {
            Conv1dLayout::Bct => (b * self.channels + c) * self.length + t,
            Conv1dLayout::Btc => (b * self.length + t) * self.channels + c,
        }
    }

    fn state_index(&self, b: usize, c: usize, j: usize) -> usize {
        (b * self.channels + c) * (self.width - 1) + j
    }

    /// Calls `visit(b, c, t)` for every step of every channel.
    fn for_each_step(&self, mut visit: impl FnMut(usize, usize, usize)) {
        for b in 0..self.batch {
            for c in 0..self.channels {
                for t in 0..self.length {
                    visit(b, c, t);
                }
            }
        }
    }

    /// Traverses the steps of one channel of a row: `visit(t, window)` for every step that is not padding,
    /// with what its W taps read. Returns the final state: the W-1 columns that end with the last such step,
    /// as its sequence sees them; the initial state if there is none.
    fn traverse(
        &self,
        (b, c): (usize, usize),
        seq_idx: Option<&[i64]>,
        mut visit: impl FnMut(usize, &[Source]),
    ) -> Vec<Source> {
        let id = |t: usize| seq_idx.map_or(0, |ids| ids[b * self.length + t]);
        let initial = (0..self.width - 1).map(|j| Source::State(self.state_index(b, c, j)));
        let mut state: Vec<Source> = initial.collect();
        // The initial state belongs to the sequence of the first step.
        let first = if self.length > 0 { id(0) } else { 0 };
        let mut columns: Vec<(i64, Source)> = state.iter().map(|source| (first, *source)).collect();
        for t in 0..self.length {
            columns.push((id(t), Source::X(self.x_index(b, c, t))));
            if id(t) < 0 {
                continue;
            }
            let last = columns[columns.len() - self.width..].iter();
            let window: Vec<Source> =
                last.map(|(of, source)| if *of == id(t) { *source } else { Source::Nothing }).collect();
            visit(t, &window);
            state = window[1..].to_vec();
        }
        state
    }

    /// Calls `visit(source, weight index, y index)` for every product of the convolution, in a fixed order.
    fn for_each_product(&self, seq_idx: Option<&[i64]>, mut visit: impl FnMut(Source, usize, usize)) {
        for b in 0..self.batch {
            for c in 0..self.channels {
                self.traverse((b, c), seq_idx, |t, window| {
                    for (k, source) in window.iter().enumerate() {
                        if !matches!(source, Source::Nothing) {
                            visit(*source, c * self.width + k, self.x_index(b, c, t));
                        }
                    }
                });
            }
        }
    }

    /// Calls `visit(source, state index)` for every column of the final state.
    fn for_each_final(&self, seq_idx: Option<&[i64]>, mut visit: impl FnMut(Source, usize)) {
        for b in 0..self.batch {
            for c in 0..self.channels {
                let state = self.traverse((b, c), seq_idx, |_, _| {});
                for (m, source) in state.into_iter().enumerate() {
                    visit(source, self.state_index(b, c, m));
                }
            }
        }
    }

    /// Whether each step, in x's order, belongs to a sequence.
    fn is_token(&self, seq_idx: Option<&[i64]>) -> Vec<bool> {
        let mut token = vec![true; self.batch * self.channels * self.length];
        if let Some(ids) = seq_idx {
            self.for_each_step(|b, c, t| token[self.x_index(b, c, t)] = ids[b * self.length + t] >= 0);
        }
        token
    }
}

fn read(inputs: &Inputs, source: Source) -> f64 {
    match source {
        Source::X(index) => inputs.x[index],
        Source::State(index) => inputs.initial_state.map_or(0.0, |state| state[index]),
        Source::Nothing => 0.0,
    }
}

/// The sums before the activation; 0 at padding.
pub fn pre_activation(problem: &CausalConv1dProblem, inputs: &Inputs) -> Vec<f64> {
    let token = problem.is_token(inputs.seq_idx);
    let mut pre = vec![0.0; inputs.x.len()];
    if let Some(bias) = inputs.bias {
        problem.for_each_step(|b, c, t| {
            let index = problem.x_index(b, c, t);
            if token[index] {
                pre[index] = bias[c];
            }
        });
    }
    problem
        .for_each_product(inputs.seq_idx, |source, w, y| pre[y] += inputs.weight[w] * read(inputs, source));
    pre
}

/// y, of x's shape.
pub fn forward(problem: &CausalConv1dProblem, inputs: &Inputs) -> Vec<f64> {
    // Every activation maps 0, the value at padding, to 0.
    let y = pre_activation(problem, inputs).into_iter().map(|value| activate(problem.activation, value));
    let mut y: Vec<f64> = y.collect();
    add_residual(problem, inputs, &mut y);
    y
}

/// Adds the residual, if there is one, except at padding.
fn add_residual(problem: &CausalConv1dProblem, inputs: &Inputs, y: &mut [f64]) {
    let Some(residual) = inputs.residual else { return };
    for ((y, residual), token) in y.iter_mut().zip(residual).zip(problem.is_token(inputs.seq_idx)) {
        *y += if token { *residual } else { 0.0 };
    }
}

/// What the next step of each row's last sequence would read: `[B, C, W-1]`. Without ids the last W-1 columns
/// of `[initial state | x]`.
pub fn final_state(problem: &CausalConv1dProblem, inputs: &Inputs) -> Vec<f64> {
    let mut state = vec![0.0; problem.state_shape().iter().product()];
    problem.for_each_final(inputs.seq_idx, |source, index| state[index] = read(inputs, source));
    state
}

/// Every gradient from dy and the gradient of the final state (none: zero).
pub fn backward(
    problem: &CausalConv1dProblem,
    inputs: &Inputs,
    dy: &[f64],
    dfinal: Option<&[f64]>,
) -> Gradients {
    let pre = pre_activation(problem, inputs);
    let token = problem.is_token(inputs.seq_idx);
    let dpre: Vec<f64> = (0..dy.len())
        .map(|i| if token[i] { dy[i] * activation_derivative(problem.activation, pre[i]) } else { 0.0 })
        .collect();
    propagate(problem, inputs, &dpre, dfinal)
}

/// The linear part of [`backward`].
fn propagate(
    problem: &CausalConv1dProblem,
    inputs: &Inputs,
    dpre: &[f64],
    dfinal: Option<&[f64]>,
) -> Gradients {
    let mut gradients = Gradients {
        x: vec![0.0; inputs.x.len()],
        weight: vec![0.0; inputs.weight.len()],
        bias: vec![0.0; problem.channels],
        initial_state: vec![0.0; problem.state_shape().iter().product()],
    };
    problem.for_each_product(inputs.seq_idx, |source, w, y| {
        let target = match source {
            Source::X(index) => &mut gradients.x[index],
            Source::State(index) => &mut gradients.initial_state[index],
            Source::Nothing => return,
        };
        *target += inputs.weight[w] * dpre[y];
        gradients.weight[w] += dpre[y] * read(inputs, source);
    });
    problem.for_each_step(|b, c, t| gradients.bias[c] += dpre[problem.x_index(b, c, t)]);
    if let Some(dfinal) = dfinal {
        problem.for_each_final(inputs.seq_idx, |source, index| match source {
            Source::X(at) => gradients.x[at] += dfinal[index],
            Source::State(at) => gradients.initial_state[at] += dfinal[index],
            Source::Nothing => {}
        });
    }
    gradients
}

/// y of one step and the new state, from x `[B, C]` and state `[B, C, S]`.
pub fn update(
    problem: &UpdateProblem,
    x: &[f64],
    state: &[f64],
    weight: &[f64],
    bias: Option<&[f64]>,
) -> (Vec<f64>, Vec<f64>) {
    let (mut y, mut new_state) = (Vec::new(), Vec::new());
    for (row, newest) in x.iter().enumerate() {
        let c = row % problem.channels;
        let old = &state[row * problem.state_length..(row + 1) * problem.state_length];
        let history: Vec<f64> = old.iter().chain([newest]).copied().collect();
        let window = &history[history.len() - problem.width..];
        let taps = &weight[c * problem.width..(c + 1) * problem.width];
        let sum: f64 = window.iter().zip(taps).map(|(value, tap)| value * tap).sum();
        y.push(activate(problem.activation, sum + bias.map_or(0.0, |bias| bias[c])));
        new_state.extend(&history[1..]);
    }
    (y, new_state)
}

/// y `[B, C, L]` and the state after L steps, one at a time: `lengths` and `slots` as in
/// [`DecodingSteps`](super::DecodingSteps). Of rows that share a slot the last has it, the others are
/// padding.
pub fn update_steps(
    problem: &UpdateProblem,
    x: &[f64],
    state: &[f64],
    weight: &[f64],
    bias: Option<&[f64]>,
    lengths: Option<&[i64]>,
    slots: Option<&[i64]>,
) -> (Vec<f64>, Vec<f64>) {
    let &UpdateProblem { batch, channels, state_length: size, .. } = problem;
    let one = UpdateProblem { batch: 1, channels: 1, ..*problem };
    let steps = x.len() / (batch * channels);
    let (mut y, mut new_state) = (vec![0.0; x.len()], state.to_vec());
    for (row, y) in y.chunks_mut(steps).enumerate() {
        let (b, c) = (row / channels, row % channels);
        let Ok(slot) = usize::try_from(slots.map_or(b as i64, |slots| slots[b])) else { continue };
        if slots.is_some_and(|slots| slots[b + 1..].contains(&slots[b])) {
            continue;
        }
        let memory = &mut new_state[(slot * channels + c) * size..][..size];
        // Rotates a ring so that its columns are in the order of their steps.
        let start = lengths.map_or(0, |lengths| lengths[b] as usize % size.max(1));
        memory.rotate_left(start);
        for (y, x) in y.iter_mut().zip(&x[row * steps..]) {
            let taps = &weight[c * problem.width..(c + 1) * problem.width];
            let bias = bias.map(|bias| &bias[c..=c]);
            let (of_step, next) = update(&one, &[*x], memory, taps, bias);
            *y = of_step[0];
            memory.copy_from_slice(&next);
        }
        if lengths.is_some() {
            memory.rotate_right((start + steps) % size.max(1));
        }
    }
    (y, new_state)
}

fn absolute(values: &[f64]) -> Vec<f64> {
    values.iter().map(|value| value.abs()).collect()
}

/// Calls `with` on the inputs' absolute values.
fn on_absolute<T>(inputs: &Inputs, with: impl FnOnce(&Inputs) -> T) -> T {
    let (x, weight) = (absolute(inputs.x), absolute(inputs.weight));
    let (bias, state) = (inputs.bias.map(absolute), inputs.initial_state.map(absolute));
    with(&Inputs {
        x: &x,
        weight: &weight,
        bias: bias.as_deref(),
        initial_state: state.as_deref(),
        seq_idx: inputs.seq_idx,
        residual: inputs.residual.map(absolute).as_deref(),
    })
}

/// Sums of magnitudes of [`forward`]: an fp32 sum of W + 1 elements is off by at most about `(W + 1) * 2^-24`
/// times this, and SiLU's slope is below 1.1.
pub fn forward_magnitude(problem: &CausalConv1dProblem, inputs: &Inputs) -> Vec<f64> {
    let slope = if problem.activation == Activation::Silu { 1.1 } else { 1.0 };
    on_absolute(inputs, |inputs| {
        let sums = pre_activation(problem, inputs).into_iter().map(|value| slope * value);
        let mut magnitudes: Vec<f64> = sums.collect();
        add_residual(problem, inputs, &mut magnitudes);
        magnitudes
    })
}

/// Sums of magnitudes of [`backward`]. Under SiLU the pre-activation gradient inherits the error of the
/// recomputed sum: SiLU's second derivative is at most 1/2.
pub fn backward_magnitude(
    problem: &CausalConv1dProblem,
    inputs: &Inputs,
    dy: &[f64],
    dfinal: Option<&[f64]>,
) -> Gradients {
    let token = problem.is_token(inputs.seq_idx);
    on_absolute(inputs, |inputs| {
        let pre = pre_activation(problem, inputs);
        let dpre: Vec<f64> = (0..dy.len())
            .map(|i| match problem.activation {
                _ if !token[i] => 0.0,
                Activation::Silu => dy[i].abs() * (1.1 + 0.5 * pre[i]),
                Activation::None | Activation::Relu => dy[i].abs(),
            })
            .collect();
        propagate(problem, inputs, &dpre, dfinal.map(absolute).as_deref())
    })
}

#[cfg(test)]
#[path = "reference_tests.rs"]
mod tests;
