//! The executor on platforms that cannot execute emitted MSL: every launch fails with an explanation. The
//! rest of the crate does not need the executor.

use cubecl_runtime::id::KernelId;
use std::sync::Arc;

/// The error of every launch.
pub(crate) const REFUSAL: &str =
    "executing the emitted Metal text needs Linux or macOS on x86-64 or arm64; writing it does not";

/// A change to a text: a defect, to see that tests notice it.
pub type Edit = Box<dyn Fn(&str) -> String + Send>;

/// Threadgroups, and threads of each, which nothing reads here.
#[allow(dead_code)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    /// Threadgroups along x, y and z.
    pub(crate) groups: (u32, u32, u32),
    /// Threads of a threadgroup along x, y and z.
    pub(crate) threads: (u32, u32, u32),
}

/// A text that is not compiled.
#[derive(Debug)]
pub(crate) struct Kernel(());

/// Runs nothing.
pub(crate) struct Runner(());

/// What a server executes with.
pub(crate) struct Session {
    /// Runs nothing.
    pub(crate) runner: Runner,
}

impl Runner {
    /// Always fails.
    ///
    /// # Errors
    ///
    /// [`REFUSAL`], always.
    ///
    /// # Safety
    ///
    /// No requirement: nothing is accessed.
    pub(crate) unsafe fn run(
        &mut self,
        _kernel: &Kernel,
        _grid: Grid,
        _buffers: &[*mut [u8]],
        _info: &[u8],
    ) -> Result<(), String> {
        Err(REFUSAL.into())
    }
}

impl Session {
    /// A session that refuses every launch.
    pub(crate) fn new(_edit: Option<Edit>) -> Self {
        Self { runner: Runner(()) }
    }

    /// The kernel of a text.
    pub(crate) fn kernel(&mut self, _id: &KernelId, _msl: &Arc<str>) -> Arc<Kernel> {
        Arc::new(Kernel(()))
    }
}

/// Compiles nothing.
pub fn compile_ahead(_kernels: &[(&KernelId, &Arc<str>)]) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_launch_is_refused_in_one_sentence() {
        let (id, text) = (KernelId::new::<()>(), "".into());
        compile_ahead(&[(&id, &text)]);
        let mut session = Session::new(None);
        let kernel = session.kernel(&id, &text);
        let grid = Grid { groups: (1, 1, 1), threads: (64, 1, 1) };
        // SAFETY: there are no buffers.
        let refused = unsafe { session.runner.run(&kernel, grid, &[], &[]) };
        assert_eq!(refused.unwrap_err(), REFUSAL);
    }
}
