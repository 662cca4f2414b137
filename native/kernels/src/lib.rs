//! Dense kernels on float32: one module a call of the plan, whose meaning docs/plan-format.md fixes.
//!
//! Every kernel is one source over [`scoregraph_simd::Simd`]. Work is split into tiles of rows, columns or samples, and
//! every output element sums its terms in one order that depends on nothing else, so results are the same bits for any
//! number of threads and for a sample alone or in a batch. Kernels allocate nothing: where one needs memory, its
//! `*_scratch` function says how many floats, and the caller lends them.

pub mod attention;
pub mod conv;
pub mod copy;
pub mod embedding;
pub mod fill;
pub mod format;
mod gemm;
pub mod group_norm;
pub mod linear;
pub mod matmul;
pub mod norm;
mod per_channel;
pub mod pointwise;
pub mod pool2d;
pub mod quantize;
pub mod reduce;
mod rows;
pub mod softmax;
pub mod view;

pub use scoregraph_simd::{Act, Isa, Kernel, Parallel, Serial, Simd};
pub use view::{Layout, MAX_RANK, View, ViewMut};

/// How to run: the instruction set, and the threads.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The instruction set; it must be supported by this processor.
    pub isa: Isa,
    /// Who runs the tiles.
    pub pool: &'a dyn Parallel,
}

impl Context<'_> {
    /// One thread and the best instruction set.
    pub fn serial() -> Context<'static> {
        Context { isa: scoregraph_simd::isa(), pool: &Serial }
    }
}
