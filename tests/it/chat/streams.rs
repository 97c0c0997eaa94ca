//! What happens in a turn, as it happens.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{begin, place, rest, say, scripted, text};
use crate::harness::{Daemon, Frame, Stream, TOKEN};

/// Says something; the answer is the turn.
pub fn send(daemon: &Daemon, session: &str, words: &str) -> Stream {
    let body = json!({ "text": words }).to_string();
    let path = place(session, "/send");
    let stream =
        Stream::request(&daemon.address, ("POST", &path), &[("x-aman-token", TOKEN)], &body).expect("a stream");
    assert_eq!(stream.status, 200);
    stream
}

/// Every frame to the end.
fn all(stream: &mut Stream) -> Vec<Frame> {
    std::iter::from_fn(|| stream.next()).collect()
}

fn words(frames: &[Frame]) -> String {
    frames.iter().filter(|frame| frame.event == "token").map(|frame| text(&frame.data, "text")).collect()
}

/// All forty words.
fn slow() -> String {
    (1..=40).map(|n| format!("w{n}")).collect::<Vec<_>>().join(" ")
}

/// Goal: a turn is told from its begin to its end, to whoever sent it and to whoever looks on, at whatever time they come.
#[test]
fn every_viewer_sees_the_whole_turn() {
    let daemon = scripted("");
    let session = begin(&daemon);
    let mut sender = send(&daemon, &session, "slow");
    assert_eq!(
        sender.headers.iter().find(|(name, _)| name == "content-type").map(|(_, v)| v.as_str()),
        Some("text/event-stream")
    );
    let first = sender.next().expect("a start");
    assert_eq!((first.event.as_str(), first.id.as_str()), ("start", ""));
    assert_eq!((text(&first.data, "session_id"), text(&first.data, "agent_id")), (session.as_str(), "aman"));
    let begun = sender.next().expect("a word");
    assert_eq!(begun.event, "token");
    let mut second = Stream::open(&daemon, &place(&session, "/stream"), &[("x-aman-token", TOKEN)]);
    let watched = all(&mut second);
    let mut sent = vec![first, begun];
    sent.extend(all(&mut sender));
    for frames in [&sent, &watched] {
        assert_eq!((frames[0].event.as_str(), words(frames)), ("start", slow()), "{frames:?}");
        let last = frames.last().expect("an end");
        assert_eq!((last.event.as_str(), text(&last.data, "status")), ("done", "done"), "{frames:?}");
        assert!(frames.iter().any(|frame| frame.event == "usage"), "{frames:?}");
    }
    let after = rest(&daemon, &session);
    let answer = &after["messages"][1];
    assert_eq!(
        (text(answer, "text"), &answer["id"]),
        (slow().as_str(), &sent.last().expect("an end").data["message_id"])
    );
    // Who comes after the end sees it once more.
    let late = all(&mut Stream::open(&daemon, &place(&session, "/stream"), &[("x-aman-token", TOKEN)]));
    assert_eq!(words(&late), slow());
    let none = daemon.get(&place(&begin(&daemon), "/stream"));
    assert_eq!((none.status, none.code()), (409, "invalid_state"));
}

/// Goal: the turn goes on when its client leaves; one that reads late has missed nothing; a shutdown ends the streams.
#[test]
fn clients_come_and_go() {
    let mut daemon = scripted("");
    let (left, late, open) = (begin(&daemon), begin(&daemon), begin(&daemon));
    drop(send(&daemon, &left, "slow"));
    let mut reads_late = send(&daemon, &late, "slow");
    let after = rest(&daemon, &left);
    assert_eq!(text(&after["messages"][1], "text"), slow());
    rest(&daemon, &late);
    assert_eq!(words(&all(&mut reads_late)), slow());
    let mut cut = send(&daemon, &open, "slow");
    assert_eq!(cut.next().map(|frame| frame.event).as_deref(), Some("start"));
    let begun = Instant::now();
    let ended = std::thread::scope(|scope| {
        let reading = scope.spawn(|| all(&mut cut));
        assert_eq!(daemon.terminate(), Some(0), "{}", daemon.log());
        reading.join().expect("it ends")
    });
    assert!(
        begun.elapsed() < Duration::from_secs(10) && !ended.iter().any(|frame| frame.event == "error"),
        "{ended:?}"
    );
    daemon.again();
    let after = rest(&daemon, &open);
    assert_eq!(text(&after["messages"][1], "text"), slow(), "the turn went on");
}

/// Goal: words reach streams of events as they come, those of others only administrators, and none are stored.
#[test]
fn words_come_over_the_stream_of_events() {
    let daemon = scripted("");
    let mint = |sub: &str, scope: &str| {
        let minted = daemon.post("/auth/token", &json!({ "sub": sub, "scope": scope }));
        text(&minted.json, "token").to_owned()
    };
    let (reader, talker) = (mint("reader", "events:read"), mint("talker", "events:read chat"));
    let open = |token: &str, query: &str| {
        let mut stream = Stream::open(&daemon, &format!("/events/stream{query}"), &[("x-aman-token", token)]);
        assert_eq!(stream.line().expect("the begin"), "retry: 2000");
        stream
    };
    let mut streams = [
        (TOKEN, "", true),
        (&reader, "", false),
        (&talker, "", false),
        (TOKEN, "?types=x.**", false),
        (TOKEN, "?agent_id=other", false),
        (TOKEN, "?types=agent.token", true),
    ]
    .map(|(token, query, hears)| (open(token, query), hears));
    say(&daemon, &begin(&daemon), "hello");
    daemon.push("x.end", json!({}));
    for (n, (stream, hears)) in streams.iter_mut().enumerate() {
        if n >= 4 {
            // These do not want the event that ends the others.
            stream.set_patience(Duration::from_millis(200));
        }
        let mut heard = Vec::new();
        while let Ok(frame) = stream.try_next() {
            if frame.event == "x.end" {
                break;
            }
            heard.push(frame);
        }
        let tokens: Vec<&Frame> = heard.iter().filter(|frame| frame.event == "agent.token").collect();
        let said: String = tokens.iter().map(|frame| text(&frame.data, "text")).collect();
        assert_eq!(said, if *hears { "Hello there, my friend." } else { "" }, "stream {n}: {heard:?}");
        assert!(tokens.iter().all(|frame| frame.id.is_empty()), "{tokens:?}");
    }
    assert!(daemon.recent("agent.token").is_empty());
}
