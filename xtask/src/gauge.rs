//! What every emitted kernel asks of an M1's GPU, by the offline compiler of `tools/agx-gauge`, and what got
//! worse since the record in docs/gauge.csv. Optional: needs the tool's `setup`, once.

use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::Command;

/// Measures the kernels in `texts`. Without a filter the figures become the record, unless some got worse and
/// `accept` is not set.
///
/// # Errors
/// The tool is not set up, a kernel does not compile, or one got worse.
pub(crate) fn run(root: &Path, texts: &Path, filter: Option<&str>, accept: bool) -> Result<()> {
    let record = root.join("docs/gauge.csv");
    let figures = texts.with_file_name("gauge.csv");
    let mut command = Command::new(root.join("tools/agx-gauge/gauge"));
    command.args(["--worst", "20", "--csv"]).arg(&figures);
    if let Some(filter) = filter {
        command.args(["--filter", filter]);
    }
    if record.exists() {
        command.arg("--compare").arg(&record);
    }
    let status = command.arg(texts).status().context("tools/agx-gauge/gauge could not be started")?;
    if !status.success() && !accept {
        bail!(
            "kernels got worse or did not compile, or the tool is not set up (tools/agx-gauge/setup); figures: {}; \
             `--accept` makes them the record",
            figures.display()
        );
    }
    if filter.is_none() {
        std::fs::copy(&figures, &record)
            .with_context(|| format!("{} could not be written", record.display()))?;
    }
    Ok(())
}
