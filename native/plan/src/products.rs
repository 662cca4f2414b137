//! The proof that products of integers are exact: no sum of a plan can leave the integers it is held in, and every byte is
//! in the range that its type promises (docs/plan-format.md, Weights and Chains).
//!
//! It depends on no batch. What does, the rows of a grid, is proved by the rules of `ops`.

use std::collections::{HashMap, HashSet};

use crate::fault::{Code, Fault, Result};
use crate::schema::{Buffer, Call, Constant, DType, PlanFile, Ref};

/// Ops that write bytes 0 … 127 to a result of 7-bit bytes: they clamp, or copy what is such already.
const WRITE_U7: [&str; 7] = ["quantize", "layer_norm", "rms_norm", "group_norm", "linear", "copy", "select_row"];

/// W, the largest magnitude of a weight of that type; none for other types.
pub fn largest_weight(dtype: DType) -> Option<u64> {
    match dtype {
        DType::I8 => Some(127),
        DType::I7 => Some(63),
        DType::I6 => Some(31),
        DType::I4 => Some(8),
        DType::I2 => Some(2),
        _ => None,
    }
}

/// A, the largest value of a quantized operand of that type; none for other types.
pub fn largest_value(dtype: DType) -> Option<u64> {
    match dtype {
        DType::U8 => Some(255),
        DType::U7 => Some(127),
        _ => None,
    }
}

/// How many times two products of these types may be summed in 16 bits: `2 * chain * A * W <= 32767`.
pub fn chain_limit(weights: DType, values: DType) -> Option<u64> {
    Some(32767 / (2 * largest_value(values)? * largest_weight(weights)?))
}

/// Proves the whole plan, whose constants are `bytes`. `Places::new` has proved that each of them lies inside.
pub fn check(plan: &PlanFile, bytes: &[u8]) -> Result<()> {
    for constant in &plan.constants {
        check_range(constant, bytes).map_err(|f| f.at(format!("constant c{} ({:?})", constant.id, constant.name)))?;
    }
    let known = Known {
        buffers: plan.buffers.iter().map(|buffer| (buffer.id, buffer)).collect(),
        constants: plan.constants.iter().map(|constant| (constant.id, constant)).collect(),
        inputs: plan.inputs.iter().map(|input| input.buffer).collect(),
    };
    for input in &plan.inputs {
        if let Some(dtype @ (DType::U7 | DType::Bf16)) = known.dtype(Ref::Buffer(input.buffer)) {
            let text = format!("it is {dtype}; a caller gives f32, i64 or u8");
            return Err(Fault::plan(text).at(format!("input {:?}", input.name)));
        }
    }
    for segment in &plan.segments {
        for (number, call) in segment.calls.iter().enumerate() {
            check_call(call, &known)
                .map_err(|f| f.at(format!("segment {}, call {number} ({} at {})", segment.name, call.op, call.site)))?;
        }
    }
    Ok(())
}

/// Fails if a byte of an integer weight is beyond its type: kernels count on it.
fn check_range(constant: &Constant, bytes: &[u8]) -> Result<()> {
    // Every byte is some i4s or i2s.
    let (DType::I8 | DType::I7 | DType::I6, Some(limit)) = (constant.dtype, largest_weight(constant.dtype)) else {
        return Ok(());
    };
    let (start, limit) = (constant.offset as usize, limit as i8);
    let own = &bytes[start..start + constant.nbytes as usize];
    // Whole blocks without a branch, which the compiler turns into vectors.
    let beyond = |byte: u8| !(-limit..=limit).contains(&(byte as i8));
    let wrong = own.chunks(4096).position(|block| block.iter().fold(false, |any, &byte| any | beyond(byte)));
    let Some(block) = wrong else { return Ok(()) };
    let at = own.iter().skip(4096 * block).position(|&byte| beyond(byte)).unwrap_or(0) + 4096 * block;
    let (value, dtype) = (own[at] as i8, constant.dtype);
    Err(Fault::new(Code::Constants, format!("byte {at} is {value}; {dtype} holds {}…{limit}", -limit)))
}

