//! Calls that run at the same time: the same numbers as one after another, every one of them timed, and the first that
//! fails is the one that is named.

mod support;

use scoregraph_plan::schema::DType;
use scoregraph_plan::{Code, Fault, Given, Program, Unwatched, Wanted};
use serde_json::{Value, json};
use support::{Draft, call, fill, run};

const WIDTH: usize = 32;

/// y = x² + shift
fn expression(x: &str, y: &str, shift: usize) -> Value {
    let program = json!([["square", 0], ["const", shift], ["add", 1, 2]]);
    call("pointwise", &[("x0", x)], &[("y", y)], json!({"program": program}))
}

fn weight(chain: usize, row: usize, column: usize) -> f32 {
    ((row * WIDTH + column) * 7 + chain) as f32 % 13.0 - 6.0
}

/// Chains x → x² + i → its product with weights of i, level by level; their results are columns of one buffer.
fn chains(count: usize) -> Draft {
    let mut d = Draft::default();
    let (x, results) = (d.batch(WIDTH as u64), d.batch((count * WIDTH) as u64));
    d.input("given", &x);
    let squares: Vec<String> = (0..count).map(|_| d.batch(WIDTH as u64)).collect();
    let mut calls: Vec<Value> = squares.iter().enumerate().map(|(i, square)| expression(&x, square, i)).collect();
    for (i, square) in squares.iter().enumerate() {
        let weights: Vec<f32> = (0..WIDTH * WIDTH).map(|at| weight(i, at / WIDTH, at % WIDTH)).collect();
        let w = d.constant(&[WIDTH as u64, WIDTH as u64], "plain", &weights);
        let strides = [(count * WIDTH) as u64, 1];
        let y = d.view(&results, "f32", json!(["B", WIDTH]), (i * WIDTH) as u64, &strides);
        calls.push(call("linear", &[("x", square), ("w", &w)], &[("y", &y)], json!({"act": "none"})));
    }
    d.segment("once", json!({}), &calls);
    d.output("x", &results);
    d
}

#[test]
fn levels_of_chains_are_the_same_on_any_number_of_threads() {
    let samples = 3;
    // Whole numbers, so that float32 is exact.
    let x: Vec<f32> = (0..samples * WIDTH).map(|i| (i % 11) as f32 - 5.0).collect();
    for count in [1, 2, 3, 8, 13] {
        let expected: Vec<f32> = (0..samples * count * WIDTH)
            .map(|at| {
                let (sample, chain, row) = (at / (count * WIDTH), at / WIDTH % count, at % WIDTH);
                let square = |k: usize| x[sample * WIDTH + k].powi(2) + chain as f32;
                (0..WIDTH).map(|k| square(k) * weight(chain, row, k)).sum()
            })
            .collect();
        for threads in [1, 2, 3, 5] {
            let program = chains(count).program(threads).unwrap();
            program.set_timing(true);
            for _ in 0..20 {
                let found = run(&program, &[("given", &x)], samples as u64, count * WIDTH).unwrap();
                assert_eq!(found, expected, "{count} chains on {threads} threads");
            }
            let timed: Vec<usize> = program.timings().iter().map(|timing| timing.call).collect();
            assert_eq!(timed, (0..2 * count).collect::<Vec<_>>());
            assert_eq!(program.stats().calls, 20 * 2 * count as u64);
        }
    }
}

/// By name they are apart, but the second writes where the first one's operand was, which nobody needs any more.
#[test]
fn neighbours_that_share_memory_run_in_order() {
    let each = 4096;
    let mut d = Draft::default();
    let [a, b, first, second, x] = [(); 5].map(|()| d.batch(each));
    d.share(&second, &a);
    let sum = json!({"program": [["add", 0, 1]]});
    d.segment(
        "once",
        json!({}),
        &[
            fill(&a, 3.0),
            fill(&b, 5.0),
            expression(&a, &first, 1),
            expression(&b, &second, 0),
            call("pointwise", &[("x0", &first), ("x1", &second)], &[("y", &x)], sum),
        ],
    );
    d.output("x", &x);
    for threads in [1, 2, 4] {
        let program = d.program(threads).unwrap();
        for _ in 0..50 {
            assert!(run(&program, &[], 2, each as usize).unwrap().iter().all(|&x| x == 10.0 + 25.0));
        }
    }
}

/// The row of a table that is looked up six times at once.
fn look_up(program: &Program, row: i64) -> Result<Vec<f32>, Fault> {
    let mut made = vec![0; 4 * 16];
    let given = [Given { name: "row", dtype: DType::I64, bytes: &row.to_le_bytes() }];
    let mut wanted = [Wanted { name: "x", dtype: DType::F32, bytes: &mut made }];
    program.run(&given, &mut wanted, &[0], &mut Unwatched)?;
    Ok(support::floats(&made))
}

#[test]
fn the_first_call_that_fails_is_named() {
    let mut d = Draft::default();
    let row = d.typed("i64", json!(["B"]), 8, "batch");
    d.input("row", &row);
    let table = d.constant(&[2, 16], "plain", &[1.5; 32]);
    let found: Vec<String> = (0..6).map(|_| d.batch(16)).collect();
    let calls: Vec<Value> =
        found.iter().map(|y| call("embedding", &[("index", &row), ("w", &table)], &[("y", y)], json!({}))).collect();
    d.segment("once", json!({}), &calls);
    d.output("x", &found[5]);
    for threads in [1, 2, 3] {
        let program = d.program(threads).unwrap();
        for _ in 0..20 {
            let fault = look_up(&program, 7).unwrap_err();
            assert_eq!(fault.code, Code::Index);
            assert!(fault.place.contains("call 0"), "{}", fault.place);
        }
        assert_eq!(look_up(&program, 1).unwrap(), [1.5; 16]);
    }
}
