//! Times every conv3d plan on the layers of the workload table: the measurement behind the choices in
//! `plan.rs`.
//!
//! `cargo run --release -p conv-kernels --features vulkan --example tiles -- [dtype] [pass] [parts of layers'
//! names] [parts of plans' names, `auto` or `engine`] [GFLOP of a dispatch] [steps]
//! [ndhwc]`, an empty string for any, commas between parts. Each plan's result is first compared with f64
//! sums at some of its elements. With `steps` those of Winograd's forward pass are timed one by one as well,
//! and the pass with filters that were transformed before; with `ndhwc` x, y and their gradients lie in
//! memory with channels last.

use conv_cases::{fill, workloads};
use conv_kernels::conv3d::winograd::{Step, forward_prepared, forward_steps, prepare, prepared_shape};
use conv_kernels::conv3d::{self, Algorithm, Conv3dProblem, Pass, Plan, Window, eligible};
use conv_kernels::{FloatType, Limits, Operand, row_major};
use cubecl::future::block_on;
use cubecl::prelude::*;
use half::{bf16, f16};
use std::time::Instant;

const TABLE: usize = 1 << 16;
const SAMPLES: usize = 24;

/// Values of a tensor as a function of the index.
struct Values {
    table: Vec<f32>,
    seed: u64,
}

impl Values {
    fn get(&self, index: usize) -> f64 {
        f64::from(self.table[self.slot(index)])
    }

    /// A place in the table that jumps about as the index grows.
    fn slot(&self, index: usize) -> usize {
        let mixed = (index as u64 + self.seed * 0x1_0001).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (mixed >> 40) as usize % TABLE
    }

    fn upload(&self, client: &Client, shape: &[usize], strides: Vec<usize>, dtype: FloatType) -> Operand {
        let length = shape.iter().product::<usize>();
        let mut values = vec![0.0; length];
        let dense = strides == row_major(shape);
        for index in 0..length {
            let at = if dense { index } else { memory_of(shape, &strides, index) };
            values[at] = self.table[self.slot(index)];
        }
        let values = values.into_iter();
        let bytes: Vec<u8> = match dtype {
            FloatType::F32 => values.flat_map(f32::to_le_bytes).collect(),
            FloatType::F16 => values.flat_map(|value| f16::from_f32(value).to_le_bytes()).collect(),
            FloatType::Bf16 => values.flat_map(|value| bf16::from_f32(value).to_le_bytes()).collect(),
        };
        Operand { handle: client.create_from_slice(&bytes), shape: shape.to_vec(), strides, dtype }
    }
}

/// Where the element at a row-major index lies in memory.
fn memory_of(shape: &[usize], strides: &[usize], mut index: usize) -> usize {
    let mut at = 0;
    for (extent, stride) in shape.iter().zip(strides).rev() {
        at += index % extent * stride;
        index /= extent;
    }
    at
}

/// Strides of an activation, channels last or not.
fn activation_strides(shape: &[usize; 5], channels_last: bool) -> Vec<usize> {
    let [_, c, d, h, w] = *shape;
    if channels_last { vec![c * d * h * w, 1, h * w * c, w * c, c] } else { row_major(shape) }
}

fn rounded(table: Vec<f32>, dtype: FloatType) -> Vec<f32> {
    let round = |value: f32| match dtype {
        FloatType::F32 => value,
        FloatType::F16 => f16::from_f32(value).to_f32(),
        FloatType::Bf16 => bf16::from_f32(value).to_f32(),
    };
    table.into_iter().map(round).collect()
}

fn read(client: &Client, operand: &Operand) -> Vec<f32> {
    let bytes = client.read_one_unchecked(operand.handle.clone());
    match operand.dtype {
        FloatType::F32 => f32::from_bytes(&bytes).to_vec(),
        FloatType::F16 => f16::from_bytes(&bytes).iter().map(|value| value.to_f32()).collect(),
        FloatType::Bf16 => bf16::from_bytes(&bytes).iter().map(|value| value.to_f32()).collect(),
    }
}

