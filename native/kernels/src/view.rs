//! Strided windows onto memory, checked when they are made.

use std::fmt;
use std::marker::PhantomData;

/// The largest number of dimensions.
pub const MAX_RANK: usize = 8;

/// Sizes and strides, in elements, of up to [`MAX_RANK`] dimensions; a stride of 0 repeats.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    rank: usize,
    shape: [usize; MAX_RANK],
    strides: [usize; MAX_RANK],
}

impl Layout {
    /// A layout of the given sizes and strides.
    ///
    /// # Errors
    /// If the lengths differ, there are more than [`MAX_RANK`] dimensions, or the sizes overflow.
    pub fn new(shape: &[usize], strides: &[usize]) -> Result<Layout, String> {
        if shape.len() != strides.len() {
            return Err(format!("{} sizes but {} strides", shape.len(), strides.len()));
        }
        if shape.len() > MAX_RANK {
            return Err(format!("{} dimensions; at most {MAX_RANK} are supported", shape.len()));
        }
        let mut layout = Layout { rank: shape.len(), shape: [1; MAX_RANK], strides: [0; MAX_RANK] };
        layout.shape[..shape.len()].copy_from_slice(shape);
        layout.strides[..shape.len()].copy_from_slice(strides);
        let mut sizes = shape.iter().filter(|&&size| size != 0);
        let elements = sizes.try_fold(1usize, |product, &size| product.checked_mul(size));
        let last = shape
            .iter()
            .zip(strides)
            .filter(|(size, _)| **size > 1)
            .try_fold(0usize, |sum, (size, stride)| sum.checked_add((size - 1).checked_mul(*stride)?));
        match (elements, last.and_then(|last| last.checked_add(1))) {
            (Some(_), Some(_)) => Ok(layout),
            _ => Err(format!("sizes {shape:?} with strides {strides:?} overflow")),
        }
    }

    /// Row-major, without gaps.
    ///
    /// # Errors
    /// As [`Layout::new`].
    pub fn dense(shape: &[usize]) -> Result<Layout, String> {
        let mut strides = [0; MAX_RANK];
        let mut stride = 1usize;
        for (i, &size) in shape.iter().enumerate().rev().filter(|(i, _)| *i < MAX_RANK) {
            strides[i] = stride;
            stride = stride.checked_mul(size.max(1)).ok_or_else(|| format!("sizes {shape:?} overflow"))?;
        }
        Layout::new(shape, &strides[..shape.len().min(MAX_RANK)])
    }

    /// The number of dimensions.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The sizes.
    pub fn shape(&self) -> &[usize] {
        &self.shape[..self.rank]
    }

    /// The strides, in elements.
    pub fn strides(&self) -> &[usize] {
        &self.strides[..self.rank]
    }

    /// The number of elements.
    #[allow(clippy::len_without_is_empty, reason = "a layout is not a container")]
    pub fn len(&self) -> usize {
        self.shape().iter().product()
    }

    /// How many elements of memory it spans from its first: 0 if it has none.
    pub fn span(&self) -> usize {
        if self.len() == 0 {
            return 0;
        }
        1 + self.shape().iter().zip(self.strides()).map(|(size, stride)| (size - 1) * stride).sum::<usize>()
    }

    /// Whether it is row-major without gaps.
    pub fn is_dense(&self) -> bool {
        let mut stride = 1;
        for (&size, &own) in self.shape().iter().zip(self.strides()).rev() {
            if size > 1 && own != stride {
                return false;
            }
            stride *= size;
        }
        true
    }

    /// Where the element at a row-major `index` lies.
    pub fn offset(&self, mut index: usize) -> usize {
        let mut offset = 0;
        for (&size, &stride) in self.shape().iter().zip(self.strides()).rev() {
            offset += index % size * stride;
            index /= size;
        }
        offset
    }

    /// Visits the elements `start..start + len`, in row-major order, as runs along the last dimension:
    /// `visit(offset in memory, how many came before, how many now)`.
    pub(crate) fn runs(&self, start: usize, len: usize, mut visit: impl FnMut(usize, usize, usize)) {
        let last = self.rank - 1;
        let mut index = [0; MAX_RANK];
        let mut rest = start;
        for d in (0..self.rank).rev() {
            index[d] = rest % self.shape[d];
            rest /= self.shape[d];
        }
        let mut offset = self.offset(start);
        let mut done = 0;
        while done < len {
            let n = (self.shape[last] - index[last]).min(len - done);
            visit(offset, done, n);
            done += n;
            index[last] += n;
            offset += n * self.strides[last];
            let mut d = last;
            while d > 0 && index[d] == self.shape[d] {
                offset = offset - self.shape[d] * self.strides[d] + self.strides[d - 1];
                index[d] = 0;
                index[d - 1] += 1;
                d -= 1;
            }
        }
    }

