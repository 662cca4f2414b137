//! The formats rows of floats are written in: float32, bf16, or bytes with a grid (docs/plan-format.md, Formats).
//!
//! A grid row (scale, zero) gives a byte q the value `scale * (q - zero)`. Everything here is exact or rounded operation by
//! operation, so the same floats make the same bytes on every instruction set and for any number of threads.

use scoregraph_simd::{Disjoint, Kernel, Simd};

use crate::rows::{RowStarts, fold, for_row_ranges};
use crate::{Context, ViewMut};

/// What some values span, 0 always included.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Extent {
    /// The smallest of 0 and the values.
    pub low: f32,
    /// The largest of 0 and the values.
    pub high: f32,
    /// Whether all of them are finite.
    pub finite: bool,
}

impl Extent {
    /// Of no values.
    pub const NONE: Extent = Extent { low: 0.0, high: 0.0, finite: true };

    /// Of the values of both.
    pub fn join(self, other: Extent) -> Extent {
        Extent { low: self.low.min(other.low), high: self.high.max(other.high), finite: self.finite && other.finite }
    }

    /// Of the values, each times `factor`: exactly what their products span, since rounding keeps their order.
    pub(crate) fn times(self, factor: f32) -> Extent {
        let (a, b) = (self.low * factor, self.high * factor);
        Extent { low: a.min(b), high: a.max(b), finite: self.finite && factor.is_finite() }
    }

    /// Of a row.
    #[inline(always)]
    pub(crate) fn of<S: Simd>(s: S, row: &[f32]) -> Extent {
        let zero = s.splat(0.0);
        let [low, high, poison] = fold(
            s,
            row,
            zero,
            [zero; 3],
            // The order of the operands lets a NaN leave the extremes alone; a product with 0 keeps it, and infinities.
            #[inline(always)]
            |[low, high, poison], x| [s.min(x, low), s.max(x, high), s.mul_add(x, zero, poison)],
            #[inline(always)]
            |[a, b, c], [d, e, f]| [s.min(a, d), s.max(b, e), s.add(c, f)],
        );
        Extent { low: s.reduce_min(low), high: s.reduce_max(high), finite: s.reduce_add(poison) == 0.0 }
    }

    /// Two floats that [`span_groups`] reads.
    pub(crate) fn pack(self) -> [f32; 2] {
        [if self.finite { self.low } else { f32::NAN }, self.high]
    }

    fn unpack(packed: [f32; 2]) -> Extent {
        Extent { low: if packed[0].is_nan() { 0.0 } else { packed[0] }, high: packed[1], finite: !packed[0].is_nan() }
    }
}

/// How floats become bytes: `q = clamp(rne(x * inv) + zero, 0, top)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quantizer {
    inv: f32,
    zero: f32,
    top: u8,
}

impl Quantizer {
    /// The grid row that spans `extent` with the bytes 0 … `top`, and its quantizer.
    #[inline(always)]
    pub fn spanning(extent: Extent, top: u8) -> ([f32; 2], Quantizer) {
        let (range, levels) = (extent.high - extent.low, f32::from(top));
        if !extent.finite || !range.is_finite() {
            return ([f32::NAN, 0.0], Quantizer { inv: 0.0, zero: 0.0, top });
        }
        let inv = levels / range;
        if !inv.is_finite() {
            // A range of 0, or one so small that it counts as 0.
            return ([0.0; 2], Quantizer { inv: 0.0, zero: 0.0, top });
        }
        // Adding 0 makes a -0 the usual one.
        let zero = (-extent.low * inv).round_ties_even() + 0.0;
        ([range / levels, zero], Quantizer { inv, zero, top })
    }

