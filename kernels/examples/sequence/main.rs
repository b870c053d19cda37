//! Times causal conv1d and RoPE2D on the rows of the workload tables: the measurement behind their plans.
//!
//! `cargo run --release -p conv-kernels --features vulkan --example sequence -- [dtype] [part of a row's
//! name] [bct or btc] [widths]`, an empty string for any; with widths such as
//! `64,128` the rows' filters get these in place of their own. Inputs are computed on the device; each result
//! is first compared with f64 sums at some of its elements. Shares are of the bandwidth of a plain copy
//! kernel in the same run, bytes counted once per tensor. Times are those of launches that follow each other,
//! as is that of the launch that does nothing.

mod device;

use conv_cases::causal_conv1d::Case;
use conv_cases::{rope2d, workloads};
use conv_kernels::causal_conv1d::{
    self as op, CausalConv1dProblem, Conv1dLayout, Gradients, Inputs, OptionalShapes, Pass, UpdateProblem,
};
use conv_kernels::conv3d::Activation;
use conv_kernels::conv3d::reference::{activate, activation_derivative};
use conv_kernels::rope2d::{Rope2dProblem, RopeLayout, reference::frequency, rotate};
use conv_kernels::{FloatType, IndexOperand, IndexType};
use device::{Bench, Field, places, poisoned};

fn conv(bench: &Bench, case: &Case, layout: Conv1dLayout, dtype: FloatType) {
    let &Case { b, c, t, w, .. } = case;
    let btc = layout == Conv1dLayout::Btc;
    let shape = if btc { [b, t, c] } else { [b, c, t] };
    let optional = OptionalShapes { bias: case.bias.then_some(c), ..OptionalShapes::default() };
    let activation = if case.silu { Activation::Silu } else { Activation::None };
    let problem = CausalConv1dProblem::new(shape, [c, w], optional, layout, activation, dtype, dtype)
        .expect("the table's rows are valid");
    let client = &bench.client;
    let [fx, fw, fb, fdy] = [1, 2, 3, 4].map(Field);
    let x = fx.on(client, &shape, dtype);
    let weight = fw.on(client, &[c, w], dtype);
    let bias = case.bias.then(|| fb.on(client, &[c], dtype));
    let dy = fdy.on(client, &shape, dtype);
    let inputs = Inputs {
        x: &x,
        weight: &weight,
        bias: bias.as_ref(),
        initial_state: None,
        seq_idx: None,
        residual: None,
    };

    let index = |row: usize, channel: usize, step: usize| {
        if btc { (row * t + step) * c + channel } else { (row * c + channel) * t + step }
    };
    let place = |index: usize| {
        if btc {
            (index / c / t, index % c, index / c % t)
        } else {
            (index / t / c, index / t % c, index % t)
        }
    };
    let pre = |row: usize, channel: usize, step: usize| {
        let (mut sum, mut size) = (0.0, 0.0);
        for k in (0..w).filter(|k| step + k + 1 >= w) {
            let term = fw.get(channel * w + k) * fx.get(index(row, channel, step + k + 1 - w));
            sum += term;
            size += term.abs();
        }
        let bias = if case.bias { fb.get(channel) } else { 0.0 };
        (sum + bias, size + bias.abs())
    };
    // The gradient before the activation, and its size: the derivative inherits the error of the sum.
    let dpre = |row: usize, channel: usize, step: usize| {
        let (value, size) = pre(row, channel, step);
        let dy = fdy.get(index(row, channel, step));
        (dy * activation_derivative(activation, value), dy.abs() * (1.1 + 0.5 * size))
    };
    let forward: Vec<_> = places(b * c * t, 5)
        .into_iter()
        .map(|at| {
            let (row, channel, step) = place(at);
            let (value, size) = pre(row, channel, step);
            (at, activate(activation, value), 1.1 * size)
        })
        .collect();
    let y = poisoned(client, &shape, dtype);
    let bytes = b * c * t * dtype.size();
    let layout = if btc { "btc" } else { "bct" };
    let name = format!("{} {layout},{}", case.name, dtype.name());
    let plan = op::plan(&problem, Pass::Forward, &bench.limits).expect("a plan");
    bench.row(&format!("{name},fwd"), 2 * bytes, &[(&y, forward)], &|| {
        op::forward(client, &bench.limits, &problem, &plan, &inputs, &y)
    });

    let (dx, dw) = (y, poisoned(client, &[c, w], dtype));
    let db = case.bias.then(|| poisoned(client, &[c], dtype));
    let dx_want: Vec<_> = places(b * c * t, 6)
        .into_iter()
        .map(|at| {
            let (row, channel, step) = place(at);
            let (mut sum, mut size) = (0.0, 0.0);
            for k in (0..w).filter(|k| step + w - 1 - k < t) {
                let (value, of) = dpre(row, channel, step + w - 1 - k);
                sum += fw.get(channel * w + k) * value;
                size += fw.get(channel * w + k).abs() * of;
            }
            (at, sum, size)
        })
        .collect();
    let mut dw_want = Vec::new();
    let mut db_want = Vec::new();
    for channel in [0, c / 3, c - 1] {
        let terms: Vec<_> = (0..b)
            .flat_map(|row| (0..t).map(move |step| (row, step)))
            .map(|(row, step)| (row, step, dpre(row, channel, step)))
            .collect();
        for k in [0, w / 2, w - 1] {
            let (mut sum, mut size) = (0.0, 0.0);
            for (row, step, (value, of)) in terms.iter().filter(|term| term.1 + k + 1 >= w) {
                let x = fx.get(index(*row, channel, step + k + 1 - w));
                sum += x * value;
                size += x.abs() * of;
            }
            dw_want.push((channel * w + k, sum, size));
        }
        let sums =
            terms.iter().map(|term| term.2).fold((0.0, 0.0), |sum, term| (sum.0 + term.0, sum.1 + term.1));
        db_want.push((channel, sums.0, sums.1));
    }
    let plan = op::plan(&problem, Pass::Backward, &bench.limits).expect("a plan");
    let mut want = vec![(&dx, dx_want), (&dw, dw_want)];
    want.extend(db.as_ref().map(|db| (db, db_want)));
    bench.row(&format!("{name},bwd"), 3 * bytes, &want, &|| {
        let out = Gradients { x: &dx, weight: &dw, bias: db.as_ref(), initial_state: None };
        op::backward(client, &bench.limits, &problem, &plan, &inputs, &dy, None, &out)
    });
}

