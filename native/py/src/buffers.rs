//! Objects with the buffer protocol, as bytes and an element type.

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use scoregraph_plan::schema::DType;

/// A contiguous buffer that Python keeps alive and in place while this lives.
pub struct Bytes {
    buffer: PyUntypedBuffer,
    /// Element type; bytes where the buffer's own type is none of ours.
    pub dtype: DType,
}

// SAFETY: a buffer may be read from any thread; releasing it takes the interpreter lock, which its drop does.
unsafe impl Send for Bytes {}
// SAFETY: as above.
unsafe impl Sync for Bytes {}

impl Bytes {
    /// The buffer of `object`, which must be row-major without gaps, and writable where `write` says so.
    pub fn of(object: &Bound<'_, PyAny>, what: &str, write: bool) -> PyResult<Bytes> {
        let buffer = PyUntypedBuffer::get(object)
            .map_err(|_| PyTypeError::new_err(format!("{what} has no buffer; give an array or bytes")))?;
        if !buffer.is_c_contiguous() {
            return Err(PyValueError::new_err(format!("{what} is not contiguous")));
        }
        if write && buffer.readonly() {
            return Err(PyValueError::new_err(format!("{what} is read-only")));
        }
        let dtype = match (buffer.format().to_bytes(), buffer.item_size()) {
            (b"f" | b"<f" | b"=f", 4) => DType::F32,
            (b"l" | b"q" | b"<q" | b"<l" | b"=q", 8) => DType::I64,
            (_, 1) => DType::U8,
            (format, size) => {
                let format = String::from_utf8_lossy(format).into_owned();
                return Err(PyTypeError::new_err(format!(
                    "{what} has elements of format {format:?} and {size} bytes; give float32, int64 or uint8"
                )));
            }
        };
        Ok(Bytes { buffer, dtype })
    }

    /// First byte and length.
    pub fn raw(&self) -> (*mut u8, usize) {
        (self.buffer.buf_ptr().cast(), self.buffer.len_bytes())
    }

    /// # Safety
    /// Nobody writes the buffer while the slice lives.
    pub unsafe fn as_slice(&self) -> &[u8] {
        let (ptr, len) = self.raw();
        if len == 0 {
            return &[];
        }
        // SAFETY: Python guarantees pointer and length for as long as the buffer is held.
        unsafe { std::slice::from_raw_parts(ptr, len) }
    }

    /// # Safety
    /// Nobody else accesses the buffer while the slice lives, and it is writable.
    #[allow(clippy::mut_from_ref, reason = "the memory belongs to Python; the contract makes the borrow exclusive")]
    pub unsafe fn as_mut_slice(&self) -> &mut [u8] {
        let (ptr, len) = self.raw();
        if len == 0 {
            return &mut [];
        }
        // SAFETY: as in `as_slice`.
        unsafe { std::slice::from_raw_parts_mut(ptr, len) }
    }
}
