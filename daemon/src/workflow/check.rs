//! Whether a definition can be run: what is unsupported is refused by name, the rest is held against the schema, then
//! every expression is compiled. Each problem names its place, as a JSON pointer and as line and column.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::{Value, json};

use super::build;
use super::definition::Definition;
use crate::error::{Error, FieldError};
use crate::registry::Schema;
use crate::text::document::{Document, Place, escaped};

/// What definitions must look like; `$defs/task` says which kinds of tasks there are.
const SCHEMA: &str = include_str!("../../../schemas/workflow.schema.json");
/// Problems that are told at once.
const PROBLEMS_MAX: usize = 50;
/// Nesting of tasks.
const DEPTH_MAX: usize = 24;
/// Tasks of a definition.
const TASKS_MAX: usize = 5000;

/// How instances can start by themselves.
const SCHEDULES: [&str; 4] = ["every", "cron", "after", "on"];

/// The languages of scripts; the first two are the same.
const LANGUAGES: [&str; 3] = ["js", "javascript", "python"];

/// The words that say what kind a task is, with the definition that describes it.
const KINDS: [(&str, &str); 12] = [
    ("call", "callTask"),
    ("for", "forTask"),
    ("do", "doTask"),
    ("emit", "emitTask"),
    ("fork", "forkTask"),
    ("listen", "listenTask"),
    ("raise", "raiseTask"),
    ("run", "runTask"),
    ("set", "setTask"),
    ("switch", "switchTask"),
    ("try", "tryTask"),
    ("wait", "waitTask"),
];

/// Something that keeps a definition from being taken.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    /// JSON pointer of the part that is wrong.
    pub pointer: String,
    /// Line and column of it in the text, from 1.
    pub place: Option<Place>,
    /// True when the DSL has it and this program does not.
    pub unsupported: bool,
    /// What is wrong with it.
    pub reason: String,
}

/// Reads a definition from YAML or JSON.
pub fn parse(text: &str) -> Result<Definition, Vec<Problem>> {
    let document = Document::read(text)
        .map_err(|(place, reason)| vec![Problem { pointer: String::new(), place, unsupported: false, reason }])?;
    let mut walk = Walk { problems: Vec::new(), tasks: 0 };
    walk.definition(&document.value);
    let mut problems = walk.problems;
    if problems.is_empty() {
        match build::definition(document.value.clone(), false) {
            Ok(definition) => return Ok(definition),
            Err(wrong) => problems = wrong,
        }
    }
    problems.truncate(PROBLEMS_MAX);
    for problem in &mut problems {
        problem.place = document.place(&problem.pointer);
    }
    Err(problems)
}

/// Reads a definition that [`parse`] has taken before: quickly, since its expressions are compiled when they are needed.
pub fn load(text: &str) -> Result<Definition, Vec<Problem>> {
    let document = Document::read(text)
        .map_err(|(place, reason)| vec![Problem { pointer: String::new(), place, unsupported: false, reason }])?;
    build::definition(document.value, true)
}

/// The problems as an answer: `unsupported_construct` when the DSL has what we do not, else `invalid_input`.
pub fn refused(problems: &[Problem]) -> Error {
    let code = if problems.iter().any(|one| one.unsupported) { "unsupported_construct" } else { "invalid_input" };
    let field = |one: &Problem| {
        let place = one.place.map_or_else(String::new, |(line, column)| format!("line {line}, column {column}: "));
        let field = if one.pointer.is_empty() { "body".to_owned() } else { one.pointer.clone() };
        FieldError { field, reason: format!("{place}{}", one.reason) }
    };
    Error::Invalid { code, fields: problems.iter().map(field).collect() }
}

/// The whole schema, and that of each kind of task, in which inner tasks are only objects: they are looked at one by one.
static SCHEMAS: LazyLock<HashMap<String, Schema>> = LazyLock::new(|| {
    let mut whole: Value = serde_json::from_str(SCHEMA).expect("the schema in this binary is JSON");
    whole["$defs"]["task"] = json!({ "type": "object" });
    let defs = whole["$defs"].clone();
    let mut schemas = HashMap::new();
    for name in defs.as_object().into_iter().flat_map(|defs| defs.keys()) {
        let one = json!({ "$ref": format!("#/$defs/{name}"), "$defs": defs });
        schemas.insert(name.clone(), Schema::new(one).expect("the schema in this binary is sound"));
    }
    schemas.insert("workflow".to_owned(), Schema::new(whole).expect("the schema in this binary is sound"));
    schemas
});

