//! From a kernel to its MSL, and from the MSL to the facts that Apple's limits concern. The facts are read
//! from the emitted text, not from the launch: what is checked is what a Mac would compile.

use crate::properties::{BINDINGS, SIMD_WIDTH, THREADGROUP_BYTES, THREADS};
use cubecl::ir::settings::Dim3;
use cubecl_cpp::MslCompiler;
use cubecl_runtime::id::KernelId;
use cubecl_runtime::kernel::{CubeKernel, define_kernel};
use cubecl_server::kernel::CompiledKernel;
use regex::Regex;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};

/// A kernel as a Mac would receive it.
#[derive(Clone, Debug)]
pub struct Lowered {
    /// The MSL text.
    pub msl: Arc<str>,
    /// What CubeCL emitted: the MSL text, or the WGSL that naga translated to it.
    pub source: Arc<str>,
    /// Threads of a threadgroup along x, y and z, as launched.
    pub threads: (u32, u32, u32),
    /// The facts read from the text.
    pub facts: Facts,
}

impl Lowered {
    /// Threads of a threadgroup.
    pub fn thread_count(&self) -> u64 {
        let (x, y, z) = self.threads;
        u64::from(x) * u64::from(y) * u64::from(z)
    }
}

/// What a kernel's MSL requires of the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Name of the entry function.
    pub entry: String,
    /// `max_total_threads_per_threadgroup` of the entry function.
    pub declared_threads: u32,
    /// Bytes of all threadgroup arrays.
    pub threadgroup_bytes: usize,
    /// Buffers of the entry function, the one with scalars and shapes included.
    pub bindings: usize,
    /// `threadgroup_barrier` calls in the text.
    pub barriers: usize,
    /// Whether simdgroup matrices are used.
    pub matrices: bool,
    /// Whether the lanes of a simdgroup exchange values (shuffles, reductions, votes).
    pub simd: bool,
    /// Whether 64-bit integers occur outside the header's typedefs.
    pub wide: bool,
    /// Constructs that no kernel may use (see [`violations`]), each as the end of a sentence ("uses ..").
    pub forbidden: Vec<String>,
}

/// Expands and compiles `kernel` as cubecl-wgpu does on a Mac, then reads the text.
///
/// # Errors
///
/// The compiler's refusal, a panic while expanding or compiling, or the reason why the text could not be
/// read.
pub(crate) fn lower(kernel: &dyn CubeKernel) -> Result<Lowered, String> {
    let dim = kernel.id().cube_dim;
    let definition = define_kernel(kernel).map_err(|error| error.to_string())?;
    // The emitter panics on what Metal lacks (matrix fragments other than 8x8x8, for one).
    let compiled = catch_unwind(AssertUnwindSafe(|| {
        CompiledKernel::compile(kernel, definition, &mut MslCompiler::default(), &Default::default())
    }))
    .map_err(|payload| format!("the MSL compiler panicked: {}", panic_text(payload.as_ref())))?
    .map_err(|error| error.to_string())?;
    let facts = read(&compiled.source)?;
    if facts.entry != compiled.entrypoint_name {
        return Err(format!(
            "the text's entry is `{}`, expected `{}`",
            facts.entry, compiled.entrypoint_name
        ));
    }
    if let Some(repr) = &compiled.repr
        && repr.shared_memory_size != facts.threadgroup_bytes
    {
        return Err(format!(
            "the text holds {} bytes of threadgroup memory, its compiler counted {}",
            facts.threadgroup_bytes, repr.shared_memory_size
        ));
    }
    let Dim3 { x, y, z } = dim;
    let msl: Arc<str> = compiled.source.into();
    Ok(Lowered { source: msl.clone(), msl, threads: (x, y, z), facts })
}

/// [`lower`], memoized per kernel for the whole process. A kernel's identity does not include the device, so
/// this is only for devices with an M1's properties.
///
/// # Errors
///
/// Those of [`lower`].
pub(crate) fn lower_once(kernel: &dyn CubeKernel) -> Result<Lowered, String> {
    type Cell = Arc<OnceLock<Result<Lowered, String>>>;
    static KNOWN: LazyLock<Mutex<HashMap<KernelId, Cell>>> = LazyLock::new(Mutex::default);
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let cell = known.entry(kernel.id()).or_default().clone();
    drop(known);
    cell.get_or_init(|| lower(kernel)).clone()
}

/// [`lower_once`], and a refusal of what an Apple GPU would not run or would run wrongly.
///
/// # Errors
///
/// Those of [`lower`], and the [`violations`].
pub(crate) fn lower_within_budget(kernel: &dyn CubeKernel) -> Result<Lowered, String> {
    let lowered = lower_once(kernel)?;
    let problems = violations(&lowered);
    if problems.is_empty() { Ok(lowered) } else { Err(problems.join("; ")) }
}

fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| text.to_string());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}

