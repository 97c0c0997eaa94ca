//! Event types with a JSON Schema: `<folder>/<type>.json` describes the data of the events of that type, and what does
//! not fit is refused. The only module that knows the schema language. References to other files are not followed.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

use jsonschema::error::ValidationErrorKind;
use jsonschema::{PatternOptions, ValidationError, Validator};
use serde_json::Value;

use crate::error::{Error, FieldError};
use crate::event::{self, Data};

/// Largest schema, in bytes.
const BYTES_MAX: u64 = 256 << 10;
/// Most schemas.
const COUNT_MAX: usize = 1000;
/// Faults of one event that are told.
const FAULTS_MAX: usize = 20;
/// What a pattern of a schema may cost, in bytes of its compiled form.
const PATTERN_BYTES_MAX: usize = 1 << 20;

/// A schema, ready to check with, or as soon as it is needed.
pub struct Schema {
    schema: Value,
    validator: OnceLock<Result<Validator, String>>,
}

impl Schema {
    /// Makes a schema ready; the error says what is wrong with it.
    pub fn new(schema: Value) -> Result<Schema, String> {
        let validator = validator(&schema)?;
        Ok(Schema { schema, validator: OnceLock::from(Ok(validator)) })
    }

    /// A schema that [`Schema::new`] has taken before. It is made ready when it is first checked with: a ready one takes some
    /// hundred times the room of its text.
    pub fn known(schema: Value) -> Schema {
        Schema { schema, validator: OnceLock::new() }
    }

    /// The schema itself.
    pub fn value(&self) -> &Value {
        &self.schema
    }

    /// Checks a value; each fault is named as `name/path`, without the value itself. `what` says whose schema it is.
    pub fn check(&self, name: &str, what: &str, value: &Value) -> Result<(), Error> {
        let validator = self.validator.get_or_init(|| validator(&self.schema));
        let validator =
            validator.as_ref().map_err(|why| Error::invalid(name, format!("cannot be checked: {what} {why}")))?;
        let faults: Vec<FieldError> = validator
            .iter_errors(value)
            .flat_map(|fault| nearest(&fault))
            .take(FAULTS_MAX)
            .map(|(path, why)| FieldError {
                field: format!("{name}{path}"),
                reason: format!("does not fit {what}: {why}."),
            })
            .collect();
        if faults.is_empty() { Ok(()) } else { Err(Error::Invalid { code: "invalid_input", fields: faults }) }
    }
}

/// What is wrong, and where. Of a value that none of several alternatives takes: the faults of the one that it comes nearest
/// to, which is the one that takes it deepest, lacks nothing, and has the fewest faults.
fn nearest(fault: &ValidationError<'_>) -> Vec<(String, String)> {
    let here = fault.instance_path().as_str();
    let (ValidationErrorKind::AnyOf { context } | ValidationErrorKind::OneOfNotValid { context }) = fault.kind() else {
        return vec![(here.to_owned(), fault.masked().to_string())];
    };
    let at_here = |one: &&ValidationError<'_>| one.instance_path().as_str() == here;
    let has_shape = |faults: &&Vec<ValidationError<'static>>| {
        !faults.iter().filter(at_here).any(|one| matches!(one.kind(), ValidationErrorKind::Type { .. }))
    };
    let missing = |faults: &[ValidationError<'static>]| -> Vec<String> {
        let name = |one: &ValidationError<'_>| match one.kind() {
            ValidationErrorKind::Required { property } => Some(property.to_string()),
            _ => None,
        };
        faults.iter().filter(at_here).filter_map(name).collect()
    };
    let depth = |faults: &[ValidationError<'static>]| {
        faults.iter().map(|one| one.instance_path().as_str().matches('/').count()).min().unwrap_or(0)
    };
    let rank = |faults: &[ValidationError<'static>]| {
        (std::cmp::Reverse(depth(faults)), !missing(faults).is_empty(), faults.len())
    };
    let fitting: Vec<&Vec<ValidationError<'static>>> = context.iter().filter(has_shape).collect();
    let Some(best) = fitting.iter().map(|faults| rank(faults)).min() else {
        let mut all: Vec<String> = context.iter().flatten().map(|one| one.masked().to_string()).collect();
        all.dedup();
        return vec![(here.to_owned(), all.join(", and "))];
    };
    let alike: Vec<_> = fitting.into_iter().filter(|faults| rank(faults) == best).collect();
    let names: Vec<String> = alike.iter().flat_map(|faults| missing(faults)).collect();
    if alike.len() > 1 && !names.is_empty() {
        return vec![(here.to_owned(), format!("it has none of {}", names.join(", ")))];
    }
    alike.first().into_iter().flat_map(|faults| faults.iter()).flat_map(nearest).collect()
}

fn validator(schema: &Value) -> Result<Validator, String> {
    // This engine has no back-tracking: no text makes it slow.
    let patterns = PatternOptions::regex().size_limit(PATTERN_BYTES_MAX);
    let options = jsonschema::options().with_pattern_options(patterns).should_validate_formats(true);
    options.build(schema).map_err(|error| format!("is no JSON Schema: {error}."))
}

/// Types and their schemas; made anew when the folder is read again.
#[derive(Default)]
pub struct Registry {
    entries: BTreeMap<String, Schema>,
}

