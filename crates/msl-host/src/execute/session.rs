//! What one server has compiled.

use super::library::compile_together;
use super::{Effort, Library, Runner, compile};
use cubecl_runtime::id::KernelId;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// A change to a text, for tests that the suite finds defects.
pub type Edit = Box<dyn Fn(&str) -> String + Send>;

/// How a server executes: its runner and what it has compiled.
pub struct Session {
    /// Runs the compiled kernels.
    pub runner: Runner,
    edit: Option<Edit>,
    /// The kernels of an edited server.
    edited: HashMap<KernelId, Arc<Kernel>>,
}

/// A text, and what it was compiled to at each effort.
struct Kernel {
    text: Arc<str>,
    low: Cell,
    high: Cell,
}

type Cell = OnceLock<Result<Arc<Library>, String>>;

/// The kernels of servers without edits, which share theirs: the text is that of the kernel's identity.
static SHARED: LazyLock<Mutex<HashMap<KernelId, Arc<Kernel>>>> = LazyLock::new(Mutex::default);

impl Kernel {
    fn new(text: Arc<str>) -> Arc<Self> {
        Arc::new(Self { text, low: Cell::new(), high: Cell::new() })
    }

    /// The kernel compiled for a launch of `threads`. Most kernels run once over a small problem; the others, those of large
    /// launches and those that have run for long, are worth an optimizing compiler.
    fn library(&self, threads: u64) -> Result<Arc<Library>, String> {
        /// What optimizing takes longer than not to, roughly.
        const LONG: Duration = Duration::from_millis(30);
        /// Threads that run for about as long.
        const MANY: u64 = 20_000;
        let ran_long = || matches!(self.low.get(), Some(Ok(library)) if library.time() > LONG);
        let (cell, effort) = if self.high.get().is_some() || threads > MANY || ran_long() {
            (&self.high, Effort::High)
        } else {
            (&self.low, Effort::Low)
        };
        cell.get_or_init(|| compile(&self.text, effort).map(Arc::new)).clone()
    }
}

impl Session {
    /// A session in which `edit`, if there is one, changes every text.
    pub fn new(edit: Option<Edit>) -> Self {
        Self { runner: Runner::new(), edit, edited: HashMap::new() }
    }

    /// The kernel compiled for a launch of `threads`.
    ///
    /// # Errors
    ///
    /// The compiler's.
    pub fn library(&mut self, id: &KernelId, msl: &Arc<str>, threads: u64) -> Result<Arc<Library>, String> {
        let kernel = match &self.edit {
            Some(edit) => {
                self.edited.entry(id.clone()).or_insert_with(|| Kernel::new(edit(msl).into())).clone()
            }
            None => shared(id, msl),
        };
        kernel.library(threads)
    }
}

fn shared(id: &KernelId, msl: &Arc<str>) -> Arc<Kernel> {
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    shared.entry(id.clone()).or_insert_with(|| Kernel::new(msl.clone())).clone()
}

/// Compiles kernels that servers without edits will be asked to launch, many at a time.
pub fn compile_ahead(kernels: &[(&KernelId, &Arc<str>)]) {
    /// Texts of one file: their compilation takes ten times the compiler's start.
    const TOGETHER: usize = 32;
    let kernels: Vec<_> = kernels.iter().map(|(id, msl)| shared(id, msl)).collect();
    let missing: Vec<_> = kernels.iter().filter(|kernel| kernel.low.get().is_none()).collect();
    for kernels in missing.chunks(TOGETHER) {
        let texts: Vec<&str> = kernels.iter().map(|kernel| &*kernel.text).collect();
        // Where one does not compile none is kept: a launch compiles its kernel alone, and the message is about that one.
        for (kernel, library) in kernels.iter().zip(compile_together(&texts, Effort::Low).unwrap_or_default())
        {
            // Another thread may have been first.
            let _ = kernel.low.set(Ok(Arc::new(library)));
        }
    }
}