    /// The quantizer of a grid row that was chosen before. A zero that is none (not a whole number of 0 … `top`) counts as 0.
    #[inline(always)]
    pub fn of_grid(grid: [f32; 2], top: u8) -> Quantizer {
        let [scale, zero] = grid;
        let inv = 1.0 / scale;
        let whole = zero.fract() == 0.0 && (0.0..=f32::from(top)).contains(&zero);
        Quantizer { inv: if inv.is_finite() { inv } else { 0.0 }, zero: if whole { zero + 0.0 } else { 0.0 }, top }
    }

    /// In vectors.
    #[inline(always)]
    pub(crate) fn vectors<S: Simd>(self, s: S) -> QuantizeVector<S> {
        QuantizeVector {
            inv: s.splat(self.inv),
            low: s.splat(-self.zero),
            high: s.splat(f32::from(self.top) - self.zero),
            zero: s.splat_i(self.zero as i32),
            top: self.top,
        }
    }
}

/// A [`Quantizer`] in vectors.
#[derive(Clone, Copy)]
pub(crate) struct QuantizeVector<S: Simd> {
    inv: S::F,
    low: S::F,
    high: S::F,
    zero: S::I,
    top: u8,
}

impl<S: Simd> QuantizeVector<S> {
    /// The bytes of `x`, a lane each, 0 … top whatever it is: buffers of 7-bit bytes rely on that. That of a NaN is 0.
    #[inline(always)]
    pub(crate) fn bytes(&self, s: S, x: S::F) -> S::I {
        // Clamped before it is rounded, which is the same since the bounds are whole, and keeps it in the range of integers.
        let x = s.min(s.max(s.mul(x, self.inv), self.low), self.high);
        s.add_i(s.round_i(x), self.zero)
    }

    /// The bytes of four values of each lane side by side, the first lowest; that of a NaN is 0.
    #[inline(always)]
    pub(crate) fn quads(&self, s: S, x: [S::F; 4]) -> S::I {
        let mut parts = [self.zero; 4];
        for (part, x) in parts.iter_mut().zip(x) {
            // Only from above do values have to be kept in the range of integers: what is below it, and a NaN, becomes the
            // least, and bytes saturate at 0.
            *part = s.add_i(s.round_i(s.min(self.high, s.mul(x, self.inv))), self.zero);
        }
        s.join_bytes(parts)
    }

    /// The bytes of a row.
    ///
    /// # Safety
    /// `to` has room for as many bytes as the row has elements.
    #[inline(always)]
    pub(crate) unsafe fn row(&self, s: S, row: &[f32], to: *mut u8) {
        // SAFETY: the caller's contract.
        unsafe {
            self.blocks(
                s,
                row,
                to,
                #[inline(always)]
                |x| self.bytes(s, x),
            );
        }
    }

    /// The bytes of a row that the grid spans: its largest value may round beyond the last byte, which storing clamps. A NaN's
    /// is the least integer, and so 0; where there is one, so is the grid's zero.
    ///
    /// # Safety
    /// As [`QuantizeVector::row`].
    #[inline(always)]
    pub(crate) unsafe fn spanned_row(&self, s: S, row: &[f32], to: *mut u8) {
        // SAFETY: the caller's contract.
        unsafe {
            self.blocks(
                s,
                row,
                to,
                #[inline(always)]
                |x| s.add_i(s.round_i(s.mul(x, self.inv)), self.zero),
            );
        }
    }

    /// Writes the bytes of a row: of whole blocks of four vectors those that `bytes` makes, clamped.
    ///
    /// # Safety
    /// As [`QuantizeVector::row`].
    #[inline(always)]
    unsafe fn blocks(&self, s: S, row: &[f32], to: *mut u8, bytes: impl Fn(S::F) -> S::I) {
        let mut blocks = row.chunks_exact(4 * S::LANES);
        let mut at = 0;
        for block in &mut blocks {
            let mut four = [self.zero; 4];
            for (i, own) in four.iter_mut().enumerate() {
                // SAFETY: the block has four vectors.
                *own = bytes(unsafe { s.load(block.as_ptr().add(i * S::LANES)) });
            }
            // SAFETY: the caller's contract.
            unsafe { s.store_clamped(to.add(at), four, self.top) };
            at += block.len();
        }
        for_vectors(
            s,
            blocks.remainder(),
            #[inline(always)]
            // SAFETY: `at + rest + n <= row.len()`, and the caller's contract.
            |rest, n, x| unsafe { s.store_bytes(to.add(at + rest), self.bytes(s, x), n) },
        );
    }
}

