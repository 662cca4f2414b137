//! Convolution of bytes against seven nested loops in 64-bit integers, bit for bit.

use proptest::prelude::*;
use scoregraph_kernels::conv::{Cells, Conv2d, Conv2dShape, Epilogue, Quantized};
use scoregraph_simd::{Act, Isa};

use crate::conv2d::{shapes, square};
use crate::support::{Images, Threads, bits, indices, isas, leading_columns, numbers};

/// The types of x and of the weights: their largest values, and the longest chain of products that 16 bits hold.
const FORMATS: [(u8, i8, usize); 6] =
    [(255, 127, 0), (255, 63, 1), (255, 31, 2), (127, 127, 1), (127, 63, 2), (127, 31, 4)];

struct Case {
    shape: Conv2dShape,
    batch: usize,
    act: Act,
    format: (u8, i8, usize),
    /// \[n, I, H, W\]
    x: Vec<u8>,
    /// \[O, I, kh, kw\]
    weight: Vec<i8>,
    weight_scale: Vec<f32>,
    /// A row per sample, or one for all.
    grid: Vec<f32>,
    bias: Option<Vec<f32>>,
    /// Rows of `O + 3`, of which the first `O` are the embedding.
    emb: Option<Vec<f32>>,
    residual: Option<Vec<f32>>,
}

impl Case {
    /// Values anywhere in the range of the format, or at its ends only.
    fn new(shape: Conv2dShape, batch: usize, format: (u8, i8, usize), extremes: bool, seed: u64) -> Self {
        let (top, largest, _) = format;
        let [rows, columns] = shape.output().unwrap();
        let Conv2dShape { channels, filters, input: [height, width], kernel: [kh, kw], .. } = shape;
        // -1 … 1, or its ends.
        let values = |seed: u64, count: usize| {
            numbers(seed, count).into_iter().map(move |v| if extremes { v.signum() } else { v }).collect::<Vec<f32>>()
        };
        let byte = |v: f32| ((v + 1.0) / 2.0 * f32::from(top)).round() as u8;
        let grids = if seed.is_multiple_of(2) { batch } else { 1 };
        let grid = |v: &f32| [0.01 + v.abs(), f32::from(byte(*v))];
        let operand = |bit: u64, count: usize| (seed & bit != 0).then(|| numbers(seed + bit, count));
        Case {
            shape,
            batch,
            act: if seed & 32 != 0 { Act::Relu } else { Act::None },
            format,
            x: values(seed, batch * channels * height * width).into_iter().map(byte).collect(),
            weight: values(seed + 1, filters * channels * kh * kw)
                .into_iter()
                .map(|v| (v * f32::from(largest)).round() as i8)
                .collect(),
            weight_scale: numbers(seed + 2, filters).into_iter().map(|v| 0.01 + v.abs() / 100.0).collect(),
            grid: values(seed + 3, grids).iter().flat_map(grid).collect(),
            bias: operand(4, filters),
            emb: operand(8, batch * (filters + 3)),
            residual: operand(16, batch * filters * rows * columns),
        }
    }

    /// The image in channel quads; channels beyond C hold any byte.
    fn quads(&self) -> Vec<u8> {
        let Conv2dShape { channels, input: [height, width], .. } = self.shape;
        let (quads, pixels) = (channels.div_ceil(4), height * width);
        let mut packed = vec![self.format.0; self.batch * quads * pixels * 4];
        for (n, i, pixel, _) in indices([self.batch, channels, pixels, 1]) {
            packed[((n * quads + i / 4) * pixels + pixel) * 4 + i % 4] = self.x[(n * channels + i) * pixels + pixel];
        }
        packed
    }

    /// The weights as `q4oc8`.
    fn packed(&self) -> Vec<i8> {
        let Conv2dShape { channels, filters, kernel: [kh, kw], .. } = self.shape;
        let quads = channels.div_ceil(4);
        let mut packed = vec![0; self.shape.quantized_weight_bytes().unwrap()];
        for (o, i, tap, _) in indices([filters, channels, kh * kw, 1]) {
            let cell = ((o / 8 * quads + i / 4) * kh * kw + tap) * 8 + o % 8;
            packed[4 * cell + i % 4] = self.weight[(o * channels + i) * kh * kw + tap];
        }
        packed
    }

    fn weight_sum(&self) -> Vec<f32> {
        let Conv2dShape { channels, filters, kernel: [kh, kw], .. } = self.shape;
        let filter = |o: usize| &self.weight[o * channels * kh * kw..][..channels * kh * kw];
        (0..filters).map(|o| filter(o).iter().map(|&w| i64::from(w)).sum::<i64>() as f32).collect()
    }

    fn run(&self, isa: Isa, chain: usize, cut: usize, threads: usize) -> Vec<f32> {
        let conv = Conv2d::new(self.shape, Cells::Bytes, isa, cut).unwrap();
        let Conv2dShape { channels, filters, input: [height, width], .. } = self.shape;
        let [rows, columns] = self.shape.output().unwrap();
        let inputs = Images::new([self.batch, channels.div_ceil(4), height, width, 4]);
        let outputs = Images::new([self.batch, filters, rows, columns]);
        let x = inputs.spread(&self.quads());
        let residual = self.residual.as_deref().map(|residual| outputs.spread(residual));
        let epilogue = Epilogue {
            bias: self.bias.as_deref(),
            emb: self.emb.as_deref().map(|emb| leading_columns(emb, self.batch, filters, 3)),
            residual: residual.as_deref().map(|residual| outputs.view(residual)),
            act: self.act,
        };
        let (weights, weight_sum) = (self.packed(), self.weight_sum());
        let op = Quantized {
            weights: &weights,
            weight_scale: &self.weight_scale,
            weight_sum: &weight_sum,
            grid: &self.grid,
            top: self.format.0,
            chain,
        };
        let mut y = vec![f32::NAN; outputs.floats()];
        let mut scratch = vec![f32::NAN; conv.scratch_floats(threads)];
        let mut target = outputs.view_mut(&mut y);
        conv.run_quantized(&Threads(threads), &op, &inputs.view(&x), &epilogue, &mut target, &mut scratch);
        outputs.gather(&y)
    }

