//! A parking thread pool: the caller works too, idle threads spin for some microseconds and then sleep.
//!
//! One job at a time: `tiles` numbered pieces of work. Every thread has an equal run of them of its own, so that what it
//! wrote in one call is in its cache for the next, and helps the others when it is done. A sleeping thread that wakes too
//! late simply finds the job closed; nobody ever waits for it. Which thread runs a tile never changes a result (kernels
//! split rows and columns, never sums), so a pool of any size computes the same bits.

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use scoregraph_simd::Parallel;

use crate::fault::{Code, Fault, Result};

/// How long an idle thread stays awake: longer than a caller takes from one run to the next, since waking a thread costs
/// tens of microseconds, and so little that a process that has stopped running plans does not notice.
const SPIN: Duration = Duration::from_millis(1);

/// More threads than this is a typing error.
const MAX_THREADS: usize = 1024;

/// The work of one `run`, with its lifetime erased; see the safety note at its only use.
#[derive(Clone, Copy)]
struct Job {
    tile: *const (dyn Fn(usize, usize) + Sync),
    tiles: usize,
}

/// The gate word: the job's number (upper bits), whether it may be entered (bit 31), and how many are inside.
const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;
const EPOCH_SHIFT: u32 = 32;

/// The next tile of a thread's run, on a pair of cache lines of its own.
#[repr(align(128))]
struct Cursor(AtomicUsize);

struct Shared {
    gate: AtomicU64,
    /// One for each thread.
    next: Box<[Cursor]>,
    job: UnsafeCell<Option<Job>>,
    panicked: AtomicBool,
    stop: AtomicBool,
    sleepers: AtomicUsize,
    bed: Mutex<()>,
    bell: Condvar,
}

// SAFETY: `job` is written only by the thread that holds `Pool::turn`, while the gate is closed and empty; it is read
// only by threads that entered the open gate, whose release/acquire order makes the write visible. The closure behind
// it is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above; nothing in it belongs to one thread.
unsafe impl Send for Shared {}

impl Shared {
    /// The first tile of a thread's run; that of the next thread ends it.
    fn first_tile(&self, tiles: usize, thread: usize) -> usize {
        // In 128 bits, since tiles may be as many as there are elements.
        (tiles as u128 * thread as u128 / self.next.len() as u128) as usize
    }

    /// Runs the tiles of the thread's own run and then those left of the others', until there is none. A panic is kept for
    /// the caller of `run`, so that a thread never dies.
    fn work(&self, job: Job, thread: usize) {
        // SAFETY: `run` keeps the closure alive until the gate is closed and nobody is inside.
        let tile = unsafe { &*job.tile };
        let threads = self.next.len();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            for owner in (thread..threads).chain(0..thread) {
                let end = self.first_tile(job.tiles, owner + 1);
                let Cursor(next) = &self.next[owner];
                // Looked at before it is taken from, so that a run which is done costs no write to a line others read.
                while next.load(Ordering::Relaxed) < end {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= end {
                        break;
                    }
                    tile(index, thread);
                }
            }
        }));
        if outcome.is_err() {
            self.next.iter().for_each(|Cursor(next)| next.store(job.tiles, Ordering::Relaxed));
            self.panicked.store(true, Ordering::Release);
        }
    }

    /// Enters the job that is open now unless it was already seen; returns its number.
    fn enter(&self, seen: u64) -> Option<u64> {
        let mut gate = self.gate.load(Ordering::Acquire);
        loop {
            let epoch = gate >> EPOCH_SHIFT;
            if gate & OPEN == 0 || epoch == seen {
                return None;
            }
            match self.gate.compare_exchange_weak(gate, gate + 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(epoch),
                Err(now) => gate = now,
            }
        }
    }

    /// The life of a worker.
    fn serve(&self, thread: usize) {
        let mut seen = 0;
        let mut idle_since = Instant::now();
        while !self.stop.load(Ordering::Acquire) {
            if let Some(epoch) = self.enter(seen) {
                seen = epoch;
                // SAFETY: inside the gate; see `Sync for Shared`.
                if let Some(job) = unsafe { *self.job.get() } {
                    self.work(job, thread);
                }
                self.gate.fetch_sub(1, Ordering::Release);
                idle_since = Instant::now();
            } else if idle_since.elapsed() < SPIN {
                std::hint::spin_loop();
            } else {
                self.sleep(seen);
                idle_since = Instant::now();
            }
        }
    }

    /// Sleeps until a new job opens. The order "count myself, then look" against `open`'s "open, then count" means
    /// that at least one of the two sees the other, so no wake-up is lost.
    fn sleep(&self, seen: u64) {
        let mut bed = lock(&self.bed);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        loop {
            let gate = self.gate.load(Ordering::SeqCst);
            let fresh = gate & OPEN != 0 && gate >> EPOCH_SHIFT != seen;
            if fresh || self.stop.load(Ordering::SeqCst) {
                break;
            }
            bed = self.bell.wait(bed).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    fn wake(&self) {
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            let _bed = lock(&self.bed);
            self.bell.notify_all();
        }
    }
}

