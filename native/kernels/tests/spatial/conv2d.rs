//! Convolution against seven nested loops in float64.

use proptest::prelude::*;
use scoregraph_kernels::conv::{Cells, Conv2d, Conv2dShape, Epilogue};
use scoregraph_kernels::{View, ViewMut};
use scoregraph_simd::{Act, Isa};

use crate::support::{Images, Threads, act64, bits, float_isas, indices, leading_columns, numbers};

/// One call with all its operands; the weight is plain `[O, I, kh, kw]`.
pub struct Case {
    pub shape: Conv2dShape,
    pub batch: usize,
    act: Act,
    pub x: Vec<f32>,
    pub weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    /// Rows of `O + 3`, of which the first `O` are the embedding.
    emb: Option<Vec<f32>>,
    residual: Option<Vec<f32>>,
}

impl Case {
    pub fn new(shape: Conv2dShape, batch: usize, operands: [bool; 3], act: Act, seed: u64) -> Self {
        let [rows, columns] = shape.output().unwrap();
        let Conv2dShape { channels, filters, input: [height, width], kernel: [kh, kw], .. } = shape;
        let operand = |index: usize, size: usize| operands[index].then(|| numbers(seed + 10 + index as u64, size));
        Case {
            shape,
            batch,
            act,
            x: numbers(seed, batch * channels * height * width),
            weight: numbers(seed + 1, filters * channels * kh * kw),
            bias: operand(0, filters),
            emb: operand(1, batch * (filters + 3)),
            residual: operand(2, batch * filters * rows * columns),
        }
    }

    /// The output, from a convolution cut for `cut` threads and run on `threads`.
    pub fn run(&self, isa: Isa, cut: usize, threads: usize) -> Vec<f32> {
        let conv = Conv2d::new(self.shape, Cells::Floats, isa, cut).unwrap();
        let w = self.shape.pack_weight(&self.weight);
        self.call(conv.scratch_floats(threads), |x, epilogue, y, scratch| {
            conv.run(&Threads(threads), &w, x, epilogue, y, scratch);
        })
    }

    /// What `run` makes of the operands, where the images are slices of the channels of larger ones. Scratch and output start
    /// as NaN.
    pub fn call(&self, scratch: usize, run: impl FnOnce(&View, &Epilogue, &mut ViewMut, &mut [f32])) -> Vec<f32> {
        let Conv2dShape { channels, filters, input: [height, width], .. } = self.shape;
        let [rows, columns] = self.shape.output().unwrap();
        let [inputs, outputs] =
            [[self.batch, channels, height, width], [self.batch, filters, rows, columns]].map(Images::new);
        let x = inputs.spread(&self.x);
        let residual = self.residual.as_deref().map(|residual| outputs.spread(residual));
        let mut y = vec![f32::NAN; outputs.floats()];
        let epilogue = Epilogue {
            bias: self.bias.as_deref(),
            emb: self.emb.as_deref().map(|emb| leading_columns(emb, self.batch, filters, 3)),
            residual: residual.as_deref().map(|residual| outputs.view(residual)),
            act: self.act,
        };
        run(&inputs.view(&x), &epilogue, &mut outputs.view_mut(&mut y), &mut vec![f32::NAN; scratch]);
        outputs.gather(&y)
    }

    /// One sample by itself.
    pub fn sample(&self, sample: usize) -> Case {
        let part = |data: &[f32]| data[data.len() / self.batch * sample..][..data.len() / self.batch].to_vec();
        Case {
            batch: 1,
            x: part(&self.x),
            weight: self.weight.clone(),
            bias: self.bias.clone(),
            emb: self.emb.as_deref().map(part),
            residual: self.residual.as_deref().map(part),
            ..*self
        }
    }

