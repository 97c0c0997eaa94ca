//! What the person is told without having asked: a consumer whose rules turn events of the daemon's own into notifications.

mod rules;

use std::sync::Arc;
use std::time::Duration;

use crate::bus::{
    Attempt, Concurrency, Consumer, ConsumerSpec, Delivered, Effects, Outcome, RetryPolicy, Rule, Standing,
};
use crate::event::{Trust, TypePattern};

/// The consumer's name.
const NAME: &str = "notifications";

/// Tells of what [`rules`] know.
struct Teller;

impl Consumer for Teller {
    fn deliver(&self, attempt: Attempt) -> Delivered<'_> {
        Box::pin(async move {
            let event = attempt.event.to_value();
            let notify = rules::notification(&attempt.event.sent.kind, &event["data"]).into_iter().collect();
            Outcome::Done(Effects { notify, ..Effects::default() })
        })
    }
}

/// The consumer, for the bus.
pub fn consumer() -> (ConsumerSpec, Arc<dyn Consumer>) {
    let rule = |kind: &str| Rule { pattern: TypePattern::parse(kind).expect("the table has types"), condition: None };
    let spec = ConsumerSpec {
        name: NAME.to_owned(),
        kind: "internal",
        rules: rules::types().map(rule).collect(),
        concurrency: Concurrency::Serial,
        retry: RetryPolicy::default(),
        timeout: Duration::from_secs(30),
        trust: Trust::Owner,
        standing: Standing::Active,
        acts_outside: false,
    };
    (spec, Arc::new(Teller))
}
