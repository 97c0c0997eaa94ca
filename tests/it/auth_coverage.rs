//! Every route of the table, called by those who may not call it.

use aman::api::auth::Scope;
use aman::api::routes::{self, Confirm, Route};

use crate::harness::{Answer, Daemon, Stream, TOKEN};

/// The path of a route with something in the place of its names.
fn filled(route: &Route) -> String {
    let trace = "0af7651916cd43dd8448eb211c80319c";
    route
        .path
        .replace("{trace_id}", trace)
        .replace("{id}", "nothing-has-this-id")
        .replace("{name}", "nobody")
        .replace("{key}", "nothing")
        .replace("{platform}", "irc")
        .replace("{instance}", "x")
        .replace("{*path}", "index.html")
}

fn call(daemon: &Daemon, route: &Route, headers: &[(&str, &str)]) -> Answer {
    daemon.send(route.method.as_str(), &filled(route), headers, None)
}

fn named(route: &Route) -> String {
    format!("{} {}", route.method, route.path)
}

/// What the contract says of a route's scope, in words of its own.
fn contracted(route: &Route) -> Scope {
    let (method, path) = (route.method.as_str(), route.path.as_str());
    let health = ["/health", "/health/live", "/health/ready", "/health/llm", "/metrics"];
    let public = ["/", "/auth/open", "/ui/pages", "/openapi.json"];
    match (method, path) {
        ("GET", "/events/stream") => Scope::PublicOrEventsRead,
        ("GET", path) if public.contains(&path) || health.contains(&path) => Scope::Public,
        ("GET", path) if path.starts_with("/events/") || path.starts_with("/dlq") => Scope::EventsRead,
        ("GET", path) if path.starts_with("/ui/plugin/") => Scope::Public,
        ("GET", "/capabilities" | "/agents" | "/agent/{id}") => Scope::Chat,
        ("POST", "/mcp" | "/v1/chat/completions") => Scope::Chat,
        ("GET", "/v1/models" | "/v1/models/{id}") => Scope::Chat,
        (_, path) if path.starts_with("/chat/") => Scope::Chat,
        ("POST", "/auth/ticket") => Scope::EventsRead,
        // Signatures say who calls a hook.
        ("POST", "/hooks/{id}") => Scope::Public,
        ("POST", "/events/push") => Scope::EventsWrite,
        _ => Scope::Admin,
    }
}

/// Goal: the table gives every route the scope that the contract names.
#[test]
fn scopes_are_the_contract_s() {
    for route in routes::core() {
        assert_eq!(route.scope, contracted(&route), "{}", named(&route));
    }
}

/// Goal: without a token nothing but the public routes answers, with a wrong one not even the stream.
#[test]
fn credentials_are_needed() {
    // A daemon answers so many wrong tokens at once, and no more.
    routes::core().chunks(80).for_each(credentials_are_needed_for);
}

fn credentials_are_needed_for(some: &[Route]) {
    let daemon = Daemon::start();
    let (good, wrong) = (format!("Bearer {TOKEN}"), format!("Bearer {TOKEN}x"));
    let bad: [&[(&str, &str)]; 4] = [
        &[("authorization", &wrong)],
        &[("x-aman-token", "wrong")],
        // One good credential does not hide a bad one.
        &[("authorization", &good), ("x-aman-token", "wrong")],
        // A good token in a scheme that is none.
        &[("authorization", TOKEN)],
    ];
    for route in some {
        let name = named(route);
        let refused = |headers: &[(&str, &str)]| {
            let answer = call(&daemon, route, headers);
            assert_eq!((answer.status, answer.code()), (401, "unauthorized"), "{name} {headers:?}");
            assert!(answer.header("www-authenticate").is_some_and(|text| text.starts_with("Bearer")), "{name}");
            // As clients of OpenAI read it, where they are served.
            let kind = if route.path.starts_with("/v1/") { "application/json" } else { "application/problem+json" };
            assert_eq!(answer.header("content-type"), Some(kind), "{name}");
        };
        match route.scope {
            Scope::Public => {
                for headers in [&[], bad[1]] {
                    let answer = call(&daemon, route, headers);
                    let lacks_code = answer.fields() == ["code"];
                    let is_of_some = ["/hooks/{id}", "/ui/plugin/{name}/{*path}"].contains(&route.path.as_str());
                    let not_there = is_of_some && answer.code() == "not_found";
                    assert!(
                        [200, 503].contains(&answer.status) || lacks_code || not_there,
                        "{name} is public: {answer:?}"
                    );
                }
            }
            Scope::PublicOrEventsRead => {
                assert_eq!(Stream::open(&daemon, &filled(route), &[]).status, 200, "{name}");
                bad.iter().for_each(|headers| refused(headers));
            }
            _ => {
                refused(&[]);
                // One wrong token a route: more would run into the limit of wrong tokens.
                refused(bad[route.path.len() % bad.len()]);
            }
        }
    }
}