/// Element `index` of a pass's result, and the sum of its terms' sizes.
fn element(problem: &Conv3dProblem, pass: Pass, index: usize, [x, w, dy]: [&Values; 3]) -> (f64, f64) {
    let (xs, ws, ys) = (problem.x_shape(), problem.weight_shape(), problem.y_shape());
    let window = problem.window;
    let at = |shape: [usize; 5], place: [usize; 5]| place.iter().zip(shape).fold(0, |at, (p, s)| at * s + p);
    let place = |shape: [usize; 5]| {
        let mut rest = index;
        let mut place = [0; 5];
        for axis in (0..5).rev() {
            (place[axis], rest) = (rest % shape[axis], rest / shape[axis]);
        }
        place
    };
    let (mut sum, mut size) = (0.0, 0.0);
    let mut add = |value: f64| {
        sum += value;
        size += value.abs();
    };
    let taps =
        || (0..ws[2]).flat_map(move |d| (0..ws[3]).flat_map(move |h| (0..ws[4]).map(move |w| [d, h, w])));
    let source = |q: [usize; 3], k: [usize; 3]| -> Option<[usize; 3]> {
        let mut p = [0; 3];
        for axis in 0..3 {
            p[axis] = (q[axis] * window.stride[axis] + k[axis] * window.dilation[axis])
                .checked_sub(window.padding[axis].0)
                .filter(|p| *p < xs[axis + 2])?;
        }
        Some(p)
    };
    match pass {
        Pass::Forward => {
            let [n, o, d, h, ww] = place(ys);
            let first = o / problem.group_out_channels() * ws[1];
            for k in taps() {
                let Some(p) = source([d, h, ww], k) else { continue };
                for c in 0..ws[1] {
                    add(x.get(at(xs, [n, first + c, p[0], p[1], p[2]]))
                        * w.get(at(ws, [o, c, k[0], k[1], k[2]])));
                }
            }
        }
        Pass::InputGradient => {
            let [n, c, d, h, ww] = place(xs);
            let p = [d, h, ww];
            let group = c / ws[1];
            for k in taps() {
                let mut q = [0; 3];
                let hit = (0..3).all(|axis| {
                    let t = (p[axis] + window.padding[axis].0).checked_sub(k[axis] * window.dilation[axis]);
                    t.filter(|t| t % window.stride[axis] == 0).is_some_and(|t| {
                        q[axis] = t / window.stride[axis];
                        q[axis] < ys[axis + 2]
                    })
                });
                for o in (0..problem.group_out_channels()).filter(|_| hit) {
                    let o = group * problem.group_out_channels() + o;
                    add(dy.get(at(ys, [n, o, q[0], q[1], q[2]]))
                        * w.get(at(ws, [o, c % ws[1], k[0], k[1], k[2]])));
                }
            }
        }
        Pass::WeightGradient => {
            let [o, c, kd, kh, kw] = place(ws);
            let c = o / problem.group_out_channels() * ws[1] + c;
            for n in 0..xs[0] {
                for d in 0..ys[2] {
                    for h in 0..ys[3] {
                        for ww in 0..ys[4] {
                            if let Some(p) = source([d, h, ww], [kd, kh, kw]) {
                                add(x.get(at(xs, [n, c, p[0], p[1], p[2]]))
                                    * dy.get(at(ys, [n, o, d, h, ww])));
                            }
                        }
                    }
                }
            }
        }
    }
    (sum, size)
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut argument = || arguments.next().unwrap_or_default();
    let [dtype, pass, layers, plan, most, steps, layout] = [(); 7].map(|()| argument());
    let device = cubecl::Device::default();
    let client = device.client();
    let dispatch_operations = most.parse().map_or(1e15, |gflop: f64| gflop * 1e9);
    let limits = Limits { dispatch_operations, ..Limits::of(&client) };
    println!("# {}", client.properties().identity.name);
    println!("layer,dtype,pass,plan,ms,tflops,error");
    for dtype in limits.dtypes.iter().filter(|each| each.name().starts_with(&dtype)) {
        for workload in &workloads::conv3d() {
            let case = &workload.case;
            if !layers.split(',').any(|part| case.name.contains(part)) {
                continue;
            }
            let window = Window {
                stride: case.stride,
                padding: case.padding,
                dilation: case.dilation,
                groups: case.groups,
                ..Window::default()
            };
            let problem = Conv3dProblem::new(case.input_shape(), case.weight_shape(), None, window, *dtype)
                .expect("the table's layers are valid");
            let largest = [problem.x_shape(), problem.weight_shape(), problem.y_shape()]
                .map(|shape| shape.iter().product::<usize>() * dtype.size());
            if largest.iter().any(|bytes| *bytes > 1 << 30) || workload.gflop > 1000.0 {
                println!("# {} left out: large", case.name);
                continue;
            }
            let options = Options { steps: !steps.is_empty(), channels_last: !layout.is_empty() };
            layer_rows(&client, &limits, &problem, &case.name, (&pass, &plan), options);
        }
    }
}

