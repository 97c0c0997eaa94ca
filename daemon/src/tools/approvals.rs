//! Approvals: a question to the person is a row, bound to exactly what would run, and so is its answer.
//!
//! The first answer wins. What nobody answers in time expires, by one task that sleeps until then and is not there while
//! nothing waits. A call that is made again, as after a crash, finds its question by its key.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::gate::{Need, Shared, unstored};
use super::{Call, Preview, Tool, ToolFailure, Tools};
use crate::bus::{Action, NewNotification, Notices, Origin, OwnEvent, Severity, StateWrite, put_away};
use crate::clock::{Millis, rfc3339};
use crate::error::Error;
use crate::event::{NewEvent, Trust};
use crate::id::{fresh, sha256_hex};
use crate::redact;
use crate::store::approvals::{self as rows, Answer, Approval, Remember, Rule, Status};
use crate::store::audit::{self, Outcome, Record};

/// The source of the events of approvals.
const SOURCE: &str = "aman/tools";
/// The longest sleep: a clock that was set forward is noticed then.
const SLEEP_MAX: Duration = Duration::from_secs(600);
/// How long to wait when the database could not be asked.
const RETRY: Duration = Duration::from_secs(5);
/// Longest text of arguments that is stored and shown, in bytes.
const ARGUMENTS_BYTES_MAX: usize = 64 << 10;
/// Longest preview, in characters.
const PREVIEW_CHARS_MAX: usize = 4000;

/// What a call tells while it goes on.
#[derive(Debug, Clone)]
pub enum Notice {
    /// The person is asked, and the call waits for the answer.
    Asks(Box<Pending>),
    /// The person said yes, and the call goes on.
    Agreed,
}

/// A question as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Pending {
    /// Names it in answers.
    pub id: String,
    /// How it stands.
    pub status: Status,
    /// The tool.
    pub tool: String,
    /// Who offers it.
    pub source: String,
    /// Its arguments, without secrets.
    pub arguments: Value,
    /// What it would touch, in words.
    pub preview: Option<String>,
    /// What an answer that is remembered would allow, as `exec: git status *`.
    pub pattern: String,
    /// Why it is asked.
    pub reason: String,
    /// For how long an answer may hold: `once`, `session`, `always`.
    pub remember: Vec<Remember>,
    /// Whose turn it is.
    pub agent: Option<String>,
    /// The session of that turn.
    pub session: Option<String>,
    /// Who is behind the call.
    pub principal: String,
    /// The lowest trust of what led to it.
    pub trust: Trust,
    /// Its trace.
    pub trace_id: String,
    /// SHA-256 of exactly what would run.
    pub digest: String,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339.
    pub expires_at: String,
    /// Who answered.
    pub answered_by: Option<String>,
}

impl Pending {
    fn of(asked: &Approval) -> Pending {
        let mut remember = vec![Remember::Once];
        if !asked.once {
            remember.extend(asked.session.as_ref().map(|_| Remember::Session));
            remember.push(Remember::Always);
        }
        Pending {
            id: asked.id.clone(),
            status: asked.status,
            tool: asked.tool.clone(),
            source: asked.source.clone(),
            arguments: serde_json::from_str(&asked.arguments).unwrap_or_default(),
            preview: asked.preview.clone(),
            pattern: format!("{}: {}", asked.tool, asked.pattern),
            reason: asked.reason.clone(),
            remember,
            agent: asked.agent.clone(),
            session: asked.session.clone(),
            principal: asked.principal.clone(),
            trust: asked.trust,
            trace_id: asked.trace.clone(),
            digest: asked.digest.clone(),
            created_at: rfc3339(asked.created_ms),
            expires_at: rfc3339(asked.expires_ms),
            answered_by: asked.answered_by.clone(),
        }
    }
}

/// A rule as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RuleShown {
    /// Names it.
    pub id: String,
    /// What it allows, as `exec: git status *`.
    pub pattern: String,
    /// Whose tool it is for: one of the same name that another offers is another tool.
    pub source: String,
    /// For whose turns; none = for calls that no agent makes.
    pub agent: Option<String>,
    /// For which session; none = for every.
    pub session: Option<String>,
    /// Who made it.
    pub principal: String,
    /// How many calls it has let pass.
    pub uses: i64,
    /// RFC 3339.
    pub created_at: String,
}

impl RuleShown {
    fn of(rule: &Rule) -> RuleShown {
        RuleShown {
            id: rule.id.clone(),
            pattern: format!("{}: {}", rule.tool, rule.pattern),
            source: rule.source.clone(),
            agent: rule.agent.clone(),
            session: rule.session.clone(),
            principal: rule.principal.clone(),
            uses: rule.uses,
            created_at: rfc3339(rule.created_ms),
        }
    }
}

