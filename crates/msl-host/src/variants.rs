//! Every kernel of conv-kernels in every dtype and plan: the launchers run over tables of problems, and what they launch
//! is the list.
//!
//! conv3d and RoPE2D run over the conformance problems of conv-cases and over the full product of the options that
//! kernels are specialized by, which a pairwise table does not contain. The kernels of causal conv1d are specialized by so
//! many options that its table is two products (see `causal_conv1d`).

mod causal_conv1d;
mod conv3d;
mod rope2d;

use crate::properties::apple_m1;
use crate::server::{Kernel, Label, Recorder};
use conv_kernels::{ConvError, FloatType, IndexOperand, IndexType, Operand};
use cubecl::prelude::Client;
use std::collections::HashSet;

/// The kernels of every op and what went wrong while launching them.
#[derive(Debug, Default)]
pub struct Variants {
    /// Distinct kernels in the order of their first launch; [`all`] lists none twice.
    pub kernels: Vec<Kernel>,
    /// Launches in all.
    pub launches: usize,
    /// A sentence for each launch that was refused although its plan is eligible.
    pub refused: Vec<String>,
}

/// Lowers everything, one thread per dtype. Each distinct kernel is compiled once per dtype; a further launch of it costs
/// microseconds.
pub fn all() -> Variants {
    let parts = std::thread::scope(|scope| {
        let threads = FloatType::ALL.map(|dtype| scope.spawn(move || of_dtype(dtype)));
        threads.map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    let mut variants = Variants::default();
    let mut known = HashSet::new();
    for part in parts {
        variants.launches += part.launches;
        variants.refused.extend(part.refused);
        variants.kernels.extend(part.kernels.into_iter().filter(|kernel| known.insert(kernel.id.clone())));
    }
    variants
}

fn of_dtype(dtype: FloatType) -> Variants {
    let mut variants = Variants::default();
    // An M1 as it is, then one with buffers beyond wgpu's cap, on which the kernels with 64-bit indices are launched.
    let m1 = Recorder::apple_m1();
    conv3d::record(&m1, dtype, &mut variants.refused);
    causal_conv1d::record(&m1, dtype, &mut variants.refused);
    rope2d::record(&m1, dtype, &mut variants.refused);
    variants.collect(&m1);

    let mut properties = apple_m1();
    properties.memory.max_page_size = 1 << 40;
    let large = Recorder::new(properties);
    conv3d::record_wide(&large, dtype, &mut variants.refused);
    causal_conv1d::record_wide(&large, dtype, &mut variants.refused);
    rope2d::record_wide(&large, dtype, &mut variants.refused);
    variants.collect(&large);
    variants
}

impl Variants {
    fn collect(&mut self, recorder: &Recorder) {
        let log = recorder.log();
        self.launches += log.launches.len();
        self.kernels.extend(log.kernels.iter().cloned());
    }
}

/// Notes a launch of the problem `case` that was refused.
fn note(result: Result<(), ConvError>, label: &Label, case: &str, refused: &mut Vec<String>) {
    if let Err(error) = result {
        refused.push(format!("{label} ({case}): {error}"));
    }
}

/// A row-major tensor with undefined contents.
fn tensor(client: &Client, shape: &[usize], dtype: FloatType) -> Operand {
    let bytes = shape.iter().product::<usize>() * dtype.size();
    Operand::contiguous(client.empty(bytes.max(dtype.size())), shape, dtype)
}

/// A row-major tensor of integers with undefined contents.
fn indices(client: &Client, shape: &[usize], dtype: IndexType) -> IndexOperand {
    let bytes = shape.iter().product::<usize>() * dtype.size();
    IndexOperand::contiguous(client.empty(bytes.max(dtype.size())), shape, dtype)
}
