//! How much data an instance may hold.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::fault::Fault;

/// Bytes of one value that an instance makes, as JSON; and of rows of the journal that are written together, about.
pub const VALUE_BYTES_MAX: usize = 4 << 20;
/// Bytes of all that one instance holds, as JSON.
pub const STATE_BYTES_MAX: usize = 16 << 20;
/// Bytes of a value that the journal keeps; of longer ones it says how long they are.
const JOURNALED_BYTES_MAX: usize = 64 << 10;

/// Bytes of a value as JSON.
pub fn bytes(value: &Value) -> usize {
    let mut count = Count(0);
    let _never_fails = serde_json::to_writer(&mut count, value);
    count.0
}

/// A value as the journal keeps it, and its bytes.
pub fn journaled(value: &Value) -> (Value, usize) {
    let bytes = bytes(value);
    (if bytes > JOURNALED_BYTES_MAX { json!({ "bytes": bytes }) } else { value.clone() }, bytes)
}

/// What is too much. The type is the DSL's for what the runtime cannot do.
pub fn too_much(what: &str, bytes_max: usize) -> Fault {
    let detail = format!("{what}; at most {} MiB", bytes_max >> 20);
    Fault::new("runtime", 500, "Too much data", detail)
}

struct Count(usize);

impl Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