    /// The output in float64, and for each element a bound on what float32 may lose: the sum of absolute terms.
    pub fn reference(&self) -> Vec<(f64, f64)> {
        let Conv2dShape { channels, filters, input, kernel: [kh, kw], stride, padding: [top, left, ..], up } =
            self.shape;
        let [rows, columns] = self.shape.output().unwrap();
        let mut y = Vec::new();
        for (n, o, row, column) in indices([self.batch, filters, rows, columns]) {
            let mut sum = self.bias.as_ref().map_or(0.0, |bias| f64::from(bias[o]));
            sum += self.emb.as_ref().map_or(0.0, |emb| f64::from(emb[n * (filters + 3) + o]));
            let mut size = sum.abs();
            for (i, ky, kx, _) in indices([channels, kh, kw, 1]) {
                let (py, px) = (row * stride[0] + ky, column * stride[1] + kx);
                if py < top || px < left || py >= input[0] * up[0] + top || px >= input[1] * up[1] + left {
                    continue;
                }
                let at = ((n * channels + i) * input[0] + (py - top) / up[0]) * input[1] + (px - left) / up[1];
                let term = f64::from(self.x[at]) * f64::from(self.weight[((o * channels + i) * kh + ky) * kw + kx]);
                sum += term;
                size += term.abs();
            }
            let residual = self.residual.as_ref().map_or(0.0, |residual| f64::from(residual[y.len()]));
            y.push((residual + act64(self.act, sum), size + residual.abs()));
        }
        y
    }
}

/// Every instruction set is close to the reference.
fn check(case: &Case) {
    check_run(case, |isa, cut, threads| case.run(isa, cut, threads), &|size| 1e-6 * (size + 1.0));
}

/// What `run(isa, cut, threads)` answers is within `bound` of the reference, for the sum of an element's absolute terms, with
/// every instruction set; threads and cut change no bit; AVX2 and AVX-512 agree in all.
pub fn check_run(case: &Case, run: impl Fn(Isa, usize, usize) -> Vec<f32>, bound: &dyn Fn(f64) -> f64) {
    let reference = case.reference();
    let mut fused = Vec::new();
    for isa in float_isas() {
        let y = run(isa, 1, 1);
        assert_eq!(y.len(), reference.len());
        for (index, (&y, &(expected, size))) in y.iter().zip(&reference).enumerate() {
            let error = (f64::from(y) - expected).abs();
            assert!(error <= bound(size), "{isa:?} {:?}: y[{index}] = {y}, not {expected}", case.shape);
        }
        for (cut, threads) in [(2, 1), (3, 2), (8, 3)] {
            assert_eq!(bits(&run(isa, cut, threads)), bits(&y), "{isa:?} cut {cut}, {threads} threads");
        }
        if isa != Isa::Scalar {
            fused.push(bits(&y));
        }
    }
    assert!(fused.windows(2).all(|pair| pair[0] == pair[1]), "AVX2 and AVX-512 differ");
}

pub fn square(
    channels: usize,
    filters: usize,
    side: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
) -> Conv2dShape {
    Conv2dShape {
        channels,
        filters,
        input: [side; 2],
        kernel: [kernel; 2],
        stride: [stride; 2],
        padding: [padding; 4],
        up: [1; 2],
    }
}

pub fn shapes() -> impl Strategy<Value = Conv2dShape> {
    let pair = |range: std::ops::RangeInclusive<usize>| proptest::array::uniform2(range);
    let padding = proptest::array::uniform4(0usize..=3);
    (0usize..=9, 1usize..=19, pair(1..=37), pair(1..=4), pair(1..=3), padding, pair(1..=3))
        .prop_map(|(channels, filters, input, kernel, stride, padding, up)| Conv2dShape {
            channels,
            filters,
            input,
            kernel,
            stride,
            padding,
            up,
        })
        .prop_filter("the kernel fits", |shape| shape.output().is_some())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_shape(
        shape in shapes(),
        batch in 1usize..=2,
        operands in proptest::array::uniform3(any::<bool>()),
        act in proptest::sample::select(vec![Act::None, Act::Silu, Act::Relu]),
        seed in any::<u32>(),
    ) {
        check(&Case::new(shape, batch, operands, act, u64::from(seed)));
    }
}

