//! `GET /openapi.json`: OpenAPI 3.1, made from the route table. What a row does not say of itself (what it is for, its
//! query, its bodies) stands in [`operations`], one line a route; a test keeps the two the same.

mod operations;
mod requests;
mod schemas;

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use hyper::{Method, StatusCode};
use serde_json::{Map, Value, json};

use super::again::Creates;
use super::auth::Scope;
use super::body::{self, Reply};
use super::problem::Problem;
use super::query::{LIMIT_DEFAULT, LIMIT_MAX};
use super::routes::{self, Confirm, Route};
use super::{App, Call};
use operations::Operation;

const JSON: &str = "application/json";
const PROBLEM: &str = "application/problem+json";

/// The document as it is served.
static SERVED: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(document().to_string()));

/// `GET /openapi.json`
pub(super) async fn serve(_: Arc<App>, _: Call) -> Result<Reply, Problem> {
    Ok(body::raw(StatusCode::OK, SERVED.clone()))
}

/// The whole document, of the core's routes.
pub fn document() -> Value {
    let mut paths: Map<String, Value> = Map::new();
    for route in routes::core() {
        let operation = operations::of(&route);
        // A name that takes the rest of a path is written like any other: OpenAPI has no word for it.
        let methods = paths.entry(route.path.replace("{*", "{")).or_insert_with(|| json!({}));
        methods[route.method.as_str().to_lowercase()] = operation_json(&route, operation);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "aman",
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
            "description": "The HTTP interface of the daemon. Errors are problem details (RFC 9457) with a stable `code`.",
        },
        "servers": [{ "url": "http://127.0.0.1:9090", "description": "Where it listens unless configured otherwise." }],
        "security": [{ "bearer": [] }, { "token": [] }],
        "tags": tags(&paths),
        "paths": paths,
        "components": {
            "schemas": schemas::all(),
            "responses": { "Problem": problem_json("What went wrong, with a stable code."), "OpenaiError": openai_error() },
            "securitySchemes": {
                "bearer": { "type": "http", "scheme": "bearer", "description": "The static token, or a minted one." },
                "token": { "type": "apiKey", "in": "header", "name": "x-aman-token" },
            },
        },
    })
}

/// Routes of the table without a line in [`operations`], and lines without a route.
pub fn undocumented() -> Vec<String> {
    let routes: BTreeSet<String> = routes::core().iter().map(operations::key).collect();
    let lines: BTreeSet<String> = operations::keys().collect();
    routes.symmetric_difference(&lines).cloned().collect()
}

fn tag(path: &str) -> &str {
    match path.split('/').nth(1).unwrap_or_default() {
        "" => "console",
        "debug" | "metrics" | "openapi.json" => "observability",
        "audit-log" => "audit",
        "inject-event" | "hooks" => "events",
        "skill" | "skills" | "llm-skills" => "skills",
        "event-source" | "event-sources" | "source" | "sources" | "im-channel" => "sources",
        "sink" | "sinks" => "sinks",
        "plugin" | "plugins" | "ui" => "plugins",
        "capabilities" | "tool-auth" => "tools",
        "config" | "agent" => "runtime",
        first => first,
    }
}

fn tags(paths: &Map<String, Value>) -> Vec<Value> {
    let names: BTreeSet<&str> = paths.keys().map(|path| tag(path)).collect();
    names.into_iter().map(|name| json!({ "name": name })).collect()
}

fn operation_json(route: &Route, operation: &Operation) -> Value {
    let mut shown = json!({
        "operationId": operation_id(route),
        "summary": operation.summary,
        "tags": [tag(&route.path)],
        "responses": responses(route, operation),
    });
    let parameters = parameters(route, operation);
    if !parameters.is_empty() {
        shown["parameters"] = parameters.into();
    }
    if let Some(body) = request_body(operation) {
        shown["requestBody"] = body;
    }
    match route.scope {
        Scope::Public => shown["security"] = json!([]),
        Scope::PublicOrEventsRead => {
            shown["security"] = json!([{}, { "bearer": [] }, { "token": [] }]);
            shown["x-aman-scope"] = route.scope.name().into();
        }
        scope => shown["x-aman-scope"] = scope.name().into(),
    }
    if let Some(action) = route.audited {
        shown["x-aman-audited"] = action.into();
    }
    shown
}

