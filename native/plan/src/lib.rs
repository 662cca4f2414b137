//! Plans on a CPU: read, proved, bound to a batch, and run as one call.
//!
//! A plan is data from outside, so nothing in it is trusted: [`schema`] proves its form, [`places`] that everything
//! lies inside its memory, [`turns`] how often each call runs, [`liveness`] that no two live values share any,
//! [`products`] that no sum of integers overflows, and [`ops`] that every call's operands fit
//! one another. What is left after that are kernels and addresses, and [`exec`] runs them. A bad plan is a
//! [`fault::Fault`] that names the place.

pub mod arena;
mod concurrent;
pub mod exec;
pub mod fault;
pub mod listing;
pub mod liveness;
pub mod machine;
pub mod noise;
pub mod operand;
pub mod ops;
pub mod places;
pub mod pool;
pub mod products;
pub mod sampler;
pub mod schema;
pub mod turns;

pub use exec::{Constants, Given, Memory, Monitor, Program, Stats, Timing, Unwatched, Wanted};
pub use fault::{Code, Fault, Result};
