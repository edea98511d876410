//! What a worker has to tell and no call returns: lines in Python's log, under `vduse.device`.

use pyo3::prelude::*;

/// A line that warns.
pub fn warning(py: Python<'_>, words: &str) {
    log(py, "warning", words);
}

/// An exception that program code has raised on a worker, with its traceback. As text: a record
/// that kept the exception would keep what its frames hold, views of the driver's memory too.
pub fn exception(py: Python<'_>, words: &str, error: PyErr) {
    let text = py
        .import("traceback")
        .and_then(|traceback| traceback.call_method1("format_exception", (error.value(py),)))
        .and_then(|lines| lines.extract::<Vec<String>>());
    match text {
        Ok(lines) => log(
            py,
            "error",
            &format!("{words}\n{}", lines.concat().trim_end()),
        ),
        Err(error) => error.write_unraisable(py, None),
    }
}

fn log(py: Python<'_>, level: &str, words: &str) {
    let logged = py.import("logging").and_then(|logging| {
        let logger = logging.call_method1("getLogger", ("vduse.device",))?;
        logger.call_method1(level, ("%s", words))
    });
    if let Err(error) = logged {
        error.write_unraisable(py, None);
    }
}
