//! Binding of the load half.

use pyo3::prelude::*;

/// Adds this half's classes to the module.
pub fn register(_m: &Bound<'_, PyModule>) -> PyResult<()> {
    Ok(())
}
