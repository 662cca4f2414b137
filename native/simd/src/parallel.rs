//! What a kernel sees of a thread pool: numbered tiles, and a way to write disjoint parts of one buffer from them.

use std::marker::PhantomData;
use std::ops::Range;

/// Runs numbered, independent tiles, on one thread or on many.
///
/// Kernels split rows, columns or samples into tiles, never a sum, so results do not depend on who runs them.
pub trait Parallel: Sync {
    /// How many threads may run tiles at the same time, at least 1. Sizes per-thread scratch.
    fn threads(&self) -> usize;

    /// Calls `f(tile, thread)` once for every tile in `0..tiles`, with `thread < threads()`, and returns when all are
    /// done. Two calls that run at the same time have different `thread`.
    fn run(&self, tiles: usize, f: &(dyn Fn(usize, usize) + Sync));
}

/// The pool of one thread: the caller.
#[derive(Clone, Copy, Debug, Default)]
pub struct Serial;

impl Parallel for Serial {
    fn threads(&self) -> usize {
        1
    }

    fn run(&self, tiles: usize, f: &(dyn Fn(usize, usize) + Sync)) {
        (0..tiles).for_each(|tile| f(tile, 0));
    }
}

/// A mutable buffer that tiles share, each writing its own part.
#[derive(Clone, Copy)]
pub struct Disjoint<'a, T> {
    ptr: *mut T,
    len: usize,
    lifetime: PhantomData<&'a mut [T]>,
}

// SAFETY: the parts are handed out by an unsafe method whose contract is that no two of them overlap.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}
// SAFETY: as above; the buffer itself may move between threads because `T` may.
unsafe impl<T: Send> Send for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    /// Borrows `buffer` for as long as tiles write to it.
    pub fn new(buffer: &'a mut [T]) -> Self {
        Disjoint { ptr: buffer.as_mut_ptr(), len: buffer.len(), lifetime: PhantomData }
    }

    /// The elements of `range`.
    ///
    /// # Panics
    /// If the range leaves the buffer.
    ///
    /// # Safety
    /// While the part lives, nobody else holds a part that overlaps it.
    pub unsafe fn part(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} leaves a buffer of {}", self.len);
        // SAFETY: the range is inside the buffer borrowed by `new`, and the caller keeps parts disjoint.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(range.start), range.end - range.start) }
    }
}