    /// As rows of the last dimension: (number, length, stride) if its elements are adjacent and the rows evenly spaced.
    pub fn as_rows(&self) -> Option<(usize, usize, usize)> {
        let (&cols, leading) = self.shape().split_last()?;
        if cols > 1 && self.strides()[self.rank - 1] != 1 {
            return None;
        }
        let mut rows = 1;
        let mut stride = cols;
        for (&size, &own) in leading.iter().zip(self.strides()).rev().filter(|(size, _)| **size != 1) {
            if rows == 1 {
                stride = own;
            } else if own != stride * rows {
                return None;
            }
            rows *= size;
        }
        Some((rows, cols, stride))
    }

    /// The same elements in the same order with as few dimensions as all of `layouts` (of one shape) allow, at least one.
    pub(crate) fn merge<const N: usize>(layouts: [Layout; N]) -> [Layout; N] {
        let mut merged = layouts.map(|_| Layout { rank: 0, shape: [1; MAX_RANK], strides: [0; MAX_RANK] });
        for d in 0..layouts[0].rank {
            let size = layouts[0].shape[d];
            if size == 1 {
                continue;
            }
            let last = merged[0].rank.wrapping_sub(1);
            let joins = last != usize::MAX
                && merged.iter().zip(&layouts).all(|(to, from)| to.strides[last] == from.strides[d] * size);
            for (to, from) in merged.iter_mut().zip(&layouts) {
                if joins {
                    to.shape[last] *= size;
                    to.strides[last] = from.strides[d];
                } else {
                    to.shape[to.rank] = size;
                    to.strides[to.rank] = from.strides[d];
                    to.rank += 1;
                }
            }
        }
        merged.map(|mut layout| {
            if layout.rank == 0 {
                (layout.rank, layout.strides[0]) = (1, 1);
            }
            layout
        })
    }
}

impl fmt::Debug for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} strides {:?}", self.shape(), self.strides())
    }
}

/// A readable strided window.
///
/// Views hold pointers, not slices: where a call may work in place, an operand and the result are the same memory.
#[derive(Clone, Copy)]
pub struct View<'a, T = f32> {
    ptr: *const T,
    layout: Layout,
    lifetime: PhantomData<&'a [T]>,
}

/// A writable strided window.
pub struct ViewMut<'a, T = f32> {
    ptr: *mut T,
    layout: Layout,
    lifetime: PhantomData<&'a mut [T]>,
}

// SAFETY: a view only reads, and what it reads may be shared between threads when `&T` may.
unsafe impl<T: Sync> Send for View<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for View<'_, T> {}
// SAFETY: a view is an exclusive borrow; kernels write each element from one tile only.
unsafe impl<T: Send> Send for ViewMut<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for ViewMut<'_, T> {}

impl<'a, T> View<'a, T> {
    /// The window of `data` that starts at element `offset`.
    ///
    /// # Errors
    /// If it leaves `data`.
    pub fn new(data: &'a [T], offset: usize, layout: Layout) -> Result<Self, String> {
        check_inside(data.len(), offset, &layout)?;
        // SAFETY: the window lies inside `data`, which is borrowed for 'a.
        Ok(unsafe { View::from_raw(data.as_ptr().wrapping_add(offset), layout) })
    }

    /// All of `data`, row-major.
    ///
    /// # Errors
    /// If `shape` has another number of elements.
    pub fn dense(data: &'a [T], shape: &[usize]) -> Result<Self, String> {
        check_dense(data.len(), shape)?;
        View::new(data, 0, Layout::dense(shape)?)
    }

    /// A window onto any memory.
    ///
    /// # Safety
    /// Every element must be readable for `'a`, and written by nobody meanwhile, except by the kernel it is given to
    /// where that kernel works in place.
    pub unsafe fn from_raw(ptr: *const T, layout: Layout) -> Self {
        View { ptr, layout, lifetime: PhantomData }
    }

    /// The first element.
    pub fn as_ptr(&self) -> *const T {
        self.ptr
    }

    /// Sizes and strides.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The sizes.
    pub fn shape(&self) -> &[usize] {
        self.layout.shape()
    }
}

impl<'a, T> ViewMut<'a, T> {
    /// The window of `data` that starts at element `offset`.
    ///
    /// # Errors
    /// If it leaves `data`, or if two of its elements may be the same memory.
    pub fn new(data: &'a mut [T], offset: usize, layout: Layout) -> Result<Self, String> {
        check_inside(data.len(), offset, &layout)?;
        if !layout.is_injective() {
            return Err(format!("elements of {layout:?} share memory"));
        }
        // SAFETY: the window lies inside `data`, which is borrowed exclusively for 'a.
        Ok(unsafe { ViewMut::from_raw(data.as_mut_ptr().wrapping_add(offset), layout) })
    }

    /// All of `data`, row-major.
    ///
    /// # Errors
    /// If `shape` has another number of elements.
    pub fn dense(data: &'a mut [T], shape: &[usize]) -> Result<Self, String> {
        check_dense(data.len(), shape)?;
        ViewMut::new(data, 0, Layout::dense(shape)?)
    }

