//! The fuser that claims blocks of operations with a convolution in them.

use super::op::Call;
use super::segment::{AnyFuser, Segment};
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
        CubeFuser::new(Fuser { device: device.clone(), ops: Vec::new(), claims: false })
    }
}

/// Whether plans claim the operation.
pub(super) fn is_claimed(operation: &OperationIr) -> bool {
    Call::of(operation).is_some_and(|call| Kinds(CLAIMED.load(Relaxed)).contains(call.kind))
}

/// Operations after which a block ends at its next convolution.
const ENOUGH: usize = 128;
/// Operations after which it ends at any.
const MOST: usize = 1024;

/// Reads all operations of a block, and takes all once there is a convolution.
///
/// Open from its first convolution until [`ENOUGH`] operations. Burn joins two blocks that an operation reads
/// from while a fuser of theirs is open. It keeps apart blocks whose fusers have all closed, and where one of
/// these then frees what another reads, it drops every fusion of both: most gradients of a U-Net, whose skip
/// connections are such operations. A block without a convolution never waits for this fuser.
///
/// A fuser that claimed single convolutions would miss some: Burn asks for fusions from the head of a block,
/// and settles a head that nobody fuses together with the operation that closed the last fuser. One that left
/// what follows the last convolution would too: Burn makes one unit of the operations that all blocks leave,
/// and drops every fusion where a convolution reads from that unit and the unit from the convolution.
#[derive(Clone)]
struct Fuser {
    device: CubeDevice,
    ops: Vec<OperationIr>,
    /// Whether there is a convolution among them.
    claims: bool,
}

impl OperationFuser<CubeOptimization> for Fuser {
    fn fuse(&mut self, operation: &OperationIr) {
        self.ops.push(operation.clone());
        self.claims |= is_claimed(operation);
    }

    fn finish(&mut self) -> CubeOptimization {
        CubeOptimization::new(Segment::new(&self.device, self.ops.clone()))
    }

    fn reset(&mut self) {
        self.ops.clear();
        self.claims = false;
    }

    fn status(&self) -> FuserStatus {
        let Some(last) = self.ops.last() else { return FuserStatus::Open };
        // Past `ENOUGH` closed behind a convolution only: behind other operations blocks would be left apart.
        let enough = self.ops.len() >= ENOUGH && is_claimed(last) || self.ops.len() >= MOST;
        if self.claims && !enough { FuserStatus::Open } else { FuserStatus::Closed }
    }

    /// Above any score of Burn's fusers (hundreds), whose work the segment contains.
    fn properties(&self) -> FuserProperties {
        FuserProperties { score: 1 << 40, ready: self.claims }
    }

    fn len(&self) -> usize {
        self.ops.len()
    }

    fn clone_dyn(&self) -> AnyFuser {
        Box::new(self.clone())
    }
}
