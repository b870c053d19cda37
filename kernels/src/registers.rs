//! Numbers that stay in registers: variables addressed by compile-time indices.
//!
//! CubeCL's `Array` becomes an array in function memory. NVIDIA's driver leaves such arrays there in kernels
//! with 16-bit types, and the larger ones in any kernel; a variable of its own for each element always gets a
//! register.

use cubecl::prelude::*;

/// `count` variables.
#[derive(CubeType)]
pub(crate) struct Registers<E: CubePrimitive> {
    cells: Sequence<RuntimeCell<E>>,
}

#[cube]
impl<E: CubePrimitive> Registers<E> {
    /// All with the value `start`.
    pub(crate) fn new(#[comptime] count: usize, start: E) -> Self {
        let mut cells = Sequence::<RuntimeCell<E>>::new();
        #[unroll]
        for _ in 0..count {
            cells.push(RuntimeCell::<E>::new(start));
        }
        Registers::<E> { cells }
    }

    /// With these values.
    pub(crate) fn of(values: &Sequence<E>) -> Self {
        let mut cells = Sequence::<RuntimeCell<E>>::new();
        #[unroll]
        for i in 0..values.len() {
            cells.push(RuntimeCell::<E>::new(*values.index(i)));
        }
        Registers::<E> { cells }
    }

    /// The values.
    pub(crate) fn all(&self) -> Sequence<E> {
        let mut values = Sequence::<E>::new();
        #[unroll]
        for i in 0..self.cells.len() {
            values.push(self.get(i));
        }
        values
    }

    /// Takes these values.
    pub(crate) fn keep(&self, values: &Sequence<E>) {
        #[unroll]
        for i in 0..values.len() {
            self.set(i, *values.index(i));
        }
    }

    pub(crate) fn get(&self, #[comptime] index: usize) -> E {
        self.cells.index(index).read()
    }

    /// Every cell takes the value of the one `by` before it; the first `by` keep theirs.
    pub(crate) fn shift(&self, #[comptime] by: usize) {
        #[unroll]
        for i in 0..comptime!(self.cells.len() - by) {
            let to = comptime!(self.cells.len() - 1 - i);
            self.set(to, self.get(comptime!(to - by)));
        }
    }

    pub(crate) fn set(&self, #[comptime] index: usize, value: E) {
        self.cells.index(index).store(value);
    }
}
