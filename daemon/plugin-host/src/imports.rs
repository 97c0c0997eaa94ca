//! The functions that guests import, each a few lines into [`HostApi`](crate::HostApi).

use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};

use crate::bindings::aman::plugin::{
    bus, clock, config, http_client, kv, log, metrics, notify, random, sql, types, workflows,
};
use crate::limits::{self, Meter, Waiting};
use crate::state::{Call, Common, Mode, State};
use crate::values::{
    Error, Instance, InvalidField, KvChange, KvPage, Level, Metric, NewEvent, NewInstance, Notification,
    OutgoingRequest, OutgoingResponse, Retry, Rows, SignalEvent, Started, Statement,
};

pub(crate) fn invalid(field: &str, reason: impl Into<String>) -> Error {
    Error::Invalid(InvalidField { field: field.to_owned(), reason: reason.into() })
}

pub(crate) fn busy(what: &str) -> Error {
    Error::Unavailable(Retry { reason: format!("too many {what} in this second"), after_ms: Some(1_000) })
}

impl State {
    /// The call, if the plugin may use a store (`granted`), and in this call, and not too often.
    fn store_call(&mut self, granted: bool, changes: bool, name: &str) -> Result<&mut Call, Error> {
        if !granted {
            return Err(Error::Denied(format!("the manifest does not ask for {name}")));
        }
        if !self.common.rates.may_store() {
            return Err(busy("operations of stores"));
        }
        let call = self.call()?;
        if changes && call.mode == Mode::Begin {
            return Err(Error::Denied(format!("{name} changes nothing within lifecycle.init")));
        }
        Ok(call)
    }

    /// The call, if the plugin may have somebody act (`granted`) with so many bytes, and in this call, and not too often.
    fn act(&mut self, granted: bool, bytes: usize, name: &str) -> Result<&mut Call, Error> {
        if !granted {
            return Err(Error::Denied(format!("the manifest does not ask for {name}")));
        }
        if !self.common.rates.may_act() {
            return Err(busy("starts, signals and notifications"));
        }
        let call = self.call()?;
        match call.mode {
            Mode::Begin => return Err(Error::Denied(format!("{name} is not there within lifecycle.init"))),
            Mode::Direct => {}
            Mode::Staged if call.acts >= limits::STAGED_ACTS_MAX => {
                let most = limits::STAGED_ACTS_MAX;
                let what = format!("one call may ask for {most} starts, signals and notifications together");
                return Err(Error::Limit(what));
            }
            Mode::Staged => {
                call.stage_bytes(bytes)?;
                call.acts += 1;
            }
        }
        Ok(call)
    }

    fn kv_call(&mut self, key: &str, changes: bool) -> Result<&mut Call, Error> {
        if key.is_empty() || key.len() > limits::KEY_BYTES_MAX {
            let max = limits::KEY_BYTES_MAX;
            return Err(invalid("key", format!("must have 1 to {max} bytes; it has {}", key.len())));
        }
        self.store_call(self.common.grants.kv, changes, "kv")
    }

    /// Applies a change of the key-value store, or stages it.
    async fn kv_change(&mut self, change: KvChange) -> Result<bool, Error> {
        let size = match &change {
            KvChange::Set { value, .. } | KvChange::Swap { value, .. } => value.len(),
            KvChange::Delete { .. } => 0,
        };
        if size > limits::VALUE_BYTES_MAX {
            return Err(invalid(
                "value",
                format!("must have at most {} bytes; it has {size}", limits::VALUE_BYTES_MAX),
            ));
        }
        let call = self.kv_call(change.key(), true)?;
        if call.mode != Mode::Staged {
            return call.api.kv_change(change).await;
        }
        if let KvChange::Swap { key, expected, .. } = &change
            && call.kv_get(key).await? != *expected
        {
            return Ok(false);
        }
        if call.staged.kv.len() >= limits::STAGED_CHANGES_MAX {
            return Err(Error::Limit(format!("one call may change {} keys", limits::STAGED_CHANGES_MAX)));
        }
        call.stage_bytes(change.key().len() + size)?;
        call.staged.kv.push(change);
        Ok(true)
    }
}

