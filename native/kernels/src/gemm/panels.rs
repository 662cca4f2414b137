//! Packed weights as panels of words, unpacked where several values share a byte or a float takes two.

use std::ops::Range;

use scoregraph_simd::Simd;

use super::{PANEL, Rows};

/// Words of a block at most, in what [`Panels`] that unpack need room for: with the rows of A that go by, they stay in the
/// second-level cache.
pub(crate) const BLOCK_WORDS: usize = 1024 * PANEL;
/// The same where a block is used but once, and should stay in the first-level cache.
const BRIEF_WORDS: usize = 384 * PANEL;
/// Words of a panel that are not unpacked, but which a pass should not exceed.
const DEPTH: usize = 2048;

/// How the words of panels are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Storage {
    /// As they are: float32, pairs of bf16, or quads of bytes.
    Words,
    /// Quads of 4-bit values: bit 4 i of byte j of an aligned run of 64 bytes begins value 64 i + j, stored with 8 added.
    Nibbles,
    /// Quads of 2-bit values: bit 2 i of byte j of an aligned run of 64 bytes begins value 64 i + j, stored with 2 added.
    Crumbs,
    /// A pair of bf16 becomes two words of float32, the odd one first.
    Bf16,
}

/// B, in panels of 16 columns.
#[derive(Clone, Copy)]
pub(crate) struct Panels {
    ptr: *const u32,
    /// Words of a panel, for one column.
    words: usize,
    storage: Storage,
    /// Room for a block, where words have to be unpacked.
    room: *mut u32,
}

impl Panels {
    /// Panels of `words` words that are stored as they are.
    #[inline(always)]
    pub(crate) fn words(ptr: *const u32, words: usize) -> Panels {
        Panels { ptr, words, storage: Storage::Words, room: std::ptr::null_mut() }
    }

    /// Panels of `words` words; `room` is for [`BLOCK_WORDS`], if they have to be unpacked.
    #[inline(always)]
    pub(crate) fn stored(ptr: *const u8, words: usize, storage: Storage, room: *mut u32) -> Panels {
        Panels { ptr: ptr.cast(), words, storage, room }
    }

    /// The same panels, unpacked into other room.
    #[inline(always)]
    pub(crate) fn with_room(self, room: *mut u32) -> Panels {
        Panels { room, ..self }
    }

    /// How many words of so many panels a pass should go through; `once` if it uses them for one tile only. Even, so that
    /// pairs are not torn apart.
    #[inline(always)]
    pub(super) fn most_words(&self, panels: usize, once: bool) -> usize {
        match self.storage {
            Storage::Words => DEPTH,
            _ => (if once { BRIEF_WORDS } else { BLOCK_WORDS }) / (PANEL * panels) / 2 * 2,
        }
    }

    /// Where a panel has a word, if words are as they are; the panel need not be there.
    #[inline(always)]
    pub(super) fn place(&self, panel: usize, word: usize) -> Option<*const u32> {
        let first = (panel * self.words + word) * PANEL;
        (self.storage == Storage::Words).then(|| self.ptr.wrapping_add(first))
    }

    /// Some words of some panels as `[panel][word][16]`, unpacked into the room where they have to be.
    ///
    /// # Safety
    /// The panels have them, no more words than [`Panels::most_words`]; the room is writable and nobody else's.
    #[inline(always)]
    pub(super) unsafe fn block<S: Simd>(&self, s: S, panels: Range<usize>, words: Range<usize>) -> Rows<*const u32> {
        let first = panels.start * self.words + words.start;
        if self.storage == Storage::Words {
            // SAFETY: the caller's contract.
            return Rows { ptr: unsafe { self.ptr.add(first * PANEL) }, stride: self.words * PANEL };
        }
        let depth = words.len();
        for panel in 0..panels.len() {
            let first = first + panel * self.words;
            // SAFETY: so many words are no more than the room has; the caller's contract.
            unsafe {
                let to = self.room.add(panel * depth * PANEL);
                match self.storage {
                    Storage::Words => {}
                    Storage::Nibbles => unpack_quads(s, self.ptr, first, depth, 4, to),
                    Storage::Crumbs => unpack_quads(s, self.ptr, first, depth, 2, to),
                    // A pair is one word of the panel and two of the block, which begins with a whole pair.
                    Storage::Bf16 => expand_pairs(s, self.ptr.add(first / 2 * PANEL), depth / 2, to),
                }
            }
        }
        Rows { ptr: self.room, stride: depth * PANEL }
    }
}

/// The quads `first .. first + count` of values of `bits` bits, to a byte each.
///
/// # Safety
/// The runs of 64 bytes that hold them are readable, and `to` has room for `count * 16` words.
#[inline(always)]
unsafe fn unpack_quads<S: Simd>(s: S, from: *const u32, first: usize, count: usize, bits: u32, to: *mut u32) {
    let share = 8 / bits as usize;
    let bytes = |byte: i32| s.splat_i(byte * 0x0101_0101);
    let (mask, half, top) = (bytes((1 << bits) - 1), bytes(1 << (bits - 1)), s.splat_i(0x8080_8080u32 as i32));
    for quad in 0..count {
        let at = first + quad;
        for v in (0..PANEL).step_by(S::LANES) {
            // SAFETY: the quads of a run share its 64 bytes; the caller's contract.
            unsafe {
                let run = s.load_i(from.add(at / share * PANEL + v).cast());
                let value = s.and(s.shr(run, at as u32 % share as u32 * bits), mask);
                // A set top bit keeps the bytes' differences from borrowing of each other.
                let value = s.xor(s.sub_i(s.or(value, top), half), top);
                s.store_i(to.add(quad * PANEL + v).cast(), value);
            }
        }
    }
}

/// bf16 in the upper halves as float32; subnormal ones count as 0.
#[inline(always)]
pub(crate) fn flush_subnormal<S: Simd>(s: S, upper: S::I) -> S::F {
    let value = s.from_bits(upper);
    s.select(s.lt(s.abs(value), s.splat(f32::MIN_POSITIVE)), s.splat(0.0), value)
}

/// `pairs` words of two bf16 as float32, the odd one first.
///
/// # Safety
/// They are readable, and `to` has room for `pairs * 32` words.
#[inline(always)]
unsafe fn expand_pairs<S: Simd>(s: S, from: *const u32, pairs: usize, to: *mut u32) {
    for pair in 0..pairs {
        for v in (0..PANEL).step_by(S::LANES) {
            // SAFETY: the caller's contract.
            unsafe {
                let both = s.load_i(from.add(pair * PANEL + v).cast());
                let odd = flush_subnormal(s, s.and(both, s.splat_i(0xFFFF_0000u32 as i32)));
                let even = flush_subnormal(s, s.shl(both, 16));
                s.store(to.add(2 * pair * PANEL + v).cast(), odd);
                s.store(to.add((2 * pair + 1) * PANEL + v).cast(), even);
            }
        }
    }
}
