//! What becomes of the sums of a part of y: bias, activation, gate, residual, and the format of y.

use scoregraph_simd::{Act, Simd};

use super::{Linear, Output, Part, row_starts};
use crate::format::Quantizer;
use crate::rows::RowStarts;

/// The sums of a part of y, as float32.
pub(super) trait PartSums<S: Simd> {
    /// What the columns of a row have in common.
    type Row: Copy;

    /// Row `row` of the part.
    fn row(&self, s: S, row: usize) -> Self::Row;

    /// The columns from `col` on.
    ///
    /// # Safety
    /// The part has that row, and less than `LANES` columns may be missing at its end.
    unsafe fn columns(&self, s: S, row: Self::Row, col: usize) -> S::F;
}

/// A checked call: every pointer's elements exist as far as M and N say.
pub(super) struct Epilogue<'a> {
    bias: Option<&'a [f32]>,
    act: Act,
    gate: Option<Gate>,
    residual: Option<(*const f32, RowStarts)>,
    y: Target<'a>,
    starts: RowStarts,
}

/// The rows of gate, each serving `share` rows of y.
struct Gate {
    ptr: *const f32,
    starts: RowStarts,
    share: usize,
}

/// Where y goes.
enum Target<'a> {
    F32(*mut f32),
    Bf16(*mut u16),
    /// Bytes, and the rows of their grid, each serving `share` rows of y.
    Bytes {
        q: *mut u8,
        grid: &'a [f32],
        share: usize,
        top: u8,
    },
}

// SAFETY: the pointers are those of views and slices borrowed for the call; parts write different elements of y.
unsafe impl Sync for Epilogue<'_> {}

impl<'a> Epilogue<'a> {
    /// # Panics
    /// If the operands do not fit y \[m, N\].
    pub(super) fn new(op: &'a Linear<'_>, m: usize, y: Output<'a>) -> Epilogue<'a> {
        let n = op.cols;
        assert!(op.bias.is_none_or(|bias| bias.len() == n), "bias is [N]");
        let gate = op.gate.map(|gate| {
            let groups = gate.layout().len() / n.max(1);
            assert!(m == 0 || groups > 0 && m.is_multiple_of(groups), "gate is [G, N], and G divides M");
            let starts = row_starts(gate.layout(), (groups, n), "gate");
            Gate { ptr: gate.as_ptr(), starts, share: m / groups.max(1) }
        });
        let residual =
            op.residual.map(|residual| (residual.as_ptr(), row_starts(residual.layout(), (m, n), "residual")));
        let layout = match &y {
            Output::F32(y) => *y.layout(),
            Output::Bf16(y) => *y.layout(),
            Output::Bytes { q, .. } => *q.layout(),
        };
        let y = match y {
            Output::F32(y) => Target::F32(y.as_mut_ptr()),
            Output::Bf16(y) => Target::Bf16(y.as_mut_ptr()),
            Output::Bytes { q, grid, top } => {
                let rows = grid.len() / 2;
                assert!(m == 0 || rows > 0 && m.is_multiple_of(rows), "the grid of y is [R, 2], and R divides M");
                Target::Bytes { q: q.as_mut_ptr(), grid, share: m / rows.max(1), top }
            }
        };
        Epilogue { bias: op.bias, act: op.act, gate, residual, y, starts: row_starts(&layout, (m, n), "y") }
    }

    /// Finishes a part.
    ///
    /// # Safety
    /// The part is inside y and nobody else's, and `sums` has its rows and columns. What is read of the residual is
    /// written after, so it may be y.
    #[inline(always)]
    pub(super) unsafe fn finish<S: Simd>(&self, s: S, part: Part, sums: &impl PartSums<S>) {
        for row in 0..part.rows {
            let m = part.row + row;
            let of = sums.row(s, row);
            let gate = self.gate.as_ref().map(|gate| gate.ptr.wrapping_add(gate.starts.at(m / gate.share) + part.col));
            let residual = self.residual.as_ref().map(|(ptr, starts)| ptr.wrapping_add(starts.at(m) + part.col));
            let bias = self.bias.map(|bias| bias[part.col..].as_ptr());
            let start = self.starts.at(m) + part.col;
            let quantizer = match self.y {
                Target::Bytes { grid, share, top, .. } => {
                    let row = 2 * (m / share);
                    Quantizer::of_grid([grid[row], grid[row + 1]], top)
                }
                _ => Quantizer::of_grid([0.0; 2], 0),
            }
            .vectors(s);
            for col in (0..part.cols).step_by(S::LANES) {
                let n = part.cols - col;
                // SAFETY: every row has at least `col + n` elements; the caller's contract.
                unsafe {
                    let load = |row: *const f32| s.load_first(row.add(col), n);
                    let mut v = sums.columns(s, of, col);
                    if let Some(bias) = bias {
                        v = s.add(v, load(bias));
                    }
                    v = self.act.apply(s, v);
                    v = match (gate, residual) {
                        (None, None) => v,
                        (None, Some(residual)) => s.add(load(residual), v),
                        (Some(gate), None) => s.mul(load(gate), v),
                        (Some(gate), Some(residual)) => s.mul_add(load(gate), v, load(residual)),
                    };
                    match self.y {
                        Target::F32(y) => s.store_first(y.add(start + col), v, n),
                        Target::Bf16(y) => s.store_words(y.add(start + col), s.to_bf16(v), n),
                        Target::Bytes { q, .. } => s.store_bytes(q.add(start + col), quantizer.bytes(s, v), n),
                    }
                }
            }
        }
    }
}
