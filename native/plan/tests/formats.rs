//! Values that are not float32: how they are written, and what is refused.

mod support;

use scoregraph_plan::Code;
use scoregraph_plan::schema::DType;
use serde_json::{Value, json};
use support::{Draft, call, copy, floats, run_bytes};

/// `quantize` of the constant `values` as rows of `shape`, to bytes of a type with `grids` measured rows.
fn quantizing(dtype: &str, shape: &[u64], values: &[f32], grids: u64) -> Draft {
    let mut d = Draft::default();
    let x = d.constant(shape, "plain", values);
    let bytes = if dtype == "bf16" { 2 } else { 1 } * values.len() as u64;
    let y = d.typed(dtype, json!(shape), bytes, "fixed");
    let grid = d.buffer(json!([grids, 2]), 2 * grids, "fixed");
    let outs = [("y", y.as_str()), ("ygrid", &grid)];
    let outs = if dtype == "bf16" { &outs[..1] } else { &outs[..] };
    d.segment("start", json!({}), &[call("quantize", &[("x", &x)], outs, json!({}))]);
    d.output("y", &y);
    if dtype != "bf16" {
        d.output("grid", &grid);
    }
    d
}

#[test]
fn rows_are_quantized_with_a_grid_for_each_or_for_some() {
    let x = [-1.0, 0.0, 3.0, 0.5, 0.5, 0.5, 0.0, -2.0];
    let program = quantizing("u8", &[2, 2, 2], &x, 4).program(2).unwrap();
    let made = run_bytes(&program, 1, &[("y", DType::U8, 8), ("grid", DType::F32, 32)]).unwrap();
    assert_eq!(made[0], [0, 255, 255, 42, 255, 255, 255, 0]);
    assert_eq!(floats(&made[1]), [1.0 / 255.0, 255.0, 3.0 / 255.0, 0.0, 0.5 / 255.0, 0.0, 2.0 / 255.0, 255.0]);
    let program = quantizing("u7", &[2, 2, 2], &x, 2).program(2).unwrap();
    let made = run_bytes(&program, 1, &[("y", DType::U7, 8), ("grid", DType::F32, 16)]).unwrap();
    assert_eq!(made[0], [0, 32, 127, 48, 127, 127, 102, 0]);
    assert_eq!(floats(&made[1]), [4.0 / 127.0, 32.0, 2.5 / 127.0, 102.0]);
    let program = quantizing("bf16", &[2, 4], &x, 1).program(1).unwrap();
    let made = run_bytes(&program, 1, &[("y", DType::Bf16, 16)]).unwrap();
    let wide: Vec<f32> =
        made[0].chunks_exact(2).map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16)).collect();
    assert_eq!(wide, x);
}

#[test]
fn an_image_is_quantized_to_quads() {
    let mut d = Draft::default();
    // Two images of three channels of which the last two are quantized, 1 × 2 pixels.
    let x = d.batch(6);
    let some = d.view(&x, "f32", json!(["B", 2, 1, 2]), 2, &[6, 2, 2, 1]);
    let y = d.typed("u8", json!(["B", 1, 1, 2, 4]), 8, "batch");
    let grid = d.constant(&[1, 2], "plain", &[0.5, 100.0]);
    d.segment(
        "start",
        json!({}),
        &[
            call("noise", &[], &[("x", &x)], json!({"site": 1, "micro": 0, "scale": 10.0})),
            call("quantize", &[("x", &some), ("ygrid", &grid)], &[("y", &y)], json!({})),
        ],
    );
    d.output("x", &x);
    d.output("y", &y);
    let made = run_bytes(&d.program(2).unwrap(), 2, &[("x", DType::F32, 48), ("y", DType::U8, 16)]).unwrap();
    for (image, bytes) in floats(&made[0]).chunks_exact(6).zip(made[1].chunks_exact(8)) {
        let q = |x: f32| ((2.0 * x).round_ties_even() + 100.0).clamp(0.0, 255.0) as u8;
        assert_eq!(bytes, [q(image[2]), q(image[4]), 0, 0, q(image[3]), q(image[5]), 0, 0]);
    }
}

/// The shape of a grid that is there.
type GridShape = Option<&'static [u64]>;

#[test]
fn a_result_says_its_format_and_grid() {
    // (type, shape of y, its bytes, ygrid as an operand, ygrid as a result, what is said)
    let cases: [(&str, Value, GridShape, GridShape, &str); 9] = [
        ("u8", json!([2, 4]), None, None, "ygrid must be"),
        ("u8", json!([2, 4]), Some(&[2, 2]), Some(&[2, 2]), "only one"),
        ("u8", json!([2, 4]), None, Some(&[3, 2]), "divide 2"),
        ("u8", json!([2, 4]), None, Some(&[2]), "[R, 2]"),
        ("u8", json!([4, 2]), None, Some(&[2, 2]), "shape"),
        ("bf16", json!([2, 4]), None, Some(&[2, 2]), "no role named ygrid"),
        ("bf16", json!([2, 4]), Some(&[2, 2]), None, "no role named ygrid"),
        ("f32", json!([2, 4]), None, None, "use copy"),
        ("i64", json!([2, 4]), None, None, "not f32, bf16, u8 or u7"),
    ];
    for (dtype, shape, given, measured, said) in cases {
        let mut d = Draft::default();
        let x = d.constant(&[2, 4], "plain", &[0.0; 8]);
        let y = d.typed(dtype, shape, 64, "fixed");
        let (mut ins, mut outs) = (vec![("x", x.as_str())], vec![("y", y.as_str())]);
        let given = given.map(|shape| d.constant(shape, "plain", &vec![0.0; shape.iter().product::<u64>() as usize]));
        let measured = measured.map(|shape| d.buffer(json!(shape), shape.iter().product(), "fixed"));
        ins.extend(given.as_deref().map(|grid| ("ygrid", grid)));
        outs.extend(measured.as_deref().map(|grid| ("ygrid", grid)));
        d.segment("start", json!({}), &[call("quantize", &ins, &outs, json!({}))]);
        d.output("y", &y);
        let fault = d.fault();
        assert!(fault.code == Code::Plan && fault.text.contains(said), "{dtype}: {fault}");
        assert!(fault.place.contains("quantize"), "{fault}");
    }
}

