//! What of a page people read: text, headings, lists and the addresses of links. No parser of HTML: what it gets wrong
//! costs legibility, and nothing else.

/// Elements whose content nobody reads.
const HIDDEN: [&str; 8] = ["script", "style", "noscript", "template", "svg", "iframe", "object", "select"];
/// Elements that begin a line.
const BLOCKS: [&str; 33] = [
    "address",
    "article",
    "aside",
    "blockquote",
    "br",
    "dd",
    "div",
    "dl",
    "dt",
    "fieldset",
    "figcaption",
    "figure",
    "footer",
    "form",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "header",
    "hr",
    "li",
    "main",
    "nav",
    "ol",
    "p",
    "pre",
    "section",
    "table",
    "title",
    "tr",
    "ul",
];
/// Longest address that is shown.
const LINK_BYTES_MAX: usize = 300;
/// So far into a tag, in bytes, a bracket within quotes does not end it. Without an end to that, quotes that never close
/// would have every tag read to the end of the page.
const QUOTES_BYTES_MAX: usize = 1024;

/// The text of a page.
pub(super) fn readable(page: &str) -> String {
    let mut out = Text::default();
    let mut rest = page;
    let mut links: Vec<Option<String>> = Vec::new();
    while let Some(at) = rest.find('<') {
        out.words(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("<!--") {
            rest = after.find("-->").map_or("", |end| &after[end + 3..]);
            continue;
        }
        let Some(tag) = Tag::read(rest) else {
            out.words("<");
            rest = &rest[1..];
            continue;
        };
        rest = &rest[tag.bytes..];
        if HIDDEN.contains(&tag.name.as_str()) && !tag.closes {
            rest = after_end(rest, &tag.name);
            continue;
        }
        if BLOCKS.contains(&tag.name.as_str()) {
            out.line();
            match (tag.name.as_str(), tag.closes) {
                ("li", false) => out.mark("- "),
                ("h1" | "h2" | "h3" | "h4" | "h5" | "h6", false) => out.mark("# "),
                _ => {}
            }
        }
        match (tag.name.as_str(), tag.closes) {
            ("td" | "th", false) => out.words(" "),
            ("img", false) => out.words(&tag.value("alt").unwrap_or_default()),
            ("a", false) => {
                links.push(tag.value("href").filter(|to| to.starts_with("http") && to.len() <= LINK_BYTES_MAX))
            }
            ("a", true) => {
                if let Some(to) = links.pop().flatten() {
                    out.words(&format!(" ({to})"));
                }
            }
            _ => {}
        }
    }
    out.words(rest);
    out.done()
}

/// What follows the end of the element `name`.
fn after_end<'a>(text: &'a str, name: &str) -> &'a str {
    let mut rest = text;
    while let Some(at) = rest.find("</") {
        rest = &rest[at + 2..];
        let is_it = rest.get(..name.len()).is_some_and(|found| found.eq_ignore_ascii_case(name));
        if is_it {
            return rest.find('>').map_or("", |end| &rest[end + 1..]);
        }
    }
    ""
}

/// One tag.
struct Tag<'a> {
    name: String,
    closes: bool,
    /// What stands between its name and its end.
    inside: &'a str,
    bytes: usize,
}

impl Tag<'_> {
    /// Reads the tag that `text` begins with; a `<` that begins none is a character.
    fn read(text: &str) -> Option<Tag<'_>> {
        let body = text.strip_prefix('<')?;
        let (closes, body) = body.strip_prefix('/').map_or((false, body), |body| (true, body));
        let length = body.bytes().take_while(|byte| byte.is_ascii_alphanumeric() || b"!?-:".contains(byte)).count();
        if !body.starts_with(|first: char| first.is_ascii_alphabetic() || first == '!' || first == '?') {
            return None;
        }
        let (name, inside) = body.split_at(length);
        let mut quote = None;
        let end = inside.bytes().take(QUOTES_BYTES_MAX).position(|byte| match (quote, byte) {
            (None, b'>') => true,
            (None, b'"' | b'\'') => {
                quote = Some(byte);
                false
            }
            (Some(open), byte) if open == byte => {
                quote = None;
                false
            }
            _ => false,
        });
        let beyond =
            || Some(QUOTES_BYTES_MAX + inside.as_bytes().get(QUOTES_BYTES_MAX..)?.iter().position(|b| *b == b'>')?);
        // A quote that never closes ends with the first bracket.
        let end = end.or_else(beyond).or_else(|| inside.find('>')).unwrap_or(inside.len());
        let bytes = text.len() - inside.len() + (end + 1).min(inside.len());
        Some(Tag { name: name.to_ascii_lowercase(), closes, inside: &inside[..end], bytes })
    }

    /// The value of an attribute.
    fn value(&self, wanted: &str) -> Option<String> {
        let lower = self.inside.to_ascii_lowercase();
        let at = lower.match_indices(wanted).map(|(at, _)| at).find(|at| {
            let before = lower[..*at].chars().next_back();
            before.is_none_or(|c| c.is_whitespace() || c == '"' || c == '\'')
                && lower[at + wanted.len()..].trim_start().starts_with('=')
        })?;
        let value = self.inside[at + wanted.len()..].trim_start().strip_prefix('=')?.trim_start();
        let value = match value.chars().next()? {
            quote @ ('"' | '\'') => value[1..].split(quote).next()?,
            _ => value.split(|c: char| c.is_whitespace()).next()?,
        };
        Some(unescaped(value))
    }
}

