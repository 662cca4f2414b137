//! The memory proof: every read follows a write, and at no call do two values that are both still needed share a byte.
//!
//! Calls are numbered through all segments. A value is needed from its first write to its last use; inputs from before
//! the first call, outputs beyond the last. A loop's later turns run its earlier calls again, so a value is needed
//! through all of a loop that uses it if it comes from before the loop or from another row than the one that reads it.

use std::collections::{HashMap, HashSet};

use crate::fault::{Fault, Result};
use crate::places::{Places, Slot};
use crate::schema::{Call, PlanFile, Ref, Segment};
use crate::turns::Turns;

/// From when to when a buffer is needed.
struct Life {
    slot: Slot,
    first: i64,
    last: i64,
}

/// A write whose value may come from an earlier row than the segment's last one.
struct Lasting {
    owner: u64,
    start: i64,
    end: i64,
}

/// Position of a call that does not exist: inputs are there before the first call.
const BEFORE: i64 = -1;

/// Proves that every read follows a write and that no two live values overlap.
pub fn check(plan: &PlanFile, places: &Places, turns: &[Turns]) -> Result<()> {
    let mut written: HashSet<u64> = HashSet::new();
    let mut lives: HashMap<u64, Life> = HashMap::new();
    for input in &plan.inputs {
        let place = || format!("input {:?}", input.name);
        let (owner, slot) = places.owner(input.buffer).map_err(|f| f.at(place()))?;
        if !written.insert(owner) {
            return Err(Fault::memory("two inputs are the same buffer").at(place()));
        }
        lives.insert(owner, Life { slot, first: BEFORE, last: BEFORE });
    }
    let mut position = 0;
    let mut lasting = Vec::new();
    for (segment, turns) in plan.segments.iter().zip(turns) {
        let uses = uses_of(segment, places)?;
        let repeats = segment.repeat.as_ref().map(|repeat| places.owner(repeat.active)).transpose();
        let repeats = repeats.map_err(|f| f.at(format!("segment {}", segment.name)))?;
        if let Some((active, _)) = repeats
            && !written.contains(&active)
        {
            let text = format!("b{active} is looked at before anything is written to it");
            return Err(Fault::memory(text).at(format!("segment {}", segment.name)));
        }
        let before = repeats.map(|_| written.clone());
        let carried = order_of_use(segment, turns, &uses, &mut written)?;
        if let Some(before) = before {
            // It may make no round at all.
            written = before;
        }
        let (start, end) = (position, position + segment.calls.len() as i64 - 1);
        position = end + 1;
        let before_it: HashSet<u64> = lives.keys().copied().collect();
        for (at, call) in (start..).zip(&uses) {
            for (owner, slot) in call.reads.iter().chain(call.writes.iter().map(|write| &write.buffer)) {
                let life = lives.entry(*owner).or_insert(Life { slot: *slot, first: at, last: at });
                life.last = life.last.max(at);
            }
        }
        if !turns.is_loop() {
            continue;
        }
        let used: HashMap<u64, Slot> = (uses.iter())
            .flat_map(|call| call.reads.iter().chain(call.writes.iter().map(|write| &write.buffer)).copied())
            .chain(repeats)
            .collect();
        let settled = writes_of_row(turns, &uses, turns.rows - 1);
        for (owner, slot) in used {
            if before_it.contains(&owner) || carried.contains(&owner) {
                let life = lives.entry(owner).or_insert(Life { slot, first: start, last: end });
                life.first = life.first.min(start);
                life.last = life.last.max(end);
            } else if !settled.contains(&owner) {
                lasting.push(Lasting { owner, start, end });
            }
        }
    }
    for output in &plan.outputs {
        let place = || format!("output {:?}", output.name);
        let (owner, _) = places.owner(output.buffer).map_err(|f| f.at(place()))?;
        let life = lives.get_mut(&owner).filter(|_| written.contains(&owner));
        let Some(life) = life else {
            return Err(Fault::memory(format!("nothing writes b{owner}")).at(place()));
        };
        life.last = position;
    }
    for Lasting { owner, start, end } in lasting {
        // Only now is it known who reads it after the loop.
        if let Some(life) = lives.get_mut(&owner)
            && life.last > end
        {
            life.first = life.first.min(start);
        }
    }
    no_overlap(&lives)
}

