//! A weight's transformed filters, kept from one call to the next.
//!
//! The value of a Burn parameter never changes: an optimizer's step, a loaded record, a move to another
//! device or an assignment to the field replaces it, and clones of a parameter share it. So filters are
//! cached for a value, not for a module. The cache holds a clone of the parameter that it has transformed,
//! which keeps the value's address from being reused, and serves only the parameter with that address. A
//! changed weight has another address, so nothing has to announce the change.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;
use conv_kernels::conv3d::WinogradTile;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The filters of one weight, or none: what a [`Conv3d`](crate::nn::Conv3d) keeps.
#[derive(Default)]
pub struct FilterCache(Mutex<Option<Filters>>);

#[derive(Clone)]
struct Filters {
    weight: Param<Tensor<5>>,
    tile: WinogradTile,
    transformed: Tensor<4>,
}

impl FilterCache {
    /// The filters of `weight` in `tile`: those that are held, else what `transform` makes of its value,
    /// which are held then.
    pub(crate) fn of(
        &self,
        weight: &Param<Tensor<5>>,
        tile: WinogradTile,
        transform: impl FnOnce(Tensor<5>) -> Tensor<4>,
    ) -> Tensor<4> {
        let mut held = self.lock();
        if let Some(filters) = held.as_ref()
            && filters.tile == tile
            && same_value(&filters.weight, weight)
        {
            return filters.transformed.clone();
        }
        // What is held goes before its successor is made: both are several times as large as the weight.
        *held = None;
        let transformed = transform(weight.val());
        *held = Some(Filters { weight: weight.clone(), tile, transformed: transformed.clone() });
        transformed
    }

    /// Whether filters of `weight` are held.
    pub(crate) fn holds(&self, weight: &Param<Tensor<5>>) -> bool {
        self.lock().as_ref().is_some_and(|filters| same_value(&filters.weight, weight))
    }

    /// Frees what is held of any other weight than this, or of any at all.
    pub(crate) fn keep_only(&self, weight: &Param<Tensor<5>>, keep: bool) {
        let mut held = self.lock();
        if held.as_ref().is_some_and(|filters| !keep || !same_value(&filters.weight, weight)) {
            *held = None;
        }
    }

    /// Frees what is held.
    pub(crate) fn clear(&self) {
        *self.lock() = None;
    }

    /// A panic of `transform` leaves nothing half done, so the lock of one is as good as any.
    fn lock(&self) -> MutexGuard<'_, Option<Filters>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether two parameters share their value. Both are alive, so two values have two addresses.
fn same_value(one: &Param<Tensor<5>>, other: &Param<Tensor<5>>) -> bool {
    std::ptr::eq::<Tensor<5>>(&**one, &**other)
}

/// Whether a parameter's effective value is made from its stored one and from other parameters (LoRA, say),
/// which may change without it.
pub(crate) fn is_composed(weight: &Param<Tensor<5>>) -> bool {
    struct Entered(bool);
    impl ModuleVisitor for Entered {
        fn enter_module(&mut self, _name: &str, _container_type: &str) {
            self.0 = true;
        }
    }
    let mut entered = Entered(false);
    weight.visit(&mut entered);
    entered.0
}

/// A clone holds the same filters and goes its own way from there: two devices' copies of a module do not
/// take turns.
impl Clone for FilterCache {
    fn clone(&self) -> Self {
        Self(Mutex::new(self.lock().clone()))
    }
}

impl fmt::Debug for FilterCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.lock().is_some() { "held" } else { "none" })
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use burn::module::ParamId;
    use burn::tensor::Device;
    use std::cell::Cell;

    const TILE: WinogradTile = WinogradTile::F4x4;

    fn weight(value: f32) -> Param<Tensor<5>> {
        let tensor = Tensor::full([1, 1, 1, 3, 3], value, &Device::flex());
        Param::initialized(ParamId::new(), tensor)
    }

    /// The filters (here the weight's first element) and how often they were made.
    fn ask(cache: &FilterCache, weight: &Param<Tensor<5>>, tile: WinogradTile, made: &Cell<usize>) -> f32 {
        let filters = cache.of(weight, tile, |weight| {
            made.set(made.get() + 1);
            weight.slice([0..1, 0..1, 0..1, 0..1, 0..1]).reshape([1, 1, 1, 1])
        });
        filters.into_scalar()
    }

    #[test]
    fn filters_are_made_once_for_a_value_and_again_for_another() {
        let (cache, made) = (FilterCache::default(), Cell::new(0));
        let first = weight(1.0);
        for _ in 0..3 {
            assert_eq!((ask(&cache, &first, TILE, &made), made.get()), (1.0, 1));
        }
        // A clone shares the value; a mapped parameter keeps the identity and has another value.
        assert_eq!((ask(&cache, &first.clone(), TILE, &made), made.get()), (1.0, 1));
        let id = first.id;
        let mapped = first.map(|value| value * 2.0);
        assert_eq!(mapped.id, id);
        assert!(!cache.holds(&mapped));
        assert_eq!((ask(&cache, &mapped, TILE, &made), made.get()), (2.0, 2));
        assert_eq!((ask(&cache, &mapped, WinogradTile::F2x2, &made), made.get()), (2.0, 3));
    }

    #[test]
    fn clones_hold_their_own_filters() {
        let (cache, made) = (FilterCache::default(), Cell::new(0));
        let [first, second] = [1.0, 2.0].map(weight);
        ask(&cache, &first, TILE, &made);
        let copy = cache.clone();
        assert_eq!((ask(&copy, &second, TILE, &made), made.get()), (2.0, 2));
        assert_eq!((ask(&cache, &first, TILE, &made), made.get()), (1.0, 2));
        cache.keep_only(&first, true);
        assert!(cache.holds(&first));
        cache.keep_only(&second, true);
        assert!(!cache.holds(&first) && copy.holds(&second));
        copy.keep_only(&second, false);
        assert!(!copy.holds(&second));
    }
}
