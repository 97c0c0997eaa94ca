//! From HTML to a few sentences: the text of paragraphs, and of those the sentences that hold most of the words that the
//! page uses often.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

/// Sentences of a summary.
const SENTENCES: usize = 4;
/// Characters of a text that are looked at, of a sentence, and of a title or description.
const TEXT_CHARS_MAX: usize = 200_000;
const SENTENCE_CHARS: std::ops::RangeInclusive<usize> = 25..=400;
const LINE_CHARS_MAX: usize = 500;
/// Elements without text for readers.
const SKIPPED: [&str; 11] =
    ["script", "style", "nav", "header", "footer", "aside", "noscript", "template", "svg", "form", "table"];
/// Elements whose text counts.
const READ: [&str; 4] = ["p", "li", "blockquote", "dd"];

/// What a page is about.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Summary {
    pub title: String,
    /// What the page says of itself.
    pub description: String,
    /// In the page's order.
    pub sentences: Vec<String>,
    /// Words of the text that was looked at.
    pub words: usize,
}

/// Summarizes a page.
pub fn summarize(html: &str) -> Summary {
    let read = read(html);
    let text = if read.paragraphs.trim().is_empty() { &read.all } else { &read.paragraphs };
    Summary { title: line(&read.title), description: line(&read.description), ..summarize_text(text) }
}

/// Summarizes plain text, which has no title.
pub fn summarize_text(text: &str) -> Summary {
    let text: String = text.chars().take(TEXT_CHARS_MAX).collect();
    let words = text.split_whitespace().count();
    Summary { sentences: main_sentences(&text), words, ..Summary::default() }
}

fn line(text: &str) -> String {
    let joined = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    joined.collect::<Vec<_>>().join(" ").chars().take(LINE_CHARS_MAX).collect()
}

#[derive(Default)]
struct Read {
    title: String,
    description: String,
    paragraphs: String,
    all: String,
}

/// One pass over the markup; what is broken in it costs words, never more.
fn read(html: &str) -> Read {
    let (mut found, mut rest, mut inside, mut in_title) = (Read::default(), html, 0_usize, false);
    while let Some(at) = rest.find('<') {
        let text = unescape(&rest[..at]);
        if in_title && found.title.len() < 4 * LINE_CHARS_MAX {
            found.title.push_str(&text);
        } else if inside > 0 {
            found.paragraphs.push_str(&text);
        } else if !in_title {
            found.all.push_str(&text);
        }
        rest = &rest[at..];
        if let Some(comment) = rest.strip_prefix("<!--") {
            rest = comment.find("-->").map_or("", |end| &comment[end + 3..]);
            continue;
        }
        let Some(end) = rest.find('>') else { break };
        let tag = &rest[1..end];
        rest = &rest[end + 1..];
        let (closing, body) = tag.strip_prefix('/').map_or((false, tag), |body| (true, body));
        let name: String =
            body.chars().take_while(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
        match name.as_str() {
            "title" => in_title = !closing && found.title.is_empty(),
            "meta" if found.description.is_empty() => found.description = description(body).unwrap_or_default(),
            name if READ.contains(&name) => {
                inside = if closing { inside.saturating_sub(1) } else { inside + 1 };
                // A paragraph ends where the next begins, whether it is closed or not.
                inside = if name == "p" { usize::from(!closing) } else { inside };
                found.paragraphs.push_str(" \n");
            }
            name if SKIPPED.contains(&name) && !closing && !tag.ends_with('/') => rest = after(rest, name),
            _ => found.all.push(' '),
        }
    }
    found
}

/// What follows the end of the element `name`; nothing when it never ends.
fn after<'a>(text: &'a str, name: &str) -> &'a str {
    let ending = |at: usize| {
        text.as_bytes()[at + 2..].get(..name.len()).is_some_and(|n| n.eq_ignore_ascii_case(name.as_bytes()))
    };
    text.match_indices("</").map(|(at, _)| at).find(|at| ending(*at)).map_or("", |at| &text[at..])
}

/// The content of `<meta name="description">` or `og:description`.
fn description(tag: &str) -> Option<String> {
    let of = |name: &str| {
        let at = tag.to_ascii_lowercase().find(&format!("{name}="))? + name.len() + 1;
        let value = tag.get(at..)?;
        let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''))?;
        value[1..].split(quote).next().map(unescape)
    };
    let which = of("name").or_else(|| of("property"))?.to_ascii_lowercase();
    if which == "description" || which == "og:description" { of("content") } else { None }
}

