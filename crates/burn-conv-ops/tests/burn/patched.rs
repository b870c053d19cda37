//! `patch` where it cannot work: a build without Burn's fusion layer says so. `tests/patch` has the other
//! builds.

use burn_conv_ops::patch::report;
use burn_conv_ops::{PatchError, is_patched, patch_conv3d, unpatch};

#[test]
fn without_the_fusion_layer_patch_is_an_error() {
    let error = patch_conv3d().expect_err("there is no fusion layer");
    assert_eq!(error, PatchError::NoFusion);
    assert!(error.to_string().contains("features `fusion` and `wgpu`, `cuda` or `rocm`"), "{error}");
    unpatch();
    assert!(!is_patched());
    assert_eq!((report().recorded(), report().served()), (0, 0));
}
