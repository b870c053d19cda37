//! What the examples share: choice of the device, batches, progress, pictures, moving shapes, plots and the
//! folder of a run.

pub mod cli;
pub mod device;
pub mod images;
pub mod loader;
pub mod plot;
pub mod progress;
pub mod run_folder;
pub mod shapes;
