//! The record of a server: kernels and launches.

use crate::lower::Lowered;
use cubecl_runtime::id::KernelId;
use std::collections::HashMap;
use std::sync::Arc;

/// What a launch belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Label {
    /// What is launched: an operation and its types, say.
    pub what: String,
    /// Further options that its kernels are specialized by.
    pub options: String,
}

impl std::fmt::Display for Label {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.what, self.options)
    }
}

/// A distinct kernel: one compiled pipeline on a Mac.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// CubeCL's identity: the kernel function, its comptime arguments, threads and index width.
    pub id: KernelId,
    /// The label of its first launch.
    pub label: Arc<Label>,
    /// The text and its facts, or why it did not lower.
    pub lowered: Result<Lowered, String>,
}

/// One launch.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Index into [`Log::kernels`].
    pub kernel: usize,
    /// The current label.
    pub label: Arc<Label>,
    /// Threadgroups along x, y and z.
    pub grid: (u32, u32, u32),
    /// Bytes that each buffer argument covers.
    pub buffers: Vec<u64>,
    /// Bytes of scalars, shapes and strides.
    pub info_bytes: usize,
}

/// The record of a server.
#[derive(Default, Debug)]
pub struct Log {
    /// Distinct kernels, in the order of their first launch.
    pub kernels: Vec<Kernel>,
    /// Every launch, in order.
    pub launches: Vec<Launch>,
    pub(crate) index: HashMap<KernelId, usize>,
    pub(crate) label: Arc<Label>,
}
