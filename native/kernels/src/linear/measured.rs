//! `linear` whose result is bytes on a grid that is measured: the grid of a row spans all of its columns.
//!
//! Rows are made as float32 in room for a block of them, which stays in the second-level cache, and quantized from there: as a
//! whole, y never exists in float32. The bytes are those of [`linear`] and [`quantize`] one after the other.

use std::ops::Range;

use scoregraph_simd::{Disjoint, Serial};

use super::{Input, Linear, Output, linear, sizes};
use crate::format::{Grid, Rows, rows_scratch};
use crate::quantize::quantize;
use crate::{Context, Layout, View, ViewMut};

/// y \[.., N\] of bytes, every row on a grid of its own that is measured.
pub struct Measured<'a> {
    /// The bytes, rows of adjacent elements.
    pub q: ViewMut<'a, u8>,
    /// \[M, 2\], rows (scale, zero), which are written.
    pub grid: &'a mut [f32],
    /// The largest byte: 255 or 127.
    pub top: u8,
    /// \[N\]: what columns are multiplied by before they are measured.
    pub smooth: Option<&'a [f32]>,
}

/// Rows of a block at most: the weights are read once for so many.
const MOST_ROWS: usize = 64;
/// Fewer rows are better made by all threads at once, which share the weights.
const LEAST_ROWS: usize = 32;
/// Floats of a block of more rows than that, somewhat more than half of a second-level cache of 2 MiB.
const MOST_FLOATS: usize = 320 << 10;

/// How y \[m, n\] is made.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Order {
    /// All rows at once, by all threads.
    Whole,
    /// Blocks of so many rows, each by one thread.
    Blocks(usize),
}

impl Order {
    /// For bytes x whose grid has `grid_rows` rows.
    fn of(x: &Layout, grid_rows: usize, y: &Layout, threads: usize) -> Order {
        let (Some((m, _, _)), Some((_, n, _))) = (x.as_rows(), y.as_rows()) else { return Order::Whole };
        if m < threads * LEAST_ROWS || (grid_rows != 1 && grid_rows != m) {
            return Order::Whole;
        }
        let most = (MOST_FLOATS / n.max(1)).clamp(LEAST_ROWS, MOST_ROWS);
        // As many for every thread.
        Order::Blocks(m.div_ceil(m.div_ceil(most).next_multiple_of(threads)))
    }
}

/// Floats of scratch of [`linear_measured`] with that many threads, beside those of [`linear`], for bytes x whose grid has
/// `grid_rows` rows.
pub fn measured_scratch(x: &Layout, grid_rows: usize, y: &Layout, threads: usize) -> usize {
    let n = y.shape().last().copied().unwrap_or(0);
    match Order::of(x, grid_rows, y, threads) {
        Order::Whole => room(y.len() / n.max(1), n, threads),
        Order::Blocks(rows) => threads * room(rows, n, 1),
    }
}

/// Floats of room for rows of float32, and for what quantizing them on `threads` threads takes: whole cache lines.
fn room(rows: usize, n: usize, threads: usize) -> usize {
    (rows * n + rows_scratch(rows, n, threads)).next_multiple_of(16)
}

/// Computes `op`, a product of bytes without gate and residual, into `y`.
///
/// # Panics
/// If the operands do not fit together, or the scratch is shorter than [`measured_scratch`] and
/// [`scratch_floats`](super::scratch_floats) say together.
pub fn linear_measured(ctx: &Context, op: &Linear, y: Measured, scratch: &mut [f32]) {
    let Input::Bytes { q: x, grid } = op.x else { panic!("a result is measured of bytes") };
    assert!(op.gate.is_none() && op.residual.is_none(), "a result that is measured has no gate and no residual");
    let (m, n, threads) = (sizes(op).0, op.cols, ctx.pool.threads());
    assert_eq!(y.grid.len(), 2 * m, "the grid of y is [M, 2]");
    let order = Order::of(x.layout(), grid.len() / 2, y.q.layout(), threads);
    let (each, k, x_stride, y_stride) = match (order, x.layout().as_rows(), y.q.layout().as_rows()) {
        (Order::Blocks(each), Some((_, k, x_stride)), Some((rows, cols, y_stride))) => {
            assert_eq!((rows, cols), (m, n), "the shape of y");
            (each, k, x_stride, y_stride)
        }
        _ => {
            let (own, rest) = scratch.split_at_mut(room(m, n, threads));
            return make(ctx, op, y, own, rest);
        }
    };
    let own = room(each, n, 1);
    let (rooms, grids) = (Disjoint::new(&mut scratch[..threads * own]), Disjoint::new(y.grid));
    let (bytes, top, smooth) = (Bytes(y.q.as_mut_ptr()), y.top, y.smooth);
    ctx.pool.run(m.div_ceil(each), &|block, thread| {
        let Range { start, end } = block * each..((block + 1) * each).min(m);
        let layout =
            |cols, stride| Layout::new(&[end - start, cols], &[stride, 1]).expect("rows of a layout that exists");
        // SAFETY: rows `start..end` lie in the views; those of y and of its grid are this block's alone, and threads that run
        // at the same time differ.
        let (x, q, grid_of_y, room) = unsafe {
            (
                View::from_raw(x.as_ptr().add(start * x_stride), layout(k, x_stride)),
                ViewMut::from_raw(bytes.row(start * y_stride), layout(n, y_stride)),
                grids.part(2 * start..2 * end),
                rooms.part(thread * own..(thread + 1) * own),
            )
        };
        let grid = if grid.len() == 2 { grid } else { &grid[2 * start..2 * end] };
        let op = Linear { x: Input::Bytes { q: x, grid }, ..*op };
        make(&Context { pool: &Serial, ..*ctx }, &op, Measured { q, grid: grid_of_y, top, smooth }, room, &mut []);
    });
}

/// The first byte of y, which threads share.
struct Bytes(*mut u8);

// SAFETY: the pointer is that of a view borrowed exclusively for the call; threads write different rows.
unsafe impl Sync for Bytes {}

impl Bytes {
    /// # Safety
    /// y has the byte.
    unsafe fn row(&self, start: usize) -> *mut u8 {
        // SAFETY: the caller's contract.
        unsafe { self.0.add(start) }
    }
}

/// Makes rows in `room` and quantizes them; `scratch` is that of [`linear`].
fn make(ctx: &Context, op: &Linear, y: Measured, room: &mut [f32], scratch: &mut [f32]) {
    let (m, n) = (sizes(op).0, op.cols);
    let (values, rest) = room.split_at_mut(m * n);
    linear(ctx, op, Output::F32(ViewMut::dense(values, &[m, n]).expect("as many floats")), scratch);
    let Measured { q, grid, top, smooth } = y;
    // With the dimensions of y, so that its rows may lie anywhere.
    let values = View::dense(values, q.shape()).expect("as many floats");
    quantize(ctx, &values, smooth, &mut Rows::Bytes { y: q, top, grid: Grid::Measured(grid) }, rest);
}