/// What is in memory of approvals: who waits, and who sleeps until the next one expires.
pub(super) struct Approvals {
    /// Changes whenever a question was answered or has expired.
    changed: watch::Sender<u64>,
    /// True while a task sleeps until the next one expires.
    armed: AtomicBool,
    /// Told when there may be one that expires earlier.
    sooner: Arc<Notify>,
}

impl Default for Approvals {
    fn default() -> Approvals {
        Approvals { changed: watch::Sender::new(0), armed: AtomicBool::new(false), sooner: Arc::default() }
    }
}

/// SHA-256 of exactly what would run: the tool and who has it, its arguments, for whom, what it would touch, and what it
/// is granted. Keys of objects are in alphabetical order, so that the same is always written the same.
pub(super) fn digest_of(tool: &Tool, call: &Call, preview: &Preview) -> String {
    let caller = &call.caller;
    let whole = json!({
        "tool": tool.name,
        "source": tool.source,
        "permission": tool.permission,
        "arguments": call.arguments,
        "agent": caller.agent,
        "session": caller.session,
        "preview": preview.text,
        "subject": preview.subject,
        "tainted": caller.trust < Trust::Paired,
        "policy": caller.policy.as_ref(),
    });
    sha256_hex(whole.to_string().as_bytes())
}

impl Tools {
    /// Has the person agree to a call, by a rule or an answer.
    pub(super) async fn agreed(
        &self,
        (call, tool): (&Call, &Tool),
        preview: &Preview,
        need: Need,
        cancel: &CancellationToken,
        notice: &(dyn Fn(Notice) + Send + Sync),
        receipt: &Shared,
    ) -> Result<(), ToolFailure> {
        let store = self.inner.bus.store();
        let digest = receipt.lock().digest.clone();
        // Before it is asked, so that no answer is missed.
        let mut changed = self.inner.approvals.changed.subscribe();
        let key = call.key.clone();
        let known = store.read(move |conn| rows::by_key(conn, &key)).await.map_err(|error| unstored(&error))?;
        let known = known.filter(|known| !known.is_over());
        // What was asked about is decided by its answer: a rule would leave no trace that the call began.
        if !need.once && known.is_none() {
            let (whose, agent, session) = (tool.clone(), call.caller.agent.clone(), call.caller.session.clone());
            let rules = store.read(move |conn| {
                rows::rules_for(conn, (&whose.name, &whose.source), agent.as_deref(), session.as_deref())
            });
            let rules = rules.await.map_err(|error| unstored(&error))?;
            if let Some(rule) = rules.iter().find(|rule| super::pattern::fits(&rule.pattern, &preview.subject)) {
                receipt.lock().rule = Some(rule.id.clone());
                return Ok(());
            }
        }
        let asked = match known {
            Some(known) => known,
            None if call.caller.policy.unattended => {
                let reason = format!("{} Nobody is there to answer, so it is refused at once.", need.reason);
                return Err(ToolFailure::Refused("no_approver", reason));
            }
            None => self.ask((call, tool), preview, need, digest.clone().unwrap_or_default()).await?,
        };
        receipt.lock().approval = Some(asked.id.clone());
        if Some(&asked.digest) != digest.as_ref() {
            self.take_back(&asked).await;
            let reason =
                "this call was asked about before, and would now do something else. Ask anew, as another call.";
            return Err(ToolFailure::Refused("approval_changed", reason.to_owned()));
        }
        let waits = asked.status == Status::Pending;
        if waits {
            notice(Notice::Asks(Box::new(Pending::of(&asked))));
        }
        let answered = self.answered(asked, &mut changed, cancel).await?;
        let by = answered.answered_by.as_deref().unwrap_or("nobody");
        match answered.status {
            Status::Approved => {
                if waits {
                    notice(Notice::Agreed);
                }
                Ok(())
            }
            Status::Denied => {
                Err(ToolFailure::Refused("approval_denied", format!("{by} said no. Do not try it another way.")))
            }
            Status::Expired => {
                Err(ToolFailure::Refused("approval_expired", "nobody answered in time; it was not done.".to_owned()))
            }
            Status::Pending | Status::Withdrawn => Err(ToolFailure::Refused(
                "approval_expired",
                "the question was taken back; it was not done.".to_owned(),
            )),
        }
    }

