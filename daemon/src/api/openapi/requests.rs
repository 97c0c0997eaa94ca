//! What requests may say, as exact as a schema can be: whatever fits is taken, or refused for a reason that no schema
//! knows (a zone that does not exist, a name that is taken); whatever does not fit is a 400.

use serde_json::{Map, Value, json};

use crate::agents::{SAID_CHARS_MAX, attachments};
use crate::api::auth::Scope;
use crate::api::chat::SEARCH_CHARS_MAX;
use crate::api::dlq;
use crate::api::parse::{BATCH_MAX, RESERVED_IDS};
use crate::bus::NewNotification;
use crate::event::{Delivery, ID_BYTES_MAX, Priority, RESERVED_ATTRIBUTES, TEXT_BYTES_MAX, TYPE_BYTES_MAX};
use crate::memory::{TAG_CHARS_MAX, TAGS_MAX, TEXT_CHARS_MAX};
use crate::schedule::{FAILURES_MAX, JITTER_S_MAX, RUN_ALL_MAX};
use crate::store::chat::Kind as Talk;
use crate::store::workflows::Status;

/// A text without control characters.
pub(super) const PLAIN: &str = "^[^\\u0000-\\u001f\\u007f-\\u009f]*$";
const TYPE: &str = "^[A-Za-z0-9_-]+(\\.[A-Za-z0-9_-]+)*$";
const PATTERNS: &str = concat!(
    "^((\\*\\*|(\\*|[A-Za-z0-9_-]+)(\\.(\\*|[A-Za-z0-9_-]+))*(\\.\\*\\*)?)",
    "(,(\\*\\*|(\\*|[A-Za-z0-9_-]+)(\\.(\\*|[A-Za-z0-9_-]+))*(\\.\\*\\*)?))*)?$"
);
const BASE64: &str = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/][AQgw]==|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)?$";
const DURATION: &str = "^([0-9]{1,9}(ms|s|m|h|d))+$";
const INTEGER_MAX: i64 = i64::MAX;

/// The schemas by name.
pub(super) fn all() -> Vec<(&'static str, Value)> {
    vec![
        ("Object", json!({ "type": "object" })),
        ("Empty", json!({ "type": "object", "maxProperties": 0 })),
        ("PlainEvent", plain_event()),
        ("CloudEvent", cloud_event()),
        ("CloudEvents", json!({ "type": "array", "maxItems": BATCH_MAX, "items": reference("CloudEvent") })),
        ("Push", json!({ "anyOf": [reference("PlainEvent"), reference("CloudEvent")] })),
        ("Reason", closed(json!({ "reason": or_null(json!({ "type": "string" })) }), &[])),
        ("Fingerprint", closed(json!({ "fingerprint": { "type": "string", "minLength": 1 } }), &["fingerprint"])),
        ("Digest", closed(json!({ "digest": { "type": ["string", "null"], "pattern": "^[0-9a-fA-F]{64}$" } }), &[])),
        ("Agreed", closed(json!({ "digest": { "type": "string", "pattern": "^[0-9a-fA-F]{64}$" } }), &["digest"])),
        ("Uninstall", closed(json!({ "purge_data": { "type": ["boolean", "null"] } }), &[])),
        (
            "DismissAll",
            closed(json!({ "severity": severities(), "category": or_null(json!({ "type": "string" })) }), &[]),
        ),
        ("SkillRollback", skill_rollback()),
        (
            "ModelTest",
            closed(
                json!({ "model": { "type": ["string", "null"] }, "prompt": { "type": ["string", "null"], "maxLength": 16_384 } }),
                &[],
            ),
        ),
        ("SoulUpdate", soul_update()),
        ("SoulRollback", soul_rollback()),
        ("NewMemory", memory(&["text"])),
        ("MemoryChange", memory(&[])),
        ("NotificationTest", notification_test()),
        ("ToolInput", closed(json!({ "input": {} }), &[])),
        (
            "ToolAnswer",
            closed(
                json!({
                    "auth_id": text(255), "approved": { "type": "boolean" },
                    "remember": { "enum": ["once", "session", "always", null] },
                }),
                &["auth_id", "approved"],
            ),
        ),
        ("ConfigSet", config_set()),
        (
            "ChatCreate",
            closed(json!({ "agent_id": or_null(json!({ "type": "string" })), "title": or_null(title()) }), &[]),
        ),
        ("ChatTitle", closed(json!({ "title": title() }), &["title"])),
        ("ChatSend", chat_send()),
        (
            "ChatEdit",
            closed(
                json!({ "message_id": { "type": "string", "minLength": 1 }, "text": said(), "expected_version": seen() }),
                &["message_id", "text"],
            ),
        ),
        ("ChatRetry", closed(json!({ "expected_version": seen() }), &[])),
        ("MintToken", mint_token()),
        (
            "Definition",
            json!({ "type": "object", "required": ["document", "do"], "description": "A workflow as schemas/workflow.schema.json describes it." }),
        ),
        ("WorkflowStart", closed(json!({ "input": {}, "dedup_key": or_null(text(255)) }), &[])),
        ("AgentDefinition", agent_definition()),
        ("Explore", explore()),
        ("IdleRun", idle_run()),
        ("AgentStatus", closed(json!({ "status": { "enum": ["idle", "disabled"] } }), &["status"])),
        ("Signal", closed(json!({ "type": event_type(), "data": {} }), &["type"])),
        ("CronJob", cron_job(&["id", "expression"])),
        ("CronPatch", cron_job(&[])),
    ]
}