/// What the refs of a plan name.
struct Known<'a> {
    buffers: HashMap<u64, &'a Buffer>,
    constants: HashMap<u64, &'a Constant>,
    inputs: HashSet<u64>,
}

impl Known<'_> {
    fn dtype(&self, name: Ref) -> Option<DType> {
        match name {
            Ref::Buffer(id) => self.buffers.get(&id).map(|buffer| buffer.dtype),
            Ref::Constant(id) => self.constants.get(&id).map(|constant| constant.dtype),
        }
    }

    /// Whether it is an input, or a view of one.
    fn is_given(&self, name: Ref) -> bool {
        let Ref::Buffer(id) = name else { return false };
        let base = self.buffers.get(&id).and_then(|buffer| buffer.view.as_ref()).map_or(id, |view| view.base);
        self.inputs.contains(&base)
    }
}

fn check_call(call: &Call, known: &Known<'_>) -> Result<()> {
    for (role, &name) in &call.outs {
        if known.dtype(name) == Some(DType::U7) && !WRITE_U7.contains(&call.op.as_str()) {
            return Err(Fault::plan(format!("{role} is u7; {} does not keep to 0…127", call.op)));
        }
    }
    if let (Some(&x), Some(_)) = (call.ins.get("x"), call.ins.get("grid"))
        && known.is_given(x)
    {
        return Err(Fault::plan("x has a grid and is an input; a caller gives no quantized values"));
    }
    let weights = call.ins.get("w").and_then(|&name| Some((name, known.dtype(name)?)));
    let Some((name, weights)) = weights.filter(|(_, dtype)| dtype.is_weight()) else { return Ok(()) };
    let Ref::Constant(id) = name else { return Err(Fault::plan("w is a buffer of weights")) };
    match known.constants.get(&id) {
        Some(w) => check_product(call, w, weights, known),
        None => Ok(()),
    }
}