#[derive(Clone, Copy)]
struct Options {
    steps: bool,
    channels_last: bool,
}

type Run = Box<dyn Fn() -> Result<(), conv_kernels::ConvError>>;

/// The bias' gradient in the sweep of a depthwise weight gradient, and in one of its own (whose row repeats
/// the check of dw).
fn bias_rows(
    (client, limits, problem): (Client, Limits, Conv3dProblem),
    [x, dy, dw]: [&Operand; 3],
) -> [(&'static str, Run); 2] {
    let db = client.empty(problem.out_channels * problem.dtype.size());
    let db = Operand::contiguous(db, &[problem.out_channels], problem.dtype);
    let alone: Run = {
        let (client, limits, dy, db) = (client.clone(), limits.clone(), dy.clone(), db.clone());
        Box::new(move || conv3d::bias_gradient(&client, &limits, &problem, &dy, &db))
    };
    let (x, dy, dw) = (x.clone(), dy.clone(), dw.clone());
    let together: Run = Box::new(move || {
        let operands = [&x, &dy, &dw];
        conv3d::weight_and_bias_gradient(&client, &limits, &problem, &Plan::Depthwise, operands, &db)
    });
    [("depthwise with bias", together), ("bias alone", alone)]
}

fn layer_rows(
    client: &Client,
    limits: &Limits,
    problem: &Conv3dProblem,
    name: &str,
    (pass, plan): (&str, &str),
    Options { steps, channels_last }: Options,
) {
    let dtype = problem.dtype;
    let table = rounded(fill::normal(7, TABLE), dtype);
    let values = [1, 2, 3].map(|seed| Values { table: table.clone(), seed });
    let [x, w, dy] = &values;
    let upload = |values: &Values, shape: [usize; 5], last| {
        values.upload(client, &shape, activation_strides(&shape, last), dtype)
    };
    let x_operand = upload(x, problem.x_shape(), channels_last);
    let w_operand = upload(w, problem.weight_shape(), false);
    let dy_operand = upload(dy, problem.y_shape(), channels_last);
    let gflop = 2.0 * problem.multiply_adds() / 1e9;
    let mut checked = Vec::new();
    for each in [Pass::Forward, Pass::InputGradient, Pass::WeightGradient] {
        if !pass.split(',').any(|part| each.name().starts_with(part)) {
            continue;
        }
        let shape = match each {
            Pass::Forward => problem.y_shape(),
            Pass::InputGradient => problem.x_shape(),
            Pass::WeightGradient => problem.weight_shape(),
        };
        let length = shape.iter().product::<usize>();
        let samples: Vec<_> = (0..SAMPLES)
            .map(|sample| fill::hash(99, sample as u64) as usize % length)
            .map(|index| (index, element(problem, each, index, [x, w, dy])))
            .collect();
        let automatic = conv3d::plan(problem, each, Algorithm::Auto, limits).expect("every layer has a plan");
        let engine =
            conv3d::plan(problem, each, Algorithm::ImplicitGemm, limits).expect("it serves everything");
        for chosen in eligible(problem, each, limits) {
            let asked = plan.split(',').any(|part| match part {
                "auto" => chosen == automatic,
                "engine" => chosen == engine,
                part => chosen.name().contains(part),
            });
            if !asked {
                continue;
            }
            let poison = vec![0xffu8; length * dtype.size()];
            let strides = activation_strides(&shape, channels_last && each != Pass::WeightGradient);
            let handle = client.create_from_slice(&poison);
            let out = Operand { handle, shape: shape.to_vec(), strides, dtype };
            let run = {
                let (client, limits, problem) = (client.clone(), limits.clone(), *problem);
                let (x, w, dy, out) = (x_operand.clone(), w_operand.clone(), dy_operand.clone(), out.clone());
                move || match each {
                    Pass::Forward => {
                        conv3d::forward(&client, &limits, &problem, &chosen, [&x, &w, &out], None)
                    }
                    Pass::InputGradient => {
                        conv3d::input_gradient(&client, &limits, &problem, &chosen, [&dy, &w, &out])
                    }
                    Pass::WeightGradient => {
                        conv3d::weight_gradient(&client, &limits, &problem, &chosen, [&x, &dy, &out])
                    }
                }
            };
            let verdict =
                run().map_err(|error| error.to_string()).and_then(|()| check(client, &out, &samples));
            let run: Run = Box::new(run);
            checked.push((each, chosen, chosen.name(), verdict, run, samples.clone()));
            if (each, chosen) == (Pass::WeightGradient, Plan::Depthwise) {
                let parts = (client.clone(), limits.clone(), *problem);
                for (name, run) in bias_rows(parts, [&x_operand, &dy_operand, &out]) {
                    let verdict =
                        run().map_err(|error| error.to_string()).and_then(|()| check(client, &out, &samples));
                    checked.push((each, chosen, name.into(), verdict, run, samples.clone()));
                }
            }
        }
    }
    // An idle device has lowered its clocks: it is kept busy before the first row is timed, and all rows
    // follow each other.
    let start = Instant::now();
    while start.elapsed().as_millis() < 700 {
        checked.iter().filter(|row| row.3.is_ok()).take(1).for_each(|row| drop(row.4()));
        block_on(client.sync()).expect("the device runs");
    }
    for (pass, chosen, plan_name, verdict, run, samples) in &checked {
        let figures = match verdict {
            Ok(error) => {
                let best = time(client, run.as_ref());
                format!("{best:.4},{:.2},{error:.0e}", gflop / best)
            }
            Err(reason) => format!("refused: {reason}"),
        };
        println!("{name},{},{},{plan_name},{figures}", dtype.name(), pass.name());
        if let (Plan::Winograd(config), Pass::Forward, Ok(_), true) = (chosen, pass, verdict, steps) {
            let shape = problem.y_shape();
            let y = Operand::contiguous(
                client.empty(shape.iter().product::<usize>() * dtype.size()),
                &shape,
                dtype,
            );
            let step = |step| {
                let operands = [&x_operand, &w_operand, &y];
                time(client, &|| forward_steps(client, limits, problem, *config, operands, &[step]))
            };
            let times = Step::ALL.map(|each| format!("{each:?} {:.4}", step(each)));
            println!("# {}, {config:?}", times.join(", "));
            let shape = prepared_shape(problem, config.tile);
            let filters = client.empty(shape.iter().product::<usize>() * FloatType::F32.size());
            let filters = Operand::contiguous(filters, &shape, FloatType::F32);
            prepare(client, limits, problem, config.tile, [&w_operand, &filters])
                .expect("the plan serves it");
            let prepared =
                || forward_prepared(client, limits, problem, *config, [&x_operand, &filters, &y], None);
            let figures =
                match prepared().map_err(|error| error.to_string()).and_then(|()| check(client, &y, samples))
                {
                    Ok(error) => format!("{:.4},,{error:.0e}", time(client, &prepared)),
                    Err(reason) => format!("refused: {reason}"),
                };
            println!("{name},{},forward,{} with kept filters,{figures}", dtype.name(), chosen.name());
        }
    }
}

/// The largest error at the samples, in units of the terms' size.
fn check(client: &Client, out: &Operand, samples: &[(usize, (f64, f64))]) -> Result<f64, String> {
    let got = read(client, out);
    let error = samples
        .iter()
        .map(|(index, (value, size))| {
            let got = got[memory_of(&out.shape, &out.strides, *index)];
            (f64::from(got) - value).abs() / size.max(1e-30)
        })
        .fold(0.0, |worst: f64, error| if error.is_nan() { f64::INFINITY } else { worst.max(error) });
    let unwritten = got.iter().filter(|value| value.is_nan()).count();
    let bound = if out.dtype == FloatType::F32 { 1e-5 } else { 4e-3 };
    if error > bound || unwritten > 0 {
        Err(format!("error {error:.1e}, {unwritten} NaN"))
    } else {
        Ok(error)
    }
}

/// Milliseconds of a run: the best of several windows of about 10 ms.
fn time(client: &Client, run: &dyn Fn() -> Result<(), conv_kernels::ConvError>) -> f64 {
    let window = |repeats: usize| {
        let start = Instant::now();
        for _ in 0..repeats {
            run().expect("ran before");
        }
        block_on(client.sync()).expect("the device runs");
        start.elapsed().as_secs_f64() * 1e3 / repeats as f64
    };
    let repeats = (10.0 / window(2)).clamp(2.0, 40.0) as usize;
    (0..5).map(|_| window(repeats)).fold(f64::INFINITY, f64::min)
}
