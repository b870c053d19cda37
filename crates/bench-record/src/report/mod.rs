//! A record as one HTML page that needs nothing next to it: summaries, plots as inline SVG, every row.

mod dots;
mod page;
mod roofline;
mod select;

use crate::Record;
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;

/// A plot of the page.
#[derive(Clone, Debug)]
pub struct Plot {
    /// Name of its file, without the extension.
    pub name: String,
    /// What it shows.
    pub title: String,
    /// The SVG document.
    pub svg: String,
}

/// Writes the page, and each plot into a folder of its own where one is given.
///
/// # Errors
/// When a plot cannot be drawn or a file cannot be written.
pub fn write(records: &[Record], title: &str, path: &Path, folder: Option<&Path>) -> Result<()> {
    anyhow::ensure!(!records.is_empty(), "{title} has no row: there is nothing to report");
    let plots = plots(records)?;
    let save = |path: &Path, text: &str| {
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    save(path, &page::page(records, title, &plots))?;
    println!("{} rows, {} plots: {}", records.len(), plots.len(), path.display());
    if let Some(folder) = folder {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        for plot in &plots {
            save(&folder.join(format!("{}.svg", plot.name)), &plot.svg)?;
        }
    }
    Ok(())
}

/// Every plot that the rows have values for.
///
/// # Errors
/// When one cannot be drawn.
pub fn plots(records: &[Record]) -> Result<Vec<Plot>> {
    let mut plots = Vec::new();
    for dtype in select::distinct(records, |record| &record.dtype) {
        plots.extend(roofline::plot(records, dtype)?);
        for op in select::distinct(records, |record| &record.op) {
            for peer in select::distinct(records, |record| &record.implementation) {
                plots.extend(dots::peer_plot(records, op, dtype, peer)?);
            }
            plots.extend(dots::share_plot(records, op, dtype)?);
        }
    }
    Ok(plots)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A layer that operations bind and a sequence that bytes bind, ours and a peer's.
    pub(super) fn rows() -> Vec<Record> {
        let row = |op: &str, implementation: &str, median: f64, gflops: f64, gbps: f64, share: f64| Record {
            op: op.into(),
            case: format!("{op} <layer>"),
            dtype: "f32".into(),
            pass: "fwd".into(),
            implementation: implementation.into(),
            device: "Device & Co".into(),
            median_ms: Some(median),
            gflops: Some(gflops),
            gbps: Some(gbps),
            share_of_limit: Some(share),
            ..Record::default()
        };
        vec![
            row("conv3d", "ours", 1.0, 30_000.0, 100.0, 0.5),
            row("conv3d", "burn", 4.0, 7_500.0, 25.0, 0.125),
            row("causal_conv1d", "ours", 0.1, 4_000.0, 3_600.0, 0.9),
        ]
    }

    #[test]
    fn the_page_holds_every_plot_and_row_and_needs_no_other_file() {
        let folder = tempfile::tempdir().unwrap();
        let page = folder.path().join("page.html");
        write(&rows(), "2026-01-01-device", &page, Some(&folder.path().join("plots"))).unwrap();
        let text = fs::read_to_string(&page).unwrap();
        let names: Vec<_> = plots(&rows()).unwrap().into_iter().map(|plot| plot.name).collect();
        assert_eq!(names, ["roofline-f32", "conv3d-f32-burn", "causal_conv1d-f32-share"]);
        assert_eq!(text.matches("<svg").count(), names.len());
        assert!(text.contains("conv3d &lt;layer&gt;") && text.contains("Device &amp; Co"));
        assert!(!text.contains("<layer") && !text.contains("src=") && !text.contains("href=\"http"));
        for name in names {
            assert!(folder.path().join("plots").join(format!("{name}.svg")).exists(), "{name}");
        }
        assert!(write(&[], "empty", &page, None).unwrap_err().to_string().contains("empty has no row"));
    }
}
