//! Every kernel under every plan against the f64 references, on a real device.

mod conv3d;
mod support;
