//! What comes with a message: text files and pictures, checked before anything is done with them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value};

use crate::error::{Error, FieldError};
use crate::store::chat::Attachment;

/// How many may come with one message.
pub const COUNT_MAX: usize = 8;
/// Bytes of a text.
pub const TEXT_BYTES_MAX: usize = 256 << 10;
/// Bytes of a picture.
pub const IMAGE_BYTES_MAX: usize = 4 << 20;
/// Bytes of all that comes with one message.
pub const BYTES_MAX: usize = 8 << 20;
const NAME_CHARS_MAX: usize = 255;

/// Pictures that models can be shown, and what their bytes begin with.
const IMAGES: [(&str, &[u8]); 4] = [
    ("image/png", b"\x89PNG\r\n\x1a\n"),
    ("image/jpeg", b"\xff\xd8\xff"),
    ("image/gif", b"GIF8"),
    ("image/webp", b"RIFF"),
];
/// Texts that are not called `text/…`.
const TEXTS: [&str; 8] = [
    "application/json",
    "application/xml",
    "application/yaml",
    "application/x-yaml",
    "application/toml",
    "application/javascript",
    "application/sql",
    "application/x-sh",
];

/// Reads `attachments` of a request: a list of `{name, media_type?, text}`, or with `data`: base64, or a data URL, which
/// names its media type itself (RFC 2397). Each complaint names its field.
pub fn read(given: &Value) -> Result<Vec<Attachment>, Error> {
    let wrong = |reason: String| Error::invalid("attachments", reason);
    let all = given.as_array().ok_or_else(|| wrong("must be a list.".to_owned()))?;
    if all.len() > COUNT_MAX {
        return Err(wrong(format!("has {} items; at most {COUNT_MAX}.", all.len())));
    }
    let one = |(n, item): (usize, &Value)| read_one(item).map_err(|error| error.at(&format!("/attachments/{n}")));
    let found = all.iter().enumerate().map(one).collect::<Result<Vec<_>, Error>>()?;
    let bytes: usize = found.iter().map(|(_, bytes)| bytes).sum();
    if bytes > BYTES_MAX {
        return Err(wrong(format!("have {bytes} bytes together; at most {BYTES_MAX}. Send less at a time.")));
    }
    Ok(found.into_iter().map(|(attachment, _)| attachment).collect())
}

/// One, and how many bytes it has.
fn read_one(item: &Value) -> Result<(Attachment, usize), Error> {
    let fields = item.as_object().ok_or_else(|| Error::invalid("body", "must be an object."))?;
    check_names(fields)?;
    let text = |name: &str| match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str())),
        Some(_) => Err(Error::invalid(name, "must be a string.")),
    };
    let (name, media_type) = (text("name")?, text("media_type")?.map(essence));
    let (plain, data) = (text("text")?, text("data")?);
    let name = checked_name(name.unwrap_or("attachment"))?;
    let (media_type, bytes) = match (plain, data) {
        (Some(plain), None) => (media_type.unwrap_or_else(|| "text/plain".to_owned()), Content::Text(plain.to_owned())),
        (None, Some(data)) => decoded(data, media_type)?,
        _ => return Err(Error::invalid("data", "must be there, or text instead: exactly one of them.")),
    };
    fit(name, media_type, bytes)
}

enum Content {
    Text(String),
    Bytes(Vec<u8>),
}

fn check_names(fields: &Map<String, Value>) -> Result<(), Error> {
    const KNOWN: [&str; 4] = ["name", "media_type", "text", "data"];
    let unknown = fields.keys().filter(|name| !KNOWN.contains(&name.as_str()));
    let reason = format!("is no field of an attachment. Known: {}.", KNOWN.join(", "));
    let wrong: Vec<FieldError> =
        unknown.map(|name| FieldError { field: name.clone(), reason: reason.clone() }).collect();
    if wrong.is_empty() { Ok(()) } else { Err(Error::Invalid { code: "invalid_input", fields: wrong }) }
}

