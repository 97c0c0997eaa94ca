//! Reading RSS 0.9 to 2.0, RSS 1.0 (RDF) and Atom 1.0, as leniently as well-formed XML allows.

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;
use roxmltree::{Document, Node, ParsingOptions};

/// Characters of a summary, of a title and of an id.
const SUMMARY_CHARS_MAX: usize = 2000;
const TITLE_CHARS_MAX: usize = 300;
const ID_CHARS_MAX: usize = 400;

/// A feed as it was read.
#[derive(Debug, Default)]
pub struct Feed {
    /// Plain text.
    pub title: String,
    /// In the feed's order, newest first as a rule.
    pub entries: Vec<Entry>,
}

/// An entry of a feed; texts are plain.
#[derive(Debug, Default, PartialEq)]
pub struct Entry {
    /// The entry's own id, else its link, else its title. Never empty.
    pub id: String,
    /// At most 300 characters.
    pub title: String,
    /// A web address, or nothing.
    pub link: String,
    /// At most 300 characters.
    pub author: String,
    /// At most 2,000 characters.
    pub summary: String,
    /// RFC 3339.
    pub published: Option<String>,
}

/// The text of a document: UTF-8, or Latin-1 where it says so.
pub fn decode(bytes: &[u8], content_type: &str) -> String {
    let head = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).to_ascii_lowercase();
    let said = format!("{} {head}", content_type.to_ascii_lowercase());
    let latin = ["iso-8859-1", "windows-1252", "latin1"].iter().any(|name| said.contains(name));
    match std::str::from_utf8(bytes) {
        Ok(text) => text.trim_start_matches('\u{feff}').to_owned(),
        Err(_) if latin => bytes.iter().map(|byte| char::from(*byte)).collect(),
        Err(_) => String::from_utf8_lossy(bytes).into_owned(),
    }
}

/// Reads a document. The error says why it is no feed.
pub fn parse(text: &str) -> Result<Feed, String> {
    let options = ParsingOptions { allow_dtd: true, nodes_limit: 200_000, ..ParsingOptions::default() };
    let document = Document::parse_with_options(text, options).map_err(|error| format!("{error}."))?;
    let root = document.root_element();
    let (channel, items) = match root.tag_name().name() {
        "rss" => {
            let channel = child(root, "channel").ok_or("it has no <channel>.")?;
            (channel, children(channel, "item"))
        }
        // RSS 1.0 puts the items beside the channel.
        "RDF" => (child(root, "channel").unwrap_or(root), children(root, "item")),
        "feed" => (root, children(root, "entry")),
        other => return Err(format!("its first element is <{}>, not <rss>, <RDF> or <feed>.", shorten(other, 40))),
    };
    let title = shorten(&text_of(channel, "title"), TITLE_CHARS_MAX);
    Ok(Feed { title, entries: items.into_iter().filter_map(entry).collect() })
}

fn child<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    node.children().find(|child| child.tag_name().name() == name)
}

fn children<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Vec<Node<'a, 'i>> {
    node.children().filter(|child| child.tag_name().name() == name).collect()
}

/// All text below the child of this name, without markup.
fn text_of(node: Node<'_, '_>, name: &str) -> String {
    let Some(found) = child(node, name) else { return String::new() };
    let raw: String = found.descendants().filter(Node::is_text).filter_map(|text| text.text()).collect();
    plain(&raw)
}

fn first_of(node: Node<'_, '_>, names: &[&str]) -> String {
    names.iter().map(|name| text_of(node, name)).find(|text| !text.is_empty()).unwrap_or_default()
}

fn entry(node: Node<'_, '_>) -> Option<Entry> {
    let title = shorten(&text_of(node, "title"), TITLE_CHARS_MAX);
    let link = link_of(node);
    let author = child(node, "author").map(|author| text_of(author, "name")).filter(|name| !name.is_empty());
    let author = author.unwrap_or_else(|| first_of(node, &["author", "creator"]));
    let ids = [text_of(node, "guid"), text_of(node, "id"), link.clone(), title.clone()];
    let id = ids.into_iter().find(|id| !id.is_empty())?;
    let time = first_of(node, &["pubDate", "published", "updated", "date"]);
    Some(Entry {
        id: shorten(&id, ID_CHARS_MAX),
        title,
        link,
        author: shorten(&author, TITLE_CHARS_MAX),
        summary: shorten(&first_of(node, &["description", "summary", "encoded", "content"]), SUMMARY_CHARS_MAX),
        published: rfc3339(&time),
    })
}

/// The entry's page: the text of RSS's `<link>`, or the address of Atom's that is no picture of something else.
fn link_of(node: Node<'_, '_>) -> String {
    let links = children(node, "link");
    let page = links.iter().find(|link| link.attribute("rel").is_none_or(|rel| rel == "alternate"));
    let href = page.and_then(|link| link.attribute("href")).map(str::to_owned);
    let found = href.unwrap_or_else(|| text_of(node, "link"));
    let guid = || child(node, "guid").filter(|guid| guid.attribute("isPermaLink") != Some("false"));
    let found = if found.is_empty() { guid().map(|_| text_of(node, "guid")).unwrap_or_default() } else { found };
    let found = found.trim();
    let web = found.starts_with("https://") || found.starts_with("http://");
    if web && found.len() <= 1000 && !found.contains(char::is_control) { found.to_owned() } else { String::new() }
}

