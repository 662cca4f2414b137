//! What a run is given, from `--set name=value` and the defaults of the plan.

use scoregraph_plan::schema::{Buffer, DType, Dim, InputSpec, PlanFile};

use crate::array::Array;
use crate::failure::Failure;

/// An input as the plan's program takes it.
pub struct Input {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: DType,
    /// Its elements.
    pub bytes: Vec<u8>,
}

/// `name=value`: a number, a JSON list, or `@file.npy`.
pub fn parse(text: &str) -> Result<(String, Array), Failure> {
    let (name, value) = text.split_once('=').ok_or_else(|| Failure::setting(text, "there is no ="))?;
    let array = match value.strip_prefix('@') {
        Some(path) => match std::fs::read(path) {
            Ok(bytes) => Array::read(&bytes),
            Err(error) => Err(error.to_string()),
        },
        None => match serde_json::from_str(value) {
            Ok(json) => Array::from_json(&json),
            Err(error) => Err(error.to_string()),
        },
    };
    Ok((name.into(), array.map_err(|problem| Failure::setting(text, &problem))?))
}

/// Every input of the plan, with the number of samples: that of `batch`, or of the values that state one, or 1.
pub fn fit(
    plan: &PlanFile,
    settings: &[(String, Array)],
    batch: Option<usize>,
) -> Result<(Vec<Input>, usize), Failure> {
    let known = plan.inputs.iter().map(|input| input.name.as_str()).collect::<Vec<_>>().join(", ");
    if let Some((name, _)) = settings.iter().find(|(name, _)| plan.inputs.iter().all(|input| input.name != *name)) {
        return Err(Failure::input(name, format!("the plan has no such input; it takes {known}")));
    }
    let mut values = Vec::new();
    for spec in &plan.inputs {
        let buffer = plan.buffers.iter().find(|buffer| buffer.id == spec.buffer);
        let buffer = buffer.ok_or_else(|| Failure::broken(format!("input {:?} has no buffer", spec.name)))?;
        let given = settings.iter().rev().find(|(name, _)| *name == spec.name);
        let default = || spec.default.map(|value| Array { shape: vec![], values: vec![value] });
        let array = match given {
            Some((_, array)) => Array { shape: array.shape.clone(), values: array.values.clone() },
            None => default().ok_or_else(|| Failure::missing_input(&spec.name, &known))?,
        };
        check(spec, buffer, &array)?;
        values.push((spec, buffer, array));
    }
    let batched = |buffer: &Buffer| buffer.shape.iter().any(|dim| matches!(dim, Dim::Batch(_)));
    let mut stated: Vec<(&str, usize)> = batch.map(|batch| ("--batch", batch)).into_iter().collect();
    for (spec, buffer, array) in &values {
        let full = array.shape.len() == buffer.shape.len() && batched(buffer);
        stated.extend(full.then(|| (spec.name.as_str(), array.shape[0])).filter(|&(_, size)| size != 1));
    }
    let size = stated.first().map_or(1, |&(_, size)| size);
    if size == 0 || stated.iter().any(|&(_, other)| other != size) {
        let said: Vec<String> = stated.iter().map(|(name, size)| format!("{name} says {size}")).collect();
        return Err(Failure::batch(&said.join(", ")));
    }
    let fitted = values.iter().map(|(spec, buffer, array)| {
        let shape = shape(buffer, size)?;
        let values = broadcast(array, &shape).ok_or_else(|| {
            Failure::input(&spec.name, format!("its shape is {:?}; give {shape:?} or {:?}", array.shape, &shape[1..]))
        })?;
        Ok(Input { name: spec.name.clone(), dtype: buffer.dtype, bytes: encode(buffer.dtype, values) })
    });
    Ok((fitted.collect::<Result<_, Failure>>()?, size))
}

/// The shape of a buffer for `batch` samples.
pub fn shape(buffer: &Buffer, batch: usize) -> Result<Vec<usize>, Failure> {
    Ok(buffer.shape.iter().map(|dim| dim.resolve(batch as u64)).collect::<Result<_, _>>()?)
}

fn check(spec: &InputSpec, buffer: &Buffer, array: &Array) -> Result<(), Failure> {
    let wrong = |problem: String| Err(Failure::input(&spec.name, problem));
    let whole = buffer.dtype != DType::F32;
    for &value in &array.values {
        let held = if whole { value } else { f64::from(value as f32) };
        if !held.is_finite() {
            return wrong(format!("it holds {value}, which is not finite"));
        }
        if whole
            && (value.fract() != 0.0
                || value.abs() > 2f64.powi(53)
                || (buffer.dtype == DType::U8 && !(0.0..256.0).contains(&value)))
        {
            return wrong(format!("{value} is not a whole number it can hold"));
        }
        if spec.low.is_some_and(|low| value < low) || spec.high.is_some_and(|high| value > high) {
            let (low, high) = (spec.low.unwrap_or(f64::NEG_INFINITY), spec.high.unwrap_or(f64::INFINITY));
            return wrong(format!("{value} is outside {low} to {high}"));
        }
    }
    Ok(())
}

/// The elements of `array` repeated to `shape`: sizes are matched from the last one on, and a size of 1, or one that is not
/// there, repeats.
fn broadcast(array: &Array, shape: &[usize]) -> Option<Vec<f64>> {
    let missing = shape.len().checked_sub(array.shape.len())?;
    let sizes: Vec<usize> = std::iter::repeat_n(1, missing).chain(array.shape.iter().copied()).collect();
    if sizes.iter().zip(shape).any(|(&own, &size)| own != size && own != 1) {
        return None;
    }
    let mut strides = vec![0; shape.len()];
    let mut stride = 1;
    for (to, &size) in strides.iter_mut().zip(&sizes).rev() {
        *to = if size == 1 { 0 } else { stride };
        stride *= size;
    }
    let count: usize = shape.iter().product();
    let at = |mut index: usize| {
        let mut offset = 0;
        for (&size, &stride) in shape.iter().zip(&strides).rev() {
            offset += index % size * stride;
            index /= size;
        }
        array.values[offset]
    };
    Some((0..count).map(at).collect())
}

fn encode(dtype: DType, values: Vec<f64>) -> Vec<u8> {
    match dtype {
        DType::F32 => values.iter().flat_map(|&value| (value as f32).to_le_bytes()).collect(),
        DType::I64 => values.iter().flat_map(|&value| (value as i64).to_le_bytes()).collect(),
        _ => values.iter().map(|&value| value as u8).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_repeat_as_arrays_do() {
        let array = |shape: &[usize]| Array {
            shape: shape.to_vec(),
            values: (0..shape.iter().product()).map(|i: usize| i as f64).collect(),
        };
        assert_eq!(broadcast(&array(&[]), &[2, 2]), Some(vec![0.0; 4]));
        assert_eq!(broadcast(&array(&[2]), &[2, 2]), Some(vec![0.0, 1.0, 0.0, 1.0]));
        assert_eq!(broadcast(&array(&[2, 1]), &[2, 2]), Some(vec![0.0, 0.0, 1.0, 1.0]));
        assert_eq!(broadcast(&array(&[3]), &[2, 2]), None);
        assert_eq!(broadcast(&array(&[1, 2, 2]), &[2, 2]), None);
    }
}
