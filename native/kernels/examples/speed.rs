//! Speed of the heavy kernels on one thread, for every instruction set of this machine, beside the rate of multiply-adds
//! that keep to registers. Run: `cargo run --release -p scoregraph-kernels --example speed`; arguments choose: an instruction
//! set, `f32`, `integers`, `bf16` or `attention`, a size such as `256x384x1536`, and `cold` for operands that have left the
//! second-level cache since the last call, as those of a network have that is larger than it.
//!
//! The clock of a shared machine moves, so every call is timed between two bursts of multiply-adds. The share printed is the
//! one that a fifth of the calls exceed.

#[path = "common/peak.rs"]
mod peak;

use std::time::Instant;

use scoregraph_kernels::attention::{Attention, Format, attention, attention_scratch};
use scoregraph_kernels::linear::{Bits, Input, Integers, Linear, Output, Weights, linear, linear_scratch};
use scoregraph_kernels::{Act, Context, Isa, Layout, Serial, View, ViewMut};

use peak::peak;

/// How something is measured.
struct Bench<'a> {
    ctx: Context<'a>,
    /// The sizes to measure: all of them if there are none.
    sizes: &'a [String],
    /// Whether operands leave the second-level cache between calls.
    cold: bool,
}

/// Bytes that replace what is in the second-level cache.
const OTHERS: usize = 16 << 20;

/// Whether `name` is among the words, or there are none.
fn chosen(words: &[String], name: &str) -> bool {
    words.is_empty() || words.iter().any(|word| word == name)
}

impl Bench<'_> {
    /// Rate of multiply-adds in registers, a burst of some microseconds, in Gop/s.
    fn peak(&self) -> f64 {
        peak(self.ctx.isa, 2000) / 1e9
    }

    /// Times `f`, which does `work` operations, and prints its rate.
    fn time(&self, what: &str, work: usize, mut f: impl FnMut()) {
        let repeats = if self.ctx.isa == Isa::Scalar { 1 } else { 40 + 10_000_000_000 / work };
        let (mut best, mut shares) = (0.0f64, Vec::new());
        let mut others = vec![0u8; if self.cold { OTHERS } else { 0 }];
        for turn in 0..repeats {
            others.fill(turn as u8);
            std::hint::black_box(&others);
            let before = self.peak();
            let start = Instant::now();
            f();
            let rate = work as f64 / start.elapsed().as_secs_f64() / 1e9;
            best = best.max(rate);
            shares.push(rate / before.max(self.peak()));
        }
        shares.sort_by(f64::total_cmp);
        let share = 100.0 * shares[shares.len() * 4 / 5];
        println!("{:<10} {what:<40} {best:6.1} Gop/s, {share:5.1} % of float32", self.ctx.isa.name());
    }
}

fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 2_654_435_761) % 1000) as f32 / 1000.0 - 0.5).collect()
}

/// Products of the sizes of a DiT block, of a U-Net's, and of few rows.
const SIZES: [(usize, usize, usize); 15] = [
    (256, 384, 1536),
    (256, 1536, 384),
    (256, 384, 384),
    (256, 1152, 4608),
    (1024, 320, 2560),
    (256, 2560, 640),
    (256, 1024, 1024),
    (64, 384, 1536),
    (64, 1152, 1152),
    (16, 256, 1024),
    (16, 1152, 4608),
    (6, 1152, 1152),
    (2, 1152, 1152),
    (1, 1152, 1152),
    (1, 384, 2304),
];

fn linears(bench: &Bench) {
    for (m, k, n) in SIZES {
        let (x, w) = (values(m * k), values(n.div_ceil(16) * 16 * k));
        let x = Input::F32(View::dense(&x, &[m, k]).unwrap());
        time_linear(bench, "f32", (m, k, n), x, Weights::N16(&w));
    }
}

/// Products of bytes: with exact sums, and with every length of chain where there is no VNNI.
fn integers(bench: &Bench) {
    let vnni = matches!(bench.ctx.isa, Isa::AvxVnni | Isa::Avx512Vnni);
    let formats: [(&str, Bits, usize); 9] = [
        ("w8a8", Bits::Eight, 0),
        ("w4a8", Bits::Four, 8),
        ("w2a8", Bits::Two, 32),
        ("w8a7", Bits::Eight, 1),
        ("w7a7", Bits::Eight, 2),
        ("w6a7", Bits::Eight, 4),
        ("c = 8", Bits::Eight, 8),
        ("w4a7", Bits::Four, 16),
        ("c = 32", Bits::Eight, 32),
    ];
    for (format, bits, chain) in formats.into_iter().take(if vnni { 3 } else { 9 }) {
        for (m, k, n) in SIZES.into_iter().take(if chain == 0 { SIZES.len() } else { 4 }) {
            let share = match bits {
                Bits::Eight => 1,
                Bits::Four => 2,
                Bits::Two => 4,
            };
            let stored: Vec<u8> =
                (0..n.div_ceil(16) * 16 * k / share).map(|i| if share == 1 { i % 3 } else { i % 251 } as u8).collect();
            let x: Vec<u8> = (0..m * k).map(|i| (i % 127) as u8).collect();
            let (grid, scale, sum) = (values(2 * m), values(n), vec![0.0; n]);
            let x = Input::Bytes { q: View::dense(&x, &[m, k]).unwrap(), grid: &grid };
            let weights =
                Weights::Integers(Integers { stored: &stored, bits, scale: &scale, sum: &sum, groups: 1, chain });
            time_linear(bench, format, (m, k, n), x, weights);
        }
    }
}