/// The schema of agents, with what it refers to in the place of each reference.
fn agent_definition() -> Value {
    let mut whole: Value = serde_json::from_str(crate::agents::SCHEMA).unwrap_or_default();
    let defs = whole["$defs"].take();
    inline(&mut whole, &defs);
    if let Some(fields) = whole.as_object_mut() {
        fields.retain(|name, _| !name.starts_with('$'));
    }
    nullable(&mut whole);
    whole
}

/// In JSON a field that is null is one that is not there.
fn nullable(schema: &mut Value) {
    for field in schema["properties"].as_object_mut().into_iter().flat_map(|fields| fields.values_mut()) {
        nullable(field);
        *field = or_null(field.take());
    }
}

fn explore() -> Value {
    let query = or_null(text(crate::api::explore::QUERY_CHARS_MAX));
    closed(json!({ "agent_id": or_null(text(64)), "source": or_null(text(64)), "query": query }), &[])
}

fn idle_run() -> Value {
    let key = || or_null(text(200));
    closed(
        json!({
            "tag": { "enum": crate::agents::idle::KINDS }, "agent_key": key(), "project_key": key(), "work_id": key(),
            "background": { "type": ["boolean", "null"] },
        }),
        &["tag"],
    )
}

fn inline(schema: &mut Value, defs: &Value) {
    match schema {
        Value::Object(fields) => {
            let named = fields.remove("$ref");
            let name = named.as_ref().and_then(Value::as_str).and_then(|reference| reference.strip_prefix("#/$defs/"));
            if let Some(Value::Object(meant)) = name.map(|name| defs[name].clone()) {
                fields.extend(meant);
            }
            fields.values_mut().for_each(|below| inline(below, defs));
        }
        Value::Array(all) => all.iter_mut().for_each(|below| inline(below, defs)),
        _ => {}
    }
}

/// The title of a session.
fn title() -> Value {
    let pattern =
        "^[^\\u0000-\\u001f\\u007f-\\u009f]*[^\\s\\u0000-\\u001f\\u007f-\\u009f][^\\u0000-\\u001f\\u007f-\\u009f]*$";
    json!({ "type": "string", "minLength": 1, "maxLength": 200, "pattern": pattern })
}

/// What a person says.
fn said() -> Value {
    json!({ "type": "string", "minLength": 1, "maxLength": SAID_CHARS_MAX, "pattern": "^[^\\u0000]*[^\\s\\u0000][^\\u0000]*$" })
}

/// The version of a session that was seen.
fn seen() -> Value {
    json!({ "type": ["integer", "null"], "minimum": 0 })
}

fn chat_send() -> Value {
    let text = || or_null(json!({ "type": "string" }));
    let attachment = closed(
        json!({
            "name": text(), "media_type": text(), "text": text(),
            "data": or_null(json!({ "type": "string", "description": "Base64, or a data URL." })),
        }),
        &[],
    );
    let attachments = or_null(json!({ "type": "array", "maxItems": attachments::COUNT_MAX, "items": attachment }));
    closed(json!({ "text": said(), "attachments": attachments, "expected_version": seen() }), &["text"])
}

