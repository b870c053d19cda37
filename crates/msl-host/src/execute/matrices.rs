//! Simdgroup matrices, 8 x 8 elements each.
//!
//! A thread holds no elements: it identifies a matrix by its offset on the thread's stack, which is the same
//! in every lane. The first lane that reaches an operation performs it for the whole simdgroup and records
//! it; no lane waits. The other lanes must execute the same operations in the same order, which is checked
//! against the record, and equally many of them when the simdgroup synchronizes.
//!
//! Memory accesses are those of 32 threads: each lane stores its own two elements when it reaches the store,
//! and the two elements that it loads must still be what the first lane loaded. An uninitialized matrix holds
//! NaN.

use super::fiber::{self, LANES};
use half::{bf16, f16};
use std::ffi::{c_int, c_void};

const SIDE: usize = 8;
const ELEMENTS: usize = SIDE * SIDE;
type Matrix = [f32; ELEMENTS];

/// `msl::Format` of the shim.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code, reason = "the shim makes them")]
pub(super) enum Format {
    Float,
    Half,
    Bfloat,
}

impl Format {
    fn round(self, value: f32) -> f32 {
        match self {
            Self::Float => value,
            Self::Half => f16::from_f32(value).to_f32(),
            Self::Bfloat => bf16::from_f32(value).to_f32(),
        }
    }

    fn bytes(self) -> usize {
        if self == Self::Float { 4 } else { 2 }
    }

    /// # Safety
    ///
    /// As for a read of `bytes` bytes, except that a fault ends the running fiber.
    unsafe fn read(self, address: usize) -> u32 {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Self::Float => (address as *const u32).read_unaligned(),
                Self::Half | Self::Bfloat => (address as *const u16).read_unaligned().into(),
            }
        }
    }

    /// # Safety
    ///
    /// As for a write of `bytes` bytes, except that a fault ends the running fiber.
    unsafe fn write(self, address: usize, bits: u32) {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Self::Float => (address as *mut u32).write_unaligned(bits),
                Self::Half | Self::Bfloat => (address as *mut u16).write_unaligned(bits as u16),
            }
        }
    }

    fn decode(self, bits: u32) -> f32 {
        match self {
            Self::Float => f32::from_bits(bits),
            Self::Half => f16::from_bits(bits as u16).to_f32(),
            Self::Bfloat => bf16::from_bits(bits as u16).to_f32(),
        }
    }

    fn encode(self, value: f32) -> u32 {
        match self {
            Self::Float => value.to_bits(),
            Self::Half => f16::from_f32(value).to_bits().into(),
            Self::Bfloat => bf16::from_f32(value).to_bits().into(),
        }
    }
}

/// A matrix in memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MatrixView {
    address: usize,
    stride: usize,
    transpose: bool,
    format: Format,
}

impl MatrixView {
    fn at(&self, row: usize, column: usize) -> usize {
        let (major, minor) = if self.transpose { (column, row) } else { (row, column) };
        let index = major.wrapping_mul(self.stride).wrapping_add(minor);
        self.address.wrapping_add(index.wrapping_mul(self.format.bytes()))
    }
}

/// An operation of a simdgroup. A matrix is identified by its distance from the end of the thread's stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Fill { to: usize, bits: u32 },
    Load { to: usize, format: Format, from: MatrixView, line: c_int },
    Store { from: usize, to: MatrixView, line: c_int },
    Multiply { to: usize, format: Format, of: [usize; 3], line: c_int },
}

/// An operation that was performed, and the index in [`Matrices::memory`] of the elements it loads or stores.
struct Performed {
    operation: Operation,
    memory: usize,
}

/// The matrices of one simdgroup, and the operations performed since its lanes last synchronized.
#[derive(Default)]
pub(super) struct Matrices {
    names: Vec<usize>,
    values: Vec<Matrix>,
    performed: Vec<Performed>,
    memory: Vec<[u32; ELEMENTS]>,
}

impl Matrices {
    /// Resets everything, for another threadgroup.
    pub(super) fn clear(&mut self) {
        self.names.clear();
        self.values.clear();
        self.synchronize();
    }

    /// Drops the record of operations: all lanes have executed equally many.
    pub(super) fn synchronize(&mut self) {
        self.performed.clear();
        self.memory.clear();
    }

    fn value(&mut self, name: usize) -> &mut Matrix {
        let index = self.names.iter().position(|known| *known == name).unwrap_or_else(|| {
            self.names.push(name);
            self.values.push([f32::NAN; ELEMENTS]);
            self.names.len() - 1
        });
        &mut self.values[index]
    }

