//! `[telemetry]`: where spans go. What OpenTelemetry's own variables say counts below the file.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use toml::{Table, Value};

use super::settings::{Layers, Origin};
use super::table::{Faults, Reader};
use super::{References, Secret, take_faults};
use crate::egress::Url;

/// OpenTelemetry's variables that are read.
pub(super) const STANDARD: [&str; 11] = [
    "OTEL_SDK_DISABLED",
    "OTEL_TRACES_EXPORTER",
    "OTEL_SERVICE_NAME",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
    "OTEL_EXPORTER_OTLP_TIMEOUT",
    "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
];
/// Where a collector takes traces, when an address has no path (OTLP/HTTP).
const TRACES_PATH: &str = "/v1/traces";
/// How long one request may take.
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(120);

/// Where spans go.
#[derive(Debug, Clone, PartialEq)]
pub struct Telemetry {
    /// The whole address that they are posted to.
    pub endpoint: Url,
    /// Further headers of each request; values may be secrets.
    pub headers: Vec<(String, Secret)>,
    /// The name under which the collector shows them.
    pub service_name: String,
    /// The share of traces that is exported, from 0 to 1.
    pub sample_ratio: f64,
    /// How long one request may take.
    pub timeout: Duration,
}

/// What is exported, and where to; none = nothing.
pub(super) fn read(layers: &mut Layers) -> Option<Telemetry> {
    let endpoint = endpoint(&layers.text("telemetry.endpoint"), layers);
    let headers = headers(layers);
    let service_name = layers.text("telemetry.service_name");
    if !is_name(&service_name) {
        layers.wrong("telemetry.service_name", "must have 1 to 255 bytes, none of them a control character.");
    }
    let sample_ratio = layers.share("telemetry.sample_ratio");
    let timeout = layers.duration("telemetry.timeout");
    if !TIMEOUT.contains(&timeout) {
        layers.wrong("telemetry.timeout", "must be a duration from 100ms to 120s.");
    }
    Some(Telemetry { endpoint: endpoint?, headers, service_name, sample_ratio, timeout })
}

fn endpoint(text: &str, layers: &mut Layers) -> Option<Url> {
    if text.is_empty() {
        return None;
    }
    address(text).map_err(|reason| layers.wrong("telemetry.endpoint", &reason)).ok()
}

fn address(text: &str) -> Result<Url, String> {
    Url::parse(text).and_then(|url| if url.path_and_query() == "/" { url.join(TRACES_PATH) } else { Ok(url) })
}

fn is_name(text: &str) -> bool {
    (1..=255).contains(&text.len()) && !text.chars().any(char::is_control)
}

/// Headers stand in a table of the file, or in a variable as `name=value,name=value`.
fn headers(layers: &mut Layers) -> Vec<(String, Secret)> {
    let table = match layers.raw("telemetry.headers") {
        None => return Vec::new(),
        Some(Value::String(text)) => pairs(text),
        Some(other) => Some(Table::from_iter([("headers".to_owned(), other.clone())])),
    };
    let Some(table) = table else {
        layers.wrong("telemetry.headers", "must be name=value pairs with commas between.");
        return Vec::new();
    };
    let (headers, faults) = headers_of(&table, layers.references);
    take_faults(faults, layers);
    headers
}

fn headers_of(table: &Table, references: References) -> (Vec<(String, Secret)>, Faults) {
    let (mut reader, mut faults) = (Reader::new("telemetry".to_owned(), table, references), Faults::default());
    let headers = reader.headers("headers");
    if headers.iter().any(|(name, _)| name == "content-type" || name == "content-length") {
        reader.wrong("headers", "must not say what the body is; the daemon does.");
    }
    reader.finish(&mut faults);
    (headers, faults)
}

/// Reads `name=value,name=value`, the values percent-encoded where they must be.
fn pairs(text: &str) -> Option<Table> {
    let mut headers = Table::new();
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=')?;
        let value = percent_encoding::percent_decode_str(value.trim()).decode_utf8().ok()?;
        headers.insert(name.trim().to_owned(), Value::String(value.into_owned()));
    }
    Some(Table::from_iter([("headers".to_owned(), Value::Table(headers))]))
}

