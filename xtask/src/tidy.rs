//! The rules of ARCHITECTURE.md that a compiler does not check.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

/// What an unchecked launch looks like; in two pieces, so that this file does not look like one.
const LAUNCH: &str = concat!("launch_", "unchecked(");

/// Lines a source file may have.
const LONGEST_FILE: usize = 400;

/// Columns a comment may reach; tables and links may go beyond.
const WIDEST_COMMENT: usize = 110;

/// Checks every rule and lists every breach.
pub(crate) fn run(root: &Path) -> Result<()> {
    let mut breaches = Vec::new();
    let mut files = Vec::new();
    for folder in ["kernels", "crates", "examples", "xtask"] {
        rust_files(&root.join(folder), &mut files)?;
    }
    let mut public_traits = Vec::new();
    for path in &files {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let name = path.strip_prefix(root).unwrap_or(path).display().to_string();
        breaches.extend(file_breaches(&name, &text));
        if text.lines().any(|line| line.trim_start().starts_with("pub trait ")) {
            public_traits.push(name);
        }
    }
    if public_traits.len() != 1 {
        breaches.push(format!(
            "there is one public trait in the project, `ConvOps`; found them in {public_traits:?}"
        ));
    }
    for op in ["conv3d", "causal_conv1d", "rope"] {
        let reference = format!("kernels/src/{op}/reference.rs");
        if !root.join(&reference).exists() {
            breaches
                .push(format!("{reference} is missing: every op has its f64 reference next to its kernels"));
        }
    }
    for file in
        ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "LICENSE-MIT", "LICENSE-APACHE", "Cargo.lock"]
    {
        if !root.join(file).exists() {
            breaches.push(format!("{file} is missing"));
        }
    }
    if !breaches.is_empty() {
        bail!("tidy found {} breaches:\n  {}", breaches.len(), breaches.join("\n  "));
    }
    println!("tidy: {} files keep the rules", files.len());
    Ok(())
}

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                rust_files(&path, files)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(())
}

fn file_breaches(name: &str, text: &str) -> Vec<String> {
    let mut breaches = Vec::new();
    let lines: Vec<&str> = text.lines().collect();
    if lines.len() > LONGEST_FILE {
        breaches.push(format!("{name}: {} lines, {LONGEST_FILE} are allowed", lines.len()));
    }
    if !text.starts_with("//!") {
        breaches.push(format!("{name}: a file begins with its module documentation"));
    }
    for (number, line) in lines.iter().enumerate() {
        let comment = line.trim_start().starts_with("//");
        // Tables, links, and lines of a string.
        let exempt = line.contains("//! |") || line.contains("://") || line.ends_with("\";");
        if comment && !exempt && line.chars().count() > WIDEST_COMMENT {
            let columns = line.chars().count();
            breaches.push(format!(
                "{name}:{}: a comment of {columns} columns, {WIDEST_COMMENT} are allowed",
                number + 1
            ));
        }
    }
    for (number, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        if code.starts_with("//") || !code.contains(LAUNCH) || code.contains("#[cube") {
            continue;
        }
        let before = &lines[number.saturating_sub(5)..number];
        if !before.iter().any(|line| line.contains("SAFETY:")) {
            breaches.push(format!(
                "{name}:{}: an unchecked launch says why it is safe (`// SAFETY:`)",
                number + 1
            ));
        }
    }
    let stubs = [concat!("todo", "!("), concat!("unimplemented", "!(")];
    for (number, line) in lines.iter().enumerate() {
        if stubs.iter().any(|stub| line.contains(stub)) {
            breaches.push(format!("{name}:{}: unfinished code", number + 1));
        }
    }
    breaches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_is_tidy() {
        run(&crate::root()).unwrap_or_else(|error| panic!("{error}"));
    }

    #[test]
    fn breaches_are_found() {
        let long = format!("//! Doc.\n{}", "\n".repeat(LONGEST_FILE));
        assert_eq!(file_breaches("a.rs", &long).len(), 1);
        assert_eq!(file_breaches("a.rs", "fn f() {}\n").len(), 1);
        let wide = |start: &str| format!("//! Doc.\n{start}{}\n", "x".repeat(WIDEST_COMMENT));
        assert_eq!(file_breaches("a.rs", &wide("/// ")).len(), 1);
        assert!(file_breaches("a.rs", &wide("/// https://")).is_empty());
        assert!(file_breaches("a.rs", &wide("//! | ")).is_empty());
        let launch = concat!("k::launch_", "unchecked(client);");
        assert_eq!(file_breaches("a.rs", &format!("//! Doc.\n{launch}\n")).len(), 1);
        assert!(file_breaches("a.rs", &format!("//! Doc.\n// SAFETY: tested.\n{launch}\n")).is_empty());
        assert_eq!(file_breaches("a.rs", &format!("//! Doc.\n{}!()\n", "todo")).len(), 1);
    }
}