/// Calls `f(first element, how many, values)` for the vectors of a row.
#[inline(always)]
pub(crate) fn for_vectors<S: Simd>(s: S, row: &[f32], f: impl Fn(usize, usize, S::F)) {
    let mut whole = row.chunks_exact(S::LANES);
    let mut at = 0;
    for x in &mut whole {
        // SAFETY: the chunk has LANES elements.
        f(at, S::LANES, unsafe { s.load(x.as_ptr()) });
        at += S::LANES;
    }
    let rest = whole.remainder();
    if !rest.is_empty() {
        // SAFETY: only the elements of `rest` are read.
        f(at, rest.len(), unsafe { s.load_first(rest.as_ptr(), rest.len()) });
    }
}

/// Where a grid comes from: [R, 2], of rows (scale, zero), for R equal groups of rows.
pub enum Grid<'a> {
    /// It was chosen before.
    Given(&'a [f32]),
    /// It is made to span the very values that are quantized, and written here.
    Measured(&'a mut [f32]),
}

impl Grid<'_> {
    /// R.
    pub fn rows(&self) -> usize {
        match self {
            Grid::Given(grid) => grid.len() / 2,
            Grid::Measured(grid) => grid.len() / 2,
        }
    }
}

/// Rows of a result, in one of the formats.
pub enum Rows<'a> {
    /// float32
    F32(ViewMut<'a>),
    /// bf16, rounded to nearest even
    Bf16(ViewMut<'a, u16>),
    /// Bytes 0 … `top` with a grid.
    Bytes {
        /// The bytes.
        y: ViewMut<'a, u8>,
        /// 255 for u8, 127 for u7.
        top: u8,
        /// Its grid, whose number of rows divides that of y.
        grid: Grid<'a>,
    },
}

/// Rows of floats, made one at a time.
pub(crate) trait MakeRow: Sync {
    /// Row `m`: in `room`, which is as long, or where it is already.
    ///
    /// `#[inline(always)]`, as everything that computes with vectors.
    fn row<'r, S: Simd>(&'r self, s: S, m: usize, room: &'r mut [f32]) -> &'r [f32];
}

/// Floats of working memory that [`write_rows`] needs with that many threads for rows of `cols`.
pub fn rows_scratch(rows: usize, cols: usize, threads: usize) -> usize {
    2 * rows + threads * room_floats(cols)
}

/// Floats of a thread's room: for rows that are measured together, of whole cache lines each.
fn room_floats(cols: usize) -> usize {
    TOGETHER * row_floats(cols)
}

/// Floats from one row of a thread's room to the next.
fn row_floats(cols: usize) -> usize {
    cols.next_multiple_of(16)
}

/// Writes `rows` rows of `cols` elements.
///
/// # Panics
/// If the result is of another shape, its rows are not adjacent elements, the rows of a grid do not divide its own, or the
/// scratch is shorter than [`rows_scratch`] says.
pub(crate) fn write_rows<M: MakeRow>(
    ctx: &Context,
    (rows, cols): (usize, usize),
    made: &M,
    out: &mut Rows,
    scratch: &mut [f32],
) {
    let layout = match out {
        Rows::F32(y) => *y.layout(),
        Rows::Bf16(y) => *y.layout(),
        Rows::Bytes { y, .. } => *y.layout(),
    };
    let starts = RowStarts::new(&layout).expect("rows of the result have adjacent elements");
    assert_eq!((starts.rows, starts.cols), (rows, cols), "the shape of the result");
    let (extents, rooms) = match out {
        Rows::F32(_) => (&mut [][..], &mut [][..]),
        _ => scratch[..rows_scratch(rows, cols, ctx.pool.threads())].split_at_mut(2 * rows),
    };
    let rooms = Disjoint::new(rooms);
    // SAFETY: two tiles that run at the same time have different threads.
    let room = |thread: usize| unsafe { rooms.part(thread * room_floats(cols)..(thread + 1) * room_floats(cols)) };
    let run = |finish: &Finish| {
        for_row_ranges(ctx, rows, cols, |range, thread| {
            let room = if matches!(finish, Finish::Store(_)) { &mut [] } else { room(thread) };
            ctx.isa.dispatch(Tile { made, range, cols, starts: &starts, room, finish });
        });
    };
    match out {
        Rows::F32(y) => run(&Finish::Store(y)),
        Rows::Bf16(y) => run(&Finish::Round(y)),
        Rows::Bytes { y, top, grid } => {
            assert!(grid.rows() > 0 && rows.is_multiple_of(grid.rows()), "{} grid rows of {rows} rows", grid.rows());
            let (share, top) = (rows / grid.rows(), *top);
            match grid {
                Grid::Given(grid) => {
                    let known = |row: usize| Quantizer::of_grid([grid[2 * row], grid[2 * row + 1]], top);
                    run(&Finish::Quantize { y, share, known: &known });
                }
                Grid::Measured(grid) if share == 1 => {
                    let grid = Disjoint::new(grid);
                    for_row_ranges(ctx, rows, cols, |range, thread| {
                        let (starts, room) = (&starts, room(thread));
                        ctx.isa.dispatch(MeasuredTile { made, range, cols, starts, room, y, top, grid: &grid });
                    });
                }
                Grid::Measured(grid) => {
                    run(&Finish::Measure(Disjoint::new(extents)));
                    let known = span_groups(extents, share, top, grid);
                    run(&Finish::Quantize { y, share, known: &|row| known.get(row) });
                }
            }
        }
    }
}

/// What becomes of a row of floats.
enum Finish<'a> {
    /// It is made in its place.
    Store(&'a ViewMut<'a>),
    /// It is rounded to bf16.
    Round(&'a ViewMut<'a, u16>),
    /// Its extent is kept, [rows, 2].
    Measure(Disjoint<'a, f32>),
    /// Its bytes are written, with the quantizer of its `share` rows.
    Quantize { y: &'a ViewMut<'a, u8>, share: usize, known: &'a (dyn Fn(usize) -> Quantizer + Sync) },
}

/// Some rows, on one thread.
struct Tile<'a, M> {
    made: &'a M,
    range: std::ops::Range<usize>,
    cols: usize,
    starts: &'a RowStarts,
    room: &'a mut [f32],
    finish: &'a Finish<'a>,
}

impl<M: MakeRow> Kernel for Tile<'_, M> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for m in self.range {
            let start = self.starts.at(m);
            let room = match self.finish {
                // SAFETY: the row lies in the view, which is borrowed exclusively, and only this tile touches it.
                Finish::Store(y) => unsafe { std::slice::from_raw_parts_mut(y.as_mut_ptr().add(start), self.cols) },
                _ => &mut self.room[..self.cols],
            };
            let to = room.as_mut_ptr();
            let row = self.made.row(s, m, room);
            debug_assert_eq!(row.len(), self.cols);
            // SAFETY: row `m` of the views has `cols` elements from `start` on, and only this tile touches it and the
            // row's part of the extents or the grid.
            unsafe {
                match self.finish {
                    Finish::Store(_) if std::ptr::eq(row.as_ptr(), to) => {}
                    Finish::Store(_) => to.copy_from_nonoverlapping(row.as_ptr(), self.cols),
                    Finish::Round(y) => round_row(s, row, y.as_mut_ptr().add(start)),
                    Finish::Measure(extents) => {
                        extents.part(2 * m..2 * m + 2).copy_from_slice(&Extent::of(s, row).pack());
                    }
                    Finish::Quantize { y, share, known } => {
                        known(m / share).vectors(s).row(s, row, y.as_mut_ptr().add(start));
                    }
                }
            }
        }
    }
}

