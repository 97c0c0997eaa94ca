//! The plugin's own keys and values. In `Events::handle` and `Source::poll` changes take effect with the call's end.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Error, Result};

pub use crate::bindings::aman::plugin::kv::{Page, compare_and_swap, delete, get, list, set};

/// The JSON value of a key.
pub fn get_json<T: DeserializeOwned>(key: &str) -> Result<Option<T>> {
    let stored = get(key)?;
    let read = stored.map(|bytes| serde_json::from_slice(&bytes)).transpose();
    read.map_err(|error| Error::internal(format!("what is stored at '{key}' cannot be read: {error}.")))
}

/// Sets the JSON value of a key.
pub fn set_json(key: &str, value: &impl Serialize) -> Result<()> {
    set(key, &serde_json::to_vec(value)?)
}

/// All keys that begin with `prefix`, at most `limit`, read page after page.
pub fn keys(prefix: &str, limit: usize) -> Result<Vec<String>> {
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let wanted = u32::try_from(limit - found.len()).unwrap_or(u32::MAX).min(1000);
        let page = list(prefix, after.as_deref(), wanted)?;
        found.extend(page.keys);
        after = page.next;
        if after.is_none() || found.len() >= limit {
            found.truncate(limit);
            return Ok(found);
        }
    }
}
