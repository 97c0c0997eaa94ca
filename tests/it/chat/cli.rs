//! `aman chat` and `aman session`.

use std::io::{Read, Write};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::{begin, place, rest, say, scripted};
use crate::harness::{Daemon, command, on_terminal};

/// Runs the command line with something on its stdin.
fn piped(daemon: &Daemon, args: &[&str], input: &str) -> (i32, String, String) {
    let mut child = command(daemon.home())
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    child.stdin.take().expect("stdin is piped").write_all(input.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

/// Goal: one question gives the answer on stdout and nothing else, or frames for programs; the session can be gone on with.
#[test]
fn one_question_one_answer() {
    let daemon = scripted("");
    let (code, out, err) = daemon.cli(&["chat", "-m", "hello"]);
    assert_eq!((code, out.as_str(), err.as_str()), (0, "Hello there, my friend.\n", ""));
    let (code, out, _) = piped(&daemon, &["chat"], "what is piped\n");
    assert_eq!((code, out.as_str()), (0, "You said: what is piped\n"));
    let session = begin(&daemon);
    let (code, out, err) = daemon.cli(&["chat", "--json", "--session", &session, "-m", "hello"]);
    let frames: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let kinds: Vec<&str> = frames.iter().filter_map(|frame| frame["event"].as_str()).collect();
    assert!(code == 0 && kinds.first() == Some(&"start") && kinds.last() == Some(&"done"), "{kinds:?} {err}");
    let file = daemon.home().join("note.txt");
    std::fs::write(&file, "a note").expect("written");
    let (code, ..) =
        daemon.cli(&["chat", "--session", &session, "-m", "hello", "--attach", &file.display().to_string()]);
    assert_eq!(code, 0);
    assert_eq!(rest(&daemon, &session)["messages"][2]["attachments"][0]["name"], "note.txt");
    let (code, out, err) = daemon.cli(&["chat", "-m", "broken"]);
    assert!(code == 1 && out.is_empty() && err.contains("model_auth"), "{code} {out} {err}");
    for wrong in [&["chat", "--session", "none", "-m", "x"][..], &["chat", "--agent", "nobody", "-m", "x"]] {
        let (code, _, err) = daemon.cli(wrong);
        assert!(code == 1 && err.contains("There is no "), "{err}");
    }
    let (code, _, err) = piped(&daemon, &["chat"], " \n");
    assert!(code == 2 && err.contains("chat -m TEXT"), "{err}");
}

/// Goal: an agent is run from a script: the answer alone on stdout or frames for programs, and an exit code that says how it
/// ended; a refusal leaves nothing behind.
#[test]
fn an_agent_is_run_once() {
    let daemon = scripted("");
    assert_eq!(daemon.cli(&["agent", "run", "aman", "hello"]), (0, "Hello there, my friend.\n".into(), String::new()));
    let (code, out, _) = piped(&daemon, &["agent", "run", "aman", "--json"], "hello");
    let last = out.lines().last().map(|line| serde_json::from_str::<Value>(line).expect("JSON")).expect("a line");
    assert_eq!((code, &last["event"], &last["data"]["status"]), (0, &"done".into(), &"done".into()));
    let (code, out, err) = daemon.cli(&["agent", "run", "aman", "broken"]);
    assert!(code == 1 && out.is_empty() && err.contains("model_auth"), "{code} {out} {err}");
    let (code, _, err) = daemon.cli(&["agent", "run", "nobody", "hello"]);
    assert!(code == 1 && err.contains("There is no agent 'nobody'."), "{code} {err}");
    let stopped = std::thread::scope(|scope| {
        let run = scope.spawn(|| daemon.cli(&["agent", "run", "aman", "slow"]));
        let of_slow = |one: &Value| (one["title"] == "slow").then(|| one["id"].as_str().expect("an id").to_owned());
        let id = daemon.wait("the session", || daemon.get("/chat/sessions").items().iter().find_map(of_slow));
        assert_eq!(daemon.post(&place(&id, "/stop"), &json!({})).json["stopped"], true);
        run.join().expect("it ends")
    });
    assert!(stopped.0 == 4 && stopped.2.contains("[stopped]"), "{stopped:?}");
    assert_eq!(daemon.post("/agent/aman/status", &json!({ "status": "disabled" })).status, 200);
    assert_eq!(daemon.cli(&["agent", "run", "aman", "hello"]).0, 3);
    drop(daemon);
    let daemon = Daemon::configured("[models]\ndetect = \"\"\n");
    let (code, _, err) = daemon.cli(&["agent", "run", "aman", "hello"]);
    assert!(code == 1 && err.contains("no_model") && err.contains("Ollama"), "{code} {err}");
    assert!(daemon.get("/chat/sessions").items().is_empty(), "nothing was said");
}

/// Goal: on a terminal Ctrl-C stops the answer, and the conversation goes on.
#[test]
fn a_conversation_on_a_terminal() {
    let daemon = scripted("");
    let mut child = on_terminal(daemon.home(), "chat").spawn().expect("script is there");
    let (mut output, shown) = (child.stdout.take().expect("stdout is piped"), Arc::new(Mutex::new(Vec::new())));
    let to = Arc::clone(&shown);
    let reading = std::thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(length) = output.read(&mut piece)
            && length > 0
        {
            to.lock().expect("not poisoned").extend_from_slice(&piece[..length]);
        }
    });
    let mut input = child.stdin.take().expect("stdin is piped");
    for (typed, wanted) in
        [("", "you> "), ("slow\n", "w1 w2 "), ("\u{3}", "[stopped]"), ("hello\n", "Hello there, my friend.")]
    {
        input.write_all(typed.as_bytes()).expect("it reads");
        daemon.wait(wanted, || {
            String::from_utf8_lossy(&shown.lock().expect("not poisoned")).contains(wanted).then_some(())
        });
    }
    input.write_all(b"\x04").expect("it reads");
    assert!(child.wait().expect("it ends").success());
    reading.join().expect("no panic");
    let sessions = daemon.get("/chat/sessions").items();
    assert_eq!((sessions.len(), &sessions[0]["message_count"]), (1, &json!(4)), "{sessions:?}");
}

