//! `[plugin.<name>]`: what the operator tells a plugin, and what is told for it to others.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use toml::{Table, Value};

use super::table::{Faults, Reader};
use super::{Applied, References, Secret};

/// Settings, or secrets, of one plugin.
const ENTRIES_MAX: usize = 200;
/// Shorter secrets could not be kept out of logs and answers without spoiling other texts.
const SECRET_BYTES_MIN: usize = 8;

/// What the file says of one plugin, whether it is installed or not.
#[derive(Debug, Clone, PartialEq)]
pub struct PluginSection {
    /// The plugin's name.
    pub name: String,
    /// An address of its own, where its routes are at `/`.
    pub bind: Option<SocketAddr>,
    /// How long its sources may tell nothing before that is told.
    pub expect_every: Option<Duration>,
    /// What the plugin reads.
    pub settings: BTreeMap<String, String>,
    /// What the daemon puts into its requests; the plugin never sees it.
    pub secrets: BTreeMap<String, Secret>,
}

/// What makes `after` of `before`; all of it takes effect at once.
pub fn plan(before: &[PluginSection], after: &[PluginSection]) -> Applied {
    Applied::plan("plugin", by_name(before), by_name(after))
}

fn by_name(sections: &[PluginSection]) -> impl Iterator<Item = (&str, &PluginSection)> {
    sections.iter().map(|section| (section.name.as_str(), section))
}

/// Reads the table of a plugin; `None` when it cannot be used, and then `faults` says why. Only with `may_be_remote` may
/// other machines reach it.
pub(super) fn section(
    name: &str,
    table: &Table,
    may_be_remote: bool,
    references: References,
    faults: &mut Faults,
) -> Option<PluginSection> {
    let mut reader = Reader::new(format!("plugin.{name}"), table, references);
    let wrong_before = faults.wrong.len();
    let bind = bind(&mut reader, may_be_remote);
    let expect_every = reader.duration("expect_every", Duration::from_secs(1)..=Duration::from_secs(366 * 86_400));
    let settings = settings(&mut reader);
    let secrets = reader.variables("secrets");
    for (key, secret) in &secrets {
        let value = secret.expose();
        if value.len() < SECRET_BYTES_MIN || !value.bytes().all(|b| (b' '..=b'~').contains(&b)) {
            let reason = format!("'{key}' must have at least {SECRET_BYTES_MIN} characters, all of them plain ASCII.");
            reader.wrong("secrets", reason);
        } else {
            crate::redact::learn(value);
        }
    }
    let many = settings.len().max(secrets.len());
    if many > ENTRIES_MAX {
        reader.wrong("settings", format!("and secrets have at most {ENTRIES_MAX} entries each."));
    }
    reader.finish(faults);
    let section =
        PluginSection { name: name.to_owned(), bind, expect_every, settings, secrets: secrets.into_iter().collect() };
    (faults.wrong.len() == wrong_before).then_some(section)
}

fn bind(reader: &mut Reader<'_>, may_be_remote: bool) -> Option<SocketAddr> {
    let text = reader.text("bind")?;
    let Ok(address) = text.parse::<SocketAddr>() else {
        reader.wrong("bind", "must be an address and a port, such as 127.0.0.1:8080.");
        return None;
    };
    if !address.ip().is_loopback() && !may_be_remote {
        let reason = "is not a loopback address: as for http.bind that needs http.token and http.allow_remote = true. \
                      Bind 127.0.0.1 unless other machines are to reach the plugin.";
        reader.wrong("bind", reason);
        return None;
    }
    Some(address)
}

/// Texts, numbers and truth values, all as texts.
fn settings(reader: &mut Reader<'_>) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let Some(table) = reader.raw_table("settings") else { return found };
    for (key, value) in table {
        let named = !key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        let text = match value {
            Value::String(text) => Some(text.clone()),
            Value::Integer(number) => Some(number.to_string()),
            Value::Float(number) => Some(number.to_string()),
            Value::Boolean(flag) => Some(flag.to_string()),
            Value::Datetime(_) | Value::Array(_) | Value::Table(_) => None,
        };
        match text {
            Some(text) if named => drop(found.insert(key.clone(), text)),
            Some(_) => reader.wrong("settings", format!("'{key}' must be lower-case letters, digits and '_'.")),
            None => reader.wrong("settings", format!("'{key}' must be a text, a number, true or false.")),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_become_texts_and_secrets_stay_hidden() {
        let text = "bind = \"127.0.0.1:0\"\nsettings = { url = \"http://x\", days = 3, on = true }\n\
                    secrets = { TOKEN = \"canary-of-a-plugin\" }\ncolour = 1";
        let (table, mut faults) = (text.parse::<Table>().expect("TOML"), Faults::default());
        let section = section("feeds", &table, false, References::Followed, &mut faults).expect("good");
        let settings: Vec<(&str, &str)> = section.settings.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(settings, [("days", "3"), ("on", "true"), ("url", "http://x")]);
        assert_eq!(section.secrets["TOKEN"].expose(), "canary-of-a-plugin");
        assert!(!format!("{section:?}").contains("canary"));
        assert_eq!(faults.unknown[0].0, "plugin.feeds.colour");
        assert_eq!(crate::redact::text("a canary-of-a-plugin"), "a redacted");
    }
}
