//! A bound program as text a person can read: one call a line, with the memory each operand lies in.

use std::fmt::Write as _;

use crate::exec::Program;
use crate::schema::{Buffer, PlanFile, Ref, Segment, Slot};

/// What will run, in order.
pub fn listing(program: &Program) -> String {
    let plan = program.plan();
    let target = program.target();
    let mut text = String::new();
    // Writing to a string cannot fail, so the results below are not looked at.
    let _ = writeln!(text, "program {} on cpu, {} kernels, {} thread(s)", plan.name, target.isa.name(), target.threads);
    for input in &plan.inputs {
        let _ =
            writeln!(text, "input  {} = b{}{}", input.name, input.buffer, shape_of(plan.buffers.iter(), input.buffer));
    }
    for segment in &plan.segments {
        let _ = writeln!(text, "{}:", turns_of(plan, segment));
        for network in &segment.networks {
            let rows = rows_of(&network.variants);
            let _ = writeln!(text, "        evaluates {} for {} branch(es){rows}", network.name, network.branches);
        }
        for (number, call) in segment.calls.iter().enumerate() {
            let operand = |(role, reference): (&String, &Ref)| match reference {
                Ref::Buffer(id) => format!("{role}={reference}{}", shape_of(plan.buffers.iter(), *id)),
                Ref::Constant(_) => format!("{role}={reference}"),
            };
            let outs: Vec<String> = call.outs.iter().map(operand).collect();
            let ins: Vec<String> = call.ins.iter().map(operand).collect();
            let attrs: String = call.attrs.iter().map(|(name, value)| format!(" {name}={value}")).collect();
            let _ = writeln!(
                text,
                "  {number:>4}  {} <- {}({}){attrs}  # {}{}",
                outs.join(", "),
                call.op,
                ins.join(", "),
                call.site,
                rows_of(&call.variants)
            );
        }
    }
    for output in &plan.outputs {
        let _ = writeln!(
            text,
            "output {} = b{}{}",
            output.name,
            output.buffer,
            shape_of(plan.buffers.iter(), output.buffer)
        );
    }
    text
}

/// `loop steps over 20 rows of table euler, variants by column 7, up to 500 rounds while b3`, `once start`.
fn turns_of(plan: &PlanFile, segment: &Segment) -> String {
    let table = segment.table.and_then(|id| plan.tables.iter().find(|table| table.id == id));
    let mut text = if segment.is_loop() { format!("loop {}", segment.name) } else { format!("once {}", segment.name) };
    if let Some(table) = table {
        let _ = write!(text, " over {} rows of {}", table.rows, table.name);
    }
    if let Some(column) = segment.variant {
        let _ = write!(text, ", variants by column {column}");
    }
    if let Some(repeat) = &segment.repeat {
        let end = if repeat.strict { "" } else { ", then as it is" };
        let _ = write!(text, ", up to {} rounds while b{}{end}", repeat.limit, repeat.active);
    }
    text
}

/// `, in variants [0, 2]`, or nothing for all rows.
fn rows_of(variants: &[u64]) -> String {
    if variants.is_empty() { String::new() } else { format!(", in variants {variants:?}") }
}

fn shape_of<'a>(mut buffers: impl Iterator<Item = &'a Buffer>, id: u64) -> String {
    let Some(buffer) = buffers.find(|buffer| buffer.id == id) else { return String::new() };
    let dims: Vec<String> = buffer.shape.iter().map(ToString::to_string).collect();
    let place = match (&buffer.slot, &buffer.view) {
        (Some(Slot { space, offset }), _) => format!("@{}+{offset}", format!("{space:?}").to_lowercase()),
        (None, Some(view)) => format!("@b{}", view.base),
        (None, None) => String::new(),
    };
    format!("[{}]{place}", dims.join(", "))
}