/// Goal: the right token, in either header, is let through everywhere.
#[test]
fn the_token_opens_every_route() {
    let daemon = Daemon::start();
    let bearer = format!("bearer  {TOKEN}");
    for route in routes::core() {
        if route.scope == Scope::PublicOrEventsRead {
            assert_eq!(Stream::open(&daemon, &filled(&route), &[("x-aman-token", TOKEN)]).status, 200);
            continue;
        }
        for headers in [("authorization", bearer.as_str()), ("x-aman-token", TOKEN)] {
            let answer = call(&daemon, &route, &[headers]);
            let refused = [401, 403, 404, 405, 421, 429].contains(&answer.status);
            let allowed = ["debug_disabled", "not_found", "switched_off"].contains(&answer.code());
            assert!(!refused || allowed, "{}: {answer:?}", named(&route));
        }
    }
}

/// Goal: requests for another host or from another site reach no route, not even a public one, with or without token.
#[test]
fn other_places_are_refused_on_every_path() {
    let daemon = Daemon::start();
    type Foreign = (&'static [(&'static str, &'static str)], u16, &'static str);
    let foreign: [Foreign; 8] = [
        (&[("host", "evil.example")], 421, "host_not_allowed"),
        (&[("host", "localhost.evil.example:9090")], 421, "host_not_allowed"),
        (&[("host", "127.0.0.1@evil.example")], 421, "host_not_allowed"),
        (&[("origin", "http://evil.example")], 403, "origin_not_allowed"),
        (&[("origin", "null")], 403, "origin_not_allowed"),
        (&[("origin", "https://localhost")], 403, "origin_not_allowed"),
        (&[("sec-fetch-site", "cross-site")], 403, "origin_not_allowed"),
        (&[("sec-fetch-site", "same-site")], 403, "origin_not_allowed"),
    ];
    for route in routes::core() {
        for (headers, status, code) in foreign {
            for token in [&[][..], &[("x-aman-token", TOKEN)]] {
                // Pages of plugins are for everybody, and read no credentials.
                if status == 403 && route.path.starts_with("/ui/plugin/") {
                    continue;
                }
                let answer = call(&daemon, &route, &[headers, token].concat());
                assert_eq!((answer.status, answer.code()), (status, code), "{} {headers:?}", named(&route));
            }
        }
    }
    for host in ["localhost:1", "127.0.0.1", "[::1]:9090", "LOCALHOST"] {
        assert_eq!(daemon.send("GET", "/health/live", &[("host", host)], None).status, 200, "{host}");
    }
    let own = [("origin", "http://localhost"), ("sec-fetch-site", "same-origin")];
    assert_eq!(daemon.send("GET", "/health/live", &own, None).status, 200);
    let answer = daemon.send("GET", "/nowhere", &[("host", "evil.example")], None);
    assert_eq!((answer.status, answer.code()), (421, "host_not_allowed"), "before the route is looked for");
}

