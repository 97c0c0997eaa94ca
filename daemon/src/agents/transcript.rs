//! What is shown of sessions and messages, and conversations written out.

use serde_json::{Value, json};

use super::sessions::Format;
use crate::clock::rfc3339;
use crate::store::chat::{Attachment, Hit, MessageRow, Role, SessionRow};
use crate::store::turns::TurnRow;

/// A session as lists show it; `turn` is the one that is under way.
pub(super) fn session(row: &SessionRow, turn: Option<&TurnRow>) -> Value {
    json!({
        "id": row.id,
        "agent_id": row.agent,
        "title": row.title,
        "kind": row.kind.name(),
        "state": standing(row, turn),
        "version": row.version,
        "message_count": row.messages,
        "principal": row.principal,
        "trust": row.trust,
        "created_at": rfc3339(row.created_ms),
        "updated_at": rfc3339(row.updated_ms),
    })
}

fn standing(row: &SessionRow, turn: Option<&TurnRow>) -> &'static str {
    match turn {
        Some(turn) if !turn.status.is_ended() => "running",
        _ if row.closed => "closed",
        _ => "idle",
    }
}

/// A session with its newest turn and the messages of `path`.
pub(super) fn state(row: &SessionRow, turn: Option<&TurnRow>, path: &[MessageRow]) -> Value {
    let mut shown = session(row, turn);
    shown["messages"] = path.iter().map(|message| self::message(message, false)).collect();
    // What is before them is in the history.
    shown["has_more"] = path.first().is_some_and(|first| first.parent.is_some()).into();
    shown["turn"] = turn.map_or(Value::Null, |turn| {
        json!({
            "id": turn.id,
            "status": turn.status,
            "error": turn.error,
            "trace_id": turn.trace,
            "created_at": rfc3339(turn.created_ms),
            "updated_at": rfc3339(turn.updated_ms),
        })
    });
    shown
}

/// A message; what came with it in full or only by name.
pub(super) fn message(row: &MessageRow, in_full: bool) -> Value {
    let body = &row.body;
    let mut shown = json!({
        "id": row.id,
        "role": row.role.name(),
        "text": row.text,
        "created_at": rfc3339(row.created_ms),
        "parent_id": row.parent_id,
        "trust": row.trust,
    });
    let mut add = |name: &str, value: Value| shown[name] = value;
    if !body.tool_calls.is_empty() {
        add("tool_calls", json!(body.tool_calls));
    }
    if let Some(call) = &body.call_id {
        add("call_id", json!(call));
        add("tool", json!(body.tool));
        add("is_error", json!(body.is_error));
    }
    if !body.attachments.is_empty() {
        let listed = |one: &Attachment| if in_full { json!(one) } else { named(one) };
        add("attachments", body.attachments.iter().map(listed).collect());
    }
    if let Some(model) = &body.model {
        add("model", json!(model));
    }
    if let Some(usage) = &body.usage {
        add("usage", json!(usage));
    }
    if body.stopped {
        add("stopped", json!(true));
    }
    shown
}

/// An attachment without its content.
fn named(one: &Attachment) -> Value {
    let bytes = match (&one.text, &one.base64) {
        (Some(text), _) => text.len(),
        (None, Some(base64)) => base64.trim_end_matches('=').len() * 3 / 4,
        (None, None) => 0,
    };
    json!({ "name": one.name, "media_type": one.media_type, "bytes": bytes })
}

/// A hit of a search.
pub(super) fn hit(hit: &Hit) -> Value {
    json!({
        "session_id": hit.session,
        "title": hit.title,
        "agent_id": hit.agent,
        "message_id": hit.message,
        "role": hit.role.name(),
        "created_at": rfc3339(hit.created_ms),
        "score": hit.score,
        "snippet": hit.snippet,
    })
}

/// Writes a conversation out, message by message.
pub(super) struct Writer {
    format: Format,
    out: String,
    is_first: bool,
    is_cut: bool,
}

