//! Rows of several variants and rounds while something is active: what runs, what is counted, and what is refused.

mod support;

use scoregraph_plan::{Code, Stats};
use serde_json::json;
use support::{Draft, Watched, add, call, copy, fill, number, only_in, run, run_watched};

/// Rows of kinds 1, 0, 2, 2, 1 that add 1, 10 and 100 to x; kind 2 also adds 1000 twice, through a network.
fn kinds() -> Draft {
    let mut d = Draft::default();
    let (x, moved) = (d.batch(3), d.batch(3));
    let table = d.table(&[&[0.5, 1.0], &[0.5, 0.0], &[0.5, 2.0], &[0.5, 2.0], &[0.5, 1.0]]);
    d.segment("start", json!({}), &[fill(&x, 0.0)]);
    let networks = json!([
        {"name": "small", "branches": 1, "variants": [0, 1]},
        {"name": "large", "branches": 2, "variants": [2]},
        {"name": "critic"},
    ]);
    d.segment(
        "loop",
        json!({"table": table, "variant": 1, "networks": networks}),
        &[
            only_in(&[0], add(&x, 1.0, &moved)),
            only_in(&[1], add(&x, 10.0, &moved)),
            only_in(&[2], add(&x, 100.0, &moved)),
            copy(&moved, &x),
            only_in(&[2, 9], add(&x, 1000.0, &moved)),
            only_in(&[2], copy(&moved, &x)),
        ],
    );
    d.output("x", &x);
    d
}

#[test]
fn a_row_makes_the_calls_of_its_variant() {
    let program = kinds().program(1).unwrap();
    let mut watched = Watched::default();
    assert_eq!(run_watched(&program, &[], 2, 3, &mut watched).unwrap(), [2221.0; 6]);
    assert_eq!(watched.steps.into_inner(), (1..=5).map(|i| (i, 5)).collect::<Vec<_>>());
    let stats = Stats {
        runs: 1,
        steps: 5,
        calls: 1 + 2 * 3 + 4 * 2,
        network_calls: 5 + 5,
        branch_evaluations: 3 + 2 * 2 + 5,
        rounds: 0,
        binds: 1,
    };
    assert_eq!(program.stats(), stats);
}

#[test]
fn calls_that_did_not_run_have_no_time() {
    let program = kinds().program(1).unwrap();
    program.set_timing(true);
    for _ in 0..2 {
        run(&program, &[], 1, 3).unwrap();
        let timings = program.timings();
        assert_eq!(timings.len() as u64, 1 + 2 * 3 + 4 * 2, "times of an earlier run are gone");
        let guided: Vec<usize> = timings.iter().filter(|t| t.segment == 1 && t.call == 2).map(|t| t.row).collect();
        assert_eq!(guided, [2, 3]);
    }
}

#[test]
fn variants_must_be_whole_numbers_of_the_table() {
    for (cell, says) in [(0.5, "variant 0.5"), (-1.0, "variant -1"), (64.0, "variant 64"), (f32::NAN, "variant NaN")] {
        let mut d = Draft::default();
        let x = d.batch(1);
        let table = d.table(&[&[0.0], &[cell]]);
        d.segment("loop", json!({"table": table, "variant": 0}), &[fill(&x, 1.0)]);
        let fault = d.fault();
        assert!(fault.code == Code::Plan && fault.text.contains(says) && fault.text.contains("row 1"), "{fault}");
        assert_eq!(fault.place, "segment loop");
    }
    let heads = [
        (json!({"table": 0, "variant": 2}), "column 2 of a table of 2"),
        (json!({"variant": 0}), "has no table"),
        (json!({"table": 0, "variant": 0, "networks": [{"name": "net", "branches": 0}]}), "0 branches"),
        (json!({"table": 0, "networks": [{"name": "net", "variants": [0]}]}), "lists variants"),
        (json!({"table": 0, "variant": 0, "networks": [{"name": "net", "variants": [64]}]}), "variant 64"),
    ];
    for (head, says) in heads {
        let mut d = Draft::default();
        let x = d.batch(1);
        d.table(&[&[0.0, 1.0]]);
        d.segment("loop", head, &[fill(&x, 1.0)]);
        let fault = d.fault();
        assert!(fault.code == Code::Plan && fault.text.contains(says), "{fault}");
    }
    let mut d = Draft::default();
    let x = d.batch(1);
    d.segment("once", json!({}), &[only_in(&[0], fill(&x, 1.0))]);
    assert!(d.fault().text.contains("no column says"), "{}", d.fault());
}

