//! A listener between two events: what it has heard, and what it still waits for.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::definition::Read;
use super::fault::Fault;
use super::links::{Filter, Strategy, Until};
use super::state::{Named, Queue};
use super::template::Scope;

/// What a listener has heard.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Listening {
    /// The events, as they are read.
    pub heard: Vec<Value>,
    /// Those that its tasks have still to look at.
    pub queue: Queue,
    /// What its tasks made of them.
    pub results: Vec<Value>,
    /// Which filters of `all` were met, those of `until` behind them.
    pub met: Vec<usize>,
    /// What correlations must be by now.
    pub expected: Named,
    /// True once nothing more is waited for.
    pub done: bool,
}

impl Listening {
    /// One that has heard nothing. What is expected of correlations is said now.
    pub fn new(strategy: &Strategy, scope: &Scope<'_>) -> Result<Listening, Fault> {
        let mut expected = Map::new();
        for filter in strategy.filters() {
            for (name, _, expect) in &filter.correlate {
                if let Some(expect) = expect {
                    expected.insert(name.clone(), expect.value(scope)?);
                }
            }
        }
        Ok(Listening { expected, ..Listening::default() })
    }

    /// Offers an event. True when it was one that is waited for.
    pub fn offer(&mut self, to: &Strategy, event: &Value, read: Read, scope: &Scope<'_>) -> Result<bool, Fault> {
        if self.done {
            return Ok(false);
        }
        match to {
            Strategy::One(filter) => {
                if !self.takes(filter, event, scope)? {
                    return Ok(false);
                }
                self.hear(event, read);
                self.done = true;
            }
            Strategy::All(filters) => {
                let Some(n) = self.first_open(filters, 0, event, scope)? else { return Ok(false) };
                self.met.push(n);
                self.hear(event, read);
                self.done = self.met.len() == filters.len();
            }
            Strategy::Any(filters, until) => return self.offer_any(filters, until.as_ref(), event, read, scope),
        }
        Ok(true)
    }

    fn offer_any(
        &mut self,
        filters: &[Filter],
        until: Option<&Until>,
        event: &Value,
        read: Read,
        scope: &Scope<'_>,
    ) -> Result<bool, Fault> {
        if let Some(Until::Heard(inner)) = until {
            let wanted = inner.filters();
            let open = (0..wanted.len()).filter(|n| !self.met.contains(n));
            for n in open.collect::<Vec<_>>() {
                if self.takes(wanted[n], event, scope)? {
                    self.met.push(n);
                    let enough = !matches!(**inner, Strategy::All(_)) || self.met.len() == wanted.len();
                    self.done = enough;
                    return Ok(true);
                }
            }
        }
        let mut fits = filters.is_empty();
        for filter in filters {
            fits = fits || self.takes(filter, event, scope)?;
        }
        if !fits {
            return Ok(false);
        }
        self.hear(event, read);
        match until {
            None => self.done = true,
            Some(Until::Holds(formula)) => {
                let heard = Value::Array(self.heard.clone());
                self.done = formula.holds(&Scope { now: &heard, lookup: scope.lookup })?;
            }
            Some(Until::Heard(_)) => {}
        }
        Ok(true)
    }

    fn first_open(
        &mut self,
        filters: &[Filter],
        from: usize,
        event: &Value,
        scope: &Scope<'_>,
    ) -> Result<Option<usize>, Fault> {
        for (n, filter) in filters.iter().enumerate().skip(from) {
            if !self.met.contains(&n) && self.takes(filter, event, scope)? {
                return Ok(Some(n));
            }
        }
        Ok(None)
    }

    fn takes(&mut self, filter: &Filter, event: &Value, scope: &Scope<'_>) -> Result<bool, Fault> {
        if !filter.fits(event, scope)? {
            return Ok(false);
        }
        let Some(found) = filter.correlated(event, &self.expected, scope) else { return Ok(false) };
        self.expected.extend(found);
        Ok(true)
    }

    fn hear(&mut self, event: &Value, read: Read) {
        let heard = read_as(event, read);
        self.queue.push_back(heard.clone());
        self.heard.push(heard);
    }
}

fn read_as(event: &Value, read: Read) -> Value {
    match read {
        Read::Data => event.get("data").cloned().unwrap_or(Value::Null),
        Read::Envelope => event.clone(),
        Read::Raw => match event.get("data").or(event.get("data_base64")) {
            None => Value::Null,
            Some(Value::String(text)) => Value::String(text.clone()),
            Some(other) => Value::String(other.to_string()),
        },
    }
}
