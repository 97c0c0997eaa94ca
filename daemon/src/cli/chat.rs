//! `aman chat`: talking with an agent, on a terminal or once.

mod attach;
mod commands;
mod lines;
mod turn;

use std::io::{self, IsTerminal, Read};
use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::Context;
use super::client::{Call, segment};
use super::failure::{FAILED, Failure, LEFT, STOPPED};
use super::out::{clean, text};
use lines::Lines;
use turn::{End, Turn};

/// Longest text that is read from stdin, in bytes: 100,000 characters, as many as the daemon takes.
const TEXT_BYTES_MAX: u64 = 400_000;

/// Talks with an agent.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman chat                                  talk; /help lists what can be typed besides
  aman chat --agent aman --session 0193…     go on with a session
  aman chat -m 'What happened today?'        once, and only the answer on stdout
  git diff | aman chat -m 'Review this' --attach -
  echo 'Hello' | aman chat --json            frames as JSON lines

On a terminal the answer appears as it is written, calls of tools that must be allowed are asked about, and Ctrl-C stops the
answer. A line that ends with \\ goes on with the next one. The session stays: `aman session list`.

Exit codes of one answer: 0 it is there, 1 it failed, 3 the session takes none now, 4 it was stopped, 5 it goes on without
you.")]
pub struct ChatArgs {
    /// Say this and end with the answer; without it, and with stdin piped, stdin is what is said
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// Go on with this session
    #[arg(long, value_name = "ID")]
    session: Option<String>,
    /// Talk with this agent, in a new session
    #[arg(long, value_name = "ID", conflicts_with = "session")]
    agent: Option<String>,
    /// Send a text file or a picture along; - is stdin
    #[arg(long, value_name = "FILE")]
    attach: Vec<PathBuf>,
}

/// What is talked in.
struct Talk {
    /// The session, once there is one.
    session: Option<String>,
    /// The agent of the next session.
    agent: Option<String>,
}

pub async fn run(context: &mut Context, args: ChatArgs) -> Result<(), Failure> {
    let mut talk = Talk { session: args.session, agent: args.agent };
    let attachments = attach::read(&args.attach)?;
    match said(args.message)? {
        Some(said) => once(context, &mut talk, &said, attachments).await,
        None if context.out.json() => Err(Failure::Usage(
            "With --json say something with -m, or by stdin: `echo Hello | aman chat --json`.".to_owned(),
        )),
        None => interactive(context, &mut talk, attachments).await,
    }
}

/// Has an agent take one turn in a new session: `aman agent run`.
pub async fn run_once(
    context: &mut Context,
    agent: String,
    message: Option<String>,
    attach: &[PathBuf],
) -> Result<(), Failure> {
    let attachments = attach::read(attach)?;
    let none = || Failure::Usage("Say what it is to do: `aman agent run ID TEXT`, or text by stdin.".to_owned());
    let said = said(message)?.ok_or_else(none)?;
    once(context, &mut Talk { session: None, agent: Some(agent) }, &said, attachments).await
}

/// What is said: the words given, else what is piped in; none where a person is to be asked.
fn said(message: Option<String>) -> Result<Option<String>, Failure> {
    match message {
        Some(message) => Ok(Some(message)),
        None if !io::stdin().is_terminal() => piped().map(Some),
        None => Ok(None),
    }
}

fn piped() -> Result<String, Failure> {
    let mut text = String::new();
    let read = io::stdin().lock().take(TEXT_BYTES_MAX + 1).read_to_string(&mut text);
    read.map_err(|error| Failure::Failed(format!("stdin cannot be read as text: {error}.")))?;
    if text.len() as u64 > TEXT_BYTES_MAX {
        return Err(Failure::Usage("stdin holds more than 100,000 characters. Attach it: --attach -.".to_owned()));
    }
    if text.trim().is_empty() {
        return Err(Failure::Usage("Nothing is said: give a text (`aman chat -m TEXT`), or pipe one in.".to_owned()));
    }
    Ok(text)
}

