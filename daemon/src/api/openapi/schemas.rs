//! The bodies of the API, written short: `name` is a text, `name:int` a number, `name?` may be absent, `name:int~` may be
//! null, `[x]` is a list, a capital names another schema. Fields that are added later break no client.

use serde_json::{Map, Value, json};

use super::requests;

/// Schemas that are objects.
const OBJECTS: &[(&str, &str)] = &[
    ("Problem", "type title status:int detail instance code message trace_id errors:[FieldError]"),
    ("FieldError", "field reason"),
    ("Check", "ok:bool detail"),
    ("Health", "status phase checks:{Check}"),
    ("Status", "status"),
    (
        "RuntimeStatus",
        "phase ready:bool live:bool version uptime_s:int draining:bool auth safe_mode:bool sequence:int subsystems:{any} \
         usage:any",
    ),
    ("Setting", "key value:any origin help? change? running:any?"),
    (
        "RuntimeConfig",
        "items:[Setting] version:int safe_mode:bool error:text~ warnings:[text] config_file data state runtime",
    ),
    ("ConfigChange", "key before:any value:any effect"),
    ("ConfigChanged", "version:int items:[ConfigChange] applied:[text] requires_restart:[text] dry_run?:bool"),
    (
        "ConfigReloaded",
        "version:int applied:[text] started:[text] stopped:[text] changed:[text] failed:[any] requires_restart:[text] \
         overridden:[text] warnings:[text] dry_run?:bool",
    ),
    ("SinkTest", "data?:any"),
    ("SinkTested", "id to event:any outcome? detail?:text~ dry_run?:bool"),
    (
        "Event",
        "specversion id source type time amansequence traceid correlationid? causationid? trust subject? \
         datacontenttype? data?:any data_base64?",
    ),
    ("Accepted", "id sequence:int type trace_id target deduplicated:bool"),
    ("AcceptedBatch", "items:[Accepted]"),
    ("Delivery", "id consumer status attempt:int next_at:time~ error:text~ ended_at:time~ result:any failures:[any]"),
    ("EventDump", "event:Event deliveries:[Delivery]"),
    ("Events", "items:[Event] next_cursor:text~"),
    ("Edge", "from to"),
    ("Trace", "trace_id events:[Event] deliveries:[Delivery] edges:[Edge] truncated?:bool"),
    ("SeenType", "type count:int last_seen:time~ schema?:any"),
    ("SeenTypes", "items:[SeenType] next_cursor:text~"),
    ("Why", "event:Event status considered:[any] effects:[any] ancestors:[any] deliveries:[Delivery]"),
    (
        "DeadLetter",
        "id event:Event consumer reason error_chain:[text] attempts:int first_failed_at:time last_failed_at:time \
         fingerprint expires_at:time~",
    ),
    ("DeadLetters", "items:[DeadLetter] next_cursor:text~"),
    ("DeadLetterDepth", "depth:int by_consumer:{int}"),
    ("DeadLetterGroup", "fingerprint consumer reason error:text~ count:int first_failed_at:time last_failed_at:time"),
    ("DeadLetterGroups", "items:[DeadLetterGroup] next_cursor:text~"),
    ("Retrying", "id delivery_id event_id status dry_run?:bool"),
    ("RetriedGroup", "fingerprint retried:int items:[any] dry_run?:bool"),
    ("Discarded", "id delivery_id event_id status"),
    (
        "AuditRecord",
        "seq:int time:time principal claimed_operator:text~ action target outcome status:int trace_id:text~ detail:any \
         prev_hash hash",
    ),
    ("AuditRecords", "items:[AuditRecord] next_cursor:text~"),
    ("AuditVerdict", "ok:bool checked:int first_bad?:int fault?:text head:text~ pruned_to?:int"),
    (
        "Skill",
        "name version description enabled:bool kind triggers:[any] permissions:any concurrency:any digest path stats:any",
    ),
    ("Skills", "items:[Skill] next_cursor:text~"),
    ("SkillHit", "name score:number snippet field"),
    ("SkillHits", "items:[SkillHit] next_cursor:text~"),
    ("SkillText", "name digest content files:[any]"),
    ("SkillVersion", "version digest created_at current:bool"),
    ("SkillVersions", "items:[SkillVersion] next_cursor:text~"),
    ("SkillFileChange", "path change old_size:int~ new_size:int~ diff:text~"),
    ("Boundary", "name topic:[text] tools:[text] says"),
    (
        "Soul",
        "name digest last_changed_at:time origin boundaries:[Boundary] preferences:any path problem:text~ dry_run?:bool",
    ),
    ("SoulText", "raw digest"),
    ("SoulVersion", "version:int digest origin principal created_at:time current:bool"),
    ("SoulVersions", "items:[SoulVersion] next_cursor:text~"),
    ("SystemPrompt", "agent_id:text~ system_prompt digest"),
    ("Memory", "id agent_id:text~ text tags:[text] source trust created_at:time updated_at:time"),
    ("Memories", "items:[Memory] next_cursor:text~"),
    ("MemoryExport", "items:[Memory] exported_at:time"),
    ("Usage", "scope day:text~ calls:int tokens:int input:int output:int lost:int money:any reserved:int refused:int"),
    ("UsageList", "day:text~ items:[Usage] next_cursor:text~ limits:any"),
    ("SkillDiff", "from to files:[SkillFileChange]"),
    ("SkillForModels", "name description kind triggers:[any] tags:[text] location digest"),
    ("SkillsForModels", "items:[SkillForModels] next_cursor:text~"),
    ("SkillsReloaded", "added:[text] changed:[text] removed:[text] failed:[any]"),
    (
        "Notification",
        "id status severity category consumer title message action:any count:int created_at:time last_at:time \
         event_id:text~ trace_id:text~ acknowledged_at:time~ dismissed_at:time~",
    ),
    ("Notifications", "items:[Notification] next_cursor:text~"),
    ("Count", "count:int"),
    ("DismissedAll", "dismissed:int"),
    ("LoggedOut", "ended:bool"),
    ("Grant", "key text amount:int"),
    (
        "Installed",
        "name version digest signed_by:text~ permissions:any routes:[text] status grants:[Grant] added:[Grant] \
         replaces:text~ dry_run?:bool",
    ),
    (
        "Plugin",
        "name state reason version:text~ digest:text~ description:text~ signed_by:text~ publisher:text~ routes:[text] \
         granted:[Grant] pending:any previous:any changed_at:time manifest:any permissions:any health?:any used?:any listener:any",
    ),
    ("Pages", "items:[any]"),
    (
        "ChatSession",
        "id agent_id title:text~ kind state version:int message_count:int principal trust created_at:time updated_at:time",
    ),
    ("ChatSessions", "items:[ChatSession] next_cursor:text~"),
    (
        "ChatMessage",
        "id role text created_at:time parent_id:text~ trust tool_calls?:[any] call_id? tool?:text~ is_error?:bool \
         attachments?:[any] model? usage?:any stopped?:bool",
    ),
    (
        "ChatState",
        "id agent_id title:text~ kind state version:int message_count:int principal trust created_at:time updated_at:time \
         messages:[ChatMessage] has_more:bool turn:any usage:any approvals:[any]",
    ),
    ("ChatHistory", "items:[ChatMessage] next_cursor:text~"),
    ("ChatHit", "session_id title:text~ agent_id message_id role created_at:time score:number snippet"),
    ("ChatHits", "items:[ChatHit] next_cursor:text~"),
    ("ChatBegun", "message_id turn_id session_id agent_id version:int trace_id"),
    ("Login", "path expires_at:time"),
    ("Ticket", "ticket expires_at:time"),
    ("Items", "items:[any] next_cursor:text~"),
    ("Deleted", "deleted:bool data_kept?:bool"),
];

