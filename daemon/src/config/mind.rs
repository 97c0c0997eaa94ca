//! `[budget]` and `[content_policy]`: what thinking may cost, and what may not be said to it.

use regex::Regex;
use toml::Value;

use super::settings::Layers;
use crate::text::pattern;

/// Patterns of `content_policy.deny`.
const DENIED_MAX: usize = 100;
/// The most that a limit may say, in units of money.
const MONEY_MAX: f64 = 1_000_000_000.0;

/// `[budget]`
#[derive(Debug, Clone, PartialEq)]
pub struct BudgetConfig {
    /// Tokens of all agents on a day; 0 = no limit.
    pub day_tokens: u64,
    /// Money of all agents on a day, in units of the price table; 0 = no limit.
    pub day_money: f64,
    /// The share of a limit from which on a cheaper model is taken.
    pub soft: f64,
}

impl BudgetConfig {
    pub(super) fn read(layers: &mut Layers) -> BudgetConfig {
        BudgetConfig {
            day_tokens: layers.number("budget.day_tokens", 0..=i64::MAX).unsigned_abs(),
            day_money: money(layers, "budget.day_money"),
            soft: layers.share("budget.soft"),
        }
    }
}

fn money(layers: &mut Layers, key: &'static str) -> f64 {
    let amount = match layers.raw(key) {
        Some(Value::Float(amount)) => Some(*amount),
        Some(Value::Integer(whole)) => i32::try_from(*whole).ok().map(f64::from),
        _ => None,
    };
    amount.filter(|amount| (0.0..=MONEY_MAX).contains(amount)).unwrap_or_else(|| {
        layers.wrong(key, "must be an amount of money such as 2.5; 0 = no limit.");
        0.0
    })
}

/// `content_policy.deny`, compiled.
pub(super) fn denied(layers: &mut Layers) -> Vec<Regex> {
    const KEY: &str = "content_policy.deny";
    let patterns = layers.list(KEY);
    if patterns.len() > DENIED_MAX {
        layers.wrong(KEY, &format!("has {} patterns; at most {DENIED_MAX}.", patterns.len()));
        return Vec::new();
    }
    let mut denied = Vec::new();
    for (n, text) in patterns.iter().enumerate() {
        match pattern::compile(text) {
            Ok(regex) => denied.push(regex),
            Err(reason) => layers.wrong(KEY, &format!("rule {}: {reason}.", n + 1)),
        }
    }
    denied
}
