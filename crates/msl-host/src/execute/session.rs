//! A server's compiled kernels, and when a kernel is worth optimizing.

use super::library::{Effort, Library, compile, compile_batch};
use super::run::Runner;
use cubecl_runtime::id::KernelId;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// A change to a text: a defect, to see that tests notice it.
pub type Edit = Box<dyn Fn(&str) -> String + Send>;

/// What a server executes with: its runner and its compiled kernels.
pub(crate) struct Session {
    /// Runs the compiled kernels.
    pub(crate) runner: Runner,
    edit: Option<Edit>,
    /// The kernels of an edited server.
    edited: HashMap<KernelId, Arc<Kernel>>,
}

/// A text and its libraries, one per level of optimization.
#[derive(Debug)]
pub(crate) struct Kernel {
    text: Arc<str>,
    low: LibraryCell,
    high: LibraryCell,
}

type LibraryCell = OnceLock<Result<Arc<Library>, String>>;

/// The kernels of servers without edits, shared: the kernel's identity determines the text.
static SHARED: LazyLock<Mutex<HashMap<KernelId, Arc<Kernel>>>> = LazyLock::new(Mutex::default);

impl Kernel {
    fn new(text: Arc<str>) -> Arc<Self> {
        Arc::new(Self { text, low: LibraryCell::new(), high: LibraryCell::new() })
    }

    /// The library that a launch starts with.
    pub(super) fn library(&self) -> Result<Arc<Library>, String> {
        if let Some(high) = self.high.get() {
            return high.clone();
        }
        let low = self.low.get_or_init(|| compile(&self.text, Effort::Low).map(Arc::new)).clone()?;
        Ok(self.optimized(low.time())?.unwrap_or(low))
    }

    /// The optimized library, where the other one would run for `expected` in all, longer than optimizing
    /// takes. Most kernels run over a few small problems and are not worth it.
    pub(super) fn optimized(&self, expected: Duration) -> Result<Option<Arc<Library>>, String> {
        /// The extra time of an optimizing clang: for its start, and per byte of the text.
        const START: Duration = Duration::from_millis(60);
        const BYTE: Duration = Duration::from_nanos(4_000);
        if self.high.get().is_none() && expected < START + BYTE * self.text.len() as u32 {
            return Ok(None);
        }
        self.high.get_or_init(|| compile(&self.text, Effort::High).map(Arc::new)).clone().map(Some)
    }
}

impl Session {
    /// A session in which `edit`, if there is one, changes every text.
    pub(crate) fn new(edit: Option<Edit>) -> Self {
        Self { runner: Runner::new(), edit, edited: HashMap::new() }
    }

    /// The kernel of a text.
    pub(crate) fn kernel(&mut self, id: &KernelId, msl: &Arc<str>) -> Arc<Kernel> {
        match &self.edit {
            Some(edit) => {
                self.edited.entry(id.clone()).or_insert_with(|| Kernel::new(edit(msl).into())).clone()
            }
            None => shared(id, msl),
        }
    }
}

fn shared(id: &KernelId, msl: &Arc<str>) -> Arc<Kernel> {
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    shared.entry(id.clone()).or_insert_with(|| Kernel::new(msl.clone())).clone()
}

/// Compiles kernels that servers without edits will be asked to launch, many at a time.
pub fn compile_ahead(kernels: &[(&KernelId, &Arc<str>)]) {
    /// Texts per file: enough that compiling them takes much longer than starting the compiler.
    const BATCH: usize = 32;
    let kernels: Vec<_> = kernels.iter().map(|(id, msl)| shared(id, msl)).collect();
    let missing: Vec<_> = kernels.iter().filter(|kernel| kernel.low.get().is_none()).collect();
    for kernels in missing.chunks(BATCH) {
        let texts: Vec<&str> = kernels.iter().map(|kernel| &*kernel.text).collect();
        // If one text does not compile, none is kept: each launch then compiles its own kernel and gets its
        // own message.
        for (kernel, library) in kernels.iter().zip(compile_batch(&texts, Effort::Low).unwrap_or_default()) {
            // Another thread may have been first.
            let _ = kernel.low.set(Ok(Arc::new(library)));
        }
    }
}
