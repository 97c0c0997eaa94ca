//! `call: openapi`: finds an operation in an OpenAPI 3 or Swagger 2 document and makes a request of it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value};

use super::Inner;
use super::actions::Job;
use super::http::{self, Wanted, authorize, body_of, encoded, text};
use crate::egress::{Ask, Method, Url};
use crate::workflow::{Call, Fault, Kind};

/// Bytes of a document.
const BYTES_MAX: usize = 4 << 20;
const TIME_MAX: Duration = Duration::from_secs(30);
const FORM: &str = "application/x-www-form-urlencoded";
const METHODS: [&str; 8] = ["get", "put", "post", "delete", "options", "head", "patch", "trace"];

/// Does the call of a task.
pub(super) async fn call(inner: &Arc<Inner>, job: &Job) -> Result<Value, Fault> {
    let Kind::Call(Call::OpenApi(openapi)) = &job.definition.tasks[job.task].kind else {
        return Err(Fault::runtime("is no OpenAPI call"));
    };
    let args = &job.args["openapi"];
    let place = args["document"].as_str().unwrap_or_default();
    let document = fetch(inner, place, &args["document_authorization"]).await?;
    let operation = args["operation"].as_str().unwrap_or_default();
    let mut wanted = request(&document, place, operation, &args["parameters"])?;
    authorize(&mut wanted.headers, &args["authorization"]);
    (wanted.redirect, wanted.output) = (openapi.redirect, openapi.output);
    http::send(inner, wanted, &job.key).await
}

async fn fetch(inner: &Arc<Inner>, place: &str, authorization: &Value) -> Result<Value, Fault> {
    let mut headers = Vec::new();
    authorize(&mut headers, authorization);
    let url = Url::parse(place).map_err(|why| Fault::configuration(format!("the address of the document {why}")))?;
    let ask = Ask {
        method: Method::GET,
        url,
        headers,
        body: Bytes::new(),
        bytes_max: BYTES_MAX,
        time_max: TIME_MAX,
        redirects_max: 5,
    };
    let heard = inner.egress.ask(ask).await.map_err(|error| {
        // Reading a document changes nothing.
        Fault { unknown: false, ..http::fault(error) }
    })?;
    if !heard.is_success() {
        let title = crate::egress::status_text(heard.status);
        return Err(Fault::new("communication", i64::from(heard.status), &title, "the document could not be read"));
    }
    let wrong = |why: String| Fault::configuration(format!("the document cannot be read: {why}"));
    let body = String::from_utf8(heard.body.to_vec()).map_err(|error| wrong(error.to_string()))?;
    let reading = tokio::task::spawn_blocking(move || crate::workflow::read(&body));
    reading.await.map_err(|error| wrong(error.to_string()))?.map_err(wrong)
}

/// The request that an operation and its parameters make.
fn request(document: &Value, place: &str, operation: &str, given: &Value) -> Result<Wanted, Fault> {
    let (path, method, item, found) = find(document, operation)
        .ok_or_else(|| Fault::configuration(format!("the document has no operation '{operation}'")))?;
    let mut given = match given {
        Value::Object(given) => given.clone(),
        Value::Null => Map::new(),
        _ => return Err(Fault::expression("with.parameters is no object")),
    };
    let (mut path, mut query, mut headers, mut body) = (path.to_owned(), Vec::new(), Vec::new(), Value::Null);
    let mut form = Map::new();
    let shared = item["parameters"].as_array().into_iter().flatten();
    for parameter in shared.chain(found["parameters"].as_array().into_iter().flatten()) {
        let parameter = resolve(document, parameter);
        let name = parameter["name"].as_str().unwrap_or_default();
        let Some(value) = given.remove(name) else {
            if parameter["required"] == true {
                return Err(Fault::validation(format!("the parameter '{name}' is missing")));
            }
            continue;
        };
        match parameter["in"].as_str() {
            Some("path") => path = path.replace(&format!("{{{name}}}"), &encoded(&text(&value))),
            Some("header") => headers.push((name.to_owned(), text(&value))),
            Some("cookie") => headers.push(("cookie".to_owned(), format!("{name}={}", text(&value)))),
            Some("body") => body = value,
            Some("formData") => drop(form.insert(name.to_owned(), value)),
            _ => query.extend(pairs(name, &value)),
        }
    }
    if found.get("requestBody").is_some() && !given.is_empty() {
        // What is no parameter is the body: as `body`, or field by field.
        body =
            if given.len() == 1 && given.contains_key("body") { given["body"].clone() } else { Value::Object(given) };
        given = Map::new();
    }
    if let Some(name) = given.keys().next() {
        return Err(Fault::validation(format!("the operation has no parameter '{name}'")));
    }
    let base = server(document, item, found, place)?;
    let mut url = format!("{}{path}", base.trim_end_matches('/'));
    if !query.is_empty() {
        url = format!("{url}?{}", query.join("&"));
    }
    let mut kind = media_type(document, found);
    if !form.is_empty() {
        (kind, body) = (Some(FORM), Value::Object(form));
    }
    let body = content(&body, kind, &mut headers)?;
    let output = crate::workflow::Output::Content;
    Ok(Wanted { method: method.to_ascii_uppercase(), url, headers, body, redirect: false, output })
}

