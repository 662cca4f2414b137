//! Arrays of numbers: from a command line, from and to `.npy` files.

use std::io::Write;
use std::path::Path;

use scoregraph_plan::schema::DType;
use serde_json::Value;

use crate::failure::Failure;

/// Numbers, row-major.
#[derive(Debug, PartialEq)]
pub struct Array {
    /// Sizes; none for a single number.
    pub shape: Vec<usize>,
    /// The elements. Whole numbers beyond 2^53 are not held exactly.
    pub values: Vec<f64>,
}

/// The bytes every `.npy` file begins with.
const MAGIC: &[u8] = b"\x93NUMPY";

impl Array {
    /// A number, or lists of equal length of them.
    pub fn from_json(value: &Value) -> Result<Array, String> {
        match value {
            Value::Number(number) => {
                Ok(Array { shape: vec![], values: vec![number.as_f64().ok_or("it is no number")?] })
            }
            Value::Array(list) => {
                let parts = list.iter().map(Array::from_json).collect::<Result<Vec<_>, _>>()?;
                let inner = parts.first().map_or(&[][..], |part| &part.shape);
                if parts.iter().any(|part| part.shape != inner) {
                    return Err("its lists are not of equal length".into());
                }
                let shape = [&[parts.len()], inner].concat();
                Ok(Array { shape, values: parts.into_iter().flat_map(|part| part.values).collect() })
            }
            _ => Err("it is not a number or a list of numbers".into()),
        }
    }

    /// Reads a `.npy` file of version 1 to 3: row-major, of real numbers.
    pub fn read(bytes: &[u8]) -> Result<Array, String> {
        let rest = bytes.strip_prefix(MAGIC).ok_or("it is not a .npy file")?;
        let cut = || "it is cut short".to_string();
        let (length, start) = match *rest.get(..2).ok_or_else(cut)? {
            [1, _] => (rest.get(2..4).map(|b| usize::from(u16::from_le_bytes([b[0], b[1]]))), 4),
            _ => (rest.get(2..6).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize), 6),
        };
        let end = length.and_then(|length| length.checked_add(start)).ok_or_else(cut)?;
        let header = std::str::from_utf8(rest.get(start..end).ok_or_else(cut)?).map_err(|_| "its header is no text")?;
        let field = |name: &str| {
            let (_, after) = header.split_once(&format!("'{name}':"))?;
            Some(after.trim_start())
        };
        if field("fortran_order").is_none_or(|text| !text.starts_with("False")) {
            return Err("it is not row-major".into());
        }
        let shape = field("shape").and_then(|text| text.strip_prefix('(')?.split_once(')')).ok_or("it has no shape")?.0;
        let sizes = shape.split(',').map(str::trim).filter(|size| !size.is_empty());
        let shape: Vec<usize> =
            sizes.map(str::parse).collect::<Result<_, _>>().map_err(|_| "its shape is no list of sizes")?;
        let kind = field("descr").and_then(|text| text.strip_prefix('\'')?.split_once('\'')).ok_or("it has no type")?.0;
        let values = numbers(kind, &rest[end..])?;
        if shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size)) != Some(values.len()) {
            return Err(format!("it holds {} numbers for the shape {shape:?}", values.len()));
        }
        Ok(Array { shape, values })
    }
}

fn numbers(kind: &str, bytes: &[u8]) -> Result<Vec<f64>, String> {
    fn each<const N: usize>(bytes: &[u8], f: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        // `chunks_exact` makes slices of N, so the conversion cannot fail.
        bytes.chunks_exact(N).map(|chunk| f(chunk.try_into().unwrap_or([0; N]))).collect()
    }
    Ok(match kind {
        "<f8" => each(bytes, f64::from_le_bytes),
        "<f4" => each(bytes, |b| f32::from_le_bytes(b).into()),
        "<i8" => each(bytes, |b| i64::from_le_bytes(b) as f64),
        "<u8" => each(bytes, |b| u64::from_le_bytes(b) as f64),
        "<i4" => each(bytes, |b| i32::from_le_bytes(b).into()),
        "<u4" => each(bytes, |b| u32::from_le_bytes(b).into()),
        "|u1" => each(bytes, |b: [u8; 1]| b[0].into()),
        "|i1" => each(bytes, |b| i8::from_le_bytes(b).into()),
        other => return Err(format!("numbers of type {other} are not read; save float32, float64 or int64")),
    })
}

/// Writes a `.npy` file of `bytes`, the elements of an array of `shape`.
pub fn write(path: &Path, dtype: DType, shape: &[usize], bytes: &[u8]) -> Result<(), Failure> {
    let kind = match dtype {
        DType::F32 => "<f4",
        DType::I64 => "<i8",
        // bf16 has no type there: its bits.
        DType::Bf16 => "<u2",
        _ => "|u1",
    };
    let sizes: String = shape.iter().map(|size| format!("{size}, ")).collect();
    let mut header = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': ({}), }}", sizes.trim_end());
    // The elements begin at a multiple of 64, after a line feed.
    let whole = (MAGIC.len() + 4 + header.len() + 1).next_multiple_of(64);
    header.push_str(&" ".repeat(whole - MAGIC.len() - 4 - header.len() - 1));
    header.push('\n');
    let write = || {
        let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
        file.write_all(MAGIC)?;
        file.write_all(&[1, 0])?;
        file.write_all(&(header.len() as u16).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        file.write_all(bytes)?;
        file.flush()
    };
    write().map_err(|error| Failure::cannot_write(path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_become_arrays() {
        let array = |text: &str| Array::from_json(&serde_json::from_str(text).unwrap());
        assert_eq!(array("2.5"), Ok(Array { shape: vec![], values: vec![2.5] }));
        assert_eq!(array("[[1, 2, 3], [4, 5, 6]]").unwrap().shape, [2, 3]);
        assert!(array("[[1], [1, 2]]").is_err() && array("\"x\"").is_err() && array("null").is_err());
    }

    #[test]
    fn files_come_back() {
        let path = std::env::temp_dir().join(format!("scoregraph-array-{}.npy", std::process::id()));
        for shape in [&[][..], &[3], &[2, 3], &[1, 2, 3]] {
            let values: Vec<f32> = (0..shape.iter().product()).map(|i| i as f32 - 1.5).collect();
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            write(&path, DType::F32, shape, &bytes).unwrap();
            let file = std::fs::read(&path).unwrap();
            assert_eq!((file.len() - bytes.len()) % 64, 0);
            let back = Array::read(&file).unwrap();
            assert_eq!((back.shape, back.values), (shape.to_vec(), values.iter().map(|&v| v.into()).collect()));
            for end in 0..file.len() {
                assert!(Array::read(&file[..end]).is_err(), "a file cut at {end}");
            }
        }
        std::fs::remove_file(path).unwrap();
    }
}
