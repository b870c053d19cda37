//! The device under test.

use cubecl::prelude::*;
use std::sync::OnceLock;

/// The device under test: the default GPU, else the software rasterizer.
pub(crate) fn client() -> Client {
    static CLIENT: OnceLock<Result<Client, String>> = OnceLock::new();
    CLIENT
        .get_or_init(|| {
            use cubecl::device::WgpuDeviceKind::{Cpu, DefaultDevice};
            std::panic::catch_unwind(|| {
                #[cfg(feature = "vulkan")]
                let open = cubecl::Device::vulkan;
                #[cfg(not(feature = "vulkan"))]
                let open = cubecl::Device::wgpu;
                open(DefaultDevice).or_else(|_| open(Cpu)).map(|device| device.client())
            })
            .map_err(|_| ())
            .and_then(|client| client.map_err(|_| ()))
            .map_err(|()| {
                "no GPU adapter was found: install a Vulkan driver (Debian and Ubuntu: `apt-get install \
                 mesa-vulkan-drivers`, or run `cargo xtask test`, which does it)"
                    .to_string()
            })
        })
        .clone()
        .unwrap_or_else(|message| panic!("{message}"))
}

/// Launches of each plan in tests of bitwise reproducibility; `quick` on a software device in the quick tier.
pub(crate) fn repeats(limits: &conv_kernels::Limits, quick: usize) -> usize {
    // Only software devices limit loop iterations.
    if limits.loop_iterations.is_some() && !conv_testing::is_full() { quick } else { 1_000 }
}

/// The most multiply-adds of a plan in a case of a table, padding of its tiles included: tens of thousands of
/// nearly empty tiles (65,537 groups) would take a software device minutes. The direct plan always runs.
pub(crate) const MOST_WORK: usize = 500_000_000;

/// Whether this is the Metal executor on the CPU, which leaves sums over millions of elements to other
/// devices.
pub(crate) const EXECUTED: bool = false;
