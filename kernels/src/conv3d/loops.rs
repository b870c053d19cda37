//! Counts loop iterations, for [`Limits::loop_iterations`](crate::limits::Limits::loop_iterations).

/// Iterations of a loop of `count` iterations whose body has loops of `inner` iterations. Every loop costs
/// one more, in which it ends.
pub(crate) fn nest(count: usize, inner: usize) -> usize {
    count.saturating_mul(inner.saturating_add(1)).saturating_add(1)
}