/// A parameter as it stands in a query or a form; a list is one pair for each of its items.
fn pairs(name: &str, value: &Value) -> Vec<String> {
    let pair = |value: &Value| format!("{}={}", encoded(name), encoded(&text(value)));
    match value {
        Value::Array(all) => all.iter().map(pair).collect(),
        one => vec![pair(one)],
    }
}

/// The bytes of a body; `kind` is what it must be when it may not be JSON.
fn content(body: &Value, kind: Option<&str>, headers: &mut Vec<(String, String)>) -> Result<Bytes, Fault> {
    let says = |kind: &str| ("content-type".to_owned(), kind.to_owned());
    match (kind, body) {
        (None, _) | (_, Value::Null) => {}
        (Some(FORM), Value::Object(fields)) => {
            headers.push(says(FORM));
            let all: Vec<String> = fields.iter().flat_map(|(name, value)| pairs(name, value)).collect();
            return Ok(Bytes::from(all.join("&")));
        }
        (Some(kind), Value::String(_)) => headers.push(says(kind)),
        (Some(kind), _) => {
            return Err(Fault::configuration(format!("the operation takes {kind}; give it as the text 'body'")));
        }
    }
    Ok(body_of(body, headers))
}

/// What the body of an operation must be when it may not be JSON.
fn media_type<'d>(document: &'d Value, operation: &'d Value) -> Option<&'d str> {
    let body = resolve(document, operation.get("requestBody")?);
    let kinds: Vec<&str> = body["content"].as_object()?.keys().map(String::as_str).collect();
    let json = |kind: &&str| kind.contains("json") || kind.ends_with("/*");
    if kinds.iter().any(json) {
        return None;
    }
    kinds.iter().find(|kind| **kind == FORM).or(kinds.first()).copied()
}

fn find<'d>(document: &'d Value, operation: &str) -> Option<(&'d str, &'static str, &'d Value, &'d Value)> {
    for (path, item) in document["paths"].as_object()? {
        for method in METHODS {
            if item[method]["operationId"] == operation {
                return Some((path, method, item, &item[method]));
            }
        }
    }
    None
}

/// Follows a reference within the document.
fn resolve<'d>(document: &'d Value, value: &'d Value) -> &'d Value {
    let pointer = value["$ref"].as_str().and_then(|text| text.strip_prefix('#'));
    pointer.and_then(|pointer| document.pointer(pointer)).unwrap_or(value)
}