    /// Waits for the end of a question.
    async fn answered(
        &self,
        mut asked: Approval,
        changed: &mut watch::Receiver<u64>,
        cancel: &CancellationToken,
    ) -> Result<Approval, ToolFailure> {
        while asked.status == Status::Pending {
            tokio::select! {
                heard = changed.changed() => if heard.is_err() {
                    return Err(ToolFailure::Failed("the gate is gone; nothing was done".to_owned()));
                },
                () = cancel.cancelled() => {
                    // A daemon that ends asks on after its next start.
                    if !self.inner.bus.is_draining() {
                        self.take_back(&asked).await;
                    }
                    let reason = "it was stopped while it waited for an approval; nothing was done";
                    return Err(ToolFailure::Failed(reason.to_owned()));
                }
                () = self.inner.ending.cancelled() => {
                    let reason = "aman ends while this waits for an approval; nothing was done, and the question stays";
                    return Err(ToolFailure::Failed(reason.to_owned()));
                }
            }
            let id = asked.id.clone();
            let now = self.inner.bus.store().read(move |conn| rows::by_id(conn, &id)).await;
            asked = now.map_err(|error| unstored(&error))?;
        }
        Ok(asked)
    }

    /// Stores the question, with its event and what the person is told.
    async fn ask(
        &self,
        (call, tool): (&Call, &Tool),
        preview: &Preview,
        need: Need,
        digest: String,
    ) -> Result<Approval, ToolFailure> {
        let caller = &call.caller;
        let now_ms = self.inner.bus.clock().now_ms();
        let time_ms = i64::try_from(self.inner.settings.load().approval_time.as_millis()).unwrap_or(i64::MAX / 4);
        let mut arguments = call.arguments.clone();
        redact::value(&mut arguments);
        let mut text = arguments.to_string();
        if text.len() > ARGUMENTS_BYTES_MAX {
            let begin: String = text.chars().take(ARGUMENTS_BYTES_MAX / 8).collect();
            text = json!({ "cut": begin, "bytes": text.len() }).to_string();
        }
        let shown = |text: &str| {
            let text = redact::text(text);
            match text.char_indices().nth(PREVIEW_CHARS_MAX) {
                Some((end, _)) => format!("{}\n[cut here: {end} of {} bytes are shown]", &text[..end], text.len()),
                None => text.into_owned(),
            }
        };
        let new = Approval {
            id: fresh(),
            key: call.key.clone(),
            digest,
            tool: call.tool.clone(),
            source: tool.source.clone(),
            arguments: text,
            preview: preview.text.as_deref().map(shown),
            pattern: if preview.pattern.is_empty() { "*".to_owned() } else { preview.pattern.clone() },
            reason: need.reason,
            // A rule with a secret in it could not be shown, and of one that is too long only a part, which allows something else.
            once: need.once
                || redact::is_in(&preview.pattern)
                || preview.pattern.chars().nth(PREVIEW_CHARS_MAX).is_some(),
            agent: caller.agent.clone(),
            session: caller.session.clone(),
            principal: caller.principal.clone(),
            trust: caller.trust,
            trace: caller.trace.to_string(),
            status: Status::Pending,
            remember: Remember::Once,
            answered_by: None,
            created_ms: now_ms,
            expires_ms: now_ms.saturating_add(time_ms),
            answered_ms: None,
            begun_ms: None,
        };
        let new = Approval { pattern: shown(&new.pattern), ..new };
        let event = self.event(&new, "aman.approval.requested").await;
        let notices = self.notices(&new).await;
        let stored = self.inner.bus.store().write(move |tx| {
            let (asked, is_new) = rows::ask(tx, &new)?;
            if is_new {
                event.store(tx)?;
                notices.store(tx, now_ms)?;
            }
            Ok(asked)
        });
        let asked = stored.await.map_err(|error| unstored(&error))?;
        self.watch_expiry();
        Ok(asked)
    }

    async fn event(&self, asked: &Approval, kind: &str) -> OwnEvent {
        let shown = Pending::of(asked);
        let data = json!({
            "id": shown.id, "tool": shown.tool, "source": shown.source, "pattern": shown.pattern, "preview": shown.preview, "reason": shown.reason,
            "remember": shown.remember, "agent": shown.agent, "session": shown.session, "status": shown.status,
            "expires_at": shown.expires_at, "answered_by": shown.answered_by,
        });
        let mut event = NewEvent::new(SOURCE, kind, &data);
        event.subject = Some(asked.id.clone());
        event.trace = asked.trace.parse().ok();
        // What it tells comes from the call.
        self.inner.bus.own_event(event, Origin { trust: asked.trust, ..Origin::own(SOURCE) }).await
    }