/// Holds `value` against a definition of the schema; gives what does not fit, with pointers.
pub(super) fn against(name: &str, pointer: &str, value: &Value) -> Vec<Problem> {
    let Some(schema) = SCHEMAS.get(name) else { return Vec::new() };
    let Err(Error::Invalid { fields, .. }) = schema.check("", "the DSL", value) else { return Vec::new() };
    let problem = |field: FieldError| Problem {
        pointer: format!("{pointer}{}", field.field),
        place: None,
        unsupported: false,
        reason: field.reason,
    };
    fields.into_iter().map(problem).collect()
}

struct Walk {
    problems: Vec<Problem>,
    tasks: usize,
}

impl Walk {
    fn wrong(&mut self, pointer: String, unsupported: bool, reason: impl Into<String>) {
        self.problems.push(Problem { pointer, place: None, unsupported, reason: reason.into() });
    }

    /// Refuses `pointer/name` when it is there.
    fn lacks(&mut self, value: &Value, pointer: &str, name: &str, what: &str) {
        if value.get(name).is_some() {
            self.wrong(format!("{pointer}/{}", escaped(name)), true, format!("{what} is not supported."));
        }
    }

    fn definition(&mut self, value: &Value) {
        let uses = &value["use"];
        self.lacks(uses, "/use", "extensions", "use.extensions");
        self.lacks(uses, "/use", "catalogs", "use.catalogs");
        for (name, policy) in entries(uses, "authentications") {
            self.authentication(policy, &format!("/use/authentications/{}", escaped(name)));
        }
        if let Some(mode) = value["evaluate"].get("mode").filter(|mode| **mode != "strict") {
            self.wrong(
                "/evaluate/mode".to_owned(),
                true,
                format!("expressions in mode {mode} are not supported; only strict."),
            );
        }
        if let Some(language) = value["evaluate"].get("language").filter(|language| **language != "jq") {
            self.wrong(
                "/evaluate/language".to_owned(),
                true,
                format!("expressions in {language} are not supported; only jq."),
            );
        }
        self.shapes(value, "");
        if let Some(on) = value["schedule"].get("on") {
            self.lacks(on, "/schedule/on", "until", "schedule.on with until");
        }
        let kinds = value["schedule"].as_object().into_iter().flat_map(|kinds| kinds.keys());
        let kinds: Vec<&str> = kinds.map(String::as_str).filter(|kind| SCHEDULES.contains(kind)).collect();
        if kinds.len() > 1 {
            self.wrong("/schedule".to_owned(), true, format!("{} together are not supported.", kinds.join(" and ")));
        }
        if !self.problems.is_empty() {
            return self.deeper(value);
        }
        self.problems = against("workflow", "", value);
        self.deeper(value);
    }

    fn deeper(&mut self, value: &Value) {
        self.list(&value["do"], "/do", 0);
        for (name, task) in entries(&value["use"], "functions") {
            self.task(task, &format!("/use/functions/{}", escaped(name)), 0);
        }
    }

    fn list(&mut self, list: &Value, pointer: &str, depth: usize) {
        for (n, item) in list.as_array().into_iter().flatten().enumerate() {
            for (name, task) in item.as_object().into_iter().flatten() {
                self.task(task, &format!("{pointer}/{n}/{}", escaped(name)), depth + 1);
            }
        }
    }

    fn shapes(&mut self, value: &Value, pointer: &str) {
        for name in ["input", "output", "export"] {
            let Some(schema) = value[name].get("schema") else { continue };
            let at = format!("{pointer}/{name}/schema");
            self.lacks(schema, &at, "resource", "a schema from elsewhere");
            if let Some(format) = schema.get("format").and_then(Value::as_str)
                && format.split(':').next() != Some("json")
            {
                self.wrong(
                    format!("{at}/format"),
                    true,
                    format!("schemas of format '{format}' are not supported; only json."),
                );
            }
        }
    }