/// Takes what OpenTelemetry's variables say for settings that the file leaves as they are
/// (opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables and …/protocol/exporter). They may be meant for
/// other programs: nothing that they say keeps the daemon from its work, and without an address they say nothing.
pub(super) fn take_standard(variables: &mut BTreeMap<String, String>, layers: &mut Layers) {
    let mut take = |name: &str| variables.remove(name);
    let is_off = take("OTEL_SDK_DISABLED").is_some_and(|text| text.eq_ignore_ascii_case("true"));
    let no_traces = take("OTEL_TRACES_EXPORTER").is_some_and(|text| text == "none");
    let service = take("OTEL_SERVICE_NAME");
    // For all signals, and for traces alone.
    let mut either = |name: &str| {
        let all = take(&format!("OTEL_EXPORTER_OTLP_{name}"));
        (all, take(&format!("OTEL_EXPORTER_OTLP_TRACES_{name}")))
    };
    let (common, own) = either("ENDPOINT");
    // The common one is where a collector is, the other the whole address.
    let endpoint = own.or_else(|| common.map(|base| format!("{}{TRACES_PATH}", base.trim_end_matches('/'))));
    let pick = |(common, own): (Option<String>, Option<String>)| own.or(common);
    let (headers, timeout, protocol) = (pick(either("HEADERS")), pick(either("TIMEOUT")), pick(either("PROTOCOL")));
    if is_off || no_traces {
        return;
    }
    let is_ours = variables.contains_key("AMAN_TELEMETRY_ENDPOINT") || !layers.is_untouched("telemetry.endpoint");
    if let Some(endpoint) = endpoint.filter(|_| !is_ours) {
        if protocol.as_deref() == Some("grpc") {
            layers.warn(
                "OTEL_EXPORTER_OTLP_PROTOCOL is grpc, which aman does not speak: no traces are exported. Set \
                 OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf and the collector's port for HTTP, mostly 4318.",
            );
            return;
        }
        if address(&endpoint).is_err() {
            layers.warn("OTEL_EXPORTER_OTLP_ENDPOINT is no address that aman can use: no traces are exported.");
            return;
        }
        layers.set("telemetry.endpoint", Value::String(endpoint), Origin::Env);
    }
    let is_named =
        |layers: &Layers| layers.raw("telemetry.endpoint").and_then(Value::as_str).is_some_and(|text| !text.is_empty());
    if variables.contains_key("AMAN_TELEMETRY_ENDPOINT") || is_named(layers) {
        take_further(headers, timeout, service, layers);
    }
}

