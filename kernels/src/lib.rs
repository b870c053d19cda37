//! Placeholder.
pub mod conv3d;
mod dtype;
mod error;
mod geometry;
mod grid;
mod limits;
mod operand;
pub use dtype::FloatType;
pub use error::ConvError;
pub use geometry::AxisGeometry;
pub use limits::Limits;
pub use operand::{Operand, row_major};