/// Locks without caring whether another thread panicked while it held the lock: the data here is always consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Threads that run kernels' tiles. Shared by all programs of a process that ask for the same number of threads.
pub struct Pool {
    shared: Arc<Shared>,
    turn: Mutex<()>,
    workers: Vec<JoinHandle<()>>,
    process: u32,
}

impl Pool {
    /// A pool of `threads` (the caller is one of them).
    pub fn new(threads: usize) -> Result<Pool> {
        let threads = check_count(threads)?;
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(0),
            next: (0..threads).map(|_| Cursor(AtomicUsize::new(0))).collect(),
            job: UnsafeCell::new(None),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            bed: Mutex::new(()),
            bell: Condvar::new(),
        });
        let mut pool = Pool { shared, turn: Mutex::new(()), workers: Vec::new(), process: std::process::id() };
        for thread in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let worker = Builder::new().name(format!("scoregraph-{thread}")).spawn(move || {
                crate::machine::with_ieee_floats(|| shared.serve(thread));
            });
            match worker {
                Ok(handle) => pool.workers.push(handle),
                Err(e) => return Err(Fault::new(Code::Machine, format!("thread {thread} could not be started: {e}"))),
            }
        }
        Ok(pool)
    }

    /// The process's pool of that size. After a fork the child has none of its parent's threads, so it gets a new one.
    pub fn shared(threads: usize) -> Result<Arc<Pool>> {
        static POOLS: Mutex<Vec<Arc<Pool>>> = Mutex::new(Vec::new());
        let mut pools = lock(&POOLS);
        let process = std::process::id();
        if pools.iter().any(|pool| pool.process != process) {
            // Their threads do not exist here; dropping would join them and wait for ever.
            pools.drain(..).for_each(std::mem::forget);
        }
        if let Some(found) = pools.iter().find(|pool| pool.threads() == threads) {
            return Ok(Arc::clone(found));
        }
        let made = Arc::new(Pool::new(threads)?);
        pools.push(Arc::clone(&made));
        Ok(made)
    }
}

fn check_count(threads: usize) -> Result<usize> {
    if (1..=MAX_THREADS).contains(&threads) {
        return Ok(threads);
    }
    Err(Fault::new(Code::Machine, format!("{threads} threads: choose 1 to {MAX_THREADS}")))
}

/// The number of threads to use: the argument, else `SCOREGRAPH_THREADS`, else what the system offers.
pub fn thread_count(asked: Option<usize>) -> Result<usize> {
    if let Some(n) = asked {
        return check_count(n);
    }
    match std::env::var("SCOREGRAPH_THREADS") {
        Ok(text) => text.trim().parse().ok().filter(|n| (1..=MAX_THREADS).contains(n)).ok_or_else(|| {
            Fault::new(Code::Machine, format!("SCOREGRAPH_THREADS={text:?} is not a number of threads"))
        }),
        Err(_) => Ok(std::thread::available_parallelism().map_or(1, usize::from)),
    }
}

