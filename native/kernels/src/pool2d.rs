//! Pooling and nearest-neighbour upsampling.
