//! Every kernel under every plan against the f64 references, on a real device.

mod conv3d;
mod conv3d_behaviour;
mod conv3d_reference;
mod errors;
mod support;