impl Writer {
    /// Begins with what is known of the session.
    pub fn new(format: Format, row: &SessionRow, now: &str) -> Writer {
        let out = match format {
            Format::Markdown => {
                let title = row.title.as_deref().unwrap_or("Conversation");
                format!(
                    "# {}\n\n- Agent: {}\n- Begun: {}\n- Written out: {now}\n",
                    escaped(title),
                    escaped(&row.agent),
                    rfc3339(row.created_ms)
                )
            }
            Format::Json => {
                let mut session = session(row, None);
                if let Value::Object(fields) = &mut session {
                    fields.remove("state");
                    fields.remove("message_count");
                }
                format!("{{\"format\":\"aman-chat/1\",\"exported_at\":\"{now}\",\"session\":{session},\"messages\":[")
            }
        };
        Writer { format, out, is_first: true, is_cut: false }
    }

    /// Bytes so far.
    pub fn bytes(&self) -> usize {
        self.out.len()
    }

    /// Says that there is more than is written out.
    pub fn cut(&mut self) {
        self.is_cut = true;
    }

    /// Adds a message.
    pub fn add(&mut self, row: &MessageRow) {
        match self.format {
            Format::Json => {
                if !self.is_first {
                    self.out.push(',');
                }
                self.out.push_str(&message(row, true).to_string());
            }
            Format::Markdown => self.add_markdown(row),
        }
        self.is_first = false;
    }

    fn add_markdown(&mut self, row: &MessageRow) {
        let who = match row.role {
            Role::User => "User".to_owned(),
            Role::Assistant => "Assistant".to_owned(),
            Role::Tool => format!("Tool {}", escaped(row.body.tool.as_deref().unwrap_or_default())),
        };
        self.out.push_str(&format!("\n## {who} · {}\n\n", rfc3339(row.created_ms)));
        match row.role {
            Role::User => quote(&mut self.out, &plain(&row.text)),
            // It is Markdown already; nothing in it leaves its quote.
            Role::Assistant => quote(&mut self.out, &without_tags(&row.text)),
            Role::Tool => fence(&mut self.out, "", &row.text),
        }
        for call in &row.body.tool_calls {
            self.out.push_str(&format!("\nCalls {}:\n\n", escaped(&call.name)));
            let arguments = serde_json::to_string_pretty(&call.arguments).unwrap_or_default();
            fence(&mut self.out, "json", &arguments);
        }
        for one in &row.body.attachments {
            self.out.push_str(&format!("\nAttached: {} ({})\n\n", escaped(&one.name), escaped(&one.media_type)));
            if let Some(text) = &one.text {
                fence(&mut self.out, "", text);
            }
        }
        if row.body.stopped {
            self.out.push_str("\n*(stopped)*\n");
        }
    }

    /// The whole.
    pub fn end(mut self) -> String {
        match self.format {
            Format::Markdown if self.is_cut => {
                self.out.push_str("\n---\n\n*There is more; it is not written out here.*\n")
            }
            Format::Markdown => {}
            Format::Json => self.out.push_str(&format!("],\"complete\":{}}}", !self.is_cut)),
        }
        self.out
    }
}

/// One line of text that Markdown shows as it is (CommonMark 0.31, section 2.4: a backslash before any ASCII punctuation).
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            _ if c.is_control() => out.push(' '),
            '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '#' | '|' | '~' | '&' | '!' | '(' | ')' | '$' | '{'
            | '}' => {
                out.extend(['\\', c]);
            }
            _ => out.push(c),
        }
    }
    out
}

/// Text of several lines that Markdown shows as it is, its lines included.
fn plain(text: &str) -> String {
    let line = |line: &str| {
        let text = line.trim_start();
        // Blanks at the begin would make code of it, and marks of lists a list.
        let blanks: String = line[..line.len() - text.len()].chars().map(|_| '\u{a0}').collect();
        let mut shown = escaped(text);
        let digits = shown.bytes().take_while(u8::is_ascii_digit).count();
        if shown.starts_with(['-', '+', '=', ':']) {
            shown.insert(0, '\\');
        } else if digits > 0 && shown[digits..].starts_with('.') {
            shown.insert(digits, '\\');
        }
        format!("{blanks}{shown}")
    };
    let lines: Vec<String> = text.lines().map(line).collect();
    // A backslash at its end keeps the break of a line; an empty line is one anyway.
    let mut out = String::new();
    for (n, shown) in lines.iter().enumerate() {
        out.push_str(shown);
        let is_broken = !shown.is_empty() && lines.get(n + 1).is_some_and(|next| !next.is_empty());
        out.push_str(if is_broken { "\\\n" } else { "\n" });
    }
    out
}

