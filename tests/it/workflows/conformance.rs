//! What the DSL says that each construct does, one row for each: the constructs are those of the standard's conformance
//! scenarios and published examples, the definitions and data are our own.

use serde_json::{Value, json};

use super::{define, instance, put, start, stored, until};
use crate::harness::Daemon;
use crate::peer::Peer;

/// How an instance is to end.
enum Ends {
    /// With this output.
    Output(Value),
    /// With an output that this jq expression holds of.
    Holds(&'static str),
    /// With an error that has at least these fields.
    Error(Value),
}

use Ends::{Error, Holds, Output};

/// A construct, a definition (`{peer}` is the web server), its input, its end, and the tasks in the order of their journal
/// (none = they are not looked at).
type Row = (&'static str, &'static str, Value, Ends, &'static [&'static str]);

const COMMUNICATION: &str = "https://serverlessworkflow.io/spec/1.0.0/errors/communication";

fn flow_rows() -> Vec<Row> {
    let sizes = |got: &[&str]| Output(json!({ "sizes": got }));
    vec![
        (
            "tasks run in the order in which they stand",
            "do: [{small: {set: {sizes: '${ .sizes + [\"s\"] }'}}}, {large: {set: {sizes: '${ .sizes + [\"l\"] }'}}}]",
            json!({}),
            sizes(&["s", "l"]),
            &["small", "large"],
        ),
        (
            "then names the next task",
            "do: [{a: {set: {sizes: '${ .sizes + [\"a\"] }'}, then: c}}, {b: {set: {sizes: '${ .sizes + [\"b\"] }'}, then: end}}, {c: {set: {sizes: '${ .sizes + [\"c\"] }'}, then: b}}]",
            json!({}),
            sizes(&["a", "c", "b"]),
            &["a", "c", "b"],
        ),
        (
            "do is one task of several",
            "do: [{all: {do: [{a: {set: {sizes: '${ .sizes + [\"a\"] }'}}}, {b: {set: {sizes: '${ .sizes + [\"b\"] }'}}}]}}]",
            json!({ "sizes": ["0"] }),
            sizes(&["0", "a", "b"]),
            &["all", "a", "b"],
        ),
        (
            "exit leaves the list that it stands in",
            "do: [{o: {do: [{a: {set: {n: 1}, then: exit}}, {b: {set: {n: 2}}}]}}, {c: {set: {got: '${ .n }'}}}]",
            json!({}),
            Output(json!({ "got": 1 })),
            &["o", "a", "c"],
        ),
        (
            "end leaves the workflow from any depth",
            "do: [{o: {do: [{a: {set: {n: 1}, then: end}}]}}, {c: {set: {n: 2}}}]",
            json!({}),
            Output(json!({ "n": 1 })),
            &["o", "a"],
        ),
        (
            "a switch leads to the case that matches",
            "do: [{s: {switch: [{tea: {when: '.drink == \"tea\"', then: brew}}, {milk: {when: '.drink == \"milk\"', then: pour}}]}}, {brew: {set: {did: brew}, then: end}}, {pour: {set: {did: pour}, then: end}}]",
            json!({ "drink": "milk" }),
            Output(json!({ "did": "pour" })),
            &["s", "pour"],
        ),
        (
            "a switch without a matching case leads where its then says",
            "do: [{s: {switch: [{tea: {when: '.drink == \"tea\"', then: brew}}], then: end}}, {brew: {set: {did: brew}}}]",
            json!({ "drink": "water" }),
            Output(json!({ "drink": "water" })),
            &["s"],
        ),
    ]
}

