//! Plugins: installed, agreed to, switched on and off, gone back, removed; their tools and pages.

use std::sync::Arc;

use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{self, HeaderValue};
use serde_json::{Value, json};

use super::body::{self, Body, Reply};
use super::problem::Problem;
use super::query::Query;
use super::{App, Call};
use crate::bus::StateWrite;
use crate::error::Error;
use crate::package;
use crate::plugins::{Asked, Audit, Installed};

/// The part of a form that holds the package.
const PART: &str = "plugin";
const PACKED: [&str; 4] =
    ["application/gzip", "application/x-gzip", "application/x-tar+gzip", "application/octet-stream"];
/// Pages have an origin of their own: they reach neither the daemon nor each other.
const PAGE_POLICY: HeaderValue = HeaderValue::from_static(
    "sandbox allow-scripts; default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
     font-src 'self'; connect-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
);

/// `GET /plugins`, by name.
pub(super) async fn list(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    let items = app.plugins.list();
    let items = items.iter().map(|plugin| with_listener(&app, &plugin.name, json!(plugin)));
    Query::read(&call, &["limit", "cursor"])?.page("plugins", items)
}

/// `GET /plugin/{name}`
pub(super) async fn show(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    shown(&app, &call).await
}

/// A plugin with how the listener of its own stands.
fn with_listener(app: &App, name: &str, mut shown: Value) -> Value {
    shown["listener"] = app.fronts.show(name, app.tuned.load().places.secure);
    shown
}

/// `POST /plugin/install`: the package as the body, or as the part `plugin` of a form.
pub(super) async fn install(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    let query = Query::read(&call, &["approve", "allow_unsigned", "allow_downgrade", "dry_run"])?;
    let asked = Asked {
        approve: query.flag("approve", false)?,
        allow_unsigned: query.flag("allow_unsigned", false)?,
        allow_downgrade: query.flag("allow_downgrade", false)?,
        dry_run: query.flag("dry_run", false)?,
    };
    let packed = packed(&mut call).await?;
    // Compiling takes minutes, and needs the unpacked files only.
    let packed = call.leave(packed);
    if asked.dry_run {
        call.draft.skip();
    }
    let (draft, again) = (call.draft.clone(), call.again.clone());
    let begin = {
        let draft = draft.clone();
        move |tx: &mut crate::store::Tx<'_>, name: &str| draft.begin(tx, name, json!({}))
    };
    let done = move |tx: &mut crate::store::Tx<'_>, installed: &Installed| {
        let detail = json!({
            "version": installed.version, "status": installed.status, "replaces": installed.replaces,
            "signed_by": installed.signed_by, "approved": asked.approve,
        });
        draft.record_with(tx, &installed.name, detail, None, Some(installed.digest.clone()))?;
        let answer = serde_json::to_value(installed).map_err(Error::internal("keeping an answer"))?;
        again.keep(tx, StatusCode::CREATED, Some(&location(&installed.name)), &answer)
    };
    let audit = Audit { begin: Box::new(begin), done: Box::new(done) };
    let installed = app.plugins.install(packed, asked, audit).await?;
    if asked.dry_run {
        return body::ok(&installed);
    }
    let mut reply = body::reply(StatusCode::CREATED, &installed)?;
    reply.headers.extend(HeaderValue::try_from(location(&installed.name)).map(|value| (header::LOCATION, value)));
    Ok(reply)
}

fn location(name: &str) -> String {
    format!("/plugin/{name}")
}

/// The package out of a request.
async fn packed(call: &mut Call) -> Result<Bytes, Problem> {
    let essence = body::media_type(&call.headers)?;
    match essence.as_deref() {
        Some("multipart/form-data") => {
            let kind = call.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
            let boundary = boundary(kind).ok_or_else(|| Error::invalid("Content-Type", "names no usable boundary."))?;
            let bytes = call.bytes().await?;
            let part = part(&bytes, &boundary, PART);
            part.ok_or_else(|| Error::invalid(PART, "is missing: send the package as the form's part 'plugin'.").into())
        }
        Some(kind) if PACKED.contains(&kind) => call.bytes().await,
        other => {
            let given = other.unwrap_or("(none)");
            let detail = format!("Content-Type '{given}' is not taken here. Send the tar.gz as application/gzip.");
            Err(Problem::new((StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type"), detail))
        }
    }
}

/// The boundary of a form (RFC 2046, section 5.1.1).
fn boundary(content_type: &str) -> Option<String> {
    let given = content_type.split(';').skip(1).find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("boundary").then(|| value.trim().trim_matches('"').to_owned())
    })?;
    ((1..=70).contains(&given.len()) && given.is_ascii()).then_some(given)
}

/// Where `wanted` begins in `bytes`.
fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    let first = *wanted.first()?;
    let mut from = 0;
    loop {
        let at = from + bytes.get(from..)?.iter().position(|byte| *byte == first)?;
        if bytes[at..].starts_with(wanted) {
            return Some(at);
        }
        from = at + 1;
    }
}