/// Markdown without raw HTML: what could begin a tag is text, but for code, where it is anyway.
fn without_tags(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut fenced: Option<(char, usize)> = None;
    for line in text.lines() {
        let trimmed = line.trim_start();
        let mark = trimmed.chars().next().filter(|c| matches!(c, '`' | '~'));
        let run = mark.map_or(0, |mark| trimmed.chars().take_while(|c| *c == mark).count());
        match (fenced, mark) {
            (Some((open, length)), Some(mark)) if mark == open && run >= length && trimmed[run..].trim().is_empty() => {
                fenced = None;
                out.push_str(line);
            }
            (Some(_), _) => out.push_str(line),
            (None, Some(mark)) if run >= 3 => {
                fenced = Some((mark, run));
                out.push_str(line);
            }
            (None, _) => outside_code(&mut out, line),
        }
        out.push('\n');
    }
    out
}

/// A line with `<` as text but in spans of code.
fn outside_code(out: &mut String, line: &str) {
    let mut rest = line;
    while let Some(at) = rest.find(['`', '<']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix('<') {
            let begins_tag = after.starts_with(|c: char| c.is_ascii_alphabetic() || matches!(c, '/' | '!' | '?'));
            out.push_str(if begins_tag { "&lt;" } else { "<" });
            rest = after;
            continue;
        }
        let ticks = rest.len() - rest.trim_start_matches('`').len();
        let closing = "`".repeat(ticks);
        let end = rest[ticks..].find(&closing).map_or(ticks, |found| ticks + found + ticks);
        out.push_str(&rest[..end]);
        rest = &rest[end..];
    }
    out.push_str(rest);
}

/// Puts each line of `text` behind `>`, so that nothing in it ends the quote.
fn quote(out: &mut String, text: &str) {
    for line in text.lines() {
        out.push_str(if line.is_empty() { ">" } else { "> " });
        out.push_str(line);
        out.push('\n');
    }
}

/// A block of code whose fence is longer than any in it.
fn fence(out: &mut String, language: &str, text: &str) {
    let mut longest = 0;
    let mut run = 0;
    for c in text.chars() {
        run = if c == '`' { run + 1 } else { 0 };
        longest = longest.max(run);
    }
    let marks = "`".repeat((longest + 1).max(3));
    out.push_str(&format!("{marks}{language}\n{text}"));
    out.push_str(if text.is_empty() || text.ends_with('\n') { "" } else { "\n" });
    out.push_str(&format!("{marks}\n"));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: nothing that was said changes the shape of what is written out, or is shown as something else.
    #[test]
    fn what_was_said_stays_in_its_place() {
        for (text, wanted) in [
            ("# no *heading*", "\\# no \\*heading\\*\n"),
            ("- a\n1. b\n    code", "\\- a\\\n1\\. b\\\n\u{a0}\u{a0}\u{a0}\u{a0}code\n"),
            ("a\n\nb <script>", "a\n\nb \\<script\\>\n"),
            ("```\nx", "\\`\\`\\`\\\nx\n"),
            ("== \u{1b}[31m", "\\== \u{20}\\[31m\n"),
        ] {
            assert_eq!(plain(text), wanted, "{text:?}");
        }
        for (text, wanted) in [
            ("a <b>c</b> 1 < 2", "a &lt;b>c&lt;/b> 1 < 2\n"),
            ("`<b>` <i>", "`<b>` &lt;i>\n"),
            ("``` \n<b>\n```\n<b>", "``` \n<b>\n```\n&lt;b>\n"),
            ("~~~\n```\n<b>\n~~~\n<b>", "~~~\n```\n<b>\n~~~\n&lt;b>\n"),
            ("`<b", "`&lt;b\n"),
            ("日本 <é", "日本 <é\n"),
        ] {
            assert_eq!(without_tags(text), wanted, "{text:?}");
        }
        let mut out = String::new();
        fence(&mut out, "json", "a\n````\nb");
        assert_eq!(out, "`````json\na\n````\nb\n`````\n");
        let mut out = String::new();
        quote(&mut out, "## Assistant\n\n> x");
        assert_eq!(out, "> ## Assistant\n>\n> > x\n");
    }
}
