//! `select_row`: the part of a constant or a value that belongs to the current step.

use super::sampling::{Entry, choose_row, whole_below};
use super::{Args, Frame, Kernel, Target};
use crate::fault::{Fault, Result};
use crate::operand::Operand;

struct SelectRow {
    x: Operand,
    y: Operand,
    /// Rows there are to select from.
    rows: usize,
    /// Parts of x that have such rows each: 1, or the samples.
    parts: usize,
    which: Which,
}

/// The number of the row.
enum Which {
    /// What a table's entry says.
    Entry(Entry),
    /// That of the table's row; none is the loop's current one.
    Row(Option<usize>),
}

pub(super) fn select_row(args: &Args<'_>, _: Target) -> Result<Box<dyn Kernel>> {
    let (x, y) = (args.input_any("x")?, args.output_any("y")?);
    x.expect_dense("x")?;
    y.expect_dense("y")?;
    if x.dtype != y.dtype {
        return Err(Fault::plan(format!("x is {} and y is {}", x.dtype, y.dtype)));
    }
    let axis = args.count("axis")?;
    let unfit = || Fault::plan(format!("x of {:?} does not have rows of {:?} along {axis}", x.shape(), y.shape()));
    let (parts, rows) = match (axis, x.shape(), y.shape()) {
        (0, [rows, rest @ ..], own) if rest == own => (1, *rows),
        (1, [parts, rows, rest @ ..], [own_parts, own @ ..]) if rest == own && parts == own_parts => (*parts, *rows),
        (0 | 1, ..) => return Err(unfit()),
        _ => return Err(args.wrong("axis", "0 or 1")),
    };
    let which = if args.optional_count("column")?.is_some() {
        Which::Entry(Entry::of(args)?)
    } else {
        let table = args.table()?;
        let row = choose_row(args, table, args.optional_count("row")?)?;
        let last = row.or(args.loop_table.map(|clock| clock.rows - 1)).unwrap_or(0);
        if last >= rows {
            return Err(Fault::plan(format!("x has {rows} rows; row {last} of the table has none")));
        }
        Which::Row(row)
    };
    Ok(Box::new(SelectRow { x, y, rows, parts, which }))
}

impl Kernel for SelectRow {
    unsafe fn run(&self, frame: &Frame<'_>) -> Result<()> {
        let row = match &self.which {
            Which::Row(row) => row.unwrap_or(frame.row),
            // SAFETY: the contract of `run`.
            Which::Entry(entry) => whole_below(unsafe { entry.get(frame) }, self.rows, "row")?,
        };
        let bytes = self.y.numel() / self.parts * self.y.dtype.size();
        for part in 0..self.parts {
            // SAFETY: the contract of `run`: x and y lie in their regions and do not overlap; x is [parts, rows, …] and y
            // [parts, …] with `bytes` bytes of each row, and `row < rows`.
            unsafe {
                let from = frame.address(&self.x).add((part * self.rows + row) * bytes);
                frame.address(&self.y).add(part * bytes).copy_from_nonoverlapping(from, bytes);
            }
        }
        Ok(())
    }
}
