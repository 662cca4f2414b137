//! Small plans written by hand, and a run of one.
#![allow(dead_code, reason = "every test file uses a part of it")]

use std::cell::RefCell;

use scoregraph_plan::schema::DType;
use scoregraph_plan::{Constants, Fault, Given, Monitor, Program, Wanted};
use serde_json::{Map, Value, json};

/// A plan in the making: every buffer has memory of its own, and constants are 64-byte aligned.
#[derive(Default)]
pub struct Draft {
    buffers: Vec<Value>,
    constants: Vec<Value>,
    tables: Vec<Value>,
    segments: Vec<Value>,
    inputs: Vec<Value>,
    outputs: Vec<Value>,
    bank: Option<u64>,
    words: Vec<u64>,
    batch: u64,
    fixed: u64,
}

impl Draft {
    /// A dense f32 buffer [B, n], by its name as an operand.
    pub fn batch(&mut self, n: u64) -> String {
        self.buffer(json!(["B", n]), n, "batch")
    }

    /// A dense f32 buffer [k * B, n].
    pub fn branches(&mut self, k: u64, n: u64) -> String {
        self.buffer(json!([format!("{k}B"), n]), k * n, "batch")
    }

    /// A dense f32 buffer [n].
    pub fn fixed(&mut self, n: u64) -> String {
        self.buffer(json!([n]), n, "fixed")
    }

    /// A buffer of any shape with `n` floats per unit of its space.
    pub fn buffer(&mut self, shape: Value, n: u64, space: &str) -> String {
        self.typed("f32", shape, 4 * n, space)
    }

    /// A buffer of any type and shape with so many bytes per unit of its space.
    pub fn typed(&mut self, dtype: &str, shape: Value, bytes: u64, space: &str) -> String {
        let id = self.buffers.len();
        let end = if space == "batch" { &mut self.batch } else { &mut self.fixed };
        let slot = json!({"space": space, "offset": *end});
        *end += bytes.next_multiple_of(64);
        let name = format!("buffer{id}");
        self.buffers.push(json!({"id": id, "name": name, "dtype": dtype, "shape": shape, "slot": slot}));
        format!("b{id}")
    }

    /// A view of a buffer.
    pub fn view(&mut self, base: &str, dtype: &str, shape: Value, offset: u64, strides: &[u64]) -> String {
        let id = self.buffers.len();
        let view = json!({"base": number(base), "offset": offset, "strides": strides});
        self.buffers.push(json!({"id": id, "name": format!("view{id}"), "dtype": dtype, "shape": shape, "view": view}));
        format!("b{id}")
    }

    /// The buffer `other` at the place of the buffer `of`.
    pub fn share(&mut self, other: &str, of: &str) {
        let place = self.buffers[number(of) as usize]["slot"].clone();
        self.buffers[number(other) as usize]["slot"] = place;
    }

    /// A constant, by its name as an operand.
    pub fn constant(&mut self, shape: &[u64], layout: &str, values: &[f32]) -> String {
        self.packed("f32", shape, layout, values.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    /// A constant of any type, from its bytes.
    pub fn packed(&mut self, dtype: &str, shape: &[u64], layout: &str, mut bytes: Vec<u8>) -> String {
        let id = self.constants.len();
        let (offset, nbytes) = (8 * self.words.len(), bytes.len());
        bytes.resize(nbytes.next_multiple_of(64), 0);
        self.words.extend(bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())));
        self.constants.push(json!({
            "id": id, "name": format!("constant{id}"), "dtype": dtype, "shape": shape, "layout": layout,
            "offset": offset, "nbytes": nbytes,
        }));
        format!("c{id}")
    }

    /// A table of rows, by its id.
    pub fn table(&mut self, rows: &[&[f32]]) -> u64 {
        let columns: Vec<String> = (0..rows[0].len()).map(|i| format!("column{i}")).collect();
        let constant = self.constant(&[rows.len() as u64, columns.len() as u64], "plain", &rows.concat());
        let id = self.tables.len() as u64;
        let (name, constant) = (format!("table{id}"), number(&constant));
        self.tables.push(json!({"id": id, "name": name, "rows": rows.len(), "columns": columns, "constant": constant}));
        id
    }

    /// A segment; `head` holds table, variant, repeat and networks.
    pub fn segment(&mut self, name: &str, head: Value, calls: &[Value]) {
        let mut segment: Map<String, Value> = head.as_object().unwrap().clone();
        segment.insert("name".into(), name.into());
        segment.insert("calls".into(), calls.into());
        self.segments.push(segment.into());
    }