/// Goal: a known path with another method says which it has, an unknown path is none; before credentials are asked for.
#[test]
fn methods_and_paths_are_told() {
    let daemon = Daemon::start();
    let all = routes::core();
    for route in &all {
        let answer = daemon.send("PATCH", &filled(route), &[], None);
        assert_eq!((answer.status, answer.code()), (405, "method_not_allowed"), "{}", named(route));
        let mut allowed: Vec<&str> = answer.header("allow").expect("Allow").split(", ").collect();
        let same_path = all.iter().filter(|other| other.path == route.path);
        let mut expected: Vec<&str> = same_path.map(|other| other.method.as_str()).collect();
        if expected.contains(&"GET") {
            expected.push("HEAD");
        }
        allowed.sort_unstable();
        expected.sort_unstable();
        assert_eq!(allowed, expected, "{}", named(route));
        if route.path.ends_with("{*path}") {
            continue;
        }
        let answer = daemon.send(route.method.as_str(), &format!("{}/and/more", filled(route)), &[], None);
        assert_eq!((answer.status, answer.code()), (404, "route_not_found"), "{}", named(route));
    }
}

/// Goal: what needs confirmation asks for it after the credentials and before anything is looked up.
#[test]
fn confirmation_is_asked_before_the_lookup() {
    for (toml, strict) in [("", false), ("[http]\nstrict_confirm = true\n", true)] {
        let daemon = Daemon::configured(toml);
        for route in routes::core().iter().filter(|route| route.confirm != Confirm::No) {
            let name = named(route);
            assert_eq!(call(&daemon, route, &[("x-aman-confirm", "yes")]).status, 401, "{name}");
            let needed = strict || route.confirm == Confirm::Always;
            for value in [None, Some("true"), Some("no"), Some("")] {
                let mut headers = vec![("x-aman-token", TOKEN)];
                headers.extend(value.map(|value| ("x-aman-confirm", value)));
                let code = match route.path.as_str() {
                    _ if needed => "confirmation_required",
                    // What would be in force is read first.
                    "/soul/update" => "invalid_input",
                    // The package is read first.
                    "/plugin/install" => "unsupported_media_type",
                    _ => "not_found",
                };
                assert_eq!(call(&daemon, route, &headers).code(), code, "{name} {value:?}");
            }
            if route.path != "/agent/shutdown" {
                let answer = call(&daemon, route, &[("x-aman-token", TOKEN), ("x-aman-confirm", " YES ")]);
                // What works on the whole database has nothing to look up.
                let wanted: &[u16] = if route.path.starts_with("/db/") { &[200] } else { &[400, 404, 415] };
                assert!(wanted.contains(&answer.status), "{name}: {answer:?}");
            }
        }
    }
    let always = |path: &str| routes::core().iter().any(|route| route.path == path && route.confirm == Confirm::Always);
    assert!(["/agent/shutdown", "/dlq/{id}/retry", "/dlq/retry"].iter().all(|path| always(path)));
}

/// Goal: whoever guesses tokens is slowed down, and whoever has the token does not notice.
#[test]
fn guessing_is_slowed_down() {
    let daemon = Daemon::start();
    let mut wrong = 0;
    let refused = loop {
        let answer = daemon.send("GET", "/skills", &[("x-aman-token", "guess")], None);
        if answer.status != 401 {
            break answer;
        }
        wrong += 1;
        assert!(wrong < 5000, "nobody stopped the guessing");
    };
    assert_eq!((refused.status, refused.code()), (429, "rate_limited"));
    let after: u64 = refused.header("retry-after").and_then(|text| text.parse().ok()).expect("Retry-After in seconds");
    assert!((1..=60).contains(&after));
    for _ in 0..20 {
        assert_eq!(daemon.get("/skills").status, 200, "the right token is never refused");
        assert_eq!(daemon.send("GET", "/health/live", &[], None).status, 200);
        assert_eq!(daemon.send("GET", "/skills", &[], None).status, 401, "no token is no guess");
    }
}
