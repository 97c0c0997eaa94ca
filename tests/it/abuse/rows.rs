//! The corpus: forms of requests by what is odd about them.

use super::{Row, row};
use crate::harness::TOKEN;

const BODY: &str = r#"{"source":"s","type":"t.a"}"#;
const HOST: &str = "host: localhost\r\n";
const CHUNKED: &str = "transfer-encoding: chunked\r\n";

/// Every row.
pub fn all() -> Vec<Row> {
    [lengths(), encodings(), chunks(), lines(), targets(), versions(), bytes(), hosts(), headers(), methods()]
        .into_iter()
        .flatten()
        .collect()
}

/// A push with these headers and this body behind them.
fn push(headers: &str, body: &str) -> String {
    format!("POST /events/push HTTP/1.1\r\n{HOST}x-aman-token: {TOKEN}\r\n{headers}\r\n{body}")
}

/// A push whose length is said like this.
fn length(text: &str) -> String {
    push(&format!("content-length{text}\r\n"), BODY)
}

/// A GET with these headers besides a good Host.
fn get(headers: &str) -> String {
    format!("GET /health/live HTTP/1.1\r\n{HOST}{headers}\r\n")
}

fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n0\r\n\r\n", text.len())
}

/// A request line with a good Host behind it.
fn line(text: &str) -> String {
    format!("{text}\r\n{HOST}\r\n")
}

/// A GET of this target, with a token.
fn target(target: &[u8]) -> Vec<u8> {
    [b"GET ", target, format!(" HTTP/1.1\r\n{HOST}x-aman-token: {TOKEN}\r\n\r\n").as_bytes()].concat()
}

/// How long the body is (RFC 9112, section 6.3).
fn lengths() -> Vec<Row> {
    let n = BODY.len();
    let large = push("content-length: 2000000\r\n", &" ".repeat(2_000_000));
    vec![
        row("a length", length(&format!(": {n}")), &[202, 200]),
        row("the same length twice", length(&format!(": {n}\r\ncontent-length: {n}")), &[202, 200]),
        row("two lengths", length(&format!(": {n}\r\ncontent-length: 5")), &[400]),
        row("two lengths, the short one first", length(&format!(": 5\r\ncontent-length: {n}")), &[400]),
        row("a list of the same length", length(&format!(": {n}, {n}")), &[400]),
        row("a list of lengths", length(&format!(": 5, {n}")), &[400]),
        row("a length with plus", length(&format!(": +{n}")), &[400]),
        row("a length below zero", length(": -1"), &[400]),
        row("a length in hex", length(": 0x1b"), &[400]),
        row("a length with exponent", length(": 2e1"), &[400]),
        row("a length with a space inside", length(": 2 7"), &[400]),
        row("an empty length", length(": "), &[400]),
        row("a length with a comma", length(&format!(": {n},")), &[400]),
        row("a length in quotes", length(&format!(": \"{n}\"")), &[400]),
        row("a space before the colon", length(&format!(" : {n}")), &[400]),
        row("a tab before the colon", length(&format!("\t: {n}")), &[400]),
        row("a body that is too large", large, &[413]),
        row("a GET with a body", get("content-length: 5\r\n") + "hello", &[200, 200]),
    ]
}

