//! The machine by itself: definitions in, data out. Waits are jumped over; what a call answers is in a table.

use std::sync::Arc;

use serde_json::{Value, json};

use super::*;

fn secret(name: &str) -> Result<Value, Fault> {
    match name {
        "known" => Ok(json!({ "token": "a-token-of-a-test" })),
        _ => Err(Fault::authorization(format!("there is no secret '{name}'"))),
    }
}

fn define(body: &str) -> Definition {
    let text = format!("document: {{dsl: 1.0.3, namespace: test, name: t, version: 1.0.0}}\n{body}");
    parse(&text).unwrap_or_else(|problems| panic!("{problems:#?}\n{text}"))
}

/// Runs a definition to its end: what waits for a time is given it, each call is answered by `answer`. Begins at 1,000 ms.
fn play(body: &str, input: Value, answer: &mut dyn FnMut(&Value) -> Result<Value, Fault>) -> (Machine, Vec<Step>) {
    let mut machine = Machine::new(Arc::new(define(body)), State::new(input, 1_000));
    let (mut now_ms, mut steps) = (1_000, Vec::new());
    for _ in 0..10_000 {
        // What is stored is all that is left from one moment to the next.
        let stored = serde_json::to_string(&machine.state).expect("a state is JSON");
        let wishes = machine.take_wishes();
        steps.extend(wishes.steps);
        machine = Machine::new(machine.definition, serde_json::from_str(&stored).expect("a state"));
        let env = Env { now_ms, id: "i", secret: &secret };
        let stop = machine.run(&env, 3);
        steps.extend(machine.take_wishes().steps);
        if machine.state.ended.is_some() {
            return (machine, steps);
        }
        let actions: Vec<(String, Value)> =
            machine.actions().into_iter().map(|(_, action)| (action.key.clone(), action.args.clone())).collect();
        for (key, args) in actions {
            machine.resolve(&key, answer(&args), &env);
        }
        if let Some(due_ms) = machine.due_ms().filter(|_| stop == Stop::Idle) {
            now_ms = now_ms.max(due_ms);
            machine.tick(&Env { now_ms, id: "i", secret: &secret });
        }
    }
    panic!("it never ends");
}

/// Goes on until nothing more can be done.
fn settle(machine: &mut Machine, env: &Env<'_>) {
    while machine.run(env, 1_000) == Stop::Full {
        machine.take_wishes();
    }
}

fn run(body: &str, input: Value) -> Result<Value, Value> {
    let (machine, _) = play(body, input, &mut |args| Ok(json!({ "answered": args["http"]["uri"] })));
    match machine.state.ended {
        Some(Ended::Completed(output)) => Ok(output),
        Some(Ended::Faulted(fault)) => Err(fault.to_value()),
        None => panic!("it has not ended"),
    }
}

