//! How long something lasts: said in the definition, or by an expression when it comes to it.

use serde_json::Value;

use super::duration::{self, Length};
use super::fault::Fault;
use super::template::{Locals, Scope, Template};
use crate::clock::Millis;

/// A duration.
#[derive(Debug, Clone, PartialEq)]
pub enum Time {
    /// What the definition says.
    Fixed(Length),
    /// What a template says.
    Said(Template),
}

impl Time {
    /// Reads a duration; `wrong` hears of what is wrong with it.
    pub fn read(value: &Value, locals: &Locals, wrong: &mut dyn FnMut(String, String)) -> Time {
        let template = Template::read(value, locals, wrong);
        match &template {
            Template::Plain(value) => match duration::read(value) {
                Ok(length) => Time::Fixed(length),
                Err(why) => {
                    wrong(String::new(), why);
                    Time::Fixed(Length::default())
                }
            },
            _ => Time::Said(template),
        }
    }

    /// Its length in milliseconds when it begins at `from_ms`.
    pub fn ms(&self, scope: &Scope<'_>, from_ms: Millis) -> Result<Millis, Fault> {
        let length = match self {
            Time::Fixed(length) => *length,
            Time::Said(template) => {
                duration::read(&template.value(scope)?).map_err(|why| Fault::expression(format!("a duration {why}")))?
            }
        };
        Ok(length.after(from_ms))
    }
}