/// A digest or a version, one of them; the other may be there as null.
fn skill_rollback() -> Value {
    let text = || or_null(json!({ "type": "string", "minLength": 1 }));
    let mut either = closed(json!({ "digest": text(), "version": text() }), &[]);
    let only = |one: &str, other: &str| json!({ "required": [one], "properties": { one: { "type": "string" }, other: { "type": "null" } } });
    either["oneOf"] = json!([only("digest", "version"), only("version", "digest")]);
    either
}

/// What a soul says is YAML and Markdown; no schema says what of it is understood.
fn soul_update() -> Value {
    let content = json!({ "type": "string", "minLength": 1 });
    let digest = json!({ "type": ["string", "null"], "pattern": "^[0-9a-fA-F]{64}$" });
    closed(json!({ "content": content, "expected_digest": digest }), &["content"])
}

/// A digest or a version, one of them; the other may be there as null.
fn soul_rollback() -> Value {
    let digest = json!({ "type": ["string", "null"], "pattern": "^[0-9a-fA-F]{4,64}$" });
    let number = json!({ "type": ["integer", "null"], "minimum": 1, "maximum": INTEGER_MAX });
    let mut either = closed(json!({ "digest": digest, "version": number }), &[]);
    let only = |one: &str, kind: &str, other: &str| json!({ "required": [one], "properties": { one: { "type": kind }, other: { "type": "null" } } });
    either["oneOf"] = json!([only("digest", "string", "version"), only("version", "integer", "digest")]);
    either
}

/// A fact, or what is to change of one.
fn memory(required: &[&str]) -> Value {
    // Line breaks and tabs are no control characters here.
    let control = "\\u0000-\\u0008\\u000b\\u000c\\u000e-\\u001f\\u007f-\\u009f";
    let pattern = format!("^[^{control}]*[^\\s{control}][^{control}]*$");
    let text = json!({ "type": "string", "maxLength": TEXT_CHARS_MAX, "pattern": pattern });
    let tag = json!({ "type": "string", "pattern": format!("^[^\\s{control}]{{1,{TAG_CHARS_MAX}}}$") });
    let tags = json!({ "type": ["array", "null"], "maxItems": TAGS_MAX, "items": tag });
    if required.is_empty() {
        let mut change = closed(json!({ "text": or_null(text), "tags": tags }), &[]);
        let given = |name: &str, kind: &str| json!({ "required": [name], "properties": { name: { "type": kind } } });
        change["anyOf"] = json!([given("text", "string"), given("tags", "array")]);
        return change;
    }
    let agent = json!({ "type": ["string", "null"], "pattern": "^[a-z0-9_-]{1,64}$" });
    closed(json!({ "text": text, "tags": tags, "agent_id": agent }), required)
}

/// One severity, or several with commas between them.
fn severities() -> Value {
    let one = "(info|warning|error|critical)";
    json!({ "type": ["string", "null"], "pattern": format!("^{one}(,{one})*$") })
}

fn notification_test() -> Value {
    let line = |most: usize| json!({ "type": ["string", "null"], "maxLength": most, "pattern": "^[^\\u0000-\\u001f\\u007f-\\u009f]*[^\\s\\u0000-\\u001f\\u007f-\\u009f][^\\u0000-\\u001f\\u007f-\\u009f]*$" });
    let label = json!({ "type": "string", "maxLength": NewNotification::WORD_CHARS_MAX, "pattern": "^[A-Za-z0-9][A-Za-z0-9 ]*$" });
    let url = json!({ "type": "string", "pattern": "^(https?://[A-Za-z0-9.-]+)?/[A-Za-z0-9/._-]*[A-Za-z0-9._-]$", "maxLength": 1000 });
    closed(
        json!({
            "title": line(NewNotification::TITLE_CHARS_MAX),
            "message": { "type": ["string", "null"], "maxLength": NewNotification::MESSAGE_CHARS_MAX },
            "severity": { "enum": ["info", "warning", "error", "critical", null] },
            "category": { "type": ["string", "null"], "pattern": "^[a-z0-9_.-]{1,100}$" },
            "action": { "anyOf": [closed(json!({ "label": label, "url": url }), &["label", "url"]), { "type": "null" }] },
        }),
        &[],
    )
}