/// Products of bf16.
fn halves(bench: &Bench) {
    for (m, k, n) in SIZES {
        let x = values(m * k);
        let w: Vec<u16> = values(n.div_ceil(16) * 16 * k).into_iter().map(|w| (w.to_bits() >> 16) as u16).collect();
        time_linear(bench, "bf16", (m, k, n), Input::F32(View::dense(&x, &[m, k]).unwrap()), Weights::Bf16(&w));
    }
}

/// A product with a bias, and with an activation or a gated residual too where it is one of a transformer's.
fn time_linear(bench: &Bench, format: &str, (m, k, n): (usize, usize, usize), x: Input, weights: Weights) {
    let size = format!("{m}x{k}x{n}");
    if !chosen(bench.sizes, &size) {
        return;
    }
    let (bias, gate) = (values(n), values(n));
    let mut y = vec![0.0; m * n];
    for (what, act, gated) in [("", Act::None, false), ("+gelu", Act::GeluTanh, false), ("+gate", Act::None, true)] {
        if act != Act::None && n < 2 * k || gated && n > k {
            continue;
        }
        let y_ptr = y.as_mut_ptr();
        let layout = Layout::dense(&[m, n]).unwrap();
        let gate = gated.then(|| View::dense(&gate, &[1, n]).unwrap());
        // SAFETY: `linear` works in place where the residual is y, which lives through the calls.
        let residual = gated.then(|| unsafe { View::from_raw(y_ptr.cast_const(), layout) });
        let op = Linear { cols: n, x, weights, bias: Some(&bias), act, gate, residual };
        let mut scratch = vec![0.0; linear_scratch(&op, bench.ctx.isa)];
        bench.time(&format!("linear {format} {size}{what}"), 2 * m * k * n, || {
            // SAFETY: only the residual shares y.
            let y = unsafe { ViewMut::from_raw(y_ptr, layout) };
            linear(&bench.ctx, &op, Output::F32(y), &mut scratch);
        });
    }
}

/// Heads of the sizes of transformers and of U-Nets.
fn attentions(bench: &Bench) {
    for (heads, tokens, dim) in [(6, 256, 64), (1, 512, 64), (1, 1024, 64), (1, 4096, 64), (8, 256, 16), (8, 64, 32)] {
        let shape = [1, heads, tokens, dim];
        let (q, k, v) = (values(heads * tokens * dim), values(heads * tokens * dim), values(heads * tokens * dim));
        let mut y = vec![0.0; q.len()];
        let mut scratch = vec![0.0; attention_scratch(tokens, dim, Format::F32, 1)];
        let op = Attention {
            q: View::dense(&q, &shape).unwrap(),
            k: View::dense(&k, &shape).unwrap(),
            v: View::dense(&v, &shape).unwrap(),
            mask: None,
            scale: 0.125,
            format: Format::F32,
        };
        bench.time(
            &format!("attention {heads} heads, {tokens} tokens of {dim}"),
            4 * heads * tokens * tokens * dim,
            || attention(&bench.ctx, &op, &mut ViewMut::dense(&mut y, &shape).unwrap(), &mut scratch),
        );
    }
}

fn main() {
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    let isas: Vec<String> = words.extract_if(.., |word| Isa::ALL.iter().any(|isa| isa.name() == word)).collect();
    let cold = words.extract_if(.., |word| word == "cold").count() > 0;
    let sizes: Vec<String> = words.extract_if(.., |word| word.contains('x')).collect();
    for isa in Isa::ALL.into_iter().filter(|isa| isa.supported() && chosen(&isas, isa.name())) {
        let bench = Bench { ctx: Context { isa, pool: &Serial }, sizes: &sizes, cold };
        let float = Isa::FLOAT.contains(&isa);
        if float && chosen(&words, "f32") {
            linears(&bench);
        }
        if isa != Isa::Scalar && chosen(&words, "integers") {
            integers(&bench);
        }
        if (float || isa == Isa::Avx512Vnni) && isa != Isa::Scalar && chosen(&words, "bf16") {
            halves(&bench);
        }
        if float && sizes.is_empty() && chosen(&words, "attention") {
            attentions(&bench);
        }
    }
}