fn branch_rows() -> Vec<Row> {
    vec![
        (
            "a case without when is the default, wherever it stands",
            "do: [{s: {switch: [{other: {then: ask}}, {tea: {when: '.drink == \"tea\"', then: brew}}]}}, {brew: {set: {did: brew}}}, {ask: {set: {did: '${ \"what is \" + $input.drink }'}}}]",
            json!({ "drink": "mate" }),
            Output(json!({ "did": "what is mate" })),
            &["s", "ask"],
        ),
        (
            "for goes over a list with the names of its variables, and each round has the output of the one before",
            "do: [{l: {for: {each: cup, in: .cups}, do: [{a: {set: {seen: '${ .seen + [[$index, $cup]] }'}}}]}}]",
            json!({ "cups": ["x", "y"] }),
            Output(json!({ "seen": [[0, "x"], [1, "y"]] })),
            &["l", "a", "a"],
        ),
        (
            "for has default names, a list in the definition, and stops when while does not hold",
            "do: [{l: {for: {in: [3, '${ .more }', 9], at: n}, while: '(.sum // 0) < 7', do: [{a: {set: {sum: '${ (.sum // 0) + $item }'}}}]}}]",
            json!({ "more": 4 }),
            Output(json!({ "sum": 7 })),
            &["l", "a", "a"],
        ),
        (
            "a fork gives the outputs of all its branches in their order",
            "do: [{f: {fork: {branches: [{slow: {wait: {milliseconds: 30}, output: {as: '\"slow\"'}}}, {fast: {set: '${ .n + 1 }'}}]}}}]",
            json!({ "n": 1 }),
            Output(json!(["slow", 2])),
            &[],
        ),
        (
            "a fork whose branches compete gives the output of the first one",
            "do: [{f: {fork: {compete: true, branches: [{slow: {wait: PT1H}}, {fast: {set: {won: '${ [\"fast\"] }'}}}]}}}]",
            json!({}),
            Output(json!({ "won": ["fast"] })),
            &[],
        ),
        (
            "a task whose if does not hold is left out, and its input goes on",
            "do: [{young: {if: .age < 18, raise: {error: {type: 'https://casino.invalid/young', status: 403}}, then: end}}, {old: {set: {welcome: '${ .age }'}}}]",
            json!({ "age": 18 }),
            Output(json!({ "welcome": 18 })),
            &["young", "old"],
        ),
        (
            "wait takes durations in both spellings and keeps the data",
            "do: [{a: {wait: {milliseconds: 5}}}, {b: {wait: PT0.005S}}]",
            json!({ "kept": true }),
            Output(json!({ "kept": true })),
            &["a", "b"],
        ),
    ]
}

fn data_rows() -> Vec<Row> {
    vec![
        (
            "input.from makes the input of a task",
            "do: [{a: {input: {from: .reader.card.number}, set: {card: '${ . }'}}}]",
            json!({ "reader": { "card": { "number": "L-17" } } }),
            Output(json!({ "card": "L-17" })),
            &[],
        ),
        (
            "output.as makes its output, which need be no object and is the input of the next",
            "do: [{a: {set: {shelf: {id: 4}}, output: {as: .shelf.id}}}, {b: {set: {x: 1}, output: {as: '{ both: [ $input, .x ] }'}}}]",
            json!({}),
            Output(json!({ "both": [4, 1] })),
            &[],
        ),
        (
            "input, output and context are made of objects too, at the workflow as well",
            "input: {from: {n: '${ .raw }'}}\noutput: {as: {sum: '${ .m + $context.kept }'}}\ndo: [{a: {set: {m: '${ .n * 2 }'}, export: {as: {kept: '${ $output.m + $task.input.n }'}}}}]",
            json!({ "raw": 3 }),
            Output(json!({ "sum": 15 })),
            &[],
        ),
        (
            "the context begins as the input, and is what was exported last",
            "do: [{a: {set: {seen: '${ $context.first }'}, export: {as: '$context + {second: 2}'}}}, {b: {set: {all: '${ $context }', seen: '${ .seen }'}}}]",
            json!({ "first": 1 }),
            Output(json!({ "all": { "first": 1, "second": 2 }, "seen": 1 })),
            &[],
        ),
        (
            "set takes an expression as a whole, and texts that hold one are texts",
            "do: [{a: {set: {x: 'I say ${ .n }', y: .n}}}, {b: {set: '${ [.x, .y] }'}}]",
            json!({ "n": 1 }),
            Output(json!(["I say ${ .n }", ".n"])),
            &[],
        ),
        (
            "expressions know the task, the workflow and the runtime",
            "do: [{here: {set: {task: '${ [$task.name, $task.reference, $task.definition.metadata.a] }', flow: '${ [$workflow.definition.document.name, $workflow.input.n, ($workflow.startedAt.epoch.seconds | type)] }', by: '${ $runtime.name }'}, metadata: {a: 1}}}]",
            json!({ "n": 5 }),
            Holds(
                ".task == [\"here\", \"/do/0/here\", 1] and (.flow | .[1:]) == [5, \"number\"] and .by == \"aman\" and (.flow[0] | startswith(\"row-\"))",
            ),
            &[],
        ),
    ]
}