pub(crate) static ENTRY: LazyLock<Regex> = LazyLock::new(|| {
    regex(r"\[\[max_total_threads_per_threadgroup\((\d+)\)\]\] \[\[kernel\]\] void (\w+)\(")
});
pub(crate) static ARRAY: LazyLock<Regex> =
    LazyLock::new(|| regex(r"(?m)^\s*alignas\((\d+)\) threadgroup char (?<name>\w+)\[(\d+)\];"));
static ANY_ARRAY: LazyLock<Regex> = LazyLock::new(|| regex(r"\bthreadgroup\s+[\w<>, ]+\s+\w+\s*(\[|;|=)"));
static ATOMIC: LazyLock<Regex> =
    LazyLock::new(|| regex(r"\batomic(?:<\s*(\w+)\s*>|_(float|half|ulong|long)\b)"));
static SIMD: LazyLock<Regex> = LazyLock::new(|| {
    regex(r"\bsimd_(shuffle|sum|product|min|max|prefix|is_first|all|any|ballot|broadcast)\w*\(")
});
static WIDE: LazyLock<Regex> = LazyLock::new(|| regex(r"\bu?int64_t\b"));
/// An accumulator store with an offset or transposed: CubeCL stores row-major, the other is untested on a
/// Mac.
static STORE: LazyLock<Regex> = LazyLock::new(|| regex(r"\bsimdgroup_store\([^;]*\btrue\b[^;]*\);"));
static DOUBLE: LazyLock<Regex> = LazyLock::new(|| regex(r"\bdouble\b"));
static LOG: LazyLock<Regex> = LazyLock::new(|| regex(r"\bos_log"));

/// A regular expression of this file.
fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("a pattern of this file")
}

/// Reads the facts of one emitted text.
///
/// # Errors
///
/// When the text does not have the form that CubeCL 0.11.3 emits: misreading it silently would let everything
/// pass.
pub(crate) fn read(msl: &str) -> Result<Facts, String> {
    let entry = ENTRY.captures(msl).ok_or("the text has no kernel function")?;
    if ENTRY.find_iter(msl).count() > 1 {
        return Err("the text has more than one kernel function".into());
    }
    let number = |text: &str| text.parse::<usize>().map_err(|_| format!("`{text}` is not a size"));
    let after_name = entry.get(0).map_or(0, |found| found.end());
    let end = msl[after_name..].find(") {").ok_or("the kernel function has no body")?;
    let parameters: Vec<_> = msl[after_name..after_name + end].split(", ").collect();
    let mut bindings = 0;
    for parameter in &parameters {
        let is_builtin = parameter.contains("[[") && !parameter.contains("[[buffer(");
        let is_buffer = parameter.starts_with("device ") || parameter.starts_with("constant ");
        if is_buffer == is_builtin && !parameter.is_empty() {
            return Err(format!("the parameter `{parameter}` is neither a buffer nor a built-in"));
        }
        bindings += usize::from(is_buffer);
    }

    let mut threadgroup_bytes = 0usize;
    for array in ARRAY.captures_iter(msl) {
        let (align, size) = (number(&array[1])?, number(&array[3])?);
        threadgroup_bytes = threadgroup_bytes.next_multiple_of(align.max(1)) + size;
    }
    let arrays = ARRAY.find_iter(msl).count();
    let all = ANY_ARRAY.find_iter(msl).count();
    if all != arrays {
        return Err(format!("{} of {all} threadgroup declarations could not be read", all - arrays));
    }

    let body = &msl[msl.find("struct").unwrap_or(after_name).min(after_name)..];
    Ok(Facts {
        entry: entry[2].to_string(),
        declared_threads: u32::try_from(number(&entry[1])?).map_err(|error| error.to_string())?,
        threadgroup_bytes,
        bindings,
        barriers: msl.matches("threadgroup_barrier(").count(),
        matrices: msl.contains("simdgroup_multiply_accumulate("),
        simd: SIMD.is_match(msl),
        wide: WIDE.is_match(body),
        forbidden: forbidden(msl),
    })
}

fn forbidden(msl: &str) -> Vec<String> {
    let mut found = Vec::new();
    for atomic in ATOMIC.captures_iter(msl) {
        let elem = atomic.get(1).or(atomic.get(2)).map_or("", |elem| elem.as_str());
        if !matches!(elem, "int" | "uint" | "int32_t" | "uint32_t" | "bool") {
            found.push(format!("atomics of {elem}"));
        }
    }
    if DOUBLE.is_match(msl) {
        found.push("double precision".into());
    }
    if STORE.is_match(msl) {
        found.push("a transposed accumulator store".into());
    }
    if LOG.is_match(msl) {
        found.push("logging, which needs MSL 3.2".into());
    }
    found.sort();
    found.dedup();
    found
}