/// Columns times 1 and 2 are quantized; what is not has no such factors, nor may there be too few or too many.
#[test]
fn factors_belong_to_quantized_results() {
    let cases: [(&str, &[f32], &str); 4] = [
        ("u8", &[1.0, 2.0], ""),
        ("u8", &[1.0, 2.0, 3.0], "smooth has the shape [3]"),
        ("u7", &[1.0], "smooth has the shape [1]"),
        ("bf16", &[1.0, 2.0], "y is bf16; smooth belongs"),
    ];
    for (dtype, factors, said) in cases {
        let mut d = Draft::default();
        let x = d.constant(&[1, 2], "plain", &[-1.0, 2.0]);
        let smooth = d.constant(&[factors.len() as u64], "plain", factors);
        let y = d.typed(dtype, json!([1, 2]), 4, "fixed");
        let grid = d.constant(&[1, 2], "plain", &[0.5, 100.0]);
        let ins = [("x", x.as_str()), ("smooth", &smooth), ("ygrid", &grid)];
        let ins = if dtype == "bf16" { &ins[..2] } else { &ins[..] };
        d.segment("start", json!({}), &[call("quantize", ins, &[("y", &y)], json!({}))]);
        d.output("y", &y);
        if said.is_empty() {
            let made = run_bytes(&d.program(1).unwrap(), 1, &[("y", DType::U8, 2)]).unwrap();
            assert_eq!(made[0], [98, 108]);
        } else {
            let fault = d.fault();
            assert!(fault.code == Code::Plan && fault.text.contains(said), "{dtype}: {fault}");
        }
    }
}

/// In rows that name rows 2, 0, 1 of a constant: each is added to a sum that weighs the past by ten.
#[test]
fn rows_are_selected_by_the_table_or_the_step() {
    for by_column in [true, false] {
        let mut d = Draft::default();
        let table = d.table(&[&[2.0], &[0.0], &[1.0]]);
        let parts = d.constant(&[3, 2], "plain", &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let (row, sum, next) = (d.fixed(2), d.fixed(2), d.fixed(2));
        let mut attrs = json!({"table": table, "axis": 0});
        if by_column {
            attrs["column"] = 0.into();
        }
        d.segment("start", json!({}), &[support::fill(&sum, 0.0)]);
        let weigh = json!({"program": [["const", 10.0], ["mul", 0, 2], ["add", 3, 1]]});
        d.segment(
            "loop",
            json!({"table": table}),
            &[
                call("select_row", &[("x", &parts)], &[("y", &row)], attrs),
                call("pointwise", &[("x0", &sum), ("x1", &row)], &[("y", &next)], weigh),
                copy(&next, &sum),
            ],
        );
        d.output("x", &sum);
        let made = support::run(&d.program(1).unwrap(), &[], 1, 2).unwrap();
        assert_eq!(made, if by_column { [513.0, 624.0] } else { [135.0, 246.0] });
    }
}

#[test]
fn rows_are_selected_in_every_sample() {
    let mut d = Draft::default();
    let (x, y) = (d.buffer(json!(["B", 3, 2]), 6, "batch"), d.batch(2));
    let table = d.table(&[&[1.0]]);
    let attrs = json!({"table": table, "column": 0, "row": 0, "axis": 1});
    d.input("given", &x);
    d.segment("start", json!({}), &[call("select_row", &[("x", &x)], &[("y", &y)], attrs)]);
    d.output("x", &y);
    let values: Vec<f32> = (0..12).map(|i| i as f32).collect();
    let made = support::run(&d.program(1).unwrap(), &[("given", &values)], 2, 2).unwrap();
    assert_eq!(made, [2.0, 3.0, 8.0, 9.0]);
}

#[test]
fn a_row_that_is_not_there_is_not_selected() {
    let select = |entry: f32, attrs: Value, x: &[u64], y: &[u64]| {
        let mut d = Draft::default();
        let table = d.table(&[&[entry], &[entry]]);
        let x = d.constant(x, "plain", &vec![0.0; x.iter().product::<u64>() as usize]);
        let y = d.buffer(json!(y), y.iter().product(), "fixed");
        let mut attrs = attrs;
        attrs["table"] = table.into();
        d.segment("loop", json!({"table": table}), &[call("select_row", &[("x", &x)], &[("y", &y)], attrs)]);
        d.output("x", &y);
        d
    };
    for entry in [2.0, -1.0, 0.5, f32::NAN] {
        let program = select(entry, json!({"axis": 0, "column": 0}), &[2, 3], &[3]).program(1).unwrap();
        let fault = support::run(&program, &[], 1, 3).unwrap_err();
        assert!(fault.text.contains("row"), "{fault}");
    }
    for (attrs, x, y, said) in [
        (json!({"axis": 0}), &[1, 3][..], &[3][..], "x has 1 rows"),
        (json!({"axis": 2}), &[2, 3], &[3], "axis"),
        (json!({"axis": 0}), &[2, 3], &[2], "rows of"),
        (json!({"axis": 1}), &[2, 3], &[3], "rows of"),
        (json!({"axis": 0, "column": 1}), &[2, 3], &[3], "column"),
    ] {
        let fault = select(0.0, attrs, x, y).fault();
        assert!(fault.text.contains(said), "{fault}");
    }
}