/// The content of a form's part (RFC 7578).
fn part(bytes: &Bytes, boundary: &str, wanted: &str) -> Option<Bytes> {
    let (open, close) = (format!("--{boundary}"), format!("\r\n--{boundary}"));
    let mut at = find(bytes, open.as_bytes())? + open.len();
    loop {
        if bytes.get(at..)?.starts_with(b"--") {
            return None;
        }
        let head_end = at + find(bytes.get(at..)?, b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&bytes[at..head_end]).into_owned();
        let content = head_end + 4;
        let end = content + find(bytes.get(content..)?, close.as_bytes())?;
        let is_wanted = head.lines().any(|line| {
            let is_disposition = line.to_ascii_lowercase().starts_with("content-disposition:");
            let named = line.split(';').skip(1).filter_map(|parameter| parameter.trim().strip_prefix("name="));
            is_disposition && named.map(|name| name.trim_matches('"')).any(|name| name == wanted)
        });
        if is_wanted {
            return Some(bytes.slice(content..end));
        }
        at = end + close.len();
    }
}

fn digests(call: &Call) -> crate::plugins::AuditVersions {
    let (draft, name) = (call.draft.clone(), call.param("name").to_owned());
    Box::new(move |tx, before, after| draft.record_with(tx, &name, json!({}), before, after))
}

fn record(call: &Call, detail: Value) -> StateWrite {
    let (draft, name) = (call.draft.clone(), call.param("name").to_owned());
    Box::new(move |tx| draft.record(tx, &name, detail))
}

async fn shown(app: &App, call: &Call) -> Result<Reply, Problem> {
    let name = call.param("name");
    body::ok(&with_listener(app, name, app.plugins.detail(name).await?))
}

/// `POST /plugin/{name}/approve`
pub(super) async fn approve(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    let mut fields = call.fields().await?;
    let digest = fields.digest("digest");
    fields.done()?;
    app.plugins.approve(call.param("name"), digest, digests(&call)).await?;
    shown(&app, &call).await
}

/// `POST /plugin/{name}/rollback`
pub(super) async fn rollback(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    call.fields().await?.done()?;
    app.plugins.rollback(call.param("name"), digests(&call)).await?;
    shown(&app, &call).await
}

/// `POST /plugin/{name}/enable`
pub(super) async fn enable(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    call.fields().await?.done()?;
    app.plugins.enable(call.param("name"), record(&call, json!({}))).await?;
    shown(&app, &call).await
}

/// `POST /plugin/{name}/disable`
pub(super) async fn disable(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    call.fields().await?.done()?;
    app.plugins.disable(call.param("name"), record(&call, json!({}))).await?;
    shown(&app, &call).await
}

/// `POST /plugin/{name}/uninstall`
pub(super) async fn uninstall(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    let mut fields = call.fields().await?;
    let purge = fields.value("purge_data");
    fields.done()?;
    let purge = match purge {
        None => false,
        Some(Value::Bool(purge)) => purge,
        Some(_) => return Err(Error::invalid("purge_data", "must be true or false.").into()),
    };
    app.plugins.uninstall(call.param("name"), purge, record(&call, json!({ "purge_data": purge }))).await?;
    body::ok(&json!({ "deleted": true, "data_kept": !purge }))
}

/// `GET /ui/pages`
pub(super) async fn pages(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    body::ok(&json!({ "items": app.plugins.pages() }))
}

/// `GET /ui/plugin/{name}/{*path}`: a file of its package, on an origin of its own.
pub(super) async fn page(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    let (name, path) = (call.param("name"), call.param("path"));
    let missing = || Problem::from(Error::not_found("page", format!("{name}/{path}")));
    let running = app.plugins.running(name).ok_or_else(missing)?;
    let file = format!("ui/{path}");
    if package::check_file(&file).is_err() || running.manifest.pages.is_empty() {
        return Err(missing());
    }
    let place = running.folder.join(&file);
    let size = tokio::fs::metadata(&place).await.map_err(|_| missing())?.len();
    // Strangers may ask for it, and take their time to read it.
    let mut room = app.rooms.of(call.principal.is_some(), true);
    room.grow(usize::try_from(size).unwrap_or(usize::MAX))?;
    let bytes = room.leave_to(tokio::fs::read(&place).await.map_err(|_| missing())?.into());
    let kind = mime_guess::from_path(&file).first_raw().unwrap_or("application/octet-stream");
    let headers = vec![
        (header::CONTENT_SECURITY_POLICY, PAGE_POLICY),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        // The page's own origin is opaque, so that its scripts and fonts come from another one.
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("null")),
    ];
    Ok(Reply { status: StatusCode::OK, content_type: kind, headers, body: Body::full(bytes), trace: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_part_of_a_form_is_found() {
        let head =
            "content-disposition: form-data; name=\"plugin\"; filename=\"a.tar.gz\"\r\ncontent-type: application/gzip";
        let form = |parts: &[(&str, &str)]| {
            let parts = parts.iter().map(|(head, content)| format!("--b\r\n{head}\r\n\r\n{content}\r\n"));
            Bytes::from(format!("{}--b--\r\n", parts.collect::<String>()))
        };
        let other = "content-disposition: form-data; name=\"note\"";
        for (bytes, wanted) in [
            (form(&[(head, "abc")]), Some("abc")),
            (form(&[(other, "x"), (head, "a\r\n-b\r\n--c")]), Some("a\r\n-b\r\n--c")),
            (form(&[(head, "")]), Some("")),
            (form(&[(other, "x")]), None),
            (Bytes::from_static(b"--b\r\nno end"), None),
            (Bytes::from_static(b""), None),
        ] {
            assert_eq!(part(&bytes, "b", PART), wanted.map(|text| Bytes::from(text.to_owned())), "{bytes:?}");
        }
        assert_eq!(boundary("multipart/form-data; boundary=\"x y\"").as_deref(), Some("x y"));
        assert_eq!(boundary("multipart/form-data"), None);
    }
}