impl Call {
    fn stage_bytes(&mut self, bytes: usize) -> Result<(), Error> {
        if self.staged_bytes + bytes > limits::STAGED_BYTES_MAX {
            return Err(Error::Limit(format!("one call may stage {} bytes", limits::STAGED_BYTES_MAX)));
        }
        self.staged_bytes += bytes;
        Ok(())
    }

    /// The value of a key as this call sees it: what it staged last, else what is stored.
    async fn kv_get(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        match self.staged.kv.iter().rev().find(|change| change.key() == key) {
            Some(KvChange::Set { value, .. } | KvChange::Swap { value, .. }) => Ok(Some(value.clone())),
            Some(KvChange::Delete { .. }) => Ok(None),
            None => self.api.kv_get(key).await,
        }
    }

    /// A page of keys as this call sees them.
    async fn kv_list(&self, prefix: &str, after: Option<&str>, limit: u32) -> Result<KvPage, Error> {
        let mut page = self.api.kv_list(prefix, after, limit).await?;
        if self.staged.kv.is_empty() {
            return Ok(page);
        }
        // What was staged beyond this page belongs to a later one.
        let last = page.next.clone();
        let here = |key: &str| {
            key.starts_with(prefix)
                && after.is_none_or(|after| key > after)
                && last.as_deref().is_none_or(|last| key <= last)
        };
        for change in self.staged.kv.iter().filter(|change| here(change.key())) {
            let place = page.keys.binary_search_by(|key| key.as_str().cmp(change.key()));
            match (change, place) {
                (KvChange::Delete { .. }, Ok(place)) => drop(page.keys.remove(place)),
                (KvChange::Set { key, .. } | KvChange::Swap { key, .. }, Err(place)) => {
                    page.keys.insert(place, key.clone());
                }
                (KvChange::Delete { .. }, Err(_)) | (KvChange::Set { .. } | KvChange::Swap { .. }, Ok(_)) => {}
            }
        }
        let limit = limit as usize;
        if page.keys.len() > limit {
            page.keys.truncate(limit);
            page.next = page.keys.last().cloned();
        }
        Ok(page)
    }
}

impl types::Host for State {}

impl bus::Host for State {
    async fn publish(&mut self, event: NewEvent) -> Result<Option<String>, Error> {
        let call = self.store_call(self.common.grants.publish, true, "publish")?;
        check_event(&event)?;
        if call.mode != Mode::Staged {
            return call.api.publish(&call.caller, event).await.map(Some);
        }
        if call.events >= limits::STAGED_EVENTS_MAX {
            return Err(Error::Limit(format!("one call may publish {} events", limits::STAGED_EVENTS_MAX)));
        }
        call.stage_bytes(event.data.as_ref().map_or(0, Vec::len))?;
        call.api.stage_publish(event)?;
        call.events += 1;
        Ok(None)
    }
}

/// Checks what bounds an event; the rest of its rules are the daemon's.
pub(crate) fn check_event(event: &NewEvent) -> Result<(), Error> {
    let size = event.data.as_ref().map_or(0, Vec::len);
    if size > limits::EVENT_BYTES_MAX {
        return Err(invalid("data", format!("must have at most {} bytes; it has {size}", limits::EVENT_BYTES_MAX)));
    }
    Ok(())
}

impl kv::Host for State {
    async fn get(&mut self, key: String) -> Result<Option<Vec<u8>>, Error> {
        self.kv_call(&key, false)?.kv_get(&key).await
    }

    async fn set(&mut self, key: String, value: Vec<u8>) -> Result<(), Error> {
        self.kv_change(KvChange::Set { key, value }).await.map(drop)
    }

    async fn compare_and_swap(
        &mut self,
        key: String,
        expected: Option<Vec<u8>>,
        value: Vec<u8>,
    ) -> Result<bool, Error> {
        self.kv_change(KvChange::Swap { key, expected, value }).await
    }

    async fn delete(&mut self, key: String) -> Result<(), Error> {
        self.kv_change(KvChange::Delete { key }).await.map(drop)
    }

