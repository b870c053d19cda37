//! Buffers that end at a guard page: an access past the end faults immediately.
//!
//! ```text
//! | no access | free | canary 4 KiB | contents | < 16 bytes of canary | no access |
//! ```
//!
//! Canaries are all ones, NaN as floats: a read before the start poisons the result, a write is found after
//! the launch.

use std::ptr::NonNull;

const CANARY: usize = 4096;
const CANARY_BYTE: u8 = 0xff;
const ALIGNMENT: usize = 16;

/// A mapping between two guard pages.
#[derive(Debug)]
pub(super) struct Arena {
    base: NonNull<u8>,
    /// Bytes between the guard pages.
    capacity: usize,
    start: usize,
    length: usize,
}

fn page() -> usize {
    // SAFETY: a query without side effects.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

impl Arena {
    pub(super) fn new() -> Self {
        Self { base: NonNull::dangling(), capacity: 0, start: 0, length: 0 }
    }

    /// Prepares the arena for `length` bytes, all canary.
    pub(super) fn clear(&mut self, length: usize) {
        let needed = (length + ALIGNMENT + CANARY).next_multiple_of(page());
        if needed > self.capacity {
            self.unmap();
            self.map(needed.next_power_of_two().max(needed));
        }
        self.length = length;
        // Rounded down to the alignment: the gap after the contents is canary.
        self.start = (self.capacity - length) / ALIGNMENT * ALIGNMENT;
        self.slice(self.start - CANARY, self.capacity).fill(CANARY_BYTE);
    }

    /// Prepares the arena with a copy of `contents`.
    pub(super) fn fill(&mut self, contents: &[u8]) {
        self.clear(contents.len());
        self.contents().copy_from_slice(contents);
    }

    /// What the kernel sees.
    pub(super) fn contents(&mut self) -> &mut [u8] {
        self.slice(self.start, self.start + self.length)
    }

    /// Whether the canaries are unchanged.
    pub(super) fn is_intact(&mut self) -> bool {
        let (start, length, capacity) = (self.start, self.length, self.capacity);
        self.slice(start - CANARY, start).iter().all(|byte| *byte == CANARY_BYTE)
            && self.slice(start + length, capacity).iter().all(|byte| *byte == CANARY_BYTE)
    }

    /// The distance of an address from the contents' start, for addresses in or near the arena.
    pub(super) fn distance(&self, address: usize) -> Option<isize> {
        let first = self.base.as_ptr() as usize;
        let near = first.saturating_sub(page())..first + self.capacity + (1 << 20);
        (self.capacity > 0 && near.contains(&address))
            .then(|| (address as isize) - (first + self.start) as isize)
    }

    pub(super) fn length(&self) -> usize {
        self.length
    }

    fn slice(&mut self, from: usize, to: usize) -> &mut [u8] {
        assert!(from <= to && to <= self.capacity);
        // SAFETY: the range is within the mapping, which this value owns; any bytes are valid u8.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr().add(from), to - from) }
    }

    fn map(&mut self, capacity: usize) {
        let (page, flags) = (page(), libc::MAP_PRIVATE | libc::MAP_ANON);
        // SAFETY: a fresh anonymous mapping; the inner part is opened for access.
        let base = unsafe {
            let whole = libc::mmap(std::ptr::null_mut(), capacity + 2 * page, libc::PROT_NONE, flags, -1, 0);
            assert!(whole != libc::MAP_FAILED, "no memory for {capacity} bytes of a launch");
            let inner = whole.cast::<u8>().add(page);
            let opened = libc::mprotect(inner.cast(), capacity, libc::PROT_READ | libc::PROT_WRITE);
            assert_eq!(opened, 0, "no access to {capacity} bytes of a launch");
            inner
        };
        self.base = NonNull::new(base).expect("a mapping is not null");
        self.capacity = capacity;
    }

    fn unmap(&mut self) {
        if self.capacity > 0 {
            // SAFETY: the mapping was made by `map`.
            unsafe { libc::munmap(self.base.as_ptr().sub(page()).cast(), self.capacity + 2 * page()) };
            self.capacity = 0;
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        self.unmap();
    }
}

// SAFETY: the value owns its mapping exclusively.
unsafe impl Send for Arena {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_end_at_the_guard_page_and_canaries_notice_writes() {
        let mut arena = Arena::new();
        for length in [0, 1, 16, 100, 5000, 100_000, 64] {
            arena.fill(&vec![7; length]);
            assert_eq!(arena.contents(), vec![7; length]);
            assert_eq!(arena.contents().as_ptr() as usize % ALIGNMENT, 0);
            let end = arena.base.as_ptr() as usize + arena.capacity;
            assert!(end - (arena.contents().as_ptr() as usize + length) < ALIGNMENT);
            assert!(arena.is_intact());
        }
        let start = arena.start;
        arena.slice(start - 1, start)[0] = 0;
        assert!(!arena.is_intact());
        arena.fill(&[1; 30]);
        let capacity = arena.capacity;
        arena.slice(capacity - 1, capacity)[0] = 0;
        assert!(!arena.is_intact());
    }
}
