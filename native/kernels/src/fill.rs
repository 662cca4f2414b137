//! `fill`: a constant everywhere.

use crate::{Context, Layout, ViewMut};

/// Writes `value` to every element of `y`.
pub fn fill(ctx: &Context, value: f32, y: &mut ViewMut) {
    if y.layout().len() == 0 {
        return;
    }
    let [layout] = Layout::merge([*y.layout()]);
    let (&cols, outer) = layout.shape().split_last().expect("a merged layout has a dimension");
    let (&step, strides) = layout.strides().split_last().expect("a merged layout has a dimension");
    let outer = Layout::new(outer, strides).expect("part of a valid layout");
    let y: &ViewMut = y;
    ctx.pool.run(outer.len(), &|row, _| {
        let start = y.as_mut_ptr().wrapping_add(outer.offset(row));
        for i in 0..cols {
            // SAFETY: an element of the view; every row is written by one tile.
            unsafe { start.add(i * step).write(value) };
        }
    });
}
