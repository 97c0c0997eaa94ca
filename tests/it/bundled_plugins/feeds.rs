//! feeds, against a web server with ETags.

use serde_json::{Value, json};

use super::{configure, install};
use crate::harness::Daemon;
use crate::peer::Peer;

const XML: (&str, &str) = ("content-type", "application/xml");

/// An RSS feed with entries 1 to `last`, the newest first.
fn rss(last: u32) -> String {
    let item = |n: u32| {
        format!(
            "<item><title>News {n}</title><link>https://example.org/{n}</link><guid>tag:{n}</guid>\
             <pubDate>Sat, 07 Nov 2026 09:0{n}:00 +0100</pubDate><description>&lt;p&gt;Number &lt;b&gt;{n}&lt;/b&gt;\
             </description></item>"
        )
    };
    let items: String = (1..=last).rev().map(item).collect();
    format!("<?xml version=\"1.0\"?><rss version=\"2.0\"><channel><title>Planet</title>{items}</channel></rss>")
}

fn atom(ids: &[&str]) -> String {
    let entry = |id: &&str| format!("<entry><id>urn:{id}</id><title>Atom {id}</title></entry>");
    let entries: String = ids.iter().map(entry).collect();
    format!("<feed xmlns=\"http://www.w3.org/2005/Atom\"><title>Atoms</title>{entries}</feed>")
}

fn serve_rss(peer: &Peer, last: u32) {
    peer.page("/rss.xml", "200 OK", &[XML, ("etag", &format!("\"{last}\""))], &rss(last));
}

fn titles(daemon: &Daemon) -> Vec<String> {
    let title = |event: &Value| event["data"]["title"].as_str().unwrap_or_default().to_owned();
    let mut titles: Vec<String> = daemon.recent("feed.entry").iter().map(title).collect();
    titles.sort();
    titles
}

/// Waits until the entries with these titles are events; each must be one.
fn wait_for(daemon: &Daemon, wanted: &[&str]) {
    daemon.wait(&format!("the entries {wanted:?}"), || (titles(daemon).len() >= wanted.len()).then_some(()));
    assert_eq!(titles(daemon), wanted);
}

fn failed(daemon: &Daemon, feed: usize) -> Option<String> {
    daemon.get("/api/v1/feeds").items()[feed]["failed"].as_str().map(str::to_owned)
}

/// Goal: new entries become events once, over many polls and a kill; what did not change is not sent again; a feed that
/// breaks is told with its reason, keeps the others from nothing, and comes back.
#[test]
fn each_new_entry_is_one_event() {
    let peer = Peer::start();
    let settings = format!(
        "[plugin.feeds.settings]\nfeed_atom = \"{0}/atom.xml\"\nfeed_rss = \"{0}/rss.xml\"\nevery_seconds = 1\n",
        peer.url()
    );
    serve_rss(&peer, 2);
    peer.page("/atom.xml", "200 OK", &[XML], &atom(&["a"]));
    let mut daemon = Daemon::configured(&settings);
    install(&daemon, "feeds");
    // The operator has not allowed calls to this machine yet, and is told so.
    let why = daemon.wait("the reason", || failed(&daemon, 1));
    assert!(why.contains("http_client.allow_private"), "{why}");
    assert_eq!((titles(&daemon).len(), peer.requests().len()), (0, 0));
    daemon.kill();
    let allowed = format!("{settings}[http_client]\nallow_private = true\n");
    std::fs::write(daemon.home().join("aman.toml"), &allowed).expect("written");
    daemon.again();

    wait_for(&daemon, &["Atom a", "News 1", "News 2"]);
    let events = daemon.recent("feed.entry");
    let event = events.iter().find(|event| event["data"]["title"] == "News 2").expect("it is there");
    assert_eq!(
        (&event["source"], &event["trust"], &event["subject"], &event["time"]),
        (&json!("plugin/feeds"), &json!("plugin"), &json!("https://example.org/2"), &json!("2026-11-07T08:02:00Z"))
    );
    let data = &event["data"];
    assert_eq!(data["feed"], json!({ "url": format!("{}/rss.xml", peer.url()), "title": "Planet" }));
    assert_eq!((&data["summary"], &data["id"]), (&json!("Number 2"), &json!("tag:2")));

    let polls = peer.asked("/rss.xml").len();
    daemon.wait("three more polls", || (peer.asked("/rss.xml").len() >= polls + 3).then_some(()));
    let asked = peer.asked("/rss.xml");
    assert!(!asked[0].contains("if-none-match"), "{}", asked[0]);
    assert!(asked[1..].iter().all(|request| request.contains("if-none-match: \"2\"")), "{asked:?}");
    wait_for(&daemon, &["Atom a", "News 1", "News 2"]);

    peer.page("/atom.xml", "500 Internal Server Error", &[], "");
    serve_rss(&peer, 3);
    wait_for(&daemon, &["Atom a", "News 1", "News 2", "News 3"]);
    let why = daemon.wait("the reason", || failed(&daemon, 0));
    assert!(why.contains("HTTP 500"), "{why}");
    assert_eq!(failed(&daemon, 1), None);
    daemon.kill();
    peer.page("/atom.xml", "200 OK", &[XML], "<html><body>Sold</body></html>");
    daemon.again();
    daemon.wait("another reason", || failed(&daemon, 0).filter(|why| why.contains("no feed")));
    let told = daemon.wait("a notification after three polls", || {
        let atoms = |one: &Value| one["title"] == "The feed 'Atoms' cannot be read";
        daemon.get("/notifications").items().into_iter().find(atoms)
    });
    assert_eq!((&told["consumer"], &told["count"]), (&json!("plugin/feeds"), &json!(1)), "{told}");
    peer.page("/atom.xml", "200 OK", &[XML], &atom(&["b", "a"]));
    wait_for(&daemon, &["Atom a", "Atom b", "News 1", "News 2", "News 3"]);
    assert_eq!((failed(&daemon, 0), failed(&daemon, 1)), (None, None));

    // Settings hold at once, and what is no setting is out of reach.
    configure(&daemon, &allowed.replace("feed_rss", "#"));
    daemon.wait("one feed", || (daemon.get("/api/v1/feeds").items().len() == 1).then_some(()));
    assert_eq!(daemon.get("/dlq/depth").json["depth"], 0);
}