/// Rows that are measured before the first of them is quantized: the end of measuring one hides behind the next one's.
const TOGETHER: usize = 4;

/// Some rows, each with a grid row of its own that spans it, on one thread.
struct MeasuredTile<'a, M> {
    made: &'a M,
    range: std::ops::Range<usize>,
    cols: usize,
    starts: &'a RowStarts,
    room: &'a mut [f32],
    y: &'a ViewMut<'a, u8>,
    top: u8,
    grid: &'a Disjoint<'a, f32>,
}

impl<M: MakeRow> Kernel for MeasuredTile<'_, M> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for first in self.range.clone().step_by(TOGETHER) {
            let count = TOGETHER.min(self.range.end - first);
            let mut rows = [&[][..]; TOGETHER];
            let mut extents = [Extent::NONE; TOGETHER];
            let rooms = self.room.chunks_exact_mut(row_floats(self.cols));
            for ((i, row), room) in rows[..count].iter_mut().enumerate().zip(rooms) {
                *row = self.made.row(s, first + i, &mut room[..self.cols]);
            }
            for (extent, row) in extents.iter_mut().zip(&rows[..count]) {
                *extent = Extent::of(s, row);
            }
            let spanning = extents.map(
                #[inline(always)]
                |extent| Quantizer::spanning(extent, self.top),
            );
            for (m, (row, (own, quantizer))) in (first..).zip(rows[..count].iter().zip(spanning)) {
                // SAFETY: row `m` of y has `cols` elements, and only this tile touches it and its row of the grid.
                unsafe {
                    self.grid.part(2 * m..2 * m + 2).copy_from_slice(&own);
                    quantizer.vectors(s).spanned_row(s, row, self.y.as_mut_ptr().add(self.starts.at(m)));
                }
            }
        }
    }
}

