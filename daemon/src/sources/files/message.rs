//! The event that tells of a change. Pure.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use crate::clock;
use crate::event::{NewEvent, TEXT_BYTES_MAX};

use super::compare::Change;

/// What a file is when its name does not tell.
const MIME_UNKNOWN: &str = "application/octet-stream";

/// The event for `change` below `root`, from `source`.
///
/// Names are bytes. One that is not UTF-8 is told with U+FFFD in place of what cannot be read, and the exact bytes of
/// the path follow as `path_bytes` (base64). Events of one path carry it as partition key, so that they keep their order
/// even at parallel consumers.
pub fn event(source: &str, root: &Path, change: &Change) -> NewEvent {
    let (kind, previous) = match change {
        Change::Created { .. } => ("file.created", None),
        Change::Changed { .. } => ("file.changed", None),
        Change::Removed { .. } => ("file.removed", None),
        Change::Renamed { from, .. } => ("file.renamed", Some(from)),
    };
    let path = root.join(OsStr::from_bytes(change.path()));
    let name = path.file_name().unwrap_or_default();
    let seen = change.seen();
    let mut data = json!({
        "path": path.to_string_lossy(),
        "name": name.to_string_lossy(),
        "size": seen.size,
        "modified": clock::rfc3339(seen.mtime_ns.div_euclid(1_000_000)),
        "mime": mime_guess::from_path(name).first_raw().unwrap_or(MIME_UNKNOWN),
    });
    exact(&mut data, "path_bytes", &path);
    if let Some(from) = previous {
        let from = root.join(OsStr::from_bytes(from));
        data["previous_path"] = Value::from(from.to_string_lossy());
        exact(&mut data, "previous_path_bytes", &from);
    }
    let subject = attribute(&path);
    NewEvent { partition_key: subject.clone(), subject, ..NewEvent::new(source, kind, &data) }
}

fn exact(data: &mut Value, key: &str, path: &Path) {
    if path.to_str().is_none() {
        data[key] = Value::String(BASE64.encode(path.as_os_str().as_bytes()));
    }
}

/// The path as an attribute, where control characters may not stand; none when it is too long for one.
fn attribute(path: &Path) -> Option<String> {
    let text = path.to_string_lossy();
    let text =
        if text.chars().any(char::is_control) { text.replace(char::is_control, "\u{FFFD}") } else { text.into_owned() };
    (text.len() <= TEXT_BYTES_MAX).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::files::Seen;

    fn told(change: &Change) -> (NewEvent, Value) {
        let event = event("files/x", Path::new("/in"), change);
        event.check().expect("the envelope is good");
        let data = event.data.to_value();
        (event, data)
    }

    #[test]
    fn events_tell_the_file() {
        let seen = Seen { size: 3, mtime_ns: 1_795_000_000_123_456_789, inode: 1, device: 0, born_ns: None };
        let (event, data) = told(&Change::Renamed { from: b"b".to_vec(), path: b"d/a.md".to_vec(), seen });
        assert_eq!((event.kind.as_str(), event.subject.as_deref()), ("file.renamed", Some("/in/d/a.md")));
        let expected = json!({ "path": "/in/d/a.md", "name": "a.md", "size": 3, "mime": "text/markdown",
            "modified": "2026-11-18T11:06:40.123Z", "previous_path": "/in/b" });
        assert_eq!(data, expected);
        let (_, plain) = told(&Change::Created { path: b"README".to_vec(), seen });
        assert_eq!(plain["mime"], MIME_UNKNOWN);
    }

    #[test]
    fn any_name_can_be_told() {
        let seen = Seen { size: 0, mtime_ns: -1, inode: 1, device: 0, born_ns: None };
        let (event, data) = told(&Change::Removed { path: b"a\nb\xFF".to_vec(), seen });
        assert_eq!(event.subject.as_deref(), Some("/in/a\u{FFFD}b\u{FFFD}"));
        assert_eq!(data["name"], "a\nb\u{FFFD}");
        assert_eq!(data["path_bytes"], BASE64.encode(b"/in/a\nb\xFF"));
        let (event, data) = told(&Change::Created { path: vec![b'\xFE'; 3000], seen });
        assert_eq!(event.subject, None);
        assert!(data["path_bytes"].is_string());
    }
}