/// The schema of a query parameter of a route.
pub(super) fn query(path: &str, name: &str) -> Value {
    match (path, name) {
        ("/notifications", "severity") => {
            json!({ "type": "string", "pattern": "^(info|warning|error|critical)(,(info|warning|error|critical))*$" })
        }
        (_, "offset") => json!({ "type": "integer", "minimum": 0, "maximum": 1_000_000 }),
        (_, "limit" | "count") => json!({ "type": "integer", "minimum": 1 }),
        (
            _,
            "dry_run" | "approve" | "allow_unsigned" | "allow_downgrade" | "all" | "named" | "metrics" | "active_only",
        ) => flag(),
        (_, "types") => json!({ "type": "string", "pattern": PATTERNS }),
        (_, "cursor") => json!({ "type": "string", "pattern": "^[A-Za-z0-9_-]*$" }),
        ("/events/stream", "since") => json!({ "type": "integer", "minimum": 0, "maximum": INTEGER_MAX }),
        ("/audit-log", "since" | "until") => json!({ "type": "string", "format": "date-time" }),
        ("/dlq", "reason") => json!({ "type": "string", "enum": dlq::REASONS }),
        ("/memory/export", "format") => json!({ "type": "string", "enum": ["json", "md"] }),
        ("/usage", "day") => {
            json!({ "type": "string", "pattern": "^(today|all|[0-9]{4}-[0-9]{2}-[0-9]{2})?$" })
        }
        ("/memory" | "/memory/export", "shared") => flag(),
        ("/memory", "q") => json!({ "type": "string", "maxLength": 256 }),
        ("/chat/session/{id}/export", "format") => json!({ "type": "string", "enum": ["md", "json"] }),
        (_, "format") => json!({ "type": "string", "enum": ["json", "mermaid"] }),
        ("/workflow-instances", "status") => json!({ "type": "string", "enum": Status::NAMES }),
        ("/chat/sessions", "kind") => json!({ "type": "string", "enum": Talk::NAMES }),
        ("/chat/sessions", "state") => json!({ "type": "string", "enum": ["open", "closed"] }),
        (_, "branches") => json!({ "type": "string", "enum": ["shown", "all"] }),
        ("/chat/search", "q") => json!({ "type": "string", "minLength": 1, "maxLength": SEARCH_CHARS_MAX }),
        ("/cron/{id}/runs", "status") => {
            json!({ "type": "string", "enum": ["queued", "running", "done", "failed", "skipped"] })
        }
        (_, "head") => json!({ "type": "string", "pattern": "^[1-9][0-9]{0,17}:[0-9a-fA-F]{64}$" }),
        (_, "trace_id") => trace_id(),
        (_, "q" | "code" | "id") => json!({ "type": "string", "minLength": 1 }),
        _ => json!({ "type": "string" }),
    }
}

/// As `Query::flag` reads it: the name alone is a yes.
fn flag() -> Value {
    json!({ "anyOf": [{ "type": "boolean" }, { "type": "string", "enum": ["", "yes", "no", "1", "0"] }] })
}

/// The schema of a value in a path.
pub(super) fn path_value(name: &str) -> Value {
    match name {
        "trace_id" => trace_id(),
        _ => json!({ "type": "string", "minLength": 1, "pattern": PLAIN }),
    }
}

