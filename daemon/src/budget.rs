//! Budgets: what calls of models may cost, in tokens and in money. Room is reserved durably before a call and settled
//! after it, so that calls side by side never take the same room twice, and what a crash cut off counts as spent.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::bus::{self, Bus};
use crate::clock::{Millis, rfc3339};
use crate::error::Error;
use crate::event::NewEvent;
use crate::models::Usage;
use crate::redact;
use crate::store::audit::{self, Outcome, Record};
pub use crate::store::usage::ALL;
use crate::store::usage::{self as rows, EVER, Reservation, Spent, Used};
use crate::store::{Reading, Tx};

/// Millionths of a unit of money.
const MICROS: f64 = 1_000_000.0;
/// The most that a limit may say, in units of money.
pub const MONEY_MAX: f64 = 1_000_000_000.0;

/// What `[budget]` says.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// What everything together may use on a day.
    pub day: Limit,
    /// The share of a limit from which on a cheaper model is taken, 0 to 1.
    pub soft: f64,
}

/// A limit; 0 = none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limit {
    /// Tokens, asked and answered.
    pub tokens: u64,
    /// Millionths of the currency of the price table.
    pub micros: u64,
}

/// The limits of one agent, as its definition says them; 0 = none. Money is in units of the price table.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Tokens of all its calls on a day (UTC).
    pub day_tokens: u64,
    /// Money of all its calls on a day.
    pub day_money: f64,
    /// Tokens of one session, over its whole life.
    pub session_tokens: u64,
    /// Money of one session.
    pub session_money: f64,
    /// Tokens of what one job has it do on a day.
    pub job_tokens: u64,
    /// Money of what one job has it do on a day.
    pub job_money: f64,
}

impl Limits {
    /// Says which amount is none, and what would be right.
    pub fn check(&self) -> Result<(), (&'static str, &'static str)> {
        let all = [("day_money", self.day_money), ("session_money", self.session_money), ("job_money", self.job_money)];
        match all.into_iter().find(|(_, money)| !(0.0..=MONEY_MAX).contains(money)) {
            Some((name, _)) => Err((name, "must be an amount of money, 0 or more; 0 = no limit")),
            None => Ok(()),
        }
    }
}

/// Whose budgets a call counts for.
#[derive(Debug, Clone, Default)]
pub struct Scopes {
    /// The agent.
    pub agent: String,
    /// The session of its turn.
    pub session: Option<String>,
    /// The consumer that has it done, such as `cron/morning`.
    pub job: Option<String>,
    /// What the agent's definition says.
    pub limits: Limits,
}

/// Room that was reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reserved {
    /// True when so much is used that a cheaper model should be taken.
    pub soft: bool,
}

/// What a limit is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Tokens.
    Tokens,
    /// Money, in millionths.
    Money,
}

impl Unit {
    fn bit(self) -> u8 {
        match self {
            Unit::Tokens => 1,
            Unit::Money => 2,
        }
    }
}

/// A call would cost more than there is room for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Over {
    /// Whose limit: `all`, `agent/<id>`, `session/<id>`, `job/<consumer>`.
    pub scope: String,
    /// The day that the limit is for; none = of all time.
    pub day: Option<String>,
    /// What it is about.
    pub unit: Unit,
    /// The limit, in tokens or millionths.
    pub limit: u64,
    /// What is used of it, and reserved by others.
    pub used: u64,
    /// What the call may need.
    pub wanted: u64,
}

impl fmt::Display for Over {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let amount = |number: u64| match self.unit {
            Unit::Tokens => number.to_string(),
            Unit::Money => money(number).to_string(),
        };
        let (used, limit, wanted) = (amount(self.used), amount(self.limit), amount(self.wanted));
        let unit = if self.unit == Unit::Tokens { " tokens" } else { "" };
        let whose = if self.scope == ALL { "all agents together" } else { self.scope.as_str() };
        let when = if self.day.is_some() { "today" } else { "altogether" };
        write!(
            f,
            "The budget of {whose} does not suffice: {used} of {limit}{unit} {when} are used or reserved, and the call may \
             need {wanted} more. Raise the limit, or wait for tomorrow (UTC) if it is one of a day; `aman usage` shows all."
        )
    }
}

