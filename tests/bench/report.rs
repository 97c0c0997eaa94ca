//! What was measured: a table for people, JSON for programs.

use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};

use crate::Res;
use crate::stats::{Pairs, median};

/// What a ratio or a cost should be.
#[derive(Clone, Copy)]
pub enum Wanted {
    AtLeast(f64),
    AtMost(f64),
    /// Shown beside the others; nothing is asked of it.
    Nothing,
}

impl Wanted {
    fn verdict(self, value: f64) -> &'static str {
        match self {
            Wanted::AtLeast(bound) if value >= bound => "met",
            Wanted::AtMost(bound) if value <= bound => "met",
            Wanted::Nothing => "-",
            _ => "MISSED",
        }
    }

    fn text(self, unit: &str) -> String {
        match self {
            Wanted::AtLeast(bound) => format!(">= {}{unit}", figure(bound)),
            Wanted::AtMost(bound) => format!("<= {}{unit}", figure(bound)),
            Wanted::Nothing => "-".to_owned(),
        }
    }
}

/// One line of the table.
pub struct Row {
    pub target: u8,
    pub name: String,
    pub unit: &'static str,
    pub measured: f64,
    pub reference: Option<(String, f64)>,
    pub ratio: Option<f64>,
    pub wanted: Wanted,
    /// True when `wanted` speaks of the ratio, false when of the measured value.
    of_ratio: bool,
    pub note: String,
    rounds: Value,
}

impl Row {
    /// Ours against a reference, round by round; `wanted` speaks of the median ratio.
    pub fn ratio(target: u8, name: &str, unit: &'static str, pairs: &Pairs, against: &str, wanted: Wanted) -> Row {
        Row {
            target,
            name: name.to_owned(),
            unit,
            measured: median(&pairs.ours),
            reference: Some((against.to_owned(), median(&pairs.reference))),
            ratio: Some(pairs.ratios()).filter(|ratios| !ratios.is_empty()).map(|ratios| median(&ratios)),
            wanted,
            of_ratio: true,
            note: String::new(),
            rounds: json!({"measured": pairs.ours, "reference": pairs.reference}),
        }
    }

    /// A cost that is wanted by itself (CPU per event, memory); `wanted` speaks of the median.
    pub fn cost(target: u8, name: &str, unit: &'static str, values: &[f64], wanted: Wanted) -> Row {
        Row {
            target,
            name: name.to_owned(),
            unit,
            measured: median(values),
            reference: None,
            ratio: None,
            wanted,
            of_ratio: false,
            note: String::new(),
            rounds: json!({"measured": values}),
        }
    }

    /// A cost beside the same cost of a reference; `wanted` speaks of the cost.
    pub fn cost_beside(
        target: u8,
        name: &str,
        unit: &'static str,
        pairs: &Pairs,
        against: &str,
        wanted: Wanted,
    ) -> Row {
        Row { of_ratio: false, ..Row::ratio(target, name, unit, pairs, against, wanted) }
    }

    pub fn note(mut self, note: impl Into<String>) -> Row {
        self.note = note.into();
        self
    }

    fn verdict(&self) -> &'static str {
        match self.ratio {
            None if self.of_ratio => "no reference",
            Some(ratio) if self.of_ratio => self.wanted.verdict(ratio),
            _ => self.wanted.verdict(self.measured),
        }
    }

    fn cells(&self) -> [String; 7] {
        let unit = if self.of_ratio { String::new() } else { format!(" {}", self.unit) };
        [
            format!("{} {}", self.target, self.name),
            format!("{} {}", figure(self.measured), self.unit),
            self.reference.as_ref().map_or("-".to_owned(), |(name, value)| format!("{} ({name})", figure(*value))),
            self.ratio.map_or("-".to_owned(), figure),
            self.wanted.text(&unit),
            self.verdict().to_owned(),
            self.note.clone(),
        ]
    }

    fn json(&self) -> Value {
        let (against, reference) =
            self.reference.as_ref().map_or((Value::Null, Value::Null), |(n, v)| (json!(n), json!(v)));
        json!({
            "target": self.target, "name": self.name, "unit": self.unit, "measured": self.measured,
            "against": against, "reference": reference, "ratio": self.ratio,
            "wanted": self.wanted.text(""), "verdict": self.verdict(), "note": self.note, "rounds": self.rounds,
        })
    }
}

