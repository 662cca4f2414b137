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

/// `n` elements, `stride` apart. Out of the way: loops over rows whose elements are adjacent should not be slower for it.
///
/// # Safety
/// They are readable, and 16 at most.
#[cold]
#[inline(never)]
unsafe fn gather(from: *const f32, stride: usize, n: usize) -> [f32; 16] {
    let mut lanes = [0.0; 16];
    for (i, lane) in lanes.iter_mut().enumerate().take(n) {
        // SAFETY: the caller's contract.
        *lane = unsafe { *from.add(i * stride) };
    }
    lanes
}

/// Writes `lanes` to where elements are `stride` apart.
///
/// # Safety
/// They are writable.
#[cold]
#[inline(never)]
unsafe fn scatter(lanes: &[f32], to: *mut f32, stride: usize) {
    for (i, lane) in lanes.iter().enumerate() {
        // SAFETY: the caller's contract.
        unsafe { to.add(i * stride).write(*lane) };
    }
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

    /// `n` elements from `(row, col)` on as a vector, the other lanes 0, while rows further on are asked for.
    ///
    /// # Safety
    /// The elements are readable, and there are no more of them than lanes.
    #[inline(always)]
    pub(super) unsafe fn vector<S: Simd>(&self, s: S, (row, col): (usize, usize), n: usize) -> S::F {
        /// Rows from one that is read to the one asked for: some hundred cycles of work on rows in between.
        const AHEAD: usize = 8;
        let from = self.row(row).wrapping_add(col * self.cols);
        s.prefetch(from.wrapping_add(AHEAD * self.rows));
        // SAFETY: the caller's contract.
        unsafe {
            if self.cols != 1 {
                s.load(gather(from, self.cols, n).as_ptr())
            } else if n == S::LANES {
                s.load(from)
            } else {
                s.load_first(from, n)
            }
        }
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
    /// The elements are writable, and nobody else accesses them.
    #[inline(always)]
    pub(super) unsafe fn write<S: Simd>(&self, s: S, (row, col): (usize, usize), v: S::F, n: usize) {
        let to = self.row(row).wrapping_add(col * self.cols).cast_mut();
        // SAFETY: the caller's contract.
        unsafe {
            if self.cols != 1 {
                let mut lanes = [0.0; 16];
                s.store(lanes.as_mut_ptr(), v);
                scatter(&lanes[..n], to, self.cols);
            } else if n == S::LANES {
                s.store(to, v);
            } else {
                s.store_first(to, v, n);
            }
        }
    }
}
