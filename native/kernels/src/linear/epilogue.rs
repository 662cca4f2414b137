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
    /// What the rows of a vector of columns have in common.
    type Columns: Copy;

    /// Row `row` of the tile.
    ///
    /// # Safety
    /// The tile has that row.
    unsafe fn row(&self, s: S, row: usize) -> Self::Row;

    /// The columns from `col` on.
    ///
    /// # Safety
    /// The tile has column `col`; less than `LANES` columns may be missing at its end.
    unsafe fn columns(&self, s: S, col: usize) -> Self::Columns;

    /// The sums of a row in columns from `col` on.
    ///
    /// # Safety
    /// Both are of this tile.
    unsafe fn sums(&self, s: S, row: Self::Row, columns: Self::Columns, col: usize) -> S::F;
}

/// A checked call: every pointer's elements exist as far as M and N say.
pub(super) struct Epilogue<'a> {
    bias: Option<&'a [f32]>,
    act: Act,
    gate: Option<Gate>,
    residual: Option<(*const f32, RowStarts)>,
    y: Target<'a>,
    starts: RowStarts,
    /// How far the rows of y are apart, if evenly.
    stride: Option<usize>,
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
        let starts = row_starts(&layout, (m, n), "y");
        let stride = layout.as_rows().map(|(_, _, stride)| stride);
        Epilogue { bias: op.bias, act: op.act, gate, residual, y, starts, stride }
    }

    /// The rows of a tile of y that [`Epilogue::finish`] will write, where they are of float32.
    #[inline(always)]
    pub(super) fn ahead(&self, tile: Part) -> Option<Rows<*const f32>> {
        let (Target::F32(y), Some(stride)) = (self.y, self.stride) else { return None };
        Some(Rows { ptr: y.cast_const().wrapping_add(tile.row * stride + tile.col), stride })
    }

    /// Finishes a tile.
    ///
    /// # Safety
    /// The tile is inside y and nobody else's, and `sums` has its rows and columns. What is read of the residual is
    /// written after, so it may be y.
    #[inline(always)]
    pub(super) unsafe fn finish<S: Simd>(&self, s: S, tile: Part, sums: &impl TileSums<S>) {
        let bias = self.bias.map(|bias| bias[tile.col..].as_ptr());
        // SAFETY: the caller's contract.
        unsafe {
            if self.act == Act::None {
                return self.write(s, tile, sums, bias);
            }
            let mut values = Aligned::<f32, MOST_TILE>::new();
            let values = Rows { ptr: values.as_mut_ptr(), stride: tile.cols.next_multiple_of(S::LANES) };
            store_rows(s, tile, sums, bias, values);
            let plain = self.plain::<S>(tile);
            let (cols, to) = (values.stride, plain.unwrap_or(values));
            s.call(Activate { act: self.act, values, rows: tile.rows, cols, to });
            if plain.is_none() {
                let values = FloatSums(Rows { ptr: values.ptr.cast_const(), stride: values.stride });
                self.write(s, tile, &values, None);
            }
        }
    }

    /// The rows of a tile of y, if whole vectors of float32 may be written there and there is no gate and no residual.
    #[inline(always)]
    fn plain<S: Simd>(&self, tile: Part) -> Option<Rows<*mut f32>> {
        let (Target::F32(y), Some(stride)) = (self.y, self.stride) else { return None };
        let plain = self.gate.is_none() && self.residual.is_none() && tile.cols.is_multiple_of(S::LANES);
        plain.then(|| Rows { ptr: y.wrapping_add(tile.row * stride + tile.col), stride })
    }

    /// Writes a tile whose activation is done: bias, gate, residual, and the format of y.
    ///
    /// # Safety
    /// As [`Epilogue::finish`]; `bias` has as many elements as the tile has columns.
    #[inline(always)]
    unsafe fn write<S: Simd>(&self, s: S, tile: Part, sums: &impl TileSums<S>, bias: Option<*const f32>) {
        // SAFETY: the caller's contract.
        unsafe {
            match self.plain::<S>(tile) {
                Some(to) => store_rows(s, tile, sums, bias, to),
                None if tile.cols == 2 * S::LANES => self.write_as::<S, true>(s, tile, sums, bias),
                None => self.write_as::<S, false>(s, tile, sums, bias),
            }
        }
    }

    /// [`Epilogue::write`] for a `PAIR` of vectors in a row, which is what most tiles have, or for any number.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn write_as<S: Simd, const PAIR: bool>(
        &self,
        s: S,
        tile: Part,
        sums: &impl TileSums<S>,
        bias: Option<*const f32>,
    ) {
        let (mut gates, mut grids) = (Groups::from(tile.row), Groups::from(tile.row));
        // SAFETY: a pair of vectors is all columns of the tile.
        let pair = unsafe { [sums.columns(s, 0), sums.columns(s, if PAIR { S::LANES } else { 0 })] };
        for row in 0..tile.rows {
            let m = tile.row + row;
            // SAFETY: a row of the tile.
            let of = unsafe { sums.row(s, row) };
            let gate = self
                .gate
                .as_ref()
                .map(|gate| gate.ptr.wrapping_add(gate.starts.at(gates.next_group(gate.share)) + tile.col));
            let residual = self.residual.as_ref().map(|(ptr, starts)| ptr.wrapping_add(starts.at(m) + tile.col));
            let start = self.starts.at(m) + tile.col;
            let quantizer = match self.y {
                Target::Bytes { grid, share, top, .. } => {
                    let row = 2 * grids.next_group(share);
                    Some(Quantizer::of_grid([grid[row], grid[row + 1]], top).vectors(s))
                }
                _ => None,
            };
            for col in (0..if PAIR { 2 * S::LANES } else { tile.cols }).step_by(S::LANES) {
                let n = if PAIR { S::LANES } else { tile.cols - col };
                // SAFETY: every row has at least `col + n` elements; the caller's contract.
                unsafe {
                    let load =
                        |row: *const f32| if PAIR { s.load(row.add(col)) } else { s.load_first(row.add(col), n) };
                    let columns = if PAIR { pair[col / S::LANES] } else { sums.columns(s, col) };
                    let mut v = sums.sums(s, of, columns, col);
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
                        (Target::F32(y), _) if PAIR => s.store(y.add(start + col), v),
                        (Target::F32(y), _) => s.store_first(y.add(start + col), v, n),
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

/// Writes `sums + bias` of a tile in whole vectors.
///
/// # Safety
/// A tile's columns, made whole vectors, are in `sums` and writable in the rows of `to`; `bias` has those that the tile has.
#[inline(always)]
unsafe fn store_rows<S: Simd>(s: S, tile: Part, sums: &impl TileSums<S>, bias: Option<*const f32>, to: Rows<*mut f32>) {
    // SAFETY: the caller's contract.
    unsafe {
        if tile.cols == 2 * S::LANES {
            // What most tiles have. To add -0 changes nothing, not even the sign of 0.
            let none = [s.splat(-0.0); 2];
            let bias = bias.map_or(
                none,
                #[inline(always)]
                |bias| [s.load(bias), s.load(bias.add(S::LANES))],
            );
            let pair = [sums.columns(s, 0), sums.columns(s, S::LANES)];
            for row in 0..tile.rows {
                let (of, to) = (sums.row(s, row), to.ptr.add(row * to.stride));
                for v in 0..2 {
                    let col = v * S::LANES;
                    s.store(to.add(col), s.add(sums.sums(s, of, pair[v], col), bias[v]));
                }
            }
            return;
        }
        for row in 0..tile.rows {
            let (of, to) = (sums.row(s, row), to.ptr.add(row * to.stride));
            for col in (0..tile.cols).step_by(S::LANES) {
                let mut value = sums.sums(s, of, sums.columns(s, col), col);
                if let Some(bias) = bias {
                    value = s.add(value, s.load_first(bias.add(col), tile.cols - col));
                }
                s.store(to.add(col), value);
            }
        }
    }
}

/// Activates whole vectors of rows, where they are or into others, in a function of its own, which all kinds of sums share.
struct Activate {
    act: Act,
    values: Rows<*mut f32>,
    rows: usize,
    cols: usize,
    to: Rows<*mut f32>,
}

impl Kernel for Activate {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Activate { values, to, .. } = self;
        // A loop for each, which keeps its constants in registers.
        for (act, _) in Act::ALL {
            if act == self.act {
                for row in 0..self.rows {
                    // SAFETY: `finish`, which alone makes one, has so many rows of so many values.
                    unsafe {
                        let (from, to) = (values.ptr.add(row * values.stride), to.ptr.add(row * to.stride));
                        if self.cols == 2 * S::LANES {
                            for col in [0, S::LANES] {
                                s.store(to.add(col), act.apply(s, s.load(from.add(col))));
                            }
                            continue;
                        }
                        for col in (0..self.cols).step_by(S::LANES) {
                            s.store(to.add(col), act.apply(s, s.load(from.add(col))));
                        }
                    }
                }
            }
        }
    }
}

/// Sums that are the values themselves.
pub(super) struct FloatSums(pub(super) Rows<*const f32>);

impl<S: Simd> TileSums<S> for FloatSums {
    type Row = *const f32;
    type Columns = ();

    #[inline(always)]
    unsafe fn row(&self, _: S, row: usize) -> *const f32 {
        self.0.ptr.wrapping_add(row * self.0.stride)
    }

    #[inline(always)]
    unsafe fn columns(&self, _: S, _: usize) {}

    #[inline(always)]
    unsafe fn sums(&self, s: S, row: *const f32, _: (), col: usize) -> S::F {
        // SAFETY: the caller's contract; rows are padded to whole panels.
        unsafe { s.load(row.add(col)) }
    }
}
