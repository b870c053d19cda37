//! Counts convolutions as Burn runs them, and fixes for each block whether it is taken.
//!
//! Burn tells an observer of every block that starts, fused or not, on the thread that runs it. The observer
//! reads the switch once per block; what it counts as recorded and what the block's segment serves both
//! follow that reading.

use super::op::{Call, Kind};
use super::predict::Left;
use super::{OFF, Settings};
use crate::patch::{OpCount, Report};
use burn::backend::fusion::observer::{BlockOperations, FusionObservation, FusionObserver};
use burn::backend::ir::OperationIr;
use log::info;
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

type Counters = [AtomicU64; Kind::COUNT];

static RECORDED: Counters = [const { AtomicU64::new(0) }; Kind::COUNT];
static SERVED: Counters = [const { AtomicU64::new(0) }; Kind::COUNT];
static DECLINED: Counters = [const { AtomicU64::new(0) }; Kind::COUNT];
static SLOWER: Counters = [const { AtomicU64::new(0) }; Kind::COUNT];
static OBSERVATION: Mutex<Option<FusionObservation>> = Mutex::new(None);

static MISSED: [AtomicBool; Kind::COUNT] = [const { AtomicBool::new(false) }; Kind::COUNT];

thread_local! {
    static BLOCK: Cell<Settings> = const { Cell::new(OFF) };
    /// Convolutions of the block, by kind, that have neither run here nor been left for a reason.
    static UNSEEN: Cell<[u64; Kind::COUNT]> = const { Cell::new([0; Kind::COUNT]) };
}

/// One convolution of the block is accounted for.
fn seen(kind: Kind) {
    let mut unseen = UNSEEN.get();
    unseen[kind.index()] = unseen[kind.index()].saturating_sub(1);
    UNSEEN.set(unseen);
}

/// Starts counting, where that has not begun.
pub(super) fn begin() {
    let mut observation = OBSERVATION.lock().unwrap_or_else(PoisonError::into_inner);
    observation.get_or_insert_with(|| FusionObservation::new(Arc::new(Watch)));
}

pub(super) fn end() {
    *OBSERVATION.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

/// What is taken of the block that this thread runs.
pub(super) fn of_block() -> Settings {
    BLOCK.get()
}

/// An operation ran here.
pub(super) fn served(kind: Kind) {
    seen(kind);
    if SERVED[kind.index()].fetch_add(1, Relaxed) == 0 {
        info!(target: "burn_conv_ops", "patch: {} runs on the kernels of burn-conv-ops", kind.name());
    }
}

/// An operation was left to Burn; each of the two reasons has a line.
pub(super) fn left(kind: Kind, reason: &Left) {
    seen(kind);
    let counters = match reason {
        Left::Refused(_) => &DECLINED,
        Left::Slower { .. } => &SLOWER,
    };
    if counters[kind.index()].fetch_add(1, Relaxed) == 0 {
        info!(target: "burn_conv_ops", "patch: a {} was left to Burn: {reason}", kind.name());
    }
}

pub(super) fn report() -> Report {
    let count = |(index, op): (usize, &&'static str)| {
        let [recorded, served, declined, slower] =
            [&RECORDED, &SERVED, &DECLINED, &SLOWER].map(|counters| counters[index].load(Relaxed));
        OpCount { op, recorded, served, declined, slower }
    };
    Report { ops: Kind::NAMES.iter().enumerate().map(count).collect() }
}

struct Watch;

impl FusionObserver for Watch {
    fn registered(&self, _: &OperationIr) {}

    fn block_starts(&self, block: BlockOperations<'_>) {
        let settings = super::settings();
        BLOCK.set(settings);
        let mut unseen = [0; Kind::COUNT];
        for call in block.iter().filter_map(Call::of).filter(|call| settings.kinds.contains(call.kind)) {
            RECORDED[call.kind.index()].fetch_add(1, Relaxed);
            unseen[call.kind.index()] += 1;
        }
        UNSEEN.set(unseen);
    }

    fn block_ran(&self) {
        BLOCK.set(OFF);
        for (index, unseen) in UNSEEN.get().into_iter().enumerate() {
            if unseen > 0 && !MISSED[index].swap(true, Relaxed) {
                let name = Kind::NAMES[index];
                info!(target: "burn_conv_ops", "patch: a {name} was left to Burn: its block ran without the patch");
            }
        }
    }
}