/// A definition, an input, and the output that they come to.
type Case = (&'static str, Value, Value);

fn check_all(cases: Vec<Case>) {
    for (body, input, wanted) in cases {
        assert_eq!(run(body, input), Ok(wanted), "{body}");
    }
}

#[test]
fn data_flows_as_the_dsl_says() {
    check_all(vec![
        (
            "do: [{a: {input: {from: .user.sub}, set: {id: '${ . }'}}}]",
            json!({ "user": { "sub": 7 } }),
            json!({ "id": 7 }),
        ),
        ("do: [{a: {set: {x: 1}}}, {b: {set: {y: '${ .x + 1 }'}}}]", json!({ "z": 0 }), json!({ "y": 2 })),
        ("do: [{a: {set: {x: 1}, output: {as: .x}}}]", json!({}), json!(1)),
        (
            "do: [{a: {set: {x: 5}, output: {as: {v: '${ .x }', i: '${ $input.n }'}}}}]",
            json!({ "n": 3 }),
            json!({ "v": 5, "i": 3 }),
        ),
        (
            "do: [{a: {set: {x: 5}, export: {as: '$context + {kept: .x}'}}}, {b: {set: {c: '${ $context }'}}}]",
            json!({ "n": 3 }),
            json!({ "c": { "n": 3, "kept": 5 } }),
        ),
        (
            "input: {from: .inner}\noutput: {as: '{out: .}'}\ndo: [{a: {set: {x: '${ . }'}}}]",
            json!({ "inner": 1 }),
            json!({ "out": { "x": 1 } }),
        ),
        (
            "do: [{a: {if: .no, set: {x: 1}}}, {b: {set: '${ {got: .} }'}}]",
            json!({ "no": false }),
            json!({ "got": { "no": false } }),
        ),
        ("do: [{a: {if: '${ .no }', set: {x: 1}, then: end}}]", json!({ "no": null }), json!({ "no": null })),
        (
            "do: [{a: {set: {n: '${ $task.name }', r: '${ $task.reference }', w: '${ $workflow.input.q }', k: '${ $runtime.name }'}}}]",
            json!({ "q": 4 }),
            json!({ "n": "a", "r": "/do/0/a", "w": 4, "k": "aman" }),
        ),
        ("do: [{a: {do: [{b: {set: {x: 1}}}, {c: {set: {y: '${ .x + $input.x }'}}}]}}]", json!({}), json!({ "y": 2 })),
        ("do: [{a: {set: {x: 'Hello ${ .n }!'}}}]", json!({ "n": 1 }), json!({ "x": "Hello ${ .n }!" })),
    ]);
}

#[test]
fn loops_branches_waits_and_calls_pass_data_on() {
    check_all(vec![
        (
            "do: [{l: {for: {each: c, in: .cs}, do: [{m: {set: {p: '${ (.p // []) + [{($c): $index}] }'}}}]}}]",
            json!({ "cs": ["r", "g"] }),
            json!({ "p": [{ "r": 0 }, { "g": 1 }] }),
        ),
        (
            "do: [{l: {for: {in: '[1,2,3,4]'}, while: '$item < 3', do: [{m: {set: {n: '${ (.n // 0) + $item }'}}}]}}]",
            json!({}),
            json!({ "n": 3 }),
        ),
        (
            "do: [{l: {for: {in: '[1,2]'}, do: [{m: {set: {n: '${ $item }'}, then: exit}}]}}]",
            json!({}),
            json!({ "n": 1 }),
        ),
        ("do: [{l: {for: {in: '[]'}, do: [{m: {set: {n: 1}}}]}}]", json!({ "k": 1 }), json!({ "k": 1 })),
        (
            "do: [{f: {fork: {branches: [{a: {set: {x: 1}}}, {b: {do: [{c: {set: {y: '${ .i }'}}}]}}]}}}]",
            json!({ "i": 2 }),
            json!([{ "x": 1 }, { "y": 2 }]),
        ),
        (
            "do: [{f: {fork: {branches: [{a: {set: {x: 1}, output: {as: 'null'}}}, {b: {wait: PT1S}}]}}}]",
            json!({ "i": 2 }),
            json!([null, { "i": 2 }]),
        ),
        (
            "do: [{f: {fork: {compete: true, branches: [{a: {wait: {seconds: 9}}}, {b: {set: {y: 1}}}]}}}]",
            json!({}),
            json!({ "y": 1 }),
        ),
        (
            "do: [{a: {call: http, with: {method: get, endpoint: 'http://h/{p.q}/{n}?x={none}'}, output: {as: .answered}}}]",
            json!({ "p.q": "a b", "n": 3 }),
            json!("http://h/a%20b/3?x="),
        ),
        (
            "use: {functions: {f: {set: {sum: '${ .a + .b }'}}}}\ndo: [{c: {call: f, with: {a: 1, b: '${ .b }'}}}]",
            json!({ "b": 2 }),
            json!({ "sum": 3 }),
        ),
    ]);
}

/// Goal: a wait takes as long as it says, one after the other and side by side, and passes its data on.
#[test]
fn waits_take_as_long_as_they_say() {
    for (body, input, waited_ms) in [
        ("do: [{a: {wait: PT1H}}]", json!({ "k": 1 }), 3_600_000),
        ("do: [{a: {wait: PT1H}}, {b: {wait: {days: 2}}}]", json!({ "k": 1 }), 3_600_000 + 2 * 86_400_000),
        ("do: [{a: {wait: '${ {seconds: .s} }'}}]", json!({ "s": 5 }), 5_000),
        ("do: [{a: {wait: {milliseconds: 250}}}]", json!(3), 250),
        ("do: [{a: {if: .no, wait: PT1H}}]", json!({ "no": false }), 0),
        (
            "do: [{f: {fork: {branches: [{a: {wait: PT9S}}, {b: {wait: PT4S}}]}, output: {as: '.[0]'}}}]",
            json!({ "k": 1 }),
            9_000,
        ),
        (
            "do: [{f: {fork: {compete: true, branches: [{a: {wait: PT9S}}, {b: {wait: PT4S}}]}}}]",
            json!({ "k": 1 }),
            4_000,
        ),
        ("do: [{l: {for: {in: '[1,2,3]'}, do: [{w: {wait: PT2S}}]}}]", json!({ "k": 1 }), 6_000),
    ] {
        let (machine, steps) = play(body, input.clone(), &mut |_| panic!("nothing is called"));
        assert_eq!(machine.state.ended, Some(Ended::Completed(input)), "{body}");
        let last_ms = steps.iter().filter_map(|step| step.ended_ms).max();
        assert_eq!(last_ms, Some(1_000 + waited_ms), "{body}");
    }
}

#[test]
fn directives_lead_where_they_say() {
    let switch = "
do:
  - s:
      switch:
        - red: {when: '.c == \"red\"', then: r}
        - other: {then: o}
        - blue: {when: '.c == \"blue\"', then: b}
  - r: {set: {was: red}, then: end}
  - b: {set: {was: blue}, then: exit}
  - o: {set: {was: other}}";
    for (color, wanted) in [("red", "red"), ("blue", "blue"), ("green", "other")] {
        assert_eq!(run(switch, json!({ "c": color })), Ok(json!({ "was": wanted })), "{color}");
    }
    let none = "do: [{s: {switch: [{a: {when: .x, then: end}}], then: end}}, {b: {set: {no: 1}}}]";
    assert_eq!(run(none, json!({ "c": 1 })), Ok(json!({ "c": 1 })));
    let circle = "
do:
  - up: {set: {n: '${ (.n // 0) + 1 }'}}
  - again: {switch: [{more: {when: '.n < 5', then: up}}]}
  - inner: {do: [{a: {set: {x: '${ .n }'}, then: exit}}, {b: {set: {x: 0}}}]}
  - last: {set: '${ . }', then: end}
  - never: {set: {y: 1}}";
    assert_eq!(run(circle, json!({})), Ok(json!({ "x": 5 })));
    let deep = "do: [{o: {do: [{l: {for: {in: '[1,2]'}, do: [{e: {set: {x: '${ $item }'}, then: end}}]}}]}}, {n: {set: {y: 1}}}]";
    assert_eq!(run(deep, json!({})), Ok(json!({ "x": 1 })));
}

#[test]
fn errors_are_raised_caught_and_retried() {
    let raised = "do: [{a: {raise: {error: {type: https://e/x, status: 418, title: '${ \"No \" + .t }'}}}}]";
    let wanted = json!({ "type": "https://e/x", "status": 418, "title": "No tea", "instance": "/do/0/a" });
    assert_eq!(run(raised, json!({ "t": "tea" })), Err(wanted));
    let named = "use: {errors: {e: {type: 'https://e/y', status: 1, instance: /own}}}\ndo: [{a: {raise: {error: e}}}]";
    assert_eq!(run(named, json!({})), Err(json!({ "type": "https://e/y", "status": 1, "instance": "/own" })));
    let caught = |catch: &str| {
        run(
            &format!(
                "do: [{{t: {{try: [{{a: {{raise: {{error: {{type: https://e/x, status: 503}}}}}}}}], catch: {catch}}}}}]"
            ),
            json!({ "i": 1 }),
        )
    };
    let error = json!({ "type": "https://e/x", "status": 503, "instance": "/do/0/t/try/0/a" });
    for (catch, wanted) in [
        ("{as: err, do: [{h: {set: {e: '${ $err }', i: '${ .i }'}}}]}", Ok(json!({ "e": error, "i": 1 }))),
        (
            "{errors: {with: {status: 503, instance: /do/0/t/try/0/a}}, do: [{h: {set: {ok: 1}}}]}",
            Ok(json!({ "ok": 1 })),
        ),
        ("{errors: {with: {status: 500}}, do: [{h: {set: {ok: 1}}}]}", Err(error.clone())),
        ("{when: '$error.status == 503', do: [{h: {set: {ok: 1}}}]}", Ok(json!({ "ok": 1 }))),
        ("{exceptWhen: '$error.status == 503', do: [{h: {set: {ok: 1}}}]}", Err(error.clone())),
        ("{}", Ok(json!({ "i": 1 }))),
        ("{retry: {limit: {attempt: {count: 2}}}}", Err(error.clone())),
        ("{retry: {delay: PT1S, when: '$error.status == 1'}, do: [{h: {set: {ok: 2}}}]}", Ok(json!({ "ok": 2 }))),
    ] {
        assert_eq!(caught(catch), wanted, "{catch}");
    }
    let twice = "do: [{o: {try: [{t: {try: [{a: {raise: {error: {type: 'https://a', status: 1}}}}], catch: {do: [{b: {raise: {error: {type: 'https://b', status: 2}}}}]}}}], catch: {do: [{h: {set: {got: '${ $error.status }'}}}]}}}]";
    assert_eq!(run(twice, json!({})), Ok(json!({ "got": 2 })));
    let branch = "do: [{o: {try: [{f: {fork: {branches: [{w: {wait: PT9S}}, {a: {raise: {error: {type: 'https://a', status: 3}}}}]}}}], catch: {do: [{h: {set: {got: '${ $error.instance }'}}}]}}}]";
    assert_eq!(run(branch, json!({})), Ok(json!({ "got": "/do/0/o/try/0/f/fork/branches/1/a" })));
}

#[test]
fn retries_wait_as_their_policy_says() {
    let body = |retry: &str| {
        format!(
            "use: {{retries: {{p: {retry}}}}}\ndo: [{{t: {{try: [{{c: {{call: http, with: {{method: get, endpoint: 'http://h/'}}}}}}], catch: {{retry: p}}}}}}]"
        )
    };
    for (retry, fails, waited, ok) in [
        ("{delay: {seconds: 2}, limit: {attempt: {count: 3}}}", 3, 6_000, true),
        ("{delay: {seconds: 2}, limit: {attempt: {count: 3}}}", 4, 6_000, false),
        ("{delay: PT1S, backoff: {linear: {}}, limit: {attempt: {count: 3}}}", 3, 6_000, true),
        ("{delay: PT1S, backoff: {exponential: {}}, limit: {attempt: {count: 4}}}", 4, 15_000, true),
        ("{delay: PT1S, jitter: {from: PT1S, to: PT1S}, limit: {attempt: {count: 2}}}", 2, 4_000, true),
        ("{delay: PT4S, limit: {duration: PT10S}}", 9, 8_000, false),
    ] {
        let mut calls = 0;
        let (machine, steps) = play(&body(retry), json!({}), &mut |_| {
            calls += 1;
            if calls <= fails { Err(Fault::new("communication", 503, "down", "down")) } else { Ok(json!("up")) }
        });
        let completed = matches!(machine.state.ended, Some(Ended::Completed(_)));
        assert_eq!(completed, ok, "{retry}: {:?}", machine.state.ended);
        let last = steps.iter().filter_map(|step| step.ended_ms).max().unwrap_or_default();
        assert_eq!(last - 1_000, waited, "{retry}");
        let attempts = steps.iter().map(|step| step.attempt).max();
        assert_eq!(attempts, Some(calls), "{retry}");
    }
}

#[test]
fn an_unknown_outcome_is_tried_again_with_its_key() {
    let body = "do: [{t: {try: [{l: {for: {in: '[1,2]'}, do: [{c: {call: http, with: {method: post, endpoint: 'http://h/'}}}]}}], catch: {retry: {limit: {attempt: {count: 3}}}}}}]";
    let mut machine = Machine::new(Arc::new(define(body)), State::new(json!({}), 0));
    let env = Env { now_ms: 0, id: "i", secret: &secret };
    let mut keys = Vec::new();
    for outcome in [
        Ok(json!(1)),
        Err(Fault::runtime("lost").unknown()),
        Ok(json!(1)),
        Err(Fault::runtime("no")),
        Ok(json!(1)),
        Ok(json!(2)),
    ] {
        settle(&mut machine, &env);
        let key = machine.actions()[0].1.key.clone();
        keys.push(key.clone());
        machine.resolve(&key, outcome, &env);
        while machine.due_ms().is_some() {
            machine.tick(&env);
        }
    }
    settle(&mut machine, &env);
    assert!(matches!(machine.state.ended, Some(Ended::Completed(_))), "{:?}", machine.state.ended);
    assert_eq!(keys[1], keys[3], "the second round calls again what nobody knows about");
    let mut known = keys.clone();
    known.sort();
    known.dedup();
    assert_eq!(known.len(), 5, "{keys:?}");
}

/// Plays a definition whose calls come to `outcomes` in turn: `y` good, `n` failed, `?` unknown, `.` no answer until a time
/// limit is over. Gives the key of each call, numbered as they come, and how it ended.
fn keys(body: &str, outcomes: &str) -> (Vec<usize>, Option<Ended>) {
    let mut machine = Machine::new(Arc::new(define(body)), State::new(json!({}), 0));
    let (mut now_ms, mut calls, mut outcomes) = (0, Vec::new(), outcomes.chars());
    let mut known: Vec<String> = Vec::new();
    let mut asked: Vec<u64> = Vec::new();
    while machine.state.ended.is_none() {
        // What is stored is all that is left from one moment to the next.
        let stored = serde_json::to_string(&machine.state).expect("a state is JSON");
        machine = Machine::new(machine.definition, serde_json::from_str(&stored).expect("a state"));
        let env = Env { now_ms, id: "i", secret: &secret };
        settle(&mut machine, &env);
        let begun = |(fiber, action): (u32, &Action)| {
            let step = machine.state.fibers[&fiber].doing().expect("a task").step;
            (step, action.key.clone())
        };
        let open: Vec<(u64, String)> = machine.actions().into_iter().map(begun).collect();
        let mut answered = false;
        for (step, key) in open {
            if asked.contains(&step) {
                continue;
            }
            asked.push(step);
            let number = known.iter().position(|one| *one == key).unwrap_or(known.len());
            if number == known.len() {
                known.push(key.clone());
            }
            calls.push(number);
            let outcome = match outcomes.next() {
                Some('.') => continue,
                Some('n') => Err(Fault::runtime("no")),
                Some('?') => Err(Fault::runtime("lost").unknown()),
                _ => Ok(json!(1)),
            };
            machine.resolve(&key, outcome, &env);
            answered = true;
        }
        if let Some(due_ms) = machine.due_ms().filter(|_| !answered) {
            now_ms = now_ms.max(due_ms);
            machine.tick(&Env { now_ms, id: "i", secret: &secret });
        }
    }
    (calls, machine.state.ended)
}

/// Goal: whatever takes a call away while nobody knows what became of it, the same task comes with its key again; what was
/// answered, and what stands elsewhere, does not.
#[test]
fn calls_without_an_answer_keep_their_keys() {
    let call = |path: &str| format!("call: http, with: {{method: post, endpoint: 'http://h/{path}'}}");
    let retry = "catch: {retry: {delay: PT0.1S, limit: {attempt: {count: 5}}}}";
    let limit = "timeout: {after: PT1S}";
    let (a, b) = (call("a"), call("b"));
    let rows = [
        (
            "its own timeout",
            format!("do: [{{t: {{try: [{{c: {{{a}, {limit}}}}}], {retry}}}}}]"),
            "..ny",
            vec![0, 0, 0, 1],
        ),
        (
            "the timeout around it",
            format!("do: [{{t: {{try: [{{d: {{do: [{{c: {{{a}}}}}], {limit}}}}}], {retry}}}}}]"),
            ".y",
            vec![0, 0],
        ),
        (
            "a branch beside it that fails",
            format!("do: [{{t: {{try: [{{f: {{fork: {{branches: [{{x: {{{a}}}}}, {{y: {{{b}}}}}]}}}}}}], {retry}}}}}]"),
            ".nyy",
            vec![0, 1, 0, 2],
        ),
        (
            "a try within, which gives up",
            format!(
                "do: [{{o: {{try: [{{t: {{try: [{{c: {{{a}}}}}], catch: {{retry: {{limit: {{attempt: {{count: 1}}}}}}}}}}}}], {retry}}}}}]"
            ),
            "???ny",
            vec![0, 0, 0, 0, 1],
        ),
        (
            "an attempt between that does not come so far",
            format!("do: [{{t: {{try: [{{c: {{{a}}}}}, {{d: {{{b}, {limit}}}}}], {retry}}}}}]"),
            "y.nyy",
            vec![0, 1, 2, 3, 1],
        ),
        (
            "the tasks of catch at the same place",
            format!(
                "do: [{{o: {{try: [{{t: {{try: [{{c: {{{a}}}}}], catch: {{do: [{{d: {{{b}}}}}]}}}}}}], {retry}}}}}]"
            ),
            "n?ny",
            vec![0, 1, 2, 1],
        ),
        (
            "another round",
            format!(
                "do: [{{t: {{try: [{{c: {{{a}, {limit}, output: {{as: '{{n: (($input.n // 0) + 1)}}'}}}}}}, {{s: {{switch: [{{more: {{when: '.n < 2', then: c}}}}]}}}}], {retry}}}}}]"
            ),
            "y.yy",
            vec![0, 1, 2, 1],
        ),
    ];
    for (name, body, outcomes, wanted) in rows {
        let (calls, ended) = keys(&body, outcomes);
        assert!(matches!(ended, Some(Ended::Completed(_))), "{name}: {ended:?}");
        assert_eq!(calls, wanted, "{name}");
    }
    let (_, ended) = keys(&format!("do: [{{c: {{{a}, {limit}}}}}]"), ".");
    let Some(Ended::Faulted(fault)) = ended else { panic!("{ended:?}") };
    assert!(fault.unknown && fault.detail.as_deref().is_some_and(|text| text.contains("unknown_outcome")), "{fault:?}");
}

/// Goal: a retry by hand comes with the key of the call that was cut off by its time limit.
#[test]
fn a_call_that_timed_out_is_retried_by_hand_with_its_key() {
    let body = "do: [{f: {fork: {branches: [{c: {call: http, with: {method: post, endpoint: 'http://h/'}}}]}, timeout: {after: PT1S}}}]";
    let mut machine = Machine::new(Arc::new(define(body)), State::new(json!({}), 0));
    let env = |now_ms| Env { now_ms, id: "i", secret: &secret };
    settle(&mut machine, &env(0));
    let key = machine.actions()[0].1.key.clone();
    machine.tick(&env(1_000));
    assert!(machine.is_faulted());
    machine.retry(&env(2_000));
    settle(&mut machine, &env(2_000));
    assert_eq!(machine.actions()[0].1.key, key);
    machine.resolve(&key, Ok(json!(1)), &env(2_000));
    settle(&mut machine, &env(2_000));
    assert_eq!(machine.state.ended, Some(Ended::Completed(json!([1]))));
    assert!(machine.state.open.is_empty());
}

#[test]
fn time_limits_end_what_takes_too_long() {
    let timeout = |pointer: &str| json!({ "type": standard("timeout"), "status": 408, "title": "Timed out", "detail": "took longer than its timeout", "instance": pointer });
    let task = "use: {timeouts: {s: {after: PT1S}}}\ndo: [{a: {do: [{w: {wait: PT9S}}], timeout: s}}]";
    assert_eq!(run(task, json!({})), Err(timeout("/do/0/a")));
    let caught = "do: [{t: {try: [{w: {wait: PT9S, timeout: {after: PT1S}}}], catch: {errors: {with: {status: 408}}, do: [{h: {set: {late: 1}}}]}}}]";
    assert_eq!(run(caught, json!({})), Ok(json!({ "late": 1 })));
    let own = "do: [{t: {timeout: {after: PT1S}, try: [{w: {wait: PT9S}}], catch: {do: [{h: {set: {late: 1}}}]}}}]";
    assert_eq!(run(own, json!({})), Err(timeout("/do/0/t")));
    let each = "do: [{t: {try: [{w: {wait: PT9S}}], catch: {retry: {limit: {attempt: {count: 1, duration: PT2S}}}, do: [{h: {set: {tries: '${ $error.status }'}}}]}}}]";
    assert_eq!(run(each, json!({})), Ok(json!({ "tries": 408 })));
    let whole =
        run("timeout: {after: {seconds: 1}}\ndo: [{t: {try: [{w: {wait: PT9S}}], catch: {do: []}}}]", json!({}));
    assert_eq!(whole.expect_err("too late")["status"], 408);
}

#[test]
fn schemas_and_expressions_fault() {
    for (body, kind, instance) in [
        (
            "input: {schema: {document: {type: object, required: [a]}}}\ndo: [{x: {set: {y: 1}}}]",
            "validation",
            "/input",
        ),
        (
            "do: [{x: {input: {schema: {format: 'json:2020', document: {type: string}}}, set: {y: 1}}}]",
            "validation",
            "/do/0/x",
        ),
        ("do: [{x: {set: {y: 1}, output: {schema: {document: {type: string}}}}}]", "validation", "/do/0/x"),
        ("do: [{x: {set: {y: 1}, export: {as: ., schema: {document: {type: string}}}}}]", "validation", "/do/0/x"),
        ("output: {schema: {document: {type: string}}}\ndo: [{x: {set: {y: 1}}}]", "validation", "/output"),
        ("do: [{x: {set: {y: '${ error(\"no\") }'}}}]", "expression", "/do/0/x"),
        ("do: [{x: {for: {in: '3'}, do: []}}]", "expression", "/do/0/x"),
        ("use: {secrets: [none]}\ndo: [{x: {set: {y: '${ $secrets.none }'}}}]", "authorization", "/do/0/x"),
    ] {
        let fault = run(body, json!({})).expect_err(body);
        assert_eq!((&fault["type"], &fault["instance"]), (&json!(standard(kind)), &json!(instance)), "{body}: {fault}");
    }
}

#[test]
fn secrets_never_become_data() {
    crate::redact::learn("a-token-of-a-test");
    let body = "use: {secrets: [known]}\ndo: [{a: {input: {from: '{t: $secrets.known.token}'}, call: http, with: {method: get, endpoint: 'http://h/', headers: {x: '${ .t }'}}}}]";
    let mut machine = Machine::new(Arc::new(define(body)), State::new(json!({}), 0));
    let env = Env { now_ms: 0, id: "i", secret: &secret };
    machine.run(&env, 100);
    let stored = serde_json::to_string(&machine.state).expect("JSON");
    assert!(!stored.contains("a-token-of-a-test"), "{stored}");
    let live = machine.actions()[0].1.live.clone().expect("the arguments are there");
    assert_eq!(live["http"]["headers"]["x"], "a-token-of-a-test");
    let mut again = Machine::new(Arc::clone(&machine.definition), serde_json::from_str(&stored).expect("a state"));
    let (fiber, _) = again.actions()[0];
    again.revive(fiber, &env).expect("it comes back");
    assert_eq!(again.arguments(fiber, &env).expect("made anew"), live);
}

#[test]
fn listeners_hear_what_they_wait_for() {
    let event = |kind: &str, data: Value| json!({ "id": "1", "source": "s", "type": kind, "data": data });
    let hear = |body: &str, events: &[Value]| {
        let mut machine = Machine::new(Arc::new(define(body)), State::new(json!({ "id": 7 }), 0));
        let env = Env { now_ms: 0, id: "i", secret: &secret };
        machine.run(&env, 100);
        let taken: Vec<bool> = events
            .iter()
            .map(|event| {
                let taken = machine.offer(event, false, &env);
                machine.run(&env, 100);
                taken
            })
            .collect();
        let output = match &machine.state.ended {
            Some(Ended::Completed(output)) => output.clone(),
            Some(Ended::Faulted(fault)) => fault.to_value(),
            None => json!("waits"),
        };
        (taken, output)
    };
    let (a, b, c) = (event("a", json!({ "n": 1 })), event("b", json!({ "n": 50 })), event("c", json!(3)));
    let one = "do: [{l: {listen: {to: {one: {with: {type: b, data: '${ .n > 40 }'}}}}}}]";
    assert_eq!(
        hear(one, &[a.clone(), event("b", json!({ "n": 4 })), b.clone()]),
        (vec![false, false, true], json!([{ "n": 50 }]))
    );
    let whole = "do: [{l: {listen: {to: {one: {with: {type: b, data: '${ .data.n > 40 and .type == \"b\" }'}}}}}}]";
    assert_eq!(hear(whole, &[event("b", json!({ "n": 4 })), b.clone()]), (vec![false, true], json!([{ "n": 50 }])));
    let inner = "do: [{l: {listen: {to: {one: {with: {type: b, data: '${ .data == 1 }'}}}}}}]";
    assert_eq!(hear(inner, &[event("b", json!({ "data": 1 }))]), (vec![true], json!([{ "data": 1 }])));
    let all = "do: [{l: {listen: {read: envelope, to: {all: [{with: {type: a}}, {with: {type: b}}]}}, output: {as: 'map(.type)'}}}]";
    assert_eq!(
        hear(all, &[b.clone(), b.clone(), c.clone(), a.clone()]),
        (vec![true, false, false, true], json!(["b", "a"]))
    );
    let any = "do: [{l: {listen: {to: {any: []}}}}]";
    assert_eq!(hear(any, std::slice::from_ref(&c)), (vec![true], json!([3])));
    let until = "do: [{l: {listen: {to: {any: [{with: {type: a}}], until: 'length == 2'}}}}]";
    assert_eq!(
        hear(until, &[a.clone(), b.clone(), a.clone()]),
        (vec![true, false, true], json!([{ "n": 1 }, { "n": 1 }]))
    );
    let stop = "do: [{l: {listen: {to: {any: [{with: {type: a}}], until: {one: {with: {type: c}}}}}, foreach: {item: e, at: i, do: [{s: {set: {v: '${ $e.n + $i }'}}}]}}}]";
    assert_eq!(
        hear(stop, &[a.clone(), a.clone(), c.clone()]),
        (vec![true, true, true], json!([{ "v": 1 }, { "v": 2 }]))
    );
    let linked = "do: [{l: {listen: {to: {one: {with: {type: '^[ab]$', source: s}, correlate: {id: {from: .data.n, expect: '${ .id }'}}}}}}}]";
    assert_eq!(hear(linked, &[a.clone(), event("a", json!({ "n": 7 }))]), (vec![false, true], json!([{ "n": 7 }])));
    let first = "do: [{l: {listen: {to: {all: [{with: {type: a}, correlate: {n: {from: .data.n}}}, {with: {type: b}, correlate: {n: {from: .data.n}}}]}}}}]";
    assert_eq!(
        hear(first, &[a.clone(), b.clone(), event("b", json!({ "n": 1 }))]),
        (vec![true, false, true], json!([{ "n": 1 }, { "n": 1 }]))
    );
}

#[test]
fn what_failed_is_taken_up_again_where_it_failed() {
    let body = "do: [{a: {set: {x: 1}}}, {o: {do: [{b: {call: http, with: {method: get, endpoint: 'http://h/'}}}, {c: {set: {y: '${ . }'}}}]}}]";
    let (mut machine, steps) = play(body, json!({}), &mut |_| Err(Fault::new("communication", 500, "x", "y")));
    assert!(machine.is_faulted());
    assert_eq!(steps.iter().filter(|step| step.status == StepStatus::Completed).count(), 1);
    let env = Env { now_ms: 9_000, id: "i", secret: &secret };
    machine.retry(&env);
    machine.run(&env, 100);
    let key = machine.actions()[0].1.key.clone();
    machine.resolve(&key, Ok(json!("ok")), &env);
    machine.run(&env, 100);
    assert_eq!(machine.state.ended, Some(Ended::Completed(json!({ "y": "ok" }))));
}

#[test]
fn what_cannot_be_run_is_refused_by_name_and_place() {
    let head = "document: {dsl: 1.0.0, namespace: n, name: w, version: 1.0.0}\n";
    for (body, pointer, said, unsupported) in [
        ("do:\n  - a:\n      call: asyncapi\n      with: {}\n", "/do/0/a/call", "asyncapi", true),
        ("do: [{a: {call: grpc}}]", "/do/0/a/call", "grpc", true),
        (
            "do: [{a: {try: [{b: {run: {container: {image: x}}}}], catch: {}}}]",
            "/do/0/a/try/0/b/run/container",
            "container",
            true,
        ),
        ("use: {extensions: []}\ndo: []", "/use/extensions", "extensions", true),
        ("use: {catalogs: {}}\ndo: []", "/use/catalogs", "catalogs", true),
        ("do: [{a: {call: 'log:1.0@global'}}]", "/do/0/a/call", "log:1.0@global", true),
        ("use: {authentications: {o: {oauth2: {}}}}\ndo: []", "/use/authentications/o/oauth2", "oauth2", true),
        ("evaluate: {mode: loose}\ndo: []", "/evaluate/mode", "loose", true),
        (
            "do: [{a: {set: {x: 1}, input: {schema: {resource: {}}}}}]",
            "/do/0/a/input/schema/resource",
            "elsewhere",
            true,
        ),
        ("do: [{a: {sett: {x: 1}}}]", "/do/0/a", "no task", false),
        ("do: [{a: {set: {x: '${ .a ++ }'}}}]", "/do/0/a/set/x", "no expression", false),
        ("do: [{a: {set: {x: '${ $nobody }'}}}]", "/do/0/a/set/x", "nobody", false),
        ("do: [{a: {set: {x: 1}, then: b}}]", "/do/0/a/then", "'b'", false),
        ("do: [{a: {wait: 3 seconds}}]", "/do/0/a/wait", "ISO 8601", false),
        ("do: [{a: {set: {x: 1}, colour: red}}]", "/do/0/a", "colour", false),
        ("do: [{a: {call: nobody}}]", "/do/0/a/call", "nobody", false),
        ("do: [{a: {run: {shell: {command: id, folder: /tmp}}}}]", "/do/0/a/run/shell", "folder", false),
        ("do: [{a: {run: {command: id}}}]", "/do/0/a/run", "none of \"workflow\", \"script\", \"shell\"", false),
        (
            "do: [{a: {run: {workflow: {namespace: n, name: x}, return: code}}}]",
            "/do/0/a/run/return",
            "\"stdout\" or \"none\"",
            false,
        ),
        (
            "do: [{a: {call: http, with: {method: get, endpoint: {uri: 'http://h', authentication: {basic: {username: x}}}}}}]",
            "/do/0/a/with/endpoint/authentication/basic",
            "\"password\" is a required",
            false,
        ),
        ("do: [{a: {listen: {to: {one: {with: {type: a}}, until: x}}}}]", "/do/0/a/listen/to", "until", false),
        ("schedule: {crom: x}\ndo: []", "/schedule", "none of \"every\", \"cron\", \"after\", \"on\"", false),
        ("do: [{a: {timeout: soon, set: {x: 1}}}]", "/do/0/a/timeout", "soon", false),
        ("use: {functions: {f: {call: f}}}\ndo: []", "/use/functions/f/call", "itself", false),
        ("schedule: {cron: nonsense}\ndo: []", "/schedule/cron", "nonsense", false),
    ] {
        let problems = parse(&format!("{head}{body}")).err().unwrap_or_else(|| panic!("taken: {body}"));
        let found = problems.iter().find(|one| one.pointer == pointer && one.reason.contains(said));
        let found = found.unwrap_or_else(|| panic!("{body}: {problems:?}"));
        assert_eq!(found.unsupported, unsupported, "{body}");
        assert!(found.place.is_some(), "{body}: {found:?}");
    }
    let wrong = parse("document: {dsl: 2.0.0, name: w}\ndo: []").err().expect("refused");
    let pointers: Vec<&str> = wrong.iter().map(|one| one.pointer.as_str()).collect();
    assert!(pointers.contains(&"/document/dsl") && pointers.contains(&"/document"), "{wrong:?}");
    let problems = parse(&format!("{head}do:\n  - a:\n      call: asyncapi\n")).err().expect("refused");
    assert_eq!(problems[0].place, Some((4, 13)));
}

#[test]
fn charts_show_every_task_and_mark_the_state() {
    let body = "do: [{a: {set: {x: 1}}}, {s: {switch: [{'y\"es': {when: .x, then: b}}, {no: {then: end}}]}}, {b: {try: [{c: {wait: PT1S}}], catch: {do: [{d: {set: {y: 1}}}]}}}]";
    let definition = define(body);
    let chart = render(&definition, &Marks::from([(0, StepStatus::Completed), (2, StepStatus::Waiting)]));
    for part in [
        "flowchart TD",
        "start --> t0",
        "t1 -- \"y#quot;es\" --> t2",
        "t1 -- \"no\" --> stop",
        "subgraph",
        "class t0 done",
        "class t2 waiting",
    ] {
        assert!(chart.contains(part), "{part} is not in\n{chart}");
    }
}

#[test]
fn bundled_definitions_are_good_and_load_as_they_parse() {
    for (name, text) in crate::bundled::WORKFLOWS {
        let parsed = parse(text).unwrap_or_else(|problems| panic!("{name}: {problems:?}"));
        let loaded = load(text).unwrap_or_else(|problems| panic!("{name}: {problems:?}"));
        assert_eq!(
            (parsed.name.as_str(), &parsed.digest, parsed.tasks.len()),
            (*name, &loaded.digest, loaded.tasks.len())
        );
    }
    // What was never checked may be anything, and breaks nothing.
    for text in ["do: 1", "[]", "do: [{a: {for: 1, do: 2}}, {b: {switch: [1]}}, 3, {c: {raise: {error: none}}}]", "x"] {
        drop(load(text));
    }
}
