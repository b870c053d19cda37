//! From MSL to a loaded function: clang++ behind the shim.

use super::cache;
use super::fiber::RUNTIME;
use super::rewrite::{Rewritten, entry_name, rewrite, threadgroup_bytes};
use super::run::{STACK, ThreadArguments};
use std::ffi::c_void;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// The shim behind which kernels are compiled.
const SHIM: &str = include_str!("../../shim/metal.h");

/// What the runner calls for each thread: buffers, scalars and shapes, and the thread's indices.
pub(super) type Entry = unsafe extern "C" fn(*const *mut u8, *const u8, *const ThreadArguments);

/// The largest stack frame of a kernel; the rest of the stack is for the runner's functions.
const LARGEST_FRAME: usize = STACK - (8 << 10);

/// A compiled kernel.
#[derive(Debug)]
pub(super) struct Library {
    pub(super) entry: Entry,
    /// For each buffer of the kernel, whether it may write it.
    pub(super) writes: Vec<bool>,
    pub(super) threadgroup_bytes: usize,
    /// Whether threads wait for each other; otherwise all run on one fiber.
    pub(super) synchronizes: bool,
    /// How far the compiler optimized.
    pub(super) effort: Effort,
    /// Run time so far.
    nanoseconds: AtomicU64,
    /// Keeps `entry` valid.
    _library: Arc<libloading::Library>,
}

impl Library {
    /// The time that it has run for, over all finished launches.
    pub(super) fn time(&self) -> Duration {
        Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed))
    }

    /// Adds to [`time`](Self::time).
    pub(super) fn add_time(&self, time: Duration) {
        self.nanoseconds.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }
}

/// The folder with the shim and the stand-ins for Metal's headers, for the life of the process.
fn folder() -> Result<&'static PathBuf, String> {
    static FOLDER: OnceLock<Result<(tempfile::TempDir, PathBuf), String>> = OnceLock::new();
    let made = FOLDER.get_or_init(|| {
        let write = || -> std::io::Result<_> {
            let folder = tempfile::Builder::new().prefix("msl-host-").tempdir()?;
            std::fs::write(folder.path().join("metal.h"), SHIM)?;
            std::fs::write(folder.path().join("metal_stdlib"), "")?;
            std::fs::write(folder.path().join("metal_simdgroup_matrix"), "")?;
            let path = folder.path().to_path_buf();
            Ok((folder, path))
        };
        write().map_err(|error| format!("no folder for compiled kernels: {error}"))
    });
    made.as_ref().map(|(_, path)| path).map_err(Clone::clone)
}

/// The C++ compiler: `CXX` where it is set, else `clang++`.
pub(super) fn compiler() -> String {
    std::env::var("CXX").unwrap_or_else(|_| "clang++".into())
}

/// How far to optimize: most kernels run once over a small problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effort {
    /// Compile fast.
    Low,
    /// Run fast.
    High,
}

/// Compiles an emitted text.
///
/// # Errors
///
/// The compiler's messages, or that there is none.
pub(super) fn compile(msl: &str, effort: Effort) -> Result<Library, String> {
    let mut libraries = compile_batch(&[msl], effort)?;
    libraries.pop().ok_or_else(|| "nothing was compiled".into())
}

/// Compiles texts into one shared library: for a single text most of the time is the compiler's start-up.
///
/// # Errors
///
/// Those of [`compile`], for any of the texts.
pub(super) fn compile_batch(texts: &[&str], effort: Effort) -> Result<Vec<Library>, String> {
    let rewritten: Vec<Rewritten> =
        texts.iter().enumerate().map(|(number, msl)| rewrite(msl, number)).collect::<Result<_, _>>()?;
    let text: String = rewritten.iter().map(|rewritten| rewritten.text.as_str()).collect();
    let kept = cache::path(&[SHIM, &text, &compiler(), &flags(effort).join(" ")]);
    let library = match kept.as_deref().filter(|path| path.exists()) {
        Some(path) => load(path)?,
        None => {
            let target = build(&text, effort)?;
            let library = load(&target)?;
            if let Some(path) = kept {
                cache::keep(&target, &path);
            }
            let _ = std::fs::remove_file(&target);
            library
        }
    };
    let of = |(number, (msl, rewritten)): (usize, (&&str, Rewritten))| {
        let threadgroup_bytes = threadgroup_bytes(msl);
        Ok(Library {
            entry: entry(&library, number)?,
            writes: rewritten.writes,
            threadgroup_bytes,
            synchronizes: threadgroup_bytes > 0
                || ["_barrier(", "simd_", "simdgroup_"].iter().any(|word| msl.contains(word)),
            effort,
            nanoseconds: AtomicU64::new(0),
            _library: library.clone(),
        })
    };
    texts.iter().zip(rewritten).enumerate().map(of).collect()
}

