//! What the settings allow, and secrets that stand in the configuration file as they are.

use std::net::{IpAddr, SocketAddr};

use serde_json::Value;
use toml::Table;

use super::Check;
use super::catalogue::Id;
use crate::config::{is_reference, is_secret_name};
use crate::egress::Url;

/// Checks of the fixed settings; `get` gives the value in force of a key.
pub fn checks(get: &dyn Fn(&str) -> Value) -> Vec<Check> {
    let text = |key: &str| get(key).as_str().unwrap_or_default().to_owned();
    let on = |key: &str| get(key) == true;
    let bind = text("http.bind");
    let remote = bind.parse::<SocketAddr>().is_ok_and(|address| !address.ip().is_loopback());
    let mut checks = reach(&bind, remote, &text, &on);
    checks.push(origins(&get("http.allowed_origins")));
    checks.push(match (text("http.public_stream").as_str(), remote) {
        ("full", _) => Check::warn(
            Id::PublicStream,
            "/events/stream shows the data of all events to whoever connects",
            "Set http.public_stream to metadata or off.",
        ),
        ("metadata", true) => Check::warn(
            Id::PublicStream,
            "Other machines see types and sources of all events without a token",
            "Set http.public_stream = \"off\".",
        ),
        (shown, _) => Check::ok(Id::PublicStream, format!("shows {shown} without a token")),
    });
    checks.push(if remote && get("http.rate_limit") == 0 {
        Check::warn(Id::RateLimit, "Requests are not limited", "Set http.rate_limit, such as 100 a second.")
    } else {
        Check::ok(Id::RateLimit, format!("{} requests a second (0 = no limit)", get("http.rate_limit")))
    });
    checks.push(if on("debug.force_enable_debug_endpoints") {
        let advice = "Set debug.force_enable_debug_endpoints = false.";
        Check::warn(Id::DebugEndpoints, "/inject-event and other test helpers answer", advice)
    } else {
        Check::ok(Id::DebugEndpoints, "off")
    });
    checks.push(if on("http_client.allow_private") {
        let advice = "Set http_client.allow_private = false, unless a sink or source must reach this network.";
        Check::warn(Id::EgressPrivate, "Outgoing calls may reach loopback and private addresses", advice)
    } else {
        Check::ok(Id::EgressPrivate, "private addresses are refused")
    });
    checks
}

fn reach(bind: &str, remote: bool, text: &dyn Fn(&str) -> String, on: &dyn Fn(&str) -> bool) -> Vec<Check> {
    let loopback = "it listens on loopback";
    let binds = if remote {
        let advice = "Set http.bind = \"127.0.0.1:9090\" unless they are to; a tunnel (ssh -L) is safer.";
        Check::warn(Id::Bind, format!("Other machines can reach it at {bind}"), advice)
    } else {
        Check::ok(Id::Bind, loopback)
    };
    let encrypted = if remote && text("http.tls.cert").is_empty() {
        let advice = "Set http.tls.cert and http.tls.key, or bind loopback.";
        Check::fail(Id::RemoteTls, "Tokens cross the network unencrypted", advice)
    } else {
        Check::ok(Id::RemoteTls, if remote { "HTTPS only" } else { loopback })
    };
    let allowed = if on("http.allow_remote") && !remote {
        let advice = "Set http.allow_remote = false; now a change of http.bind alone opens it to other machines.";
        Check::warn(Id::AllowRemote, "http.allow_remote is on and nothing needs it", advice)
    } else {
        Check::ok(Id::AllowRemote, if remote { "needed" } else { "off" })
    };
    let auth = if text("http.auth") == "none" {
        let advice = "Remove http.auth = \"none\".";
        Check::fail(Id::AuthNone, "Every program of every user of this machine is let in as the owner", advice)
    } else {
        Check::ok(Id::AuthNone, "a token is needed")
    };
    vec![binds, encrypted, allowed, auth]
}

fn origins(listed: &Value) -> Check {
    let weak = |origin: &&str| {
        matches!(*origin, "*" | "null")
            || origin.strip_prefix("http://").is_some_and(|place| !is_local(place.split(':').next().unwrap_or(place)))
    };
    let all: Vec<&str> = listed.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let wrong: Vec<&str> = all.iter().copied().filter(|origin| weak(origin)).collect();
    if wrong.is_empty() {
        return Check::ok(Id::AllowedOrigins, format!("{} listed", all.len()));
    }
    let advice = "List https origins by name in http.allowed_origins. Anybody on the way can change a page that comes by \
                  http; null is every sandboxed page, and * matches nothing here.";
    Check::warn(Id::AllowedOrigins, format!("These may call the API: {}", wrong.join(", ")), advice)
}