impl Over {
    /// 409 `over_budget`.
    pub fn error(&self) -> Error {
        Error::conflict("over_budget", self.to_string())
    }
}

/// What was used, as it is shown.
#[derive(Debug, Clone, Serialize)]
pub struct Shown {
    /// Whose.
    pub scope: String,
    /// The day; null = of all time.
    pub day: Option<String>,
    /// Calls that ended.
    pub calls: u64,
    /// Tokens altogether.
    pub tokens: u64,
    /// Tokens that were asked.
    pub input: u64,
    /// Tokens that were answered.
    pub output: u64,
    /// Tokens of calls whose end nobody knows, since aman ended before them.
    pub lost: u64,
    /// Money.
    pub money: f64,
    /// Tokens that are reserved for calls under way.
    pub reserved: u64,
    /// Calls that would have been too much.
    pub refused: u64,
}

/// The budgets of all agents; cheap to clone.
#[derive(Clone)]
pub struct Budget {
    bus: Bus,
    settings: Arc<ArcSwap<Settings>>,
}

/// A limit with whose it is.
struct Bound {
    scope: String,
    day: String,
    limit: Limit,
}

/// What became of a wish to reserve.
enum Attempt {
    Reserved(Reserved),
    Over(Over),
    /// It is over, for the first time.
    Untold(Over),
}

impl Budget {
    /// The budgets of the database. What calls of an earlier run left reserved counts as spent: nobody knows how they ended.
    pub async fn start(bus: &Bus, settings: Settings) -> Result<Budget, Error> {
        let budget = Budget { bus: bus.clone(), settings: Arc::new(ArcSwap::from_pointee(settings)) };
        let store = bus.store();
        if !store.read_now(rows::reservations)?.is_empty() {
            let lost = store.write(|tx| {
                let left = rows::reservations_in(tx)?;
                for one in &left {
                    let spent = Spent { lost: one.tokens, micros: one.micros, ..Spent::default() };
                    rows::settle(tx, &one.key, spent)?;
                }
                Ok(left.iter().map(|one| one.tokens).sum::<u64>())
            });
            tracing::warn!(
                tokens = lost.await?,
                "Calls of models were cut off; what they may have cost counts as spent."
            );
        }
        Ok(budget)
    }

    /// Changes what `[budget]` says.
    pub fn configure(&self, settings: Settings) {
        self.settings.store(Arc::new(settings));
    }

    /// Reserves room for a call, before it is made: at most `tokens` and `micros`. The same `key` again replaces what it
    /// reserved. Room that is not settled with [`Budget::settle`] stays taken until the next start.
    ///
    /// The first refusal of a limit on its day is told to the person, and recorded in the audit log.
    pub async fn reserve(
        &self,
        key: &str,
        scopes: &Scopes,
        tokens: u64,
        micros: u64,
    ) -> Result<Result<Reserved, Over>, Error> {
        let now_ms = self.bus.clock().now_ms();
        let (settings, day) = (self.settings.load_full(), day_of(now_ms));
        let bounds = bounds(scopes, &settings, &day);
        let soft = settings.soft;
        let new = Reservation {
            key: redact::text(key).into_owned(),
            scopes: bounds.iter().map(|bound| bound.scope.clone()).collect(),
            day,
            tokens,
            micros,
        };
        let tried = self.bus.store().write(move |tx| attempt(tx, &bounds, &new, soft, now_ms)).await?;
        match tried {
            Attempt::Reserved(reserved) => Ok(Ok(reserved)),
            Attempt::Over(over) => Ok(Err(over)),
            Attempt::Untold(over) => {
                self.tell(&over, scopes, now_ms).await?;
                Ok(Err(over))
            }
        }
    }

    /// Puts what a call did cost in the place of what it reserved. False when nothing is reserved under this key (any more).
    pub async fn settle(&self, key: &str, usage: Usage, micros: u64) -> Result<bool, Error> {
        let key = key.to_owned();
        self.bus.store().write(move |tx| Budget::settle_in(tx, &key, usage, micros)).await
    }

