//! The switch: what is taken, from when, and what was counted.
//!
//! Burn caches the plans that a provider's fuser makes, so the kinds of operations that plans claim are fixed
//! when the first stream begins ([`CLAIMED`]). Whether a claimed operation runs here or falls back to Burn's
//! is decided later, at the start of each block of operations ([`SETTINGS`]).

mod op;
mod predict;
mod provider;
mod run;
mod segment;
mod watch;

use super::{BurnSeconds, PatchError, PatchOptions, Report};
use burn_cubecl::fusion::{RegistryError, register};
use conv_kernels::conv3d::Algorithm;
use op::Kind;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError, RwLock};

/// Kinds of operations as bits: ranks 1 to 3, then the transposed ones.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Kinds(u8);

impl Kinds {
    const NONE: Self = Self(0);

    fn of(options: &PatchOptions) -> Self {
        let ranks = [options.conv1d, options.conv2d, options.conv3d];
        let bits = ranks.iter().enumerate().map(|(index, taken)| u8::from(*taken) << index).sum::<u8>();
        Self(if options.transposed { bits | bits << 3 } else { bits })
    }

    fn contains(self, kind: Kind) -> bool {
        let transposed = if kind.is_transposed() { 3 } else { 0 };
        self.0 >> (kind.rank - 1 + transposed) & 1 == 1
    }

    /// The names of these kinds without those of `others`.
    fn names_without(self, others: Self) -> String {
        let names =
            ["conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"];
        let missing = self.0 & !others.0;
        let names = names.iter().enumerate().filter(|(index, _)| missing >> index & 1 == 1);
        names.map(|(_, name)| *name).collect::<Vec<_>>().join(", ")
    }
}

/// What is taken now.
#[derive(Clone, Copy)]
struct Settings {
    kinds: Kinds,
    algorithm: Algorithm,
    /// What predicts Burn's op; none where no call is left for its speed.
    burn_seconds: Option<BurnSeconds>,
}

const OFF: Settings = Settings { kinds: Kinds::NONE, algorithm: Algorithm::Auto, burn_seconds: None };

static SETTINGS: RwLock<Settings> = RwLock::new(OFF);
/// The kinds that plans claim: grows until the first stream begins.
static CLAIMED: AtomicU8 = AtomicU8::new(0);
/// Whether a stream has begun.
static STARTED: AtomicBool = AtomicBool::new(false);
/// Whether the provider is registered; held by whoever switches.
static REGISTERED: Mutex<bool> = Mutex::new(false);

pub(super) fn patch(options: PatchOptions) -> Result<(), PatchError> {
    let device = options.device.clone().unwrap_or_default();
    if crate::check::cube(&device).is_none() {
        return Err(PatchError::NotCube(format!("{:?}", device.without_autodiff())));
    }
    let kinds = Kinds::of(&options);
    let mut registered = REGISTERED.lock().unwrap_or_else(PoisonError::into_inner);
    let claimed = Kinds(CLAIMED.load(Relaxed));
    let late = kinds.names_without(claimed);
    if STARTED.load(Relaxed) && !late.is_empty() {
        return Err(PatchError::TooLate(late));
    }
    // Before the provider can be asked for a fuser.
    CLAIMED.fetch_or(kinds.0, Relaxed);
    if !*registered {
        if let Err(error) = register(provider::Provider) {
            CLAIMED.store(claimed.0, Relaxed);
            return Err(match error {
                RegistryError::ServiceRunning => PatchError::TooLate(late),
                RegistryError::DuplicateOptimization { name } => PatchError::NameTaken(name),
            });
        }
        *registered = true;
    }
    set(Settings { kinds, algorithm: options.algorithm, burn_seconds: predict::of(&options) });
    watch::begin();
    Ok(())
}

pub(super) fn unpatch() {
    let _switching = REGISTERED.lock().unwrap_or_else(PoisonError::into_inner);
    set(OFF);
    watch::end();
}

pub(super) fn is_patched() -> bool {
    settings().kinds != Kinds::NONE
}

pub(super) fn report() -> Report {
    watch::report()
}

fn set(settings: Settings) {
    *SETTINGS.write().unwrap_or_else(PoisonError::into_inner) = settings;
}

fn settings() -> Settings {
    *SETTINGS.read().unwrap_or_else(PoisonError::into_inner)
}