/// Checks of `[sources.*]`, `[sinks.*]` and `[plugin.*]`, as the file has them.
pub fn tables(file: &Table) -> Vec<Check> {
    let (mut unverified, mut polled, mut commands, mut sent) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (id, source) in each(file, "sources") {
        let kind = word(source, "kind");
        let verify = source.get("verify").and_then(toml::Value::as_table);
        if kind == "webhook" && verify.is_none_or(|verify| word(verify, "algorithm") == "sha1") {
            unverified.push(id);
        }
        let plain = kind == "http_poll" && plain_url(word(source, "url"));
        if plain || plain_broker(source) {
            polled.push(id);
        }
        let writes = source.get("write").and_then(toml::Value::as_array).into_iter().flatten();
        if kind == "command" && writes.filter_map(toml::Value::as_str).any(is_wide) {
            commands.push(id);
        }
    }
    for (id, sink) in each(file, "sinks") {
        let plain = word(sink, "kind") == "webhook" && plain_url(word(sink, "url"));
        if plain || plain_broker(sink) {
            sent.push(id);
        }
    }
    let remote = |text: &str| text.parse::<SocketAddr>().is_ok_and(|address| !address.ip().is_loopback());
    let open = each(file, "plugin").filter(|(_, plugin)| remote(word(plugin, "bind")));
    let open: Vec<&str> = open.map(|(name, _)| name).collect();
    let verdict = |id: Id, wrong: &[&str], what: &str, advice: &str| {
        if wrong.is_empty() {
            Check::ok(id, "none")
        } else {
            Check::warn(id, format!("{what}: {}", wrong.join(", ")), advice)
        }
    };
    vec![
        verdict(
            Id::PluginBind,
            &open,
            "Other machines can reach",
            "Set [plugin.NAME] bind to 127.0.0.1 unless they are to, and http.tls if they are.",
        ),
        verdict(
            Id::WebhookVerify,
            &unverified,
            "No signature, or one with SHA-1, is checked by",
            "Add verify = { scheme = …, secret = … }; until then a sender needs a token of yours.",
        ),
        verdict(
            Id::SourceTransport,
            &polled,
            "What comes can be read and changed on the way to",
            "Use https, and mqtts:// for brokers.",
        ),
        verdict(Id::SinkTransport, &sent, "Events can be read on the way from", "Use https, and mqtts:// for brokers."),
        verdict(
            Id::SourceCommands,
            &commands,
            "A whole home or system folder may be written by",
            "List in write only what the command needs.",
        ),
    ]
}

fn each<'a>(file: &'a Table, section: &str) -> impl Iterator<Item = (&'a str, &'a Table)> {
    let tables = file.get(section).and_then(toml::Value::as_table).into_iter().flatten();
    tables.filter_map(|(id, table)| Some((id.as_str(), table.as_table()?)))
}

fn word<'a>(table: &'a Table, key: &str) -> &'a str {
    table.get(key).and_then(toml::Value::as_str).unwrap_or_default()
}

fn plain_url(text: &str) -> bool {
    Url::parse(text).is_ok_and(|url| !url.is_tls() && !is_local(url.host()))
}

/// True for a broker beyond this machine that is spoken to without TLS.
fn plain_broker(table: &Table) -> bool {
    let broker = word(table, "broker");
    word(table, "kind") == "mqtt" && !broker.starts_with("mqtts://") && !is_local(broker_host(broker))
}

/// The host of a broker that is spoken to without TLS.
pub fn broker_host(text: &str) -> &str {
    let place = text.strip_prefix("mqtt://").unwrap_or(text).trim_end_matches('/');
    // An address of IPv6 without a port ends with its bracket.
    if place.ends_with(']') { place } else { place.rsplit_once(':').map_or(place, |(host, _)| host) }
}