    /// As [`Budget::settle`], in the transaction that keeps the call's answer.
    pub fn settle_in(tx: &Tx<'_>, key: &str, usage: Usage, micros: u64) -> Result<bool, Error> {
        let spent = Spent { input: usage.input, output: usage.output, lost: 0, micros };
        rows::settle(tx, &redact::text(key), spent)
    }

    /// Gives back what a call reserved that was not made, or cost nothing.
    pub async fn release(&self, key: &str) -> Result<bool, Error> {
        let key = redact::text(key).into_owned();
        self.bus.store().write(move |tx| rows::release(tx, &key)).await
    }

    /// What a scope used today, and of all time.
    pub async fn usage(&self, scope: &str) -> Result<(Shown, Shown), Error> {
        let (scope, day) = (scope.to_owned(), day_of(self.bus.clock().now_ms()));
        let find = move |conn: &Reading| {
            let open = rows::reservations(conn)?;
            Ok((shown(rows::of(conn, &scope, &day)?, &open), shown(rows::of(conn, &scope, EVER)?, &open)))
        };
        self.bus.store().read(find).await
    }

    /// What every scope whose name begins with `prefix` used on `day` (none = of all time), by name:
    /// `page` = how many are left out, and how many follow at the most.
    pub async fn list(&self, day: Option<String>, prefix: String, page: (usize, usize)) -> Result<Vec<Shown>, Error> {
        let find = move |conn: &Reading| {
            let open = rows::reservations(conn)?;
            let found = rows::list(conn, day.as_deref().unwrap_or(EVER), &prefix, page)?;
            Ok(found.into_iter().map(|used| shown(used, &open)).collect())
        };
        self.bus.store().read(find).await
    }

    /// The scopes of all time that used most, by a prefix of their names: for figures that must stay few.
    pub async fn largest(&self, prefix: &'static str, rows_max: usize) -> Result<Vec<Shown>, Error> {
        let find = move |conn: &Reading| {
            let open = rows::reservations(conn)?;
            Ok(rows::largest(conn, prefix, rows_max)?.into_iter().map(|used| shown(used, &open)).collect())
        };
        self.bus.store().read(find).await
    }

    /// Today, as usage counts it: the day in UTC.
    pub fn today(&self) -> String {
        day_of(self.bus.clock().now_ms())
    }

    /// What all agents used today, with the limits.
    pub async fn status(&self) -> Result<Value, Error> {
        let (today, _) = self.usage(ALL).await?;
        let mut status = json!(today);
        status["limits"] = self.limits();
        Ok(status)
    }

    /// The limits of all agents together, as they are shown.
    pub fn limits(&self) -> Value {
        let settings = self.settings.load();
        json!({
            "day_tokens": settings.day.tokens,
            "day_money": money(settings.day.micros),
            "soft": settings.soft,
        })
    }

    /// Counts a refusal, and unless another one was faster, records and tells it.
    async fn tell(&self, over: &Over, scopes: &Scopes, now_ms: Millis) -> Result<(), Error> {
        let (limit, used) = match over.unit {
            Unit::Tokens => (json!(over.limit), json!(over.used)),
            Unit::Money => (json!(money(over.limit)), json!(money(over.used))),
        };
        let data = json!({
            "scope": over.scope, "day": over.day, "unit": over.unit, "limit": limit, "used": used, "agent": scopes.agent,
        });
        let event = NewEvent {
            subject: Some(over.scope.clone()),
            ..NewEvent::new("aman/budget", "aman.budget.reached", &data)
        };
        let event = self.bus.own_event(event, bus::Origin::own("aman/budget")).await;
        let record = Record {
            at_ms: now_ms,
            principal: format!("agent/{}", scopes.agent),
            claimed_operator: None,
            action: "budget.reserve".to_owned(),
            target: over.scope.clone(),
            outcome: Outcome::Refused,
            status: 409,
            trace: None,
            detail: data,
            before_digest: None,
            after_digest: None,
        };
        let (scope, day, bit) = (over.scope.clone(), over.day.clone(), over.unit.bit());
        self.bus
            .store()
            .write(move |tx| {
                if rows::refuse(tx, (&scope, day.as_deref().unwrap_or(EVER)), bit)? != 0 {
                    audit::append(tx, &record)?;
                    event.store(tx)?;
                }
                Ok(())
            })
            .await
    }
}

