//! The table of what each kernel asks of the device, on the terminal and as CSV beside the texts.

use crate::lower::{Lowered, violations};
use crate::properties::{SIMD_WIDTH, THREADGROUP_BYTES};
use crate::server::Kernel;
use anyhow::{Context, Result, bail};
use std::fmt::Write as _;
use std::path::Path;

/// One kernel's line.
#[derive(Clone, Debug)]
pub struct Row {
    /// Op, pass, plan, dtype and options that first launched it.
    pub label: String,
    /// The entry function's name, which is the file's as well.
    pub entry: String,
    /// The columns of numbers, or nothing when the kernel could not be lowered.
    pub facts: Option<Lowered>,
    /// Why the kernel is not within an Apple GPU's budget; empty when it is.
    pub problems: Vec<String>,
}

/// The rows of `kernels`, in their order.
pub fn rows(kernels: &[Kernel]) -> Vec<Row> {
    kernels.iter().map(row).collect()
}

fn row(kernel: &Kernel) -> Row {
    let label = kernel.label.clone();
    match &kernel.lowered {
        Ok(lowered) => Row {
            label,
            entry: lowered.facts.entry.clone(),
            facts: Some(lowered.clone()),
            problems: violations(lowered),
        },
        Err(reason) => {
            let first = reason.lines().next().unwrap_or("no reason");
            let problems = vec![format!("did not lower: {first}")];
            Row { label, entry: kernel.file_stem(), facts: None, problems }
        }
    }
}

/// The words for what a kernel uses beyond plain loads, stores and arithmetic.
fn uses(lowered: &Lowered) -> String {
    let facts = &lowered.facts;
    let words = [(facts.matrices, "matrix"), (facts.simd, "simd"), (facts.wide, "64-bit")];
    let used: Vec<_> = words.iter().filter(|(used, _)| *used).map(|(_, word)| *word).collect();
    used.join(" ")
}

/// The table for a terminal: one line per kernel, then a summary.
pub fn table(rows: &[Row], launches: usize) -> String {
    let width = |column: fn(&Row) -> &str| rows.iter().map(|row| column(row).len()).max().unwrap_or(0);
    let (labels, entries) = (width(|row| &row.label), width(|row| &row.entry));
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{:labels$}  {:entries$}  threads  simdgroups  threadgroup bytes  bindings  barriers  uses",
        "launched by", "kernel"
    );
    for row in rows {
        let _ = write!(text, "{:labels$}  {:entries$}", row.label, row.entry);
        if let Some(lowered) = &row.facts {
            let facts = &lowered.facts;
            let threads = lowered.thread_count();
            let _ = write!(
                text,
                "  {threads:7}  {:10}  {:17}  {:8}  {:8}  {}",
                threads.div_ceil(u64::from(SIMD_WIDTH)),
                facts.threadgroup_bytes,
                facts.bindings,
                facts.barriers,
                uses(lowered)
            );
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
        for problem in &row.problems {
            let _ = writeln!(text, "    over budget: {problem}");
        }
    }
    let over = rows.iter().filter(|row| !row.problems.is_empty()).count();
    let largest = |number: fn(&Lowered) -> u64| {
        rows.iter().filter_map(|row| row.facts.as_ref()).map(number).max().unwrap_or(0)
    };
    let _ = writeln!(
        text,
        "{} kernels from {launches} launches; at most {} of {THREADGROUP_BYTES} threadgroup bytes, {} threads, {} \
         bindings; {over} over budget",
        rows.len(),
        largest(|lowered| lowered.facts.threadgroup_bytes as u64),
        largest(Lowered::thread_count),
        largest(|lowered| lowered.facts.bindings as u64),
    );
    text
}

/// Writes `<entry>.metal` for each kernel and `kernels.csv` into `folder`, replacing the texts of an earlier run.
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
        "label",
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
        if let Some(lowered) = &row.facts {
            let path = folder.join(format!("{}.metal", row.entry));
            std::fs::write(&path, &lowered.msl)
                .with_context(|| format!("cannot write {}", path.display()))?;
            let facts = &lowered.facts;
            numbers = [
                lowered.thread_count().to_string(),
                facts.threadgroup_bytes.to_string(),
                facts.bindings.to_string(),
                facts.barriers.to_string(),
                uses(lowered),
            ];
        }
        let mut record = vec![row.label.clone(), row.entry.clone()];
        record.extend(numbers);
        record.push(row.problems.join("; "));
        csv.write_record(record)?;
    }
    csv.flush().with_context(|| format!("cannot write {}", table.display()))
}

/// Passes when every kernel of `rows` is within budget and no launch was refused.
///
/// # Errors
///
/// The two counts.
pub fn verdict(rows: &[Row], refused: &[String]) -> Result<()> {
    let over = rows.iter().filter(|row| !row.problems.is_empty()).count();
    if over + refused.len() > 0 {
        bail!("{over} kernels are over an Apple GPU's budget, {} launches were refused", refused.len());
    }
    Ok(())
}
