use super::*;
use crate::api::gate::{Gate, permit};
use crate::clock::Clock;

fn headers(text: &str) -> HeaderMap {
    let mut all = HeaderMap::new();
    for line in text.split('|').filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(": ").expect("name: value");
        let name: hyper::header::HeaderName = name.parse().expect("name");
        all.append(name, HeaderValue::from_str(value).expect("value"));
    }
    all
}

/// The code of the refusal; `own` or the listed origin when it passes.
fn place(method: &str, uri: &str, version: Version, text: &str) -> String {
    let places =
        Places { hosts: vec!["box.lan".to_owned()], origins: vec!["https://app.example".to_owned()], secure: false };
    let method: Method = method.parse().expect("method");
    match places.check(&method, &uri.parse().expect("uri"), version, &headers(text), true) {
        Ok(Passed::Own) => "own".to_owned(),
        Ok(Passed::Listed(origin)) => origin.to_str().expect("text").to_owned(),
        Err(problem) => problem.code.to_owned(),
    }
}

#[test]
fn hosts_are_the_daemons_own() {
    for (host, want) in [
        ("host: localhost", "own"),
        ("host: LOCALHOST:9090", "own"),
        ("host: 127.0.0.1:1", "own"),
        ("host: [::1]:9090", "own"),
        ("host: [::1]", "own"),
        ("host: box.lan:80", "own"),
        ("host: evil.example", "host_not_allowed"),
        ("host: localhost.evil.example", "host_not_allowed"),
        ("host: localhost.", "host_not_allowed"),
        ("host: localhost@evil", "host_not_allowed"),
        ("host: localhost:x", "host_not_allowed"),
        ("host: [::1", "host_not_allowed"),
        ("host: [::2]", "host_not_allowed"),
        ("host: 127.0.0.2", "host_not_allowed"),
        ("host:  ", "host_not_allowed"),
        ("host: localhost|host: localhost", "invalid_input"),
        ("host: localhost|host: evil", "invalid_input"),
        ("", "invalid_input"),
    ] {
        assert_eq!(place("GET", "/health", Version::HTTP_11, host), want, "{host}");
    }
    assert_eq!(place("GET", "/health", Version::HTTP_10, ""), "host_not_allowed");
    assert_eq!(place("GET", "http://localhost/health", Version::HTTP_11, "host: localhost"), "own");
    assert_eq!(place("GET", "http://evil/health", Version::HTTP_11, "host: localhost"), "invalid_input");
    assert_eq!(place("GET", "http://evil/health", Version::HTTP_11, "host: evil"), "host_not_allowed");
}

#[test]
fn foreign_pages_are_refused() {
    const FOREIGN: &str = "origin_not_allowed";
    for (method, path, rest, want) in [
        ("GET", "/health", "", "own"),
        ("POST", "/events/push", "origin: http://localhost:9090", "own"),
        ("POST", "/events/push", "origin: http://LOCALHOST:9090", "own"),
        ("POST", "/events/push", "origin: http://localhost:8080", FOREIGN),
        ("POST", "/events/push", "origin: http://localhost", FOREIGN),
        ("POST", "/events/push", "origin: https://localhost:9090", FOREIGN),
        ("POST", "/events/push", "origin: http://127.0.0.1:9090", FOREIGN),
        ("POST", "/events/push", "origin: null", FOREIGN),
        ("POST", "/events/push", "origin: http://evil", FOREIGN),
        ("POST", "/events/push", "origin: http://localhost:9090|origin: http://evil", FOREIGN),
        ("POST", "/events/push", "origin: https://app.example|sec-fetch-site: cross-site", "https://app.example"),
        ("GET", "/health", "sec-fetch-site: same-origin", "own"),
        ("GET", "/health", "sec-fetch-site: none", "own"),
        ("GET", "/health", "sec-fetch-site: same-site", FOREIGN),
        ("GET", "/health", "sec-fetch-site: cross-site", FOREIGN),
        ("GET", "/health", "sec-fetch-site: none|sec-fetch-site: cross-site", FOREIGN),
        ("GET", "/", "sec-fetch-site: cross-site", FOREIGN),
        ("GET", "/", "sec-fetch-site: cross-site|sec-fetch-mode: navigate|sec-fetch-dest: document", "own"),
        ("GET", "/ui/x", "sec-fetch-site: cross-site|sec-fetch-mode: navigate|sec-fetch-dest: document", "own"),
        ("GET", "/ui/x", "sec-fetch-site: cross-site|sec-fetch-mode: navigate|sec-fetch-dest: iframe", FOREIGN),
        ("GET", "/uix", "sec-fetch-site: cross-site|sec-fetch-mode: navigate|sec-fetch-dest: document", FOREIGN),
        ("POST", "/", "sec-fetch-site: cross-site|sec-fetch-mode: navigate|sec-fetch-dest: document", FOREIGN),
        ("GET", "/ui/plugin/p/a.js", "origin: null|sec-fetch-site: cross-site", "own"),
        ("POST", "/ui/plugin/p/a.js", "origin: null", FOREIGN),
    ] {
        let text = format!("host: localhost:9090|{rest}");
        assert_eq!(place(method, path, Version::HTTP_11, &text), want, "{method} {path} {rest}");
    }
    assert_eq!(place("GET", "/", Version::HTTP_11, "host: localhost|origin: http://localhost:80"), "own");
}