/// Everything that limits a call.
fn bounds(scopes: &Scopes, settings: &Settings, day: &str) -> Vec<Bound> {
    let limits = &scopes.limits;
    let bound = |scope: String, day: &str, limit: Limit| Bound {
        scope: redact::text(&scope).into_owned(),
        day: day.to_owned(),
        limit,
    };
    let own = |tokens: u64, money: f64| Limit { tokens, micros: micros(money) };
    let mut all = vec![
        bound(ALL.to_owned(), day, settings.day),
        bound(format!("agent/{}", scopes.agent), day, own(limits.day_tokens, limits.day_money)),
    ];
    all.extend(
        scopes
            .session
            .as_ref()
            .map(|session| bound(format!("session/{session}"), EVER, own(limits.session_tokens, limits.session_money))),
    );
    all.extend(
        scopes.job.as_ref().map(|job| bound(format!("job/{job}"), day, own(limits.job_tokens, limits.job_money))),
    );
    all
}

fn attempt(tx: &Tx<'_>, bounds: &[Bound], new: &Reservation, soft: f64, now_ms: Millis) -> Result<Attempt, Error> {
    let mut open = rows::reservations_in(tx)?;
    open.retain(|other| other.key != new.key);
    let mut is_soft = false;
    for bound in bounds {
        let used = rows::of_in(tx, &bound.scope, &bound.day)?;
        let counted =
            |one: &&Reservation| one.scopes.contains(&bound.scope) && (bound.day == EVER || one.day == bound.day);
        let (tokens, micros) = open.iter().filter(counted).fold((used.tokens(), used.micros), |sum, one| {
            (sum.0.saturating_add(one.tokens), sum.1.saturating_add(one.micros))
        });
        let units = [
            (Unit::Tokens, bound.limit.tokens, tokens, new.tokens),
            (Unit::Money, bound.limit.micros, micros, new.micros),
        ];
        for (unit, limit, taken, wanted) in units.into_iter().filter(|(_, limit, _, _)| *limit > 0) {
            let sum = taken.saturating_add(wanted);
            if sum > limit {
                let day = Some(bound.day.clone()).filter(|day| day != EVER);
                let over = Over { scope: bound.scope.clone(), day, unit, limit, used: taken, wanted };
                if used.told & unit.bit() == 0 {
                    return Ok(Attempt::Untold(over));
                }
                rows::refuse(tx, (&bound.scope, &bound.day), unit.bit())?;
                return Ok(Attempt::Over(over));
            }
            is_soft |= share(sum, limit) > soft;
        }
    }
    rows::reserve(tx, new, now_ms)?;
    Ok(Attempt::Reserved(Reserved { soft: is_soft }))
}

#[allow(clippy::cast_precision_loss)] // a share needs no more than 15 digits
fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}

/// An amount of money in its millionths; at most [`MONEY_MAX`].
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // within bounds, see clamp; NaN becomes 0
pub fn micros(money: f64) -> u64 {
    (money.clamp(0.0, MONEY_MAX) * MICROS).round() as u64
}

/// Millionths as an amount of money.
#[allow(clippy::cast_precision_loss)] // amounts stay far below 2^53 millionths
pub fn money(micros: u64) -> f64 {
    micros as f64 / MICROS
}

fn day_of(now_ms: Millis) -> String {
    rfc3339(now_ms).get(..10).unwrap_or_default().to_owned()
}

fn shown(used: Used, open: &[Reservation]) -> Shown {
    let counted =
        open.iter().filter(|one| one.scopes.contains(&used.scope) && (used.day == EVER || one.day == used.day));
    Shown {
        calls: used.calls,
        tokens: used.tokens(),
        input: used.input,
        output: used.output,
        lost: used.lost,
        money: money(used.micros),
        reserved: counted.map(|one| one.tokens).sum(),
        refused: used.refused,
        day: Some(used.day).filter(|day| day != EVER),
        scope: used.scope,
    }
}
