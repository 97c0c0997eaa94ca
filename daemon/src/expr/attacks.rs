//! Expressions that try to take time, memory or stack for themselves; none of them gets far.

use super::{EvalErrorKind, Expr, Limits};
use serde_json::{Value, json};
use std::time::Duration;

const ATTACKS: &[&str] = &[
    "\"x\" * 1000000000",
    "\"x\" * 1e300",
    "[range(1000000000)]",
    "last(range(1e12))",
    "[range(0; 1; 0)]",
    "reduce range(1e12) as $i (0; .)",
    "[limit(1e9; range(1e10))]",
    "[.[] = 1, range(1e9)]",
    "reduce range(100) as $i (\"x\"; . + .)",
    "reduce range(100) as $i ([1]; . + .)",
    "reduce range(100) as $i (1; [., .])",
    "reduce range(100) as $i (1; {a: ., b: .})",
    "reduce range(20) as $i (1; [., .]) | tojson | length",
    "reduce range(18) as $i (1; [., .]) | [., .] | sort | unique | [..] | length",
    "reduce range(17) as $i (1; [., .]) | [limit(1000; while(true; .))] | sort | group_by(.) | length",
    "reduce range(100000) as $i (1; [.])",
    "reduce range(100000) as $i (1; {a: .})",
    "reduce range(100000) as $i (1; {a: .}) | try . catch 1",
    "[try range(1e10) catch 1]",
    "def f: try last(range(1e10)) catch 1; f, f, f",
    "reduce range(1e10) as $i (.; try error(1) catch .)",
    "null | .[1000000000] = 1",
    "null | .[9223372036854775807] = 1",
    "[] | .[1e300] = 1",
    "[] | .[-1e300] = 1",
    "setpath([1000000000]; 1)",
    "[range(30000)] | map([range(30000)])",
    "[range(100000)] | sort_by(tojson) | map(. as $x | [range(1000)])",
    "[range(3000)] | combinations",
    "[[range(1000)], [range(1000)], [range(1000)]] | [combinations] | length",
    "[limit(1000000000; while(true; .))]",
    "last(while(true; .))",
    "until(false; .)",
    "until(false; . + 1)",
    "0 | until(false; [.])",
    "first(while(true; .) | select(false))",
    "label $f | while(true; .) | select(false)",
    "until(false; .) |= 1",
    "null | (while(true; .a) |= 1)",
    "null | path(until(false; .a))",
    "null | path(until(false; .a?))",
    "null | [path(limit(1000000; while(true; .a)))]",
    "[] | path(until(false; .[0:]))",
    "[1] | path(until(false; .[{\"start\": 0}]))",
    "[] | path(until(false; .[[]]))",
    "[] | path(reduce range(1e9) as $i (.; .[0:]))",
    "null | path(getpath([range(100000) | \"a\"]))",
    "null | getpath([range(1000000) | \"a\"])",
    "null | setpath([range(100000) | \"a\"]; 1)",
    "null | setpath([range(100000) | 0]; 1)",
    "[[1]] | delpaths([range(1000000) | [0]])",
    "(reduce range(1e9) as $i (.; .)) |= 1",
    "(foreach range(1e9) as $i (.; .)) |= 1",
    "(first(range(1e9) | select(false))) = 1",
    "\"\\([range(1e9)])\"",
    "[range(1e6)] | implode",
    "[range(1e6) | \"xxxxxxxxxxxxxxxx\"] | join(\"yyyyyyyyyyyyyyyyyyyy\")",
    "[range(1e6) | tostring] | add",
    "reduce range(1e7) as $i (\"\"; . + \"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\")",
    "reduce range(1e7) as $i (\"\"; \"y\" + .)",
    "reduce range(1000) as $i (\"<>\"; @html)",
    "reduce range(1000) as $i (\"<>\"; @base64)",
    "reduce range(1000) as $i (\"<>\"; @uri)",
    "reduce range(1000) as $i (\"'\"; @sh)",
    "reduce range(1000) as $i (\"\\\"\"; tojson)",
    "reduce range(1000) as $i (\"\\\"\"; @csv? // ([.] | @csv))",
    "reduce range(1000) as $i (10; . * .)",
    "reduce range(1e9) as $i ({}; .[\"k\\($i)\"] = $i)",
    "reduce range(1e9) as $i ([]; .[$i] = $i)",
    "reduce range(1e9) as $i ([]; . + [$i])",
    "reduce range(1e9) as $i ([]; [$i] + .)",
    "(\"a\" * 100000) as $t | $t | test(\"(a*)*b\")",
    "(\"a\" * 100000) as $t | $t | test(\"(a|aa|aaa|aaaa)*c\")",
    "(\"a\" * 100000) as $t | $t | [match(\"a*?b|a\"; \"g\")] | length",
    "(\"a\" * 100000) as $t | $t | test(\"(x+x+)+y|(a?){50}a{50}b\")",
    "(\"a\" * 5000) as $t | $t | test(\"(a?){500}a{500}b\")",
    "(\"a\" * 100000) as $t | $t | gsub(\"\"; \"bbbbbbbbbbbb\")",
    "(\"a\" * 100000) as $t | $t | [scan(\"(a)(a)(a)?\")] | length",
    "(\"a\" * 100000) as $t | [range(1000) | $t | test(\"b$\")] | length",
    "[range(1000) | . as $i | \"a\" | test(\"a{\\($i)}(b|c\\($i))\")] | length",
    "\"a\" | test(\"(((a{100}){100}){100}){100}\")",
    "\"a\" | test(\"\\\\w{1000}\\\\w{1000}\")",
    "\"a\" | test(\"(\" * 2000)",
    "(\"a\" * 1000000) | test(\"a\")",
    "(\"a\" * 1000000) as $t | $t | indices(\"a\" * 500000) | length",
    "(\"a\" * 1000000) as $t | $t / \"a\" | length",
    "(\"a\" * 1000000) as $t | $t | explode | implode | length",
    "(\"a\" * 1000000) as $t | [range(100000) | $t] | sort | unique | length",
    "(\"a\" * 1000000) as $t | [range(100000) | $t | length] | add",
    "(\"a\" * 1000000) as $t | [range(100000) | $t | ascii_downcase] | length",
    "(\"a\" * 1000000) as $t | [range(100000) | $t | endswith(\"b\")] | length",
    "(\"a\" * 1000000) as $t | [range(100000) | $t == ($t + \"b\")] | length",
    "(\"a\" * 1000000) as $t | [range(100000) | $t[1:]] | length",
    "(\"a\" * 1000000) as $t | [range(100000) | $t | ltrimstr(\"a\")] | length",
    "(\"a\" * 1000000) as $t | [range(100000) | $t | trim] | length",
    "(\"[\" * 100000) | fromjson",
    "(\"[\" * 100000) + (\"]\" * 100000) | fromjson",
    "(\"[1,\" * 100) + \"1\" + (\"]\" * 100) | [range(100000) as $i | fromjson] | length",
    "[range(2000)] as $a | [range(2000) | $a | contains([-1])] | length",
    "[range(100000)] as $a | $a - $a | length",
    "[range(100000)] as $a | [range(100000) | $a | index(-1)] | length",
    "[range(100000)] as $a | [range(100000) | $a[1:]] | length",
    "[range(100000)] as $a | [range(100000) | $a | length] | length",
    "[range(100000)] as $a | [range(100000) | $a | reverse] | length",
    "[range(50000)] | [., .] | transpose | map(add) | flatten | length",
    "[limit(100000; while(true; .))] | error",
    "0 | strftime(\"%255Y\" * 100000)",
    "\"%\" * 100000 | strptime(.)",
    "0 | strftime(\"%9999999999Y\")",
    "[-9223372036854775808] | implode",
    "-9223372036854775808 | length, -., . / -1, . % -1, . - 1",
    "1e1000, -1e1000 | floor, tojson, . % 3, [.[0]?], todate?",
    "nan | [., .] | sort, unique, floor, tojson, ([.] | implode)",
    "9e18 | ldexp(.; 1000000000), scalbln(.; -1000000000), pow(.; 1e9), tgamma, exp10",
    "walk(walk(walk(walk(.))))",
    "[..] | [.[] | [..]] | [.[] | [..]] | [..] | length",
    "[paths] | [paths] | [paths] | length",
    "to_entries | tojson | . * 1000 | fromjson?",
    "reduce range(120) as $i (1; [.]) | [recurse] | map(tojson) | length",
    "reduce range(120) as $i (1; [.]) | walk(.) | [paths] | length",
    "[recurse(.[]?; true)] | length",
    "[limit(100000; {} | recurse(.[]?, {}))]",
    ". as [$a, [$b]] | [$a, $b]",
    "[splits(\"a\"; \"b\"; \"c\")?]",
    "@text \"\\(1, 2, 3)\\(1, 2, 3)\\(1, 2, 3)\\(1, 2, 3)\\(1, 2, 3)\\(1, 2, 3)\\(1, 2, 3)\\(1, 2, 3)\\(1, 2, 3)\\(1, 2, 3)\\(1, 2, 3)\\(1, 2, 3)\\(1, 2, 3)\\(1, 2, 3)\\(1, 2, 3)\"",
    "ltrimstr(1), rtrimstr(1), implode, explode, tojson, bsearch(1)",
];

