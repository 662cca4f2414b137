//! Every kernel is compiled for the instruction set it runs with.
//!
//! A function that is not inlined into the entry of an instruction set is compiled without its features, and every
//! vector operation in it becomes a call: results are the same, but the kernel is ten times slower than the scalar twin.

mod common;

use std::time::{Duration, Instant};

use common::{Numbers, isas};
use scoregraph_kernels::attention::{Attention, Format, attention, attention_scratch};
use scoregraph_kernels::conv::{Conv2dShape, Epilogue, Winograd};
use scoregraph_kernels::format::{Grid, Rows};
use scoregraph_kernels::group_norm::{GroupNorm, Normed, group_norm, group_norm_scratch};
use scoregraph_kernels::linear::{Input, Linear, Output, Weights, linear};
use scoregraph_kernels::matmul::{matmul, matmul_scratch};
use scoregraph_kernels::norm::{Affine, layer_norm, rms_norm};
use scoregraph_kernels::pointwise::{Binary, Instr, Operand, Program, Unary, pointwise, pointwise_scratch};
use scoregraph_kernels::quantize::{quantize_image, quantize_image_scratch, rows_scratch};
use scoregraph_kernels::reduce::{Reduction, reduce};
use scoregraph_kernels::softmax::softmax;
use scoregraph_kernels::{Act, Context, Isa, Serial, View, ViewMut};

const SIDE: usize = 128;

/// A kernel with its operands, writing to a buffer of `SIDE * SIDE`.
type Run = Box<dyn FnMut(&Context, &mut [f32])>;

/// The fastest of some calls, so that a busy machine does not count.
fn fastest(isa: Isa, mut f: impl FnMut(&Context)) -> Duration {
    let ctx = Context { isa, pool: &Serial };
    (0..12)
        .map(|_| {
            let start = Instant::now();
            f(&ctx);
            start.elapsed()
        })
        .min()
        .expect("some calls")
}

