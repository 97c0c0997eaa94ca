//! Target 18: how soon whoever stops a turn in the middle of a command is answered, which is when the turn has ended. The model is
//! a script; the command says in a file that it runs, and would run for a minute.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::daemon::Aman;
use crate::report::{Row, Wanted};
use crate::{Bench, Res};

const PATIENCE: Duration = Duration::from_secs(20);

/// Target 18.
pub fn run(bench: &mut Bench) -> Res<()> {
    bench.sample_disk(18)?;
    let home = bench.folder("stops")?.join("aman");
    let begun = home.join("notes/begun");
    let aman = start(&home, &begun)?;
    let turns = bench.count(40, 10) * u64::try_from(bench.args.rounds)?;
    let mut times = Vec::new();
    for turn in 0..turns {
        let session = begin(&aman)?;
        if turn == 0 {
            agree(&aman)?;
        }
        until(|| Ok(begun.exists().then_some(())))?;
        let asked = Instant::now();
        let stopped = post(&aman, &format!("/chat/session/{session}/stop"), &json!({}))?;
        times.push(asked.elapsed().as_secs_f64() * 1e3);
        if stopped["stopped"] != true {
            return Err(format!("it was not stopped: {stopped}").into());
        }
        std::fs::remove_file(&begun)?;
    }
    let slowest = times.iter().copied().fold(0.0, f64::max);
    let row = Row::cost(18, "stop in the middle of a command", "ms", &times, Wanted::AtMost(100.0));
    bench.report.add(row.note(format!("median of {turns}; the slowest {slowest:.1} ms")));
    Ok(())
}

/// A daemon whose agent runs a command that lasts, whatever it is told.
fn start(home: &Path, begun: &Path) -> Res<Aman> {
    for folder in ["agents", "notes"] {
        std::fs::create_dir_all(home.join(folder))?;
    }
    let (script, notes) = (home.join("script.yaml"), home.join("notes"));
    let argv = json!(["sh", "-c", format!("echo x > {}; sleep 60", begun.display())]);
    let turns = json!({ "turns": [{ "calls": [{ "name": "exec", "arguments": { "argv": argv } }] }] });
    std::fs::write(&script, turns.to_string())?;
    let models = "[models]\ndefault = \"demo/script\"\n[providers.demo]\nkind = \"script\"\n";
    std::fs::write(home.join("aman.toml"), format!("{models}path = {:?}\n", script.display().to_string()))?;
    let agent = format!("[tools]\nexec = [\"sh\"]\nwrite = [{:?}]\n", notes.display().to_string());
    std::fs::write(home.join("agents/runner.toml"), agent)?;
    Aman::start(home)
}

fn post(aman: &Aman, path: &str, body: &Value) -> Res<Value> {
    Ok(serde_json::from_str(&aman.call("POST", path, "application/json", body.to_string().as_bytes())?)?)
}

/// Begins a session whose turn runs the command.
fn begin(aman: &Aman) -> Res<String> {
    let made = post(aman, "/chat/session/create", &json!({ "agent_id": "runner" }))?;
    let session = made["id"].as_str().ok_or_else(|| format!("no session: {made}"))?.to_owned();
    post(aman, &format!("/chat/session/{session}/send"), &json!({ "text": "Run." }))?;
    Ok(session)
}

/// Says yes, for all the turns.
fn agree(aman: &Aman) -> Res<()> {
    let asked = until(|| {
        let waiting: Value = serde_json::from_str(&aman.get("/tool-auth/pending")?)?;
        Ok(waiting["items"][0]["id"].as_str().map(str::to_owned))
    })?;
    post(aman, "/tool-auth/respond", &json!({ "auth_id": asked, "approved": true, "remember": "always" }))?;
    Ok(())
}

/// Looks until there is something.
fn until<T>(mut look: impl FnMut() -> Res<Option<T>>) -> Res<T> {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if let Some(found) = look()? {
            return Ok(found);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Err("the command did not begin".into())
}
