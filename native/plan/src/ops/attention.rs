//! Scaled dot-product attention.

use scoregraph_kernels::attention::{
    Attention as AttentionArgs, Format, attention as attention_kernel, attention_scratch,
};

use super::{Args, Frame, Kernel, Target};
use crate::fault::{Fault, Result};
use crate::operand::Operand;

struct Attention {
    q: Operand,
    k: Operand,
    v: Operand,
    mask: Option<Operand>,
    y: Operand,
    keys: usize,
    dim: usize,
    scale: f32,
    format: Format,
}

pub(super) fn attention(args: &Args<'_>, _: Target) -> Result<Box<dyn Kernel>> {
    let (q, k, v, y) = (args.input("q")?, args.input("k")?, args.input("v")?, args.output("y")?);
    let (&[samples, heads, queries, dim], &[_, _, keys, _]) = (q.shape(), k.shape()) else {
        return Err(Fault::plan(format!(
            "q and k have the shapes {:?} and {:?}, not [n, H, S, D]",
            q.shape(),
            k.shape()
        )));
    };
    for (operand, role) in [(&q, "q"), (&k, "k"), (&v, "v")] {
        operand.expect_plain(role)?;
    }
    k.expect_shape("k", &[samples, heads, keys, dim])?;
    v.expect_shape("v", &[samples, heads, keys, dim])?;
    y.expect_shape("y", q.shape())?;
    let mask = args.optional("mask")?;
    if let Some(mask) = &mask {
        mask.expect_plain("mask")?;
        mask.expect_shape("mask", &[samples, heads, queries, keys])?;
    }
    let format = match args.optional_text("format")? {
        None | Some("f32") => Format::F32,
        Some("bf16") => Format::Bf16,
        Some("i8") => Format::I8,
        Some(_) => return Err(args.wrong("format", "f32, bf16 or i8")),
    };
    Ok(Box::new(Attention { keys, dim, scale: args.number("scale")?, format, q, k, v, mask, y }))
}

impl Kernel for Attention {
    unsafe fn run(&self, frame: &Frame<'_>) -> Result<()> {
        // SAFETY: the contract of `run`.
        unsafe {
            let op = AttentionArgs {
                q: frame.view(&self.q),
                k: frame.view(&self.k),
                v: frame.view(&self.v),
                mask: self.mask.as_ref().map(|mask| frame.view(mask)),
                scale: self.scale,
                format: self.format,
            };
            attention_kernel(&frame.context(), &op, &mut frame.view_mut(&self.y), frame.scratch());
        }
        Ok(())
    }

    fn scratch_floats(&self, threads: usize) -> usize {
        attention_scratch(self.keys, self.dim, self.format, threads)
    }
}
