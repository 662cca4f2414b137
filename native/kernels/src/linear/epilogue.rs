//! What becomes of the sums of a tile of y: bias, activation, gate, residual, and the format of y.

use scoregraph_simd::{Act, Kernel, Simd};

use super::{Linear, Output, Part, row_starts};
use crate::format::Quantizer;
use crate::gemm::{Aligned, MOST_TILE, Rows};
use crate::rows::RowStarts;

/// The sums of a tile of y, as float32.
pub(super) trait TileSums<S: Simd> {
    /// What the columns of a row have in common.
    type Row: Copy;

    /// Row `row` of the tile; rows are asked for in order.
    fn row(&mut self, s: S, row: usize) -> Self::Row;

    /// The columns from `col` on.
    ///
    /// # Safety
    /// The tile has that row, and less than `LANES` columns may be missing at its end.
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

/// Which of equal groups each row is in, row after row: one division for all of them.
#[derive(Clone, Copy)]
pub(super) struct Groups {
    group: usize,
    /// Rows that are left in the group; as many as there can be before the first row.
    left: usize,
    row: usize,
}

impl Groups {
    /// From this row on.
    #[inline(always)]
    pub(super) fn from(row: usize) -> Groups {
        Groups { group: 0, left: usize::MAX, row }
    }

    /// The group of the next row, of groups of `share` rows.
    #[inline(always)]
    pub(super) fn next_group(&mut self, share: usize) -> usize {
        if self.left == usize::MAX {
            (self.group, self.left) = (self.row / share, share - self.row % share);
        } else if self.left == 0 {
            (self.group, self.left) = (self.group + 1, share);
        }
        self.left -= 1;
        self.group
    }
}

/// The rows of gate, each serving `share` rows of y.
struct Gate {
    ptr: *const f32,
    starts: RowStarts,
    share: usize,
}

/// Where y goes.
#[derive(Clone, Copy)]
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

    /// Asks for the memory of a tile of y, which [`Epilogue::finish`] will write.
    #[inline(always)]
    pub(super) fn prefetch<S: Simd>(&self, s: S, tile: Part) {
        if let Target::F32(y) = self.y {
            for row in 0..tile.rows {
                for col in (0..tile.cols).step_by(16) {
                    s.prefetch(y.wrapping_add(self.starts.at(tile.row + row) + tile.col + col));
                }
            }
        }
    }

    /// Finishes a tile.
    ///
    /// # Safety
    /// The tile is inside y and nobody else's, and `sums` has its rows and columns. What is read of the residual is
    /// written after, so it may be y.
    #[inline(always)]
    pub(super) unsafe fn finish<S: Simd>(&self, s: S, tile: Part, sums: &mut impl TileSums<S>) {
        // SAFETY: the caller's contract.
        unsafe {
            if self.act == Act::None {
                return self.write(s, tile, sums, self.bias);
            }
            let mut values = Aligned::<f32, MOST_TILE>::new();
            let values = Rows { ptr: values.as_mut_ptr(), stride: tile.cols.next_multiple_of(S::LANES) };
            for row in 0..tile.rows {
                let of = sums.row(s, row);
                for col in (0..tile.cols).step_by(S::LANES) {
                    let mut v = sums.columns(s, of, col);
                    if let Some(bias) = self.bias {
                        let (bias, n) = (bias.as_ptr().add(tile.col + col), tile.cols - col);
                        v = s.add(v, if n < S::LANES { s.load_first(bias, n) } else { s.load(bias) });
                    }
                    s.store(values.ptr.add(row * values.stride + col), v);
                }
            }
            s.call(Activate { act: self.act, values: values.ptr, len: tile.rows * values.stride });
            let mut values = FloatSums(Rows { ptr: values.ptr.cast_const(), stride: values.stride });
            self.write(s, tile, &mut values, None);
        }
    }

    /// Writes a tile whose activation is done: bias, gate, residual, and the format of y.
    ///
    /// # Safety
    /// As [`Epilogue::finish`].
    #[inline(always)]
    unsafe fn write<S: Simd>(&self, s: S, tile: Part, sums: &mut impl TileSums<S>, bias: Option<&[f32]>) {
        let whole = tile.cols.is_multiple_of(S::LANES);
        let plain = self.gate.is_none() && self.residual.is_none() && matches!(self.y, Target::F32(_));
        // SAFETY: the caller's contract.
        unsafe {
            match (whole, plain) {
                (true, true) => self.write_as::<S, true, true>(s, tile, sums, bias),
                (true, false) => self.write_as::<S, true, false>(s, tile, sums, bias),
                _ => self.write_as::<S, false, false>(s, tile, sums, bias),
            }
        }
    }

