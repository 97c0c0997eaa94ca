//! Metrics that plugins make, bounded in names, labels and series.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

use aman_plugin_host::{Error as Refusal, InvalidField, Metric};

use crate::redact;

/// Series of one plugin.
const SERIES_MAX: usize = 100;
const LABELS_MAX: usize = 8;
const NAME_BYTES_MAX: usize = 64;
const VALUE_BYTES_MAX: usize = 128;

/// What plugins counted and measured since the start.
#[derive(Default)]
pub(super) struct Metrics(Mutex<BTreeMap<String, Family>>);

/// All series of one name, of all plugins: a name has one kind.
struct Family {
    is_counter: bool,
    /// By plugin and labels.
    series: BTreeMap<(String, Vec<(String, String)>), Number>,
}

#[derive(Clone, Copy)]
enum Number {
    Count(u64),
    Gauge(f64),
}

impl Number {
    fn change(&mut self, change: Metric) {
        *self = match (*self, change) {
            (Number::Count(count), Metric::Count(add)) => Number::Count(count.saturating_add(add)),
            (Number::Gauge(_), Metric::Count(add)) => Number::Count(add),
            (_, Metric::Gauge(value)) => Number::Gauge(value),
        };
    }
}

fn is_name(name: &str) -> bool {
    name.len() <= NAME_BYTES_MAX
        && name.bytes().next().is_some_and(|b| b.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

fn invalid(field: &str, reason: impl Into<String>) -> Refusal {
    Refusal::Invalid(InvalidField { field: field.to_owned(), reason: reason.into() })
}

/// The labels in a fixed order, without secrets.
fn checked(labels: &[(String, String)]) -> Result<Vec<(String, String)>, Refusal> {
    if labels.len() > LABELS_MAX {
        return Err(invalid("labels", format!("at most {LABELS_MAX}")));
    }
    let mut sorted = BTreeMap::new();
    for (name, value) in labels {
        if !is_name(name) || name == "plugin" || value.len() > VALUE_BYTES_MAX || value.chars().any(char::is_control) {
            let reason = format!(
                "lower-case letters, digits and '_' name a label, but not 'plugin'; its value has at most \
                 {VALUE_BYTES_MAX} bytes and no control characters"
            );
            return Err(invalid("labels", reason));
        }
        if sorted.insert(name.clone(), redact::text(value).into_owned()).is_some() {
            return Err(invalid("labels", format!("'{name}' is there twice")));
        }
    }
    Ok(sorted.into_iter().collect())
}

impl Metrics {
    fn families(&self) -> MutexGuard<'_, BTreeMap<String, Family>> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes one series of `plugin`.
    pub fn change(&self, plugin: &str, name: &str, change: Metric, labels: &[(String, String)]) -> Result<(), Refusal> {
        if !is_name(name) {
            let reason = format!("1 to {NAME_BYTES_MAX} lower-case letters, digits and '_', first a letter");
            return Err(invalid("name", reason));
        }
        let key = (plugin.to_owned(), checked(labels)?);
        let is_counter = matches!(change, Metric::Count(_));
        let mut families = self.families();
        if let Some(family) = families.get_mut(name) {
            if family.is_counter != is_counter {
                return Err(Refusal::Conflict(format!("'{name}' is a metric of another kind already")));
            }
            // Most calls end here.
            if let Some(number) = family.series.get_mut(&key) {
                number.change(change);
                return Ok(());
            }
        }
        let own = families.values().flat_map(|family| family.series.keys()).filter(|(owner, _)| owner == plugin);
        if own.count() >= SERIES_MAX {
            return Err(Refusal::Denied(format!("a plugin may have {SERIES_MAX} series of metrics")));
        }
        let make = || Family { is_counter, series: BTreeMap::new() };
        let mut number = Number::Count(0);
        number.change(change);
        families.entry(name.to_owned()).or_insert_with(make).series.insert(key, number);
        Ok(())
    }

    /// Drops everything of `plugin`.
    pub fn forget(&self, plugin: &str) {
        let mut families = self.families();
        for family in families.values_mut() {
            family.series.retain(|(owner, _), _| owner != plugin);
        }
        families.retain(|_, family| !family.series.is_empty());
    }

    /// Appends everything as Prometheus text 0.0.4.
    pub fn write(&self, out: &mut String) {
        for (name, family) in self.families().iter() {
            let kind = if family.is_counter { "counter" } else { "gauge" };
            let _ = write!(out, "# HELP aman_plugin_{name} Of plugins.\n# TYPE aman_plugin_{name} {kind}\n");
            for ((plugin, labels), number) in &family.series {
                let _ = write!(out, "aman_plugin_{name}{{plugin=\"{plugin}\"");
                for (label, value) in labels {
                    let value = value.replace('\\', "\\\\").replace('"', "\\\"");
                    let _ = write!(out, ",{label}=\"{value}\"");
                }
                let _ = match number {
                    Number::Count(count) => writeln!(out, "}} {count}"),
                    // Prometheus has its own words for these.
                    Number::Gauge(value) if value.is_infinite() => {
                        writeln!(out, "}} {}Inf", if *value > 0.0 { '+' } else { '-' })
                    }
                    Number::Gauge(value) => writeln!(out, "}} {value}"),
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_bounded_and_shown() {
        let metrics = Metrics::default();
        let label = |value: &str| vec![("feed".to_owned(), value.to_owned())];
        let change = |plugin: &str, name: &str, change, labels: &[(String, String)]| {
            metrics.change(plugin, name, change, labels)
        };
        change("a", "polls", Metric::Count(2), &label("x\"y")).expect("good");
        change("a", "polls", Metric::Count(3), &label("x\"y")).expect("good");
        change("b", "polls", Metric::Count(1), &[]).expect("good");
        change("a", "load", Metric::Gauge(f64::INFINITY), &[]).expect("good");
        assert!(matches!(change("b", "load", Metric::Count(1), &[]), Err(Refusal::Conflict(_))));
        for (name, labels) in [("", vec![]), ("9", vec![]), ("A", vec![]), ("a{}", vec![]), ("a", label("\n"))] {
            assert!(matches!(change("a", name, Metric::Count(1), &labels), Err(Refusal::Invalid(_))), "{name}");
        }
        let plugin = [("plugin".to_owned(), "b".to_owned())];
        assert!(change("a", "polls", Metric::Count(1), &plugin).is_err(), "nobody speaks for another");
        for n in 2..SERIES_MAX {
            change("a", "many", Metric::Gauge(1.5), &label(&n.to_string())).expect("still few");
        }
        assert!(matches!(change("a", "many", Metric::Gauge(1.0), &label("x")), Err(Refusal::Denied(_))));
        let mut text = String::new();
        metrics.write(&mut text);
        for line in [
            "# TYPE aman_plugin_polls counter",
            "aman_plugin_polls{plugin=\"a\",feed=\"x\\\"y\"} 5",
            "aman_plugin_polls{plugin=\"b\"} 1",
            "aman_plugin_load{plugin=\"a\"} +Inf",
            "aman_plugin_many{plugin=\"a\",feed=\"7\"} 1.5",
        ] {
            assert!(text.lines().any(|written| written == line), "{line}\n{text}");
        }
        metrics.forget("a");
        let mut text = String::new();
        metrics.write(&mut text);
        assert!(!text.contains("\"a\"") && text.contains("\"b\""), "{text}");
    }
}