fn trace_id() -> Value {
    json!({ "type": "string", "pattern": "^[0-9a-f]{32}$", "not": { "const": "0".repeat(32) } })
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// An object with these fields and no others.
fn closed(properties: Value, required: &[&str]) -> Value {
    let mut object = json!({ "type": "object", "properties": properties, "additionalProperties": false });
    if !required.is_empty() {
        object["required"] = json!(required);
    }
    object
}

/// In requests, null counts as absent.
fn or_null(schema: Value) -> Value {
    match schema["type"].as_str() {
        Some(kind) if schema.get("enum").or(schema.get("not")).is_none() => {
            let mut schema = schema.clone();
            schema["type"] = json!([kind, "null"]);
            schema
        }
        _ => json!({ "anyOf": [schema, { "type": "null" }] }),
    }
}

fn text(bytes_max: usize) -> Value {
    json!({ "type": "string", "minLength": 1, "maxLength": bytes_max, "pattern": PLAIN })
}

fn event_type() -> Value {
    json!({ "type": "string", "minLength": 1, "maxLength": TYPE_BYTES_MAX, "pattern": TYPE })
}

fn time() -> Value {
    json!({ "type": "string", "format": "date-time" })
}

/// What both forms of an event have.
fn event_fields() -> Map<String, Value> {
    let mut id = text(ID_BYTES_MAX);
    id["not"] = json!({ "enum": RESERVED_IDS });
    let traceparent = json!({
        "type": "string",
        "pattern": "^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$",
        "not": { "pattern": "^00-(0{32}-|[0-9a-f]{32}-0{16}-)" },
    });
    let optional = [
        ("id", id),
        ("subject", text(TEXT_BYTES_MAX)),
        ("time", time()),
        ("datacontenttype", text(ID_BYTES_MAX)),
        ("dedupkey", text(TEXT_BYTES_MAX)),
        ("agentid", text(ID_BYTES_MAX)),
        ("partitionkey", text(TEXT_BYTES_MAX)),
        ("expirytime", time()),
        ("priority", json!({ "type": "string", "enum": Priority::NAMES })),
        ("delivery", json!({ "type": "string", "enum": Delivery::NAMES })),
        ("data_base64", json!({ "type": "string", "pattern": BASE64 })),
        ("traceparent", traceparent),
    ];
    let mut fields: Map<String, Value> =
        optional.into_iter().map(|(name, schema)| (name.to_owned(), or_null(schema))).collect();
    fields.insert("source".to_owned(), text(TEXT_BYTES_MAX));
    fields.insert("data".to_owned(), json!(true));
    fields
}

/// Fits what says the same thing twice, under two of the names of one group.
fn said_twice(groups: &[&[&str]]) -> Value {
    let given = json!({ "not": { "type": "null" } });
    let mut both: Vec<Value> = Vec::new();
    for names in groups {
        let pairs = names.iter().enumerate().flat_map(|(n, one)| names[..n].iter().map(move |other| [one, other]));
        both.extend(pairs.map(|[a, b]| json!({ "required": [a, b], "properties": { *a: given, *b: given } })));
    }
    json!({ "anyOf": both })
}

fn plain_event() -> Value {
    let mut fields = event_fields();
    for (other, name) in [("dedup_key", "dedupkey"), ("agent_id", "agentid"), ("partition_key", "partitionkey")] {
        let schema = fields[name].clone();
        fields.insert(other.to_owned(), schema);
    }
    fields.insert("ttl_ms".to_owned(), json!({ "type": ["integer", "null"], "minimum": 1, "maximum": INTEGER_MAX }));
    fields.insert("payload".to_owned(), json!(true));
    fields.insert("type".to_owned(), or_null(event_type()));
    fields.insert("event_type".to_owned(), or_null(event_type()));
    let mut event = closed(Value::Object(fields), &["source"]);
    let named = |name: &str| json!({ "required": [name], "properties": { name: { "type": "string" } } });
    event["oneOf"] = json!([named("type"), named("event_type")]);
    event["not"] = said_twice(&[
        &["data", "payload", "data_base64"],
        &["dedup_key", "dedupkey"],
        &["agent_id", "agentid"],
        &["partition_key", "partitionkey"],
        &["ttl_ms", "expirytime"],
    ]);
    event["description"] = "An event in the daemon's own words.".into();
    event["examples"] = json!([
        { "source": "example", "type": "note.added", "data": { "text": "Hello" } },
        { "source": "example", "event_type": "note.added", "payload": [1], "priority": "high", "ttl_ms": 60000 },
    ]);
    event
}

fn cloud_event() -> Value {
    let mut fields = event_fields();
    fields.insert("specversion".to_owned(), json!({ "const": "1.0" }));
    fields.insert("type".to_owned(), event_type());
    for name in RESERVED_ATTRIBUTES {
        fields.insert(name.to_owned(), json!({ "type": "null", "description": "Set by the daemon only." }));
    }
    json!({
        "type": "object",
        "description": "A CloudEvent (1.0) as structured JSON.",
        "required": ["specversion", "source", "type"],
        "properties": fields,
        "propertyNames": { "pattern": "^([a-z0-9]{1,64}|data_base64)$" },
        "additionalProperties": { "anyOf": [
            { "type": ["boolean", "null"] },
            { "type": "integer", "minimum": i32::MIN, "maximum": i32::MAX },
            { "type": "string", "maxLength": TEXT_BYTES_MAX, "pattern": PLAIN },
        ] },
        "not": said_twice(&[&["data", "data_base64"]]),
        "examples": [{ "specversion": "1.0", "source": "example", "type": "note.added", "data": { "text": "Hello" } }],
    })
}

fn config_set() -> Value {
    let value = json!({ "anyOf": [
        { "type": ["string", "number", "boolean", "null"] },
        { "type": "array", "items": { "type": "string" } },
    ] });
    let changes = json!({
        "type": "object",
        "description": "Values by the keys that GET /runtime/config lists; null gives one back to the file.",
        "minProperties": 1,
        "maxProperties": 100,
        "propertyNames": { "pattern": "^[a-z_]+([.][a-z0-9_-]+)+$" },
        "additionalProperties": value,
    });
    let mut set =
        closed(json!({ "changes": changes, "expected_version": or_null(json!({ "type": "integer" })) }), &["changes"]);
    set["examples"] = json!([{ "changes": { "log.level": "info" } }]);
    set
}

fn mint_token() -> Value {
    let names = Scope::GRANTED.map(Scope::name).join("|");
    let mut token = closed(
        json!({
            "sub": {
                "type": "string", "minLength": 1, "maxLength": 64, "pattern": "^[A-Za-z0-9.@+_-]+$",
                "not": { "pattern": "^([Oo][Ww][Nn][Ee][Rr]|[Aa][Nn][Oo][Nn][Yy][Mm][Oo][Uu][Ss]|[Aa][Mm][Aa][Nn])$" },
            },
            "scope": { "type": "string", "pattern": format!("^({names})([ ,]({names}))*$") },
            "ttl": { "type": ["string", "null"], "pattern": DURATION, "description": "From 1s to 366d." },
        }),
        &["sub", "scope"],
    );
    token["examples"] = json!([{ "sub": "phone", "scope": "events:read events:write", "ttl": "30d" }]);
    token
}

fn cron_job(required: &[&str]) -> Value {
    let misfire = json!({ "anyOf": [
        { "type": "string", "enum": ["skip", "run_once"] },
        { "type": "null" },
        closed(
            json!({ "run_all": closed(json!({ "max": { "type": "integer", "minimum": 1, "maximum": RUN_ALL_MAX } }), &["max"]) }),
            &["run_all"],
        ),
        closed(json!({ "within": { "type": "string", "pattern": DURATION } }), &["within"]),
    ] });
    let number = |max: u32| json!({ "type": ["integer", "null"], "minimum": 0, "maximum": max });
    let mut fields = json!({
        "expression": { "type": ["string", "null"], "description": "As crontab writes it, or @daily and the like." },
        "timezone": { "type": ["string", "null"], "description": "An IANA name; without one UTC." },
        "payload": true,
        "type": or_null(event_type()),
        "agent_id": or_null(text(ID_BYTES_MAX)),
        "skill": or_null(text(ID_BYTES_MAX)),
        "misfire": misfire,
        "overlap": or_null(json!({ "type": "string", "enum": ["skip", "queue_one", "allow"] })),
        "jitter_s": number(JITTER_S_MAX),
        "max_failures": number(FAILURES_MAX),
        "enabled": { "type": ["boolean", "null"] },
    });
    let mut example =
        json!({ "expression": "0 8 * * 1-5", "timezone": "Europe/Berlin", "misfire": { "within": "10m" } });
    if required.contains(&"id") {
        fields["id"] = json!({
            "type": "string", "minLength": 1, "maxLength": 64, "pattern": "^[a-z0-9_-][a-z0-9._-]*$",
            "not": { "const": "add" },
        });
        fields["expression"]["type"] = "string".into();
        example["id"] = "morning-digest".into();
    }
    let mut job = closed(fields, required);
    job["examples"] = json!([example]);
    job
}
