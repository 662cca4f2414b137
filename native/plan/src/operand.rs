//! A call's operand for one batch size: concrete shape, strides and place, proved to lie inside its memory.

use scoregraph_kernels::Layout;

use crate::fault::{Fault, Result};
use crate::schema::{DType, Layout as Packing, Ref};

/// The memory an operand lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Region {
    /// The arena that grows with the batch.
    Batch,
    /// The arena of fixed size.
    Fixed,
    /// The constants file: read only.
    Constants,
}

/// A typed, strided window onto a region. Made only by `Places::operand`, which proves that the `extent` elements from
/// `byte` on lie inside the region and are aligned for their type.
#[derive(Clone, Debug)]
pub struct Operand {
    /// How the plan names it.
    pub name: Ref,
    /// Element type.
    pub dtype: DType,
    /// Shape (no dimension is 0) and strides; of a packed constant, those of the logical shape.
    pub layout: Layout,
    /// How a constant is packed.
    pub packing: Packing,
    /// Which memory.
    pub region: Region,
    /// First byte in it.
    pub byte: usize,
    /// One more than the largest element index that is reached (all elements of a packed constant).
    pub extent: usize,
}

impl Operand {
    /// The sizes.
    pub fn shape(&self) -> &[usize] {
        self.layout.shape()
    }

    /// Number of logical elements.
    pub fn numel(&self) -> usize {
        self.layout.len()
    }

    /// Size and stride of every dimension that moves.
    fn moving(&self) -> impl Iterator<Item = (usize, usize)> {
        let dims = self.layout.shape().iter().zip(self.layout.strides());
        dims.filter(|&(&n, _)| n > 1).map(|(&n, &stride)| (n, stride))
    }

    /// The bytes it touches, as a half-open range that may include gaps.
    fn span(&self) -> (usize, usize) {
        (self.byte, self.byte + self.extent * self.dtype.size())
    }

    /// Whether both name exactly the same elements in the same order.
    pub fn is_same_view(&self, other: &Operand) -> bool {
        self.region == other.region
            && self.byte == other.byte
            && self.dtype == other.dtype
            && self.shape() == other.shape()
            && self.moving().eq(other.moving())
    }

    /// Whether the two may share a byte. Exact for slices of one buffer that are cut along one dimension (the halves of
    /// a concatenation); in stranger cases it may say yes where the truth is no.
    pub fn may_overlap(&self, other: &Operand) -> bool {
        if self.region != other.region {
            return false;
        }
        let (start, end) = self.span();
        let (other_start, other_end) = other.span();
        if end <= other_start || other_end <= start {
            return false;
        }
        if self.dtype != other.dtype {
            return true;
        }
        !self.interleaves_apart(other)
    }

    /// Whether both repeat a disjoint pattern at the same strides: compares them within one turn of the outer
    /// dimensions they have in common, provided that neither pattern reaches into the next turn.
    fn interleaves_apart(&self, other: &Operand) -> bool {
        let size = self.dtype.size();
        let by_stride = |o: &Operand| -> Vec<(usize, usize)> {
            let mut dims: Vec<_> = o.moving().filter(|&(_, s)| s > 0).map(|(n, s)| (s, n)).collect();
            dims.sort_unstable_by(|a, b| b.cmp(a));
            dims
        };
        let (mine, theirs) = (by_stride(self), by_stride(other));
        let width = |dims: &[(usize, usize)]| dims.iter().map(|&(s, n)| s * (n - 1)).sum::<usize>() + 1;
        let base = self.byte.min(other.byte);
        let (mine_at, theirs_at) = ((self.byte - base) / size, (other.byte - base) / size);
        for common in 0..mine.len().min(theirs.len()) {
            if mine[common] != theirs[common] {
                return false;
            }
            let turn = mine[common].0;
            let (a, b) = (width(&mine[common + 1..]), width(&theirs[common + 1..]));
            if mine_at + a > turn || theirs_at + b > turn {
                return false;
            }
            if mine_at + a <= theirs_at || theirs_at + b <= mine_at {
                return true;
            }
        }
        false
    }

    /// Fails if two indices name the same element: such a view must not be written.
    pub fn check_injective(&self) -> Result<()> {
        if !self.layout.is_injective() {
            return Err(Fault::memory(format!("{} is written but its elements overlap one another", self.name)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(byte: usize, shape: &[usize], strides: &[usize]) -> Operand {
        let extent = shape.iter().zip(strides).map(|(n, s)| (n - 1) * s).sum::<usize>() + 1;
        Operand {
            name: Ref::Buffer(0),
            dtype: DType::F32,
            layout: Layout::new(shape, strides).unwrap(),
            packing: Packing::Plain,
            region: Region::Batch,
            byte,
            extent,
        }
    }

    #[test]
    fn overlap_is_seen_and_the_halves_of_a_concatenation_are_not() {
        let left = view(0, &[4, 3], &[8, 1]);
        let right = view(3 * 4, &[4, 5], &[8, 1]);
        let wide = view(2 * 4, &[4, 5], &[8, 1]);
        assert!(!left.may_overlap(&right) && !right.may_overlap(&left));
        assert!(left.may_overlap(&wide) && right.may_overlap(&wide));
        assert!(left.may_overlap(&view(0, &[8], &[1])));
        assert!(!left.may_overlap(&view(400, &[8], &[1])));
        // Same strides, but the pattern reaches into the next turn.
        assert!(left.may_overlap(&view(7 * 4, &[4, 3], &[8, 1])));
    }

    /// Against the truth: the sets of elements.
    #[test]
    fn overlap_never_denies_a_shared_element() {
        let mut state = 1u64;
        let mut next = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % below) as usize
        };
        for _ in 0..20_000 {
            let mut make = || {
                let rank = 1 + next(3);
                let shape: Vec<usize> = (0..rank).map(|_| 1 + next(3)).collect();
                let strides: Vec<usize> = (0..rank).map(|_| next(13)).collect();
                view(4 * next(12), &shape, &strides)
            };
            let (a, b) = (make(), make());
            let elements = |o: &Operand| -> Vec<usize> {
                let mut found = vec![o.byte / 4];
                for (&n, &s) in o.layout.shape().iter().zip(o.layout.strides()) {
                    found = found.iter().flat_map(|&at| (0..n).map(move |i| at + i * s)).collect();
                }
                found
            };
            let (x, y) = (elements(&a), elements(&b));
            if x.iter().any(|e| y.contains(e)) {
                assert!(a.may_overlap(&b), "{a:?} {b:?}");
            }
            let unique: std::collections::HashSet<_> = x.iter().collect();
            if unique.len() < x.len() {
                assert!(a.check_injective().is_err(), "{a:?}");
            }
        }
    }
}
