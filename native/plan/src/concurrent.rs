//! Small calls that run at the same time, each on one thread, in place of one after another on all threads.
//!
//! A product of one row takes microseconds, and handing its halves to two threads takes one: of neighbours of which none
//! reads or writes what another writes, every thread takes whole ones, and all of them meet once. A kernel computes the
//! same bits on any number of threads, so this changes none.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use scoregraph_kernels::Serial;
use scoregraph_simd::Disjoint;

use crate::fault::{Fault, Result};
use crate::operand::Operand;
use crate::ops::{Frame, Kernel};
use crate::places::Places;
use crate::schema::{Call, Ref};

/// Multiply-adds that a thread makes while a call is handed out and its end awaited.
const HANDOVER: usize = 1 << 14;

/// Each thread's scratch begins on a cache line.
const LINE: usize = 16;

/// A call that may be one of a group.
struct Member {
    work: usize,
    reads: Vec<Operand>,
    writes: Vec<Operand>,
}

impl Member {
    /// None for a call that runs alone.
    fn of(call: &Call, kernel: &dyn Kernel, places: &Places, batch: u64) -> Result<Option<Member>> {
        let Some(work) = kernel.work() else { return Ok(None) };
        let operands = |refs: &std::collections::BTreeMap<String, Ref>| -> Result<Vec<Operand>> {
            refs.values().map(|&name| places.operand(name, batch)).collect()
        };
        Ok(Some(Member { work, reads: operands(&call.ins)?, writes: operands(&call.outs)? }))
    }

    /// Whether it does not matter which of the two runs first.
    fn is_apart(&self, other: &Member) -> bool {
        let meets = |mine: &[Operand], theirs: &[Operand]| mine.iter().any(|a| theirs.iter().any(|b| a.may_overlap(b)));
        !(meets(&self.writes, &other.writes) || meets(&self.writes, &other.reads) || meets(&self.reads, &other.writes))
    }
}

/// Cuts the calls of a segment into groups: neighbours that run at the same time, or a call alone.
pub(crate) fn groups(
    calls: &[Call],
    kernels: &[Box<dyn Kernel>],
    places: &Places,
    batch: u64,
    threads: usize,
) -> Result<Vec<Range<usize>>> {
    if threads == 1 {
        return Ok((0..calls.len()).map(|call| call..call + 1).collect());
    }
    let members = calls.iter().zip(kernels).map(|(call, kernel)| Member::of(call, &**kernel, places, batch));
    let members = members.collect::<Result<Vec<_>>>()?;
    let mut found = Vec::new();
    let mut start = 0;
    while start < calls.len() {
        let mut end = start + 1;
        while end < calls.len() && calls[end].variants == calls[start].variants && joins(&members[start..=end]) {
            end += 1;
        }
        while end > start + 1 && !gains(members[start..end].iter().flatten().map(|member| member.work), threads) {
            end -= 1;
        }
        found.push(start..end);
        start = end;
    }
    Ok(found)
}

/// Whether the last of these calls is apart from those before it, which are apart from each other.
fn joins(members: &[Option<Member>]) -> bool {
    let Some((Some(last), others)) = members.split_last() else { return false };
    others.iter().all(|other| other.as_ref().is_some_and(|other| last.is_apart(other)))
}

/// Whether calls of so much work are done earlier by threads that take whole ones than by all threads sharing each.
fn gains(work: impl Iterator<Item = usize>, threads: usize) -> bool {
    let (mut busy, mut total, mut calls) = (vec![0usize; threads], 0usize, 0usize);
    for work in work {
        if let Some(least) = busy.iter_mut().min() {
            *least = least.saturating_add(work);
        }
        (total, calls) = (total.saturating_add(work), calls + 1);
    }
    let longest = busy.into_iter().max().unwrap_or_default();
    calls > 1 && longest <= total / threads + HANDOVER * (calls - 1)
}

/// Floats of working memory of a group.
pub(crate) fn scratch_floats(kernels: &[Box<dyn Kernel>], threads: usize) -> usize {
    match kernels {
        [kernel] => kernel.scratch_floats(threads),
        _ => scratch_of_thread(kernels).saturating_mul(threads),
    }
}