    async fn list(&mut self, prefix: String, after: Option<String>, limit: u32) -> Result<KvPage, Error> {
        let call = self.store_call(self.common.grants.kv, false, "kv")?;
        call.kv_list(&prefix, after.as_deref(), limit.clamp(1, 1_000)).await
    }
}

impl sql::Host for State {
    async fn execute(&mut self, statement: Statement) -> Result<u64, Error> {
        let changed = self.store_call(self.common.grants.sql, true, "sql")?.api.sql_execute(vec![statement]).await?;
        changed.first().copied().ok_or_else(|| Error::Internal("one statement has one count".to_owned()))
    }

    async fn query(&mut self, statement: Statement) -> Result<Rows, Error> {
        self.store_call(self.common.grants.sql, true, "sql")?.api.sql_query(statement).await
    }

    async fn batch(&mut self, statements: Vec<Statement>) -> Result<Vec<u64>, Error> {
        if statements.len() > limits::STATEMENTS_MAX {
            return Err(invalid("statements", format!("at most {} in one batch", limits::STATEMENTS_MAX)));
        }
        self.store_call(self.common.grants.sql, true, "sql")?.api.sql_execute(statements).await
    }
}

/// The bytes of a JSON text, unless they are too many.
fn json_bytes(field: &str, text: Option<&String>) -> Result<usize, Error> {
    let bytes = text.map_or(0, String::len);
    if bytes > limits::INPUT_BYTES_MAX {
        return Err(invalid(field, format!("must have at most {} bytes; it has {bytes}", limits::INPUT_BYTES_MAX)));
    }
    Ok(bytes)
}

impl workflows::Host for State {
    async fn start(&mut self, instance: NewInstance) -> Result<Started, Error> {
        let bytes = json_bytes("input", instance.input.as_ref())?;
        let call = self.act(self.common.grants.workflows, bytes, "workflows")?;
        call.api.workflow_start(&call.caller, instance).await
    }

    async fn signal(&mut self, id: String, event: SignalEvent) -> Result<(), Error> {
        let bytes = json_bytes("data", event.data.as_ref())?;
        let call = self.act(self.common.grants.workflows, bytes, "workflows")?;
        call.api.workflow_signal(&call.caller, &id, event).await
    }

    async fn read(&mut self, id: String) -> Result<Instance, Error> {
        self.store_call(self.common.grants.workflows, false, "workflows")?.api.workflow_read(&id).await
    }
}

impl notify::Host for State {
    async fn send(&mut self, notification: Notification) -> Result<(), Error> {
        let bytes = notification.title.len() + notification.message.len();
        let call = self.act(self.common.grants.notify, bytes, "notify")?;
        call.api.notify(&call.caller, notification).await
    }
}

/// Waits for what is done elsewhere, for at most `time_max` and as long as the call may wait at all; it does not run meanwhile.
pub(crate) async fn wait_for<T>(
    meter: &Meter,
    common: &Common,
    time_max: Duration,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let time = time_max.min(meter.left_to_wait());
    if time.is_zero() {
        return Err(Error::Timeout("the call may wait no longer".to_owned()));
    }
    let _pause = Pause::new(meter, &common.ticker);
    match tokio::time::timeout(time, work).await {
        Ok(answer) => answer,
        Err(_elapsed) => Err(Error::Timeout(format!("no answer after {} ms", time.as_millis()))),
    }
}

/// While this lives, the call waits and the ticker need not tick for it.
struct Pause<'a> {
    _waiting: Waiting<'a>,
    ticker: &'a crate::engine::Ticker,
}

impl<'a> Pause<'a> {
    fn new(meter: &'a Meter, ticker: &'a crate::engine::Ticker) -> Pause<'a> {
        ticker.leave();
        Pause { _waiting: meter.pause(), ticker }
    }
}

impl Drop for Pause<'_> {
    fn drop(&mut self) {
        self.ticker.enter();
    }
}