fn decode(bench: &Bench, case: &Case, dtype: FloatType) {
    let &Case { b, c, w, .. } = case;
    let client = &bench.client;
    let activation = if case.silu { Activation::Silu } else { Activation::None };
    let bias_length = case.bias.then_some(c);
    let problem = UpdateProblem::new([b, c], [b, c, w], [c, w], bias_length, activation, dtype, dtype)
        .expect("the table's rows are valid");
    let [fx, fw, fb, fs] = [1, 2, 3, 4].map(Field);
    let (x, weight) = (fx.on(client, &[b, c], dtype), fw.on(client, &[c, w], dtype));
    let bias = case.bias.then(|| fb.on(client, &[c], dtype));
    let state = fs.on(client, &[b, c, w], dtype);
    let (y, new_state) = (poisoned(client, &[b, c], dtype), poisoned(client, &[b, c, w], dtype));
    let want: Vec<_> = places(b * c, 7)
        .into_iter()
        .map(|row| {
            let tap = |k: usize| {
                let value = if k + 1 < w { fs.get(row * w + k + 1) } else { fx.get(row) };
                value * fw.get(row % c * w + k)
            };
            let bias = if case.bias { fb.get(row % c) } else { 0.0 };
            let sum = bias + (0..w).map(tap).sum::<f64>();
            (row, activate(activation, sum), 1.1 * (bias.abs() + (0..w).map(|k| tap(k).abs()).sum::<f64>()))
        })
        .collect();
    let states: Vec<_> = places(b * c * w, 8)
        .into_iter()
        .map(|at| {
            let value = if at % w + 1 < w { fs.get(at + 1) } else { fx.get(at / w) };
            (at, value, value.abs())
        })
        .collect();
    let bytes = (2 * b * c + 2 * b * c * w) * dtype.size();
    let name = format!("{},{},step", case.name, dtype.name());
    bench.row(&name, bytes, &[(&y, want), (&new_state, states)], &|| {
        op::update(client, &bench.limits, &problem, &x, &state, &weight, bias.as_ref(), &y, &new_state)
    });
}

