//! What the examples share: options, choice of the device, batches, training, progress, pictures, moving
//! shapes, plots and the folder of a run.

pub mod cli;
pub mod device;
pub mod images;
pub mod loader;
pub mod plot;
pub mod progress;
pub mod run_folder;
pub mod shapes;
pub mod sheet;
pub mod train;
