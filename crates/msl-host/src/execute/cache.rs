//! Compiled libraries kept between runs, so that a developer's second run compiles what has changed and no
//! more.
//!
//! A file's name is the hash of everything that its contents follow from: the shim, the text, the compiler
//! with its version, its arguments and the processor. The folder is `msl-libraries` in cargo's target folder
//! next to the running program; `cargo clean` empties it. With `MSL_HOST_LIBRARIES=off` in the environment it
//! is not used.

use cubecl_common::hash::StableHasher;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Where the library that follows from `parts` is kept, if libraries are kept.
pub(super) fn path(parts: &[&str]) -> Option<PathBuf> {
    static FOLDER: OnceLock<Option<(PathBuf, String)>> = OnceLock::new();
    let (folder, machine) = FOLDER.get_or_init(|| Some((folder()?, machine()?))).as_ref()?;
    let key = StableHasher::hash_one(&(parts, machine));
    Some(folder.join(format!("{key:032x}.so")))
}

/// Copies a new library to `path`. If that fails it is compiled again in the next run.
pub(super) fn keep(library: &Path, path: &Path) {
    // Another process may read the folder at any time: files appear in it complete.
    let partial = path.with_extension(format!("{}.part", std::process::id()));
    if std::fs::copy(library, &partial).and_then(|_| std::fs::rename(&partial, path)).is_err() {
        let _ = std::fs::remove_file(&partial);
    }
}

/// Whether the environment says that everything is to be compiled.
fn is_off() -> bool {
    std::env::var_os("MSL_HOST_LIBRARIES").is_some_and(|kept| kept == "off")
}

/// The folder, made if it does not exist; none where it is off and outside a target folder.
fn folder() -> Option<PathBuf> {
    if is_off() {
        return None;
    }
    let program = std::env::current_exe().ok()?;
    let profile = program.parent()?.ancestors().find(|folder| folder.join(".fingerprint").is_dir())?;
    let folder = profile.join("msl-libraries");
    std::fs::create_dir_all(&folder).ok()?;
    Some(folder)
}

/// The compiler's version and the processor that it compiles for.
fn machine() -> Option<String> {
    let version = Command::new(super::library::compiler()).arg("--version").output().ok()?;
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let lines = processor.lines().filter(|line| line.starts_with("model name") || line.starts_with("flags"));
    let processor: Vec<&str> = lines.take(2).collect();
    Some(format!("{}{}", String::from_utf8_lossy(&version.stdout), processor.join("\n")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_kept_under_the_hash_of_all_its_parts() {
        let Some(first) = path(&["shim", "text", "compiler", "flags"]) else {
            assert!(is_off(), "tests run from cargo's target folder");
            return;
        };
        assert_eq!(path(&["shim", "text", "compiler", "flags"]).as_deref(), Some(&*first));
        for parts in [["shim2", "text", "compiler", "flags"], ["shimt", "ext", "compiler", "flags"]] {
            assert_ne!(path(&parts).as_deref(), Some(&*first), "{parts:?}");
        }
        let library = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(&library, "contents").expect("written");
        keep(library.path(), &first);
        assert_eq!(std::fs::read_to_string(&first).expect("kept"), "contents");
        std::fs::remove_file(&first).expect("removed");
    }
}