fn rope(bench: &Bench, workload: &workloads::Rope2dWorkload, layout: RopeLayout, dtype: FloatType) {
    let rope2d::Case { name, b, h, n, d, base, f0, .. } = &workload.case;
    let (&b, &h, &n, &d) = (b, h, n, d);
    let client = &bench.client;
    let bhnd = layout == RopeLayout::Bhnd;
    let shape = if bhnd { [b, h, n, d] } else { [b, n, h, d] };
    let problem = Rope2dProblem::new(shape, [b, n, 2], layout, *base, *f0, dtype).expect("valid rows");
    let tokens = Field(1).on(client, &shape, dtype);
    let out = poisoned(client, &shape, dtype);
    let positions = workload.positions();
    let bytes: Vec<u8> = positions.iter().flat_map(|p| (*p as i32).to_le_bytes()).collect();
    let positions_on_device =
        IndexOperand::contiguous(client.create_from_slice(&bytes), &[b, n, 2], IndexType::I32);
    let q = d / 4;
    let want: Vec<_> = places(b * h * n * d, 3)
        .into_iter()
        .map(|at| {
            let (i, row) = (at % d, at / d);
            let (entry, token) = if bhnd { (row / n / h, row % n) } else { (row / h / n, row / h % n) };
            let position = positions[(entry * n + token) * 2 + i / (2 * q)] as f64;
            let theta = f64::from(*f0) * position * frequency(&problem, i % q);
            let (sin, cos) = theta.sin_cos();
            let (own, value) = (Field(1).get(at), |at| Field(1).get(at));
            let other = if i / q % 2 == 0 { -value(at + q) } else { value(at - q) };
            (at, own * cos + other * sin, own.abs() + other.abs())
        })
        .collect();
    let name = format!("{name} {layout:?},{},rotation", dtype.name());
    bench.row(&name, 2 * b * h * n * d * dtype.size(), &[(&out, want)], &|| {
        rotate(client, &bench.limits, &problem, &tokens, &positions_on_device, &out, false)
    });
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut argument = || arguments.next().unwrap_or_default();
    let [dtype, row, layout, widths] = [argument(), argument(), argument(), argument()];
    let widths: Vec<usize> = widths.split(',').filter_map(|width| width.parse().ok()).collect();
    let bench = Bench::new();
    let dtypes = [FloatType::F32, FloatType::F16];
    for dtype in dtypes.into_iter().filter(|each| each.name().contains(&dtype)) {
        for case in workloads::causal_conv1d().iter().map(|workload| &workload.case) {
            if !case.name.contains(&row) {
                continue;
            }
            if case.t == 1 {
                decode(&bench, case, dtype);
            }
            for (name, order) in [("bct", Conv1dLayout::Bct), ("btc", Conv1dLayout::Btc)] {
                if !name.contains(&layout) || case.t == 1 {
                    continue;
                }
                let own = [case.w];
                for &w in if widths.is_empty() { &own[..] } else { &widths } {
                    let name = if w == case.w { case.name.clone() } else { format!("{}_at_{w}", case.name) };
                    conv(&bench, &Case { name, w, ..case.clone() }, order, dtype);
                }
            }
        }
        for workload in workloads::rope2d().iter().filter(|workload| workload.case.name.contains(&row)) {
            for order in [RopeLayout::Bhnd, RopeLayout::Bnhd] {
                rope(&bench, workload, order, dtype);
            }
        }
    }
}