    fn authentication(&mut self, policy: &Value, pointer: &str) {
        for kind in ["digest", "oauth2", "oidc", "certificate"] {
            self.lacks(policy, pointer, kind, &format!("authentication by {kind}"));
        }
    }

    fn task(&mut self, task: &Value, pointer: &str, depth: usize) {
        self.tasks += 1;
        if depth > DEPTH_MAX || self.tasks > TASKS_MAX {
            if self.tasks <= TASKS_MAX + 1 {
                let reason = format!("tasks are nested deeper than {DEPTH_MAX}, or there are more than {TASKS_MAX}.");
                self.wrong(pointer.to_owned(), false, reason);
            }
            return;
        }
        let Some((word, schema)) = KINDS.iter().find(|(word, _)| task.get(word).is_some()) else {
            let words: Vec<&str> = KINDS.iter().map(|(word, _)| *word).collect();
            return self.wrong(pointer.to_owned(), false, format!("is no task: it has none of {}.", words.join(", ")));
        };
        let before = self.problems.len();
        self.shapes(task, pointer);
        self.unsupported(word, task, pointer);
        if self.problems.len() == before {
            self.problems.extend(against(schema, pointer, task));
            self.problems.extend(call_arguments(task, pointer));
        }
        for inner in ["do", "try"] {
            self.list(&task[inner], &format!("{pointer}/{inner}"), depth);
        }
        self.list(&task["catch"]["do"], &format!("{pointer}/catch/do"), depth);
        self.list(&task["fork"]["branches"], &format!("{pointer}/fork/branches"), depth);
        self.list(&task["foreach"]["do"], &format!("{pointer}/foreach/do"), depth);
    }

    fn unsupported(&mut self, word: &str, task: &Value, pointer: &str) {
        match word {
            "call" => {
                let Some(called) = task["call"].as_str() else { return };
                let at = format!("{pointer}/call");
                if ["asyncapi", "grpc", "a2a", "mcp"].contains(&called) {
                    self.wrong(at, true, format!("call: {called} is not supported."));
                } else if called.contains('@') || called.contains("://") {
                    self.wrong(
                        at,
                        true,
                        format!("call: {called} is not supported: functions come from use.functions only."),
                    );
                }
                let with = &task["with"];
                self.authentication(
                    &with["endpoint"]["authentication"],
                    &format!("{pointer}/with/endpoint/authentication"),
                );
                self.authentication(&with["authentication"], &format!("{pointer}/with/authentication"));
            }
            "run" => {
                let run = &task["run"];
                let at = format!("{pointer}/run");
                self.lacks(run, &at, "container", "run: container");
                self.lacks(&run["script"], &format!("{at}/script"), "source", "a script from elsewhere");
                let is_process = run.get("script").or(run.get("shell")).is_some();
                if is_process && run["await"] == false {
                    self.wrong(format!("{at}/await"), true, "a process that is not awaited is not supported.");
                }
                let language = run["script"].get("language").and_then(Value::as_str);
                if let Some(language) = language.filter(|known| !LANGUAGES.contains(known)) {
                    let reason = format!("scripts in {language} are not supported; only js and python.");
                    self.wrong(format!("{at}/script/language"), true, reason);
                }
                for kind in ["script", "shell"].into_iter().filter(|kind| run[kind]["arguments"].is_object()) {
                    let reason = "arguments by name are not supported; write a list.";
                    self.wrong(format!("{at}/{kind}/arguments"), true, reason);
                }
            }
            _ => {}
        }
    }
}

/// What the arguments of a call break.
fn call_arguments(task: &Value, pointer: &str) -> Vec<Problem> {
    let schema = match task["call"].as_str() {
        Some("http") => "httpCall",
        Some("openapi") => "openapiCall",
        Some("aman.skill") => "skillCall",
        Some("aman.approve") => "approveCall",
        Some("aman.tool") => "toolCall",
        Some("aman.agent") => "agentCall",
        _ => return Vec::new(),
    };
    against(schema, &format!("{pointer}/with"), &task["with"])
}

fn entries<'v>(value: &'v Value, name: &str) -> impl Iterator<Item = (&'v String, &'v Value)> {
    value[name].as_object().into_iter().flatten()
}
