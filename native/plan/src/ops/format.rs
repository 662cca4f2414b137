//! Results that may be f32, bf16 or bytes with a grid (docs/plan-format.md, Formats).

use scoregraph_kernels::Layout;
use scoregraph_kernels::format::{Grid, Rows};

use super::norm::vector;
use super::{Args, Frame};
use crate::fault::{Fault, Result};
use crate::operand::Operand;
use crate::schema::DType;

/// The largest byte of a quantized type; none for the others.
pub(super) fn top(dtype: DType) -> Option<u8> {
    match dtype {
        DType::U8 => Some(255),
        DType::U7 => Some(127),
        _ => None,
    }
}

/// The grid of a result: chosen before, or measured by the call.
pub(super) enum GridOperand {
    /// The operand `ygrid`.
    Given(Operand),
    /// The result `ygrid`.
    Measured(Operand),
}

impl GridOperand {
    /// The role `ygrid` among the operands or the results, of rows that evenly share `rows` of y.
    pub(super) fn of(args: &Args<'_>, rows: usize) -> Result<GridOperand> {
        let (given, measured) = (args.optional("ygrid")?, args.optional_output("ygrid")?);
        let found = match (given, measured) {
            (Some(grid), None) => GridOperand::Given(grid),
            (None, Some(grid)) => GridOperand::Measured(grid),
            (None, None) => return Err(Fault::plan("y is quantized; ygrid must be an operand or a result")),
            (Some(_), Some(_)) => return Err(Fault::plan("ygrid is an operand and a result; only one can be")),
        };
        let (GridOperand::Given(grid) | GridOperand::Measured(grid)) = &found;
        check_grid(grid, "ygrid", rows)?;
        Ok(found)
    }

    /// Where it lies.
    ///
    /// # Safety
    /// As [`super::Kernel::run`].
    pub(super) unsafe fn grid<'a>(&self, frame: &Frame<'a>) -> Grid<'a> {
        // SAFETY: promised by the caller.
        unsafe {
            match self {
                GridOperand::Given(grid) => Grid::Given(frame.slice(grid)),
                GridOperand::Measured(grid) => Grid::Measured(frame.slice_mut(grid)),
            }
        }
    }
}

/// Fails unless `grid` is dense f32 [R, 2] for an R that divides `rows`; returns R.
pub(super) fn check_grid(grid: &Operand, role: &str, rows: usize) -> Result<usize> {
    grid.expect_dense(role)?;
    match *grid.shape() {
        [own, 2] if grid.dtype == DType::F32 && rows.is_multiple_of(own) => Ok(own),
        _ => Err(Fault::plan(format!(
            "{role} is {} {:?}, not f32 [R, 2] with R rows that divide {rows}",
            grid.dtype,
            grid.shape()
        ))),
    }
}

/// The operand `smooth` of a result of type `y`: what its channels (columns) are multiplied by before they are quantized.
pub(super) fn smooth(args: &Args<'_>, y: DType, channels: usize) -> Result<Option<Operand>> {
    let found = vector(args, "smooth", channels)?;
    match found {
        Some(_) if top(y).is_none() => {
            Err(Fault::plan(format!("y is {y}; smooth belongs to a result that is quantized, u8 or u7")))
        }
        found => Ok(found),
    }
}

/// A result of rows.
pub(super) struct RowsOperand {
    y: Operand,
    grid: Option<(u8, GridOperand)>,
}

impl RowsOperand {
    /// The result `y` of the shape `shape`, whose rows may be strided, in any format that rows are written in.
    pub(super) fn of(args: &Args<'_>, shape: &[usize]) -> Result<RowsOperand> {
        let y = args.output_any("y")?;
        y.expect_shape("y", shape)?;
        let (rows, _) = expect_rows(&y, "y")?;
        let grid = match (top(y.dtype), y.dtype) {
            (Some(top), _) => Some((top, GridOperand::of(args, rows)?)),
            (None, DType::F32 | DType::Bf16) => None,
            (None, other) => return Err(Fault::plan(format!("y is {other}, not f32, bf16, u8 or u7"))),
        };
        Ok(RowsOperand { y, grid })
    }

    /// In what its elements are written.
    pub(super) fn dtype(&self) -> DType {
        self.y.dtype
    }

    /// Where it lies.
    ///
    /// # Safety
    /// As [`super::Kernel::run`].
    pub(super) unsafe fn rows<'a>(&self, frame: &Frame<'a>) -> Rows<'a> {
        // SAFETY: promised by the caller; the types are those of the dtypes.
        unsafe {
            match &self.grid {
                Some((top, grid)) => Rows::Bytes { y: frame.view_mut(&self.y), top: *top, grid: grid.grid(frame) },
                None if self.y.dtype == DType::Bf16 => Rows::Bf16(frame.view_mut(&self.y)),
                None => Rows::F32(frame.view_mut(&self.y)),
            }
        }
    }
}

/// The number and length of the rows of an operand; fails unless elements of a row are adjacent.
pub(super) fn expect_rows(operand: &Operand, role: &str) -> Result<(usize, usize)> {
    operand.expect_plain(role)?;
    let layout: &Layout = &operand.layout;
    match (layout.shape().last(), layout.strides().last()) {
        (Some(&cols), Some(&stride)) if cols == 1 || stride == 1 => Ok((layout.len() / cols, cols)),
        (None, _) | (_, None) => Err(Fault::plan(format!("{role} has no dimension"))),
        _ => Err(Fault::plan(format!("the elements of a row of {role} must be adjacent"))),
    }
}
