//! `[mcp.<name>]`: servers of the Model Context Protocol, whose tools the daemon offers.

use std::path::PathBuf;
use std::time::Duration;

use toml::Table;

use super::table::{Faults, Reader};
use super::{Applied, Paths, References, Secret, paths};
use crate::egress::Url;
use crate::event::Trust;

/// Longest name; with it the names of the server's tools begin.
const NAME_BYTES_MAX: usize = 24;
/// How long a call may take when nothing else is said.
const TIMEOUT: Duration = Duration::from_secs(60);
const TIMEOUT_MIN: Duration = Duration::from_secs(1);
const TIMEOUT_MAX: Duration = Duration::from_secs(600);
/// What makes a program of one kind or the other.
const ONE_OF: &str = "is missing: command = [\"program\", \"argument\"], or url = \"https://…\".";

/// A server as it is configured.
#[derive(Debug, Clone, PartialEq)]
pub struct McpServer {
    /// Its name.
    pub name: String,
    /// False: it is named here, and left alone.
    pub enabled: bool,
    /// How far what it says is believed.
    pub trust: Trust,
    /// How long a call may take, and how long it may take to connect.
    pub timeout: Duration,
    /// True when it is believed which of its tools change nothing.
    pub trusted_annotations: bool,
    /// Its table as it was read, for whoever shows it.
    pub table: Table,
    /// How it is reached.
    pub place: McpPlace,
}

/// How a server is reached.
#[derive(Debug, Clone, PartialEq)]
pub enum McpPlace {
    /// A program that is started, and spoken to over its standard input and output.
    Program {
        /// The command and its arguments.
        argv: Vec<String>,
        /// The folder it starts in; none = the person's home.
        dir: Option<PathBuf>,
        /// Variables besides the few that every program gets.
        env: Vec<(String, Secret)>,
    },
    /// Streamable HTTP.
    Http {
        /// Where; the operator's own word, so it may be on this machine or a private network.
        url: Url,
        /// Further headers; values may be secrets.
        headers: Vec<(String, Secret)>,
    },
}

/// What makes `after` of `before`.
pub fn plan(before: &[McpServer], after: &[McpServer]) -> Applied {
    let by_name = |server| (McpServer::name(server), server);
    Applied::plan("mcp", before.iter().map(by_name), after.iter().map(by_name))
}

impl McpServer {
    fn name(&self) -> &str {
        &self.name
    }
}

/// Reads the table of a server; `None` when it cannot be used, and then `faults` says why.
pub(super) fn server(
    name: &str,
    table: &Table,
    places: &Paths,
    references: References,
    faults: &mut Faults,
) -> Option<McpServer> {
    let mut reader = Reader::new(format!("mcp.{name}"), table, references);
    let wrong_before = faults.wrong.len();
    if name.len() > NAME_BYTES_MAX {
        reader.wrong(
            "command",
            format!("belongs to a name of more than {NAME_BYTES_MAX} characters; take a shorter one."),
        );
    }
    let enabled = reader.flag("enabled", true);
    // Whoever writes what the server passes on is somebody out there, unless the operator knows better.
    let trust = if table.contains_key("trust") { reader.trust(Trust::Owner) } else { Trust::Web };
    let timeout = reader.duration("timeout", TIMEOUT_MIN..=TIMEOUT_MAX).unwrap_or(TIMEOUT);
    let trusted_annotations = reader.flag("trusted_annotations", false);
    let place = match (table.contains_key("command"), table.contains_key("url")) {
        (true, false) => program(&mut reader, places),
        (false, true) => {
            let headers = reader.headers("headers");
            reader.url("url", ONE_OF).map(|url| McpPlace::Http { url, headers })
        }
        (false, false) => {
            reader.wrong("command", ONE_OF);
            None
        }
        (true, true) => {
            reader.wrong("url", "stands beside a command; a server has one or the other.");
            None
        }
    };
    reader.finish(faults);
    let place = place.filter(|_| faults.wrong.len() == wrong_before)?;
    let table = table.clone();
    Some(McpServer { name: name.to_owned(), enabled, trust, timeout, trusted_annotations, table, place })
}

fn program(reader: &mut Reader<'_>, places: &Paths) -> Option<McpPlace> {
    let home = places.home_dir.as_deref();
    let argv = reader.words("command");
    let argv: Vec<String> = argv.iter().map(|word| paths::expand(word, home).to_string_lossy().into_owned()).collect();
    let dir = reader.path("dir", home);
    let env = reader.variables("env");
    if argv.first().is_none_or(String::is_empty) || argv.iter().any(|word| word.contains('\0')) {
        reader.wrong("command", "must name a program, and may hold no NUL character.");
        return None;
    }
    if env.iter().any(|(name, _)| name.contains(['=', '\0'])) {
        reader.wrong("env", "has a name with '=' in it.");
        return None;
    }
    Some(McpPlace::Program { argv, dir, env })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<McpServer, String> {
        let (table, mut faults) = (text.parse::<Table>().expect("TOML"), Faults::default());
        let places = Paths::under("/home/me/aman".into(), Some("/home/me".into()));
        let found = server("files", &table, &places, References::Followed, &mut faults);
        found.ok_or_else(|| faults.wrong.first().map_or_else(String::new, |wrong| wrong.field.clone()))
    }

    #[test]
    fn servers_are_read() {
        let text = "command = \"npx -y 'a b' ~/notes\"\nenv = { A_KEY = \"canary-of-a-server\" }";
        let found = check(text).expect("good");
        let McpPlace::Program { argv, env, .. } = &found.place else { panic!("a program") };
        assert_eq!(argv, &["npx", "-y", "a b", "/home/me/notes"]);
        assert_eq!(
            (env[0].0.as_str(), found.trust, found.timeout, found.enabled),
            ("A_KEY", Trust::Web, TIMEOUT, true)
        );
        assert!(!format!("{:?}", found.place).contains("canary"));
        assert!(!serde_json::Value::from(super::super::shown(&found.table)).to_string().contains("canary"));
        let remote =
            check("url = \"http://127.0.0.1:1/mcp\"\nheaders = { authorization = \"Bearer abc\" }\ntrust = \"paired\"");
        assert!(matches!(remote.expect("good"), McpServer { place: McpPlace::Http { .. }, trust: Trust::Paired, .. }));
        for (text, wrong) in [
            ("", "mcp.files.command"),
            ("command = []", "mcp.files.command"),
            ("command = \"a\"\nurl = \"https://a\"", "mcp.files.url"),
            ("url = \"ftp://a\"", "mcp.files.url"),
            ("command = \"a\"\ntrust = \"all\"", "mcp.files.trust"),
            ("command = \"a\"\ntimeout = \"1h\"", "mcp.files.timeout"),
            ("command = \"a\"\nenabled = \"no\"", "mcp.files.enabled"),
            ("command = \"a\"\nenv = { \"A=B\" = \"c\" }", "mcp.files.env"),
        ] {
            assert_eq!(check(text).expect_err(text), wrong, "{text}");
        }
    }
}