/// Transfer-Encoding (RFC 9112, section 6.1).
fn encodings() -> Vec<Row> {
    let encoding = |text: &str| push(&format!("transfer-encoding{text}\r\n"), &chunk(BODY));
    vec![
        row("chunked", encoding(": chunked"), &[202, 200]),
        row("CHUNKED", encoding(": CHUNKED"), &[202, 200]),
        row("identity", encoding(": identity"), &[400]),
        row("xchunked", encoding(": xchunked"), &[400]),
        row("chunkedx", encoding(": chunkedx"), &[400]),
        row("chunked with a parameter", encoding(": chunked;q=1"), &[400]),
        row("chunked, then another", encoding(": chunked, identity"), &[400]),
        row("another, then chunked", encoding(": gzip, chunked"), &[501]),
        row("chunked, chunked", encoding(": chunked, chunked"), &[501]),
        row("chunked in two lines", encoding(": chunked\r\ntransfer-encoding: chunked"), &[501]),
        row("another and chunked in two lines", encoding(": gzip\r\ntransfer-encoding: chunked"), &[501]),
        row("a vertical tab before it", encoding(": \u{b}chunked"), &[400]),
        row("a null byte behind it", encoding(": chunked\0"), &[400]),
        row("quoted", encoding(": \"chunked\""), &[400]),
        row("empty", encoding(":"), &[400]),
        row("a space before its colon", encoding(" : chunked"), &[400]),
        row("folded", encoding(":\r\n chunked"), &[400]),
        row("in HTTP/1.0", encoding(": chunked").replacen("1.1", "1.0", 1), &[400]),
        row("Content-Encoding", push(&format!("{CHUNKED}content-encoding: gzip\r\n"), &chunk(BODY)), &[415, 200]),
    ]
}

/// Chunks, their extensions and trailers (RFC 9112, section 7.1).
fn chunks() -> Vec<Row> {
    let chunks = |text: &str| push(CHUNKED, text);
    let sized = |size: &str| chunks(&format!("{size}\r\n{BODY}\r\n0\r\n\r\n"));
    let whole = chunk(BODY);
    let trailed = |trailer: &str| format!("{}{trailer}\r\n\r\n", &whole[..whole.len() - 2]);
    let late =
        format!("POST /events/push HTTP/1.1\r\n{HOST}{CHUNKED}\r\n{}", trailed(&format!("x-aman-token: {TOKEN}")));
    vec![
        row("one chunk", sized("1b"), &[202, 200]),
        row("upper case", sized("1B"), &[202, 200]),
        row("zeros before the size", sized("0001b"), &[202, 200]),
        row("extensions", sized("1b;a=b;c=\"d\";e"), &[202, 200]),
        row("an extension with a bare line feed", sized("1b;a\nb"), &[400]),
        row("extensions without end", sized(&format!("1b;{}", "a".repeat(100_000))), &[400]),
        row("no hex digit", sized("g"), &[400]),
        row("a size below zero", sized("-1"), &[400]),
        row("a size with plus", sized("+1b"), &[400]),
        row("a size with 0x", sized("0x1b"), &[400]),
        row("a size over 64 bits", sized("1000000000000001b"), &[400]),
        row("no size", sized(""), &[400]),
        row("a size that is too small", sized("1a"), &[400]),
        row("no line end behind the chunk", chunks(&format!("1b\r\n{BODY}xx0\r\n\r\n")), &[400]),
        row("a bare line feed behind the size", chunks(&format!("1b\n{BODY}\r\n0\r\n\r\n")), &[400]),
        row("a trailer", chunks(&trailed("x-a: b")), &[202, 200]),
        row("a trailer that would change the length", chunks(&trailed("content-length: 5")), &[202, 200]),
        row("a token in a trailer", late, &[401, 200]),
        row("more trailers than headers may be", chunks(&trailed(&"x: y\r\n".repeat(20_000))), &[400]),
    ]
}