/// Three significant digits, thousands as k.
pub fn figure(value: f64) -> String {
    match value.abs() {
        v if v >= 10_000_000.0 => format!("{:.1}M", value / 1e6),
        v if v >= 10_000.0 => format!("{:.1}k", value / 1e3),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// The rows and remarks of a run.
#[derive(Default)]
pub struct Report {
    rows: Vec<Row>,
    remarks: Vec<String>,
    regimes: Vec<Regime>,
}

impl Report {
    pub fn add(&mut self, row: Row) {
        say(&row.cells()[..6].join(" | "));
        self.rows.push(row);
    }

    pub fn remark(&mut self, text: String) {
        say(&text);
        self.remarks.push(text);
    }

    pub fn regime(&mut self, regime: Regime) {
        say(&regime.text());
        self.regimes.push(regime);
    }

    /// Prints the table to standard output.
    pub fn print(&self) -> Res<()> {
        const HEADS: [&str; 7] = ["target", "measured", "reference", "ratio", "wanted", "verdict", "note"];
        let mut lines = vec![HEADS.map(str::to_owned)];
        lines.extend(self.rows.iter().map(Row::cells));
        let width = |column: usize| lines.iter().map(|l| l[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..HEADS.len()).map(width).collect();
        let mut out = std::io::stdout().lock();
        writeln!(out)?;
        for line in &lines {
            let padded: Vec<String> = line.iter().zip(&widths).map(|(cell, w)| format!("{cell:<w$}")).collect();
            writeln!(out, "{}", padded.join("  ").trim_end())?;
        }
        writeln!(out)?;
        for regime in &self.regimes {
            writeln!(out, "{}", regime.text())?;
        }
        for remark in &self.remarks {
            writeln!(out, "{remark}")?;
        }
        Ok(())
    }

    /// Writes the same, with every round, as JSON.
    pub fn write_json(&self, path: &Path) -> Res<()> {
        let regimes: Vec<Value> = self.regimes.iter().map(Regime::json).collect();
        let rows: Vec<Value> = self.rows.iter().map(Row::json).collect();
        let text = serde_json::to_string_pretty(&json!({"rows": rows, "regimes": regimes, "remarks": self.remarks}))?;
        Ok(std::fs::write(path, text + "\n")?)
    }
}

/// What the machine was like before a target: raw 4 KiB append + fdatasync, and what other programs took.
pub struct Regime {
    pub target: u8,
    pub beside: String,
    pub fdatasync_p50_us: f64,
    /// The share of the processors that was in use just before, 0 to 1.
    pub busy: f64,
}

impl Regime {
    /// On a busy box a writer that slept in fsync waits for the scheduler (up to 4 ms) before it goes on, which a lone
    /// append does not show; on a quiet one the disk's own speed shows.
    fn name(&self) -> &'static str {
        match (self.busy, self.fdatasync_p50_us) {
            (busy, _) if busy >= 0.5 => "busy box",
            (_, p50) if p50 >= 2000.0 => "slow disk",
            (busy, _) if busy >= 0.2 => "box with some other work",
            _ => "quiet box",
        }
    }

    fn text(&self) -> String {
        let Regime { target, beside, fdatasync_p50_us, busy } = self;
        let (p50, busy, name) = (figure(*fdatasync_p50_us), busy * 100.0, self.name());
        format!("target {target}{beside}: {name}: raw fdatasync p50 {p50} us, processors {busy:.0} % in use before it")
    }

    fn json(&self) -> Value {
        json!({
            "target": self.target, "beside": self.beside, "fdatasync_p50_us": self.fdatasync_p50_us,
            "busy": self.busy, "regime": self.name(),
        })
    }
}

/// A line of progress on standard error.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
