//! `quantize`: rows and images of floats as bytes with a grid, or as bf16.

use scoregraph_kernels::Layout;
use scoregraph_kernels::quantize::{
    quantize as quantize_kernel, quantize_image as quantize_image_kernel, quantize_image_scratch, rows_scratch,
};

use super::format::{GridOperand, RowsOperand, expect_rows, smooth, top};
use super::{Args, Frame, Kernel, Target};
use crate::fault::{Fault, Result};
use crate::operand::Operand;
use crate::schema::DType;

pub(super) fn quantize(args: &Args<'_>, _: Target) -> Result<Box<dyn Kernel>> {
    let x = args.input("x")?;
    let y = args.output_any("y")?;
    if x.shape().len() == 4 && y.shape().len() == 5 {
        return image(args, x, y);
    }
    let (rows, cols) = expect_rows(&x, "x")?;
    let y = RowsOperand::of(args, x.shape())?;
    if y.dtype() == DType::F32 {
        return Err(Fault::plan("y is f32, as x is; use copy"));
    }
    Ok(Box::new(QuantizeRows { smooth: smooth(args, y.dtype(), cols)?, x, y, rows, cols }))
}

struct QuantizeRows {
    x: Operand,
    smooth: Option<Operand>,
    y: RowsOperand,
    rows: usize,
    cols: usize,
}

impl Kernel for QuantizeRows {
    unsafe fn run(&self, frame: &Frame<'_>) -> Result<()> {
        // SAFETY: the contract of `run`.
        unsafe {
            let smooth = self.smooth.as_ref().map(|smooth| frame.slice(smooth));
            quantize_kernel(&frame.context(), &frame.view(&self.x), smooth, &mut self.y.rows(frame), frame.scratch());
        }
        Ok(())
    }

    fn work(&self) -> Option<usize> {
        // Reading an element twice and writing it takes as long as some products.
        Some(self.x.numel().saturating_mul(8))
    }

    fn scratch_floats(&self, threads: usize) -> usize {
        rows_scratch(self.rows, self.cols, threads)
    }
}

struct QuantizeImage {
    /// With its pixels as one dimension: [n, C, H * W].
    x: Operand,
    smooth: Option<Operand>,
    y: Operand,
    top: u8,
    grid: GridOperand,
}

fn image(args: &Args<'_>, mut x: Operand, y: Operand) -> Result<Box<dyn Kernel>> {
    x.expect_plain("x")?;
    let (&[n, channels, height, width], &[sample, channel, row, pixel]) = (x.shape(), x.layout.strides()) else {
        return Err(Fault::plan(format!("x has the shape {:?}, not [n, C, H, W]", x.shape())));
    };
    if (width > 1 && pixel != 1) || (height > 1 && row != width) {
        return Err(Fault::plan("the pixels of x must be dense"));
    }
    let Some(top) = top(y.dtype) else {
        return Err(Fault::plan(format!("y is {}; an image is quantized to u8 or u7", y.dtype)));
    };
    y.expect_dense("y")?;
    y.expect_shape("y", &[n, channels.div_ceil(4), height, width, 4])?;
    x.layout = Layout::new(&[n, channels, height * width], &[sample, channel, 1]).map_err(Fault::plan)?;
    Ok(Box::new(QuantizeImage { smooth: smooth(args, y.dtype, channels)?, grid: GridOperand::of(args, n)?, x, y, top }))
}

impl Kernel for QuantizeImage {
    unsafe fn run(&self, frame: &Frame<'_>) -> Result<()> {
        // SAFETY: the contract of `run`.
        unsafe {
            let (x, y) = (frame.view(&self.x), frame.slice_mut(&self.y));
            let smooth = self.smooth.as_ref().map(|smooth| frame.slice(smooth));
            let mut grid = self.grid.grid(frame);
            quantize_image_kernel(&frame.context(), &x, smooth, y, self.top, &mut grid, frame.scratch());
        }
        Ok(())
    }

    fn scratch_floats(&self, _: usize) -> usize {
        quantize_image_scratch(self.x.shape()[0], self.x.shape()[1])
    }
}