/// Lines and names of headers (RFC 9112, sections 2.2 and 5).
fn lines() -> Vec<Row> {
    vec![
        row("bare line feeds", "GET /health/live HTTP/1.1\nhost: localhost\n\n", &[200, 200]),
        row("empty lines first", format!("\r\n\r\n{}", get("")), &[200, 200]),
        row("a space first", format!(" {}", get("")), &[400]),
        row("a folded header", get("x: a\r\n b\r\n"), &[400]),
        row("a folded first header", "GET /health/live HTTP/1.1\r\n x: a\r\nhost: localhost\r\n\r\n", &[400]),
        row("a bare carriage return", get("x: a\rb: c\r\n"), &[400]),
        row("a space in a name", get("a b: c\r\n"), &[400]),
        row("a name in brackets", get("(a): c\r\n"), &[400]),
        row("no colon", get("abc\r\n"), &[400]),
        row("no name", get(": c\r\n"), &[400]),
        row("two spaces", line("GET  /health/live HTTP/1.1"), &[400]),
        row("tabs", line("GET\t/health/live\tHTTP/1.1"), &[400]),
        row("a space in the target", line("GET /health /live HTTP/1.1"), &[400]),
        row("no target", line("GET HTTP/1.1"), &[400]),
        row("control characters", "\u{1}\u{2}\u{3}\r\n\r\n", &[400]),
        row("a long target", line(&format!("GET /{} HTTP/1.1", "a".repeat(70_000))), &[431]),
        row("a target within the limit", line(&format!("GET /{} HTTP/1.1", "a".repeat(8000))), &[404, 200]),
        row("a long name", get(&format!("{}: b\r\n", "a".repeat(70_000))), &[431]),
        row("a long value", get(&format!("a: {}\r\n", "b".repeat(70_000))), &[431]),
    ]
}

/// Forms of the target (RFC 9112, section 3.2).
fn targets() -> Vec<Row> {
    vec![
        row("absolute, own host", line("GET http://localhost/health/live HTTP/1.1"), &[200, 200]),
        row("absolute, another host", line("GET http://evil.example/health/live HTTP/1.1"), &[400, 200]),
        row("absolute, a user", line("GET http://localhost@evil.example/health/live HTTP/1.1"), &[400, 200]),
        row("authority", line("GET localhost:80 HTTP/1.1"), &[400, 200]),
        row("a star", line("GET * HTTP/1.1"), &[404, 200]),
        row("a star with OPTIONS", line("OPTIONS * HTTP/1.1"), &[404, 200]),
        row("CONNECT", "CONNECT localhost:80 HTTP/1.1\r\nhost: localhost:80\r\n\r\n", &[404, 200]),
        row("CONNECT of a path", line("CONNECT /health/live HTTP/1.1"), &[405, 200]),
        row("a fragment", line("GET /health/live#x HTTP/1.1"), &[200, 200]),
        row("up", line("GET /health/../runtime/status HTTP/1.1"), &[404, 200]),
        row("up in percent", line("GET /health/%2e%2e/runtime/status HTTP/1.1"), &[404, 200]),
        row("a slash more", line("GET //runtime/status HTTP/1.1"), &[404, 200]),
        row("a slash in percent", line("GET /runtime%2fstatus HTTP/1.1"), &[404, 200]),
        row("a backslash", line("GET /runtime\\status HTTP/1.1"), &[404, 200]),
    ]
}

