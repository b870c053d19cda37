//! What the examples share: options, choice of the device, random numbers, batches, training, progress,
//! pictures, moving shapes, plots, the folder of a run, and what their command lines' tests do.

pub mod cli;
pub mod device;
pub mod images;
pub mod loader;
pub mod plot;
pub mod program;
pub mod progress;
pub mod random;
pub mod run_folder;
pub mod shapes;
pub mod sheet;
pub mod train;