    /// [`Epilogue::write`], where only `WHOLE` vectors are to be written, and where they are `PLAIN`: float32 without gate or
    /// residual.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn write_as<S: Simd, const WHOLE: bool, const PLAIN: bool>(
        &self,
        s: S,
        tile: Part,
        sums: &mut impl TileSums<S>,
        bias: Option<&[f32]>,
    ) {
        let bias = bias.map(|bias| bias[tile.col..].as_ptr());
        let (mut gates, mut grids) = (Groups::from(tile.row), Groups::from(tile.row));
        for row in 0..tile.rows {
            let m = tile.row + row;
            let of = sums.row(s, row);
            let gate = match &self.gate {
                Some(gate) if !PLAIN => {
                    Some(gate.ptr.wrapping_add(gate.starts.at(gates.next_group(gate.share)) + tile.col))
                }
                _ => None,
            };
            let residual = match &self.residual {
                Some((ptr, starts)) if !PLAIN => Some(ptr.wrapping_add(starts.at(m) + tile.col)),
                _ => None,
            };
            let start = self.starts.at(m) + tile.col;
            let quantizer = match self.y {
                Target::Bytes { grid, share, top, .. } if !PLAIN => {
                    let row = 2 * grids.next_group(share);
                    Some(Quantizer::of_grid([grid[row], grid[row + 1]], top).vectors(s))
                }
                _ => None,
            };
            for col in (0..tile.cols).step_by(S::LANES) {
                let n = if WHOLE { S::LANES } else { tile.cols - col };
                // SAFETY: every row has at least `col + n` elements; the caller's contract.
                unsafe {
                    let load =
                        |row: *const f32| if WHOLE { s.load(row.add(col)) } else { s.load_first(row.add(col), n) };
                    let mut v = sums.columns(s, of, col);
                    if let Some(bias) = bias {
                        v = s.add(v, load(bias));
                    }
                    v = match (gate, residual) {
                        (None, None) => v,
                        (None, Some(residual)) => s.add(load(residual), v),
                        (Some(gate), None) => s.mul(load(gate), v),
                        (Some(gate), Some(residual)) => s.mul_add(load(gate), v, load(residual)),
                    };
                    match (self.y, &quantizer) {
                        (Target::F32(y), _) if WHOLE => s.store(y.add(start + col), v),
                        (Target::F32(y), _) => s.store_first(y.add(start + col), v, n),
                        _ if PLAIN => {}
                        (Target::Bf16(y), _) => s.store_words(y.add(start + col), s.to_bf16(v), n),
                        (Target::Bytes { q, .. }, quantizer) => {
                            if let Some(quantizer) = quantizer {
                                s.store_bytes(q.add(start + col), quantizer.bytes(s, v), n);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Activates whole vectors where they are, in a function of its own, which all kinds of sums share.
struct Activate {
    act: Act,
    values: *mut f32,
    len: usize,
}

impl Kernel for Activate {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // A loop for each, which keeps its constants in registers.
        for (act, _) in Act::ALL {
            if act == self.act {
                for i in (0..self.len).step_by(S::LANES) {
                    // SAFETY: `finish`, which alone makes one, has so many values.
                    unsafe { s.store(self.values.add(i), act.apply(s, s.load(self.values.add(i)))) };
                }
            }
        }
    }
}

/// Sums that are the values themselves.
pub(super) struct FloatSums(pub(super) Rows<*const f32>);

impl<S: Simd> TileSums<S> for FloatSums {
    type Row = *const f32;

    #[inline(always)]
    fn row(&mut self, _: S, row: usize) -> *const f32 {
        self.0.ptr.wrapping_add(row * self.0.stride)
    }

    #[inline(always)]
    unsafe fn columns(&self, s: S, row: *const f32, col: usize) -> S::F {
        // SAFETY: the caller's contract; rows are padded to whole panels.
        unsafe { s.load(row.add(col)) }
    }
}
