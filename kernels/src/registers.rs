//! Register arrays: one variable per element, addressed by compile-time indices.
//!
//! CubeCL's `Array` becomes an array in function memory, which NVIDIA's driver leaves in local memory in
//! kernels with 16-bit types, and in any kernel if it is large. A variable per element always gets a
//! register.

use cubecl::prelude::*;

/// An array of variables.
#[derive(CubeType)]
pub(crate) struct Registers<E: CubePrimitive> {
    cells: Sequence<RuntimeCell<E>>,
}

#[cube]
impl<E: CubePrimitive> Registers<E> {
    /// `count` variables with the value `start`.
    pub(crate) fn new(#[comptime] count: usize, start: E) -> Self {
        let mut cells = Sequence::<RuntimeCell<E>>::new();
        #[unroll]
        for _ in 0..count {
            cells.push(RuntimeCell::<E>::new(start));
        }
        Registers::<E> { cells }
    }

    /// One variable for each value.
    pub(crate) fn from_values(values: &Sequence<E>) -> Self {
        let mut cells = Sequence::<RuntimeCell<E>>::new();
        #[unroll]
        for i in 0..values.len() {
            cells.push(RuntimeCell::<E>::new(*values.index(i)));
        }
        Registers::<E> { cells }
    }

    /// The current values.
    pub(crate) fn values(&self) -> Sequence<E> {
        let mut values = Sequence::<E>::new();
        #[unroll]
        for i in 0..self.cells.len() {
            values.push(self.get(i));
        }
        values
    }

    /// Stores all values.
    pub(crate) fn set_all(&self, values: &Sequence<E>) {
        #[unroll]
        for i in 0..values.len() {
            self.set(i, *values.index(i));
        }
    }

    /// Element `index`.
    pub(crate) fn get(&self, #[comptime] index: usize) -> E {
        self.cells.index(index).read()
    }

    /// Element i takes the value of element i - `by`; the first `by` elements keep theirs.
    pub(crate) fn shift(&self, #[comptime] by: usize) {
        #[unroll]
        for i in 0..comptime!(self.cells.len() - by) {
            let to = comptime!(self.cells.len() - 1 - i);
            self.set(to, self.get(comptime!(to - by)));
        }
    }

    /// Copies elements `index`, `index + step`, .. of `self` to `into`; `index`, known at run time, is one of
    /// the `count` from `first` on. A tree of branches, for loops whose text is to be short.
    pub(crate) fn choose(
        &self,
        into: &Registers<E>,
        index: u32,
        #[comptime] first: usize,
        #[comptime] count: usize,
        #[comptime] step: usize,
    ) {
        if comptime!(count == 1) {
            #[unroll]
            for i in 0..into.cells.len() {
                into.set(i, self.get(comptime!(first + i * step)));
            }
        } else {
            let second = comptime!(first + count / 2);
            if index < comptime!(second as u32) {
                self.choose(into, index, first, comptime!(count / 2), step);
            } else {
                self.choose(into, index, second, comptime!(count - count / 2), step);
            }
        }
    }

    /// Stores element `index`.
    pub(crate) fn set(&self, #[comptime] index: usize, value: E) {
        self.cells.index(index).store(value);
    }
}
