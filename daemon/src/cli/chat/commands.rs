//! What begins with a slash.

use std::path::Path;

use serde_json::{Value, json};

use super::super::Context;
use super::super::client::{Call, segment};
use super::super::failure::Failure;
use super::super::out::{clean, clean_lines, text, text_or_dash, time};
use super::super::session::{export_to, rows};
use super::super::usage::spent;
use super::lines::Lines;
use super::{Talk, take};

const HELP: &str = "\
/new [AGENT]     begin a new session
/sessions        list your sessions
/open ID         go on with another session
/history         show what was said last
/title TEXT      give the session a title
/retry           have your last message answered once more
/edit TEXT       say your last message anew, as TEXT
/export [FILE]   write the conversation out as Markdown
/agent [ID]      who you talk with, or talk with another agent in a new session
/usage           what the session took
/quit            end; so does Ctrl-D. Ctrl-C stops an answer
A line that ends with \\ goes on with the next; // at the begin is one /.";
/// Sessions that are listed.
const LISTED: u64 = 20;
/// Messages that the history shows.
const SHOWN: usize = 20;

/// What follows a command.
pub enum Next {
    /// The next line.
    Go,
    /// The end.
    Quit,
}

/// Runs what was typed behind the slash.
pub async fn run(context: &mut Context, talk: &mut Talk, typed: &str, lines: &Lines) -> Result<Next, Failure> {
    let (name, rest) = typed.split_once(char::is_whitespace).unwrap_or((typed, ""));
    let rest = rest.trim();
    match name {
        "quit" | "exit" | "q" => return Ok(Next::Quit),
        "help" | "h" | "?" => HELP.lines().try_for_each(|line| context.out.line(line))?,
        "new" => begin(context, talk, rest).await?,
        "agent" if rest.is_empty() => {
            let state = state(context, talk).await?;
            context.out.line(&text(&state["agent_id"]))?;
        }
        "agent" => begin(context, talk, rest).await?,
        "sessions" => sessions(context).await?,
        "open" => open(context, talk, rest).await?,
        "history" => {
            let state = state(context, talk).await?;
            show_last(context, &state, SHOWN)?;
        }
        "title" => {
            let body = json!({ "title": rest }).to_string();
            let call = Call::post(format!("{}/rename", place(talk)?)).body("application/json", body);
            let renamed = context.call(call).await?.json()?;
            context.out.line(&format!("Its title is '{}' now.", text(&renamed["title"])))?;
        }
        "retry" => {
            let session = current(talk)?.to_owned();
            take(context, &session, "retry", &json!({}), Some(lines.clone())).await?;
        }
        "edit" => edit(context, talk, rest, lines).await?,
        "export" => {
            let session = current(talk)?.to_owned();
            export_to(context, &session, "md", (!rest.is_empty()).then(|| Path::new(rest))).await?;
        }
        "usage" => usage(context, talk).await?,
        _ => {
            let name = clean(name);
            return Err(Failure::Usage(format!(
                "There is no /{name}. /help lists what there is; // is a text with /."
            )));
        }
    }
    context.out.flush()?;
    Ok(Next::Go)
}

fn current(talk: &Talk) -> Result<&str, Failure> {
    let none = || Failure::Usage("There is no session yet; say something, or /open one.".to_owned());
    talk.session.as_deref().ok_or_else(none)
}

fn place(talk: &Talk) -> Result<String, Failure> {
    Ok(format!("/chat/session/{}", segment(current(talk)?)))
}

async fn state(context: &Context, talk: &Talk) -> Result<Value, Failure> {
    context.call(Call::get(format!("{}/state", place(talk)?))).await?.json()
}

async fn begin(context: &mut Context, talk: &mut Talk, agent: &str) -> Result<(), Failure> {
    if !agent.is_empty() {
        context.call(Call::get(format!("/agent/{}", segment(agent)))).await?;
        talk.agent = Some(agent.to_owned());
    }
    talk.session = None;
    let agent = talk.agent.as_deref().unwrap_or("aman");
    context.out.line(&format!("A new session with {} begins with what you say next.", clean(agent)))
}

async fn sessions(context: &mut Context) -> Result<(), Failure> {
    let call = Call::get("/chat/sessions").query("kind", "person").query("limit", LISTED);
    let page = context.call(call).await?.json()?;
    let items = page["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    if items.is_empty() {
        return context.out.line("There is none yet.");
    }
    rows(context, items)
}

async fn open(context: &mut Context, talk: &mut Talk, id: &str) -> Result<(), Failure> {
    if id.is_empty() {
        return Err(Failure::Usage("Say which: /open ID, from /sessions.".to_owned()));
    }
    let state = context.call(Call::get(format!("/chat/session/{}/state", segment(id)))).await?.json()?;
    talk.session = Some(text(&state["id"]));
    context.out.line(&format!("{}, with {}.", text_or_dash(&state["title"]), text(&state["agent_id"])))?;
    show_last(context, &state, 4)
}

async fn edit(context: &mut Context, talk: &Talk, said: &str, lines: &Lines) -> Result<(), Failure> {
    if said.is_empty() {
        return Err(Failure::Usage("Say it anew: /edit TEXT.".to_owned()));
    }
    let state = state(context, talk).await?;
    let messages = state["messages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let last = messages.iter().rev().find(|message| message["role"] == "user");
    let Some(last) = last else { return Err(Failure::Usage("You said nothing yet.".to_owned())) };
    let body = json!({ "message_id": last["id"], "text": said });
    let session = current(talk)?.to_owned();
    take(context, &session, "edit", &body, Some(lines.clone())).await.map(drop)
}

async fn usage(context: &mut Context, talk: &Talk) -> Result<(), Failure> {
    let state = state(context, talk).await?;
    context.out.line(&format!("It took {}.", spent(&state["usage"])))
}

/// Shows the last messages of a state, what tools did left out.
pub fn show_last(context: &mut Context, state: &Value, count: usize) -> Result<(), Failure> {
    let messages = state["messages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let said =
        |message: &&Value| message["role"] != "tool" && message["text"].as_str().is_some_and(|text| !text.is_empty());
    let said: Vec<&Value> = messages.iter().filter(said).collect();
    for message in said.iter().skip(said.len().saturating_sub(count)) {
        let who = if message["role"] == "user" { "you" } else { "agent" };
        context.out.line(&format!("{who} ({}):", time(&message["created_at"])))?;
        context.out.line(&clean_lines(message["text"].as_str().unwrap_or_default()))?;
    }
    Ok(())
}
