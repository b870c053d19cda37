//! A manifest of the emitted texts, to show that a refactor changed none.
//!
//! One line per kernel: language (MSL or, for macOS before 15, WGSL), label of its first launch, and a hash
//! of its normalised text. It does not depend on names of Rust functions. Kernels with the same label are
//! distinguished by their texts alone.

use crate::log::Kernel;
use anyhow::{Context, Result, bail};
use regex::{Captures, Regex};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::hash::Hasher;
use std::path::Path;
use std::sync::LazyLock;

/// Hashes of normalised texts by language and label, sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    texts: BTreeMap<String, Vec<String>>,
}

/// The difference between two manifests for one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Language and label.
    pub label: String,
    /// Kernels whose text changed.
    pub changed: usize,
    /// Kernels that only the later manifest has.
    pub added: usize,
    /// Kernels that only the earlier manifest has.
    pub removed: usize,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let counts = [(self.changed, "changed"), (self.added, "added"), (self.removed, "removed")];
        let counts = counts.iter().filter(|(count, _)| *count > 0);
        let counts: Vec<_> = counts.map(|(count, word)| format!("{count} {word}")).collect();
        write!(f, "{}: {}", self.label, counts.join(", "))
    }
}

impl Manifest {
    /// Adds the texts of `kernels`, emitted in `language`.
    pub fn add(&mut self, language: &str, kernels: &[Kernel]) {
        for kernel in kernels {
            let text = match &kernel.lowered {
                Ok(lowered) => normalise(&lowered.source),
                Err(reason) => format!("did not lower: {reason}"),
            };
            let label = format!("{language} {}", kernel.label);
            self.texts.entry(label).or_default().push(hash(&text));
        }
        self.texts.values_mut().for_each(|hashes| hashes.sort());
    }

    /// Kernels of all labels.
    pub fn kernels(&self) -> usize {
        self.texts.values().map(Vec::len).sum()
    }

    /// The manifest as a file's text: label, tab, hash.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (label, hashes) in &self.texts {
            for hash in hashes {
                let _ = writeln!(text, "{label}\t{hash}");
            }
        }
        text
    }

    /// Writes the manifest.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        std::fs::write(path, self.text()).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Reads a manifest.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or a line is not a label, a tab and a hash.
    pub fn read(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut manifest = Self::default();
        for (number, line) in text.lines().enumerate() {
            let Some((label, hash)) = line.split_once('\t') else {
                bail!("{}, line {}: `{line}` is not a label, a tab and a hash", path.display(), number + 1);
            };
            manifest.texts.entry(label.into()).or_default().push(hash.into());
        }
        manifest.texts.values_mut().for_each(|hashes| hashes.sort());
        Ok(manifest)
    }

    /// What changed from this manifest to `later`, by label.
    pub fn compare(&self, later: &Self) -> Vec<Change> {
        let mut labels: Vec<_> = self.texts.keys().chain(later.texts.keys()).collect();
        labels.sort();
        labels.dedup();
        let none = Vec::new();
        let change = |label: &&String| {
            let (before, after) =
                (self.texts.get(*label).unwrap_or(&none), later.texts.get(*label).unwrap_or(&none));
            let (removed, added) = (without(before, after), without(after, before));
            let changed = removed.min(added);
            let label = label.to_string();
            Change { label, changed, added: added - changed, removed: removed - changed }
        };
        let changes = labels.iter().map(change);
        changes.filter(|change| change.changed + change.added + change.removed > 0).collect()
    }
}

/// How many of `these` have no equal in `those`, both with repetitions.
fn without(these: &[String], those: &[String]) -> usize {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    those.iter().for_each(|hash| *counts.entry(hash).or_default() += 1);
    let unmatched = |hash: &&String| match counts.get_mut(hash.as_str()) {
        Some(count) if *count > 0 => {
            *count -= 1;
            false
        }
        _ => true,
    };
    these.iter().filter(unmatched).count()
}

/// The text with variables renumbered in order of appearance and the entry function renamed to `kernel`.
///
/// CubeCL emits built-in parameters in the order of a hash map, so parameters are sorted first.
pub fn normalise(text: &str) -> String {
    static ENTRY: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"(?:\[\[kernel\]\] void|@workgroup_size\([^)]*\)\s*fn) (\w+)\(").expect("a valid pattern")
    });
    static PARAMETERS: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\bkernel\(([^{]*)\) \{").expect("a valid pattern"));
    static NUMBERED: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"(\b|_)v(\d+)").expect("a valid pattern"));
    let text = match ENTRY.captures(text) {
        Some(entry) => text.replace(&entry[1], "kernel"),
        None => text.into(),
    };
    let text = PARAMETERS.replace(&text, |found: &Captures<'_>| {
        let mut parameters: Vec<&str> = found[1].split(", ").collect();
        let without_numbers = |parameter: &&str| NUMBERED.replace_all(parameter, "${1}v").into_owned();
        parameters.sort_by_cached_key(without_numbers);
        format!("kernel({}) {{", parameters.join(", "))
    });
    let mut numbers: HashMap<String, usize> = HashMap::new();
    let renamed = NUMBERED.replace_all(&text, |found: &Captures<'_>| {
        let next = numbers.len();
        let number = *numbers.entry(found[2].to_string()).or_insert(next);
        format!("{}v{number}", &found[1])
    });
    renamed.into_owned()
}

/// 64-bit FNV-1a: does not depend on the version of Rust.
fn hash(text: &str) -> String {
    let mut hasher = fnv::FnvHasher::default();
    hasher.write(text.as_bytes());
    format!("{:016x}", hasher.finish())
}