/// Takes what else they say, as far as it can be used.
fn take_further(headers: Option<String>, timeout: Option<String>, service: Option<String>, layers: &mut Layers) {
    let references = layers.references;
    let can_be_sent = |text: &str| pairs(text).is_some_and(|table| headers_of(&table, references).1.wrong.is_empty());
    let headers = headers.map(|text| can_be_sent(&text).then_some(text));
    let timeout = timeout.map(|text| {
        let given = Duration::from_millis(text.parse().ok()?);
        Some(format!("{}ms", given.clamp(*TIMEOUT.start(), *TIMEOUT.end()).as_millis()))
    });
    let service = service.map(|text| is_name(&text).then_some(text));
    for (key, name, given) in [
        ("telemetry.headers", "OTEL_EXPORTER_OTLP_HEADERS", headers),
        ("telemetry.timeout", "OTEL_EXPORTER_OTLP_TIMEOUT", timeout),
        ("telemetry.service_name", "OTEL_SERVICE_NAME", service),
    ] {
        match given.filter(|_| layers.is_untouched(key)) {
            Some(Some(text)) => layers.set(key, Value::String(text), Origin::Env),
            Some(None) => layers.warn(&format!("{name} holds nothing that can be used as {key}; it is ignored.")),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::References;

    fn layers(file: &str, variables: &[(&str, &str)]) -> Layers {
        let mut variables: BTreeMap<String, String> =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut layers = Layers::new(&file.parse().expect("TOML"), References::Followed);
        take_standard(&mut variables, &mut layers);
        layers.add_environment(variables);
        layers
    }

    fn read_from(file: &str, variables: &[(&str, &str)]) -> Result<Option<Telemetry>, Vec<String>> {
        let mut layers = layers(file, variables);
        let found = read(&mut layers);
        let (_, _, wrong) = layers.finish(&file.parse().expect("TOML"));
        if wrong.is_empty() { Ok(found) } else { Err(wrong.into_iter().map(|one| one.field).collect()) }
    }

    #[test]
    fn nothing_is_exported_unless_an_address_is_named() {
        assert_eq!(read_from("", &[]), Ok(None));
        assert_eq!(read_from("[telemetry]\nservice_name = \"x\"", &[("OTEL_SERVICE_NAME", "y")]), Ok(None));
    }

    #[test]
    fn the_file_counts_more_than_the_standard_variables_and_less_than_our_own() {
        let address = |file: &str, variables: &[(&str, &str)]| {
            read_from(file, variables).expect("good").map(|found| found.endpoint.to_string())
        };
        let base = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318/x/");
        let own = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://[::1]:1/other");
        let ours = ("AMAN_TELEMETRY_ENDPOINT", "http://ours:1");
        let file = "[telemetry]\nendpoint = \"http://file:1/\"";
        for (file, variables, wanted) in [
            ("", &[base][..], Some("http://127.0.0.1:4318/x/v1/traces")),
            ("", &[base, own], Some("http://[::1]:1/other")),
            (file, &[base, own], Some("http://file:1/v1/traces")),
            (file, &[base, ours], Some("http://ours:1/v1/traces")),
            ("", &[base, ("OTEL_SDK_DISABLED", "true")], None),
            ("", &[base, ("OTEL_TRACES_EXPORTER", "none")], None),
            ("", &[base, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")], None),
            ("", &[base, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")], Some("http://127.0.0.1:4318/x/v1/traces")),
        ] {
            assert_eq!(address(file, variables).as_deref(), wanted, "{file} {variables:?}");
        }
    }

    #[test]
    fn everything_is_read_and_wrong_values_are_named() {
        let variables = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "Api-Key=abc%20d, x-team = t"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "2500"),
            ("OTEL_SERVICE_NAME", "mine"),
            ("AMAN_TELEMETRY_SAMPLE_RATIO", "0.5"),
        ];
        let found = read_from("", &variables).expect("good").expect("on");
        let headers: Vec<_> = found.headers.iter().map(|(name, value)| (name.as_str(), value.expose())).collect();
        assert_eq!(headers, [("api-key", "abc d"), ("x-team", "t")]);
        assert_eq!((found.timeout, found.service_name.as_str()), (Duration::from_millis(2500), "mine"));
        assert!((found.sample_ratio - 0.5).abs() < f64::EPSILON);
        for (key, value) in [
            ("endpoint", "\"ftp://a\""),
            ("endpoint", "\"http://user:pass@a\""),
            ("headers", "{ a = 1 }"),
            ("headers", "{ content-type = \"x\" }"),
            ("headers", "\"x\""),
            ("sample_ratio", "1.5"),
            ("sample_ratio", "\"all\""),
            ("timeout", "\"1ms\""),
            ("service_name", "\"\""),
        ] {
            let wrong = read_from(&format!("[telemetry]\n{key} = {value}"), &[]).expect_err(value);
            assert_eq!(wrong, [format!("telemetry.{key}")], "{key} = {value}");
        }
        assert!(read_from("[telemetry]\nsample_ratio = 1", &[]).is_ok());
    }

    #[test]
    fn variables_for_other_programs_stop_nothing() {
        let long = "x".repeat(300);
        let odd = [
            ("OTEL_EXPORTER_OTLP_HEADERS", "a b=c"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
            ("OTEL_SERVICE_NAME", long.as_str()),
        ];
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318");
        let ours = ("AMAN_TELEMETRY_ENDPOINT", "http://127.0.0.1:4318");
        let file = "[telemetry]\nendpoint = \"http://127.0.0.1:4318\"";
        for (file, address, warnings) in [
            ("", None, 0),
            ("[telemetry]\nendpoint = \"\"", None, 0),
            ("", Some(endpoint), 3),
            ("", Some(ours), 3),
            (file, None, 3),
            ("", Some(("OTEL_EXPORTER_OTLP_ENDPOINT", "unix:///run/x")), 1),
        ] {
            let variables: Vec<_> = odd.into_iter().chain(address).collect();
            let found = read_from(file, &variables).expect("good");
            assert_eq!(found.is_some(), warnings == 3, "{file} {address:?}");
            if let Some(found) = found {
                assert_eq!((found.headers.len(), found.service_name.as_str()), (0, "aman"));
                assert_eq!(found.timeout, Duration::from_secs(10));
            }
            let (_, told, _) = layers(file, &variables).finish(&Table::new());
            assert_eq!(told.len(), warnings, "{file} {address:?}: {told:?}");
        }
        for (text, wanted_ms) in [("0", 100), ("300000", 120_000)] {
            let found = read_from("", &[endpoint, ("OTEL_EXPORTER_OTLP_TIMEOUT", text)]).expect("good").expect("on");
            assert_eq!(found.timeout, Duration::from_millis(wanted_ms));
        }
    }
}