fn call_rows() -> Vec<Row> {
    vec![
        (
            "data that does not fit its schema faults",
            "do: [{a: {set: {n: '${ .n }'}, output: {schema: {format: json, document: {properties: {n: {type: string}}}}}}}]",
            json!({ "n": 5 }),
            Error(
                json!({ "type": "https://serverlessworkflow.io/spec/1.0.0/errors/validation", "status": 400, "instance": "/do/0/a" }),
            ),
            &[],
        ),
        (
            "an expression that fails faults",
            "do: [{a: {set: {n: '${ .n.m }'}}}]",
            json!({ "n": 5 }),
            Error(
                json!({ "type": "https://serverlessworkflow.io/spec/1.0.0/errors/expression", "status": 400, "instance": "/do/0/a" }),
            ),
            &[],
        ),
        (
            "a function is a task with an input of its own",
            "use: {functions: {twice: {input: {schema: {document: {required: [n]}}}, set: {n: '${ .n * 2 }'}}}}\ndo: [{a: {call: twice, with: {n: '${ .k }'}}}, {b: {call: twice}}]",
            json!({ "k": 2 }),
            Output(json!({ "n": 8 })),
            &[],
        ),
        (
            "a workflow runs another one of a version",
            "do: [{a: {run: {workflow: {namespace: test, name: greets, version: 1.0.0, input: {who: '${ .name }', as: .name}}}}}]",
            json!({ "name": "Ada" }),
            Output(json!({ "said": "hello Ada .name" })),
            &[],
        ),
        (
            "emit gives the event that it published",
            "do: [{a: {emit: {event: {with: {source: 'https://library.invalid', type: library.book.lent.v1, subject: '${ .reader }', data: {title: '${ \"On \\(.topic)\" }'}}}}}}]",
            json!({ "reader": "r1", "topic": "Bees" }),
            Holds(
                ".source == \"https://library.invalid\" and .type == \"library.book.lent.v1\" and .subject == \"r1\" and .data == {title: \"On Bees\"} and .specversion == \"1.0\" and (.id | length) > 8 and (.time | length) > 18",
            ),
            &[],
        ),
    ]
}

