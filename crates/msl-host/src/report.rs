//! The table of what each kernel requires of the device, on the terminal and as CSV next to the texts.

use crate::log::{Kernel, Label};
use crate::lower::{Lowered, violations};
use crate::properties::{SIMD_WIDTH, THREADGROUP_BYTES};
use anyhow::{Context, Result, bail};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::Path;

/// One kernel's line.
#[derive(Clone, Debug)]
pub struct Row {
    /// What launched it first.
    pub label: Label,
    /// The entry function's name.
    pub entry: String,
    /// The text's file: the entry's name, numbered where several kernels share it.
    pub file: String,
    /// Text and numbers, or nothing when the kernel could not be lowered.
    pub lowered: Option<Lowered>,
    /// Why the kernel is not within an Apple GPU's budget; empty when it is.
    pub problems: Vec<String>,
}

/// The rows of `kernels`, in their order.
pub fn rows(kernels: &[Kernel]) -> Vec<Row> {
    let mut namesakes: HashMap<String, usize> = HashMap::new();
    let mut rows: Vec<_> = kernels.iter().map(row).collect();
    for row in &mut rows {
        let earlier = namesakes.entry(row.entry.clone()).or_default();
        *earlier += 1;
        row.file = match *earlier {
            1 => format!("{}.metal", row.entry),
            number => format!("{}_{number}.metal", row.entry),
        };
    }
    rows
}

fn row(kernel: &Kernel) -> Row {
    let label = kernel.label.as_ref().clone();
    let (entry, lowered, problems) = match &kernel.lowered {
        Ok(lowered) => (lowered.facts.entry.clone(), Some(lowered.clone()), violations(lowered)),
        Err(reason) => {
            let reason = reason.lines().collect::<Vec<_>>().join(" ");
            (kernel.id.short_name().to_string(), None, vec![format!("did not lower: {reason}")])
        }
    };
    Row { label, entry, file: String::new(), lowered, problems }
}

/// Words for the features that a kernel uses beyond plain loads, stores and arithmetic.
fn uses(lowered: &Lowered) -> Vec<&'static str> {
    let facts = &lowered.facts;
    let words = [(facts.matrices, "matrix"), (facts.simd, "simd"), (facts.wide, "64-bit")];
    words.into_iter().filter(|(used, _)| *used).map(|(_, word)| word).collect()
}

/// The table for a terminal: one line for the variants of a kernel function under one label's `what`, with
/// the largest of their numbers; then each kernel over budget, then a summary.
pub fn table(rows: &[Row], launches: usize) -> String {
    let header = [
        "launched by",
        "kernel",
        "variants",
        "threads",
        "simdgroups",
        "threadgroup bytes",
        "bindings",
        "uses",
    ];
    let mut lines = vec![header.map(String::from)];
    let mut groups: Vec<((&str, &str), Vec<&Row>)> = Vec::new();
    for row in rows {
        let key = (row.label.what.as_str(), function(&row.entry));
        match groups.iter_mut().find(|(known, _)| *known == key) {
            Some((_, members)) => members.push(row),
            None => groups.push((key, vec![row])),
        }
    }
    for ((what, function), members) in &groups {
        let lowered: Vec<_> = members.iter().filter_map(|row| row.lowered.as_ref()).collect();
        let largest = |number: fn(&Lowered) -> u64| lowered.iter().map(|one| number(one)).max().unwrap_or(0);
        let threads = largest(Lowered::thread_count);
        let mut words: Vec<_> = lowered.iter().flat_map(|one| uses(one)).collect();
        words.sort_unstable();
        words.dedup();
        lines.push([
            what.to_string(),
            function.to_string(),
            members.len().to_string(),
            threads.to_string(),
            threads.div_ceil(u64::from(SIMD_WIDTH)).to_string(),
            largest(|one| one.facts.threadgroup_bytes as u64).to_string(),
            largest(|one| one.facts.bindings as u64).to_string(),
            words.join(" "),
        ]);
    }
    let mut text = String::new();
    let width = |column: usize| lines.iter().map(|line| line[column].len()).max().unwrap_or(0);
    for line in &lines {
        let cells = line.iter().enumerate().map(|(column, cell)| match column {
            0 | 1 | 7 => format!("{cell:<width$}", width = width(column)),
            _ => format!("{cell:>width$}", width = width(column)),
        });
        let _ = writeln!(text, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    for row in rows {
        for problem in &row.problems {
            let _ = writeln!(text, "over budget: {} ({}): {problem}", row.entry, row.label);
        }
    }
    text + &summary(rows, launches)
}

fn summary(rows: &[Row], launches: usize) -> String {
    let over = rows.iter().filter(|row| !row.problems.is_empty()).count();
    let lowered: Vec<_> = rows.iter().filter_map(|row| row.lowered.as_ref()).collect();
    let largest = |number: fn(&Lowered) -> u64| lowered.iter().map(|one| number(one)).max().unwrap_or(0);
    format!(
        "{} kernels from {launches} launches: at most {} of {THREADGROUP_BYTES} threadgroup bytes, {} threads, {} \
         bindings; {over} over budget\n",
        rows.len(),
        largest(|one| one.facts.threadgroup_bytes as u64),
        largest(Lowered::thread_count),
        largest(|one| one.facts.bindings as u64),
    )
}

/// Name and dtypes of the kernel function: the entry's name without the hash of its options.
fn function(entry: &str) -> &str {
    entry.rsplit_once('_').map_or(entry, |(function, _)| function)
}

/// Writes a file for each kernel and `kernels.csv` into `folder`, replacing the texts of an earlier run.
///
/// # Errors
///
/// When the folder cannot be created, read or written.
pub fn write(rows: &[Row], folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "metal") {
            std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    let table = folder.join("kernels.csv");
    let mut csv =
        csv::Writer::from_path(&table).with_context(|| format!("cannot write {}", table.display()))?;
    csv.write_record([
        "launched_by",
        "options",
        "file",
        "kernel",
        "threads",
        "threadgroup_bytes",
        "bindings",
        "barriers",
        "uses",
        "problems",
    ])?;
    for row in rows {
        let mut numbers = [const { String::new() }; 5];
        if let Some(lowered) = &row.lowered {
            let path = folder.join(&row.file);
            std::fs::write(&path, lowered.msl.as_bytes())
                .with_context(|| format!("cannot write {}", path.display()))?;
            let facts = &lowered.facts;
            numbers = [
                lowered.thread_count().to_string(),
                facts.threadgroup_bytes.to_string(),
                facts.bindings.to_string(),
                facts.barriers.to_string(),
                uses(lowered).join(" "),
            ];
        }
        let mut record =
            vec![row.label.what.clone(), row.label.options.clone(), row.file.clone(), row.entry.clone()];
        record.extend(numbers);
        record.push(row.problems.join("; "));
        csv.write_record(record)?;
    }
    csv.flush().with_context(|| format!("cannot write {}", table.display()))
}

/// Succeeds if every kernel of `rows` is within budget and no launch was refused.
///
/// # Errors
///
/// Otherwise, with the two counts.
pub fn verdict(rows: &[Row], refused: &[String]) -> Result<()> {
    let over = rows.iter().filter(|row| !row.problems.is_empty()).count();
    if over + refused.len() > 0 {
        bail!("{over} kernels are over an Apple GPU's budget, {} launches were refused", refused.len());
    }
    Ok(())
}