    /// A window onto any memory.
    ///
    /// # Safety
    /// Every element must be writable for `'a`, no two elements may be the same memory, and nobody else may touch it
    /// meanwhile, except through the operands of a kernel that works in place.
    pub unsafe fn from_raw(ptr: *mut T, layout: Layout) -> Self {
        ViewMut { ptr, layout, lifetime: PhantomData }
    }

    /// The first element.
    pub fn as_mut_ptr(&self) -> *mut T {
        self.ptr
    }

    /// Sizes and strides.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The sizes.
    pub fn shape(&self) -> &[usize] {
        self.layout.shape()
    }
}

impl Layout {
    /// Whether different indices are different memory: sorted by stride, every dimension steps over the ones below it.
    /// (Sufficient, and true of every permutation, slice and reshape of a dense buffer.)
    pub fn is_injective(&self) -> bool {
        if self.len() == 0 {
            return true;
        }
        let mut dims = [(0, 0); MAX_RANK];
        for (dim, pair) in dims.iter_mut().zip(self.strides().iter().copied().zip(self.shape().iter().copied())) {
            *dim = pair;
        }
        let dims = &mut dims[..self.rank];
        dims.sort_unstable();
        let mut reach = 0;
        for &mut (stride, size) in dims {
            if size > 1 {
                if stride <= reach {
                    return false;
                }
                reach += (size - 1) * stride;
            }
        }
        true
    }
}

fn check_inside(len: usize, offset: usize, layout: &Layout) -> Result<(), String> {
    match offset.checked_add(layout.span()) {
        Some(end) if end <= len => Ok(()),
        _ => Err(format!("{layout:?} at {offset} leaves a buffer of {len} elements")),
    }
}

fn check_dense(len: usize, shape: &[usize]) -> Result<(), String> {
    let elements = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
    if elements == Some(len) { Ok(()) } else { Err(format!("a buffer of {len} elements is not of shape {shape:?}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(shape: &[usize], strides: &[usize]) -> Layout {
        Layout::new(shape, strides).unwrap()
    }

    #[test]
    fn windows_stay_inside() {
        let data = [0.0f32; 12];
        assert!(View::new(&data, 0, layout(&[3, 4], &[4, 1])).is_ok());
        assert!(View::new(&data, 1, layout(&[3, 4], &[4, 1])).is_err());
        assert!(View::new(&data, 12, layout(&[0, 4], &[4, 1])).is_ok());
        assert!(View::new(&data, usize::MAX, layout(&[1], &[1])).is_err());
        assert!(View::dense(&data, &[2, 6]).is_ok() && View::dense(&data, &[2, 5]).is_err());
        assert!(Layout::new(&[usize::MAX, 2], &[1, 1]).is_err());
        assert!(Layout::new(&[3, 3], &[usize::MAX / 2, 1]).is_err());
        assert!(Layout::new(&[1; 9], &[1; 9]).is_err() && Layout::dense(&[1; 9]).is_err());
    }

    #[test]
    fn written_elements_are_distinct() {
        let mut data = [0.0f32; 12];
        assert!(ViewMut::new(&mut data, 0, layout(&[4, 3], &[1, 4])).is_ok());
        assert!(ViewMut::new(&mut data, 0, layout(&[4, 3], &[1, 0])).is_err());
        assert!(ViewMut::new(&mut data, 0, layout(&[4, 3], &[1, 3])).is_err());
        assert!(ViewMut::new(&mut data, 0, layout(&[1, 3], &[0, 1])).is_ok());
    }

    #[test]
    fn rows() {
        assert_eq!(layout(&[2, 3, 4], &[12, 4, 1]).as_rows(), Some((6, 4, 4)));
        assert_eq!(layout(&[2, 3, 4], &[30, 10, 1]).as_rows(), Some((6, 4, 10)));
        assert_eq!(layout(&[2, 3, 4], &[31, 10, 1]).as_rows(), None);
        assert_eq!(layout(&[2, 1, 4], &[31, 7, 1]).as_rows(), Some((2, 4, 31)));
        assert_eq!(layout(&[2, 4], &[0, 1]).as_rows(), Some((2, 4, 0)));
        assert_eq!(layout(&[2, 3, 4], &[0, 0, 1]).as_rows(), Some((6, 4, 0)));
        assert_eq!(layout(&[2, 4], &[4, 2]).as_rows(), None);
        assert_eq!(layout(&[5], &[1]).as_rows(), Some((1, 5, 5)));
    }

    #[test]
    fn merging_keeps_order() {
        let shape = [2, 3, 4, 5];
        let a = layout(&shape, &[60, 20, 5, 1]);
        let b = layout(&shape, &[0, 0, 5, 1]);
        let merged = Layout::merge([a, b]);
        assert_eq!((merged[0].shape(), merged[1].strides()), (&[6, 20][..], &[0, 1][..]));
        for i in 0..a.len() {
            assert_eq!((a.offset(i), b.offset(i)), (merged[0].offset(i), merged[1].offset(i)));
        }
        assert_eq!(Layout::merge([layout(&[1, 1], &[7, 9])])[0].shape(), &[1]);
    }
}
