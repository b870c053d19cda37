//! Counts of what ran while the process was patched.

use std::fmt;

/// How often one of Burn's operations ran while the process was patched to take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OpCount {
    /// Burn's name: `conv3d`, `conv3d_x_backward`, `conv_transpose2d` and so on.
    pub op: &'static str,
    /// Times Burn ran it, by whatever kernels.
    pub recorded: u64,
    /// Times this crate's kernels did.
    pub served: u64,
    /// Times this crate's kernels refused and Burn's ran.
    pub declined: u64,
    /// Times Burn's kernels ran because they were predicted to be faster.
    pub slower: u64,
}

/// The counts of all operations since the start of the process, by [`report`](super::report()).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// One entry for each operation that can be taken.
    pub ops: Vec<OpCount>,
}

impl Report {
    /// Operations that Burn ran.
    pub fn recorded(&self) -> u64 {
        self.ops.iter().map(|count| count.recorded).sum()
    }

    /// Operations that ran on this crate's kernels.
    pub fn served(&self) -> u64 {
        self.ops.iter().map(|count| count.served).sum()
    }

    /// Operations that this crate's kernels refused.
    pub fn declined(&self) -> u64 {
        self.ops.iter().map(|count| count.declined).sum()
    }

    /// Operations that were left to Burn because its kernels were predicted to be faster.
    pub fn slower(&self) -> u64 {
        self.ops.iter().map(|count| count.slower).sum()
    }

    /// Operations that Burn ran on its own, in a block that it did not fuse.
    pub fn missed(&self) -> u64 {
        self.recorded().saturating_sub(self.served() + self.declined() + self.slower())
    }

    /// The counts of one operation, by Burn's name.
    pub fn op(&self, name: &str) -> Option<&OpCount> {
        self.ops.iter().find(|count| count.op == name)
    }

    /// What was counted after `earlier` was taken.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let difference = |(now, before): (&OpCount, &OpCount)| OpCount {
            op: now.op,
            recorded: now.recorded.saturating_sub(before.recorded),
            served: now.served.saturating_sub(before.served),
            declined: now.declined.saturating_sub(before.declined),
            slower: now.slower.saturating_sub(before.slower),
        };
        Self { ops: self.ops.iter().zip(&earlier.ops).map(difference).collect() }
    }
}

/// A line for each operation that ran.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for OpCount { op, recorded, served, declined, slower } in &self.ops {
            if *recorded > 0 {
                let faster = if *slower > 0 { format!(", {slower} faster by Burn") } else { String::new() };
                writeln!(f, "{op}: {served} of {recorded} served, {declined} declined{faster}")?;
            }
        }
        Ok(())
    }
}
