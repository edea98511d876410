//! What a worker has to tell and no call returns: lines in Python's log, under `vduse.device`.

use pyo3::prelude::*;
use pyo3::types::PyDict;

/// A line that warns.
pub fn warning(py: Python<'_>, words: &str) {
    log(py, "warning", words, None);
}

/// An exception that program code has raised on a worker, with its traceback.
pub fn exception(py: Python<'_>, words: &str, error: PyErr) {
    log(py, "error", words, Some(error));
}

fn log(py: Python<'_>, level: &str, words: &str, error: Option<PyErr>) {
    let logged = py.import("logging").and_then(|logging| {
        let logger = logging.call_method1("getLogger", ("vduse.device",))?;
        let keywords = PyDict::new(py);
        keywords.set_item("exc_info", error)?;
        logger.call_method(level, ("%s", words), Some(&keywords))
    });
    if let Err(error) = logged {
        error.write_unraisable(py, None);
    }
}
