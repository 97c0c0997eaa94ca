//! Commands and scripts that tasks run.

use std::path::Path;

use serde_json::{Value, json};

use super::{completed, define, put, start, until};
use crate::harness::{Daemon, Folder};

/// A daemon with these definitions as files, which may run commands.
fn daemon(folder: &Folder, definitions: &[(&str, &str)]) -> Daemon {
    let flows = folder.path().join("workflows");
    std::fs::create_dir_all(&flows).expect("a folder");
    for (name, body) in definitions {
        std::fs::write(flows.join(format!("{name}.yaml")), define(name, body)).expect("a file");
    }
    std::fs::write(folder.path().join("aman.toml"), "").expect("aman.toml");
    Daemon::start_in(folder.path())
}

/// Goal: a shell command gets its arguments, environment and input, and each kind of result is what it says.
#[test]
fn shells_get_what_the_task_says() {
    let folder = Folder::new("shells");
    let told = "command: 'cat; printf \" %s|\" \"$@\" \"$A\" \"$B\"; echo oops >&2; exit ${CODE:-0}', arguments: [one, '${ .two }', 3], environment: {A: '${ .a }', B: 'x y', CODE: '${ .code }'}, stdin: '${ .text }'";
    let kind = |wanted: &str| format!("do: [{{r: {{run: {{shell: {{{told}}}, return: {wanted}}}}}}}]");
    let (all, code, stdout, stderr, none) = (kind("all"), kind("code"), kind("stdout"), kind("stderr"), kind("none"));
    let lines = "do:\n  - say:\n      run:\n        shell:\n          stdin: ${ .data }\n          command: |\n            read line\n            echo \"got $line\"\n            echo \"$0 $# $1\"\n          arguments: ['$HOME; id']\n";
    let daemon = daemon(
        &folder,
        &[("all", &all), ("code", &code), ("stdout", &stdout), ("stderr", &stderr), ("none", &none), ("lines", lines)],
    );
    let input = |code: i64| json!({ "two": "2 $(id)", "a": { "n": 1 }, "code": code, "text": "in" });
    let said = "in one| 2 $(id)| 3| {\"n\":1}| x y|";
    assert_eq!(completed(&daemon, "all", input(3)), json!({ "code": 3, "stdout": said, "stderr": "oops\n" }));
    assert_eq!(completed(&daemon, "code", input(3)), json!(3));
    assert_eq!(completed(&daemon, "stdout", input(0)), json!(said));
    assert_eq!(completed(&daemon, "stderr", input(0)), json!("oops\n"));
    assert_eq!(completed(&daemon, "none", input(0)), Value::Null);
    let id = start(&daemon, "stdout", input(3));
    let error = until(&daemon, &id, "faulted")["error"].clone();
    assert_eq!((&error["status"], &error["instance"]), (&json!(500), &json!("/do/0/r")), "{error}");
    assert!(error["detail"].as_str().is_some_and(|detail| detail.contains("exit code 3: oops")), "{error}");
    let output = completed(&daemon, "lines", json!({ "data": { "a": 1 } }));
    assert_eq!(output, json!("got {\"a\":1}\nsh 1 $HOME; id\n"), "data are text, arguments are no code");
}

/// Goal: scripts in both languages get arguments where their languages look for them, and the input and environment.
#[test]
fn scripts_get_what_the_task_says() {
    let folder = Folder::new("scripts");
    let python = "do:\n  - count:\n      run:\n        script:\n          language: python\n          stdin: ${ . }\n          arguments: [a b, '${ .n }']\n          environment: {UNIT: cups}\n          code: |\n            import json, os, sys\n            data = json.load(sys.stdin)\n            print(json.dumps([sys.argv[1:], data['n'] * 2, os.environ['UNIT'], '${ .n }']))\n      output: {as: fromjson}\n";
    let module = "do:\n  - count:\n      run:\n        script:\n          language: js\n          stdin: hello\n          arguments: [a b, '${ .n }']\n          environment: {UNIT: cups}\n          code: |\n            import { readFileSync } from 'node:fs';\n            const text = readFileSync(0, 'utf8');\n            const [, , ...given] = process.argv;\n            console.log(JSON.stringify([given, text, process.env.UNIT, await Promise.resolve(1)]));\n        return: all\n";
    let old = "do: [{r: {run: {script: {language: javascript, arguments: [x], code: 'const fs = require(\"fs\"); console.log(process.argv[2] + typeof fs.readFileSync)'}}}}]";
    let daemon = daemon(&folder, &[("python", python), ("module", module), ("old", old)]);
    let output = completed(&daemon, "python", json!({ "n": 3 }));
    assert_eq!(output, json!([["a b", "3"], 6, "cups", "${ .n }"]), "code is code: it holds no expression");
    let bad = start(&daemon, "python", json!({ "n": "x".repeat(9) }));
    assert_eq!(until(&daemon, &bad, "completed")["output"][0][1], json!("xxxxxxxxx"));
    let wrong = start(&daemon, "python", json!({ "m": 1 }));
    let error = until(&daemon, &wrong, "faulted")["error"].clone();
    assert!(error["detail"].as_str().is_some_and(|detail| detail.contains("KeyError")), "{error}");
    if !Path::new("/usr/bin/node").exists() {
        let id = start(&daemon, "old", json!({}));
        assert_eq!(until(&daemon, &id, "faulted")["error"]["title"], "Not configured");
        return;
    }
    let output = completed(&daemon, "module", json!({ "n": 3 }));
    assert_eq!(output, json!({ "code": 0, "stdout": "[[\"a b\",\"3\"],\"hello\",\"cups\",1]\n", "stderr": "" }));
    assert_eq!(completed(&daemon, "old", json!({})), json!("xfunction\n"));
    let work = folder.path().join("run/work/workflows");
    let left = || std::fs::read_dir(&work).expect("the folder of commands").count();
    daemon.wait("every script to be gone", || (left() == 0).then_some(()));
}

/// Goal: definitions that run commands do not come in over HTTP, unless the operator says so.
#[test]
fn commands_come_from_files_only() {
    let body = "do: [{t: {try: [{a: {run: {script: {language: python, code: 'print(1)'}}}}], catch: {}}}]";
    let closed = Daemon::start();
    let refused = put(&closed, "py", &define("py", body));
    assert_eq!((refused.status, refused.code()), (403, "exec_not_allowed"));
    let open = Daemon::configured("[http]\nallow_exec_definitions = true\n");
    assert_eq!(put(&open, "py", &define("py", body)).status, 201);
    assert_eq!(completed(&open, "py", json!({})), json!("1\n"));
}
