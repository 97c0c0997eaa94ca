//! What came in as events: by the source's jq, or as it is.

use serde_json::{Map, Value};

use crate::config::sources::Mapping;
use crate::error::Error;
use crate::event::{Data, NewEvent, Priority, read_json};
use crate::expr::Limits;

/// What a mapped value may say.
const KEYS: [&str; 8] = ["type", "data", "subject", "time", "id", "dedup_key", "partition_key", "priority"];
/// Events that one input may become.
const EVENTS_MAX: usize = 1000;

/// What all events of a source have in common.
#[derive(Debug, Clone)]
pub struct Frame {
    /// CloudEvents `source`.
    pub source: String,
    /// Type of events that name none.
    pub kind: String,
    /// The rest.
    pub mapping: Mapping,
}

/// Bytes as a mapping sees them: JSON if they are that, else text.
pub fn shown(bytes: &[u8]) -> Value {
    read_json(bytes).unwrap_or_else(|_| String::from_utf8_lossy(bytes).into_owned().into())
}

/// Bytes as an event's data, with its media type where that is not JSON. `said` is what the sender calls them.
pub fn content(bytes: &[u8], said: Option<&str>) -> (Data, Option<String>) {
    match std::str::from_utf8(bytes) {
        _ if bytes.is_empty() => (Data::None, None),
        Ok(text) => match Data::json(text) {
            Ok(data) => (data, None),
            Err(_) => {
                let kind = said.filter(|kind| !kind.contains("json")).unwrap_or("text/plain");
                (Data::Text(text.to_owned()), Some(kind.to_owned()))
            }
        },
        Err(_) => (Data::Binary(bytes.to_vec()), Some(said.unwrap_or("application/octet-stream").to_owned())),
    }
}

impl Frame {
    /// Runs the source's jq over `input`; `None` without one. The error names `map` and what it made.
    pub async fn mapped(&self, input: impl FnOnce() -> Value) -> Result<Option<Vec<NewEvent>>, Error> {
        let Some(map) = self.mapping.map.clone() else { return Ok(None) };
        let input = input();
        let ran = tokio::task::spawn_blocking(move || map.run_value(&input, &Limits::transform())).await;
        let outputs = ran
            .map_err(Error::internal("mapping an event"))?
            .map_err(|error| Error::invalid("map", error.to_string()))?;
        let mut events = Vec::new();
        for output in outputs {
            let values = if let Value::Array(all) = output { all } else { vec![output] };
            for value in values {
                match value {
                    Value::Null | Value::Bool(false) => {}
                    Value::Object(fields) => events.push(self.told(fields)?),
                    _ => return Err(Error::invalid("map", "must give objects with type and data, or null.")),
                }
            }
        }
        if events.len() > EVENTS_MAX {
            return Err(Error::invalid("map", format!("gave more than {EVENTS_MAX} events.")));
        }
        Ok(Some(events))
    }

    /// A value that may say what event it is: then it has `type` or `data`, and nothing that events do not have.
    pub fn loose(&self, value: Value) -> Result<NewEvent, Error> {
        match value {
            Value::Object(fields)
                if (fields.contains_key("type") || fields.contains_key("data"))
                    && fields.keys().all(|key| KEYS.contains(&key.as_str())) =>
            {
                self.told(fields)
            }
            other => Ok(self.plain(Data::of_value(&other))),
        }
    }

    /// An event with this data and nothing else.
    pub fn plain(&self, data: Data) -> NewEvent {
        NewEvent { source: self.source.clone(), kind: self.kind.clone(), data, ..NewEvent::default() }
    }

    fn told(&self, mut fields: Map<String, Value>) -> Result<NewEvent, Error> {
        let mut text = |key: &str| match fields.remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(Value::Number(number)) if key != "type" && key != "time" => Ok(Some(number.to_string())),
            Some(_) => Err(Error::invalid("map", format!("gave '{key}' that is no text."))),
        };
        let kind = text("type")?.unwrap_or_else(|| self.kind.clone());
        let (subject, time, id) = (text("subject")?, text("time")?, text("id")?);
        let (dedup_key, partition_key, priority) = (text("dedup_key")?, text("partition_key")?, text("priority")?);
        let priority = match priority.as_deref().map(Priority::of_name) {
            None => Priority::Normal,
            Some(Some(priority)) => priority,
            Some(None) => return Err(Error::invalid("map", "gave a priority that is not low, normal or high.")),
        };
        let data = fields.remove("data").map_or(Data::None, |data| Data::of_value(&data));
        if let Some(key) = fields.keys().next() {
            let reason = format!("gave '{key}', which no event has. Known: {}.", KEYS.join(", "));
            return Err(Error::invalid("map", reason));
        }
        let event = NewEvent {
            id,
            kind,
            subject,
            time,
            dedup_key,
            partition_key,
            priority,
            data,
            source: self.source.clone(),
            ..NewEvent::default()
        };
        event.check()?;
        Ok(event)
    }
}