/// Attacks by the shape of the source.
fn built() -> Vec<String> {
    let chain = |name: fn(usize) -> String, body: fn(usize) -> String, n: usize| {
        let defs: String = (1..n).map(|i| format!("def {}: {}; ", name(i), body(i - 1))).collect();
        format!("def {}: .; {defs}{}", name(0), name(n - 1))
    };
    let f = |i: usize| format!("f{i}");
    let exponential_args: String = (1..100).map(|i| format!("def g{i}(f): g{}(g{}(f)); ", i - 1, i - 1)).collect();
    let params: String = (0..500)
        .map(|i| format!("def p{i}(f): {}; ", if i == 0 { "f".into() } else { format!("p{}(f)", i - 1) }))
        .collect();
    vec![
        chain(f, |i| format!("f{i} | f{i}"), 300),
        chain(f, |i| format!("f{i}, f{i}"), 300),
        chain(f, |i| format!("[f{i}]"), 300),
        chain(f, |i| format!("1 + f{i}"), 300),
        chain(f, |i| format!("[f{i}, f{i}]"), 300),
        chain(f, |i| format!("f{i} | f{i}"), 100) + " |= 1",
        chain(f, |i| format!("f{i} | f{i}"), 100).replace("f99", "path(f99)"),
        format!("def g0(f): [f]; {exponential_args} g99(1)"),
        format!("def g0(f): f | f; {exponential_args} g99(.)"),
        format!("{params} p499(1)"),
        format!("{params} p499(.) |= 1"),
        "1".to_owned() + &" | .".repeat(2000),
        ".".to_owned() + &" | .".repeat(2000) + " |= 1",
        "1".to_owned() + &" + 1".repeat(2000),
        "1".to_owned() + &" , 1".repeat(2000),
        "1".to_owned() + &" // 1".repeat(1500),
        "1".to_owned() + &" as $x | 1".repeat(700),
        ".".to_owned() + &" |= .".repeat(1500),
        ".".to_owned() + &" = .".repeat(1500),
        "try ".repeat(1900) + "1",
        "-".repeat(4000) + "1",
        "1|".repeat(2000) + "1",
        "1,".repeat(2000) + "1",
        "1=".repeat(2000) + "1",
        "..?//".repeat(1000) + "1",
        "def f(a;b;c):a;".repeat(300) + "1",
        "1 as[$a]|".repeat(800) + "1",
        "{a:".repeat(60) + "1" + &"}".repeat(60),
        "if 1 then ".repeat(700) + "1" + &" end".repeat(700),
        "if 1 then 1 ".to_owned() + &"elif 1 then 1 ".repeat(500) + "end",
        "label $f | ".repeat(600) + "break $f",
        "reduce 1 as $x (0; ".repeat(60) + "1" + &")".repeat(60),
        "def f: ".repeat(900) + "1;" + &" f;".repeat(898) + " f",
        ".".to_owned() + &".a".repeat(2000),
        ".".to_owned() + &"?".repeat(4000),
        ".".to_owned() + &"[0]".repeat(1300),
        format!("{{{}}}", (0..700).map(|i| format!("a{i}: {i}")).collect::<Vec<_>>().join(", ")),
        format!("\"{}\"", "\\(1)".repeat(1000)),
        format!("\"{}\"", "\\(1, 2)".repeat(1000)),
        format!("[{}]", (0..1000).map(|i| i.to_string()).collect::<Vec<_>>().join(",")),
        "first(".repeat(60) + "range(1e10)" + &")".repeat(60),
        "map(".repeat(60) + "." + &")".repeat(60),
        "[1] | ".to_owned() + &"map(".repeat(60) + "." + &")".repeat(60),
        "[".repeat(60) + "range(1e10)" + &"]".repeat(60),
    ]
}