    /// Performs an operation, for the first lane that reaches it.
    ///
    /// # Safety
    ///
    /// As for [`Format::read`] of the elements that are loaded.
    unsafe fn perform(&mut self, operation: Operation) {
        let number = self.memory.len();
        let places = || (0..ELEMENTS).map(|index| (index, index / SIDE, index % SIDE));
        match operation {
            Operation::Fill { to, bits } => self.value(to).fill(f32::from_bits(bits)),
            Operation::Load { to, format, from, .. } => {
                let mut memory = [0; ELEMENTS];
                for (index, row, column) in places() {
                    // SAFETY: the caller's promise.
                    memory[index] = unsafe { from.format.read(from.at(row, column)) };
                }
                *self.value(to) = memory.map(|bits| from.format.decode(bits));
                if format != from.format {
                    self.value(to).iter_mut().for_each(|value| *value = format.round(*value));
                }
                self.memory.push(memory);
            }
            Operation::Store { from, to, .. } => {
                let memory = self.value(from).map(|value| to.format.encode(value));
                self.memory.push(memory);
            }
            Operation::Multiply { to, format, of, .. } => {
                let [a, b, c] = of.map(|name| *self.value(name));
                let sums = product(&a, &b, c);
                *self.value(to) =
                    if format == Format::Float { sums } else { sums.map(|sum| format.round(sum)) };
            }
        }
        self.performed.push(Performed { operation, memory: number });
    }
}

/// `a * b + c`: each sum in the order of k, by FMA.
fn product(a: &Matrix, b: &Matrix, c: Matrix) -> Matrix {
    #[inline(always)]
    fn sums(a: &Matrix, b: &Matrix, mut c: Matrix) -> Matrix {
        for row in 0..SIDE {
            for k in 0..SIDE {
                for column in 0..SIDE {
                    let sum = &mut c[row * SIDE + column];
                    *sum = a[row * SIDE + k].mul_add(b[k * SIDE + column], *sum);
                }
            }
        }
        c
    }
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma")]
        fn wide(a: &Matrix, b: &Matrix, c: Matrix) -> Matrix {
            sums(a, b, c)
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the processor has both.
            return unsafe { wide(a, b, c) };
        }
    }
    sums(a, b, c)
}

/// The two elements of a lane, adjacent in a row, in the layout of Apple's GPUs.
fn elements(lane: u32) -> [(usize, usize); 2] {
    let lane = lane as usize;
    let (row, column) = ((lane >> 2 & 4) | (lane >> 1 & 3), (lane >> 1 & 4) | (lane & 1) << 1);
    [(row, column), (row, column + 1)]
}

/// The running lane executes `operation`.
fn execute(operation: Operation) {
    let context = fiber::context();
    // SAFETY: a running fiber's context and its simdgroup's matrices outlive it, and no other fiber runs
    // meanwhile. An access to protected memory ends the fiber.
    unsafe {
        let matrices = &mut *(*context).matrices;
        let (lane, number) = ((*context).lane, (*context).operations);
        (*context).operations += 1;
        if number == matrices.performed.len() {
            matrices.perform(operation);
        }
        let performed = &matrices.performed[number];
        if performed.operation != operation {
            fiber::fail(format!(
                "lane {lane} of {LANES} executes {operation:x?} where another lane executed {:x?}",
                performed.operation
            ));
        }
        if matches!(operation, Operation::Fill { .. } | Operation::Multiply { .. }) {
            return;
        }
        let memory = &matrices.memory[performed.memory];
        for (row, column) in elements(lane) {
            let bits = memory[row * SIDE + column];
            match operation {
                Operation::Load { from, line, .. } if from.format.read(from.at(row, column)) != bits => {
                    fiber::fail(format!(
                        "row {row}, column {column} of the matrix loaded at line {line} has changed since another lane loaded it"
                    ))
                }
                Operation::Store { to, .. } => to.format.write(to.at(row, column), bits),
                _ => {}
            }
        }
    }
}

/// The identity of a matrix.
fn name(matrix: *const c_void) -> usize {
    // SAFETY: a running fiber's context outlives it.
    unsafe { (*fiber::context()).stack - matrix as usize }
}

pub(super) extern "C" fn fill(to: *const c_void, value: f32) {
    execute(Operation::Fill { to: name(to), bits: value.to_bits() });
}

pub(super) extern "C" fn load(to: *const c_void, format: Format, from: &MatrixView, line: c_int) {
    execute(Operation::Load { to: name(to), format, from: *from, line });
}

pub(super) extern "C" fn store(from: *const c_void, to: &MatrixView, line: c_int) {
    execute(Operation::Store { from: name(from), to: *to, line });
}

pub(super) extern "C" fn multiply(
    to: *const c_void,
    format: Format,
    a: *const c_void,
    b: *const c_void,
    c: *const c_void,
    line: c_int,
) {
    execute(Operation::Multiply { to: name(to), format, of: [a, b, c].map(name), line });
}
