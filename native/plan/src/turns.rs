//! How often a segment's calls run: its rows, what kind each row is, and its rounds.
//!
//! Everything is read from the plan and its tables once, when a plan is proved, so that later changes to the constants'
//! memory cannot change what was proved.

use crate::fault::{Fault, Result};
use crate::places::{Places, TablePlace};
use crate::schema::{MAX_VARIANTS, NetworkUse, Segment};

/// A set of variants, one bit each.
pub type VariantSet = u64;

/// Every variant: of a call that lists none.
const ALL: VariantSet = VariantSet::MAX;

/// Evaluations of networks in one row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evaluations {
    /// Calls of networks.
    pub calls: u64,
    /// Calls times branches.
    pub branches: u64,
}

/// The rounds of a segment that repeats.
#[derive(Clone, Copy, Debug)]
pub struct Rounds {
    /// The buffer that says whether there is another round.
    pub active: u64,
    /// The most rounds.
    pub limit: u32,
    /// Whether it is an error that some element is active after the last one.
    pub strict: bool,
}

/// One segment's turns.
#[derive(Debug)]
pub struct Turns {
    /// The table with a row for each turn.
    pub table: Option<TablePlace>,
    /// Rows of a round; 1 without a table.
    pub rows: usize,
    /// Set if it repeats.
    pub rounds: Option<Rounds>,
    /// The variant of each row; empty if all are of variant 0.
    variants: Vec<u8>,
    /// For each call the variants it runs in.
    calls: Vec<VariantSet>,
    /// What a row of each variant evaluates.
    evaluations: Vec<Evaluations>,
}

impl Turns {
    /// Reads a segment's turns; `floats(byte, count)` reads from the constants.
    pub fn new(segment: &Segment, places: &Places, floats: impl Fn(usize, usize) -> Vec<f32>) -> Result<Turns> {
        let table = segment.table.map(|id| places.table(id)).transpose()?;
        let rows = table.map_or(1, |table| table.rows);
        let variants = match (segment.variant, table) {
            (None, _) => Vec::new(),
            (Some(_), None) => return Err(Fault::plan("it names a column of variants but has no table")),
            (Some(column), Some(table)) if column >= table.columns as u64 => {
                return Err(Fault::plan(format!(
                    "its variants are column {column} of a table of {} columns",
                    table.columns
                )));
            }
            (Some(column), Some(table)) => {
                let cells = floats(table.byte, table.rows * table.columns);
                let cells = cells.iter().skip(column as usize).step_by(table.columns).enumerate();
                cells.map(|(row, &cell)| variant_of(row, cell)).collect::<Result<_>>()?
            }
        };
        let rounds = match &segment.repeat {
            None => None,
            Some(repeat) => {
                // The noise of a run numbers its micro-steps with 32 bits.
                let limit = u32::try_from(repeat.limit).ok().filter(|&n| n > 0);
                let limit = limit.filter(|&n| u64::from(n) * rows as u64 <= u64::from(u32::MAX));
                let Some(limit) = limit else {
                    return Err(Fault::plan(format!("it may make {} rounds of {rows} rows", repeat.limit)));
                };
                Some(Rounds { active: repeat.active, limit, strict: repeat.strict })
            }
        };
        let has_variants = segment.variant.is_some();
        let calls = (segment.calls.iter().enumerate())
            .map(|(number, call)| set_of(&call.variants, has_variants).map_err(|f| f.at(format!("call {number}"))))
            .collect::<Result<_>>()?;
        let evaluations = evaluations(&segment.networks, has_variants)?;
        Ok(Turns { table, rows, rounds, variants, calls, evaluations })
    }

    /// Whether calls may run more than once.
    pub fn is_loop(&self) -> bool {
        self.table.is_some() || self.rounds.is_some()
    }

    /// The most rounds; 1 if it does not repeat.
    pub fn most_rounds(&self) -> usize {
        self.rounds.map_or(1, |rounds| rounds.limit as usize)
    }

    /// The kind of a row.
    pub fn variant(&self, row: usize) -> usize {
        self.variants.get(row).map_or(0, |&variant| variant.into())
    }

    /// The kind of the row after it, if there is one in the round.
    pub fn next_variant(&self, row: usize) -> Option<usize> {
        (row + 1 < self.rows).then(|| self.variant(row + 1))
    }

    /// Whether a call runs in rows of `variant`.
    pub fn runs(&self, call: usize, variant: usize) -> bool {
        self.calls[call] >> variant & 1 == 1
    }

    /// What a row of that kind evaluates.
    pub fn evaluations(&self, variant: usize) -> Evaluations {
        self.evaluations[variant]
    }
}

fn variant_of(row: usize, cell: f32) -> Result<u8> {
    if cell >= 0.0 && cell < MAX_VARIANTS as f32 && cell.fract() == 0.0 {
        return Ok(cell as u8);
    }
    Err(Fault::plan(format!(
        "row {row} is of variant {cell}; variants are whole numbers from 0 to {}",
        MAX_VARIANTS - 1
    )))
}

/// The listed variants as a set; all of them if none is listed.
fn set_of(variants: &[u64], has_variants: bool) -> Result<VariantSet> {
    if variants.is_empty() {
        return Ok(ALL);
    }
    if !has_variants {
        return Err(Fault::plan("it lists variants, but no column says of which variant a row is"));
    }
    variants.iter().try_fold(0, |set, &variant| {
        if variant >= MAX_VARIANTS {
            return Err(Fault::plan(format!("it lists variant {variant}; the last one is {}", MAX_VARIANTS - 1)));
        }
        Ok(set | 1 << variant)
    })
}

fn evaluations(networks: &[NetworkUse], has_variants: bool) -> Result<Vec<Evaluations>> {
    let mut found = vec![Evaluations::default(); MAX_VARIANTS as usize];
    for network in networks {
        let fault = |f: Fault| f.at(format!("network {:?}", network.name));
        let set = set_of(&network.variants, has_variants).map_err(fault)?;
        if network.branches == 0 || network.branches > u64::from(u32::MAX) {
            return Err(fault(Fault::plan(format!("it has {} branches", network.branches))));
        }
        for (variant, row) in found.iter_mut().enumerate() {
            if set >> variant & 1 == 1 {
                row.calls += 1;
                row.branches += network.branches;
            }
        }
    }
    Ok(found)
}
