//! What is fed with bytes from strangers, one function a target. `tests/it/fuzz.rs` runs them with every test run, over
//! the seeds and what mutations make of them; `cargo fuzz` runs them for as long as one likes. Each panics when something
//! does not hold.

use std::path::Path;
use std::time::Duration;

use aman::api::parse;
use aman::config::sources::{Scheme, Verify};
use aman::config::{self, Flags, Secret};
use aman::event::{self, TypePattern};
use aman::expr::{Expr, Limits};
use aman::schedule::{Job, Schedule};
use aman::skills::{Manifest, Places, check_name};
use aman::sources::webhook::{Headers, verify};
use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};

/// A target: takes any bytes.
pub type Entry = fn(&[u8]);

/// All targets; seeds lie in `seeds/<name>`.
pub const TARGETS: [(&str, Entry); 7] = [
    ("envelope", envelope),
    ("patterns", patterns),
    ("cron", cron),
    ("manifest", manifest),
    ("jq", jq),
    ("webhook", webhook),
    ("config", config),
];

/// The time in every target: that of the published example of Standard Webhooks, so that its signature is good.
const NOW_MS: i64 = 1_614_265_330_000;

/// Header lines, an empty line, and a body.
fn request(data: &[u8]) -> (Vec<(String, Vec<u8>)>, &[u8]) {
    let end = data.windows(2).position(|two| two == b"\n\n");
    let (head, body) = end.map_or((data, &b""[..]), |at| (&data[..at], &data[at + 2..]));
    let lines = head.split(|byte| *byte == b'\n').filter_map(|line| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        Some((String::from_utf8_lossy(&line[..colon]).to_lowercase(), line[colon + 1..].trim_ascii().to_vec()))
    });
    (lines.take(100).collect(), body)
}

/// The first line and what is behind it.
fn split(text: &str) -> (&str, &str) {
    text.split_once('\n').unwrap_or((text, ""))
}

/// The body of a push, in every form: what is taken can be read again.
pub fn envelope(data: &[u8]) {
    let (lines, body) = request(data);
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(&value)) {
            headers.append(name, value);
        }
    }
    let Ok(pushed) = parse::push(&headers, body, None, NOW_MS) else { return };
    for event in pushed.events {
        if event.check().is_ok() {
            let shown = serde_json::to_string(&event.extensions).expect("extensions are JSON");
            let read: serde_json::Value = event::read_json(shown.as_bytes()).expect("and readable");
            assert_eq!(read, serde_json::json!(event.extensions));
            if let event::Data::Json(text) = &event.data {
                event::read_json::<serde_json::Value>(text.as_bytes()).expect("accepted data is readable");
            }
        }
    }
}

/// A pattern and a type: they match when a plain reading of the rule says so.
pub fn patterns(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (pattern, kind) = split(text);
    let (Ok(parsed), Ok(())) = (TypePattern::parse(pattern), event::check_type(kind)) else { return };
    fn fits(pattern: &[&str], kind: &[&str]) -> bool {
        match (pattern, kind) {
            ([], []) => true,
            (["**"], [_, ..]) => true,
            ([first, pattern @ ..], [segment, kind @ ..]) => {
                (*first == "*" || first == segment) && *first != "**" && fits(pattern, kind)
            }
            _ => false,
        }
    }
    let (pattern, segments): (Vec<&str>, Vec<&str>) = (pattern.split('.').collect(), kind.split('.').collect());
    assert_eq!(parsed.matches(kind), fits(&pattern, &segments), "{text}");
}

/// A schedule as `expression`, zone and milliseconds on lines of their own, or the JSON of a job: the times to come are
/// later than now and in order.
pub fn cron(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(serde_json::Value::Object(fields)) = event::read_json(data) {
        if let Ok(job) = Job::read(fields) {
            let shown = job.to_value();
            let again = shown.as_object().cloned().expect("a definition is an object");
            let again = Job::read(again).unwrap_or_else(|wrong| panic!("{shown} is not read back: {wrong:?}"));
            assert_eq!(again.to_value(), shown);
        }
        return;
    }
    let (expression, rest) = split(text);
    let (zone, at) = split(rest);
    let at = at.trim().parse().unwrap_or(NOW_MS);
    let Ok(schedule) = Schedule::parse(expression, zone) else { return };
    let times = schedule.preview(at, 5);
    assert!(times.first().is_none_or(|first| *first > at) && times.is_sorted(), "{text:?}: {times:?}");
    let _said = (schedule.describe(), schedule.local(at));
}

/// A `SKILL.md`.
pub fn manifest(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let places = Places { home: Some("/home/ada".into()), data: "/srv/aman".into() };
    if let Ok(manifest) = Manifest::parse(text, "a-b", &places) {
        assert_eq!(check_name(&manifest.name), Ok(()), "whatever it says, it goes by a name");
    }
}

/// An expression on the first line and its input behind it: it ends in time whatever it is.
pub fn jq(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (source, input) = split(text);
    let Ok(expr) = Expr::compile(source) else { return };
    let limits = Limits { time: Duration::from_millis(100), memory: 8 << 20, ..Limits::transform() };
    let begun = std::time::Instant::now();
    let _outputs = expr.run(input.as_bytes(), &limits);
    // Generous: the machine may be busy.
    assert!(begun.elapsed() < Duration::from_secs(10), "{source}: {:?}", begun.elapsed());
}

/// A hook's call: the scheme on the first line, then headers and body. Only what is signed with the secret is good.
pub fn webhook(data: &[u8]) {
    let good = is_signed(data, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
    assert!(
        !(good && is_signed(data, "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD")),
        "two secrets cannot both have signed"
    );
}

/// Whether a call, behind a line with its scheme, is signed with `secret`.
pub fn is_signed(data: &[u8], secret: &str) -> bool {
    let at = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (scheme, with_time) = match &data[..at] {
        b"standard" => (Scheme::Standard, false),
        b"github" => (Scheme::Github, false),
        b"gitlab" => (Scheme::Gitlab, false),
        b"slack" => (Scheme::Slack, false),
        b"stripe" => (Scheme::Stripe, false),
        b"hmac" => (Scheme::Hmac, false),
        b"timed" => (Scheme::Hmac, true),
        _ => return false,
    };
    let verify = Verify {
        scheme,
        secrets: vec![Secret::new(secret)],
        header: "x-signature".to_owned(),
        prefix: "v=".to_owned(),
        algorithm: "sha256",
        base64: with_time,
        timestamp_header: with_time.then(|| "x-time".to_owned()),
        id_header: None,
    };
    let (lines, body) = request(data.get(at + 1..).unwrap_or_default());
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).ok();
    let headers = Headers(lines.into_iter().filter_map(|(name, value)| Some((name, text(value)?))).collect());
    verify::check(&verify, &headers, body, NOW_MS).is_ok()
}

/// A configuration file; secrets that are references are left out, for they would read this machine.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if ["file:", "keyring:", "env:"].iter().any(|reference| text.contains(reference)) {
        return;
    }
    let flags = Flags { home: Some("/nonexistent/aman-fuzz".into()), ..Flags::default() };
    let _read = config::check(&flags, text);
    let _table = config::parse(Path::new("aman.toml"), text);
}