/// Versions, and other protocols.
fn versions() -> Vec<Row> {
    let upgrade = |more: &str| get(&format!("connection: upgrade\r\n{more}"));
    let socket = "upgrade: websocket\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n";
    let h2c = "upgrade: h2c\r\nhttp2-settings: AAMAAABkAARAAAAAAAIAAAAA\r\n";
    let tls = [&[0x16, 3, 1, 0, 0xc8, 1, 0, 0, 0xc4, 3, 3][..], &[0; 190]].concat();
    vec![
        row("0.9", "GET /health/live\r\n", &[400]),
        row("1.0", line("GET /health/live HTTP/1.0"), &[200]),
        row("1.0 that stays", line("GET /health/live HTTP/1.0\r\nconnection: keep-alive"), &[200, 200]),
        row("1.2", line("GET /health/live HTTP/1.2"), &[400]),
        row("2.0", line("GET /health/live HTTP/2.0"), &[400]),
        row("11.1", line("GET /health/live HTTP/11.1"), &[400]),
        row("lower case", line("GET /health/live http/1.1"), &[400]),
        row("the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[]),
        row("TLS", tls, &[400]),
        row("an upgrade to HTTP/2", upgrade(h2c), &[200, 200]),
        row("an upgrade to a WebSocket", upgrade(socket), &[200, 200]),
    ]
}

/// Bytes that are no text, and those that end texts.
fn bytes() -> Vec<Row> {
    let header = |value: &[u8]| [b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n", value, b"\r\n\r\n"].concat();
    vec![
        row("no UTF-8 in the path", target(b"/events/dump/\xff"), &[400]),
        row("UTF-8 in the path", target("/events/dump/\u{fc}".as_bytes()), &[404, 200]),
        row("no UTF-8 in percent", target(b"/events/dump/%ff"), &[400, 200]),
        row("half a character in percent", target(b"/events/dump/%c3"), &[400, 200]),
        row("a null byte", target(b"/events/dump/a\0"), &[400]),
        row("a null byte in percent", target(b"/events/dump/a%00"), &[400, 200]),
        row("a line end in percent", target(b"/events/dump/a%0d%0ax:y"), &[400, 200]),
        row("percent and no hex", target(b"/events/dump/%zz"), &[404, 200]),
        row("percent at the end", target(b"/events/dump/a%"), &[404, 200]),
        row("no UTF-8 in the query", target(b"/events/recent?source=\xff"), &[400]),
        row("no UTF-8 in the query in percent", target(b"/events/recent?source=%ff"), &[400, 200]),
        row("a null byte in the query in percent", target(b"/events/recent?source=%00"), &[200, 200]),
        row("a name of the query that is no UTF-8", target(b"/events/recent?%ff=1"), &[400, 200]),
        row("no UTF-8 in a header", header(b"x: \xff"), &[200, 200]),
        row("a null byte in a header", header(b"x: a\0b"), &[400]),
        row("delete in a header", header(b"x: a\x7fb"), &[400]),
        row("no ASCII in a name", header(b"x\xff: a"), &[400]),
        row("no UTF-8 in a token", header(b"x-aman-token: \xff"), &[200, 200]),
        row("no UTF-8 in a type", push("content-type: \u{fc}\r\ncontent-length: 2\r\n", "{}"), &[415, 200]),
        row("no UTF-8 in a body", [push("content-length: 3\r\n", "").as_bytes(), b"\"\xff\""].concat(), &[400, 200]),
    ]
}

/// Forms of Host (RFC 9110, section 7.2).
fn hosts() -> Vec<Row> {
    let host = |text: &str| format!("GET /health/live HTTP/1.1\r\n{text}\r\n");
    vec![
        row("no host", host(""), &[400, 200]),
        row("no host in HTTP/1.0", "GET /health/live HTTP/1.0\r\n\r\n", &[421]),
        row("two hosts", host("host: localhost\r\nhost: localhost\r\n"), &[400, 200]),
        row("an empty host", host("host:\r\n"), &[421, 200]),
        row("a foreign host", host("host: evil.example\r\n"), &[421, 200]),
        row("a host and a user", host("host: localhost@evil.example\r\n"), &[421, 200]),
        row("a user and a host", host("host: evil.example@localhost\r\n"), &[421, 200]),
        row("a host and a path", host("host: localhost/evil.example\r\n"), &[421, 200]),
        row("a list of hosts", host("host: localhost, evil.example\r\n"), &[421, 200]),
        row("a port that is no number", host("host: localhost:port\r\n"), &[421, 200]),
        row("a dot at the end", host("host: localhost.\r\n"), &[421, 200]),
        row("the end of a host", host("host: notlocalhost\r\n"), &[421, 200]),
        row("the beginning of a host", host("host: localhost.evil.example\r\n"), &[421, 200]),
        row("upper case", host("host: LOCALHOST:9090\r\n"), &[200, 200]),
        row("IPv6", host("host: [::1]:9090\r\n"), &[200, 200]),
        row("half of IPv6", host("host: [::1\r\n"), &[421, 200]),
    ]
}

/// Expect, Connection and the like.
fn headers() -> Vec<Row> {
    let n = BODY.len();
    let stranger =
        format!("POST /events/push HTTP/1.1\r\n{HOST}content-length: {n}\r\nexpect: 100-continue\r\n\r\n{BODY}");
    vec![
        row("told to go on", push(&format!("content-length: {n}\r\nexpect: 100-continue\r\n"), BODY), &[100, 202, 200]),
        row("a stranger is not told to go on", stranger, &[401, 200]),
        row(
            "nobody is told to send too much",
            push("content-length: 99999999\r\nexpect: 100-continue\r\n", ""),
            &[413],
        ),
        row("another expectation", push(&format!("content-length: {n}\r\nexpect: 200-maybe\r\n"), BODY), &[202, 200]),
        row("connection: close", get("connection: close\r\n"), &[200]),
        row("connection names a header", get("connection: host\r\n"), &[200, 200]),
        row("a Range", get("range: bytes=0-0\r\n"), &[200, 200]),
        row("an override of the method", get("x-http-method-override: DELETE\r\n"), &[200, 200]),
        row("an override of the path", get("x-original-url: /runtime/status\r\n"), &[200, 200]),
    ]
}

/// Methods.
fn methods() -> Vec<Row> {
    let method = |name: &str| line(&format!("{name} /health/live HTTP/1.1"));
    vec![
        row("HEAD", method("HEAD"), &[200, 200]),
        row("OPTIONS", method("OPTIONS"), &[405, 200]),
        row("TRACE", method("TRACE"), &[405, 200]),
        row("DELETE", method("DELETE"), &[405, 200]),
        row("lower case", method("get"), &[405, 200]),
        row("an unknown one", method("FROBNICATE"), &[405, 200]),
        row("a long one", method(&"A".repeat(1000)), &[405, 200]),
        row("a bracket in it", method("GE(T"), &[400]),
        row("none", line(" /health/live HTTP/1.1"), &[400]),
    ]
}

/// Requests with another inside, as some parsers would read them: `(name, bytes)`.
pub fn hiding() -> Vec<(String, Vec<u8>)> {
    let hidden = push("content-length: 33\r\n", r#"{"source":"s","type":"smuggled.a"}"#).replacen(": 33", ": 34", 1);
    let length = |more: usize| format!("content-length: {}\r\n", hidden.len() + more);
    let ended = format!("0\r\n\r\n{hidden}");
    let mut all: Vec<(String, String)> = vec![
        ("in the body of a GET".to_owned(), get(&length(0)) + &hidden),
        ("in the body of a push".to_owned(), push(&length(0), &hidden)),
        ("in a chunk extension".to_owned(), push(CHUNKED, &format!("1;\n{hidden}"))),
        ("in a header".to_owned(), get(&format!("x: {}\r\n", hidden.replace("\r\n", "\r")))),
        ("behind a length of nothing".to_owned(), push(&format!("content-length: 0\r\n{}", length(0)), &hidden)),
    ];
    for encoding in [
        "chunked",
        "CHUNKED",
        "xchunked",
        "chunked, identity",
        "gzip, chunked",
        "chunked, chunked",
        "chunked\r\ntransfer-encoding: chunked",
        "\u{b}chunked",
        "identity",
        "\"chunked\"",
    ] {
        for (first, second) in [
            (length(5), format!("transfer-encoding: {encoding}\r\n")),
            (format!("transfer-encoding: {encoding}\r\n"), length(5)),
        ] {
            all.push((format!("behind {first}{second}"), push(&format!("{first}{second}"), &ended)));
        }
    }
    for encoding in ["gzip, chunked", "chunked, chunked", "chunked\r\ntransfer-encoding: chunked"] {
        all.push((format!("behind {encoding}"), push(&format!("transfer-encoding: {encoding}\r\n"), &ended)));
    }
    all.into_iter().map(|(name, text)| (name, text.into_bytes())).collect()
}