impl http_client::Host for State {
    async fn send(&mut self, request: OutgoingRequest) -> Result<OutgoingResponse, Error> {
        if !self.common.grants.http {
            return Err(Error::Denied("the manifest does not ask for http".to_owned()));
        }
        if request.body.len() > limits::OUTGOING_BYTES_MAX {
            return Err(invalid("body", format!("must have at most {} bytes", limits::OUTGOING_BYTES_MAX)));
        }
        if request.headers.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>()
            > limits::HEADER_BYTES_MAX
        {
            return Err(invalid("headers", format!("must have at most {} bytes", limits::HEADER_BYTES_MAX)));
        }
        if !self.common.rates.may_send() {
            return Err(busy("outgoing requests"));
        }
        let wanted = request.timeout_ms.map_or(limits::OUTGOING_TIME, Duration::from_millis);
        let (meter, common) = (self.meter.clone(), self.common.clone());
        let call = self.call()?;
        if call.mode == Mode::Begin {
            return Err(Error::Denied("http-client is not there within lifecycle.init".to_owned()));
        }
        wait_for(&meter, &common, wanted, call.api.http_send(&call.caller, request)).await
    }
}

impl config::Host for State {
    fn get(&mut self, key: String) -> Option<String> {
        self.call().ok()?.api.setting(&key)
    }

    fn all(&mut self) -> Vec<(String, String)> {
        self.call().map_or_else(|_| Vec::new(), |call| call.api.settings())
    }
}

/// Cuts a text to at most `bytes_max` bytes, at the end of a character.
fn cut(text: &mut String, bytes_max: usize) {
    if text.len() > bytes_max {
        let mut end = bytes_max;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
}

impl log::Host for State {
    fn write(&mut self, level: Level, mut message: String, mut fields: Vec<(String, String)>) {
        if !self.common.rates.may_log() {
            return;
        }
        cut(&mut message, limits::LOG_MESSAGE_BYTES_MAX);
        fields.truncate(limits::LOG_FIELDS_MAX);
        for (name, value) in &mut fields {
            cut(name, limits::LOG_FIELD_BYTES_MAX);
            cut(value, limits::LOG_FIELD_BYTES_MAX);
        }
        if let Ok(call) = self.call() {
            call.api.log(&call.caller, level, &message, &fields);
        }
    }
}

impl metrics::Host for State {
    fn count(&mut self, name: String, add: u64, labels: Vec<(String, String)>) -> Result<(), Error> {
        self.call()?.api.metric(&name, Metric::Count(add), &labels)
    }

    fn gauge(&mut self, name: String, value: f64, labels: Vec<(String, String)>) -> Result<(), Error> {
        self.call()?.api.metric(&name, Metric::Gauge(value), &labels)
    }
}

impl clock::Host for State {
    fn now_ms(&mut self) -> u64 {
        self.call().map_or(0, |call| call.api.now_ms())
    }

    fn monotonic_ns(&mut self) -> u64 {
        u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    async fn sleep(&mut self, ms: u32) -> Result<(), Error> {
        if ms > limits::SLEEP_MS_MAX {
            return Err(invalid("ms", format!("must be at most {}", limits::SLEEP_MS_MAX)));
        }
        let (wanted, left) = (Duration::from_millis(ms.into()), self.meter.left_to_wait());
        if left.is_zero() {
            return Err(Error::Timeout("the call may wait no longer".to_owned()));
        }
        let _pause = Pause::new(&self.meter, &self.common.ticker);
        tokio::time::sleep(wanted.min(left)).await;
        Ok(())
    }
}

/// Fills `bytes` with randomness fit for keys.
pub(crate) fn fill_random(bytes: &mut [u8]) {
    SystemRandom::new().fill(bytes).expect("a running Linux has randomness");
}

impl random::Host for State {
    fn bytes(&mut self, len: u32) -> Result<Vec<u8>, Error> {
        if len > limits::RANDOM_BYTES_MAX {
            return Err(invalid("len", format!("must be at most {}", limits::RANDOM_BYTES_MAX)));
        }
        let mut bytes = vec![0; len as usize];
        fill_random(&mut bytes);
        Ok(bytes)
    }

    fn number(&mut self) -> u64 {
        random_number()
    }
}

/// A random number, fit for keys.
pub(crate) fn random_number() -> u64 {
    let mut bytes = [0; 8];
    fill_random(&mut bytes);
    u64::from_le_bytes(bytes)
}