/// A row of `kinds` each; the calls are made by `calls(x, y)`.
fn rows(kinds: &[f32], calls: impl Fn(&str, &str) -> Vec<serde_json::Value>) -> Draft {
    let mut d = Draft::default();
    let (x, y) = (d.batch(1), d.batch(1));
    let cells: Vec<[f32; 1]> = kinds.iter().map(|&kind| [kind]).collect();
    let table = d.table(&cells.iter().map(|row| &row[..]).collect::<Vec<_>>());
    d.segment("loop", json!({"table": table, "variant": 0}), &calls(&x, &y));
    d.output("x", &y);
    d
}

#[test]
fn a_read_follows_a_write_in_the_order_of_the_rows() {
    let calls = |x: &str, y: &str| vec![only_in(&[0], fill(x, 7.0)), only_in(&[1], copy(x, y))];
    assert_eq!(run(&rows(&[0.0, 1.0, 1.0], calls).program(1).unwrap(), &[], 1, 1).unwrap(), [7.0]);
    let fault = rows(&[1.0, 0.0], calls).fault();
    assert_eq!(fault.code, Code::Memory);
    assert_eq!(fault.place, "segment loop, call 1 (copy at hand), row 0");
    // Whoever reads after the loop needs that some row wrote.
    let fault = rows(&[0.0, 0.0], calls).fault();
    assert!(fault.code == Code::Memory && fault.text.contains("nothing writes"), "{fault}");
}

/// The value of an earlier row is needed through all of the loop: nobody else may have its memory meanwhile.
#[test]
fn values_of_an_earlier_row_keep_their_memory() {
    // x is written by kind 0 and read by kind 1; t lives before both in the order of calls.
    let shared = |kinds: &[f32], with: usize| {
        let mut d = Draft::default();
        let (x, t, y) = (d.batch(1), d.batch(1), d.batch(1));
        let cells: Vec<[f32; 1]> = kinds.iter().map(|&kind| [kind]).collect();
        let table = d.table(&cells.iter().map(|row| &row[..]).collect::<Vec<_>>());
        d.share(&t, &x);
        let reader = [only_in(&[0, 1], copy(&x, &y)), only_in(&[0], copy(&x, &y))][with].clone();
        let calls = [fill(&t, 1.0), copy(&t, &y), only_in(&[0], fill(&x, 2.0)), reader];
        d.segment("loop", json!({"table": table, "variant": 0}), &calls);
        d.output("x", &y);
        d
    };
    let fault = shared(&[0.0, 1.0], 0).fault();
    assert!(fault.code == Code::Memory && fault.text.contains("needed at the same time"), "{fault}");
    // With rows of kind 0 only, or read by kind 0 only, x never outlives its row.
    assert_eq!(run(&shared(&[0.0, 0.0], 0).program(1).unwrap(), &[], 1, 1).unwrap(), [2.0]);
    assert_eq!(run(&shared(&[0.0, 1.0], 1).program(1).unwrap(), &[], 1, 1).unwrap(), [1.0]);

    // Read after the loop: the last row must have written it, or it is of an earlier row.
    let after = |kinds: &[f32]| {
        let mut d = Draft::default();
        let (x, t, y) = (d.batch(1), d.batch(1), d.batch(1));
        let cells: Vec<[f32; 1]> = kinds.iter().map(|&kind| [kind]).collect();
        let table = d.table(&cells.iter().map(|row| &row[..]).collect::<Vec<_>>());
        d.share(&t, &x);
        let calls = [fill(&t, 1.0), copy(&t, &y), only_in(&[0], fill(&x, 2.0))];
        d.segment("loop", json!({"table": table, "variant": 0}), &calls);
        d.segment("after", json!({}), &[copy(&x, &y)]);
        d.output("x", &y);
        d
    };
    assert_eq!(run(&after(&[1.0, 0.0]).program(1).unwrap(), &[], 1, 1).unwrap(), [2.0]);
    let fault = after(&[0.0, 1.0]).fault();
    assert!(fault.code == Code::Memory && fault.text.contains("needed at the same time"), "{fault}");
}