/// The method and the words of the path, as `postDlqRetryById`.
fn operation_id(route: &Route) -> String {
    let mut id = route.method.as_str().to_lowercase();
    for part in route.path.split(['/', '-', '.', '_']).filter(|part| !part.is_empty()) {
        let (by, word) = match part.trim_end_matches('}').strip_prefix('{') {
            Some(name) => ("By", name.trim_start_matches('*')),
            None => ("", part.trim_end_matches('}')),
        };
        id.push_str(by);
        let mut letters = word.chars();
        id.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        id.push_str(letters.as_str());
    }
    id
}

/// Names in braces of a path, in order.
fn path_names(path: &str) -> impl Iterator<Item = &str> {
    path.split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| name.trim_start_matches('*'))
}

fn parameters(route: &Route, operation: &Operation) -> Vec<Value> {
    let mut all: Vec<Value> = path_names(&route.path)
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": requests::path_value(name) }))
        .collect();
    all.extend(operation.query.split_whitespace().map(|name| query_json(&route.path, name)));
    match route.confirm {
        Confirm::No => {}
        Confirm::Always => all.push(json!({
            "name": "x-aman-confirm",
            "in": "header",
            "required": true,
            "schema": { "type": "string", "pattern": "^[Yy][Ee][Ss]$" },
            "description": "`yes` says that you mean it.",
        })),
        Confirm::WhenStrict => all.push(json!({
            "name": "x-aman-confirm",
            "in": "header",
            "schema": { "type": "string" },
            "description": "`yes` says that you mean it; asked for with http.strict_confirm, and not read without.",
        })),
    }
    if ingests(route) || !matches!(route.creates, Creates::No) {
        all.push(json!({
            "name": "Idempotency-Key", "in": "header", "schema": { "type": "string", "minLength": 1, "maxLength": 255 },
            "description": "The same key with the same body gives the same answer.",
        }));
    }
    if route.path == "/events/stream" {
        all.push(json!({
            "name": "Last-Event-ID", "in": "header", "schema": { "type": "string", "pattern": "^[0-9]+$" },
            "description": "Resumes after this sequence without gap or duplicate.",
        }));
    }
    all
}

/// Routes that keep their answers by themselves.
fn ingests(route: &Route) -> bool {
    ["/events/push", "/inject-event"].contains(&route.path.as_str())
}

