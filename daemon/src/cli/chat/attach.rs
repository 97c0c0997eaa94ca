//! Files that are sent along.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::super::failure::Failure;

/// Longest file, in bytes; the daemon takes as much of a picture.
const BYTES_MAX: u64 = 4 << 20;
/// Pictures by what they begin with.
const IMAGES: [(&str, &[u8]); 4] = [
    ("image/png", b"\x89PNG\r\n\x1a\n"),
    ("image/jpeg", b"\xff\xd8\xff"),
    ("image/gif", b"GIF8"),
    ("image/webp", b"RIFF"),
];

/// Reads all files as attachments of a request.
pub fn read(files: &[PathBuf]) -> Result<Vec<Value>, Failure> {
    files.iter().map(|file| read_one(file)).collect()
}

fn read_one(file: &Path) -> Result<Value, Failure> {
    let from_stdin = file.as_os_str() == "-";
    let mut bytes = Vec::new();
    let read = if from_stdin {
        io::stdin().lock().take(BYTES_MAX + 1).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(file).and_then(|opened| opened.take(BYTES_MAX + 1).read_to_end(&mut bytes))
    };
    let name = if from_stdin {
        "stdin".to_owned()
    } else {
        file.file_name().map_or_else(|| "file".to_owned(), |name| name.to_string_lossy().into_owned())
    };
    read.map_err(|error| Failure::Usage(format!("{} cannot be read: {error}.", file.display())))?;
    if bytes.len() as u64 > BYTES_MAX {
        return Err(Failure::Usage(format!("{name} has more than 4 MiB, which is the most.")));
    }
    if let Some((media_type, _)) = IMAGES.iter().find(|(_, begin)| bytes.starts_with(begin)) {
        return Ok(json!({ "name": name, "media_type": media_type, "data": BASE64.encode(&bytes) }));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(json!({ "name": name, "media_type": "text/plain", "text": text })),
        Err(_) => {
            Err(Failure::Usage(format!("{name} is neither a text (UTF-8) nor a picture (PNG, JPEG, GIF, WebP).")))
        }
    }
}
