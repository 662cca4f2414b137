//! `embedding`: rows of a table by index.

use crate::Context;
use crate::rows::for_rows;
use scoregraph_simd::{Kernel, Simd};

/// An index that names no row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfRange {
    /// Where in the indices it stands.
    pub position: usize,
    /// What it is.
    pub index: i64,
    /// How many rows the table has.
    pub rows: usize,
}

/// `y[i] = table[indices[i]]`, rows of `cols` elements.
///
/// # Errors
/// The first index that is out of range; then `y` is not written.
///
/// # Panics
/// If the sizes do not fit together.
pub fn embedding(ctx: &Context, cols: usize, table: &[f32], indices: &[i64], y: &mut [f32]) -> Result<(), OutOfRange> {
    assert_eq!(Some(y.len()), indices.len().checked_mul(cols));
    let rows = table.len().checked_div(cols).unwrap_or(usize::MAX);
    let valid = |index: i64| usize::try_from(index).is_ok_and(|index| index < rows);
    if let Some(position) = indices.iter().position(|&index| !valid(index)) {
        return Err(OutOfRange { position, index: indices[position], rows });
    }
    for_rows(ctx, cols, cols, y, |first, y| Rows { cols, table, indices: &indices[first..], y });
    Ok(())
}

struct Rows<'a> {
    cols: usize,
    table: &'a [f32],
    indices: &'a [i64],
    y: &'a mut [f32],
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (y, &index) in self.y.chunks_mut(self.cols).zip(self.indices) {
            let start = index as usize * self.cols;
            y.copy_from_slice(&self.table[start..start + self.cols]);
        }
    }
}