/// Where the operation is: the first server, or host and base path; what is relative is so to the document.
fn server(document: &Value, item: &Value, operation: &Value, place: &str) -> Result<String, Fault> {
    let wrong = |why: String| Fault::configuration(format!("the server of the document {why}"));
    let document_url = Url::parse(place).map_err(wrong)?;
    if let Some(host) = document["host"].as_str() {
        let schemes =
            document["schemes"].as_array().into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>();
        let own = if document_url.is_tls() { "https" } else { "http" };
        let scheme = if schemes.is_empty() || schemes.contains(&own) { own } else { schemes[0] };
        return Ok(format!("{scheme}://{host}{}", document["basePath"].as_str().unwrap_or("")));
    }
    let first = [operation, item, document].into_iter().find_map(|level| level["servers"][0].as_object());
    let Some(first) = first else {
        let base = document["basePath"].as_str().unwrap_or("/");
        return document_url.join(base).map(|url| url.to_string()).map_err(wrong);
    };
    let mut url = first.get("url").and_then(Value::as_str).unwrap_or("/").to_owned();
    for (name, variable) in first.get("variables").and_then(Value::as_object).into_iter().flatten() {
        url = url.replace(&format!("{{{name}}}"), variable["default"].as_str().unwrap_or_default());
    }
    document_url.join(&url).map(|url| url.to_string()).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn operations_become_requests() {
        let three = json!({
            "openapi": "3.1.0",
            "servers": [{ "url": "/{v}/api", "variables": { "v": { "default": "v1" } } }],
            "components": { "parameters": { "id": { "name": "id", "in": "path", "required": true } } },
            "paths": { "/pets/{id}": {
                "parameters": [{ "$ref": "#/components/parameters/id" }],
                "put": { "operationId": "change", "requestBody": {}, "parameters": [{ "name": "dry", "in": "query" }, { "name": "x-a", "in": "header" }] },
            } },
        });
        let place = "https://h:1/docs/openapi.json";
        let wanted = request(&three, place, "change", &json!({ "id": "a b", "dry": true, "x-a": 1, "name": "Rex" }))
            .expect("good");
        assert_eq!((wanted.method.as_str(), wanted.url.as_str()), ("PUT", "https://h:1/v1/api/pets/a%20b?dry=true"));
        assert_eq!(wanted.body, Bytes::from("{\"name\":\"Rex\"}"));
        assert!(wanted.headers.contains(&("x-a".to_owned(), "1".to_owned())));
        let two = json!({
            "swagger": "2.0", "host": "p:9", "basePath": "/v2", "schemes": ["http"],
            "paths": { "/pet/findByStatus": { "get": { "operationId": "find", "parameters": [{ "name": "status", "in": "query", "required": true }] } } },
        });
        let wanted = request(&two, place, "find", &json!({ "status": ["sold", "new"] })).expect("good");
        assert_eq!(wanted.url, "http://p:9/v2/pet/findByStatus?status=sold&status=new");
        let forms = json!({
            "host": "p", "schemes": ["http"], "paths": {
                "/two": { "post": { "operationId": "two", "parameters": [{ "name": "name", "in": "formData" }, { "name": "n", "in": "formData" }] } },
                "/three": { "post": { "operationId": "three", "requestBody": { "content": { "application/x-www-form-urlencoded": {} } } } },
                "/text": { "post": { "operationId": "text", "requestBody": { "content": { "text/csv": {} } } } },
            },
        });
        for (operation, given, kind, body) in [
            ("two", json!({ "name": "a b", "n": 1 }), FORM, "n=1&name=a%20b"),
            ("three", json!({ "tags": ["x", "y"] }), FORM, "tags=x&tags=y"),
            ("text", json!({ "body": "1,2" }), "text/csv", "1,2"),
        ] {
            let wanted = request(&forms, place, operation, &given).expect(operation);
            assert_eq!((wanted.body, &wanted.headers[0].1[..]), (Bytes::from(body), kind), "{operation}");
        }
        assert!(request(&forms, place, "text", &json!({ "a": 1 })).is_err(), "what a CSV is made of, nobody said");
        for (operation, given, said) in [
            ("none", json!({}), "no operation"),
            ("find", json!({}), "'status' is missing"),
            ("find", json!({ "status": 1, "x": 2 }), "no parameter 'x'"),
        ] {
            let fault = request(&two, place, operation, &given).err().expect(said);
            assert!(fault.detail.as_deref().unwrap_or_default().contains(said), "{fault:?}");
        }
    }
}
