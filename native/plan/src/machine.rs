//! What the executor asks of the machine: IEEE floats, and how much memory there is.

/// Runs `work` with denormals honoured and rounding to nearest, whatever a library set on this thread before
/// (`torch.set_flush_denormal`, code built with `-ffast-math`), and restores that afterwards.
#[cfg(target_arch = "x86_64")]
pub fn with_ieee_floats<T>(work: impl FnOnce() -> T) -> T {
    /// All exceptions masked, round to nearest, no flushing: the state at process start.
    const DEFAULT: u32 = 0x1F80;

    struct Restore(u32);
    impl Drop for Restore {
        fn drop(&mut self) {
            set_mxcsr(self.0);
        }
    }

    let mut before = 0u32;
    // SAFETY: stores the control word to a local.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut before, options(nostack, preserves_flags)) };
    let _restore = Restore(before);
    set_mxcsr(DEFAULT);
    work()
}

#[cfg(target_arch = "x86_64")]
fn set_mxcsr(value: u32) {
    // SAFETY: the value is the state Rust assumes, or the one that was there before; both are valid control words.
    unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const value, options(nostack, readonly, preserves_flags)) };
}

/// Other processors start with IEEE floats and no library here changes them.
#[cfg(not(target_arch = "x86_64"))]
pub fn with_ieee_floats<T>(work: impl FnOnce() -> T) -> T {
    work()
}

/// Physical memory in bytes, where the system says.
pub fn physical_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// A size as people say it.
pub fn human_bytes(bytes: u64) -> String {
    let (mut size, mut unit) = (bytes as f64, "B");
    for larger in ["KiB", "MiB", "GiB", "TiB", "PiB"] {
        if size < 1024.0 {
            break;
        }
        size /= 1024.0;
        unit = larger;
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{size:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn denormals_survive_a_caller_that_flushes_them() {
        let denormal = std::hint::black_box(f32::MIN_POSITIVE / 4.0);
        let mut before = 0u32;
        // SAFETY: reads and writes the control word of this test's thread, and puts it back.
        unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut before) };
        set_mxcsr(before | 0x8040);
        let inside = with_ieee_floats(|| std::hint::black_box(denormal) * std::hint::black_box(1.0));
        set_mxcsr(before);
        assert_eq!(inside, denormal);
    }

    #[test]
    fn sizes_read_well() {
        assert_eq!(human_bytes(12), "12 B");
        assert_eq!(human_bytes(1536), "1.5 KiB");
        assert_eq!(human_bytes(3 << 30), "3.0 GiB");
    }
}