fn unescape(text: &str) -> String {
    let names = [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&#39;", "'"),
        ("&apos;", "'"),
        ("&nbsp;", " "),
        ("&amp;", "&"),
    ];
    names.iter().fold(
        text.to_owned(),
        |text, (name, letter)| if text.contains('&') { text.replace(name, letter) } else { text },
    )
}

fn main_sentences(text: &str) -> Vec<String> {
    let sentences: Vec<String> =
        sentences(text).into_iter().filter(|s| SENTENCE_CHARS.contains(&s.chars().count())).collect();
    let mut often: HashMap<String, usize> = HashMap::new();
    for word in sentences.iter().flat_map(|sentence| words(sentence)) {
        *often.entry(word).or_default() += 1;
    }
    let weight = |n: usize, sentence: &String| {
        let words: HashSet<String> = words(sentence).collect();
        let sum: usize = words.iter().map(|word| often.get(word).copied().unwrap_or(0)).sum();
        // Long sentences hold more words, early ones more often the point.
        let early = if n < 3 { 1.5 } else { 1.0 };
        early * sum as f64 / (words.len() as f64 + 4.0)
    };
    let mut ranked: Vec<(f64, usize)> = sentences.iter().enumerate().map(|(n, s)| (weight(n, s), n)).collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut chosen: Vec<usize> = ranked.into_iter().take(SENTENCES).map(|(_, n)| n).collect();
    chosen.sort_unstable();
    chosen.into_iter().map(|n| sentences[n].clone()).collect()
}

/// Words that carry meaning: five letters or more.
fn words(sentence: &str) -> impl Iterator<Item = String> + '_ {
    sentence.split(|c: char| !c.is_alphanumeric()).filter(|word| word.chars().count() > 4).map(str::to_lowercase)
}

fn sentences(text: &str) -> Vec<String> {
    let (mut found, mut current) = (Vec::new(), String::new());
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter != '\n' {
            current.push(letter);
        }
        let ends = matches!(letter, '.' | '!' | '?') && letters.peek().is_none_or(|next| next.is_whitespace());
        if ends || letter == '\n' {
            found.push(line(&std::mem::take(&mut current)));
        }
    }
    found.push(line(&current));
    found.retain(|sentence| !sentence.is_empty());
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_become_title_description_and_sentences_in_order() {
        let html = r#"<!DOCTYPE html><html><head><title>Bread &amp; butter</title>
            <META NAME="Description" content="About &quot;bread&quot;."><script>var p = "<p>not this sentence at all.</p>";</script>
            <style>p { color: red }</style></head><body><nav><p>Home and other places to go to.</p></nav>
            <p>Bread is baked from <b>flour</b> and water in every country. It rises slowly.
            <p>Bread that is baked with sourdough keeps for longer than other bread.</p><!-- <p>Hidden words of a comment here.</p> -->
            <footer><p>All rights of this bakery are reserved.</p></footer></body></html>"#;
        let summary = summarize(html);
        assert_eq!((summary.title.as_str(), summary.description.as_str()), ("Bread & butter", "About \"bread\"."));
        assert_eq!(
            summary.sentences,
            [
                "Bread is baked from flour and water in every country.",
                "Bread that is baked with sourdough keeps for longer than other bread."
            ]
        );
    }

    #[test]
    fn broken_markup_costs_words_only() {
        for html in [
            "",
            "<",
            "<p",
            "<title>x",
            "<script>",
            "</",
            "<!--",
            "<p><p><p>",
            "<meta name=>",
            "a < b > c",
            "<a href=\"\u{e9}",
        ] {
            let summary = summarize(html);
            assert!(summary.sentences.is_empty(), "{html}: {summary:?}");
        }
        let text = summarize("just a text of some words without any markup in it.");
        assert_eq!(text.sentences.len(), usize::from(text.words > 0 && !text.sentences.is_empty()));
    }

    #[test]
    fn the_words_that_recur_choose_the_sentences() {
        let filler = (0..20).map(|n| format!("Number{n} stands{n} alone{n} among{n} unrelated{n} matter{n}. "));
        let text: String = filler.chain(["Sensors measure sensors because sensors matter here. ".repeat(3)]).collect();
        let summary = summarize_text(&text);
        assert_eq!(summary.sentences.len(), SENTENCES);
        assert!(summary.sentences.iter().any(|sentence| sentence.starts_with("Sensors")), "{summary:?}");
    }
}