/// The bf16 of a row.
///
/// # Safety
/// `to` has room for as many elements as the row has.
#[inline(always)]
unsafe fn round_row<S: Simd>(s: S, row: &[f32], to: *mut u16) {
    for_vectors(
        s,
        row,
        #[inline(always)]
        // SAFETY: `at + n <= row.len()`, and the caller's contract.
        |at, n, x| unsafe { s.store_words(to.add(at), s.to_bf16(x), n) },
    );
}

/// The quantizers of groups, packed where their extents were.
pub(crate) struct Spanned<'a> {
    packed: &'a [f32],
    top: u8,
}

impl Spanned<'_> {
    /// That of group `row`.
    pub(crate) fn get(&self, row: usize) -> Quantizer {
        Quantizer { inv: self.packed[2 * row], zero: self.packed[2 * row + 1], top: self.top }
    }
}

/// Joins the extents (as [`Extent::pack`] makes them) of every `share` parts, and writes the grid rows that span them.
pub(crate) fn span_groups<'a>(extents: &'a mut [f32], share: usize, top: u8, grid: &mut [f32]) -> Spanned<'a> {
    for (group, own) in grid.chunks_exact_mut(2).enumerate() {
        let parts = extents[2 * group * share..2 * (group + 1) * share].chunks_exact(2);
        let extent = parts.map(|part| Extent::unpack([part[0], part[1]])).fold(Extent::NONE, Extent::join);
        let (row, Quantizer { inv, zero, .. }) = Quantizer::spanning(extent, top);
        own.copy_from_slice(&row);
        // Group `group` is packed at or before its first part, which has been read.
        extents[2 * group..2 * group + 2].copy_from_slice(&[inv, zero]);
    }
    Spanned { packed: extents, top }
}
