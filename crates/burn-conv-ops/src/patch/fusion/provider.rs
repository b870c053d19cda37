//! The fuser that claims blocks of operations with a convolution in them.

use super::op::Call;
use super::segment::{AnyFuser, Segment, burns};
use super::{CLAIMED, Kinds, STARTED};
use burn::backend::fusion::{FuserProperties, FuserStatus, OperationFuser};
use burn::backend::ir::OperationIr;
use burn_cubecl::CubeDevice;
use burn_cubecl::fusion::{CubeFuser, CubeOptimization, OptimizationProvider};
use std::sync::atomic::Ordering::Relaxed;

/// What is registered with Burn.
pub(super) struct Provider;

impl OptimizationProvider for Provider {
    type Operation = Segment;

    fn fuser(&self, device: &CubeDevice) -> CubeFuser {
        STARTED.store(true, Relaxed);
        CubeFuser::new(Fuser { device: device.clone(), ops: Vec::new(), taken: 0 })
    }
}

/// Whether plans claim the operation.
pub(super) fn is_claimed(operation: &OperationIr) -> bool {
    Call::of(operation).is_some_and(|call| Kinds(CLAIMED.load(Relaxed)).contains(call.kind))
}

/// Reads all operations of a block. Closed from the first, so that no block waits for it; Burn goes on
/// telling a closed fuser of operations. It is ready once there is a convolution.
///
/// A fuser that claimed single convolutions would miss some: Burn asks for fusions from the head of a block,
/// and settles a head that nobody fuses together with the operation that closed the last fuser.
#[derive(Clone)]
struct Fuser {
    device: CubeDevice,
    ops: Vec<OperationIr>,
    /// Operations that a segment takes: up to the last convolution, and those behind it that no fuser of
    /// Burn's would begin with. Left out, they would be one-operation blocks, and an order of blocks that
    /// cannot be run makes Burn drop all fusions.
    taken: usize,
}

impl OperationFuser<CubeOptimization> for Fuser {
    fn fuse(&mut self, operation: &OperationIr) {
        let adjoins = self.taken > 0 && self.taken == self.ops.len();
        self.ops.push(operation.clone());
        let begins = |mut fuser: AnyFuser| {
            fuser.fuse(operation);
            fuser.status() == FuserStatus::Open || fuser.properties().ready
        };
        if is_claimed(operation) || adjoins && !burns(&self.device).into_iter().any(begins) {
            self.taken = self.ops.len();
        }
    }

    fn finish(&mut self) -> CubeOptimization {
        CubeOptimization::new(Segment::new(&self.device, self.ops[..self.taken].to_vec()))
    }

    fn reset(&mut self) {
        self.ops.clear();
        self.taken = 0;
    }

    fn status(&self) -> FuserStatus {
        if self.ops.is_empty() { FuserStatus::Open } else { FuserStatus::Closed }
    }

    /// Above any score of Burn's fusers (hundreds), whose work the segment contains.
    fn properties(&self) -> FuserProperties {
        FuserProperties { score: 1 << 40, ready: self.taken > 0 }
    }

    fn len(&self) -> usize {
        self.taken
    }

    fn clone_dyn(&self) -> AnyFuser {
        Box::new(self.clone())
    }
}