#[test]
fn no_instruction_set_is_slower_than_the_scalar_twin() {
    let square = [SIDE, SIDE];
    let mut numbers = Numbers(1);
    let (x, w) = (numbers.floats(SIDE * SIDE), numbers.floats(SIDE * SIDE));
    let mut y = vec![0.0; SIDE * SIDE];
    let mut kernels: Vec<(String, Run)> = Vec::new();
    // Leaked, so that the closures may keep them.
    let (x, w): (&'static [f32], &'static [f32]) = (x.leak(), w.leak());

    for (act, name) in Act::ALL {
        kernels.push((
            format!("linear with {name}"),
            Box::new(move |ctx, y| {
                let op = Linear {
                    cols: SIDE,
                    x: Input::F32(View::dense(x, &square).unwrap()),
                    weights: Weights::N16(w),
                    bias: Some(&x[..SIDE]),
                    act,
                    gate: Some(View::dense(&x[..SIDE], &[1, SIDE]).unwrap()),
                    residual: Some(View::dense(w, &square).unwrap()),
                };
                linear(ctx, &op, Output::F32(ViewMut::dense(y, &square).unwrap()), &mut []);
            }),
        ));
        kernels.push((
            format!("layer_norm with {name}"),
            Box::new(move |ctx, y| {
                let row = Some(View::dense(&w[..SIDE], &[1, SIDE]).unwrap());
                let bias = Some(&w[..SIDE]);
                let op = Affine { weight: bias, bias, scale: row, shift: row, act, smooth: None };
                let mut y = Rows::F32(ViewMut::dense(y, &square).unwrap());
                layer_norm(ctx, 1e-5, &op, &View::dense(x, &square).unwrap(), &mut y, &mut []);
            }),
        ));
    }
    kernels.push((
        "rms_norm to f32".into(),
        Box::new(move |ctx, y| {
            let mut y = Rows::F32(ViewMut::dense(y, &square).unwrap());
            rms_norm(ctx, 1e-5, &Affine::NONE, &View::dense(x, &square).unwrap(), &mut y, &mut []);
        }),
    ));
    let (mut bytes, mut words, mut grid) = (vec![0u8; SIDE * SIDE], vec![0u16; SIDE * SIDE], vec![0.0; 2 * SIDE]);
    let mut scratch = vec![0.0; rows_scratch(SIDE, SIDE, 1)];
    kernels.push((
        "rms_norm to u8 and bf16".into(),
        Box::new(move |ctx, _| {
            let x = View::dense(x, &square).unwrap();
            let y = ViewMut::dense(&mut bytes, &square).unwrap();
            let mut y = Rows::Bytes { y, top: 255, grid: Grid::Measured(&mut grid) };
            rms_norm(ctx, 1e-5, &Affine { smooth: Some(&w[..SIDE]), ..Affine::NONE }, &x, &mut y, &mut scratch);
            let mut y = Rows::Bf16(ViewMut::dense(&mut words, &square).unwrap());
            rms_norm(ctx, 1e-5, &Affine::NONE, &x, &mut y, &mut scratch);
        }),
    ));
    let (mut bytes, mut grid) = (vec![0u8; SIDE * SIDE], vec![0.0; 2]);
    let mut scratch = vec![0.0; quantize_image_scratch(1, SIDE)];
    kernels.push((
        "quantize of an image".into(),
        Box::new(move |ctx, _| {
            let x = View::dense(x, &[1, SIDE, SIDE]).unwrap();
            quantize_image(ctx, &x, Some(&w[..SIDE]), &mut bytes, 127, &mut Grid::Measured(&mut grid), &mut scratch);
        }),
    ));
    let (mut bytes, mut grid) = (vec![0u8; SIDE * SIDE], vec![0.0; 2]);
    let mut scratch = vec![0.0; group_norm_scratch(1, SIDE)];
    kernels.push((
        "group_norm to f32 and u8".into(),
        Box::new(move |ctx, y| {
            let x = View::dense(x, &[1, SIDE, SIDE]).unwrap();
            let bias = Some(&w[..SIDE]);
            let op = GroupNorm {
                channels: SIDE,
                groups: 32,
                eps: 1e-5,
                weight: bias,
                bias,
                scale: None,
                shift: None,
                act: Act::Silu,
                smooth: None,
            };
            let y = ViewMut::dense(y, &[1, SIDE, SIDE]).unwrap();
            group_norm(ctx, &op, &x, &mut Normed::F32(y), &mut []);
            let mut y = Normed::Bytes { y: &mut bytes, top: 255, grid: Grid::Measured(&mut grid) };
            group_norm(ctx, &op, &x, &mut y, &mut scratch);
        }),
    ));
    for (up, input, name) in [(1, 32, "minimal filtering"), (2, 16, "minimal filtering, upsampled")] {
        kernels.push((
            name.into(),
            Box::new(move |ctx, y| {
                let shape = Conv2dShape {
                    channels: 16,
                    filters: 16,
                    input: [input; 2],
                    kernel: [3; 2],
                    stride: [1; 2],
                    padding: [1; 4],
                    up: [up; 2],
                };
                let conv = Winograd::new(shape, ctx.isa, 1).unwrap();
                let positions = conv.points() * conv.points();
                let x = View::dense(&x[..16 * input * input], &[1, 16, input, input]).unwrap();
                let epilogue = Epilogue { bias: Some(&w[..16]), emb: None, residual: None, act: Act::Silu };
                let mut y = ViewMut::dense(y, &[1, 16, 32, 32]).unwrap();
                let mut scratch = vec![0.0; conv.scratch_floats(1)];
                conv.run(ctx.pool, &w[..positions * 256], &x, &epilogue, &mut y, &mut scratch);
            }),
        ));
    }
    kernels.push(("softmax".into(), Box::new(|ctx, y| softmax(ctx, SIDE, x, y))));
    for kind in [Reduction::Sum, Reduction::Mean, Reduction::Min, Reduction::Max] {
        kernels.push((format!("reduce {kind:?}"), Box::new(move |ctx, y| reduce(ctx, kind, SIDE, x, &mut y[..SIDE]))));
    }
    for transposed in [false, true] {
        kernels.push((
            format!("matmul, transposed: {transposed}"),
            Box::new(move |ctx, y| {
                let strides = if transposed { [1, SIDE] } else { [SIDE, 1] };
                let other = View::new(w, 0, scoregraph_kernels::Layout::new(&square, &strides).unwrap()).unwrap();
                let mut scratch = vec![0.0; matmul_scratch(SIDE, 1)];
                let mut y = ViewMut::dense(y, &square).unwrap();
                matmul(ctx, 1.0, &View::dense(x, &square).unwrap(), &other, &mut y, &mut scratch);
            }),
        ));
    }
    for format in [Format::F32, Format::Bf16, Format::I8] {
        kernels.push((
            format!("attention in {format:?}"),
            Box::new(move |ctx, y| {
                let shape = [1, 4, SIDE, 32];
                let (q, v) = (View::dense(x, &shape).unwrap(), View::dense(w, &shape).unwrap());
                let mut scratch = vec![0.0; attention_scratch(SIDE, 32, format, 1)];
                let op = Attention { q, k: v, v, mask: None, scale: 1.0, format };
                attention(ctx, &op, &mut ViewMut::dense(y, &shape).unwrap(), &mut scratch);
            }),
        ));
    }
    let unary =
        "neg abs exp log sin cos sqrt rsqrt reciprocal square tanh sigmoid silu gelu_tanh gelu_erf relu erf floor";
    let unary = unary.split(' ').map(|name| (name, Instr::Unary(name.parse::<Unary>().unwrap(), 0)));
    let binary = "add sub mul div min max".split(' ');
    let binary = binary.map(|name| (name, Instr::Binary(name.parse::<Binary>().unwrap(), 0, 1)));
    for (name, instr) in unary.chain(binary) {
        let program = Program::new(2, vec![instr]).unwrap();
        let mut scratch = vec![0.0; pointwise_scratch(&program, 1)];
        kernels.push((
            format!("pointwise {name}"),
            Box::new(move |ctx, y| {
                let operands = [x, w].map(|data| Operand::F32(View::dense(data, &square).unwrap()));
                pointwise(ctx, &program, &operands, &mut ViewMut::dense(y, &square).unwrap(), &mut scratch);
            }),
        ));
    }

    for (name, mut kernel) in kernels {
        let scalar = fastest(Isa::Scalar, |ctx| kernel(ctx, &mut y));
        for isa in isas().filter(|isa| *isa > Isa::Scalar) {
            let wide = fastest(isa, |ctx| kernel(ctx, &mut y));
            println!("{name:<28} {:<7} {:5.1}", isa.name(), scalar.as_secs_f64() / wide.as_secs_f64());
            // Some loops the compiler vectorises by itself, so the twin can be as fast; what this looks for is far slower.
            assert!(wide < scalar * 2, "{name} on {}: {wide:?}, scalar {scalar:?}", isa.name());
        }
    }
}
