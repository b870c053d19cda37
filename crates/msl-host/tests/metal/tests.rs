//! Kernels of these tests, executed as emitted MSL on this machine's CPU.

mod divisions;
mod example;
mod machine;
