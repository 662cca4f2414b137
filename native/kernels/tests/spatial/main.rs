//! Property tests of the NCHW kernels (convolution, group norm, pooling) against plain float64 loops.

mod conv2d;
mod group_norm;
mod pool2d;
mod quantized_conv2d;
mod support;
mod winograd;
