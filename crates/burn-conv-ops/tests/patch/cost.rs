//! What a call costs the host: by the patch, by this crate's own function, by Burn's own op.
//!
//! ```text
//! program   the call returns: shapes are checked, the operation is recorded
//! server    Burn's fusion server, from the first operation's registration until the last block ran, divided
//!           by the calls: planned, launched
//! ```
//!
//! The convolutions have one element. A few calls at a time: CubeCL's queue of 32 tasks is full beyond, and
//! the server waits for the driver.

use crate::support::{gpu, normal, set_patched};
use burn::backend::fusion::observer::{BlockOperations, FusionObservation, FusionObserver};
use burn::backend::ir::OperationIr;
use burn::module::Param;
use burn::nn::conv::Conv3dConfig;
use burn::tensor::Tensor;
use burn_conv_ops::Conv3dOptions;
use std::sync::{Arc, Mutex};
use std::time::Instant;

const CALLS: usize = 8;
const ROUNDS: usize = 250;

/// When the first operation was registered, and how many microseconds later the last block had run.
#[derive(Default)]
struct Server(Mutex<Option<(Instant, f64)>>);

impl FusionObserver for Server {
    fn registered(&self, operation: &OperationIr) {
        if !matches!(operation, OperationIr::Drop(_)) {
            self.0.lock().unwrap().get_or_insert_with(|| (Instant::now(), 0.0));
        }
    }

    fn block_starts(&self, _: BlockOperations<'_>) {}

    fn block_ran(&self) {
        if let Some((start, ran)) = &mut *self.0.lock().unwrap() {
            *ran = 1e6 * start.elapsed().as_secs_f64();
        }
    }
}

/// Least, quartile and median.
fn sorted(mut times: Vec<f64>) -> [f64; 3] {
    times.sort_by(f64::total_cmp);
    [0, times.len() / 4, times.len() / 2].map(|at| (10.0 * times[at]).round() / 10.0)
}

/// Microseconds of the program and of the server for each call.
fn cost(call: &dyn Fn(Tensor<5>) -> Tensor<5>, x: &Tensor<5>) -> [[f64; 3]; 2] {
    let device = gpu();
    let (mut program, mut times, server) = (Vec::new(), Vec::new(), Arc::new(Server::default()));
    // Compiles the kernel and fills the caches of plans.
    call(x.clone());
    device.sync().expect("the device works");
    let observation = FusionObservation::new(server.clone());
    for _ in 0..ROUNDS {
        let mut x = x.clone();
        for _ in 0..CALLS {
            let start = Instant::now();
            x = call(x);
            program.push(1e6 * start.elapsed().as_secs_f64());
        }
        device.sync().expect("the device works");
        let (_, ran) = server.0.lock().unwrap().take().expect("operations were registered");
        times.push(ran / CALLS as f64);
    }
    drop(observation);
    [sorted(program), sorted(times)]
}

/// Prints the costs. Fails where the patch costs more than Burn's own op does.
pub(crate) fn host_cost() {
    let device = gpu();
    let layer = Conv3dConfig::new([1, 1], [1; 3]).init(&device);
    let x = normal(1, [1, 1, 1, 1, 1], &device);
    let (weight, bias) = (layer.weight.val(), layer.bias.as_ref().map(Param::val));
    set_patched(true);
    let patched = cost(&|x| layer.forward(x), &x);
    let function = |x| burn_conv_ops::conv3d(x, weight.clone(), bias.clone(), Conv3dOptions::new());
    let direct = cost(&function, &x);
    set_patched(false);
    let burns = cost(&|x| layer.forward(x), &x);
    set_patched(true);
    for (who, [program, server]) in [("patched", patched), ("direct", direct), ("Burn's own", burns)] {
        println!("us a call (least, quartile, median), {who}: program {program:?}, server {server:?}");
    }
    let median = |[program, server]: [[f64; 3]; 2]| program[2] + server[2];
    assert!(median(patched) < median(burns), "the patch costs the host more than Burn's own call does");
}