/// What an M1 would not run, or would run wrongly: one sentence each, none when `lowered` is within its
/// limits. Also named are constructs that are not for every Mac or not deterministic: atomics of floats and
/// of 64 bits, double precision, transposed stores of matrices, logging.
pub fn violations(lowered: &Lowered) -> Vec<String> {
    let facts = &lowered.facts;
    let threads = lowered.thread_count();
    let mut found = Vec::new();
    if facts.threadgroup_bytes > THREADGROUP_BYTES {
        found.push(format!(
            "{} bytes of threadgroup memory, an Apple GPU has {THREADGROUP_BYTES}",
            facts.threadgroup_bytes
        ));
    }
    if threads > u64::from(THREADS) {
        found.push(format!("{threads} threads per threadgroup, an Apple GPU allows {THREADS}"));
    }
    // Apple's compiler corrupts 8x8 tiles in kernels that declare a single simdgroup (cubecl PR 1636).
    if threads < u64::from(2 * SIMD_WIDTH) {
        found.push(format!("{threads} threads per threadgroup, two simdgroups are {}", 2 * SIMD_WIDTH));
    }
    if u64::from(facts.declared_threads) < threads {
        found.push(format!("declares {} threads and is launched with {threads}", facts.declared_threads));
    }
    if facts.bindings > BINDINGS as usize {
        found.push(format!("{} bindings, wgpu's Metal backend has {BINDINGS}", facts.bindings));
    }
    found.extend(facts.forbidden.iter().map(|construct| format!("uses {construct}")));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "
#include <metal_stdlib>
using namespace metal;
typedef unsigned long int uint64_t;

struct info_st {
    uint32_t static_meta[2];
};
[[max_total_threads_per_threadgroup(256)]] [[kernel]] void saxpy(device float const* const b0 [[buffer(0)]], device float * const b1 [[buffer(1)]], constant info_st const* const info, uint const v3 [[thread_index_in_threadgroup]]) {
    alignas(16) threadgroup char v4[1024];
    threadgroup float * const v5 = (threadgroup float *)(v4);
    threadgroup_barrier(mem_flags::mem_threadgroup);
}
";

    fn lowered(msl: &str) -> Lowered {
        Lowered { msl: msl.into(), source: msl.into(), threads: (256, 1, 1), facts: read(msl).unwrap() }
    }

    #[test]
    fn the_facts_of_a_small_kernel() {
        let facts = read(TEXT).unwrap();
        assert_eq!(facts.entry, "saxpy");
        assert_eq!((facts.declared_threads, facts.threadgroup_bytes), (256, 1024));
        assert_eq!((facts.bindings, facts.barriers), (3, 1));
        assert!(!facts.matrices && !facts.simd && !facts.wide && facts.forbidden.is_empty());
        assert_eq!(violations(&lowered(TEXT)), Vec::<String>::new());
    }

    #[test]
    fn every_limit_is_reported_with_its_numbers() {
        let cases = [
            ("v4[1024]", "v4[40960]", "40960 bytes of threadgroup memory"),
            ("threadgroup_barrier(", "atomic<float>* a; threadgroup_barrier(", "uses atomics of float"),
            ("threadgroup_barrier(", "atomic<uint64_t>* a; threadgroup_barrier(", "uses atomics of uint64_t"),
            (
                "threadgroup_barrier(",
                "simdgroup_store(*m, p, 8, 0, true); threadgroup_barrier(",
                "uses a transposed accumulator store",
            ),
            ("threadgroup_barrier(", "double d; threadgroup_barrier(", "uses double precision"),
            ("group(256)", "group(128)", "declares 128 threads and is launched with 256"),
        ];
        for (from, to, expected) in cases {
            let found = violations(&lowered(&TEXT.replace(from, to)));
            assert!(found.len() == 1 && found[0].contains(expected), "{from} -> {to}: {found:?}");
        }
        for (threads, expected) in [((32, 1, 1), "two simdgroups are 64"), ((1024, 2, 1), "allows 1024")] {
            let found =
                violations(&Lowered { threads, ..lowered(&TEXT.replace("group(256)", "group(4096)")) });
            assert!(found.len() == 1 && found[0].contains(expected), "{threads:?}: {found:?}");
        }
        let many: String = (2..29).map(|i| format!("device float * const c{i} [[buffer({i})]], ")).collect();
        let found =
            violations(&lowered(&TEXT.replace("constant info_st", &format!("{many}constant info_st"))));
        assert!(found.len() == 1 && found[0].starts_with("30 bindings"), "{found:?}");
    }

    #[test]
    fn a_text_of_another_form_is_refused_not_misread() {
        assert!(read("void f() {}").is_err());
        let other = TEXT.replace("threadgroup char v4[1024]", "threadgroup float v4[256]");
        assert_eq!(read(&other).unwrap_err(), "1 of 1 threadgroup declarations could not be read");
        let parameter = TEXT.replace("constant info_st const* const info", "texture2d<float> t");
        assert!(read(&parameter).unwrap_err().contains("texture2d"));
    }
}