/// Goes on while the input `rounds` counts down, and adds 1 to x each time.
fn countdown(limit: u64, strict: bool, rows: usize) -> Draft {
    let mut d = Draft::default();
    let (left, fewer, x, more) = (d.batch(1), d.batch(1), d.batch(2), d.batch(2));
    d.input("rounds", &left);
    let mut head = json!({
        "repeat": {"active": number(&left), "limit": limit, "strict": strict}, "networks": [{"name": "n", "branches": 3}],
    });
    let step = [0.0f32];
    if rows > 0 {
        head["table"] = d.table(&vec![&step[..]; rows]).into();
    }
    let least =
        json!({"program": [["const", -1.0 / rows.max(1) as f64], ["add", 0, 1], ["const", 0.0], ["max", 2, 3]]});
    d.segment("start", json!({}), &[fill(&x, 0.0)]);
    d.segment(
        "adaptive",
        head,
        &[
            add(&x, 1.0, &more),
            copy(&more, &x),
            call("pointwise", &[("x0", &left)], &[("y", &fewer)], least),
            copy(&fewer, &left),
        ],
    );
    d.output("x", &x);
    d
}

#[test]
fn rounds_go_on_until_no_sample_is_active() {
    let program = countdown(10, true, 0).program(1).unwrap();
    let mut watched = Watched::default();
    let rounds: [f32; 3] = [2.0, 4.0, 0.0];
    assert_eq!(run_watched(&program, &[("rounds", &rounds)], 3, 2, &mut watched).unwrap(), [4.0; 6]);
    // The total is the most there may be until it is known.
    assert_eq!(watched.steps.into_inner(), [(1, 10), (2, 10), (3, 10), (4, 4)]);
    let stats = program.stats();
    assert_eq!((stats.steps, stats.rounds, stats.calls), (4, 4, 1 + 4 * 4));
    assert_eq!((stats.network_calls, stats.branch_evaluations), (4, 12));
    // Not one round.
    assert_eq!(run(&program, &[("rounds", &[0.0])], 1, 2).unwrap(), [0.0; 2]);
    assert_eq!(program.stats().rounds, 4);
    assert_eq!(run(&program, &[("rounds", &[-0.0])], 1, 2).unwrap(), [0.0; 2], "-0 is 0");
}

#[test]
fn a_round_is_all_rows_of_the_table() {
    let program = countdown(10, true, 2).program(1).unwrap();
    let mut watched = Watched::default();
    assert_eq!(run_watched(&program, &[("rounds", &[3.0])], 1, 2, &mut watched).unwrap(), [6.0; 2]);
    assert_eq!(watched.steps.into_inner(), [(1, 20), (2, 20), (3, 20), (4, 20), (5, 20), (6, 6)]);
    assert_eq!((program.stats().steps, program.stats().rounds), (6, 3));
}

#[test]
fn the_limit_ends_a_loop_with_an_error_if_it_is_strict() {
    let rounds: [f32; 4] = [1.0, 9.0, 3.0, 7.0];
    let strict = countdown(3, true, 0).program(1).unwrap();
    let fault = run(&strict, &[("rounds", &rounds)], 4, 2).unwrap_err();
    assert_eq!((fault.code, fault.subject.as_str(), fault.numbers), (Code::Unfinished, "adaptive", vec![3, 2, 4]));
    assert_eq!(fault.text, "2 of 4 samples are not done after 3 rounds");
    assert_eq!((strict.stats().runs, strict.stats().rounds), (0, 3));
    assert_eq!(run(&strict, &[("rounds", &rounds[..1])], 1, 2).unwrap(), [1.0; 2], "the program lives on");
    let lenient = countdown(3, false, 0).program(1).unwrap();
    assert_eq!(run(&lenient, &[("rounds", &rounds)], 4, 2).unwrap(), [3.0; 8]);
}