/// The compiler's arguments, without files and folders.
fn flags(effort: Effort) -> Vec<String> {
    // Semantics that MSL defines and C++ leaves open; no optimization that changes floating-point results.
    let mut line =
        "-std=c++20 -fPIC -fvisibility=hidden -fno-exceptions -fno-rtti -ffp-contract=off -fwrapv \
                    -fsigned-char -fno-strict-aliasing -fno-math-errno -fno-builtin-printf -Wno-everything"
            .to_string();
    line += if effort == Effort::Low { " -O0" } else { " -O1" };
    // A frame larger than the stack could skip its guard page.
    line += &format!(" -Wframe-larger-than={LARGEST_FRAME} -Werror=frame-larger-than");
    if cfg!(target_os = "macos") {
        // Under Rosetta the compiler's default architecture is not that of this process.
        line += if cfg!(target_arch = "aarch64") { " -arch arm64" } else { " -arch x86_64" };
    }
    if cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        line += " -march=native";
    }
    line.split_whitespace().map(String::from).collect()
}

/// Compiles a C++ text and returns the path of the library.
fn build(text: &str, effort: Effort) -> Result<PathBuf, String> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let folder = folder()?;
    let name = format!("kernel{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let [source, object, target] =
        ["cpp", "o", "so"].map(|extension| folder.join(&name).with_extension(extension));
    std::fs::write(&source, text).map_err(|error| format!("{}: {error}", source.display()))?;
    let mut command = Command::new(compiler());
    command.args(flags(effort)).args(["-include", "metal.h", "-I"]).arg(folder);
    if cfg!(target_os = "linux") {
        // Compiled and linked separately: in one step the driver would start a second process and link
        // libraries that are not needed. The C library is already in this process.
        run(command.arg("-c").arg(&source).arg("-o").arg(&object))?;
        run(Command::new("ld").arg("-shared").arg(&object).arg("-o").arg(&target))?;
        let _ = std::fs::remove_file(&object);
    } else {
        run(command.arg("-shared").arg(&source).arg("-o").arg(&target))?;
    }
    let _ = std::fs::remove_file(&source);
    Ok(target)
}

/// Runs a step of the compilation.
fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| {
        format!(
            "{} could not be started ({error}): install clang (Debian and Ubuntu: `apt-get install clang binutils`, or run \
             `cargo xtask test`, which does it; macOS: `xcode-select --install`)",
            command.get_program().display()
        )
    })?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("the text does not compile:\n{}", String::from_utf8_lossy(&output.stderr)))
}

/// Loads a library and gives it the runner's functions.
fn load(path: &std::path::Path) -> Result<Arc<libloading::Library>, String> {
    // SAFETY: the library was compiled from the shim and kernels: it has no initializers.
    let library = unsafe { libloading::Library::new(path) }.map_err(|error| error.to_string())?;
    // SAFETY: the shim defines `msl_runtime` as a pointer to a table of the layout of `RUNTIME`.
    unsafe {
        let runtime =
            library.get::<*mut *const c_void>(b"msl_runtime\0").map_err(|error| error.to_string())?;
        **runtime = (&raw const RUNTIME).cast();
    }
    Ok(Arc::new(library))
}

/// The function that runs a thread of kernel `number` of a library.
fn entry(library: &libloading::Library, number: usize) -> Result<Entry, String> {
    // SAFETY: `rewrite` appends functions of these names with the signature of `Entry`.
    let entry = unsafe { library.get::<Entry>(entry_name(number).as_bytes()) };
    entry.map(|entry| *entry).map_err(|error| error.to_string())
}
