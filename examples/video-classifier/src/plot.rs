//! The loss and accuracy of a run as an SVG.

use std::path::Path;

use anyhow::Result;
use example_common::plot::SeriesLabelPosition::MiddleRight;
use example_common::plot::{Panel, draw, from_zero, read_metric};

/// Draws the run in `artifacts`, up to epoch `finished`, to `path`.
pub(crate) fn draw_run(artifacts: &Path, finished: usize, path: &Path) -> Result<()> {
    let loss = read_metric(artifacts, "Loss", finished)?;
    let accuracy = read_metric(artifacts, "Accuracy", finished)?;
    let panels = [
        Panel { title: "cross-entropy loss", y: from_zero(&loss), curves: &loss, legend: MiddleRight },
        Panel { title: "accuracy, %", y: 0.0..100.0, curves: &accuracy, legend: MiddleRight },
    ];
    draw(&panels, path)
}
