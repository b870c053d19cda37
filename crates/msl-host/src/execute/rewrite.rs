//! Rewrites emitted MSL for a C++ compiler and appends the function that the runner calls.
//!
//! | MSL | C++ |
//! | --- | --- |
//! | `alignas(a) threadgroup char v[n];` | a pointer into the runner's threadgroup memory |
//! | `a / b`, `a % b` | calls of the shim that check the divisor: processors differ on division by zero |
//! | `device`, `constant`, `thread`, `threadgroup` | unchanged; empty macros of the shim |
//! | `#include <metal_stdlib>` | unchanged; finds an empty file, since the shim is included first |
//!
//! Each text gets its own namespace, so that one file can hold many. Everything else is unchanged.

use crate::lower::{ARRAY, ENTRY};
use regex::{Captures, Regex};
use std::sync::LazyLock;

/// The C++ text of a kernel.
#[derive(Debug)]
pub(super) struct Rewritten {
    pub(super) text: String,
    /// For each buffer of the kernel except the one of scalars and shapes, whether it may write it.
    pub(super) writes: Vec<bool>,
}

/// Alignment of every threadgroup array, at least what any declaration asks for.
const ALIGNMENT: usize = 16;

/// Bytes of threadgroup memory in the layout of [`rewrite`].
pub(super) fn threadgroup_bytes(msl: &str) -> usize {
    ARRAY.captures_iter(msl).fold(0, |offset, array| offset + size(&array).next_multiple_of(ALIGNMENT))
}

fn size(array: &Captures<'_>) -> usize {
    array[3].parse().unwrap_or(0)
}

/// A division as CubeCL's dialect emits it: between names or literals.
static DIVISION: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"([\w.]+) ([/%]) ([\w.]+)").expect("a valid pattern"));
static COMMENT: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"//.*|(?s:/\*.*?\*/)").expect("a valid pattern"));

/// Replaces the divisions of `text` by calls of the shim.
///
/// # Errors
///
/// When a division has a form that the dialect does not emit: no division is executed unchecked.
fn check_divisions(text: &str) -> Result<String, String> {
    let checked = DIVISION.replace_all(text, |division: &Captures<'_>| {
        let function = if &division[2] == "/" { "quotient" } else { "remainder" };
        format!("::msl::{function}({}, {})", &division[1], &division[3])
    });
    let code = COMMENT.replace_all(&checked, "");
    match code.lines().find(|line| line.contains(['/', '%'])) {
        Some(line) => Err(format!("the division in `{}` has a form that CubeCL does not emit", line.trim())),
        None => Ok(checked.into_owned()),
    }
}

/// The name of the function that calls kernel `number` of a file.
pub(super) fn entry_name(number: usize) -> String {
    format!("msl_entry{number}")
}

/// Rewrites a text as kernel `number` of a file and appends the function that calls it.
///
/// # Errors
///
/// When a parameter or a division has a form that the dialect does not emit.
pub(super) fn rewrite(msl: &str, number: usize) -> Result<Rewritten, String> {
    let mut offset = 0;
    let body = ARRAY.replace_all(msl, |array: &Captures<'_>| {
        let declaration =
            format!("char *const {} = ::msl::msl_runtime->threadgroup_memory({offset});", &array["name"]);
        offset += size(array).next_multiple_of(ALIGNMENT);
        declaration
    });
    let body = check_divisions(&body)?;
    let entry = ENTRY.captures(msl).ok_or("the text has no kernel function")?;
    let start = entry.get(0).map_or(0, |found| found.end());
    let end = msl[start..].find(") {").ok_or("the kernel function has no body")?;
    let parameters = msl[start..start + end].split(", ").filter(|parameter| !parameter.is_empty());
    let mut writes = Vec::new();
    let arguments =
        parameters.map(|parameter| argument(parameter, &mut writes)).collect::<Result<Vec<_>, _>>()?;
    // Line numbers are those of the text: barriers are reported by them.
    let text = format!(
        "namespace kernel{number} {{\n#line 1\n{body}\n}}\n\
         extern \"C\" __attribute__((visibility(\"default\"))) void {}(void *const *buffers, void *info, \
         const msl::Thread &at) {{\n    (void)buffers, (void)info, (void)at;\n    kernel{number}::{}({});\n}}\n",
        entry_name(number),
        &entry[2],
        arguments.join(", ")
    );
    Ok(Rewritten { text, writes })
}

/// The argument for a parameter: `buffers[n]`, the scalars, or a built-in of the thread.
fn argument(parameter: &str, writes: &mut Vec<bool>) -> Result<String, String> {
    let Some((_, attribute)) = parameter.split_once("[[") else {
        return if parameter.starts_with("constant ") {
            Ok("msl::Pointer{info}".into())
        } else {
            Err(format!("the parameter `{parameter}` has a form that CubeCL does not emit"))
        };
    };
    let attribute = attribute.trim_end().trim_end_matches(']');
    if let Some(index) = attribute.strip_prefix("buffer(") {
        let index: usize = index
            .trim_end_matches(')')
            .parse()
            .map_err(|_| format!("the parameter `{parameter}` has no buffer index"))?;
        writes.resize(writes.len().max(index + 1), false);
        writes[index] = !parameter.contains(" const*");
        return Ok(format!("msl::Pointer{{buffers[{index}]}}"));
    }
    Ok(format!("at.{attribute}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_become_pointers_and_every_parameter_gets_its_argument() {
        let msl = "[[max_total_threads_per_threadgroup(64)]] [[kernel]] void k(device float const* const a [[buffer(0)]], \
                   device half * const b [[buffer(1)]], constant info_st const* const i, uint3 const p \
                   [[threadgroup_position_in_grid]]) {\n    alignas(4) threadgroup char v1[20];\n    alignas(16) \
                   threadgroup char v2[32];\n}\n";
        let rewritten = rewrite(msl, 7).unwrap();
        assert!(rewritten.text.contains("char *const v1 = ::msl::msl_runtime->threadgroup_memory(0);"));
        assert!(rewritten.text.contains("char *const v2 = ::msl::msl_runtime->threadgroup_memory(32);"));
        let call = "kernel7::k(msl::Pointer{buffers[0]}, msl::Pointer{buffers[1]}, msl::Pointer{info}, \
                    at.threadgroup_position_in_grid);";
        assert!(rewritten.text.contains(call), "{}", rewritten.text);
        assert_eq!((rewritten.writes, threadgroup_bytes(msl)), (vec![false, true], 64));
    }
    #[test]
    fn every_division_is_checked_or_refused() {
        let text = "int const v3 = v1 / v2; uint v4 = v1 % 3; // a / b * c\nv5 = v1 - v2 * floor(v1 / v2);\n/* 1/2\n */";
        let checked = "int const v3 = ::msl::quotient(v1, v2); uint v4 = ::msl::remainder(v1, 3); \
                       // ::msl::quotient(a, b) * c\nv5 = v1 - v2 * floor(::msl::quotient(v1, v2));\n/* 1/2\n */";
        assert_eq!(check_divisions(text).unwrap(), checked);
        for text in ["v3 = (v1) / v2;", "v3 = v1/v2;", "v3 /= v2;", "v3 = v1 / v2 % v4;", "v1 %= v2;"] {
            let error = check_divisions(&format!("v0 = v1 / v2;\n  {text}\n")).unwrap_err();
            assert!(error.contains("has a form that CubeCL does not emit"), "{error}");
        }
    }
}
