//! A run allocates nothing from its first call to its last step: every kernel finds its memory made.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use scoregraph_plan::Monitor;
use scoregraph_plan::pool::Pool;
use scoregraph_simd::Parallel;
use serde_json::json;
use support::{Draft, add, call, copy, fill, number, only_in, run_watched};

/// The system's allocator, counted over all threads.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The count at the first call and at the last step.
#[derive(Default)]
struct Counts {
    first: Option<usize>,
    last: usize,
    steps: usize,
}

impl Monitor for Counts {
    fn cancelled(&mut self) -> bool {
        self.first.get_or_insert_with(|| ALLOCATIONS.load(Ordering::Relaxed));
        false
    }

    fn step(&mut self, _done: usize, _total: usize) {
        self.last = ALLOCATIONS.load(Ordering::Relaxed);
        self.steps += 1;
    }
}

/// Elements of a sample: several tiles, and a rest.
const N: u64 = 20_003;

/// Guided steps of two registers with an elementwise program, statistics and a recorded trajectory, in rows of two
/// variants; then rounds.
fn sampling() -> Draft {
    let mut d = Draft::default();
    let (x, old, time) = (d.batch(N), d.batch(N), d.buffer(json!(["2B"]), 2, "batch"));
    let (xin, xin_guided) = (d.batch(N), d.branches(2, N));
    let (answer, guided) = (d.batch(N), d.branches(2, N));
    let (small, hidden, g, q, s) = (d.batch(32), d.batch(48), d.batch(2), d.batch(1), d.batch(1));
    let weights = d.constant(&[48, 32], "n16", &vec![0.01; 48 * 32]);
    let seen = d.buffer(json!(["B", 2, N]), 2 * N, "batch");
    let (left, fewer) = (d.batch(1), d.batch(1));
    let row = |variant: f32, slot: f32| -> Vec<f32> {
        let (t, cin) = (0.5, 0.9);
        let (a, b, c) = ([0.9, 0.05, 1.0, 0.0], [-0.2, 0.1, 0.0, 0.0], [0.1, 0.0]);
        let (f, e, h) = ([1.0, 0.0, 0.5, 0.5, 0.0, 1.0, 0.0, 0.0], [1.0, 0.0, -0.3, 0.0], [0.05, 0.0]);
        [&[t, cin][..], &a, &b, &c, &f, &e, &h, &[variant, slot]].concat()
    };
    let rows = [row(0.0, -1.0), row(1.0, 0.0), row(1.0, 1.0), row(0.0, -1.0)];
    let table = d.table(&rows.iter().map(Vec::as_slice).collect::<Vec<_>>());
    d.segment(
        "start",
        json!({}),
        &[
            call("noise", &[], &[("x", &x)], json!({"site": 1, "micro": 0, "scale": 2.0})),
            fill(&old, 0.0),
            fill(&seen, 0.0),
            fill(&left, 3.0),
            fill(&small, 0.3),
            call("step_input", &[("x", &x)], &[("xin", &xin)], json!({"table": table, "column": 1, "row": 0})),
        ],
    );
    let network = |from: &str, to: &str| {
        call("pointwise", &[("x0", from)], &[("y", to)], json!({"program": [["tanh", 0], ["silu", 1]]}))
    };
    let answers = |one: bool| if one { json!([0]) } else { json!([0, 1]) };
    let step = |p: &str, one: bool| {
        let attrs = json!({
            "table": table, "a": 2, "b": 6, "c": 10, "e": 20, "h": 24, "estimates": 1, "answers": answers(one),
            "width": 2, "program": [["tanh", 0], ["mul", 1, 2]], "results": [3], "draws": true, "cin": 1, "site": 2,
        });
        let outs = [("r0", x.as_str()), ("r1", &old), ("xin0", &xin), ("xin1", &xin_guided)];
        call("sampler_step", &[("r0", &x), ("r1", &old), ("p0", p)], &outs, attrs)
    };
    let form = |op: &str, out: (&str, &str), p: &str, one: bool| {
        let own = match op {
            "gram" => json!({"f": 12, "forms": 2, "stats": [[0, 1], [0]]}),
            _ => json!({"e": 20, "q": 0.95}),
        };
        let mut attrs = json!({"table": table, "answers": answers(one), "width": 2});
        attrs.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
        call(op, &[("r0", &x), ("r1", &old), ("p0", p)], &[out], attrs)
    };
    let program = json!([["in", 0, 0], ["in", 1, 0], ["row", 0], ["next", 0], ["mul", 0, 1], ["add", 4, 2]]);
    d.segment(
        "steps",
        json!({"table": table, "variant": 26, "networks": [{"name": "net"}]}),
        &[
            call("step_time", &[], &[("t", &time)], json!({"table": table, "column": 0})),
            call("linear", &[("x", &small), ("w", &weights)], &[("y", &hidden)], json!({"act": "silu"})),
            only_in(&[0], network(&xin, &answer)),
            only_in(&[1], network(&xin_guided, &guided)),
            only_in(&[0], form("gram", ("g", &g), &answer, true)),
            only_in(&[1], form("gram", ("g", &g), &guided, false)),
            only_in(&[0], form("quantile", ("y", &q), &answer, true)),
            only_in(&[1], form("quantile", ("y", &q), &guided, false)),
            call(
                "scalars",
                &[("x0", &g), ("x1", &q)],
                &[("y", &s)],
                json!({"table": table, "program": program, "results": [5]}),
            ),
            call("record", &[("x", &x)], &[("y", &seen)], json!({"table": table, "column": 27})),
            only_in(&[0], step(&answer, true)),
            only_in(&[1], step(&guided, false)),
        ],
    );
    d.segment(
        "rounds",
        json!({"repeat": {"active": number(&left), "limit": 5}}),
        &[add(&left, -1.0, &fewer), copy(&fewer, &left)],
    );
    d.output("x", &x);
    d
}