fn gate() -> Gate {
    Gate::new(Auth::token("0123456789abcdef"), Clock::manual(0), "s".to_owned())
}

fn admit(gate: &Gate, scope: Scope, text: &str) -> String {
    let identified = gate.identify(scope, &headers(text));
    match identified.and_then(|who| permit(who.as_ref(), scope).map(|()| who)) {
        Ok(principal) => principal.map_or("nobody".to_owned(), |p| p.name.to_string()),
        Err(problem) => problem.status.as_str().to_owned(),
    }
}

#[test]
fn credentials_are_checked() {
    let gate = gate();
    for (scope, text, want) in [
        (Scope::Public, "x-aman-token: wrong", "nobody"),
        (Scope::PublicOrEventsRead, "", "nobody"),
        (Scope::PublicOrEventsRead, "x-aman-token: wrong", "401"),
        (Scope::PublicOrEventsRead, "x-aman-token: 0123456789abcdef", "owner"),
        (Scope::Admin, "", "401"),
        (Scope::Admin, "authorization: Bearer 0123456789abcdef", "owner"),
        (Scope::Admin, "authorization: bearer  0123456789abcdef ", "owner"),
        (Scope::Admin, "authorization: Bearer 0123456789abcdeF", "401"),
        (Scope::Admin, "authorization: Bearer 0123456789abcdef0", "401"),
        (Scope::Admin, "authorization: Basic 0123456789abcdef", "401"),
        (Scope::Admin, "authorization: Bearer", "401"),
        (Scope::Admin, "x-aman-token: ", "401"),
        (Scope::Admin, "x-aman-token: 0123456789abcdef|authorization: Bearer wrong", "401"),
        (Scope::Admin, "authorization: Bearer 0123456789abcdef|authorization: Bearer wrong", "401"),
    ] {
        assert_eq!(admit(&gate, scope, text), want, "{text}");
    }
    assert_eq!(admit(&Gate::new(Auth::None, Clock::manual(0), "s".to_owned()), Scope::Admin, ""), "owner");
}

#[test]
fn guessing_is_slowed_and_never_locks_out() {
    let gate = gate();
    let answers: Vec<String> = (0..200).map(|_| admit(&gate, Scope::Admin, "x-aman-token: guess")).collect();
    assert_eq!(answers.first().map(String::as_str), Some("401"));
    assert_eq!(answers.last().map(String::as_str), Some("429"));
    assert_eq!(admit(&gate, Scope::Admin, "x-aman-token: 0123456789abcdef"), "owner");
    assert_eq!(admit(&gate, Scope::Admin, ""), "401");
}

#[test]
fn scopes_include_what_they_should() {
    let reader = Principal::minted("p", &[Scope::EventsRead], 10);
    assert_eq!(reader.trust, Trust::Paired);
    assert!(reader.is_good(9) && !reader.is_good(10));
    assert!(reader.may(Scope::Public) && reader.may(Scope::EventsRead) && reader.may(Scope::PublicOrEventsRead));
    assert!(!reader.may(Scope::EventsWrite) && !reader.may(Scope::Chat) && !reader.may(Scope::Admin));
    reader.clone().revoke();
    assert!(!reader.is_good(9));
    let admin = Principal::minted("p", &[Scope::Chat, Scope::Admin], 10);
    assert_eq!(admin.trust, Trust::Owner);
    for who in [Principal::owner(), admin] {
        assert!(Scope::GRANTED.into_iter().all(|scope| who.may(scope)));
    }
}

#[test]
fn own_pages_have_the_daemon_s_scheme() {
    for (origin, secure, want) in [
        ("http://localhost:80", false, true),
        ("https://localhost", true, true),
        ("https://LOCALHOST:443", true, true),
        ("http://localhost", true, false),
        ("https://localhost", false, false),
        ("https://localhost:80", true, false),
        ("", true, false),
    ] {
        assert_eq!(is_own(origin, "localhost", secure), want, "{origin} {secure}");
    }
}