impl Parallel for Pool {
    fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    fn run(&self, tiles: usize, tile: &(dyn Fn(usize, usize) + Sync)) {
        if tiles <= 1 || self.workers.is_empty() {
            (0..tiles).for_each(|index| tile(index, 0));
            return;
        }
        let shared = &*self.shared;
        let _turn = lock(&self.turn);
        // SAFETY: only the lifetime is erased. The pointer is used by threads inside the gate, and below this function
        // does not return (nor unwind: `work` catches) before the gate is closed and nobody is inside.
        let tile: *const (dyn Fn(usize, usize) + Sync) =
            unsafe { std::mem::transmute::<*const (dyn Fn(usize, usize) + Sync + '_), _>(tile) };
        let job = Job { tile, tiles };
        // SAFETY: the gate is closed and empty, and `turn` is held; see `Sync for Shared`.
        unsafe { *shared.job.get() = Some(job) };
        for (thread, Cursor(next)) in shared.next.iter().enumerate() {
            next.store(shared.first_tile(tiles, thread), Ordering::Relaxed);
        }
        let epoch = (shared.gate.load(Ordering::Relaxed) >> EPOCH_SHIFT).wrapping_add(1) & 0xFFFF_FFFF;
        // 0 means "nothing seen yet" to a fresh worker, so no job has that number.
        let epoch = epoch.max(1);
        shared.gate.store(epoch << EPOCH_SHIFT | OPEN, Ordering::SeqCst);
        shared.wake();

        shared.work(job, 0);

        shared.gate.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0u32;
        while shared.gate.load(Ordering::Acquire) & INSIDE != 0 {
            spins += 1;
            // A tile takes microseconds; longer means that the other thread lost its core, and may want this one.
            if spins < 10_000 { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        if shared.panicked.swap(false, Ordering::AcqRel) {
            resume_unwind(Box::new("a kernel panicked"));
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        {
            let _bed = lock(&self.shared.bed);
            self.shared.bell.notify_all();
        }
        if self.process == std::process::id() {
            for worker in self.workers.drain(..) {
                // A worker catches every panic of a tile, so joining cannot fail.
                let _ = worker.join();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tile_runs_once_on_any_number_of_threads() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads).unwrap();
            for tiles in [0, 1, 2, 7, 1000] {
                let hits: Vec<AtomicUsize> = (0..tiles).map(|_| AtomicUsize::new(0)).collect();
                for _ in 0..50 {
                    pool.run(tiles, &|tile, thread| {
                        assert!(thread < threads);
                        hits[tile].fetch_add(1, Ordering::Relaxed);
                    });
                }
                assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 50));
            }
        }
    }

    /// Where no thread is late, each runs its own tiles; where one is, the others run them.
    #[test]
    fn threads_run_their_own_tiles_and_then_the_others() {
        let pool = Pool::new(2).unwrap();
        let ran_by: Vec<AtomicUsize> = (0..100).map(|_| AtomicUsize::new(9)).collect();
        let both = std::sync::Barrier::new(2);
        pool.run(100, &|tile, thread| {
            if tile == 0 || tile == 50 {
                // The first tiles of both runs: nobody goes on before the other has begun.
                both.wait();
            }
            ran_by[tile].store(thread, Ordering::Relaxed);
        });
        let ran_by: Vec<usize> = ran_by.into_iter().map(AtomicUsize::into_inner).collect();
        assert_eq!((ran_by[0], ran_by[50]), (0, 1), "{ran_by:?}");
        let (helped, held_up) = (AtomicBool::new(false), AtomicUsize::new(usize::MAX));
        pool.run(64, &|tile, thread| {
            if tile == 0 {
                held_up.store(thread, Ordering::SeqCst);
                let begun = Instant::now();
                while !helped.load(Ordering::Relaxed) && begun.elapsed() < Duration::from_secs(20) {
                    std::thread::yield_now();
                }
            } else if tile < 32 && thread != held_up.load(Ordering::SeqCst) {
                helped.store(true, Ordering::Relaxed);
            }
        });
        assert!(helped.into_inner(), "the tiles behind one that takes long are run by the other thread");
    }

    #[test]
    fn sleepers_wake() {
        let pool = Pool::new(2).unwrap();
        for _ in 0..20 {
            std::thread::sleep(Duration::from_millis(1));
            let both = std::sync::Barrier::new(2);
            // Each tile waits for the other: only two threads at once can finish this.
            pool.run(2, &|_, _| {
                both.wait();
            });
        }
    }

    #[test]
    fn concurrent_callers_take_turns() {
        let pool = Pool::new(2).unwrap();
        let total = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        pool.run(5, &|_, _| {
                            total.fetch_add(1, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 4 * 200 * 5);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2).unwrap();
        let caught = catch_unwind(AssertUnwindSafe(|| pool.run(8, &|tile, _| assert!(tile != 3))));
        assert!(caught.is_err());
        let count = AtomicUsize::new(0);
        pool.run(8, &|_, _| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 8);
    }

    #[test]
    fn absurd_thread_counts_are_refused() {
        assert_eq!(Pool::new(0).err().map(|f| f.code), Some(Code::Machine));
        assert_eq!(Pool::new(1 << 20).err().map(|f| f.code), Some(Code::Machine));
    }
}
