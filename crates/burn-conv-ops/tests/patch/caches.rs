//! What the cache of a stream keeps in memory.

use crate::support::{cube, gpu, normal, owned};
use burn_conv_ops::{CausalConv3dOptions, causal_conv3d};
use cubecl_runtime::memory_management::MemoryScope;

/// The cache behind a piece of eight frames holds two of them, whether Burn's slice of x is a view (frames of
/// 4 KiB) or a copy.
pub(crate) fn a_cache_holds_its_own_frames() {
    let (device, client) = (gpu(), cube().client());
    let in_use = || {
        device.sync().expect("the device works");
        client.memory_report(MemoryScope::Device).usage().bytes_in_use
    };
    let options = CausalConv3dOptions::new().with_plane_padding(1);
    for size in [32, 33] {
        let weight = normal(2, [8, 8, 3, 3, 3], &device);
        owned(weight.clone());
        let before = in_use();
        let x = normal(1, [1, 8, 8, size, size], &device);
        let (y, cache) = causal_conv3d(x.clone(), weight.clone(), None, None, options);
        owned(y);
        let last = owned(x.narrow(2, 6, 2));
        let (held, frames) = (in_use() - before, (2 * 8 * size * size * 4) as u64);
        assert!((frames..frames + 8192).contains(&held), "{held} bytes for {frames} at {size}x{size}");
        assert_eq!(owned(cache), last);
    }
}