fn error_rows() -> Vec<Row> {
    vec![
        (
            "raise faults with the error and the place",
            "do: [{ok: {set: {x: 1}}}, {no: {raise: {error: {type: 'https://library.invalid/late', status: 402, title: Late, detail: '${ \"by \\($workflow.input.days) days\" }'}}}}]",
            json!({ "days": 3 }),
            Error(
                json!({ "type": "https://library.invalid/late", "status": 402, "title": "Late", "detail": "by 3 days", "instance": "/do/1/no" }),
            ),
            &["ok", "no"],
        ),
        (
            "raise takes an error of use.errors",
            "use: {errors: {late: {type: 'https://library.invalid/late', status: 402, title: '${ .who }'}}}\ndo: [{no: {raise: {error: late}}}]",
            json!({ "who": "Ada" }),
            Error(json!({ "status": 402, "title": "Ada", "instance": "/do/0/no" })),
            &[],
        ),
        (
            "catch takes the error that its filter fits, under its name",
            "do: [{t: {try: [{get: {call: http, with: {method: get, endpoint: {uri: '{peer}/nobody/{who}'}}}}], catch: {errors: {with: {type: 'https://serverlessworkflow.io/dsl/errors/types/communication', status: 404}}, as: why, do: [{h: {set: {why: '${ $why }'}}}]}}}]",
            json!({ "who": "Ada" }),
            Holds(
                ".why | .instance == \"/do/0/t/try/0/get\" and .status == 404 and (.title | contains(\"Not Found\")) and (.type | endswith(\"/errors/communication\"))",
            ),
            &["t", "get", "h"],
        ),
        (
            "an error that the filter does not fit goes on",
            "do: [{t: {try: [{get: {call: http, with: {method: get, endpoint: '{peer}/nobody/x'}}}], catch: {errors: {with: {type: 'https://serverlessworkflow.io/dsl/errors/types/communication', status: 503}}, do: [{h: {set: {x: 1}}}]}}}]",
            json!({}),
            Error(json!({ "type": COMMUNICATION, "status": 404, "instance": "/do/0/t/try/0/get" })),
            &[],
        ),
        (
            "a standard type may be raised and caught by any of its names",
            "do: [{t: {try: [{r: {raise: {error: {type: 'https://open-workflow-specification.org/spec/1.0.0/errors/timeout', status: 408}}}}], catch: {errors: {with: {type: 'https://serverlessworkflow.io/spec/1.0.0/errors/timeout'}}, do: [{h: {set: {ok: 1}}}]}}}]",
            json!({}),
            Output(json!({ "ok": 1 })),
            &[],
        ),
        (
            "a type of one's own has one name",
            "do: [{t: {try: [{r: {raise: {error: {type: 'https://open-workflow-specification.org/spec/1.0.0/errors/late', status: 408}}}}], catch: {errors: {with: {type: 'https://serverlessworkflow.io/spec/1.0.0/errors/late'}}}}}]",
            json!({}),
            Error(json!({ "status": 408 })),
            &[],
        ),
    ]
}

fn retry_rows() -> Vec<Row> {
    vec![
        (
            "catch leads where its then says, after its tasks",
            "do: [{t: {try: [{r: {raise: {error: {type: 'https://a.invalid', status: 500}}}}], catch: {do: [{note: {set: {noted: '${ $error.status }'}}}], then: mend}}}, {good: {set: {good: 1}, then: end}}, {mend: {set: {mended: '${ .noted }'}}}]",
            json!({}),
            Output(json!({ "mended": 500 })),
            &["t", "r", "note", "mend"],
        ),
        (
            "without an error the then of catch means nothing",
            "do: [{t: {try: [{r: {set: {x: 1}}}], catch: {then: mend}}}, {good: {set: {good: '${ .x }'}, then: end}}, {mend: {set: {mended: 1}}}]",
            json!({}),
            Output(json!({ "good": 1 })),
            &["t", "r", "good"],
        ),
        (
            "when and exceptWhen choose among errors",
            "do: [{t: {try: [{i: {try: [{r: {raise: {error: {type: 'https://a.invalid', status: 500, title: seven}}}}], catch: {when: '$error.title == \"seven\"', exceptWhen: '$error.status == 500'}}}], catch: {do: [{h: {set: {outer: '${ $error.title }'}}}]}}}]",
            json!({}),
            Output(json!({ "outer": "seven" })),
            &[],
        ),
        (
            "a retry policy of use.retries tries the tasks again",
            "use: {retries: {soon: {delay: {milliseconds: 5}, backoff: {exponential: {}}, limit: {attempt: {count: 2}}}}}\ndo: [{t: {try: [{get: {call: http, with: {method: get, endpoint: '{peer}/nobody/retried'}}}], catch: {errors: {with: {status: 404}}, retry: soon, do: [{h: {set: {gave: up}}}]}}}]",
            json!({}),
            Output(json!({ "gave": "up" })),
            &["t", "get", "get", "get", "h"],
        ),
        (
            "a timeout of a task is an error that can be caught",
            "use: {timeouts: {soon: {after: {milliseconds: 20}}}}\ndo: [{t: {try: [{w: {wait: PT1H, timeout: soon}}], catch: {errors: {with: {type: 'https://serverlessworkflow.io/spec/1.0.0/errors/timeout', status: 408}}, do: [{h: {set: {late: 1}}}]}}}]",
            json!({}),
            Output(json!({ "late": 1 })),
            &[],
        ),
        (
            "a timeout of the workflow ends it",
            "timeout: {after: PT0.05S}\ndo: [{w: {wait: PT1H}}]",
            json!({}),
            Error(json!({ "type": "https://serverlessworkflow.io/spec/1.0.0/errors/timeout", "status": 408 })),
            &[],
        ),
        (
            "a secret that is not there is not authorized",
            "use: {secrets: [nothing]}\ndo: [{a: {input: {from: $secrets.nothing}, set: {x: 1}}}]",
            json!({}),
            Error(
                json!({ "type": "https://serverlessworkflow.io/spec/1.0.0/errors/authorization", "status": 403, "instance": "/do/0/a" }),
            ),
            &[],
        ),
    ]
}

