//! Vectors of `f32` over the instruction sets scoregraph runs on, chosen at run time.
//!
//! A kernel is written once, generic over [`Simd`], and [`Isa::dispatch`] compiles it for every instruction set: the
//! scalar twin, AVX2 + FMA and AVX-512 are one source. [`math`] holds the elementary functions, [`Act`] the activations,
//! and [`Parallel`] is what kernels see of a thread pool.

mod activation;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod dots;
mod isa;
pub mod math;
mod parallel;
mod scalar;
mod unfused;
mod vector;

pub use activation::Act;
pub use dots::{Bf16Dots, Bf16Kernel, DotKernel, Dots};
pub use isa::{ENV_ISA, Isa, cpu_features, detect, isa};
pub use parallel::{Disjoint, Parallel, Serial};
pub use unfused::Unfused;
pub use vector::{Kernel, Simd};
