//! `plan.json` as Rust values, field for field `scoregraph/plan/schema.py`. An unknown field is an error.
//!
//! Reading proves the *form* only (types, names, patterns); `model` and `ops` prove the meaning.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

use crate::fault::{Code, Fault, Result};

/// The format version this crate reads.
pub const VERSION: u64 = 3;

/// Rows of one table are of at most this many kinds, numbered from 0; a set of them is the bits of a `u64`.
pub const MAX_VARIANTS: u64 = 64;

/// Longest `plan.json` that is read, in bytes: a thousand times a usual one.
pub const MAX_JSON_BYTES: usize = 256 << 20;

/// No size in a plan may be larger, so that sums and products of a few of them stay far from overflow.
pub const MAX_SIZE: u64 = 1 << 40;

/// One dimension: `Fixed(n)`, or `Batch(k)` for the spelling `"kB"`, which is k times the number of samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dim {
    /// The same for every batch.
    Fixed(u64),
    /// `k * B`, k >= 1.
    Batch(u64),
}

impl Dim {
    /// The size for `batch` samples. Both factors are at most [`MAX_SIZE`], so the product is checked.
    pub fn resolve(self, batch: u64) -> Result<usize> {
        let size = match self {
            Dim::Fixed(n) => Some(n),
            Dim::Batch(k) => k.checked_mul(batch),
        };
        size.filter(|&n| n <= MAX_SIZE)
            .map(|n| n as usize)
            .ok_or_else(|| Fault::new(Code::TooLarge, format!("a dimension {self} is too large for {batch} samples")))
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Fixed(n) => write!(f, "{n}"),
            Dim::Batch(1) => f.write_str("B"),
            Dim::Batch(k) => write!(f, "{k}B"),
        }
    }
}

impl<'de> Deserialize<'de> for Dim {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct DimVisitor;
        impl Visitor<'_> for DimVisitor {
            type Value = Dim;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size: a number or \"kB\"")
            }

            fn visit_u64<E: de::Error>(self, n: u64) -> std::result::Result<Dim, E> {
                if n > MAX_SIZE { Err(E::custom(format!("size {n} is too large"))) } else { Ok(Dim::Fixed(n)) }
            }

            fn visit_str<E: de::Error>(self, s: &str) -> std::result::Result<Dim, E> {
                let digits = s.strip_suffix('B').filter(|d| d.bytes().all(|c| c.is_ascii_digit()) && d.len() <= 9);
                match digits {
                    Some("") => Ok(Dim::Batch(1)),
                    Some(d) if !d.starts_with('0') => Ok(Dim::Batch(d.parse().map_err(E::custom)?)),
                    _ => Err(E::custom(format!("{s:?} is not a size: write a number, \"B\" or \"2B\""))),
                }
            }
        }
        deserializer.deserialize_any(DimVisitor)
    }
}

/// Element type of a buffer or constant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// IEEE binary32.
    #[default]
    F32,
    /// 64-bit signed integers: indices.
    I64,
    /// Bytes.
    U8,
    /// Bytes 0 … 127.
    U7,
    /// The upper half of a binary32.
    Bf16,
    /// Weights of -127 … 127.
    I8,
    /// Weights of -63 … 63, a byte each.
    I7,
    /// Weights of -31 … 31, a byte each.
    I6,
    /// Weights of -8 … 7, two to a byte.
    I4,
    /// Weights of -2 … 1, four to a byte.
    I2,
}

impl DType {
    /// Bytes of one stored element; one byte of i4 and i2 holds several values.
    pub fn size(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::I64 => 8,
            DType::Bf16 => 2,
            DType::U8 | DType::U7 | DType::I8 | DType::I7 | DType::I6 | DType::I4 | DType::I2 => 1,
        }
    }

    /// Whether it is a type of weights, which only constants may have.
    pub fn is_weight(self) -> bool {
        matches!(self, DType::I8 | DType::I7 | DType::I6 | DType::I4 | DType::I2)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::I64 => "i64",
            DType::U8 => "u8",
            DType::U7 => "u7",
            DType::Bf16 => "bf16",
            DType::I8 => "i8",
            DType::I7 => "i7",
            DType::I6 => "i6",
            DType::I4 => "i4",
            DType::I2 => "i2",
        })
    }
}

/// What a call's operand names: `bN` or `cN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Ref {
    /// A buffer by its id.
    Buffer(u64),
    /// A constant by its id.
    Constant(u64),
}

impl fmt::Display for Ref {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ref::Buffer(id) => write!(f, "b{id}"),
            Ref::Constant(id) => write!(f, "c{id}"),
        }
    }
}

impl<'de> Deserialize<'de> for Ref {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let number = |digits: &str| {
            let plain = !digits.is_empty() && digits.len() <= 12 && digits.bytes().all(|c| c.is_ascii_digit());
            plain.then(|| digits.parse::<u64>().ok()).flatten()
        };
        let found = match text.split_at_checked(1) {
            Some(("b", digits)) => number(digits).map(Ref::Buffer),
            Some(("c", digits)) => number(digits).map(Ref::Constant),
            _ => None,
        };
        found.ok_or_else(|| de::Error::custom(format!("{text:?} is not an operand: write b3 or c7")))
    }
}

/// Which arena a slot lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Space {
    /// Grows with the batch: offsets are bytes per unit of B.
    Batch,
    /// The same for every batch: absolute byte offsets.
    Fixed,
}

/// Where a buffer lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slot {
    /// The arena.
    pub space: Space,
    /// Byte offset in it (per unit of B in the batch arena).
    pub offset: u64,
}