    /// Sums in 64 bits; what follows is rounded as the page of the format says.
    fn reference(&self) -> Vec<f32> {
        let Conv2dShape { channels, filters, input, kernel: [kh, kw], stride, padding: [top, left, ..], up } =
            self.shape;
        let [rows, columns] = self.shape.output().unwrap();
        let grids = self.grid.len() / 2;
        let mut y = Vec::new();
        for (n, o, row, column) in indices([self.batch, filters, rows, columns]) {
            let grid = &self.grid[2 * (n / (self.batch / grids))..][..2];
            let mut sum = 0i64;
            for (i, ky, kx, _) in indices([channels, kh, kw, 1]) {
                let (py, px) = (row * stride[0] + ky, column * stride[1] + kx);
                if py < top || px < left || py >= input[0] * up[0] + top || px >= input[1] * up[1] + left {
                    continue;
                }
                let at = ((n * channels + i) * input[0] + (py - top) / up[0]) * input[1] + (px - left) / up[1];
                let weight = i64::from(self.weight[((o * channels + i) * kh + ky) * kw + kx]);
                sum += weight * (i64::from(self.x[at]) - grid[1] as i64);
            }
            let value = i32::try_from(sum).unwrap() as f32 * (grid[0] * self.weight_scale[o]);
            let shift = self.bias.as_ref().map_or(0.0, |bias| bias[o]);
            let shift = shift + self.emb.as_ref().map_or(0.0, |emb| emb[n * (filters + 3) + o]);
            let value = if self.act == Act::Relu { (value + shift).max(0.0) } else { value + shift };
            y.push(self.residual.as_ref().map_or(value, |residual| residual[y.len()] + value));
        }
        y
    }
}

/// The bits of the reference on every instruction set, with every chain that the format allows, on any number of threads.
fn check(case: &Case) {
    let expected = bits(&case.reference());
    let chains = [0, 1, 2, 4].into_iter().filter(|&chain| chain <= case.format.2);
    for (isa, chain) in isas().flat_map(|isa| chains.clone().map(move |chain| (isa, chain))) {
        assert_eq!(
            bits(&case.run(isa, chain, 1, 1)),
            expected,
            "{isa:?} chain {chain} {:?} {:?}",
            case.format,
            case.shape
        );
    }
    for isa in isas() {
        assert_eq!(bits(&case.run(isa, case.format.2, 3, 2)), expected, "{isa:?} cut for 3 threads");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_shape(
        shape in shapes(),
        batch in 1usize..=2,
        format in proptest::sample::select(FORMATS.to_vec()),
        extremes in any::<bool>(),
        seed in any::<u32>(),
    ) {
        check(&Case::new(shape, batch, format, extremes, u64::from(seed)));
    }
}

/// All products at their largest, of one sign and of the other: what a 16-bit sum that is one product too long would lose.
#[test]
fn nothing_saturates() {
    let shape = square(48, 9, 9, 3, 1, 1);
    for format in FORMATS {
        for sign in [-1, 1] {
            let mut case = Case::new(shape, 1, format, true, 0);
            case.x.fill(format.0);
            case.weight.fill(sign * format.1);
            case.grid = vec![0.5, 0.0];
            check(&case);
            case.grid[1] = f32::from(format.0);
            check(&case);
        }
    }
}

#[test]
fn shapes_of_real_networks() {
    for (seed, shape) in [
        square(32, 32, 24, 3, 1, 1),
        square(64, 16, 16, 1, 1, 0),
        square(36, 12, 8, 3, 1, 1),
        square(8, 8, 33, 3, 2, 1),
        square(1, 8, 32, 3, 1, 1),
        square(32, 1, 32, 3, 1, 1),
        Conv2dShape { up: [2; 2], ..square(16, 16, 12, 3, 1, 1) },
    ]
    .into_iter()
    .enumerate()
    {
        check(&Case::new(shape, 2, FORMATS[seed % FORMATS.len()], false, 60 + seed as u64));
    }
}

/// A zero beyond the format is none, so padding keeps to the bytes that chains count on.
#[test]
fn a_zero_beyond_the_format_counts_as_zero() {
    let shape = square(8, 8, 6, 3, 1, 1);
    for zero in [128.0, -1.0, 3.5, f32::NAN] {
        let mut case = Case::new(shape, 1, (127, 127, 1), true, 0);
        case.grid = vec![0.5, zero];
        let runs = isas().map(|isa| case.run(isa, 1, 1, 1)).collect::<Vec<_>>();
        case.grid[1] = 0.0;
        assert!(runs.iter().all(|y| bits(y) == bits(&case.reference())), "{zero}");
    }
}

/// A grid that is not finite makes its sample NaN, and no other.
#[test]
fn a_lost_sample_stays_lost() {
    let mut case = Case::new(square(4, 3, 5, 3, 1, 1), 2, (255, 127, 0), false, 0);
    case.grid[0] = f32::NAN;
    for isa in isas() {
        let y = case.run(isa, 0, 1, 1);
        let half = y.len() / 2;
        assert!(y[..half].iter().all(|y| y.is_nan()) && y[half..].iter().all(|y| y.is_finite()), "{isa:?}");
    }
}
