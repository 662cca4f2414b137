//! Packing B in panels: `[ceil(n / 16)][k][16]`, columns past the last one 0.

use scoregraph_simd::Simd;

/// Columns of a panel.
pub(crate) const PANEL: usize = 16;

/// Floats that a packed matrix of `n` columns and `k` rows takes.
pub(crate) fn packed_len(n: usize, k: usize) -> usize {
    n.div_ceil(PANEL) * k * PANEL
}

/// Packs a matrix of `n` columns, `strides.0` apart, and `k` rows, `strides.1` apart, into `out`.
///
/// # Safety
/// Its elements are readable, and `out` has room for [`packed_len`] floats and does not overlap them.
#[inline(always)]
pub(crate) unsafe fn pack<S: Simd>(
    s: S,
    b: *const f32,
    (n, k): (usize, usize),
    strides: (usize, usize),
    out: *mut f32,
) {
    for first in (0..n).step_by(PANEL) {
        let cols = PANEL.min(n - first);
        // SAFETY: columns `first..first + cols` of b, and panel `first / 16` of out; the caller's contract.
        unsafe {
            let b = b.add(first * strides.0);
            let out = out.add(first * k);
            if strides.0 == 1 {
                for row in 0..k {
                    for v in (0..PANEL).step_by(S::LANES) {
                        let columns = s.load_first(b.wrapping_add(row * strides.1 + v), cols.saturating_sub(v));
                        s.store(out.add(row * PANEL + v), columns);
                    }
                }
            } else {
                if cols < PANEL {
                    std::slice::from_raw_parts_mut(out, k * PANEL).fill(0.0);
                }
                // The columns of b are rows of what it is the transpose of: those whose elements are adjacent go in
                // blocks, the rest one by one.
                let blocks = if strides.1 == 1 { (cols / 8 * 8, k / 8 * 8) } else { (0, 0) };
                for col in (0..blocks.0).step_by(8) {
                    for row in (0..blocks.1).step_by(8) {
                        s.transpose_8x8(b.add(col * strides.0 + row), strides.0, out.add(row * PANEL + col), PANEL);
                    }
                }
                for col in 0..cols {
                    let column = b.add(col * strides.0);
                    for row in if col < blocks.0 { blocks.1 } else { 0 }..k {
                        out.add(row * PANEL + col).write(*column.add(row * strides.1));
                    }
                }
            }
        }
    }
}