    pub fn input(&mut self, name: &str, buffer: &str) {
        self.inputs.push(json!({"name": name, "buffer": number(buffer)}));
    }

    pub fn output(&mut self, name: &str, buffer: &str) {
        self.outputs.push(json!({"name": name, "buffer": number(buffer)}));
    }

    pub fn bank(&mut self, buffer: &str) {
        self.bank = Some(number(buffer));
    }

    /// The plan proved, for that many threads.
    pub fn program(&self, threads: usize) -> Result<Program, Fault> {
        let plan = json!({
            "version": 3, "name": "hand-made", "device": "cpu", "inputs": self.inputs, "outputs": self.outputs,
            "buffers": self.buffers, "constants": self.constants, "tables": self.tables, "segments": self.segments,
            "bank": self.bank,
        });
        let constants = Constants::from_words(self.words.clone());
        Program::new(plan.to_string().as_bytes(), constants, Some(threads), None)
    }

    /// The fault of a plan that must not load.
    pub fn fault(&self) -> Fault {
        self.program(1).err().expect("the plan breaks a rule")
    }
}

/// The outputs of that many bytes each, for `batch` seeds, without inputs.
pub fn run_bytes(program: &Program, batch: u64, outputs: &[(&str, DType, usize)]) -> Result<Vec<Vec<u8>>, Fault> {
    let mut made: Vec<Vec<u8>> = outputs.iter().map(|(_, _, bytes)| vec![0; *bytes]).collect();
    let mut wanted: Vec<Wanted<'_>> = (outputs.iter().zip(&mut made))
        .map(|((name, dtype, _), bytes)| Wanted { name, dtype: *dtype, bytes })
        .collect();
    program.run(&[], &mut wanted, &(0..batch).collect::<Vec<_>>(), &mut Watched::default())?;
    Ok(made)
}

pub fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|word| f32::from_le_bytes(word.try_into().unwrap())).collect()
}

pub fn number(operand: &str) -> u64 {
    operand[1..].parse().unwrap()
}

/// A call; `ins` and `outs` are roles with operands.
pub fn call(op: &str, ins: &[(&str, &str)], outs: &[(&str, &str)], attrs: Value) -> Value {
    let roles = |list: &[(&str, &str)]| -> Value {
        list.iter().map(|(role, operand)| (role.to_string(), json!(operand))).collect::<Map<_, _>>().into()
    };
    json!({"op": op, "ins": roles(ins), "outs": roles(outs), "attrs": attrs, "site": "hand"})
}

/// The same call in rows of some variants only.
pub fn only_in(variants: &[u64], mut call: Value) -> Value {
    call["variants"] = variants.into();
    call
}

pub fn fill(x: &str, value: f64) -> Value {
    call("fill", &[], &[("x", x)], json!({"value": value}))
}

/// y := x + value.
pub fn add(x: &str, value: f64, y: &str) -> Value {
    call("pointwise", &[("x0", x)], &[("y", y)], json!({"program": [["const", value], ["add", 0, 1]]}))
}

pub fn copy(x: &str, y: &str) -> Value {
    call("copy", &[("x", x)], &[("y", y)], json!({}))
}

/// Remembers what it was told.
#[derive(Default)]
pub struct Watched {
    pub steps: RefCell<Vec<(usize, usize)>>,
}

impl Monitor for Watched {
    fn step(&mut self, done: usize, total: usize) {
        self.steps.borrow_mut().push((done, total));
    }
}

/// The output `x` of `each` floats a sample, for seeds 0, 1, ….
pub fn run(program: &Program, inputs: &[(&str, &[f32])], batch: u64, each: usize) -> Result<Vec<f32>, Fault> {
    run_watched(program, inputs, batch, each, &mut Watched::default())
}

pub fn run_watched(
    program: &Program,
    inputs: &[(&str, &[f32])],
    batch: u64,
    each: usize,
    monitor: &mut dyn Monitor,
) -> Result<Vec<f32>, Fault> {
    let bytes: Vec<(&str, Vec<u8>)> =
        inputs.iter().map(|(name, values)| (*name, values.iter().flat_map(|x| x.to_le_bytes()).collect())).collect();
    let f32s = DType::F32;
    let given: Vec<Given<'_>> = bytes.iter().map(|(name, bytes)| Given { name, dtype: f32s, bytes }).collect();
    let mut made = vec![0u8; 4 * batch as usize * each];
    let seeds: Vec<u64> = (0..batch).collect();
    let mut wanted = [Wanted { name: "x", dtype: f32s, bytes: &mut made }];
    program.run(&given, &mut wanted, &seeds, monitor)?;
    Ok(floats(&made))
}
