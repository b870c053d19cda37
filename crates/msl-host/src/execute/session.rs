//! What one server has compiled.

use super::{Effort, Library, Runner, compile};
use cubecl_runtime::id::KernelId;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};

/// A change to a text, for tests that the suite finds defects.
pub type Edit = Box<dyn Fn(&str) -> String + Send>;

/// How a server executes: its runner and what it has compiled.
pub struct Session {
    /// Runs the compiled kernels.
    pub runner: Runner,
    edit: Option<Edit>,
    /// The compiled kernels of an edited server.
    edited: HashMap<KernelId, Arc<Library>>,
}

impl Session {
    /// A session in which `edit`, if there is one, changes every text.
    pub fn new(edit: Option<Edit>) -> Self {
        Self { runner: Runner::new(), edit, edited: HashMap::new() }
    }

    /// The kernel compiled for a launch of `threads`. Servers without edits share theirs: the text is that of the kernel's
    /// identity.
    ///
    /// # Errors
    ///
    /// The compiler's.
    pub fn library(&mut self, id: &KernelId, msl: &str, threads: u64) -> Result<Arc<Library>, String> {
        /// Threads of a launch from which on a kernel is worth optimizing.
        const MANY: u64 = 100_000;
        let effort = if threads < MANY { Effort::Low } else { Effort::High };
        if let Some(edit) = &self.edit {
            if let Some(library) = self.edited.get(id) {
                return Ok(library.clone());
            }
            let library = Arc::new(compile(&edit(msl), effort)?);
            self.edited.insert(id.clone(), library.clone());
            return Ok(library);
        }
        type Cell = Arc<OnceLock<Result<Arc<Library>, String>>>;
        static COMPILED: LazyLock<Mutex<HashMap<(KernelId, bool), Cell>>> = LazyLock::new(Mutex::default);
        let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
        let optimized = compiled.get(&(id.clone(), true)).cloned();
        let cell = optimized
            .unwrap_or_else(|| compiled.entry((id.clone(), effort == Effort::High)).or_default().clone());
        drop(compiled);
        cell.get_or_init(|| compile(msl, effort).map(Arc::new)).clone()
    }
}