fn scratch_of_thread(kernels: &[Box<dyn Kernel>]) -> usize {
    let most = kernels.iter().map(|kernel| kernel.scratch_floats(1)).max().unwrap_or_default();
    most.checked_next_multiple_of(LINE).unwrap_or(usize::MAX)
}

/// What the threads of a group share.
struct Group<'a> {
    kernels: &'a [Box<dyn Kernel>],
    frame: &'a Frame<'a>,
    /// Floats of scratch of each thread.
    scratch: usize,
    /// Nanoseconds of each call.
    times: Option<Disjoint<'a, u64>>,
    /// The first call that failed, and how.
    failed: Mutex<Option<(usize, Fault)>>,
}

// SAFETY: of what it holds only the frame's pointers are not `Sync`. Kernels of a group are apart, so threads write
// through them to different places, and `run` gives each thread its own scratch.
unsafe impl Sync for Group<'_> {}

impl Group<'_> {
    /// Runs one call, on the calling thread alone.
    ///
    /// # Safety
    /// As [`run`]; a thread runs one call at a time.
    unsafe fn call(&self, number: usize, thread: usize) {
        let begun = self.times.is_some().then(Instant::now);
        let scratch = self.frame.scratch.wrapping_add(thread * self.scratch);
        let frame = Frame { pool: &Serial, scratch, scratch_floats: self.scratch, ..*self.frame };
        // SAFETY: the caller's promise; the scratch is that of the thread, as long as any kernel here asked for.
        if let Err(fault) = unsafe { self.kernels[number].run(&frame) } {
            let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
            if failed.as_ref().is_none_or(|(first, _)| number < *first) {
                *failed = Some((number, fault));
            }
        }
        if let (Some(times), Some(begun)) = (self.times, begun) {
            // SAFETY: a call runs once, so nobody else touches its number.
            unsafe { times.part(number..number + 1)[0] += nanoseconds_since(begun) };
        }
    }
}

/// Runs the calls of a group; their durations are added to `times` if it has places for them. A failure comes with the
/// number of the call, the first of those that failed.
///
/// # Safety
/// The contract of [`Kernel::run`] for each of the calls; the group is one of [`groups`], and the scratch of the frame is as
/// long as [`scratch_floats`] says.
pub(crate) unsafe fn run(
    kernels: &[Box<dyn Kernel>],
    frame: &Frame<'_>,
    times: &mut [u64],
) -> std::result::Result<(), (usize, Fault)> {
    if let [kernel] = kernels {
        let begun = (!times.is_empty()).then(Instant::now);
        // SAFETY: the caller's promise.
        unsafe { kernel.run(frame) }.map_err(|fault| (0, fault))?;
        if let Some(begun) = begun {
            times[0] += nanoseconds_since(begun);
        }
        return Ok(());
    }
    let times = (!times.is_empty()).then(|| Disjoint::new(times));
    let group = Group { kernels, frame, scratch: scratch_of_thread(kernels), times, failed: Mutex::new(None) };
    // SAFETY: the caller's promise; the pool numbers threads that run at the same time differently.
    frame.pool.run(kernels.len(), &|number, thread| unsafe { group.call(number, thread) });
    group.failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

/// At least 1, which tells a call that ran from one that did not.
fn nanoseconds_since(begun: Instant) -> u64 {
    (begun.elapsed().as_nanos() as u64).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_run_together_where_no_thread_waits_long_for_another() {
        let gains = |work: &[usize], threads| gains(work.iter().copied(), threads);
        let (small, large) = (HANDOVER, 100 * HANDOVER);
        assert!(!gains(&[large], 2), "one call is no group");
        assert!(gains(&[large, large], 2));
        assert!(gains(&[large; 8], 2));
        assert!(!gains(&[large, small], 2), "halves of the large one are done earlier");
        assert!(gains(&[small, small, small], 2));
        assert!(!gains(&[large; 3], 2));
        assert!(!gains(&[large, large], 3), "a third thread would have nothing to do");
        assert!(gains(&[large, small, small, large], 2));
        assert!(!gains(&[usize::MAX; 3], 2));
    }
}