/// The proof of one `linear` or `conv2d` with integer weights `w`.
fn check_product(call: &Call, w: &Constant, weights: DType, known: &Known<'_>) -> Result<()> {
    let missing = |role: &str| Fault::plan(format!("w is {weights}; {role} is missing"));
    let x = *call.ins.get("x").ok_or_else(|| missing("x"))?;
    let values = known.dtype(x).unwrap_or_default();
    let (Some(a), Some(largest)) = (largest_value(values), largest_weight(weights)) else {
        return Err(Fault::plan(format!("w is {weights} and x is {values}; x must be u8 or u7")));
    };
    if !call.ins.contains_key("grid") {
        return Err(missing("grid"));
    }
    let chain = call.attrs.get("chain").and_then(serde_json::Value::as_u64);
    let chain =
        chain.ok_or_else(|| Fault::plan(format!("w is {weights}; the attribute chain must be a whole number")))?;
    if let Some(limit) = chain_limit(weights, values).filter(|&limit| chain > limit) {
        return Err(Fault::plan(format!(
            "a chain of {chain} products of {weights} and {values} may leave 16 bits; at most {limit} fit"
        )));
    }
    let (&outputs, inputs) = w.shape.split_first().ok_or_else(|| Fault::plan("w has no dimension"))?;
    // Sizes are below 2^40 each and there are at most 8, but their product may be anything.
    let terms = inputs.iter().try_fold(1u64, |n, &size| n.checked_mul(size));
    let fits = terms.and_then(|n| n.checked_mul(a * largest)).is_some_and(|sum| sum < 1 << 31);
    let Some(terms) = terms.filter(|_| fits) else {
        return Err(Fault::plan(format!("sums of {inputs:?} products of {weights} and {values} may leave 32 bits")));
    };
    let mut groups = None;
    for role in ["wscale", "wsum"] {
        let &name = call.ins.get(role).ok_or_else(|| missing(role))?;
        let shape = match name {
            Ref::Constant(id) => known.constants.get(&id).map(|c| c.shape.clone()),
            Ref::Buffer(_) => None,
        };
        let own = match shape.as_deref() {
            Some(&[rows, own]) if rows == outputs && known.dtype(name) == Some(DType::F32) => own,
            _ => return Err(Fault::plan(format!("{role} must be a constant f32 [{outputs}, groups]"))),
        };
        let whole = own == 1
            || (call.op == "linear" && own > 0 && terms.is_multiple_of(own) && (terms / own).is_multiple_of(32));
        if !whole || *groups.get_or_insert(own) != own {
            return Err(Fault::plan(format!(
                "{role} has {own} groups for {terms} inputs; groups are multiples of 32 inputs, and as many in wscale and wsum"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// A product with integer weights of `shape`; `edit` changes the plan before it is checked.
    fn product(
        op: &str,
        weights: &str,
        values: &str,
        shape: &[u64],
        chain: u64,
        edit: impl Fn(&mut Value),
    ) -> Result<()> {
        let outputs = shape[0];
        let mut plan = json!({
            "name": "hand", "device": "cpu",
            "inputs": [{"name": "given", "buffer": 2}],
            "buffers": [
                {"id": 0, "name": "x", "dtype": values, "shape": ["B", 4]},
                {"id": 1, "name": "y", "shape": ["B", 4]},
                {"id": 2, "name": "g", "shape": ["B", 2]},
                {"id": 3, "name": "u7", "dtype": "u7", "shape": ["B", 4]},
            ],
            "constants": [
                {"id": 0, "name": "w", "dtype": weights, "shape": shape, "offset": 64, "nbytes": 8192},
                {"id": 1, "name": "s", "shape": [outputs, 1]},
            ],
            "segments": [{"name": "all", "calls": [{
                "op": op, "ins": {"x": "b0", "grid": "b2", "w": "c0", "wscale": "c1", "wsum": "c1"},
                "outs": {"y": "b1"}, "attrs": {"chain": chain},
            }]}],
        });
        edit(&mut plan);
        check(&serde_json::from_value(plan).unwrap(), &vec![1; 64 + 8192])
    }

    /// The chains that the page of the format lists are the longest that load.
    #[test]
    fn a_chain_that_could_overflow_does_not_load() {
        let table = [
            ("i8", "u7", 1),
            ("i7", "u7", 2),
            ("i6", "u7", 4),
            ("i4", "u8", 8),
            ("i4", "u7", 16),
            ("i2", "u8", 32),
            ("i2", "u7", 64),
            ("i8", "u8", 0),
        ];
        for (weights, values, longest) in table {
            let [w, x] = [weights, values].map(|name| serde_json::from_value::<DType>(json!(name)).unwrap());
            assert!(longest <= chain_limit(w, x).unwrap());
            // By hand: the sum of the largest products, in 16 bits.
            let largest = 2 * largest_value(x).unwrap() * largest_weight(w).unwrap();
            assert!(longest * largest <= 32767);
            for op in ["linear", "conv2d"] {
                let shape: &[u64] = if op == "linear" { &[16, 64] } else { &[16, 8, 3, 3] };
                assert_eq!(product(op, weights, values, shape, longest, |_| {}), Ok(()));
                let beyond = 32767 / largest + 1;
                let fault = product(op, weights, values, shape, beyond, |_| {}).unwrap_err();
                assert!(fault.text.contains("16 bits") && fault.place.contains(op), "{fault}");
            }
        }
    }

    #[test]
    fn sums_fit_32_bits() {
        let longest = ((1u64 << 31) - 1) / (255 * 127);
        assert_eq!(product("linear", "i8", "u8", &[4, longest], 0, |_| {}), Ok(()));
        for shape in [&[4, longest + 1][..], &[4, 1 << 39, 1 << 39, 4]] {
            let fault = product("linear", "i8", "u8", shape, 0, |_| {}).unwrap_err();
            assert!(fault.text.contains("32 bits"), "{fault}");
        }
    }

    /// A way to break a plan, and what is said about it.
    type Breach = (fn(&mut Value), &'static str);

    #[test]
    fn operands_of_a_product_are_all_there_and_fit() {
        let breaches: [Breach; 12] = [
            (|p| p["buffers"][0]["dtype"] = "f32".into(), "must be u8 or u7"),
            (|p| p["segments"][0]["calls"][0]["attrs"] = json!({}), "chain must be"),
            (|p| p["segments"][0]["calls"][0]["attrs"]["chain"] = json!(-1), "chain must be"),
            (|p| _ = p["segments"][0]["calls"][0]["ins"].as_object_mut().unwrap().remove("grid"), "grid is missing"),
            (|p| _ = p["segments"][0]["calls"][0]["ins"].as_object_mut().unwrap().remove("wsum"), "wsum is missing"),
            (|p| _ = p["segments"][0]["calls"][0]["ins"].as_object_mut().unwrap().remove("x"), "x is missing"),
            (|p| p["segments"][0]["calls"][0]["ins"]["wscale"] = "b2".into(), "wscale must be a constant"),
            (|p| p["constants"][1]["shape"] = json!([15, 1]), "wscale must be a constant"),
            (|p| p["constants"][1]["shape"] = json!([16, 4]), "4 groups"),
            (|p| p["constants"][1]["shape"] = json!([16, 3]), "3 groups"),
            (|p| p["segments"][0]["calls"][0]["ins"]["w"] = "b4".into(), "buffer of weights"),
            (|p| p["inputs"][0]["buffer"] = 0.into(), "is an input"),
        ];
        for (edit, said) in breaches {
            let fault = product("linear", "i8", "u8", &[16, 64], 0, |plan| {
                let weights = json!({"id": 4, "name": "w", "dtype": "i8", "shape": [16, 64]});
                plan["buffers"].as_array_mut().unwrap().push(weights);
                edit(plan);
            });
            assert!(fault.as_ref().is_err_and(|fault| fault.text.contains(said)), "{said}: {fault:?}");
        }
        // Groups of 32 inputs are fine; a convolution has one.
        let grouped = |p: &mut Value| p["constants"][1]["shape"] = json!([16, 2]);
        assert_eq!(product("linear", "i4", "u8", &[16, 64], 8, grouped), Ok(()));
        assert!(product("conv2d", "i4", "u8", &[16, 64, 1, 1], 8, grouped).is_err());
    }

    #[test]
    fn bytes_beyond_their_type_do_not_load() {
        for (name, limit) in [("i8", 127i16), ("i7", 63), ("i6", 31)] {
            for at in [0usize, 4095, 4096, 9999] {
                let check = |value: i16| {
                    let mut bytes = vec![(-limit) as u8; 64 + 10_000];
                    bytes[64 + at] = value as u8;
                    let constant =
                        json!({"id": 0, "name": "w", "dtype": name, "shape": [1], "offset": 64, "nbytes": 10_000});
                    check_range(&serde_json::from_value(constant).unwrap(), &bytes)
                };
                assert!((-limit..=limit).all(|value| check(value).is_ok()));
                let beyond: Vec<i16> = (-128..=127i16).filter(|value| value.abs() > limit).collect();
                assert!(!beyond.is_empty());
                for value in beyond {
                    let fault = check(value).unwrap_err();
                    assert!(fault.code == Code::Constants && fault.text.contains(&format!("byte {at} is {value};")));
                }
            }
        }
    }

    #[test]
    fn seven_bits_come_from_those_who_keep_to_them() {
        for op in ["quantize", "layer_norm", "copy", "fill", "pointwise", "embedding", "upsample_nearest"] {
            let made = product("linear", "i8", "u7", &[16, 64], 1, |plan| {
                let call = json!({"op": op, "outs": {"y": "b3"}});
                plan["segments"][0]["calls"].as_array_mut().unwrap().push(call);
            });
            assert_eq!(made.is_ok(), WRITE_U7.contains(&op), "{op}: {made:?}");
        }
        for dtype in ["u7", "bf16"] {
            let fault = product("linear", "i8", "u7", &[16, 64], 1, |p| p["buffers"][2]["dtype"] = dtype.into());
            assert!(fault.unwrap_err().place.contains("input"));
        }
    }
}
