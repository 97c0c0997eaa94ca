//! Front matter: the YAML between two lines `---` that a `SKILL.md` or a `SOUL.md` begins with.

use crate::error::Error;

/// Splits a text into its front matter and what stands below. The YAML begins with an empty line in the place of the first
/// `---`, so that messages count lines as an editor does.
pub fn split(text: &str) -> Result<(String, &str), Error> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut lines = text.split_inclusive('\n');
    let first = lines.next().unwrap_or_default();
    if first.trim_end() != "---" {
        return Err(Error::invalid("front matter", "is missing: the first line must be '---'."));
    }
    let mut end = first.len();
    for line in lines {
        if line.trim_end() == "---" {
            let yaml = format!("\n{}", &text[first.len()..end]);
            return Ok((yaml, text[end + line.len()..].trim_start_matches(['\r', '\n'])));
        }
        end += line.len();
    }
    Err(Error::invalid("front matter", "has no end: a line '---' must stand below it."))
}
