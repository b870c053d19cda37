//! What `patch` comes to in a build without Burn's fusion layer or without a GPU backend.

use super::{PatchError, PatchOptions, Report};

pub(super) fn patch(_: PatchOptions) -> Result<(), PatchError> {
    Err(PatchError::NoFusion)
}

pub(super) fn unpatch() {}

pub(super) fn is_patched() -> bool {
    false
}

pub(super) fn report() -> Report {
    Report { ops: Vec::new() }
}