fn query_json(path: &str, name: &str) -> Value {
    let (name, required) = match name.strip_suffix('!') {
        Some(name) => (name, true),
        None => (name, false),
    };
    let schema = requests::query(path, name);
    let mut shown = json!({ "name": name, "in": "query", "required": required, "schema": schema });
    let text = match name {
        "limit" => {
            format!("Items of a page: {LIMIT_DEFAULT} without one; more than {LIMIT_MAX} counts as {LIMIT_MAX}.")
        }
        "cursor" => "`next_cursor` of an earlier answer of this list.".to_owned(),
        "dry_run" => "Answers what would happen, and touches nothing.".to_owned(),
        "types" => "Type patterns, separated by commas.".to_owned(),
        _ => String::new(),
    };
    if !text.is_empty() {
        shown["description"] = text.into();
    }
    shown
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// `Name`, or for other things than JSON a media type with an optional name, as `text/csv` or `application/json=Name`.
fn content(spec: &str) -> Map<String, Value> {
    let mut all = Map::new();
    for one in spec.split('|').filter(|one| !one.is_empty()) {
        let (media, name) = match one.split_once('=') {
            Some((media, name)) => (media, name),
            None if one.contains('/') => (one, ""),
            None => (JSON, one),
        };
        let schema = match (media, name) {
            ("*/*", "") => json!({}),
            (_, "") => json!({ "type": "string" }),
            _ => reference(name),
        };
        all.insert(media.to_owned(), json!({ "schema": schema }));
    }
    all
}

fn request_body(operation: &Operation) -> Option<Value> {
    let (spec, required) = match operation.request.strip_suffix('!') {
        Some(spec) => (spec, true),
        None => (operation.request, false),
    };
    (!spec.is_empty()).then(|| json!({ "required": required, "content": content(spec) }))
}

fn problem_json(description: &str) -> Value {
    json!({ "description": description, "content": { PROBLEM: { "schema": reference("Problem") } } })
}

/// An error of a route that speaks OpenAI's way; one of before the route is known is a problem as everywhere.
fn openai_error() -> Value {
    let mut error = problem_json("What went wrong, as OpenAI spells it.");
    error["content"]["application/json"] = json!({ "schema": reference("Object") });
    error
}

/// The answers of a row: what its line names, and what the way to its handler can give.
fn responses(route: &Route, operation: &Operation) -> Value {
    let mut all = Map::new();
    let name = if route.path.starts_with("/v1/") { "OpenaiError" } else { "Problem" };
    let failed = json!({ "$ref": format!("#/components/responses/{name}") });
    for one in operation.answers.split_whitespace() {
        let (status, spec) = one.split_once(':').unwrap_or((one, ""));
        let description = reason(status);
        let shown = if spec.is_empty() {
            failed.clone()
        } else {
            json!({ "description": description, "content": content(spec) })
        };
        all.insert(status.to_owned(), shown);
    }
    let mut problems: BTreeSet<u16> = BTreeSet::from([400, 403, 421, 431, 500, 504]);
    let changes = route.method != Method::GET;
    if route.scope != Scope::Public {
        problems.extend([401, 429, 503]);
    }
    if path_names(&route.path).next().is_some() {
        problems.insert(404);
    }
    if route.confirm != Confirm::No {
        problems.insert(409);
    }
    if changes {
        problems.extend([408, 413, 415, 503]);
    }
    for status in problems {
        all.entry(status.to_string()).or_insert(failed.clone());
    }
    Value::Object(all)
}

fn reason(status: &str) -> String {
    let code = status.parse::<u16>().ok().and_then(|code| StatusCode::from_u16(code).ok());
    code.and_then(|code| code.canonical_reason()).unwrap_or("Answer").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_has_its_line_and_every_reference_leads_somewhere() {
        assert_eq!(undocumented(), Vec::<String>::new(), "see openapi/operations.rs");
        let document = document();
        let mut references = Vec::new();
        gather(&document, &mut references);
        for reference in references {
            let pointer = reference.trim_start_matches('#');
            assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
        }
    }

    fn gather(value: &Value, into: &mut Vec<String>) {
        match value {
            Value::Object(all) => {
                into.extend(all.get("$ref").and_then(Value::as_str).map(str::to_owned));
                all.values().for_each(|value| gather(value, into));
            }
            Value::Array(all) => all.iter().for_each(|value| gather(value, into)),
            _ => {}
        }
    }

    #[test]
    fn operation_ids_are_names_of_their_own() {
        let ids: Vec<String> = routes::core().iter().map(operation_id).collect();
        let unique: BTreeSet<&String> = ids.iter().collect();
        assert_eq!(ids.len(), unique.len(), "{ids:?}");
        assert!(ids.iter().all(|id| id.bytes().all(|b| b.is_ascii_alphanumeric())), "{ids:?}");
        let retry = routes::core().into_iter().find(|route| route.path == "/dlq/{id}/retry").expect("a route");
        assert_eq!(operation_id(&retry), "postDlqByIdRetry");
    }
}