/// Says one thing, shows the answer and ends; the exit code says how.
async fn once(context: &mut Context, talk: &mut Talk, said: &str, attachments: Vec<Value>) -> Result<(), Failure> {
    let is_new = talk.session.is_none();
    let session = session(context, talk).await?;
    let end = match say(context, &session, said, attachments, Lines::for_answers()).await {
        // Nothing was said in it, so nobody misses it; that it could not be removed is nothing to tell then.
        Err(failure @ Failure::Refused(_)) if is_new => {
            let gone = Call::delete(format!("/chat/session/{}", segment(&session))).header("x-aman-confirm", "yes");
            drop(context.call(gone).await);
            return Err(failure);
        }
        said => said?,
    };
    // Why is told already.
    match end {
        End::Done => Ok(()),
        End::Failed => Err(Failure::Said(FAILED)),
        End::Stopped => Err(Failure::Said(STOPPED)),
        End::Left => Err(Failure::Said(LEFT)),
    }
}

/// The session that is talked in, begun when there is none yet.
async fn session(context: &Context, talk: &mut Talk) -> Result<String, Failure> {
    if let Some(session) = &talk.session {
        return Ok(session.clone());
    }
    let body = json!({ "agent_id": talk.agent }).to_string();
    let begun = context.call(Call::post("/chat/session/create").body("application/json", body)).await?.json()?;
    let id = text(&begun["id"]);
    talk.session = Some(id.clone());
    Ok(id)
}

/// Says something and follows the turn.
async fn say(
    context: &mut Context,
    session: &str,
    said: &str,
    attachments: Vec<Value>,
    lines: Option<Lines>,
) -> Result<End, Failure> {
    let mut body = json!({ "text": said });
    if !attachments.is_empty() {
        body["attachments"] = attachments.into();
    }
    take(context, session, "send", &body, lines).await
}

/// Has a turn taken by `POST /chat/session/{id}/{route}`, and follows it to its end.
async fn take(
    context: &mut Context,
    session: &str,
    route: &str,
    body: &Value,
    lines: Option<Lines>,
) -> Result<End, Failure> {
    let call = Call::post(format!("/chat/session/{}/{route}", segment(session)))
        .body("application/json", body.to_string())
        .header("accept", "text/event-stream");
    let client = context.client()?;
    let stream = client.stream(call).await?;
    Turn::new(client, session, lines).follow(context, stream).await
}

/// Talks until the person has enough.
async fn interactive(context: &mut Context, talk: &mut Talk, mut attachments: Vec<Value>) -> Result<(), Failure> {
    let Some(lines) = Lines::of_terminal() else {
        return Err(Failure::Usage("There is no terminal to talk on; say something with -m.".to_owned()));
    };
    welcome(context, talk).await?;
    loop {
        let Some(said) = lines.ask("you> ").await else {
            context.out.complain("");
            return Ok(());
        };
        let said = said.trim();
        if said.is_empty() {
            continue;
        }
        let done = match said.strip_prefix('/') {
            Some(command) if !said.starts_with("//") => match commands::run(context, talk, command, &lines).await {
                Ok(commands::Next::Quit) => return Ok(()),
                Ok(commands::Next::Go) => Ok(()),
                Err(failure) => Err(failure),
            },
            // Two slashes are one, so that a text may begin with it.
            _ => {
                let said = said.strip_prefix('/').unwrap_or(said);
                let attached = std::mem::take(&mut attachments);
                match session(context, talk).await {
                    Ok(session) => say(context, &session, said, attached, Some(lines.clone())).await.map(drop),
                    Err(failure) => Err(failure),
                }
            }
        };
        match done {
            Ok(()) => {}
            Err(failure @ Failure::PipeClosed) => return Err(failure),
            // One thing that does not work ends no conversation.
            Err(failure) => context.out.complain(&format!("aman: {}", failure.message())),
        }
    }
}

/// Says where one is; fails when nobody could answer.
async fn welcome(context: &mut Context, talk: &Talk) -> Result<(), Failure> {
    match &talk.session {
        Some(session) => {
            let state = context.call(Call::get(format!("/chat/session/{}/state", segment(session)))).await?.json()?;
            let title = clean(state["title"].as_str().unwrap_or("(no title)"));
            context.out.line(&format!("{title}, with {}. /help lists what can be typed.", text(&state["agent_id"])))?;
            commands::show_last(context, &state, 4)?;
        }
        None => {
            let agent = talk.agent.as_deref().unwrap_or("aman");
            context.call(Call::get(format!("/agent/{}", segment(agent)))).await?;
            context
                .out
                .line(&format!("You talk with {}. /help lists what can be typed, Ctrl-D ends.", clean(agent)))?;
        }
    }
    context.out.flush()
}