#[test]
fn shapes_of_real_networks() {
    for shape in [
        square(3, 24, 64, 16, 16, 0), // patch embedding
        square(4, 9, 32, 2, 2, 0),
        square(1, 8, 64, 3, 1, 1),                               // first layer of a U-Net
        square(8, 1, 64, 3, 1, 1),                               // last layer
        square(40, 16, 8, 3, 1, 1),                              // lowest resolution: flat runs
        square(24, 16, 16, 1, 1, 0),                             // skip connection
        square(8, 8, 33, 3, 2, 1),                               // downsampling
        square(2, 3, 2, 7, 1, 3),                                // a kernel larger than the image
        square(2, 3, 5, 1, 3, 0),                                // a stride larger than the kernel
        Conv2dShape { up: [2; 2], ..square(9, 8, 16, 3, 1, 1) }, // upsampling
        Conv2dShape { padding: [0, 0, 1, 1], ..square(8, 8, 32, 3, 2, 0) }, // downsampling of an autoencoder
    ] {
        check(&Case::new(shape, 2, [true; 3], Act::Silu, 7));
    }
}

#[test]
fn every_width_and_filter_tail() {
    for side in 1..=33 {
        check(&Case::new(square(2, side.min(17), side, 3, 1, 1), 1, [true, false, false], Act::None, side as u64));
    }
}

#[test]
fn a_sample_does_not_know_its_batch() {
    let batch = Case::new(square(5, 11, 13, 3, 1, 1), 4, [true; 3], Act::Silu, 3);
    for isa in float_isas() {
        let together = batch.run(isa, 2, 2);
        let alone: Vec<f32> = (0..batch.batch).flat_map(|sample| batch.sample(sample).run(isa, 1, 1)).collect();
        assert_eq!(bits(&alone), bits(&together), "{isa:?}");
    }
}

#[test]
fn a_nan_stays_in_its_window() {
    let mut case = Case::new(square(3, 8, 20, 3, 1, 1), 1, [false; 3], Act::None, 5);
    case.x[20 * 20 + 7 * 20 + 11] = f32::NAN;
    case.x[2 * 20 * 20] = f32::INFINITY;
    for isa in float_isas() {
        let y = case.run(isa, 1, 1);
        for (_, o, row, column) in indices([1, 8, 20, 20]) {
            let near = row.abs_diff(7) <= 1 && column.abs_diff(11) <= 1;
            let y = y[(o * 20 + row) * 20 + column];
            assert_eq!(y.is_nan(), near, "{isa:?} at {row}, {column}");
            assert_eq!(y.is_infinite(), row <= 1 && column <= 1, "{isa:?} at {row}, {column}");
        }
    }
}

#[test]
fn nothing_to_do() {
    for isa in float_isas() {
        assert!(Case::new(square(3, 5, 6, 3, 1, 1), 0, [true; 3], Act::None, 0).run(isa, 2, 2).is_empty());
        assert!(Case::new(square(3, 0, 6, 3, 1, 1), 2, [true; 3], Act::None, 0).run(isa, 2, 2).is_empty());
    }
}

#[test]
fn shapes_without_an_output_are_refused() {
    for shape in [
        square(1, 1, 2, 3, 1, 0),
        square(1, 1, 4, 0, 1, 0),
        square(1, 1, 4, 3, 0, 1),
        Conv2dShape { up: [0, 1], ..square(1, 1, 4, 3, 1, 1) },
        Conv2dShape { up: [usize::MAX; 2], ..square(1, 1, 4, 3, 1, 1) },
        square(1, 1, 4, 3, 1, usize::MAX),
        square(1, 1, 4, 3, 1, usize::MAX / 4),
        square(usize::MAX / 8, 1, 64, 3, 1, 1),
    ] {
        assert!(Conv2d::new(shape, Cells::Floats, Isa::Scalar, 1).is_none(), "{shape:?}");
    }
}
