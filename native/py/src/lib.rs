//! `scoregraph._native`: plans on a CPU, for Python. Everything of substance is in `scoregraph-plan`.

mod buffers;
mod program;

use pyo3::prelude::*;

/// Turns off nothing: the module keeps no state that the interpreter lock would have to protect.
#[pymodule(gil_used = false)]
mod _native {
    use pyo3::exceptions::PyValueError;
    use pyo3::prelude::*;
    use scoregraph_plan::noise::{self, Stream};

    #[pymodule_export]
    use crate::program::{CancelFlag, NativeError, Program};

    /// The version of the library.
    #[pymodule_export]
    const VERSION: &str = env!("CARGO_PKG_VERSION");

    /// Four random words for a counter of four 32-bit words and a key of two.
    #[pyfunction]
    fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
        noise::philox4x32(counter, key)
    }

    /// Standard normals of elements 0 … count-1 of a noise site, as the bytes of float32.
    ///
    /// `isa` forces an instruction set: "scalar", "avx2", "avx512"; None takes the best.
    #[pyfunction]
    #[pyo3(signature = (seed, site, micro, count, isa=None))]
    fn normals<'py>(
        py: Python<'py>,
        seed: u64,
        site: u32,
        micro: u32,
        count: usize,
        isa: Option<&str>,
    ) -> PyResult<Bound<'py, pyo3::types::PyBytes>> {
        let isa =
            crate::program::parse_isa(isa)?.map_or_else(scoregraph_simd::detect, Ok).map_err(PyValueError::new_err)?;
        if count > 1 << 28 {
            return Err(PyValueError::new_err("at most 2^28 numbers at once"));
        }
        let mut out = vec![0.0f32; count];
        py.detach(|| noise::scaled_normals(isa, Stream { seed, micro, site }, 0, 1.0, &mut out));
        let bytes: Vec<u8> = out.iter().flat_map(|z| z.to_ne_bytes()).collect();
        Ok(pyo3::types::PyBytes::new(py, &bytes))
    }

    /// The processor's features that matter here, each with whether it is there.
    #[pyfunction]
    fn cpu_features() -> std::collections::BTreeMap<&'static str, bool> {
        scoregraph_simd::cpu_features().into_iter().collect()
    }

    /// The instruction set that programs use when none is asked for.
    #[pyfunction]
    fn isa() -> PyResult<&'static str> {
        scoregraph_simd::detect().map(scoregraph_simd::Isa::name).map_err(PyValueError::new_err)
    }

    /// The number of threads that programs use when none is asked for.
    #[pyfunction]
    fn threads() -> PyResult<usize> {
        scoregraph_plan::pool::thread_count(None).map_err(crate::program::to_python)
    }

    /// The ops that programs can run.
    #[pyfunction]
    fn ops() -> Vec<&'static str> {
        scoregraph_plan::ops::names().collect()
    }
}
