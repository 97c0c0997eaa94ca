//! Medians and percentiles.

/// The middle value; 0 for none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted: Vec<f64> = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// The value below which the share `p` of the sorted values lies; 0 for none.
pub fn percentile(sorted: &[u32], p: f64) -> u32 {
    if sorted.is_empty() {
        return 0;
    }
    let last = sorted.len() - 1;
    let at = (last as f64 * p).round() as usize;
    sorted[at.min(last)]
}

/// What each round gave for ours and for the reference, side by side.
#[derive(Default, Clone)]
pub struct Pairs {
    pub ours: Vec<f64>,
    pub reference: Vec<f64>,
}

impl Pairs {
    pub fn push(&mut self, ours: f64, reference: f64) {
        self.ours.push(ours);
        self.reference.push(reference);
    }

    /// The ratios round by round: neighbours in time share the machine's mood. A round in which the reference did nothing
    /// at all has none.
    pub fn ratios(&self) -> Vec<f64> {
        let rounds = self.ours.iter().zip(&self.reference);
        rounds.filter(|(_, reference)| **reference > 0.0).map(|(ours, reference)| ours / reference).collect()
    }
}
