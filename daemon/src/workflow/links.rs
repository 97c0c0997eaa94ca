//! Which events are waited for: filters, correlations, and one, any or all of them.

use serde_json::{Map, Value};

use super::fault::Fault;
use super::template::{Formula, Locals, Scope, Template, inside, scope};

/// One attribute that an event must have.
#[derive(Debug, Clone, PartialEq)]
pub enum Attribute {
    /// This value; of an object, at least these fields.
    Is(Value),
    /// A text that this regular expression describes as a whole, or that is the same as it was written.
    Like(String, Formula),
    /// An expression over the attribute (`data`) or the event (others) that holds, or whose value is the attribute's.
    Holds(Formula),
}

/// An event that is waited for.
#[derive(Debug, Clone, PartialEq)]
pub struct Filter {
    /// The type, when it is said literally.
    pub kind: Option<String>,
    with: Vec<(String, Attribute)>,
    /// Correlations by name: what is taken from the event, and what it must be.
    pub correlate: Vec<(String, Formula, Option<Template>)>,
}

impl Filter {
    /// Reads `{with, correlate}`; `wrong` hears of what cannot be compiled.
    pub fn read(value: &Value, locals: &Locals, wrong: &mut dyn FnMut(String, String)) -> Filter {
        let mut with = Vec::new();
        for (name, wanted) in value["with"].as_object().into_iter().flatten() {
            let mut told = |why: String| wrong(format!("/with/{name}"), why);
            match attribute(wanted, locals) {
                Ok(attribute) => with.push((name.clone(), attribute)),
                Err(why) => told(why),
            }
        }
        let kind = value["with"]["type"].as_str();
        let kind = kind.filter(|kind| crate::event::check_type(kind).is_ok()).map(str::to_owned);
        let mut correlate = Vec::new();
        for (name, one) in value["correlate"].as_object().into_iter().flatten() {
            let at = format!("/correlate/{name}");
            let expect = one.get("expect").map(|expect| {
                Template::read(expect, locals, &mut |below, why| wrong(format!("{at}/expect{below}"), why))
            });
            match Formula::compile(one["from"].as_str().unwrap_or("."), locals) {
                Ok(from) => correlate.push((name.clone(), from, expect)),
                Err(why) => wrong(format!("{at}/from"), why),
            }
        }
        Filter { kind, with, correlate }
    }

    /// Whether `event` has every attribute; variables come from `around`.
    pub fn fits(&self, event: &Value, around: &Scope<'_>) -> Result<bool, Fault> {
        for (name, wanted) in &self.with {
            let there = event.get(name).unwrap_or(&Value::Null);
            let fits = match wanted {
                Attribute::Is(value) => includes(there, value),
                Attribute::Like(text, regex) => {
                    there == text.as_str() || (there.is_string() && regex.holds(&scope(there)).unwrap_or(false))
                }
                Attribute::Holds(formula) => {
                    // Published examples ask `data` of the data, and of the event by `.data`.
                    let whole = name != "data" || (formula.names_field("data") && there.get("data").is_none());
                    let now = if whole { event } else { there };
                    // An event that an expression cannot look at is not the one that is waited for.
                    match formula.value(&Scope { now, lookup: around.lookup }) {
                        Ok(Value::Bool(holds)) => holds,
                        Ok(value) => value == *there,
                        Err(_) => false,
                    }
                }
            };
            if !fits {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What the event says for each correlation; none when one of them is not what `expected` has for it. What nobody
    /// expects yet is expected from then on.
    pub fn correlated(
        &self,
        event: &Value,
        expected: &Map<String, Value>,
        around: &Scope<'_>,
    ) -> Option<Map<String, Value>> {
        let mut found = Map::new();
        for (name, from, _) in &self.correlate {
            let value = from.value(&Scope { now: event, lookup: around.lookup }).ok()?;
            if value.is_null() || expected.get(name).is_some_and(|wanted| *wanted != value) {
                return None;
            }
            found.insert(name.clone(), value);
        }
        Some(found)
    }
}

fn attribute(wanted: &Value, locals: &Locals) -> Result<Attribute, String> {
    match wanted {
        Value::String(text) if inside(text).is_some() => Formula::compile(text, locals).map(Attribute::Holds),
        Value::String(text) if text.contains(['^', '$', '*', '+', '?', '(', '[', '{', '|', '\\']) => {
            let source = format!("test({})", Value::from(format!("^(?:{text})$")));
            Formula::compile(&source, &Locals { names: Vec::new(), lazy: locals.lazy })
                .map(|regex| Attribute::Like(text.clone(), regex))
        }
        other => Ok(Attribute::Is(other.clone())),
    }
}

/// Whether `there` is `wanted`, or an object with at least its fields.
fn includes(there: &Value, wanted: &Value) -> bool {
    match (there, wanted) {
        (Value::Object(there), Value::Object(wanted)) => {
            wanted.iter().all(|(name, value)| there.get(name).is_some_and(|there| includes(there, value)))
        }
        _ => there == wanted,
    }
}

/// When a listener has heard enough besides its filters.
#[derive(Debug, Clone, PartialEq)]
pub enum Until {
    /// Once this holds over the events so far.
    Holds(Formula),
    /// Once these events came, which are not part of what was heard.
    Heard(Box<Strategy>),
}

/// Which events are waited for.
#[derive(Debug, Clone, PartialEq)]
pub enum Strategy {
    /// This one.
    One(Filter),
    /// Each of them, in any order.
    All(Vec<Filter>),
    /// Any of them (none named: any event), once or until something.
    Any(Vec<Filter>, Option<Until>),
}

impl Strategy {
    /// Reads `{one}`, `{all}` or `{any, until}`.
    pub fn read(value: &Value, locals: &Locals, wrong: &mut dyn FnMut(String, String)) -> Strategy {
        let mut filters = |name: &str| -> Vec<Filter> {
            let list = value[name].as_array().into_iter().flatten().enumerate();
            list.map(|(n, one)| Filter::read(one, locals, &mut |below, why| wrong(format!("/{name}/{n}{below}"), why)))
                .collect()
        };
        if value.get("all").is_some() {
            return Strategy::All(filters("all"));
        }
        if value.get("any").is_none() {
            return Strategy::One(Filter::read(&value["one"], locals, &mut |below, why| {
                wrong(format!("/one{below}"), why);
            }));
        }
        let any = filters("any");
        let until = match value.get("until") {
            None => None,
            Some(Value::String(text)) => match Formula::compile(text, locals) {
                Ok(formula) => Some(Until::Holds(formula)),
                Err(why) => {
                    wrong("/until".to_owned(), why);
                    None
                }
            },
            Some(other) => {
                let inner = Strategy::read(other, locals, &mut |below, why| wrong(format!("/until{below}"), why));
                Some(Until::Heard(Box::new(inner)))
            }
        };
        Strategy::Any(any, until)
    }

    /// Every filter in it, those of `until` last.
    pub fn filters(&self) -> Vec<&Filter> {
        match self {
            Strategy::One(filter) => vec![filter],
            Strategy::All(filters) => filters.iter().collect(),
            Strategy::Any(filters, until) => {
                let mut all: Vec<&Filter> = filters.iter().collect();
                if let Some(Until::Heard(inner)) = until {
                    all.extend(inner.filters());
                }
                all
            }
        }
    }

    /// The types that it waits for; none = every type may be one.
    pub fn kinds(&self) -> Option<Vec<String>> {
        let filters = self.filters();
        let open = matches!(self, Strategy::Any(any, _) if any.is_empty());
        if open { None } else { filters.into_iter().map(|filter| filter.kind.clone()).collect() }
    }
}
