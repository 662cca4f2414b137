//! A call's operands and attributes for one batch size, handed to its rule one by one.
//!
//! A rule takes every role and attribute it knows; [`Args::finish`] refuses what is left over, and proves that nothing
//! is written which the call also reads, except where the rule works in place.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use serde_json::Value;

use crate::fault::{Fault, Result};
use crate::operand::Operand;
use crate::places::{Places, TablePlace};
use crate::schema::{Call, DType, Layout as Packing, Ref};

struct Role {
    name: String,
    operand: Operand,
    taken: Cell<bool>,
}

/// See the module.
pub struct Args<'a> {
    call: &'a Call,
    places: &'a Places,
    /// The table of the segment's loop.
    pub loop_table: Option<TablePlace>,
    /// Number of samples.
    pub batch: usize,
    ins: Vec<Role>,
    outs: Vec<Role>,
    read_attrs: RefCell<BTreeSet<String>>,
    in_place: RefCell<Vec<(String, String)>>,
}

impl<'a> Args<'a> {
    /// Resolves every operand of `call`.
    pub fn new(call: &'a Call, places: &'a Places, loop_table: Option<TablePlace>, batch: u64) -> Result<Args<'a>> {
        let resolve = |(name, &reference): (&String, &Ref)| {
            let operand = places.operand(reference, batch).map_err(|f| f.at(name))?;
            Ok(Role { name: name.clone(), operand, taken: Cell::new(false) })
        };
        let ins = call.ins.iter().map(resolve).collect::<Result<Vec<_>>>()?;
        let outs = call.outs.iter().map(resolve).collect::<Result<Vec<_>>>()?;
        Ok(Args {
            call,
            places,
            loop_table,
            batch: batch as usize,
            ins,
            outs,
            read_attrs: RefCell::default(),
            in_place: RefCell::default(),
        })
    }

    /// Where the call came from.
    pub fn site(&self) -> &str {
        &self.call.site
    }

    fn take(&self, roles: &[Role], name: &str) -> Option<Operand> {
        let role = roles.iter().find(|role| role.name == name)?;
        role.taken.set(true);
        Some(role.operand.clone())
    }

    /// An f32 operand that may be left out.
    pub fn optional(&self, name: &str) -> Result<Option<Operand>> {
        self.take(&self.ins, name).map(|operand| typed(operand, name, DType::F32)).transpose()
    }

    /// An f32 operand.
    pub fn input(&self, name: &str) -> Result<Operand> {
        self.optional(name)?.ok_or_else(|| Fault::plan(format!("the operand {name} is missing")))
    }

    /// An operand of any type.
    pub fn input_any(&self, name: &str) -> Result<Operand> {
        let found = self.take(&self.ins, name);
        found.ok_or_else(|| Fault::plan(format!("the operand {name} is missing")))
    }

    /// The operands `r0, r1, …` up to the first missing number.
    pub fn numbered(&self, prefix: &str) -> Vec<Operand> {
        (0..).map_while(|i| self.take(&self.ins, &format!("{prefix}{i}"))).collect()
    }

    /// The results `xin0`, `xin3`, … that there are, with their numbers.
    pub fn numbered_outputs(&self, prefix: &str) -> Result<Vec<(usize, Operand)>> {
        let mut found = Vec::new();
        for role in &self.outs {
            let digits = role.name.strip_prefix(prefix).unwrap_or_default();
            // Only the plain spelling is a role: not xin01, not xin+1.
            let number = digits.parse::<usize>().ok().filter(|number| number.to_string() == digits);
            let Some(number) = number else { continue };
            if let Some(operand) = self.optional_output(&role.name)? {
                found.push((number, operand));
            }
        }
        Ok(found)
    }

    /// A result of any type that may be left out.
    pub fn optional_output(&self, name: &str) -> Result<Option<Operand>> {
        let Some(operand) = self.take(&self.outs, name) else { return Ok(None) };
        operand.check_injective()?;
        Ok(Some(operand))
    }

    /// A result of any type.
    pub fn output_any(&self, name: &str) -> Result<Operand> {
        self.optional_output(name)?.ok_or_else(|| Fault::plan(format!("the result {name} is missing")))
    }

    /// An f32 result.
    pub fn output(&self, name: &str) -> Result<Operand> {
        typed(self.output_any(name)?, name, DType::F32)
    }

    /// Allows the result `out` to be exactly the elements of the operand `input`.
    pub fn allow_in_place(&self, out: &str, input: &str) {
        self.in_place.borrow_mut().push((out.into(), input.into()));
    }

    fn attr(&self, name: &str) -> Option<&'a Value> {
        self.read_attrs.borrow_mut().insert(name.into());
        self.call.attrs.get(name).filter(|value| !value.is_null())
    }

    /// An attribute of any form.
    pub fn value(&self, name: &str) -> Result<&'a Value> {
        self.attr(name).ok_or_else(|| self.wrong(name, "given"))
    }

    /// The fault that an attribute is not what it must be.
    pub fn wrong(&self, name: &str, wanted: &str) -> Fault {
        match self.call.attrs.get(name) {
            None | Some(Value::Null) => Fault::plan(format!("the attribute {name} is missing; it must be {wanted}")),
            Some(value) => Fault::plan(format!("the attribute {name} is {value}; it must be {wanted}")),
        }
    }

    /// A finite number.
    pub fn number(&self, name: &str) -> Result<f32> {
        let value = self.attr(name).and_then(Value::as_f64).map(|v| v as f32).filter(|v| v.is_finite());
        value.ok_or_else(|| self.wrong(name, "a number"))
    }

    /// A whole number from 0.
    pub fn count(&self, name: &str) -> Result<usize> {
        self.optional_count(name)?.ok_or_else(|| self.wrong(name, "a whole number"))
    }

    /// A whole number from 0, or nothing.
    pub fn optional_count(&self, name: &str) -> Result<Option<usize>> {
        let Some(value) = self.attr(name) else { return Ok(None) };
        let found = value.as_u64().and_then(|v| u32::try_from(v).ok()).map(|v| v as usize);
        found.map(Some).ok_or_else(|| self.wrong(name, "a whole number below 2^32"))
    }

    /// A whole number, or -1 or nothing for "none".
    pub fn count_or_none(&self, name: &str) -> Result<Option<usize>> {
        if self.attr(name).and_then(Value::as_i64) == Some(-1) { Ok(None) } else { self.optional_count(name) }
    }

    /// Two whole numbers.
    pub fn pair(&self, name: &str) -> Result<[usize; 2]> {
        let found = self.counts(name)?;
        found.try_into().map_err(|_| self.wrong(name, "two whole numbers"))
    }

    /// Whole numbers, or nothing.
    pub fn optional_counts(&self, name: &str) -> Result<Option<Vec<usize>>> {
        if self.attr(name).is_none() { Ok(None) } else { self.counts(name).map(Some) }
    }

    /// Whole numbers.
    pub fn counts(&self, name: &str) -> Result<Vec<usize>> {
        let number = |v: &Value| v.as_u64().and_then(|v| u32::try_from(v).ok()).map(|v| v as usize);
        let found = self.attr(name).and_then(Value::as_array).and_then(|list| list.iter().map(number).collect());
        found.ok_or_else(|| self.wrong(name, "a list of whole numbers"))
    }

    /// Text.
    pub fn text(&self, name: &str) -> Result<&'a str> {
        self.attr(name).and_then(Value::as_str).ok_or_else(|| self.wrong(name, "text"))
    }

    /// Text, or nothing.
    pub fn optional_text(&self, name: &str) -> Result<Option<&'a str>> {
        if self.attr(name).is_none() { Ok(None) } else { self.text(name).map(Some) }
    }

    /// A list of anything.
    pub fn list(&self, name: &str) -> Result<&'a [Value]> {
        self.attr(name).and_then(Value::as_array).map(Vec::as_slice).ok_or_else(|| self.wrong(name, "a list"))
    }

    /// A list of anything, or nothing.
    pub fn optional_list(&self, name: &str) -> Result<Option<&'a [Value]>> {
        if self.attr(name).is_none() { Ok(None) } else { self.list(name).map(Some) }
    }

    /// True or false; false if it is left out.
    pub fn flag(&self, name: &str) -> Result<bool> {
        match self.attr(name) {
            None => Ok(false),
            Some(value) => value.as_bool().ok_or_else(|| self.wrong(name, "true or false")),
        }
    }

    /// The activation `act`; none if it is left out.
    pub fn act(&self) -> Result<scoregraph_kernels::Act> {
        match self.attr("act") {
            None => Ok(scoregraph_kernels::Act::None),
            Some(value) => {
                let known = value.as_str().and_then(|name| name.parse().ok());
                known.ok_or_else(|| self.wrong("act", "the name of an activation"))
            }
        }
    }

    /// The table that the attribute `table` names.
    pub fn table(&self) -> Result<TablePlace> {
        self.places.table(self.count("table")? as u64)
    }

    /// Fails if a column, or a run of `len` columns, does not exist.
    pub fn check_columns(&self, table: TablePlace, name: &str, first: usize, len: usize) -> Result<()> {
        if first + len > table.columns {
            return Err(Fault::plan(format!(
                "the attribute {name} names columns {first}..{} of a table of {}",
                first + len,
                table.columns
            )));
        }
        Ok(())
    }

    /// Fails on roles and attributes the rule did not ask for, and on results that overlap operands or one another.
    pub fn finish(&self) -> Result<()> {
        if let Some(role) = self.ins.iter().chain(&self.outs).find(|role| !role.taken.get()) {
            return Err(Fault::plan(format!("{} has no role named {}", self.call.op, role.name)));
        }
        let read = self.read_attrs.borrow();
        if let Some(name) = self.call.attrs.keys().find(|name| !read.contains(*name)) {
            return Err(Fault::plan(format!("{} has no attribute named {name}", self.call.op)));
        }
        let in_place = self.in_place.borrow();
        for (i, out) in self.outs.iter().enumerate() {
            for other in &self.outs[..i] {
                if out.operand.may_overlap(&other.operand) {
                    return Err(Fault::memory(format!("the results {} and {} overlap", other.name, out.name)));
                }
            }
            for input in &self.ins {
                let allowed = in_place.iter().any(|(a, b)| *a == out.name && *b == input.name)
                    && out.operand.is_same_view(&input.operand);
                if !allowed && out.operand.may_overlap(&input.operand) {
                    return Err(Fault::memory(format!("the result {} overlaps the operand {}", out.name, input.name)));
                }
            }
        }
        Ok(())
    }
}

pub(super) fn typed(operand: Operand, name: &str, dtype: DType) -> Result<Operand> {
    if operand.dtype == dtype {
        Ok(operand)
    } else {
        Err(Fault::plan(format!("{name} is {}, not {dtype}", operand.dtype)))
    }
}

impl Operand {
    /// Fails unless the shape is `shape`.
    pub fn expect_shape(&self, role: &str, shape: &[usize]) -> Result<()> {
        if self.shape() == shape {
            return Ok(());
        }
        Err(Fault::plan(format!("{role} has the shape {:?}, not {shape:?}", self.shape())))
    }

    /// Fails unless the elements are row-major without gaps, and the operand is not a packed constant.
    pub fn expect_dense(&self, role: &str) -> Result<()> {
        self.expect_plain(role)?;
        if self.layout.is_dense() { Ok(()) } else { Err(Fault::plan(format!("{role} must be dense"))) }
    }

    /// Fails if the operand is a packed constant.
    pub fn expect_plain(&self, role: &str) -> Result<()> {
        if self.packing == Packing::Plain { Ok(()) } else { Err(Fault::plan(format!("{role} must not be packed"))) }
    }
}