impl Registry {
    /// Reads every schema of `folder`, which need not exist, and says which cannot be used and why.
    pub fn load(folder: &Path) -> (Registry, Vec<String>) {
        let (mut registry, mut faults) = (Registry::default(), Vec::new());
        let Ok(listed) = std::fs::read_dir(folder) else { return (registry, faults) };
        let mut files: Vec<_> = listed.flatten().map(|entry| entry.path()).collect();
        files.retain(|file| file.extension().is_some_and(|extension| extension == "json"));
        files.sort();
        for file in &files {
            let added = if registry.entries.len() < COUNT_MAX {
                registry.add_file(file)
            } else {
                Err(format!("is left out: there are more than {COUNT_MAX}."))
            };
            if let Err(reason) = added {
                faults.push(format!("The schema {} {reason}", file.display()));
            }
        }
        (registry, faults)
    }

    fn add_file(&mut self, file: &Path) -> Result<(), String> {
        let kind = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        event::check_type(&kind).map_err(|reason| format!("is named after no event type: {reason}"))?;
        let size = std::fs::metadata(file).map_err(|error| format!("cannot be read: {error}."))?.len();
        if size > BYTES_MAX {
            return Err(format!("has {size} bytes; at most {BYTES_MAX}."));
        }
        let text = std::fs::read_to_string(file).map_err(|error| format!("cannot be read: {error}."))?;
        let schema: Value = serde_json::from_str(&text).map_err(|error| format!("is not JSON: {error}."))?;
        self.add(&kind, schema)
    }

    fn add(&mut self, kind: &str, schema: Value) -> Result<(), String> {
        self.entries.insert(kind.to_owned(), Schema::new(schema)?);
        Ok(())
    }

    /// The types that have a schema, with it, by name.
    pub fn all(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(kind, entry)| (kind.as_str(), &entry.schema))
    }

    /// Checks the data of an event of type `kind`; each fault is named as `data/path`, without the value itself.
    pub fn check(&self, kind: &str, data: &Data) -> Result<(), Error> {
        let Some(entry) = self.entries.get(kind) else { return Ok(()) };
        entry.check("data", &format!("the schema of {kind}"), &data.to_value())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn registry(schema: Value) -> Result<Registry, String> {
        let mut registry = Registry::default();
        registry.add("order.created", schema).map(|()| registry)
    }

    #[test]
    fn of_alternatives_the_nearest_is_told() {
        let shell = json!({ "type": "object", "required": ["shell"], "additionalProperties": false,
            "properties": { "shell": { "type": "object", "required": ["command"], "additionalProperties": false, "properties": { "command": {} } } } });
        let script = json!({ "type": "object", "required": ["script"], "additionalProperties": false, "properties": { "script": { "type": "object" } } });
        let schema = Schema::new(json!({ "oneOf": [shell, script, { "type": "string" }] })).expect("a schema");
        for (value, path, said) in [
            (json!({ "shell": { "command": 1, "folder": 2 } }), "x/shell", "folder"),
            (json!({ "shell": {} }), "x/shell", "\"command\" is a required"),
            (json!({ "script": {}, "more": 1 }), "x", "more"),
            (json!({ "shel": {} }), "x", "none of \"shell\", \"script\""),
            (json!(3), "x", "\"object\", and value is not of type \"string\""),
        ] {
            let Err(Error::Invalid { fields, .. }) = schema.check("x", "it", &value) else { panic!("taken: {value}") };
            assert_eq!(fields[0].field, path, "{fields:?}");
            assert!(fields[0].reason.contains(said) && fields.len() == 1, "{fields:?}");
        }
        assert!(schema.check("x", "it", &json!("y")).is_ok());
    }

    #[test]
    fn faults_are_named_by_path() {
        let registry = registry(json!({
            "type": "object",
            "required": ["amount"],
            "properties": {
                "amount": { "type": "number", "minimum": 0 },
                "lines": { "type": "array", "items": { "properties": { "sku": { "type": "string", "pattern": "^[A-Z]+$" } } } },
            },
        }))
        .expect("a schema");
        let check = |data: Value| match registry.check("order.created", &Data::of_value(&data)) {
            Ok(()) => Vec::new(),
            Err(Error::Invalid { fields, .. }) => fields.into_iter().map(|fault| fault.field).collect(),
            Err(other) => panic!("{other}"),
        };
        assert_eq!(check(json!({ "amount": 1 })), Vec::<String>::new());
        assert_eq!(check(json!({})), ["data"]);
        assert_eq!(check(json!({ "amount": -1 })), ["data/amount"]);
        assert_eq!(check(json!({ "amount": 1, "lines": [{ "sku": "A" }, { "sku": "a" }] })), ["data/lines/1/sku"]);
        let fault = registry.check("order.created", &Data::of_value(&json!({ "amount": "private" }))).expect_err("bad");
        assert!(!fault.to_string().contains("private"), "{fault}");
        assert!(registry.check("other", &Data::None).is_ok());
        assert!(registry.check("order.created", &Data::None).is_err());
    }

    #[test]
    fn schemas_are_checked_themselves() {
        assert!(registry(json!({ "type": "nothing" })).is_err());
        assert!(registry(json!({ "$ref": "https://example.org/schema.json" })).is_err());
        assert!(registry(json!({ "$ref": "file:///etc/passwd" })).is_err());
        assert!(registry(json!({ "pattern": "(a+)+\\1" })).is_err());
    }
}
