//! home-assistant, against a fake: Home Assistant itself cannot run here. The fake answers as its REST documentation says.

use serde_json::{Value, json};

use super::{install, tool};
use crate::harness::Daemon;
use crate::peer::Peer;

const TOKEN: &str = "canary-of-the-house";
const JSON: (&str, &str) = ("content-type", "application/json");

/// A web server with the states of a house, in the form of Home Assistant's REST interface.
struct FakeHomeAssistant(Peer);

impl FakeHomeAssistant {
    fn start() -> FakeHomeAssistant {
        let fake = FakeHomeAssistant(Peer::start());
        fake.set("off", "20.5");
        let done = json!([light("on")]).to_string();
        fake.0.page("/api/services/light/turn_on", "200 OK", &[JSON], &done);
        fake.0.page("/api/states/light.attic", "404 Not Found", &[JSON], "{\"message\":\"Entity not found.\"}");
        fake
    }

    fn set(&self, kitchen: &str, outside: &str) {
        let sensor = json!({
            "entity_id": "sensor.outside", "state": outside, "attributes": { "unit_of_measurement": "\u{b0}C" },
            "last_changed": changed(outside),
        });
        let states = json!([light(kitchen), sensor, { "entity_id": "sun.sun", "state": kitchen, "attributes": {} }]);
        self.0.page("/api/states", "200 OK", &[JSON], &states.to_string());
        self.0.page("/api/states/light.kitchen", "200 OK", &[JSON], &light(kitchen).to_string());
    }
}

/// When a thing came to be in this state: another time for each that the test uses, as Home Assistant writes it.
fn changed(state: &str) -> String {
    let second = state.bytes().map(u32::from).sum::<u32>() % 60;
    format!("2026-11-22T07:00:{second:02}.120000+00:00")
}

fn light(state: &str) -> Value {
    json!({
        "entity_id": "light.kitchen", "state": state, "attributes": { "brightness": 120 },
        "last_changed": changed(state),
        "context": { "id": "01JD", "parent_id": null, "user_id": null },
    })
}

/// Goal: changes become events, states and services are routes and tools; the token is the daemon's to send, and shows
/// nowhere; a house that does not answer is told.
#[test]
fn the_house_is_bridged() {
    let house = FakeHomeAssistant::start();
    let daemon = Daemon::configured(&format!(
        "[plugin.home-assistant]\nsecrets = {{ TOKEN = \"{TOKEN}\" }}\n[plugin.home-assistant.settings]\nurl = \"{}/\"\n\
         entities = \"light.*, sensor.outside\"\nevery_seconds = 1\n",
        house.0.url()
    ));
    install(&daemon, "home-assistant");
    daemon.wait("two polls", || (house.0.asked("/api/states").len() >= 2).then_some(()));
    assert_eq!(daemon.recent("home.state.changed").len(), 0, "the first poll only learns");
    house.set("on", "20.5");
    let event = daemon.wait("the change", || daemon.recent("home.state.changed").pop());
    assert_eq!((&event["subject"], &event["source"]), (&json!("light.kitchen"), &json!("plugin/home-assistant")));
    let data = &event["data"];
    assert_eq!((&data["from"], &data["to"]), (&json!("off"), &json!("on")));
    assert_eq!(data["attributes"], json!({ "brightness": 120 }));
    house.set("on", "21.0");
    daemon.wait("the second change", || (daemon.recent("home.state.changed").len() == 2).then_some(()));

    let all = daemon.get("/api/v1/home-assistant/states").items();
    assert_eq!(all.len(), 2, "only what the setting names: {all:?}");
    let one = daemon.get("/api/v1/home-assistant/states/light.kitchen");
    assert_eq!((one.status, &one.json["state"]), (200, &json!("on")));
    let body = json!({ "entity_id": "light.kitchen" });
    let done = daemon.post("/api/v1/home-assistant/services/light/turn_on", &body);
    assert_eq!((done.status, &done.json["changed"][0]["state"]), (200, &json!("on")), "{done:?}");
    let sent = house.0.asked("/api/services/light/turn_on");
    assert!(sent[0].starts_with("POST ") && sent[0].ends_with("{\"entity_id\":\"light.kitchen\"}"), "{sent:?}");
    let called = json!({ "domain": "light", "service": "turn_on", "data": body });
    assert_eq!(tool(&daemon, "home_call_service", &called)["changed"][0]["entity_id"], "light.kitchen");
    assert_eq!(tool(&daemon, "home_state", &json!({ "entity": "light.kitchen" }))["state"], "on");
    for (path, status, said) in [
        ("states/light.attic", 404, "HTTP 404"),
        ("states/..%2fconfig", 400, "lower-case"),
        ("states/Light", 400, "lower-case"),
    ] {
        let answer = daemon.get(&format!("/api/v1/home-assistant/{path}"));
        assert_eq!(answer.status, status, "{path}: {answer:?}");
        assert!(answer.json["detail"].as_str().is_some_and(|text| text.contains(said)), "{path}: {answer:?}");
    }

    let requests = house.0.requests();
    assert!(requests.iter().all(|request| request.contains(&format!("authorization: Bearer {TOKEN}\r\n"))));
    house.0.page("/api/states", "503 Service Unavailable", &[], "");
    let down = daemon.get("/api/v1/home-assistant/states");
    assert_eq!((down.status, down.code()), (503, "plugin_unavailable"), "{down:?}");
    house.0.page("/api/states", "401 Unauthorized", &[], TOKEN);
    let refused = daemon.get("/api/v1/home-assistant/states");
    assert_eq!((refused.status, refused.code()), (502, "plugin_failed"), "{refused:?}");
    let shown = format!("{}{}", daemon.get("/plugin/home-assistant").json, daemon.log());
    assert!(!shown.contains(TOKEN), "{shown}");
    // What changed meanwhile is found when the house is back.
    house.set("off", "21.0");
    daemon.wait("the third change", || (daemon.recent("home.state.changed").len() == 3).then_some(()));
}
