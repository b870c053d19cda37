//! The operations of a block: convolutions, and what Burn's own fusers make of the others.

use super::op::Call;
use super::provider::is_claimed;
use super::{run, watch};
use burn::backend::fusion::stream::Context;
use burn::backend::fusion::{FuserStatus, NumOperations, OperationFuser};
use burn::backend::ir::{OperationIr, TensorStatus};
use burn_cubecl::CubeDevice;
use burn_cubecl::fusion::{CubeFusionHandle, CubeOptimization, FallbackOperation, FusedOperation};
use burn_cubecl_fusion::optim::{elemwise, matmul, nhwc_relayout, reduce, reduce_broadcasted};

pub(super) type AnyFuser = Box<dyn OperationFuser<CubeOptimization>>;

/// Fresh fusers of Burn's own, as its registry lists them.
fn burn_fusers(device: &CubeDevice) -> [AnyFuser; 5] {
    let device = || device.clone();
    [
        Box::new(elemwise::ElementWiseFuser::new(device())),
        Box::new(matmul::MatmulFuser::new(device())),
        Box::new(reduce::ReduceFuser::new(device(), reduce::ReduceSettings::Always)),
        Box::new(reduce_broadcasted::ReduceBroadcastedFuser::new(device())),
        Box::new(nhwc_relayout::NHWCRelayoutFuser::new(device())),
    ]
}

pub(super) struct Segment {
    ops: Vec<OperationIr>,
    /// Burn's fusions, each at the first operation that it takes.
    fused: Vec<Option<CubeOptimization>>,
    /// What was decided for each operation when it last ran.
    last: Vec<run::Last>,
}

impl Segment {
    pub(super) fn new(device: &CubeDevice, ops: Vec<OperationIr>) -> Self {
        let (mut fused, mut at) = (Vec::new(), 0);
        fused.resize_with(ops.len(), || None::<CubeOptimization>);
        while at < ops.len() {
            let mut fusers = burn_fusers(device);
            for operation in ops[at..].iter().take_while(|operation| !is_claimed(operation)) {
                fusers.iter_mut().for_each(|fuser| fuser.fuse(operation));
                if fusers.iter().all(|fuser| fuser.status() == FuserStatus::Closed) {
                    break;
                }
            }
            let ready = fusers.iter_mut().filter(|fuser| {
                let properties = fuser.properties();
                properties.ready && properties.score > 0 && !fuser.is_empty()
            });
            fused[at] = ready.max_by_key(|fuser| fuser.properties().score).map(|best| best.finish());
            at += covered(&fused[at]);
        }
        let mut last = Vec::new();
        last.resize_with(ops.len(), run::Last::default);
        Self { ops, fused, last }
    }
}

/// Operations of a fusion; where there is none, a single one.
fn covered(fused: &Option<CubeOptimization>) -> usize {
    fused.as_ref().map_or(1, |fused| fused.num_ops_fused())
}

impl FusedOperation for Segment {
    const NAME: &'static str = "burn-conv-ops";

    type State = Vec<OperationIr>;

    fn num_ops_fused(&self) -> usize {
        self.ops.len()
    }

    fn max_relative_shape_id(&self) -> Option<usize> {
        self.fused.iter().flatten().filter_map(|fused| fused.max_relative_shape_id()).max()
    }

    fn run(
        &mut self,
        context: &mut Context<CubeFusionHandle>,
        fallback: &dyn Fn(usize) -> Box<dyn FallbackOperation>,
    ) {
        let settings = watch::of_block();
        let mut at = 0;
        while let Some(operation) = self.ops.get(at) {
            let first = at;
            at += covered(&self.fused[first]);
            if let Some(fused) = &mut self.fused[first] {
                fused.run(context, &|index| fallback(first + index));
                continue;
            }
            let call = Call::of(operation).filter(|call| settings.kinds.contains(call.kind));
            let Some(call) = call else {
                fallback(first).run(context);
                continue;
            };
            match run::serve(&call, settings.algorithm, settings.burn_seconds, &mut self.last[first], context)
            {
                Ok(()) => watch::served(call.kind),
                Err(reason) => {
                    watch::left(call.kind, &reason);
                    fallback(first).run(context);
                    continue;
                }
            }
            // Burn's own operation drops what it reads for the last time. So does this, but after success
            // only: a fallback still needs it.
            for ir in operation.inputs().filter(|ir| ir.status == TensorStatus::ReadWrite) {
                context.handles.remove_handle(context.tensors[&ir.id].id);
            }
        }
    }

    fn to_state(&self) -> Self::State {
        self.ops.clone()
    }

    fn from_state(device: &CubeDevice, state: Self::State) -> Self {
        Self::new(device, state)
    }
}
