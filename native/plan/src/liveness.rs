//! The memory proof: at no call do two values that are both still needed share a byte.
//!
//! Calls are numbered through all segments. A value is needed from its first write to its last use; inputs from before
//! the first call, outputs beyond the last. Inside a loop, a value that comes from before the loop or from the turn
//! before is needed through all of it.

use std::collections::HashMap;

use crate::fault::{Fault, Result};
use crate::places::{Places, Slot};
use crate::schema::{Call, PlanFile, Ref};

/// What is known of one buffer's use.
struct Life {
    slot: Slot,
    first: i64,
    last: i64,
    /// In the current segment: the first use was a read.
    enters: bool,
    /// The current segment uses it.
    used_here: bool,
}

/// Position of a call that does not exist: inputs are there before the first call.
const BEFORE: i64 = -1;

/// Proves that every read follows a write and that no two live values overlap.
pub fn check(plan: &PlanFile, places: &Places) -> Result<()> {
    let end = plan.segments.iter().map(|s| s.calls.len() as i64).sum::<i64>();
    let mut lives: HashMap<u64, Life> = HashMap::new();
    for input in &plan.inputs {
        let place = || format!("input {:?}", input.name);
        let (owner, slot) = places.owner(input.buffer).map_err(|f| f.at(place()))?;
        let life = Life { slot, first: BEFORE, last: BEFORE, enters: false, used_here: false };
        if lives.insert(owner, life).is_some() {
            return Err(Fault::memory("two inputs are the same buffer").at(place()));
        }
    }
    let mut position = 0;
    for segment in &plan.segments {
        let start = position;
        for (number, call) in segment.calls.iter().enumerate() {
            let place = || format!("segment {}, call {number} ({} at {})", segment.name, call.op, call.site);
            visit(call, position, places, &mut lives).map_err(|f| f.at(place()))?;
            position += 1;
        }
        for life in lives.values_mut() {
            if segment.table.is_some() && life.used_here && (life.first < start || life.enters) {
                life.first = life.first.min(start);
                life.last = life.last.max(position - 1);
            }
            life.used_here = false;
            life.enters = false;
        }
    }
    for output in &plan.outputs {
        let place = || format!("output {:?}", output.name);
        let (owner, _) = places.owner(output.buffer).map_err(|f| f.at(place()))?;
        let Some(life) = lives.get_mut(&owner) else {
            return Err(Fault::memory(format!("nothing writes b{owner}")).at(place()));
        };
        life.last = end;
    }
    no_overlap(&lives)
}

fn visit(call: &Call, position: i64, places: &Places, lives: &mut HashMap<u64, Life>) -> Result<()> {
    for name in call.ins.values() {
        let Ref::Buffer(id) = *name else { continue };
        let (owner, _) = places.owner(id)?;
        let Some(life) = lives.get_mut(&owner) else {
            return Err(Fault::memory(format!("{name} is read before anything is written to it")));
        };
        life.last = position;
        life.enters |= !life.used_here;
        life.used_here = true;
    }
    for name in call.outs.values() {
        let Ref::Buffer(id) = *name else {
            return Err(Fault::memory(format!("{name} is a constant and cannot be written")));
        };
        let (owner, slot) = places.owner(id)?;
        let fresh = Life { slot, first: position, last: position, enters: false, used_here: true };
        let life = lives.entry(owner).or_insert(fresh);
        life.last = position;
        life.used_here = true;
    }
    Ok(())
}

/// A sweep over positions: values enter by their first use and leave after their last.
fn no_overlap(lives: &HashMap<u64, Life>) -> Result<()> {
    let mut order: Vec<(&u64, &Life)> = lives.iter().collect();
    order.sort_unstable_by_key(|(id, life)| (life.first, **id));
    let mut active: Vec<(&u64, &Life)> = Vec::new();
    for (id, life) in order {
        active.retain(|(_, other)| other.last >= life.first);
        let clash = active.iter().find(|(_, other)| {
            other.slot.space == life.slot.space && other.slot.start < life.slot.end && life.slot.start < other.slot.end
        });
        if let Some((other, _)) = clash {
            return Err(Fault::memory(format!("b{other} and b{id} are needed at the same time but share memory")));
        }
        active.push((id, life));
    }
    Ok(())
}