/// A strided window onto another buffer; offset and strides in elements.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct View {
    /// Id of the buffer that owns the memory.
    pub base: u64,
    /// First element.
    #[serde(default)]
    pub offset: u64,
    /// One stride per dimension; 0 repeats.
    pub strides: Vec<u64>,
}

/// A value of the plan: memory of its own (`slot`) or a window onto another's (`view`).
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Buffer {
    pub id: u64,
    pub name: String,
    #[serde(default)]
    pub dtype: DType,
    pub shape: Vec<Dim>,
    #[serde(default)]
    pub slot: Option<Slot>,
    #[serde(default)]
    pub view: Option<View>,
}

/// How a constant's bytes are packed; docs/plan-format.md and `Constant` in schema.py.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Layout {
    #[default]
    Plain,
    N16,
    Oc8,
    K2n16,
    Q4n16,
    Q4oc8,
}

/// Bytes of the constants file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Constant {
    pub id: u64,
    pub name: String,
    #[serde(default)]
    pub dtype: DType,
    pub shape: Vec<u64>,
    #[serde(default)]
    pub layout: Layout,
    #[serde(default)]
    pub offset: u64,
    #[serde(default)]
    pub nbytes: u64,
}

/// One row of float32 per micro-step of a loop.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Table {
    pub id: u64,
    pub name: String,
    pub rows: u64,
    pub columns: Vec<String>,
    pub constant: u64,
}

/// One kernel call: named operands, attributes, and the layer it came from.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Call {
    pub op: String,
    #[serde(default)]
    pub ins: BTreeMap<String, Ref>,
    #[serde(default)]
    pub outs: BTreeMap<String, Ref>,
    #[serde(default)]
    pub attrs: BTreeMap<String, serde_json::Value>,
    #[serde(default)]
    pub site: String,
    #[serde(default)]
    pub variants: Vec<u64>,
}

/// Round after round while any element of `active` is not 0, at most `limit` rounds.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Repeat {
    pub active: u64,
    pub limit: u64,
    #[serde(default = "yes")]
    pub strict: bool,
}

/// A network that rows of these variants evaluate: what the counters count.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct NetworkUse {
    pub name: String,
    #[serde(default = "one")]
    pub branches: u64,
    #[serde(default)]
    pub variants: Vec<u64>,
}

/// Calls that run once, or once per row of a table; with `repeat`, all of that round after round.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Segment {
    pub name: String,
    #[serde(default)]
    pub table: Option<u64>,
    #[serde(default)]
    pub variant: Option<u64>,
    #[serde(default)]
    pub repeat: Option<Repeat>,
    #[serde(default)]
    pub networks: Vec<NetworkUse>,
    pub calls: Vec<Call>,
}

impl Segment {
    /// Whether its calls may run more than once.
    pub fn is_loop(&self) -> bool {
        self.table.is_some() || self.repeat.is_some()
    }
}

/// A value the caller gives.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct InputSpec {
    pub name: String,
    pub buffer: u64,
    #[serde(default)]
    pub low: Option<f64>,
    #[serde(default)]
    pub high: Option<f64>,
    #[serde(default)]
    pub default: Option<f64>,
    #[serde(default)]
    pub doc: String,
}

/// A value the caller receives.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct OutputSpec {
    pub name: String,
    pub buffer: u64,
}

/// Provenance; read so that its form is checked, then ignored.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Stage {
    pub name: String,
    pub rewrites: i64,
    pub ms: f64,
    #[serde(default)]
    pub counters: BTreeMap<String, i64>,
    #[serde(default)]
    pub misses: Vec<String>,
}

/// The whole file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct PlanFile {
    #[serde(default = "format_name")]
    pub format: String,
    #[serde(default = "version")]
    pub version: u64,
    pub name: String,
    pub device: String,
    #[serde(default)]
    pub graph: String,
    #[serde(default)]
    pub inputs: Vec<InputSpec>,
    #[serde(default)]
    pub outputs: Vec<OutputSpec>,
    pub buffers: Vec<Buffer>,
    #[serde(default)]
    pub constants: Vec<Constant>,
    #[serde(default)]
    pub tables: Vec<Table>,
    pub segments: Vec<Segment>,
    #[serde(default)]
    pub bank: Option<u64>,
    #[serde(default)]
    pub stages: Vec<Stage>,
    #[serde(default)]
    pub constants_sha256: String,
}

fn format_name() -> String {
    "scoregraph-plan".into()
}

fn version() -> u64 {
    VERSION
}

fn yes() -> bool {
    true
}

fn one() -> u64 {
    1
}

/// Reads `plan.json`; the version is looked at first, so that a newer plan is called newer and not malformed.
pub fn read(json: &[u8]) -> Result<PlanFile> {
    #[derive(Deserialize)]
    struct Head {
        format: Option<serde_json::Value>,
        version: Option<serde_json::Value>,
    }
    if json.len() > MAX_JSON_BYTES {
        return Err(Fault::new(
            Code::Json,
            format!("plan.json has {} bytes; the limit is {MAX_JSON_BYTES}", json.len()),
        ));
    }
    let malformed = |e: serde_json::Error| Fault::new(Code::Json, e.to_string());
    let head: Head = serde_json::from_slice(json).map_err(malformed)?;
    if head.format.is_some_and(|f| f != "scoregraph-plan") {
        return Err(Fault::new(Code::Json, "this JSON is not a scoregraph plan"));
    }
    if let Some(found) = head.version
        && found != VERSION
    {
        return Err(Fault::new(
            Code::Version,
            format!("the plan has format version {found}; this build reads {VERSION}"),
        ));
    }
    serde_json::from_slice(json).map_err(malformed)
}
