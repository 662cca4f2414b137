//! Memory for a run: one block, aligned, zeroed, and asked to be made of huge pages.

use std::alloc::{Layout, alloc, dealloc};
use std::ptr::NonNull;

use crate::fault::{Code, Fault, Result};
use crate::machine::human_bytes;

/// Every slot begins on a cache line.
pub const ALIGN: usize = 64;
/// Blocks of at least this size begin on a huge page.
const HUGE_PAGE: usize = 2 << 20;

/// An owned, zero-initialised block. Its content is reached through raw pointers only: kernels get disjoint parts.
#[derive(Debug)]
pub struct Arena {
    ptr: NonNull<u8>,
    layout: Layout,
    len: usize,
}

// SAFETY: plain memory; whoever dereferences the pointer keeps the accesses apart.
unsafe impl Send for Arena {}
// SAFETY: as above: a shared arena gives out a raw pointer and no reference.
unsafe impl Sync for Arena {}

impl Arena {
    /// `len` zero bytes.
    pub fn new(len: usize) -> Result<Arena> {
        let refuse = || Fault::new(Code::TooLarge, format!("{} of memory could not be had", human_bytes(len as u64)));
        let align = if len >= HUGE_PAGE { HUGE_PAGE } else { ALIGN };
        let layout = Layout::from_size_align(len.max(ALIGN), align).map_err(|_| refuse())?;
        // SAFETY: the layout is not empty.
        let ptr = NonNull::new(unsafe { alloc(layout) }).ok_or_else(refuse)?;
        if len >= HUGE_PAGE {
            advise_huge_pages(ptr.as_ptr(), len);
        }
        // Zeroing touches every page now, so that no run meets a page fault.
        // SAFETY: the block is ours and that long.
        unsafe { ptr.write_bytes(0, layout.size()) };
        Ok(Arena { ptr, layout, len })
    }

    /// The first byte.
    pub fn as_ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.ptr.as_ptr(), self.layout) };
    }
}

#[cfg(target_os = "linux")]
fn advise_huge_pages(ptr: *mut u8, len: usize) {
    const MADV_HUGEPAGE: i32 = 14;
    unsafe extern "C" {
        fn madvise(addr: *mut std::ffi::c_void, length: usize, advice: i32) -> i32;
    }
    // SAFETY: advice about whole pages of our own block. A refusal changes nothing but speed, so it is not looked at.
    unsafe { madvise(ptr.cast(), len & !(HUGE_PAGE - 1), MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn advise_huge_pages(_ptr: *mut u8, _len: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_zero_and_aligned() {
        for len in [0, 1, 4096, HUGE_PAGE + 5] {
            let arena = Arena::new(len).unwrap();
            assert_eq!(arena.as_ptr() as usize % ALIGN, 0);
            // SAFETY: `len` bytes, initialised by `new`.
            let bytes = unsafe { std::slice::from_raw_parts(arena.as_ptr(), len) };
            assert!(bytes.iter().all(|&b| b == 0));
        }
    }

    #[test]
    fn an_absurd_size_is_an_error() {
        assert_eq!(Arena::new(usize::MAX - 7).unwrap_err().code, Code::TooLarge);
    }
}
