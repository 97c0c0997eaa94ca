//! What aman's own tools are called, what models are told of them, and what they take.

use serde_json::{Value, json};

use crate::tools::{Permission, Tool};

/// Every one, by name.
pub(super) fn all() -> Vec<Tool> {
    let mut all = files();
    all.extend(beyond());
    all.extend(events());
    all
}

fn tool(name: &str, permission: Permission, repeatable: bool, description: &str, schema: Value) -> Tool {
    Tool {
        name: name.to_owned(),
        description: description.to_owned(),
        schema,
        source: "builtin".to_owned(),
        permission,
        repeatable,
    }
}

/// An object that has these fields and no others.
fn object(properties: Value, required: &[&str]) -> Value {
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}

fn path(what: &str) -> Value {
    json!({ "type": "string", "minLength": 1, "maxLength": 4096, "description": format!("{what}; absolute, or beginning with ~/") })
}

fn text(chars_max: usize, what: &str) -> Value {
    json!({ "type": "string", "minLength": 1, "maxLength": chars_max, "description": what })
}

fn count(most: usize, what: &str) -> Value {
    json!({ "type": "integer", "minimum": 1, "maximum": most, "description": what })
}

fn files() -> Vec<Tool> {
    let digest = json!({ "type": "string", "pattern": "^[0-9a-f]{64}$", "description": "SHA-256 that the file must have now, as read gives it" });
    vec![
        tool(
            "read",
            Permission::Read,
            true,
            "Reads a text file in a granted folder. Gives lines and the digest of the file; long files are read piece by piece with offset.",
            object(
                json!({ "path": path("The file"), "offset": count(10_000_000, "First line, from 1"),
                    "limit": count(100_000, "How many lines") }),
                &["path"],
            ),
        ),
        tool(
            "list",
            Permission::Read,
            true,
            "Lists what lies in a granted folder: names, kinds and sizes.",
            object(json!({ "path": path("The folder") }), &["path"]),
        ),
        tool(
            "find",
            Permission::Read,
            true,
            "Finds files by name below a granted folder. The pattern is a glob such as *.md or 2026/**/*.csv.",
            object(
                json!({ "path": path("The folder"), "pattern": text(500, "The glob"), "limit": count(1000, "How many at the most") }),
                &["path", "pattern"],
            ),
        ),
        tool(
            "grep",
            Permission::Read,
            true,
            "Finds lines that match a regular expression, in a file or in all text files below a granted folder.",
            object(
                json!({ "path": path("The file or folder"), "pattern": text(1000, "The regular expression"),
                    "glob": text(500, "Only files whose names fit this glob"), "ignore_case": { "type": "boolean" },
                    "limit": count(1000, "How many lines at the most") }),
                &["path", "pattern"],
            ),
        ),
        tool(
            "write",
            Permission::Write,
            true,
            "Writes a whole text file in a folder that may be written; makes missing folders. What was there is replaced at once or not at all.",
            object(
                json!({ "path": path("The file"), "content": { "type": "string", "maxLength": 1_048_576, "description": "The whole text" },
                    "expected_digest": digest }),
                &["path", "content"],
            ),
        ),
        tool(
            "edit",
            Permission::Write,
            false,
            "Replaces a piece of a text file. The old text must be there exactly once, unless all is true.",
            object(
                json!({ "path": path("The file"), "old": text(262_144, "The text to replace, exactly as it stands there"),
                    "new": { "type": "string", "maxLength": 262_144, "description": "What takes its place" },
                    "all": { "type": "boolean", "description": "Replace every occurrence" }, "expected_digest": digest }),
                &["path", "old", "new"],
            ),
        ),
    ]
}

fn beyond() -> Vec<Tool> {
    let word = json!({ "type": "string", "maxLength": 131_072 });
    vec![
        tool(
            "exec",
            Permission::Exec,
            false,
            "Runs a granted command without a shell and without network, in a sandbox that sees the granted folders only. Gives exit code and output.",
            object(
                json!({ "argv": { "type": "array", "items": word, "minItems": 1, "maxItems": 256, "description": "The command and its arguments, one each" },
                    "dir": path("The folder it starts in"), "stdin": { "type": "string", "maxLength": 1_048_576 },
                    "timeout_s": count(600, "Seconds it may take; 60 unless given") }),
                &["argv"],
            ),
        ),
        tool(
            "http_fetch",
            Permission::Net,
            true,
            "Fetches a page or a document over HTTP(S) with GET and gives it as text. Hosts that were not granted are asked about.",
            object(json!({ "url": text(8192, "The address, with https:// or http://") }), &["url"]),
        ),
        tool(
            "sqlite_query",
            Permission::Read,
            false,
            "Runs one SQL statement in a granted SQLite database. Databases are read only unless they were granted with rw:.",
            object(
                json!({ "database": path("The file"), "sql": text(65_536, "One statement; ?1, ?2 … stand for params"),
                    "params": { "type": "array", "maxItems": 100, "items": { "type": ["string", "number", "boolean", "null"] } },
                    "limit": count(1000, "How many rows at the most; 100 unless given") }),
                &["database", "sql"],
            ),
        ),
        tool(
            "web_search",
            Permission::Net,
            true,
            "Searches the web. Gives titles, addresses and snippets; read pages with http_fetch.",
            object(json!({ "query": text(500, "The words"), "limit": count(20, "How many at the most") }), &["query"]),
        ),
    ]
}

fn events() -> Vec<Tool> {
    vec![
        tool(
            "search_events",
            Permission::Read,
            true,
            "Tells what happened on this machine: events with their data, the newest first.",
            object(
                json!({
                    "types": { "type": "array", "items": text(255, "A type, or a pattern as file.*, mail.**"), "maxItems": 20,
                        "description": "Only events of these types" },
                    "source": text(1024, "Only events of this source"),
                    "since": { "type": "string", "format": "date-time", "maxLength": 40, "description": "Only events since then" },
                    "limit": count(100, "How many at the most"),
                }),
                &[],
            ),
        ),
        tool(
            "publish_event",
            Permission::Act,
            true,
            "Publishes an event, which skills, workflows and other consumers can react to.",
            object(
                json!({ "type": text(255, "Its type, as invoice.found"), "data": { "description": "Any JSON" },
                    "subject": text(1024, "What it is about") }),
                &["type"],
            ),
        ),
        tool(
            "start_workflow",
            Permission::Act,
            true,
            "Starts a workflow by its name. Gives the id of the instance; it does not wait for its end.",
            object(json!({ "workflow": text(255, "Its name"), "input": { "description": "Any JSON" } }), &["workflow"]),
        ),
    ]
}