/// Every schema by name.
pub(super) fn all() -> Map<String, Value> {
    let mut all: Map<String, Value> =
        OBJECTS.iter().map(|(name, fields)| ((*name).to_owned(), object(fields))).collect();
    all.extend(requests::all().into_iter().map(|(name, schema)| (name.to_owned(), schema)));
    // What a request names and nobody knows is refused.
    all["SinkTest"]["additionalProperties"] = false.into();
    all.insert("AcceptedOrBatch".to_owned(), either(&["Accepted", "AcceptedBatch"]));
    all
}

fn either(names: &[&str]) -> Value {
    let names: Vec<Value> =
        names.iter().map(|name| json!({ "$ref": format!("#/components/schemas/{name}") })).collect();
    json!({ "anyOf": names })
}

fn object(fields: &str) -> Value {
    let (mut properties, mut required) = (Map::new(), Vec::new());
    for field in fields.split_whitespace() {
        let (name, kind) = field.split_once(':').unwrap_or((field, "text"));
        let (name, optional) = match name.strip_suffix('?') {
            Some(name) => (name, true),
            None => (name, kind.ends_with('?')),
        };
        properties.insert(name.to_owned(), schema(kind.trim_end_matches('?')));
        if !optional {
            required.push(Value::from(name));
        }
    }
    let mut object = json!({ "type": "object", "properties": properties });
    if !required.is_empty() {
        object["required"] = required.into();
    }
    object
}

fn schema(kind: &str) -> Value {
    if let Some(kind) = kind.strip_suffix('~') {
        let mut inner = schema(kind);
        match inner["type"].take() {
            Value::Null => return json!({ "anyOf": [schema(kind), { "type": "null" }] }),
            known => inner["type"] = json!([known, "null"]),
        }
        return inner;
    }
    if let Some(item) = kind.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return json!({ "type": "array", "items": schema(item) });
    }
    if let Some(item) = kind.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
        return json!({ "type": "object", "additionalProperties": schema(item) });
    }
    match kind {
        "text" => json!({ "type": "string" }),
        "time" => json!({ "type": "string", "format": "date-time" }),
        "int" => json!({ "type": "integer" }),
        "number" => json!({ "type": "number" }),
        "bool" => json!({ "type": "boolean" }),
        "any" => json!(true),
        name => json!({ "$ref": format!("#/components/schemas/{name}") }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_forms_are_read() {
        assert_eq!(
            object("a b?:int~ c:[Check] d:{any} e:any?"),
            json!({
                "type": "object",
                "properties": {
                    "a": { "type": "string" },
                    "b": { "type": ["integer", "null"] },
                    "c": { "type": "array", "items": { "$ref": "#/components/schemas/Check" } },
                    "d": { "type": "object", "additionalProperties": true },
                    "e": true,
                },
                "required": ["a", "c", "d"],
            })
        );
        assert_eq!(schema("Check~")["anyOf"][1], json!({ "type": "null" }));
    }
}
