//! The device under test.

use cubecl::prelude::*;
use std::sync::OnceLock;

/// The device under test: the best GPU there is, else the software rasterizer.
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

/// How often calls are repeated that have to give equal bits: a software device takes milliseconds for each.
pub(crate) fn repeats(limits: &conv_kernels::Limits) -> usize {
    if limits.loop_iterations.is_some() { 60 } else { 10_000 }
}

/// Products a plan may compute in a table's case, padding of its tiles included: tens of thousands of nearly
/// empty tiles (65,537 groups) would take a software device minutes. The direct plan always runs.
pub(crate) const MOST_WORK: usize = 500_000_000;

/// Whether threads are executed on the CPU: sums of millions of terms are left to other devices.
pub(crate) const EXECUTED: bool = false;