/// Text that grows: blanks are one blank, and empty lines one.
#[derive(Default)]
struct Text {
    out: String,
    line: String,
}

impl Text {
    fn words(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        for c in unescaped(text).chars() {
            if !c.is_whitespace() {
                self.line.push(c);
            } else if !self.line.is_empty() && !self.line.ends_with(' ') {
                self.line.push(' ');
            }
        }
    }

    fn mark(&mut self, mark: &str) {
        self.line.push_str(mark);
    }

    fn line(&mut self) {
        let line = self.line.trim_end();
        if !line.is_empty() && !["-", "#"].contains(&line) {
            self.out.push_str(line);
            self.out.push('\n');
        }
        self.line.clear();
    }

    fn done(mut self) -> String {
        self.line();
        self.out
    }
}

/// Characters for the references that pages use most.
fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let end = rest.bytes().take(12).position(|byte| byte == b';');
        match end.and_then(|end| Some((end, reference(&rest[1..end])?))) {
            Some((end, c)) => {
                out.push(c);
                rest = &rest[end + 1..];
            }
            None => {
                out.push('&');
                rest = &rest[1..];
            }
        }
    }
    out.push_str(rest);
    out
}

fn reference(name: &str) -> Option<char> {
    if let Some(number) = name.strip_prefix('#') {
        let code = match number.strip_prefix(['x', 'X']) {
            Some(hex) => u32::from_str_radix(hex, 16).ok()?,
            None => number.parse().ok()?,
        };
        return char::from_u32(code).filter(|c| !c.is_control() || c.is_whitespace());
    }
    Some(match name {
        "amp" => '&',
        "lt" => '<',
        "gt" => '>',
        "quot" => '"',
        "apos" => '\'',
        "nbsp" => ' ',
        "copy" => '©',
        "ndash" => '–',
        "mdash" => '—',
        "hellip" => '…',
        "lsquo" => '‘',
        "rsquo" => '’',
        "ldquo" => '“',
        "rdquo" => '”',
        "auml" => 'ä',
        "ouml" => 'ö',
        "uuml" => 'ü',
        "Auml" => 'Ä',
        "Ouml" => 'Ö',
        "Uuml" => 'Ü',
        "szlig" => 'ß',
        "eacute" => 'é',
        "euro" => '€',
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_read_is_left() {
        for (page, wanted) in [
            ("plain &amp; simple", "plain & simple\n"),
            ("<p>one<p>two", "one\ntwo\n"),
            ("<title>T</title><script>if (a < b) { x('</p>') }</script><h1>Head</h1>", "T\n# Head\n"),
            ("<ul><li>a<li><b>b</b> c</ul>", "- a\n- b c\n"),
            ("see <a href=\"https://example.org/?a=1&amp;b\">this</a>.", "see this (https://example.org/?a=1&b).\n"),
            ("<a href='/x'>near</a>", "near\n"),
            ("<!-- <p>no --> a < b <3", "a < b <3\n"),
            ("<table><tr><td>1</td><td>2</td></tr></table>", "1 2\n"),
            ("<img alt='a cat' src=x>", "a cat\n"),
            ("&#252;&#xfc;&unknown;&", "üü&unknown;&\n"),
            ("<div title=\"a>b\">c</div>", "c\n"),
            ("<style>", ""),
            ("<", "<\n"),
        ] {
            assert_eq!(readable(page), wanted, "{page}");
        }
    }

    #[test]
    fn pages_take_time_by_their_length_only() {
        let begun = std::time::Instant::now();
        for piece in ["<a \">\"", "<a \"", "<a '", "<a", "<!--", "<style>", "<a href=\"ü>\""] {
            let page = piece.repeat((4 << 20) / piece.len());
            let _text = readable(&page);
        }
        assert!(begun.elapsed().as_secs() < 30, "{:?}", begun.elapsed());
        let long = format!("<img alt=\"a>b\" src=\"data:{}\">c", "x".repeat(QUOTES_BYTES_MAX));
        assert_eq!(readable(&long), "a>bc\n");
    }
}