    async fn notices(&self, asked: &Approval) -> Notices {
        let who = asked.agent.as_ref().map_or_else(|| asked.principal.clone(), |agent| format!("The agent '{agent}'"));
        let what = asked.preview.clone().unwrap_or_else(|| asked.arguments.chars().take(500).collect());
        let message = format!("{} {what} Answer: aman approve {}", asked.reason, asked.id);
        let told = NewNotification {
            title: format!("{who} asks: may it use {}?", asked.tool),
            message,
            severity: Severity::Warning,
            category: Some("approval".to_owned()),
            action: Some(Action { label: "Answer".to_owned(), url: format!("/#approval={}", asked.id) }),
            fingerprint: Some(asked.id.clone()),
        };
        let consumer = teller(asked);
        self.inner.bus.notices((&consumer, "tools"), asked.trust, None, vec![told]).await
    }

    /// Takes a question back whose call was given up, unless the daemon ends, which asks on after its next start.
    pub(super) async fn give_up(&self, id: &str) {
        let id = id.to_owned();
        if self.inner.bus.is_draining() || self.inner.ending.is_cancelled() {
            return;
        }
        if let Ok(asked) = self.inner.bus.store().read(move |conn| rows::by_id(conn, &id)).await {
            self.take_back(&asked).await;
        }
    }

    async fn take_back(&self, asked: &Approval) {
        let (teller, id, now_ms) = (teller(asked), asked.id.clone(), self.inner.bus.clock().now_ms());
        let taken = self.inner.bus.store().write(move |tx| {
            rows::withdraw(tx, &id, now_ms)?;
            put_away(tx, &teller, &id, now_ms)
        });
        if let Err(error) = taken.await {
            tracing::warn!(error = error.chain().join(": "), "An approval could not be withdrawn; it will expire.");
        }
        self.tell();
    }