fn rfc3339(text: &str) -> Option<String> {
    static PARSER: DateTimeParser = DateTimeParser::new().relaxed_weekday(true);
    let time = text.parse::<Timestamp>().ok().or_else(|| PARSER.parse_timestamp(text).ok())?;
    // RFC 3339 has no years before 0, which a timestamp can have.
    Some(time.to_string()).filter(|text| !text.starts_with('-'))
}

/// Text without tags, with the common character references resolved and blanks joined.
fn plain(html: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(html.len()), html);
    while let Some(at) = rest.find(['<', '&']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let names = [
            ("&lt;", '<'),
            ("&gt;", '>'),
            ("&quot;", '"'),
            ("&apos;", '\''),
            ("&#39;", '\''),
            ("&nbsp;", ' '),
            ("&amp;", '&'),
        ];
        let tag = rest.starts_with('<').then(|| rest.find('>')).flatten();
        if let Some(end) = tag {
            out.push(' ');
            rest = &rest[end + 1..];
        } else if let Some((name, letter)) = names.iter().find(|(name, _)| rest.starts_with(name)) {
            out.push(*letter);
            rest = &rest[name.len()..];
        } else {
            out.push_str(&rest[..1]);
            rest = &rest[1..];
        }
    }
    out.push_str(rest);
    out.split(|c: char| c.is_whitespace() || c.is_control())
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

fn shorten(text: &str, chars_max: usize) -> String {
    text.chars().take(chars_max).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RSS: &str = r#"<?xml version="1.0"?>
        <rss version="2.0" xmlns:dc="http://purl.org/dc/elements/1.1/"><channel><title>News &amp; more</title>
        <item><title>One</title><link>https://example.org/1</link><guid isPermaLink="false">tag:1</guid>
          <pubDate>Sat, 07 Sep 2002 09:42:31 +0200</pubDate><dc:creator>Ann</dc:creator>
          <description><![CDATA[<p>Hello&nbsp;<b>world</b> &amp; all</p>]]></description></item>
        <item><guid>https://example.org/2</guid><pubDate>yesterday</pubDate></item>
        <item><description>neither id nor title</description></item>
        </channel></rss>"#;

    const ATOM: &str = r#"<feed xmlns="http://www.w3.org/2005/Atom"><title type="html">A &lt;i&gt;feed&lt;/i&gt;</title>
        <entry><id>urn:uuid:1</id><title>First</title><link rel="enclosure" href="https://example.org/a.mp3"/>
          <link rel="alternate" href="https://example.org/a"/><updated>2026-01-31T08:00:00+01:00</updated>
          <author><name>Bob</name></author><content type="xhtml"><div>In <em>full</em></div></content></entry></feed>"#;

    #[test]
    fn rss_and_atom_give_the_same_kind_of_entry() {
        let rss = parse(RSS).expect("it is a feed");
        assert_eq!((rss.title.as_str(), rss.entries.len()), ("News & more", 2));
        let one = &rss.entries[0];
        assert_eq!(
            (one.id.as_str(), one.link.as_str(), one.author.as_str()),
            ("tag:1", "https://example.org/1", "Ann")
        );
        assert_eq!(one.summary, "Hello world & all");
        assert_eq!(one.published.as_deref(), Some("2002-09-07T07:42:31Z"));
        let two = &rss.entries[1];
        assert_eq!((two.link.as_str(), two.published.as_deref()), ("https://example.org/2", None));
        let atom = parse(ATOM).expect("it is a feed");
        assert_eq!(atom.title, "A feed");
        let first = &atom.entries[0];
        assert_eq!((first.link.as_str(), first.author.as_str()), ("https://example.org/a", "Bob"));
        assert_eq!((first.summary.as_str(), first.published.as_deref()), ("In full", Some("2026-01-31T07:00:00Z")));
    }

    #[test]
    fn rdf_keeps_its_items_beside_the_channel() {
        let text = r#"<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns="http://purl.org/rss/1.0/">
            <channel><title>Old</title></channel><item><title>x</title><link>http://example.org/x</link></item></rdf:RDF>"#;
        let feed = parse(text).expect("it is a feed");
        assert_eq!((feed.title.as_str(), feed.entries[0].id.as_str()), ("Old", "http://example.org/x"));
    }

    #[test]
    fn what_is_no_feed_is_refused_in_words() {
        let bomb = r#"<!DOCTYPE l [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">
            <!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;"><!ENTITY d "&c;&c;&c;&c;&c;&c;&c;&c;&c;&c;">]><rss>&d;&d;&d;&d;</rss>"#;
        let deep = format!("{}{}", "<a>".repeat(100_000), "</a>".repeat(100_000));
        for (name, text) in [
            ("nothing", ""),
            ("a page", "<html><body>hello</body></html>"),
            ("no channel", "<rss/>"),
            ("cut off", "<rss><channel>"),
            ("bomb", bomb),
            ("deep", &deep),
        ] {
            assert!(parse(text).is_err(), "{name}");
        }
        let script = "<rss><channel><item><link>javascript:alert(1)</link><title>t</title></item></channel></rss>";
        assert_eq!(parse(script).expect("a feed").entries[0].link, "", "only web addresses are links");
    }

    #[test]
    fn latin_1_is_read_where_it_is_said() {
        let bytes =
            b"<?xml version=\"1.0\" encoding=\"ISO-8859-1\"?><rss><channel><title>Caf\xe9</title></channel></rss>";
        assert_eq!(parse(&decode(bytes, "")).expect("a feed").title, "Caf\u{e9}");
    }
}
