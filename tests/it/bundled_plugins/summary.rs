//! summary, against a web server.

use serde_json::json;

use super::{configure, install, tool};
use crate::harness::Daemon;
use crate::peer::Peer;

const PAGE: &str = "<html><head><title>Bread</title><meta name=\"description\" content=\"On baking.\"></head><body>
    <nav>Home</nav><p>Bread is baked from flour and water in every country.</p>
    <p>Bread that is baked with sourdough keeps for longer than other bread.</p></body></html>";

/// Goal: a page is read once and then comes out of the cache, for the route and the tool alike, until it is too old; what
/// cannot be summarized, is missing or was not granted is answered in words.
#[test]
fn pages_are_summarized_and_cached() {
    let peer = Peer::start();
    peer.page("/bread?v=1", "200 OK", &[("content-type", "text/html; charset=utf-8")], PAGE);
    peer.page("/picture", "200 OK", &[("content-type", "image/png")], "PNG");
    peer.page("/gone", "404 Not Found", &[], "");
    peer.page("/busy", "503 Service Unavailable", &[], "");
    let config = format!("http_client.allow_private = true\n[plugin.summary.settings]\nsite_1 = \"{}\"\n", peer.url());
    let daemon = Daemon::configured(&config);
    install(&daemon, "summary");
    let url = format!("{}/bread?v=1", peer.url());
    let path = format!("/api/v1/summary?url={}#fragment", url.replace(':', "%3A").replace('?', "%3F"));
    for cached in [false, true, true] {
        let answer = daemon.get(path.trim_end_matches("#fragment"));
        assert_eq!(answer.status, 200, "{answer:?}; {}", daemon.log());
        assert_eq!((&answer.json["url"], &answer.json["cached"]), (&json!(url), &json!(cached)));
        let summary = &answer.json["summary"];
        assert_eq!((&summary["title"], &summary["description"]), (&json!("Bread"), &json!("On baking.")));
        assert_eq!(summary["sentences"].as_array().map(Vec::len), Some(2), "{summary}");
    }
    let by_tool = tool(&daemon, "summarize_page", &json!({ "url": format!("{url}#fragment") }));
    assert_eq!((&by_tool["cached"], &by_tool["summary"]["title"]), (&json!(true), &json!("Bread")));
    assert_eq!(peer.requests().len(), 1);

    let other = peer.url().replace("127.0.0.1", "localhost");
    for (query, status, code, said) in [
        ("".to_owned(), 400, "invalid_input", "is missing"),
        ("?url=ftp://example.org".to_owned(), 400, "invalid_input", "https or http"),
        (format!("?url={}/picture", peer.url()), 400, "invalid_input", "image/png"),
        (format!("?url={}/gone", peer.url()), 404, "not_found", "HTTP 404"),
        (format!("?url={}/busy", peer.url()), 503, "plugin_unavailable", "HTTP 503"),
        (format!("?url={other}/bread"), 403, "plugin_denied", "does not grant GET localhost"),
        ("?url=https://example.org/".to_owned(), 403, "plugin_denied", "does not grant GET example.org"),
    ] {
        let answer = daemon.get(&format!("/api/v1/summary{query}"));
        assert_eq!((answer.status, answer.code()), (status, code), "{query}: {answer:?}");
        assert!(answer.json["detail"].as_str().is_some_and(|text| text.contains(said)), "{query}: {answer:?}");
    }
    let asked = peer.requests().len();
    configure(&daemon, &format!("{config}minutes = 0\n"));
    let fresh = tool(&daemon, "summarize_page", &json!({ "url": url }));
    assert_eq!((&fresh["cached"], peer.requests().len()), (&json!(false), asked + 1));
}