#[test]
fn rounds_have_a_condition_and_a_limit() {
    let repeated = |repeat: serde_json::Value, written: bool| {
        let mut d = Draft::default();
        let x = d.batch(1);
        if written {
            d.segment("start", json!({}), &[fill(&x, 0.0)]);
        }
        d.segment("again", json!({"repeat": repeat}), &[fill(&x, 0.0)]);
        d
    };
    assert!(repeated(json!({"active": 0, "limit": 4_294_967_295u64}), true).program(1).is_ok());
    for (repeat, written, says) in [
        (json!({"active": 0, "limit": 0}), true, "0 rounds"),
        (json!({"active": 0, "limit": 4_294_967_296u64}), true, "4294967296 rounds"),
        (json!({"active": 7, "limit": 3}), true, "no buffer b7"),
        (json!({"active": 0, "limit": 3}), false, "looked at before"),
    ] {
        let fault = repeated(repeat, written).fault();
        assert!(fault.text.contains(says), "{fault}");
    }
    let mut d = Draft::default();
    let x = d.batch(1);
    let table = d.table(&[&[0.0], &[0.0], &[0.0]]);
    d.segment("start", json!({}), &[fill(&x, 0.0)]);
    d.segment("again", json!({"table": table, "repeat": {"active": 0, "limit": 1u64 << 31}}), &[fill(&x, 0.0)]);
    assert!(d.fault().text.contains("rounds of 3 rows"), "{}", d.fault());
}

/// A loop that may make no round leaves nothing that was not there before.
#[test]
fn what_only_a_repeating_loop_writes_is_not_read_after_it() {
    let mut d = Draft::default();
    let (left, x) = (d.batch(1), d.batch(1));
    d.input("rounds", &left);
    d.segment("again", json!({"repeat": {"active": 0, "limit": 3}}), &[fill(&x, 1.0), fill(&left, 0.0)]);
    d.output("x", &x);
    assert!(d.fault().text.contains("nothing writes"), "{}", d.fault());
}

#[test]
fn a_loop_of_nothing_can_be_cancelled() {
    struct Impatient(u32);
    impl scoregraph_plan::Monitor for Impatient {
        fn cancelled(&mut self) -> bool {
            self.0 += 1;
            self.0 > 1000
        }
    }
    let mut d = Draft::default();
    let x = d.batch(1);
    d.segment("start", json!({}), &[fill(&x, 1.0)]);
    d.segment("again", json!({"repeat": {"active": 0, "limit": u32::MAX}}), &[]);
    d.output("x", &x);
    let fault = run_watched(&d.program(1).unwrap(), &[], 1, 1, &mut Impatient(0)).unwrap_err();
    assert_eq!(fault.code, Code::Cancelled);
}

#[test]
fn a_bank_is_an_input_of_draws() {
    let banked = |shape: serde_json::Value, space: &str, given: bool| {
        let mut d = Draft::default();
        let (bank, x) = (d.buffer(shape, 12, space), d.batch(4));
        if given {
            d.input("noise", &bank);
        }
        d.bank(&bank);
        d.segment("once", json!({}), &[fill(&x, 1.0)]);
        d
    };
    assert!(banked(json!(["B", 3, 4]), "batch", true).program(1).is_ok());
    assert!(banked(json!(["B", 3, 4]), "batch", false).fault().text.contains("is not an input"));
    for (shape, space) in [(json!([3, 4]), "fixed"), (json!(["B"]), "batch"), (json!(["2B", 3, 2]), "batch")] {
        assert!(banked(shape, space, true).fault().text.contains("[B, draws, …]"));
    }
}
