//! What expressions answer, what is refused, and that none of a list of attacks gets far.

use super::{EvalErrorKind, Expr, Limits};
use serde_json::{Value, json};
use std::time::Duration;

fn event() -> Value {
    json!({
        "type": "file.created",
        "time": "2026-02-03T04:05:06Z",
        "source": "files/default",
        "data": {
            "name": "Invoice 7.md", "path": "/in/Invoice 7.md", "size": 2048, "ratio": 0.5, "mime": null,
            "tags": ["work", "x", "Work"],
            "people": [
                {"name": "Eve", "age": 41, "team": "b"},
                {"name": "Bob", "age": 17, "team": "a"},
                {"name": "Zoe", "age": 30, "team": "b"}
            ]
        }
    })
}

fn run(source: &str) -> Result<Vec<Value>, String> {
    let expr = Expr::compile(source).map_err(|e| format!("compile: {e}"))?;
    expr.run_value(&event(), &generous()).map_err(|e| format!("{:?}: {e}", e.kind))
}

/// A busy machine shall not fail tests of answers.
fn generous() -> Limits {
    Limits { time: Duration::from_secs(20), ..Limits::default() }
}

#[test]
fn conditions() {
    let cases = [
        (r#".data.name | endswith(".md")"#, true),
        (r#".data.size > 1000 and (.type == "file.created")"#, true),
        (r#".data.size > 1000 and (.type == "file.removed")"#, false),
        (".data.missing", false),
        (".data.missing.deeper.still", false),
        (".data.mime", false),
        (".data.size", true),
        ("empty", false),
        ("null, true", false),
        ("true, false", true),
        (r#".data.name | test("^invoice \\d+"; "i")"#, true),
        (r#".data.name | test("^invoice")"#, false),
        (r#"any(.data.tags[]; . == "x")"#, true),
        (r#"all(.data.tags[]; . == "x")"#, false),
        (r#".data.tags | any(. == "y")"#, false),
        (r#".data.tags | index("x") == 1"#, true),
        (r#".data.tags | contains(["wor"])"#, true),
        (r#".data | has("name") and (has("nope") | not)"#, true),
        (r#".source | startswith("files/")"#, true),
        (r#".type | IN("file.created", "file.changed")"#, true),
        (r#".data.mime // "text/plain" | . == "text/plain""#, true),
        (r#".data.size / 1024 == 2"#, true),
        (r#".data.people | map(select(.age < 18)) | length == 1"#, true),
        (r#"(.time | fromdateiso8601) > 1770000000"#, true),
        (r#"if .data.size > 1 then .data.name == "Invoice 7.md" else false end"#, true),
    ];
    for (source, wanted) in cases {
        let answer = Expr::compile(source).map(|expr| expr.test(event().to_string().as_bytes(), &generous()));
        assert_eq!(answer, Ok(Ok(wanted)), "{source}");
    }
}

/// Expressions over [`event`] and the array of their outputs.
const ANSWERS: &[(&str, &str)] = &[
    (".data.name", r#"["Invoice 7.md"]"#),
    (".data.name, .type", r#"["Invoice 7.md", "file.created"]"#),
    (r#".data["size"]"#, r#"[2048]"#),
    (r#".["type"]"#, r#"["file.created"]"#),
    (".data.tags[-1], .data.tags[9], .data.tags[1:]", r#"["Work", null, ["x", "Work"]]"#),
    (".data.name[0:7]", r#"["Invoice"]"#),
    (".data.tags | map(ascii_downcase) | unique", r#"[["work", "x"]]"#),
    (r#""\(.data.name) is \(.data.size) bytes""#, r#"["Invoice 7.md is 2048 bytes"]"#),
    ("reduce .data.people[].age as $a (0; . + $a)", r#"[88]"#),
    ("[foreach .data.people[].age as $a (0; . + $a)]", r#"[[41, 58, 88]]"#),
    (".data.people | sort_by(.age) | map(.name)", r#"[["Bob", "Zoe", "Eve"]]"#),
    (".data.people | group_by(.team) | map(map(.name))", r#"[[["Bob"], ["Eve", "Zoe"]]]"#),
    (".data.people | unique_by(.team) | length", r#"[2]"#),
    (".data.people | min_by(.age).name, max_by(.age).name", r#"["Bob", "Eve"]"#),
    (".data.people | map(.age) | min, max, add", r#"[17, 41, 88]"#),
    (".data.tags | tojson | ., fromjson", r#"["[\"work\",\"x\",\"Work\"]", ["work", "x", "Work"]]"#),
    (r#".data.tags | join("-")"#, r#"["work-x-Work"]"#),
    (r#"[1, null, "a", true] | join(",")"#, r#"["1,,a,true"]"#),
    (r#""a,b" | split(",")"#, r#"[["a", "b"]]"#),
    (r#""a1b22" | [scan("[0-9]+")], sub("[0-9]+"; "_"), gsub("[0-9]+"; "_")"#, r#"[["1", "22"], "a_b22", "a_b_"]"#),
    (r#""2026-02" | capture("(?<y>\\d+)-(?<m>\\d+)")"#, r#"[{"y": "2026", "m": "02"}]"#),
    (r#""äb" | match("b").offset"#, r#"[1]"#),
    (r#""a1b" | split("\\d"; "")"#, r#"[["a", "b"]]"#),
    (".data | {name, big: (.size > 9)}", r#"[{"name": "Invoice 7.md", "big": true}]"#),
    (".data.size as $s | {$s}", r#"[{"s": 2048}]"#),
    (". as {type: $t, data: {tags: [$first]}} | [$t, $first]", r#"[["file.created", "work"]]"#),
    ("[.data.people[] | select(.age > 18) | .name]", r#"[["Eve", "Zoe"]]"#),
    ("try error(\"x\") catch .", r#"["x"]"#),
    ("[.data.tags[] | tonumber?]", r#"[[]]"#),
    ("[limit(2; .data.tags[])], first(.data.tags[]), isempty(empty)", r#"[["work", "x"], "work", true]"#),
    ("label $out | .data.tags[] | if . == \"x\" then ., break $out else . end", r#"["work", "x"]"#),
    ("[range(3)], [range(0; 10; 4)]", r#"[[0, 1, 2], [0, 4, 8]]"#),
    ("[1, [2, [3]]] | flatten, flatten(1)", r#"[[1, 2, 3], [1, 2, [3]]]"#),
    ("{a: {b: 1}} | .a.c = 2 | del(.a.b), (.a.b |= . + 1)", r#"[{"a": {"c": 2}}, {"a": {"b": 2, "c": 2}}]"#),
    ("null | .a.b[2] = 1", r#"[{"a": {"b": [null, null, 1]}}]"#),
    ("{a: [1, 2]} | [paths], [leaf_paths] | length", r#"[3, 2]"#),
    ("{a: [1, 2]} | getpath([\"a\", 1]), setpath([\"a\", 0]; 9)", r#"[2, {"a": [9, 2]}]"#),
    ("{a: 1, b: 2} | with_entries(.value += 1), to_entries[0]", r#"[{"a": 2, "b": 3}, {"key": "a", "value": 1}]"#),
    ("[3, {}, null, \"a\", 1.5, [0]] | sort", r#"[[null, 1.5, 3, "a", [0], {}]]"#),
    ("[1, 2, 3] | .[1:] = [9], .[0] = 8, (.[] |= . * 2)", r#"[[1, 9], [8, 2, 3], [2, 4, 6]]"#),
    ("[[1, 2], [3]] | transpose", r#"[[[1, 3], [2, null]]]"#),
    ("[1, 2, 1] | indices(1), index(1), rindex(1), (. - [1])", r#"[[0, 2], 0, 2, [2]]"#),
    ("[.[]?], [..] | length", r#"[4, 27]"#),
    ("[1, [2]] | walk(if type == \"number\" then . + 1 else . end)", r#"[[2, [3]]]"#),
    ("{a: {n: 1, k: [{n: 2, k: []}]}} | [.a | recurse(.k[]?) | .n]", r#"[[1, 2]]"#),
    ("[1 | until(. > 100; . * 3)], [1 | while(. < 9; . * 2)]", r#"[[243], [1, 2, 4, 8]]"#),
    ("7 / 2, 6 / 2, 7 % 3, 1e3, -(3), 9007199254740993", r#"[3.5, 3, 1, 1000, -3, 9007199254740993]"#),
    ("(1.7 | floor, ceil, round), (16 | sqrt), (2 | pow(.; 10))", r#"[1, 2, 2, 4, 1024]"#),
    ("\"a b\" | @uri, @base64, @html, @sh, @json", r#"["a%20b", "YSBi", "a b", "'a b'", "\"a b\""]"#),
    ("@base64 \"x\\(1)\", ([1, \"a\\\"b\"] | @csv, @tsv)", r#"["xMQ==", "1,\"a\"\"b\"", "1\ta\"b"]"#),
    ("0 | todate, strftime(\"%Y-%m\"), (gmtime | mktime)", r#"["1970-01-01T00:00:00Z", "1970-01", 0]"#),
    ("\"2026-02-03\" | strptime(\"%Y-%m-%d\") | mktime", r#"[1770076800]"#),
    ("def double($x): $x * 2; def both(f): f, double(f); [both(.data.size)]", r#"[[2048, 4096]]"#),
    ("\"\\u00e9\" | length, utf8bytelength, explode, (explode | implode)", r#"[1, 2, [233], "é"]"#),
    (" \"  x \" | trim, ltrimstr(\"  \"), rtrimstr(\" \")", r#"["x", "x ", "  x"]"#),
    ("[.data | .name, .size, .mime, .tags, . | type]", r#"[["string", "number", "null", "array", "object"]]"#),
    ("splits(\"a\")? // \"none\"", r#"["none"]"#),
    ("[1, 2] | combinations? // \"none\"", r#"["none"]"#),
    ("[[1, 2], [3, 4]] | [combinations] | length", r#"[4]"#),
];

#[test]
fn answers() {
    for (source, wanted) in ANSWERS {
        let wanted = serde_json::from_str(wanted).expect(wanted);
        assert_eq!(run(source).map(Value::Array), Ok(wanted), "{source}");
    }
}

#[test]
fn failures_are_told_apart() {
    let kind = |source: &str, input: &[u8], limits: &Limits| {
        let expr = Expr::compile(source).expect("compiles");
        expr.run(input, limits).map_err(|e| e.kind)
    };
    let default = Limits::default();
    assert_eq!(kind(".a.b", br#"{"a": "text"}"#, &default), Err(EvalErrorKind::Failed));
    assert_eq!(kind("endswith(\"x\")", b"null", &default), Err(EvalErrorKind::Failed));
    assert_eq!(kind("1 / 0", b"null", &default), Err(EvalErrorKind::Failed));
    assert_eq!(kind(".", b"{", &default), Err(EvalErrorKind::Input));
    assert_eq!(kind(".", b"", &default), Err(EvalErrorKind::Input));
    assert_eq!(kind(".", b"1 2", &default), Err(EvalErrorKind::Input));
    assert_eq!(kind(".", "[".repeat(100_000).as_bytes(), &default), Err(EvalErrorKind::Input));
    assert_eq!(kind(".", b"[1, 2]", &Limits { input_bytes: 3, ..default }), Err(EvalErrorKind::Input));
    assert_eq!(kind(".[]", b"[1, 2]", &Limits { outputs: 1, ..default }), Err(EvalErrorKind::Output));
    assert_eq!(kind(".", b"[1, 2]", &Limits { output_bytes: 3, ..default }), Err(EvalErrorKind::Output));
    let message = |source: &str| message_of(source, &default);
    assert_eq!(message("error(\"boom\")"), "boom");
    assert!(message("\"a\" | test(\"(\")").starts_with("invalid regex: "));
    assert!(message("\"a\" | test(\"a{900}{900}\")").starts_with("regex is too complex"));
    let error = Expr::compile("error({a: (\"x\" * 1000)})").expect("compiles").run(b"null", &default);
    assert!(error.is_err_and(|e| e.message.len() < 200), "long values are cut in messages");
}

fn message_of(source: &str, limits: &Limits) -> String {
    let result = Expr::compile(source).expect("compiles").run(b"null", limits);
    result.map_or_else(|e| e.message, |outputs| format!("{outputs:?}"))
}

#[test]
fn variables() {
    let expr = Expr::compile_with("$context.n + . + $more", &["$context", "$more"]).expect("compiles");
    assert_eq!(expr.run_with(b"1", &[br#"{"n": 10}"#, b"100"], &generous()), Ok(vec![json!(111)]));
    assert!(expr.run(b"1", &generous()).is_err());
    assert!(Expr::compile("$context").is_err_and(|e| e.message.contains("$context")));
}

#[test]
fn what_is_refused_names_the_construct() {
    let deep = "(".repeat(70) + "1" + &")".repeat(70);
    let brackets = "[".repeat(8000);
    let interpolation = "\"\\(".repeat(2000);
    let long = "1+".repeat(5000) + "1";
    let cases = [
        ("repeat(.)", "repeat"),
        (".a | repeat(1)", "line 1, column 6: repeat"),
        ("first(\n  repeat(1))", "line 2, column 3: repeat"),
        ("[range(infinite)]", "range"),
        ("range(0; -infinite; -1)", "range"),
        ("def f: f; f", "f: a function cannot call itself"),
        ("def f(g): def h: f(g); h; f(1)", "cannot call itself"),
        ("def f: [f]; 1", "cannot call itself"),
        ("recurse(. + 1)", "recurse"),
        ("recurse(.; true)", "recurse"),
        ("recurse(.a)", "recurse"),
        ("input", "input"),
        ("[inputs]", "inputs"),
        ("env.HOME", "env"),
        ("$ENV.HOME", "$ENV"),
        ("{$ENV}", "$ENV"),
        ("$__loc__", "$__loc__"),
        ("debug", "debug"),
        ("debug(1)", "debug"),
        ("stderr", "stderr"),
        ("halt", "halt"),
        ("halt_error(1)", "halt_error"),
        ("halt(3)", "halt"),
        ("import \"a\" as a; 1", "import"),
        ("include \"a\"; 1", "include"),
        ("m::f", "m::f"),
        ("__tick", "__tick"),
        ("__strftime(\"x\")", "__strftime"),
        ("def __tick: 1; 1", "__tick"),
        ("jn(9; 1)", "jn"),
        ("nosuch(1)", "nosuch"),
        ("startswith", "nosuch"),
        (".a | startswit(1)", "column 6: startswit"),
        ("$x", "$x"),
        ("break $x", "x"),
        ("", "term"),
        (".a |", "term"),
        ("if . then 1", "else or end"),
        ("(1", "closing parenthesis"),
        ("\"abc", "closing quote"),
        (".a b", "column 4"),
        ("{(1)}", ":"),
        (&deep, "nested"),
        (&brackets, "nested"),
        (&interpolation, "nested"),
        (&long, "bytes long"),
    ];
    for (source, part) in cases {
        let message = Expr::compile(source).expect_err(&source.chars().take(60).collect::<String>()).message;
        let part = if part == "nosuch" && source == "startswith" { "startswith" } else { part };
        assert!(message.contains(part), "{source:.60}: {message}");
    }
}

#[test]
fn paths_name_what_is_read() {
    let cases: [(&str, &[&str]); 14] = [
        (".data.name", &[".data.name"]),
        (r#".data.name | endswith(".md")"#, &[".data.name"]),
        (r#".data.size > 1000 and (.type == "file.created")"#, &[".data.size", ".type"]),
        (r#"any(.data.tags[]; . == "x")"#, &[".data.tags"]),
        (".data.people | map(select(.age < 18)) | length > 0", &[".data.people"]),
        (".data.a // .data.b", &[".data.a", ".data.b"]),
        (r#".["odd key"].x"#, &[r#".["odd key"].x"#]),
        (".data.tags[0]", &[".data.tags[0]"]),
        (". as $e | $e.data.x", &[".data.x"]),
        (".data | .name, .size", &[".data.name", ".data.size"]),
        (".data | select(.size > 1) | .name", &[".data.size", ".data.name"]),
        ("if .a then .b else .c end", &[".a", ".b", ".c"]),
        (r#""\(.x) \(.y)""#, &[".x", ".y"]),
        ("1", &[]),
    ];
    for (source, wanted) in cases {
        let expr = Expr::compile(source).expect(source);
        let found = expr.paths();
        assert!(wanted.iter().all(|path| found.iter().any(|f| f == path)), "{source}: {found:?}");
        for path in found {
            Expr::compile(path).expect(path);
        }
    }
}

#[test]
fn clock_is_noticed() {
    assert!(Expr::compile("now - 1 > .time").expect("compiles").reads_clock());
    assert!(!Expr::compile("todate").expect("compiles").reads_clock());
}

#[test]
fn large_inputs_are_fine() {
    let items: Vec<Value> =
        (0..10_000).map(|i| json!({"id": i, "name": format!("item {i}"), "ok": i % 2 == 0})).collect();
    let input = json!({ "items": items }).to_string();
    let expr = Expr::compile(".items | map(select(.ok and (.name | endswith(\"8\")))) | length").expect("compiles");
    assert_eq!(expr.run(input.as_bytes(), &generous()), Ok(vec![json!(1000)]));
    let expr = Expr::compile(".items | group_by(.ok) | map(length)").expect("compiles");
    assert_eq!(expr.run(input.as_bytes(), &generous()), Ok(vec![json!([5000, 5000])]));
    let limits = Limits { time: Duration::from_secs(20), ..Limits::transform() };
    let expr = Expr::compile("[.items[] | {(.name): .id}] | add | length").expect("compiles");
    assert_eq!(expr.run(input.as_bytes(), &limits), Ok(vec![json!(10_000)]));
}

#[test]
fn an_expression_is_shared_between_threads() {
    let expr = Expr::compile(".a + 1").expect("compiles");
    std::thread::scope(|scope| {
        for i in 0..4 {
            let expr = expr.clone();
            scope.spawn(move || {
                let input = json!({ "a": i }).to_string();
                assert_eq!(expr.run(input.as_bytes(), &generous()), Ok(vec![json!(i + 1)]));
            });
        }
    });
    assert_eq!(expr.source(), ".a + 1");
}
