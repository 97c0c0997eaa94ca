//! A bridge to Home Assistant over its REST interface: changed states become events, its services a route and a tool.
//! The access token is put in by the host; this plugin never holds it.

mod change;

use std::collections::BTreeMap;

use aman_plugin::{
    Caller, Error, NewEvent, Polled, Request, Response, Result, Routes, Source, Tools, Value, config, export, http,
    json, kv, setting,
};

use crate::change::{Known, State, Wanted, changes};

/// Where the states of the last poll lie.
const KNOWN: &str = "states";
/// Events of one poll; the host takes 1,000.
const EVENTS_MAX: usize = 900;

struct Home;

export!(Home: Source, Routes, Tools);

impl Source for Home {
    fn poll(_id: &str, _cursor: Option<String>) -> Result<Polled> {
        let wanted = Wanted::parse(&config::get("entities").unwrap_or_default());
        let states: Vec<State> = http::get(address("/api/states")?).send()?.ok()?.json()?;
        let before: Option<BTreeMap<String, Known>> = kv::get_json(KNOWN)?;
        let found = changes(before.as_ref(), states, &wanted, EVENTS_MAX);
        if before.as_ref() != Some(&found.known) {
            kv::set_json(KNOWN, &found.known)?;
        }
        let polled = Polled::new(found.changes.iter().map(event).collect::<Result<_>>()?);
        let every = config::get("every_seconds").and_then(|text| text.trim().parse::<u64>().ok());
        Ok(match (found.more, every) {
            (true, _) => polled.next_ms(0),
            (false, Some(seconds)) => polled.next_ms(seconds.max(1).saturating_mul(1000)),
            (false, None) => polled,
        })
    }
}

fn event((before, now): &(Option<String>, State)) -> Result<NewEvent> {
    let data = json!({
        "entity": now.entity_id, "from": before, "to": now.state,
        "attributes": now.attributes, "changed": now.last_changed,
    });
    let event = NewEvent::new("home.state.changed").json(&data)?;
    Ok(event.subject(&now.entity_id).partition_key(&now.entity_id))
}

impl Routes for Home {
    fn handle(request: Request) -> Result<Response> {
        match request.target() {
            ("GET", "/home-assistant/states") => {
                let wanted = Wanted::parse(&config::get("entities").unwrap_or_default());
                let mut states: Vec<State> = http::get(address("/api/states")?).send()?.ok()?.json()?;
                states.retain(|state| wanted.has(&state.entity_id));
                Response::json(&json!({ "items": states }))
            }
            ("GET", "/home-assistant/states/{entity}") => Response::json(&state(request.param("entity")?)?),
            ("POST", "/home-assistant/services/{domain}/{service}") => {
                let data = if request.body.is_empty() { json!({}) } else { request.body_json()? };
                let changed = call(request.param("domain")?, request.param("service")?, &data)?;
                Response::json(&json!({ "changed": changed }))
            }
            _ => Err(request.unknown()),
        }
    }
}

impl Tools for Home {
    fn call(name: &str, input: Value, _caller: Caller) -> Result<Value> {
        let text = |field: &str| input[field].as_str().ok_or_else(|| Error::invalid(field, "must be a text."));
        match name {
            "home_call_service" => {
                let data = if input["data"].is_null() { json!({}) } else { input["data"].clone() };
                Ok(json!({ "changed": call(text("domain")?, text("service")?, &data)? }))
            }
            "home_state" => Ok(json!(state(text("entity")?)?)),
            _ => Err(Error::not_found(name)),
        }
    }
}

fn state(entity: &str) -> Result<State> {
    let (domain, name) = entity.split_once('.').unwrap_or((entity, ""));
    slug("entity", domain)?;
    slug("entity", name)?;
    http::get(address(&format!("/api/states/{entity}"))?).send()?.ok()?.json()
}

/// Calls a service; the answer is the states that it changed.
fn call(domain: &str, service: &str, data: &Value) -> Result<Value> {
    slug("domain", domain)?;
    slug("service", service)?;
    if !data.is_object() {
        return Err(Error::invalid("data", "must be a JSON object."));
    }
    http::post(address(&format!("/api/services/{domain}/{service}"))?).json(data)?.send()?.ok()?.json()
}

/// What stands in an address is made of letters that mean nothing there.
fn slug(field: &str, text: &str) -> Result<()> {
    let good = !text.is_empty()
        && text.len() <= 200
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if good {
        Ok(())
    } else {
        Err(Error::invalid(field, "must have lower-case letters, digits and '_', such as light.kitchen or turn_on."))
    }
}

fn address(path: &str) -> Result<String> {
    Ok(format!("{}{path}", setting("url")?.trim_end_matches('/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_get_into_an_address() {
        for good in ["light", "turn_on", "a1"] {
            assert_eq!(slug("x", good), Ok(()));
        }
        for bad in ["", "../config", "a/b", "a?b", "A", "a b", "\u{e9}"] {
            assert!(slug("x", bad).is_err(), "{bad}");
        }
    }
}