/// One call of every kernel a network may need, in a loop of two rows.
fn network() -> Draft {
    let mut d = Draft::default();
    let x = d.buffer(json!(["B", 8, 8, 8]), 512, "batch");
    let mut made = |shape: &[u64]| {
        let shape: Vec<_> = [json!("B")].into_iter().chain(shape.iter().map(|n| json!(n))).collect();
        let n = shape[1..].iter().map(|n| n.as_u64().unwrap()).product();
        d.buffer(json!(shape), n, "batch")
    };
    let (conv, normed) = (made(&[16, 8, 8]), made(&[16, 8, 8]));
    let (pooled, most, up) = (made(&[16, 4, 4]), made(&[16, 4, 4]), made(&[16, 8, 8]));
    let (attended, soft, rms, layer) = (made(&[16, 8, 8]), made(&[16, 8, 8]), made(&[16, 8, 8]), made(&[16, 8, 8]));
    let (product, total, out) = (made(&[16, 8, 8]), made(&[16, 8]), made(&[16]));
    let kernel = d.constant(&[16, 8, 3, 3], "oc8", &vec![0.02; 16 * 8 * 9]);
    let table = d.table(&[&[0.0], &[1.0]]);
    d.segment("start", json!({}), &[fill(&x, 0.5)]);
    let one = |op: &str, x: &str, y: &str, attrs| call(op, &[("x", x)], &[("y", y)], attrs);
    let pool = json!({"kernel": [2, 2], "stride": [2, 2]});
    d.segment(
        "loop",
        json!({"table": table}),
        &[
            call(
                "conv2d",
                &[("x", &x), ("w", &kernel)],
                &[("y", &conv)],
                json!({"stride": [1, 1], "padding": [1, 1, 1, 1], "up": [1, 1], "act": "silu"}),
            ),
            one("group_norm", &conv, &normed, json!({"groups": 4, "eps": 1e-5, "act": "silu"})),
            one("avg_pool2d", &normed, &pooled, pool.clone()),
            one("max_pool2d", &normed, &most, pool),
            one("upsample_nearest", &pooled, &up, json!({"factor": [2, 2]})),
            call("attention", &[("q", &up), ("k", &normed), ("v", &conv)], &[("y", &attended)], json!({"scale": 0.3})),
            one("softmax", &attended, &soft, json!({})),
            one("rms_norm", &soft, &rms, json!({"eps": 1e-6})),
            one("layer_norm", &rms, &layer, json!({"eps": 1e-6, "act": "none"})),
            call("matmul", &[("x", &layer), ("y", &up)], &[("z", &product)], json!({"scale": 1.0})),
            one("reduce", &product, &total, json!({"kind": "mean", "axes": [3]})),
            one("reduce", &total, &out, json!({"kind": "sum", "axes": [2]})),
        ],
    );
    d.output("x", &out);
    d
}

/// Runs it some times; fails if a run allocates between its first call and its last step.
fn check(draft: &Draft, each: u64, steps: usize) {
    for threads in [1, 2] {
        let program = draft.program(threads).unwrap();
        // A thread allocates when it starts: let all of them be there first.
        let all = Barrier::new(threads);
        Pool::shared(threads).unwrap().run(threads, &|_, _| {
            all.wait();
        });
        for _ in 0..3 {
            let mut counts = Counts::default();
            let made = run_watched(&program, &[], 2, each as usize, &mut counts).unwrap();
            assert!(made.iter().all(|x| x.is_finite()));
            assert_eq!(counts.steps, steps);
            assert!(counts.last > 0, "the allocator counts");
            assert_eq!(Some(counts.last), counts.first, "with {threads} threads");
        }
    }
}

/// One test, since tests of one process run side by side and would count one another's memory.
#[test]
fn a_run_allocates_nothing_between_its_first_call_and_its_last_step() {
    check(&sampling(), N, 4 + 3);
    check(&network(), 16, 2);
}
