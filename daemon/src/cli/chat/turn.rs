//! One turn as it happens: words on stdout, everything else beside them, questions in between.

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::super::Context;
use super::super::client::{Call, Client, segment};
use super::super::failure::Failure;
use super::super::out::{clean, clean_lines, shorten, text};
use super::lines::{self, Lines};
use crate::sse::{Frame, Parser};

/// The daemon sends a comment every 15 s: after three missed ones the connection is dead.
const SILENCE_MAX: Duration = Duration::from_secs(50);
/// Longest frame.
const FRAME_BYTES_MAX: usize = 16 << 20;
/// Characters of arguments and results that a line shows.
const SHOWN_CHARS: usize = 200;
/// Characters of what a question is about that are shown with it.
const ARGUMENTS_CHARS: usize = 2000;

/// How a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With an answer.
    Done,
    /// Because somebody stopped it.
    Stopped,
    /// Without an answer; why is told.
    Failed,
    /// It goes on, and nobody looks any more.
    Left,
}

/// A turn that is followed.
pub struct Turn {
    client: Client,
    session: String,
    /// Where answers come from; none = questions are told only.
    lines: Option<Lines>,
    /// Whether the last word ended its line.
    fresh: bool,
    /// The question that is open.
    asked: Option<String>,
    /// Whether the cursor stands behind a question.
    prompted: bool,
    stops: u32,
}

impl Turn {
    pub fn new(client: Client, session: &str, lines: Option<Lines>) -> Turn {
        Turn { client, session: session.to_owned(), lines, fresh: true, asked: None, prompted: false, stops: 0 }
    }

    /// Shows what comes until the turn ends.
    pub async fn follow(mut self, context: &mut Context, mut stream: Incoming) -> Result<End, Failure> {
        let mut parser = Parser::new(FRAME_BYTES_MAX);
        loop {
            let answers = self.lines.clone().filter(|_| self.asked.is_some());
            let answer = async {
                match &answers {
                    Some(lines) => lines.next().await,
                    None => std::future::pending().await,
                }
            };
            let part = tokio::select! {
                part = timeout(SILENCE_MAX, stream.frame()) => part,
                line = answer => {
                    self.answered(context, line).await?;
                    continue;
                }
                _ = tokio::signal::ctrl_c() => {
                    if let Some(end) = self.interrupt(context) {
                        return Ok(end);
                    }
                    continue;
                }
            };
            let why = match part {
                Err(_) => format!("nothing for {} s", SILENCE_MAX.as_secs()),
                Ok(None) => "closed by the daemon".to_owned(),
                Ok(Some(Err(error))) => error.to_string(),
                Ok(Some(Ok(part))) => {
                    let Ok(bytes) = part.into_data() else { continue };
                    for frame in parser.feed(&bytes) {
                        if let Some(end) = self.show(context, &frame)? {
                            context.out.flush()?;
                            return Ok(end);
                        }
                    }
                    context.out.flush()?;
                    continue;
                }
            };
            self.end_line(context)?;
            let session = clean(&self.session);
            context.out.complain(&format!(
                "aman: the stream ended ({why}). The turn goes on without it: `aman session show {session}`."
            ));
            return Ok(End::Left);
        }
    }

    /// Shows one frame; its end, if it is one.
    fn show(&mut self, context: &mut Context, frame: &Frame) -> Result<Option<End>, Failure> {
        let data: Value = serde_json::from_str(&frame.data).unwrap_or(Value::Null);
        let kind = frame.event.as_deref().unwrap_or_default();
        let end = match kind {
            "done" if data["status"] == "stopped" => Some(End::Stopped),
            "done" => Some(End::Done),
            "error" => Some(End::Failed),
            _ => None,
        };
        if kind != "usage" {
            self.leave_prompt();
        }
        if kind == "tool_result" {
            // Whoever answered, the question is over.
            self.asked = None;
        }
        if context.out.json() {
            context.out.line(&json!({ "event": kind, "data": data }).to_string())?;
            if kind == "approval_required" {
                self.ask(context, &data);
            }
            return Ok(end);
        }
        match kind {
            "token" => self.words(context, data["text"].as_str().unwrap_or_default())?,
            "restart" => self.note(context, "[the answer begins anew]")?,
            "tool_call" => {
                let line = format!("[{} {}]", text(&data["name"]), shorten(&text(&data["arguments"]), SHOWN_CHARS));
                self.note(context, &line)?;
            }
            "tool_result" if data["is_error"] == true => {
                let line = format!("[{}: {}]", text(&data["name"]), shorten(&text(&data["text"]), SHOWN_CHARS));
                self.note(context, &line)?;
            }
            "approval_required" => {
                self.end_line(context)?;
                self.ask(context, &data);
            }
            "done" | "error" => self.ended(context, kind, &data)?,
            _ => {}
        }
        Ok(end)
    }