fn essence(media_type: &str) -> String {
    media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn checked_name(name: &str) -> Result<String, Error> {
    let good = !name.trim().is_empty()
        && name.chars().count() <= NAME_CHARS_MAX
        && !name.chars().any(|c| c.is_control() || matches!(c, '/' | '\\'))
        && !matches!(name, "." | "..");
    if good {
        return Ok(name.to_owned());
    }
    Err(Error::invalid("name", format!("must be the name of a file without a path, 1 to {NAME_CHARS_MAX} characters.")))
}

/// The bytes in base64 or in a data URL, and what they are.
fn decoded(data: &str, media_type: Option<String>) -> Result<(String, Content), Error> {
    let (named, base64) = match data.strip_prefix("data:") {
        None => (None, data),
        Some(rest) => {
            let (head, rest) =
                rest.split_once(',').ok_or_else(|| Error::invalid("data", "is a data URL without data."))?;
            let head = head.strip_suffix(";base64").ok_or_else(|| Error::invalid("data", "must be in base64."))?;
            (Some(essence(head)).filter(|named| !named.is_empty()), rest)
        }
    };
    if let (Some(named), Some(given)) = (&named, &media_type)
        && named != given
    {
        return Err(Error::invalid("media_type", format!("is '{given}', and the data URL says '{named}'.")));
    }
    let media_type =
        named.or(media_type).ok_or_else(|| Error::invalid("media_type", "is required with data in base64."))?;
    if base64.len() / 4 * 3 > IMAGE_BYTES_MAX + 2 {
        return Err(too_large(base64.len() / 4 * 3, IMAGE_BYTES_MAX));
    }
    let bytes = BASE64.decode(base64).map_err(|_| Error::invalid("data", "is not base64 (RFC 4648, with padding)."))?;
    Ok((media_type, Content::Bytes(bytes)))
}

fn too_large(bytes: usize, most: usize) -> Error {
    Error::invalid("data", format!("has {bytes} bytes; at most {most}."))
}

/// The attachment, if its bytes are what it says they are.
fn fit(name: String, media_type: String, content: Content) -> Result<(Attachment, usize), Error> {
    let known = "Text (text/*, JSON, XML, YAML, TOML) and pictures (PNG, JPEG, GIF, WebP) are taken.";
    let is_text = media_type.starts_with("text/")
        || TEXTS.contains(&media_type.as_str())
        || media_type.ends_with("+json")
        || media_type.ends_with("+xml");
    let image = IMAGES.iter().find(|(image, _)| *image == media_type);
    match (content, image) {
        (Content::Text(text), _) if is_text => textual(name, media_type, text),
        (Content::Bytes(bytes), None) if is_text => {
            let text = String::from_utf8(bytes).map_err(|_| Error::invalid("data", "is no UTF-8 text."))?;
            textual(name, media_type, text)
        }
        (Content::Bytes(bytes), Some((_, begin))) => {
            let is_it = bytes.starts_with(begin) && (media_type != "image/webp" || bytes.get(8..12) == Some(b"WEBP"));
            if !is_it {
                return Err(Error::invalid("data", format!("is no picture of the kind {media_type}.")));
            }
            if bytes.len() > IMAGE_BYTES_MAX {
                return Err(too_large(bytes.len(), IMAGE_BYTES_MAX));
            }
            let size = bytes.len();
            Ok((Attachment { name, media_type, text: None, base64: Some(BASE64.encode(bytes)) }, size))
        }
        (Content::Text(_), Some(_)) => Err(Error::invalid("text", "cannot be a picture; send its bytes as data.")),
        _ => Err(Error::invalid("media_type", format!("'{media_type}' is not taken. {known}"))),
    }
}

fn textual(name: String, media_type: String, text: String) -> Result<(Attachment, usize), Error> {
    let size = text.len();
    if size > TEXT_BYTES_MAX {
        return Err(Error::invalid("text", format!("has {size} bytes; at most {TEXT_BYTES_MAX}.")));
    }
    if text.contains('\0') {
        return Err(Error::invalid("text", "holds a null character: it is no text."));
    }
    Ok((Attachment { name, media_type, text: Some(text), base64: None }, size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_it_says_it_is_gets_in() {
        let png = BASE64.encode(b"\x89PNG\r\n\x1a\nrest");
        let field = |given: Value| match read(&json!([given])) {
            Ok(all) => all[0].media_type.clone(),
            Err(Error::Invalid { fields, .. }) => fields[0].field.clone(),
            Err(other) => panic!("{other}"),
        };
        for (given, wanted) in [
            (json!({ "name": "a.txt", "text": "hi" }), "text/plain"),
            (json!({ "name": "a", "media_type": "Application/JSON; charset=utf-8", "text": "{}" }), "application/json"),
            (json!({ "name": "a", "data": format!("data:image/png;base64,{png}") }), "image/png"),
            (json!({ "data": png, "media_type": "image/png" }), "image/png"),
            (json!({ "data": BASE64.encode("é"), "media_type": "text/markdown" }), "text/markdown"),
            (json!({ "data": png, "media_type": "image/jpeg" }), "/attachments/0/data"),
            (json!({ "data": png, "media_type": "application/pdf" }), "/attachments/0/media_type"),
            (json!({ "data": png }), "/attachments/0/media_type"),
            (json!({ "data": "data:image/png,x" }), "/attachments/0/data"),
            (
                json!({ "data": format!("data:image/png;base64,{png}"), "media_type": "image/gif" }),
                "/attachments/0/media_type",
            ),
            (json!({ "data": "%%%", "media_type": "image/png" }), "/attachments/0/data"),
            (json!({ "data": BASE64.encode([0xff, 0xfe]), "media_type": "text/plain" }), "/attachments/0/data"),
            (json!({ "name": "../x", "text": "" }), "/attachments/0/name"),
            (json!({ "text": "x", "data": "" }), "/attachments/0/data"),
            (json!({ "text": "a\0b" }), "/attachments/0/text"),
            (json!({ "text": "x".repeat(TEXT_BYTES_MAX + 1) }), "/attachments/0/text"),
            (json!({ "text": "x", "url": "file:///etc/passwd" }), "/attachments/0/url"),
            (json!("x"), "/attachments/0"),
        ] {
            assert_eq!(field(given.clone()), wanted, "{}", given.to_string().chars().take(99).collect::<String>());
        }
        assert!(read(&json!({})).is_err() && read(&vec![json!({ "text": "" }); 9].into()).is_err());
    }
}
