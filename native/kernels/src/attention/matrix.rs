//! One head of an operand: a strided matrix. Vectors are read and written where the elements of a row are adjacent; others
//! are copied to such rows first.

use scoregraph_simd::{Kernel, Simd};

use crate::copy::Transpose;

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

    /// Whether the elements of a row are adjacent.
    #[inline(always)]
    pub(super) fn has_rows(&self) -> bool {
        self.cols == 1
    }

    /// Rows of `stride` elements from `ptr` on.
    #[inline(always)]
    pub(super) fn of_rows(ptr: *const f32, stride: usize) -> Matrix {
        Matrix { ptr, rows: stride, cols: 1 }
    }

    /// The matrix from a row on.
    #[inline(always)]
    pub(super) fn rows_from(self, row: usize) -> Matrix {
        Matrix { ptr: self.row(row), ..self }
    }

    /// The matrix if it has rows, else its copy in `room`.
    ///
    /// # Safety
    /// It has this many readable rows and columns; `room` has as many elements, writable, and nobody else accesses them.
    #[inline(always)]
    pub(super) unsafe fn in_rows<S: Simd>(self, s: S, (rows, cols): (usize, usize), room: *mut f32) -> Matrix {
        if self.has_rows() {
            return self;
        }
        let copied = Matrix::of_rows(room, cols);
        // SAFETY: the caller's contract.
        unsafe { self.copy(s, copied, (rows, cols)) };
        copied
    }

    /// Copies `rows` rows of `cols` elements to another matrix: squares in registers where columns are adjacent on one side,
    /// as they are in images of channels, and rows on the other.
    ///
    /// # Safety
    /// The elements are readable, those of `to` writable, and nobody else accesses these; the two do not overlap.
    #[inline(always)]
    pub(super) unsafe fn copy<S: Simd>(self, s: S, to: Matrix, (rows, cols): (usize, usize)) {
        let (x, y) = (self.ptr, to.ptr.cast_mut());
        if self.rows == 1 && to.cols == 1 {
            Transpose { x, y, strides: (self.cols, to.rows), adjacent: 0..rows, spread: 0..cols }.run(s);
        } else if self.cols == 1 && to.rows == 1 {
            Transpose { x, y, strides: (self.rows, to.cols), adjacent: 0..cols, spread: 0..rows }.run(s);
        } else {
            for row in 0..rows {
                for col in 0..cols {
                    // SAFETY: an element of both.
                    unsafe { y.add(row * to.rows + col * to.cols).write(*x.add(row * self.rows + col * self.cols)) };
                }
            }
        }
    }

    /// `n` elements from `(row, col)` on as a vector, the other lanes 0, while rows further on are asked for.
    ///
    /// # Safety
    /// The matrix has rows; the elements are readable, and there are no more of them than lanes.
    #[inline(always)]
    pub(super) unsafe fn vector<S: Simd>(&self, s: S, (row, col): (usize, usize), n: usize) -> S::F {
        /// Rows from one that is read to the one asked for: some hundred cycles of work on rows in between.
        const AHEAD: usize = 8;
        let from = self.row(row).wrapping_add(col);
        s.prefetch(from.wrapping_add(AHEAD * self.rows));
        // SAFETY: the caller's contract.
        unsafe { if n == S::LANES { s.load(from) } else { s.load_first(from, n) } }
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
        if self.cols != 1 {
            for (i, to) in to.iter_mut().enumerate() {
                // SAFETY: the caller's contract.
                *to = unsafe { *from.add(i * self.cols) };
            }
        }
        let from = if self.cols == 1 { from } else { to.as_ptr() };
        let whole = to.len() - to.len() % S::LANES;
        // SAFETY: whole vectors below `whole`, then what is left of the row.
        unsafe {
            for i in (0..whole).step_by(S::LANES) {
                s.store(to.as_mut_ptr().add(i), f(s.load(from.add(i))));
            }
            let rest = to.len() - whole;
            if rest > 0 {
                s.store_first(to.as_mut_ptr().add(whole), f(s.load_first(from.add(whole), rest)), rest);
            }
        }
    }

    /// Writes the first `n` lanes of `v` from `(row, col)` on.
    ///
    /// # Safety
    /// The matrix has rows; the elements are writable, and nobody else accesses them.
    #[inline(always)]
    pub(super) unsafe fn write<S: Simd>(&self, s: S, (row, col): (usize, usize), v: S::F, n: usize) {
        let to = self.row(row).wrapping_add(col).cast_mut();
        // SAFETY: the caller's contract.
        unsafe { if n == S::LANES { s.store(to, v) } else { s.store_first(to, v, n) } }
    }
}