    fn tell(&self) {
        self.inner.approvals.changed.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// What waits for an answer, oldest first.
    pub async fn pending(&self) -> Result<Vec<Pending>, Error> {
        let waiting = self.inner.bus.store().read(rows::pending).await?;
        Ok(waiting.iter().map(Pending::of).collect())
    }

    /// Whether a call that was cut off can be made again: the tool is one where twice is as once, or the call was asked about
    /// and had not begun to act. Nobody knows of a tool that is gone.
    pub async fn may_repeat(&self, tool: &str, key: &str) -> bool {
        if self.get(tool).is_some_and(|tool| tool.repeatable) {
            return true;
        }
        let key = key.to_owned();
        let asked = self.inner.bus.store().read(move |conn| rows::by_key(conn, &key)).await;
        matches!(asked, Ok(Some(asked)) if !asked.is_over())
    }

    /// One question, however it stands.
    pub async fn approval(&self, id: &str) -> Result<Pending, Error> {
        let id = id.to_owned();
        let asked = self.inner.bus.store().read(move |conn| rows::by_id(conn, &id)).await?;
        Ok(Pending::of(&asked))
    }

    /// Answers a question. The first answer wins: `invalid_state` for every other, and for one that comes too late.
    pub async fn respond(
        &self,
        id: &str,
        approved: bool,
        remember: Remember,
        principal: &str,
    ) -> Result<Pending, Error> {
        let record = Record {
            at_ms: self.inner.bus.clock().now_ms(),
            principal: principal.to_owned(),
            claimed_operator: None,
            action: "approval.respond".to_owned(),
            target: id.to_owned(),
            outcome: Outcome::Done,
            status: 200,
            trace: None,
            detail: json!({ "approved": approved, "remember": remember }),
            before_digest: None,
            after_digest: None,
        };
        let answer = Answer { id: id.to_owned(), approved, remember, principal: principal.to_owned() };
        self.respond_with(answer, Box::new(move |tx| audit::append(tx, &record).map(drop))).await
    }

    /// As [`Tools::respond`], with what records it in the same transaction.
    pub async fn respond_with(&self, answer: Answer, record: StateWrite) -> Result<Pending, Error> {
        let (store, now_ms) = (self.inner.bus.store(), self.inner.bus.clock().now_ms());
        let id = answer.id.clone();
        let before = store.read(move |conn| rows::by_id(conn, &id)).await?;
        let status = if answer.approved { Status::Approved } else { Status::Denied };
        let after = Approval { status, answered_by: Some(answer.principal.clone()), ..before };
        let event = self.event(&after, "aman.approval.answered").await;
        let answered = store.write(move |tx| {
            let answered = rows::answer(tx, &answer, now_ms)?;
            put_away(tx, &teller(&answered), &answered.id, now_ms)?;
            event.store(tx)?;
            record(tx)?;
            Ok(answered)
        });
        let answered = answered.await?;
        self.tell();
        Ok(Pending::of(&answered))
    }

    /// Every rule, oldest first.
    pub async fn rules(&self) -> Result<Vec<RuleShown>, Error> {
        let rules = self.inner.bus.store().read(rows::rules).await?;
        Ok(rules.iter().map(RuleShown::of).collect())
    }

    /// Revokes a rule; `record` is given it, and commits with that.
    pub async fn revoke(
        &self,
        id: &str,
        record: impl FnOnce(&mut crate::store::Tx<'_>, &RuleShown) -> Result<(), Error> + Send + 'static,
    ) -> Result<RuleShown, Error> {
        let id = id.to_owned();
        let revoked = self.inner.bus.store().write(move |tx| {
            let shown = RuleShown::of(&rows::revoke(tx, &id)?);
            record(tx, &shown)?;
            Ok(shown)
        });
        revoked.await
    }

    /// Sees to it that a task sleeps until the next question expires, if any waits.
    pub(super) fn watch_expiry(&self) {
        let approvals = &self.inner.approvals;
        approvals.sooner.notify_one();
        if approvals.armed.swap(true, Ordering::AcqRel) {
            return;
        }
        let (inner, sooner) = (Arc::downgrade(&self.inner), Arc::clone(&approvals.sooner));
        tokio::spawn(async move {
            loop {
                let Some(inner) = inner.upgrade() else { return };
                let tools = Tools { inner };
                let sleep = match tools.expire_due().await {
                    Ok(Some(sleep)) => sleep.min(SLEEP_MAX),
                    Ok(None) => {
                        // Whoever asks from here on begins a task of its own, or is seen below.
                        tools.inner.approvals.armed.store(false, Ordering::Release);
                        let waits =
                            tools.inner.bus.store().read(rows::next_expiry).await.is_ok_and(|next| next.is_some());
                        if !waits || tools.inner.approvals.armed.swap(true, Ordering::AcqRel) {
                            return;
                        }
                        Duration::ZERO
                    }
                    Err(error) => {
                        tracing::warn!(error = error.chain().join(": "), "Approvals could not be looked at.");
                        RETRY
                    }
                };
                drop(tools);
                tokio::select! {
                    () = tokio::time::sleep(sleep) => {}
                    () = sooner.notified() => {}
                }
            }
        });
    }

    /// Ends what nobody answered in time; gives how long the next one still has.
    async fn expire_due(&self) -> Result<Option<Duration>, Error> {
        let (store, now_ms) = (self.inner.bus.store(), self.inner.bus.clock().now_ms());
        let Some(next_ms) = store.read_here(rows::next_expiry).await? else { return Ok(None) };
        if next_ms > now_ms {
            return Ok(Some(millis(next_ms - now_ms)));
        }
        let due = store.read_here(rows::pending).await?;
        let mut events = Vec::new();
        for asked in due.into_iter().filter(|asked| asked.expires_ms <= now_ms) {
            let over = Approval { status: Status::Expired, ..asked };
            events.push((over.id.clone(), self.event(&over, "aman.approval.expired").await));
        }
        let next = store.write(move |tx| {
            for asked in rows::expire(tx, now_ms)? {
                audit::append(tx, &expired(&asked, now_ms))?;
                put_away(tx, &teller(&asked), &asked.id, now_ms)?;
                if let Some((_, event)) = events.iter().find(|(id, _)| *id == asked.id) {
                    event.store(tx)?;
                }
            }
            Ok(())
        });
        next.await?;
        self.tell();
        let next_ms = store.read_here(rows::next_expiry).await?;
        Ok(next_ms.map(|next_ms| millis(next_ms.saturating_sub(now_ms))))
    }
}

/// Who tells the person of a question.
fn teller(asked: &Approval) -> String {
    asked.agent.as_ref().map_or_else(|| "tools".to_owned(), |agent| format!("agent/{agent}"))
}

fn millis(wait_ms: Millis) -> Duration {
    Duration::from_millis(u64::try_from(wait_ms).unwrap_or(0))
}

fn expired(asked: &Approval, now_ms: Millis) -> Record {
    Record {
        at_ms: now_ms,
        principal: SOURCE.to_owned(),
        claimed_operator: None,
        action: "approval.expire".to_owned(),
        target: asked.id.clone(),
        outcome: Outcome::Done,
        status: 200,
        trace: Some(asked.trace.clone()),
        detail: json!({ "tool": asked.tool, "agent": asked.agent, "session": asked.session, "digest": asked.digest }),
        before_digest: None,
        after_digest: None,
    }
}
