//! How long something lasts: said in the definition, or by an expression when it comes to it.

use serde_json::Value;

use super::duration;
use super::fault::Fault;
use super::template::{Locals, Scope, Template};
use crate::clock::Millis;

/// A duration.
#[derive(Debug, Clone, PartialEq)]
pub enum Time {
    /// So many milliseconds.
    Fixed(Millis),
    /// What a template says.
    Said(Template),
}

impl Time {
    /// Reads a duration; `wrong` hears of what is wrong with it.
    pub fn read(value: &Value, locals: &Locals, wrong: &mut dyn FnMut(String, String)) -> Time {
        let template = Template::read(value, locals, wrong);
        match &template {
            Template::Plain(value) => match duration::read(value) {
                Ok(ms) => Time::Fixed(ms),
                Err(why) => {
                    wrong(String::new(), why);
                    Time::Fixed(0)
                }
            },
            _ => Time::Said(template),
        }
    }

    /// Its length in milliseconds.
    pub fn ms(&self, scope: &Scope<'_>) -> Result<Millis, Fault> {
        match self {
            Time::Fixed(ms) => Ok(*ms),
            Time::Said(template) => {
                duration::read(&template.value(scope)?).map_err(|why| Fault::expression(format!("a duration {why}")))
            }
        }
    }
}
