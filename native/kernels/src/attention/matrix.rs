//! One head of an operand: a strided matrix whose rows are read and written through vectors where that is possible.

use scoregraph_simd::Simd;

/// Rows and columns, strided.
#[derive(Clone, Copy)]
pub(super) struct Matrix {
    pub(super) ptr: *const f32,
    /// Elements from a row to the next.
    pub(super) rows: usize,
    /// Elements from a column to the next.
    pub(super) cols: usize,
}

impl Matrix {
    /// Head `head` of sample `n` of an operand \[n, H, rows, columns\].
    pub(super) fn of(ptr: *const f32, strides: &[usize], [n, head]: [usize; 2]) -> Matrix {
        Matrix { ptr: ptr.wrapping_add(n * strides[0] + head * strides[1]), rows: strides[2], cols: strides[3] }
    }

    /// The first element of a row.
    pub(super) fn row(&self, row: usize) -> *const f32 {
        self.ptr.wrapping_add(row * self.rows)
    }

    /// The elements from `(row, col)` on, as many as `to` has, each through `f`.
    ///
    /// # Safety
    /// They are readable.
    #[inline(always)]
    pub(super) unsafe fn read<S: Simd>(
        &self,
        s: S,
        (row, col): (usize, usize),
        to: &mut [f32],
        f: impl Fn(S::F) -> S::F,
    ) {
        let from = self.row(row).wrapping_add(col * self.cols);
        for (i, chunk) in to.chunks_mut(S::LANES).enumerate() {
            let n = chunk.len();
            // SAFETY: the caller's contract; only the elements of `chunk` are written.
            unsafe {
                if self.cols == 1 {
                    s.store_first(chunk.as_mut_ptr(), f(s.load_first(from.add(i * S::LANES), n)), n);
                } else {
                    for (j, to) in chunk.iter_mut().enumerate() {
                        *to = *from.add((i * S::LANES + j) * self.cols);
                    }
                    s.store_first(chunk.as_mut_ptr(), f(s.load_first(chunk.as_ptr(), n)), n);
                }
            }
        }
    }

    /// `row[i] = scale * from[i]`
    ///
    /// # Safety
    /// The row is writable, and nobody else accesses it; it is not the memory of `from`.
    #[inline(always)]
    pub(super) unsafe fn write_scaled<S: Simd>(&self, s: S, row: usize, from: &[f32], scale: f32) {
        let to = self.row(row).cast_mut();
        for (i, chunk) in from.chunks(S::LANES).enumerate() {
            // SAFETY: the caller's contract; only the elements of `chunk` are read.
            unsafe {
                if self.cols == 1 {
                    let v = s.mul(s.splat(scale), s.load_first(chunk.as_ptr(), chunk.len()));
                    s.store_first(to.add(i * S::LANES), v, chunk.len());
                } else {
                    for (j, from) in chunk.iter().enumerate() {
                        to.add((i * S::LANES + j) * self.cols).write(scale * from);
                    }
                }
            }
        }
    }
}