/// One write of a call.
struct Write {
    buffer: (u64, Slot),
    when: When,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    /// In every row in which the call runs.
    Always,
    /// Only if the next row is of that variant: the next network input of a sampler step.
    Before(usize),
}

/// The buffers a call uses, by their owners.
struct Use {
    reads: Vec<(u64, Slot)>,
    writes: Vec<Write>,
}

fn place(segment: &Segment, number: usize, call: &Call) -> String {
    format!("segment {}, call {number} ({} at {})", segment.name, call.op, call.site)
}

fn uses_of(segment: &Segment, places: &Places) -> Result<Vec<Use>> {
    let of = |(number, call): (usize, &Call)| use_of(call, places).map_err(|f| f.at(place(segment, number, call)));
    segment.calls.iter().enumerate().map(of).collect()
}

fn use_of(call: &Call, places: &Places) -> Result<Use> {
    let mut found = Use { reads: Vec::new(), writes: Vec::new() };
    for name in call.ins.values() {
        if let Ref::Buffer(id) = *name {
            found.reads.push(places.owner(id)?);
        }
    }
    for (role, name) in &call.outs {
        let Ref::Buffer(id) = *name else {
            return Err(Fault::memory(format!("{name} is a constant and cannot be written")));
        };
        let buffer = places.owner(id)?;
        if call.op == "record" {
            // It fills one slot and keeps the others.
            found.reads.push(buffer);
        }
        let next = role.strip_prefix("xin").filter(|_| call.op == "sampler_step");
        let when = next.map_or(When::Always, |variant| When::Before(variant.parse().unwrap_or(0)));
        found.writes.push(Write { buffer, when });
    }
    Ok(found)
}

/// Goes through the rows as they will run. Proves that every read follows a write, adds to `written`, and returns the
/// buffers that some row reads without having written them: their values come from before it.
fn order_of_use(segment: &Segment, turns: &Turns, uses: &[Use], written: &mut HashSet<u64>) -> Result<HashSet<u64>> {
    let mut carried = HashSet::new();
    // What a row does depends on its variant and on the next row's, and `written` only grows: each pair is new once.
    let mut seen = HashSet::new();
    for row in 0..turns.rows {
        let (variant, next) = (turns.variant(row), turns.next_variant(row));
        if !seen.insert((variant, next)) {
            continue;
        }
        let mut here: HashSet<u64> = HashSet::new();
        for (number, used) in uses.iter().enumerate().filter(|(number, _)| turns.runs(*number, variant)) {
            for (owner, _) in &used.reads {
                if !written.contains(owner) {
                    let call = &segment.calls[number];
                    let text = format!("b{owner} is read before anything is written to it");
                    let row = if turns.is_loop() { format!(", row {row}") } else { String::new() };
                    return Err(Fault::memory(text).at(place(segment, number, call) + &row));
                }
                if !here.contains(owner) {
                    carried.insert(*owner);
                }
            }
            for write in &used.writes {
                match write.when {
                    When::Always => {
                        here.insert(write.buffer.0);
                        written.insert(write.buffer.0);
                    }
                    When::Before(variant) if next == Some(variant) => {
                        written.insert(write.buffer.0);
                    }
                    When::Before(_) => {}
                }
            }
        }
    }
    Ok(carried)
}

/// What a row surely writes.
fn writes_of_row(turns: &Turns, uses: &[Use], row: usize) -> HashSet<u64> {
    let variant = turns.variant(row);
    let running = uses.iter().enumerate().filter(|(number, _)| turns.runs(*number, variant));
    let writes = running.flat_map(|(_, used)| &used.writes).filter(|write| write.when == When::Always);
    writes.map(|write| write.buffer.0).collect()
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