fn is_local(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.is_empty() || bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Whether the path is a whole system or home folder.
pub fn is_wide(path: &str) -> bool {
    let path = path.trim_end_matches('/');
    let system = ["", "~", "/home", "/root", "/etc", "/usr", "/var", "/boot", "/opt", "/lib", "/bin", "/sbin"];
    system.contains(&path) || path.strip_prefix("/home/").is_some_and(|rest| !rest.contains('/'))
}

/// The keys of the file that hold a secret as it is.
pub fn plain_secrets(file: &Table) -> Vec<String> {
    let mut found = Vec::new();
    for (key, value) in file {
        secrets_in(key, is_secret_name(key), value, &mut found);
    }
    found
}

/// `secret`: the name says that it holds a secret. In a table with such a name, as the `secrets` of a plugin, all do.
fn secrets_in(path: &str, secret: bool, value: &toml::Value, found: &mut Vec<String>) {
    let plain = |value: &toml::Value| value.as_str().is_some_and(|text| !text.is_empty() && !is_reference(text));
    match value {
        toml::Value::Table(table) => {
            for (name, value) in table {
                secrets_in(&format!("{path}.{name}"), secret || is_secret_name(name), value, found);
            }
        }
        toml::Value::Array(all) if secret && all.iter().any(plain) => found.push(path.to_owned()),
        value if secret && plain(value) => found.push(path.to_owned()),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::doctor::Verdict;

    fn bad(checks: &[Check]) -> Vec<&str> {
        checks.iter().filter(|check| check.status > Verdict::Skip).map(|check| check.id.name()).collect()
    }

    #[test]
    fn settings_one_by_one() {
        let with = |changes: &[(&str, Value)]| {
            let get = |key: &str| changes.iter().find(|(name, _)| *name == key).map_or(Value::Null, |(_, v)| v.clone());
            let checks = checks(&get);
            bad(&checks).join(" ")
        };
        assert_eq!(with(&[]), "");
        let cases: [(&[(&str, Value)], &str); 9] = [
            (&[("http.bind", json!("127.0.0.1:9090"))], ""),
            (&[("http.bind", json!("0.0.0.0:1")), ("http.rate_limit", json!(9))], "bind remote_tls"),
            (
                &[("http.bind", json!("[::]:1")), ("http.tls.cert", json!("/a")), ("http.rate_limit", json!(0))],
                "bind rate_limit",
            ),
            (&[("http.allow_remote", json!(true))], "allow_remote"),
            (&[("http.auth", json!("none"))], "auth_none"),
            (&[("http.allowed_origins", json!(["https://a.example", "http://localhost:3000"]))], ""),
            (&[("http.allowed_origins", json!(["null"]))], "allowed_origins"),
            (&[("http.public_stream", json!("full"))], "public_stream"),
            (
                &[("http_client.allow_private", json!(true)), ("debug.force_enable_debug_endpoints", json!(true))],
                "debug_endpoints egress_private",
            ),
        ];
        for (changes, wanted) in cases {
            assert_eq!(with(changes), wanted, "{changes:?}");
        }
    }

    #[test]
    fn sources_and_sinks_one_by_one() {
        let cases = [
            ("[sources.a]\nkind = \"webhook\"", "webhook_verify"),
            ("[sources.a]\nkind = \"webhook\"\nverify = { scheme = \"github\" }", ""),
            ("[sources.a]\nkind = \"webhook\"\nverify = { scheme = \"hmac\", algorithm = \"sha1\" }", "webhook_verify"),
            ("[sources.a]\nkind = \"http_poll\"\nurl = \"http://example.org/\"", "source_transport"),
            ("[sources.a]\nkind = \"http_poll\"\nurl = \"http://127.0.0.1:1/\"", ""),
            ("[sources.a]\nkind = \"mqtt\"\nbroker = \"mqtt://broker.lan:1883\"", "source_transport"),
            ("[sources.a]\nkind = \"mqtt\"\nbroker = \"mqtts://broker.lan\"", ""),
            ("[sources.a]\nkind = \"mqtt\"\nbroker = \"localhost\"", ""),
            ("[sources.a]\nkind = \"mqtt\"\nbroker = \"mqtt://[::1]\"", ""),
            ("[sources.a]\nkind = \"command\"\nwrite = [\"~/\"]", "source_commands"),
            ("[sources.a]\nkind = \"command\"\nwrite = [\"~/out\"]", ""),
            ("[sinks.a]\nkind = \"webhook\"\nurl = \"http://example.org/\"", "sink_transport"),
            ("[sinks.a]\nkind = \"webhook\"\nurl = \"https://example.org/\"", ""),
            ("[plugin.a]\nbind = \"127.0.0.1:8080\"", ""),
            ("[plugin.a]\nbind = \"[::]:8080\"", "plugin_bind"),
        ];
        for (text, wanted) in cases {
            let checks = tables(&text.parse().expect("TOML"));
            assert_eq!(bad(&checks).join(" "), wanted, "{text}");
        }
    }

    #[test]
    fn plain_secrets_are_found_and_references_are_not() {
        let text = "[http]\ntoken = \"0123456789abcdef\"\n[http.tls]\nkey = \"/a/key.pem\"\n[sinks.a]\nsecret = [\"env:A\", \"plain\"]\n\
            headers = { Authorization = \"Bearer x\", x-api-key = \"file:/a\", accept = \"*/*\" }\n[sources.b]\npassword = \"env:B\"\n\
            env = { GITHUB_TOKEN = \"ghp\", LANG = \"C\" }\n[plugin.home]\nsecrets = { HA = \"plain\", KEY = \"env:KEY\" }\nsettings = { key = \"a\" }\n";
        let found = plain_secrets(&text.parse().expect("TOML"));
        assert_eq!(
            found,
            [
                "http.token",
                "plugin.home.secrets.HA",
                "sinks.a.headers.Authorization",
                "sinks.a.secret",
                "sources.b.env.GITHUB_TOKEN"
            ]
        );
    }
}