/// The largest patterns that are let through, on texts of several lengths.
fn regexes() -> Vec<String> {
    let mut attacks = Vec::new();
    for text in [2_000, 20_000, 120_000] {
        for times in [10, 40, 160, 640] {
            for part in ["(?:a?)", "(a?)", "[a-z]?", "(?:a|b|aa)?", "(?i:[ab]?)", "\\\\w?"] {
                attacks.push(format!("(\"a\" * {text}) | test(\"{part}{{{times}}}b\")"));
            }
            attacks.push(format!("(\"a\" * {text}) | [match(\"(?:a{{1,{times}}})*?b|a\"; \"g\")] | length"));
        }
    }
    attacks
}

/// The most memory that this process ever had, in MiB.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0");
    line.trim().trim_end_matches("kB").trim().parse::<usize>().unwrap_or(0) / 1024
}

/// The processor time that this process has used; its tests run in a process each.
fn busy() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(") ").next().unwrap_or_default();
    // utime and stime, in hundredths of a second
    let ticks: u64 = after_name.split(' ').skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

/// Runs each of `sources` and tells which of them took long.
fn slow(sources: &[String], inputs: &[String]) -> Vec<String> {
    let limits = Limits { time: Duration::from_millis(40), ..Limits::default() };
    let mut slow = Vec::new();
    for source in sources {
        let short: String = source.chars().take(100).collect();
        let start = busy();
        let expr = Expr::compile(source);
        for input in inputs {
            let Ok(expr) = &expr else { continue };
            let before = peak();
            let result = expr.run(input.as_bytes(), &limits);
            let internal = matches!(&result, Err(e) if e.kind == EvalErrorKind::Internal);
            assert!(!internal, "{short}: {result:?}");
            let grown = peak() - before;
            assert!(grown < 128, "{short}: {grown} MiB");
        }
        // Processor time, so that a busy machine does not count; a build without optimisation gets some room.
        let took = busy().saturating_sub(start);
        if took > Duration::from_secs(2) {
            slow.push(format!("{took:?}: {short}"));
        }
    }
    slow
}

/// Each ends soon, with an error or a small answer, and leaves the process small.
#[test]
fn attacks_get_nowhere() {
    let nested = |inner: Value, i| if i % 2 == 0 { json!([inner]) } else { json!({ "a": inner }) };
    let inputs =
        [json!([[1, [2]], {"a": [3]}, "text"]), (0..100).fold(json!(1), nested)].map(|input| input.to_string());
    let attacks: Vec<String> = ATTACKS.iter().map(|attack| (*attack).to_owned()).chain(built()).collect();
    let slow = slow(&attacks, &inputs);
    assert!(slow.is_empty(), "{slow:#?}");
}

#[test]
fn regexes_get_nowhere() {
    let slow = slow(&regexes(), &["null".to_owned()]);
    assert!(slow.is_empty(), "{slow:#?}");
}
