//! Which instruction set the kernels use, and how they get there.

use std::str::FromStr;
use std::sync::OnceLock;

use crate::scalar::Scalar;
use crate::vector::Kernel;

/// The environment variable that forces an instruction set: `scalar`, `avx2`, `avxvnni`, `avx512` or `avx512vnni`.
pub const ENV_ISA: &str = "SCOREGRAPH_ISA";

/// An instruction set, ordered from the least to the most capable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Plain Rust, one lane, unfused multiply-add: runs anywhere.
    Scalar,
    /// 8 lanes, AVX2 and FMA.
    Avx2,
    /// The same with AVX-VNNI, which only integer kernels notice.
    AvxVnni,
    /// 16 lanes, AVX-512 F, BW, DQ and VL.
    Avx512,
    /// The same with AVX-512 VNNI, and with BF16 where the processor has it: only kernels in those formats notice.
    Avx512Vnni,
}

impl Isa {
    /// Every instruction set, in order.
    pub const ALL: [Isa; 5] = [Isa::Scalar, Isa::Avx2, Isa::AvxVnni, Isa::Avx512, Isa::Avx512Vnni];

    /// Those that differ for kernels on float32.
    pub const FLOAT: [Isa; 3] = [Isa::Scalar, Isa::Avx2, Isa::Avx512];

    /// The name that [`ENV_ISA`] uses.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avxvnni",
            Isa::Avx512 => "avx512",
            Isa::Avx512Vnni => "avx512vnni",
        }
    }

    /// Elements in a vector: 1, 8 or 16.
    pub fn lanes(self) -> usize {
        match self {
            Isa::Scalar => 1,
            Isa::Avx2 | Isa::AvxVnni => 8,
            Isa::Avx512 | Isa::Avx512Vnni => 16,
        }
    }

    /// Whether this processor and operating system can run it.
    pub fn supported(self) -> bool {
        match self {
            Isa::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => Isa::Avx2.supported() && is_x86_feature_detected!("avxvnni"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => Isa::Avx512.supported() && is_x86_feature_detected!("avx512vnni"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2.supported()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// The most capable instruction set of this machine.
    pub fn best() -> Isa {
        let mut candidates = Isa::ALL.into_iter().rev();
        candidates.find(|isa| isa.supported()).unwrap_or(Isa::Scalar)
    }

    /// Runs `kernel` compiled for this instruction set.
    ///
    /// # Panics
    /// If the processor does not support it.
    #[inline]
    pub fn dispatch<K: Kernel>(self, kernel: K) -> K::Output {
        // The features are cached by the standard library: this check is a load and a test.
        assert!(self.supported(), "this processor cannot run {} kernels", self.name());
        match self {
            Isa::Scalar => kernel.run(Scalar),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `supported` has just found AVX2 and FMA.
            Isa::Avx2 | Isa::AvxVnni => unsafe { crate::avx2::enter(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `supported` has just found AVX-512 F, BW, DQ, VL, AVX2 and FMA.
            Isa::Avx512 | Isa::Avx512Vnni => unsafe { crate::avx512::enter(kernel) },
            #[cfg(not(target_arch = "x86_64"))]
            _ => unreachable!("only x86-64 has {}", self.name()),
        }
    }
}

impl FromStr for Isa {
    type Err = String;

    fn from_str(name: &str) -> Result<Isa, String> {
        Isa::ALL
            .into_iter()
            .find(|isa| isa.name() == name)
            .ok_or_else(|| format!("`{name}` is not an instruction set; choose {}", Isa::ALL.map(Isa::name).join(", ")))
    }
}

/// The instruction set to use: [`ENV_ISA`] if it is set and not empty, else the best one. Cached after the first call.
///
/// # Errors
/// If the variable names no instruction set, or one that this processor lacks.
pub fn detect() -> Result<Isa, String> {
    static DETECTED: OnceLock<Result<Isa, String>> = OnceLock::new();
    DETECTED.get_or_init(|| choose(std::env::var(ENV_ISA).ok().as_deref())).clone()
}

/// [`detect`], falling back to the best instruction set where the variable is wrong.
pub fn isa() -> Isa {
    detect().unwrap_or_else(|_| Isa::best())
}

fn choose(forced: Option<&str>) -> Result<Isa, String> {
    let Some(name) = forced.filter(|name| !name.is_empty()) else {
        return Ok(Isa::best());
    };
    let isa: Isa = name.parse().map_err(|error| format!("{ENV_ISA}: {error}"))?;
    if isa.supported() {
        Ok(isa)
    } else {
        Err(format!("{ENV_ISA}: this processor does not support {name}; the best it has is {}", Isa::best().name()))
    }
}

/// The features of this processor that matter to numeric kernels, each with whether it is there.
pub fn cpu_features() -> Vec<(&'static str, bool)> {
    #[cfg(target_arch = "x86_64")]
    macro_rules! features {
        ($($name:tt),*) => { vec![$(($name, is_x86_feature_detected!($name))),*] };
    }
    #[cfg(target_arch = "x86_64")]
    return features!(
        "avx2",
        "fma",
        "f16c",
        "avxvnni",
        "avx512f",
        "avx512bw",
        "avx512dq",
        "avx512vl",
        "avx512vnni",
        "avx512bf16",
        "avx512fp16"
    );
    #[cfg(not(target_arch = "x86_64"))]
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forced_isa_is_obeyed_or_refused() {
        assert_eq!(choose(None), Ok(Isa::best()));
        assert_eq!(choose(Some("")), Ok(Isa::best()));
        assert_eq!(choose(Some("scalar")), Ok(Isa::Scalar));
        let error = choose(Some("avx3")).unwrap_err();
        assert!(error.contains("SCOREGRAPH_ISA") && error.contains("avx3"), "{error}");
        for isa in Isa::ALL {
            assert_eq!(choose(Some(isa.name())).is_ok(), isa.supported());
        }
    }

    #[test]
    fn isas_are_ordered() {
        assert!(Isa::ALL.is_sorted());
        assert_eq!(Isa::ALL.map(Isa::lanes), [1, 8, 8, 16, 16]);
        assert!(Isa::best().supported());
    }
}