fn peer() -> Peer {
    let peer = Peer::start();
    for who in ["Ada", "x", "retried"] {
        peer.page(&format!("/nobody/{who}"), "404 Not Found", &[("content-type", "application/json")], "{}");
    }
    peer
}

/// Goal: each construct does what the standard says.
#[test]
fn every_construct_does_what_the_standard_says() {
    let (peer, daemon) = (peer(), Daemon::configured("[http_client]\nallow_private = true\n"));
    stored(&daemon, "greets", "do: [{a: {set: {said: '${ \"hello \\(.who) \\(.as)\" }'}}}]");
    let rows: Vec<Row> = [flow_rows(), branch_rows(), data_rows(), call_rows(), error_rows(), retry_rows()]
        .into_iter()
        .flatten()
        .collect();
    let begin = |(n, row): (usize, &Row)| {
        stored(&daemon, &format!("row-{n}"), &row.1.replace("{peer}", &peer.url()));
        start(&daemon, &format!("row-{n}"), row.2.clone())
    };
    let ids: Vec<String> = rows.iter().enumerate().map(begin).collect();
    let mut wrong = Vec::new();
    for ((what, _, _, ends, ran), id) in rows.iter().zip(ids) {
        let shown = daemon.wait(what, || {
            Some(instance(&daemon, &id)).filter(|shown| shown["status"] == "completed" || shown["status"] == "faulted")
        });
        let good = match ends {
            Output(wanted) => shown["status"] == "completed" && shown["output"] == *wanted,
            Holds(expression) => shown["status"] == "completed" && holds(expression, &shown["output"]),
            Error(wanted) => {
                let has = |(name, value): (&String, &Value)| shown["error"][name] == *value;
                shown["status"] == "faulted" && wanted.as_object().is_some_and(|fields| fields.iter().all(has))
            }
        };
        let steps = shown["steps"].as_array().into_iter().flatten().filter_map(|step| step["task"].as_str());
        let names: Vec<&str> = steps.filter_map(|pointer| pointer.rsplit('/').next()).collect();
        if !good || !(ran.is_empty() || names == *ran) {
            wrong.push(format!("{what}: {} {} {} {names:?}", shown["status"], shown["output"], shown["error"]));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn holds(expression: &str, data: &Value) -> bool {
    let compiled = aman::expr::Expr::compile(expression).expect("an expression");
    let outputs = compiled.run(data.to_string().as_bytes(), &aman::expr::Limits::transform()).expect("it is evaluated");
    outputs.first() == Some(&json!(true))
}

/// Goal: listeners end with what the standard says that they heard.
#[test]
fn listeners_hear_what_the_standard_says() {
    let (peer, daemon) = (peer(), Daemon::configured("[http_client]\nallow_private = true\n"));
    let (heat, dust) = ("mill.heat", "mill.dust");
    let pair = "[{with: {type: mill.heat, data: '${ .celsius > 60 }'}}, {with: {type: mill.dust, data: '${ .grams < 1 or .grams > 9 }'}}]";
    let told = [
        (heat, json!({ "celsius": 40 })),
        (dust, json!({ "grams": 12 })),
        (dust, json!({ "grams": 5 })),
        (heat, json!({ "celsius": 61 })),
        ("mill.closed", json!({})),
    ];
    let rows = [
        ("one", format!("one: {{with: {{type: {heat}}}}}"), "", json!([{ "celsius": 40 }])),
        ("any", format!("any: {pair}"), "", json!([{ "grams": 12 }])),
        ("all", format!("all: {pair}"), ", output: {as: 'map(.type)'}", json!([dust, heat])),
        ("open", "any: []".to_owned(), "", json!([{ "celsius": 40 }])),
        (
            "counted",
            "any: [{with: {source: 'test', type: '^mill[.].*'}}], until: '( . | length ) > 2'".to_owned(),
            ", output: {as: length}",
            json!(3),
        ),
        (
            "until",
            format!("any: {pair}, until: {{one: {{with: {{type: mill.closed}}}}}}"),
            "",
            json!([{ "grams": 12 }, { "celsius": 61 }]),
        ),
        (
            "context",
            format!("any: [{{with: {{type: {dust}}}}}], until: '$context.sum >= 17'"),
            ", foreach: {item: it, at: n, do: [{a: {set: '${ $it.grams }', export: {as: '{sum: (($context.sum // 0) + .)}'}}}], output: {as: '[$n, .]'}}",
            json!([[0, 12], [1, 5]]),
        ),
        (
            "handled",
            format!("any: [{{with: {{type: {dust}}}}}], until: {{one: {{with: {{type: mill.closed}}}}}}"),
            &format!(
                ", foreach: {{do: [{{a: {{call: http, with: {{method: post, endpoint: '{}/room/{{grams}}', body: '${{ $item }}'}}}}}}]}}, output: {{as: length}}",
                peer.url()
            ),
            json!(2),
        ),
    ];
    let read = |name: &str| if name == "all" { ", read: envelope" } else { "" };
    let ids: Vec<String> = rows
        .iter()
        .map(|(name, to, more, _)| {
            stored(&daemon, name, &format!("do: [{{l: {{listen: {{to: {{{to}}}{}}}{more}}}}}]", read(name)));
            let id = start(&daemon, name, json!({}));
            until(&daemon, &id, "waiting");
            id
        })
        .collect();
    for (kind, data) in told {
        daemon.push(kind, data);
    }
    for ((name, _, _, wanted), id) in rows.iter().zip(ids) {
        assert_eq!(until(&daemon, &id, "completed")["output"], *wanted, "{name}");
    }
    let asked: Vec<String> =
        peer.requests().iter().filter_map(|request| Some(request.split(' ').nth(1)?.to_owned())).collect();
    assert_eq!(asked, ["/room/12", "/room/5"], "its tasks have the event as their input");
}

/// A body, the place of what is not supported in it, and its name.
fn refused_rows() -> Vec<(String, &'static str, &'static str)> {
    let auth = |kind: &str| {
        format!(
            "do: [{{a: {{call: http, with: {{method: get, endpoint: {{uri: 'https://h.invalid', authentication: {{{kind}: {{use: s}}}}}}}}}}}}]"
        )
    };
    vec![
        ("do: [{a: {call: asyncapi, with: {operation: o}}}]".to_owned(), "/do/0/a/call", "asyncapi"),
        ("do: [{a: {call: grpc, with: {method: m}}}]".to_owned(), "/do/0/a/call", "grpc"),
        ("do: [{a: {call: a2a, with: {method: m}}}]".to_owned(), "/do/0/a/call", "a2a"),
        ("do: [{a: {call: mcp, with: {method: m}}}]".to_owned(), "/do/0/a/call", "mcp"),
        ("do: [{a: {call: 'tell:1.2.0@shared', with: {x: 1}}}]".to_owned(), "/do/0/a/call", "tell:1.2.0@shared"),
        ("do: [{a: {call: 'https://f.invalid/f.yaml'}}]".to_owned(), "/do/0/a/call", "https://f.invalid/f.yaml"),
        (
            "do: [{o: {fork: {branches: [{a: {run: {container: {image: i}}}}]}}}]".to_owned(),
            "/do/0/o/fork/branches/0/a/run/container",
            "container",
        ),
        (
            "do: [{a: {run: {script: {language: js, source: {endpoint: 'https://s.invalid'}}}}}]".to_owned(),
            "/do/0/a/run/script/source",
            "script from elsewhere",
        ),
        ("do: [{a: {run: {shell: {command: id}, await: false}}}]".to_owned(), "/do/0/a/run/await", "not awaited"),
        (
            "do: [{a: {run: {script: {language: js, code: x, arguments: {a: 1}}}}}]".to_owned(),
            "/do/0/a/run/script/arguments",
            "by name",
        ),
        ("do: [{a: {run: {script: {language: ruby, code: x}}}}]".to_owned(), "/do/0/a/run/script/language", "ruby"),
        (
            "use: {extensions: [{e: {extend: all}}]}\ndo: [{a: {set: {x: 1}}}]".to_owned(),
            "/use/extensions",
            "extensions",
        ),
        (
            "use: {catalogs: {c: {endpoint: 'https://c.invalid'}}}\ndo: [{a: {set: {x: 1}}}]".to_owned(),
            "/use/catalogs",
            "catalogs",
        ),
        (
            "use: {authentications: {d: {digest: {username: u, password: p}}}}\ndo: [{a: {set: {x: 1}}}]".to_owned(),
            "/use/authentications/d/digest",
            "digest",
        ),
        (auth("oauth2"), "/do/0/a/with/endpoint/authentication/oauth2", "oauth2"),
        (auth("oidc"), "/do/0/a/with/endpoint/authentication/oidc", "oidc"),
        ("evaluate: {mode: loose}\ndo: [{a: {set: {x: 1}}}]".to_owned(), "/evaluate/mode", "loose"),
        ("evaluate: {language: cel}\ndo: [{a: {set: {x: 1}}}]".to_owned(), "/evaluate/language", "cel"),
        (
            "do: [{a: {set: {x: 1}, input: {schema: {resource: {endpoint: 'https://s.invalid'}}}}}]".to_owned(),
            "/do/0/a/input/schema/resource",
            "schema from elsewhere",
        ),
        (
            "do: [{a: {set: {x: 1}, output: {schema: {format: avro, document: {}}}}}]".to_owned(),
            "/do/0/a/output/schema/format",
            "avro",
        ),
        (
            "schedule: {on: {any: [], until: 'true'}}\ndo: [{a: {set: {x: 1}}}]".to_owned(),
            "/schedule/on/until",
            "until",
        ),
        (
            "schedule: {every: PT1H, cron: '0 0 * * *'}\ndo: [{a: {set: {x: 1}}}]".to_owned(),
            "/schedule",
            "cron and every together",
        ),
    ]
}

/// Goal: what is not supported is refused by its name and place, each once.
#[test]
fn what_is_not_supported_is_refused_by_name() {
    let daemon = Daemon::start();
    for (body, place, named) in refused_rows() {
        let answer = put(&daemon, "no", &define("no", &body));
        assert_eq!((answer.status, answer.code()), (400, "unsupported_construct"), "{body}: {answer:?}");
        assert_eq!(answer.fields(), [place], "{body}");
        let reason = answer.json["errors"][0]["reason"].as_str().unwrap_or_default();
        assert!(reason.contains(named) && reason.contains("line ") && reason.contains("not supported"), "{reason}");
    }
    assert_eq!(daemon.get("/workflow/no").status, 404);
}