    fn ended(&mut self, context: &mut Context, kind: &str, data: &Value) -> Result<(), Failure> {
        self.end_line(context)?;
        if kind == "error" {
            let (detail, code) = (text(&data["detail"]), text(&data["code"]));
            context.out.complain(&format!("aman: {detail} ({code})"));
        } else if data["status"] == "stopped" {
            context.out.complain("[stopped]");
        }
        Ok(())
    }

    fn words(&mut self, context: &mut Context, words: &str) -> Result<(), Failure> {
        let words = clean_lines(words);
        self.fresh = words.ends_with('\n') || (self.fresh && words.is_empty());
        context.out.words(&words)
    }

    fn end_line(&mut self, context: &mut Context) -> Result<(), Failure> {
        if !std::mem::replace(&mut self.fresh, true) {
            context.out.line("")?;
        }
        context.out.flush()
    }

    /// Goes on below a question that nobody answers here any more.
    fn leave_prompt(&mut self) {
        if std::mem::take(&mut self.prompted) {
            lines::show("\n");
        }
    }

    /// A line beside the words.
    fn note(&mut self, context: &mut Context, line: &str) -> Result<(), Failure> {
        self.end_line(context)?;
        context.out.complain(line);
        Ok(())
    }

    /// Shows a question, and how it can be answered.
    fn ask(&mut self, context: &mut Context, data: &Value) {
        let id = [&data["auth_id"], &data["id"]].into_iter().map(text).find(|id| !id.is_empty()).unwrap_or_default();
        let agent = Some(text(&data["agent"])).filter(|agent| !agent.is_empty());
        let who = agent.unwrap_or_else(|| "The agent".to_owned());
        let mut lines = vec![format!("{who} wants to run {}", text(&data["tool"]))];
        let arguments = text(&data["arguments"]);
        let shown = shorten(&arguments, ARGUMENTS_CHARS);
        lines.push(format!("  with   {shown}"));
        if shown != arguments {
            lines.push(format!("         `aman approve {id}` shows all of it"));
        }
        for (name, key) in [("  does   ", "preview"), ("  why    ", "reason"), ("  always allows   ", "pattern")] {
            let shown = data[key].as_str().map(clean_lines).unwrap_or_default();
            if !shown.is_empty() {
                lines.push(format!("{name}{}", shown.trim_end()));
            }
        }
        lines.iter().for_each(|line| context.out.complain(line));
        if let Some(lines) = &self.lines {
            lines.forget();
            lines::show("Allow it? [y]es, [n]o, for this [s]ession, [a]lways: ");
            self.prompted = true;
        } else {
            context.out.complain(&format!("It waits for an answer: `aman approve {id}`."));
        }
        self.asked = Some(id);
    }

    /// Passes on what the person answered to the open question.
    async fn answered(&mut self, context: &mut Context, line: Option<String>) -> Result<(), Failure> {
        let Some(id) = self.asked.clone() else { return Ok(()) };
        let Some(line) = line else {
            // Nobody is there any more; somebody elsewhere may answer.
            self.lines = None;
            return Ok(());
        };
        self.prompted = false;
        let (approved, remember) = match line.trim().to_ascii_lowercase().as_str() {
            "y" | "yes" => (true, "once"),
            "n" | "no" => (false, "once"),
            "s" | "session" => (true, "session"),
            "a" | "always" => (true, "always"),
            _ => {
                lines::show("Please answer y, n, s or a: ");
                self.prompted = true;
                return Ok(());
            }
        };
        let body = json!({ "auth_id": id, "approved": approved, "remember": remember }).to_string();
        let call = Call::post("/tool-auth/respond").body("application/json", body);
        if let Err(failure) = self.client.call(call).await {
            context.out.complain(&format!("aman: {}", failure.message()));
            let is_over = matches!(&failure, Failure::Refused(reply) if reply.status == 409);
            if !is_over {
                lines::show("Allow it? [y]es or [n]o: ");
                self.prompted = true;
                return Ok(());
            }
        }
        self.asked = None;
        Ok(())
    }

    /// Ctrl-C: the first stops the turn, the second leaves it.
    fn interrupt(&mut self, context: &mut Context) -> Option<End> {
        self.stops += 1;
        self.leave_prompt();
        if self.stops > 1 {
            context.out.complain("[left; the turn ends by itself]");
            return Some(End::Left);
        }
        let (client, session) = (self.client.clone(), segment(&self.session));
        // What comes of it is the end of the stream.
        tokio::spawn(async move { client.call(Call::post(format!("/chat/session/{session}/stop"))).await });
        None
    }
}