/// Goal: what was talked is listed, shown, found, written to a new file and removed from the command line.
#[test]
fn sessions_on_the_command_line() {
    let daemon = scripted("");
    let session = begin(&daemon);
    say(&daemon, &session, "hello \u{1b}[31mred");
    let run = |args: &[&str]| {
        let (code, out, err) = daemon.cli(args);
        assert_eq!(code, 0, "{args:?}: {err}");
        assert!(!out.contains('\u{1b}'), "{args:?} steers the terminal: {out}");
        out
    };
    assert!(run(&["session", "list"]).contains(&session));
    let shown = run(&["session", "show", &session]);
    assert!(shown.contains("user, ") && shown.contains("Hello there, my friend."), "{shown}");
    assert!(run(&["session", "search", "frie"]).contains(&session));
    assert!(run(&["session", "rename", &session, "Red things"]).contains("Red things"));
    let file = daemon.home().join("talk.md").display().to_string();
    run(&["session", "export", &session, "--output", &file]);
    assert!(std::fs::read_to_string(&file).expect("written").starts_with("# Red things\n"));
    let (code, _, err) = daemon.cli(&["session", "export", &session, "--output", &file]);
    assert!(code == 2 && err.contains("there already"), "{err}");
    assert!(run(&["session", "export", &session, "--format", "json"]).starts_with("{\"format\":\"aman-chat/1\""));
    assert!(run(&["session", "export", &session, "--json"]).starts_with("{\"format\":\"aman-chat/1\""));
    assert!(run(&["session", "stop", &session]).contains("No turn was under way."));
    let (code, _, err) = daemon.cli(&["session", "delete", &session]);
    assert!(code == 2 && err.contains("--yes"), "{err}");
    run(&["session", "delete", &session, "--yes"]);
    assert!(run(&["session", "list"]).contains("There is no session."));
}
