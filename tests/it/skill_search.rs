//! Skills found by words of any language, and skills as a model is told of them.

use std::fs;

use serde_json::{Value, json};

use crate::harness::{Daemon, Folder};

/// Writes a skill that only has text.
fn text_skill(home: &Folder, name: &str, description: &str, tags: &str, body: &str) {
    let folder = home.path().join("skills").join(name);
    fs::create_dir_all(&folder).expect("a folder");
    let text = format!(
        "---\nname: {name}\ndescription: {}\nmetadata: {{aman.tags: {}}}\n---\n{body}\n",
        json!(description),
        json!(tags)
    );
    fs::write(folder.join("SKILL.md"), text).expect("SKILL.md");
}

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

fn search(daemon: &Daemon, words: &str) -> Vec<Value> {
    let answer = daemon.get(&format!("/skills/search?q={}", encoded(words)));
    assert_eq!(answer.status, 200, "{words:?}: {answer:?}");
    answer.items()
}

/// Goal: words of names, tags, descriptions and texts are found in any language, by their beginnings, whatever their case
/// and accents; the field that weighs most is told.
#[test]
fn words_of_any_language_are_found() {
    let home = Folder::new("search");
    text_skill(&home, "file-invoices", "Files Rechnungen by month.", "money paper", "Reads the café's bill from Łódź.");
    text_skill(
        &home,
        "cooking",
        "Suggests dinner.",
        "home",
        "Uses what the file of the pantry says. 今日は東京で寿司を食べます。",
    );
    text_skill(
        &home,
        "travel",
        "Plans trips.",
        "leisure",
        "Поездки в Москву, ภาษาไทยง่ายนิดเดียว, 서울에서 만나요, हिन्दी में.",
    );
    text_skill(&home, "emoji", "Says 🦀 and 👩‍👩‍👧.", "fun", &"𝔘𝔫𝔦 🗂 ".repeat(3000));
    let daemon = Daemon::start_in(home.path());
    let cases = [
        ("invoices", "file-invoices", "name"),
        ("INVOIC", "file-invoices", "name"),
        ("file-invoices", "file-invoices", "name"),
        ("paper", "file-invoices", "tags"),
        ("rechnung", "file-invoices", "description"),
        ("cafe", "file-invoices", "body"),
        ("CAFÉ bill", "file-invoices", "body"),
        ("cafe\u{301}", "file-invoices", "body"),
        ("東京", "cooking", "body"),
        ("寿司", "cooking", "body"),
        ("москву", "travel", "body"),
        ("ไทย", "travel", "body"),
        ("서울", "travel", "body"),
        ("हिन्दी", "travel", "body"),
        ("paper café", "file-invoices", "tags"),
    ];
    for (words, name, field) in cases {
        let hits = search(&daemon, words);
        let found = hits.first().map(|hit| (hit["name"].as_str(), hit["field"].as_str()));
        assert_eq!(found, Some((Some(name), Some(field))), "{words:?}: {hits:?}");
        assert!(hits[0]["score"].as_f64().is_some_and(|score| score > 0.0), "{hits:?}");
    }
    let hits = search(&daemon, "寿司");
    let snippet = hits[0]["snippet"].as_str().expect("a snippet");
    assert!(snippet.contains("東京で寿司を") && !snippet.contains(['\u{200b}', '\u{1}']), "{snippet:?}");
    // A name weighs more than a text.
    let names: Vec<_> = search(&daemon, "file").iter().map(|hit| hit["name"].clone()).collect();
    let place = |name: &str| names.iter().position(|found| found == name);
    assert!(place("file-invoices") < place("cooking") && place("file-invoices").is_some(), "{names:?}");
    assert!(search(&daemon, "京東").is_empty(), "the order of characters counts");
    assert!(search(&daemon, "paper dinner").is_empty(), "every word must be there");
    let (code, out, error) = daemon.cli(&["skill", "search", "café", "bill"]);
    assert!(code == 0 && out.contains("file-invoices") && out.contains("body"), "{out} {error}");
}

/// Goal: nothing that can be asked breaks the search, and limits are told.
#[test]
fn odd_questions_get_an_answer() {
    let home = Folder::new("search");
    text_skill(&home, "emoji", "Says 🦀 and 👩‍👩‍👧.", "fun", &"𝔘𝔫𝔦 🗂 ".repeat(3000));
    let daemon = Daemon::start_in(home.path());
    let odd = [
        "\"",
        "\"\"",
        "*",
        "a*",
        "-",
        "- -",
        "NOT",
        "AND OR",
        "name:emoji",
        "{name}: x",
        "(",
        "NEAR(a b)",
        "^a",
        "a+b",
        "🦀",
        "🦀fun",
        "\u{0}",
        "a\u{0}b",
        "\u{200b}",
        "\u{1}",
        "%",
        "'; DROP TABLE skill; --",
        "𞤀𞤁",
        "ﷺ",
        "\u{202e}fun",
        "e\u{301}\u{301}\u{301}",
        "'",
        "\\",
        "𝔘",
        "👩‍👩‍👧",
        "ß",
        "İ",
        "ǆ",
        "\u{fffd}",
        "\u{10ffff}",
    ];
    for words in odd {
        search(&daemon, words);
    }
    assert_eq!(search(&daemon, "emoji\" OR \"x").len(), 0);
    assert_eq!(search(&daemon, "fun")[0]["name"], "emoji");
    for (query, status) in [
        ("q=", 400),
        ("", 400),
        (&format!("q={}", "x".repeat(257)), 400),
        (&format!("q={}", "a%20".repeat(17)), 400),
        (&format!("q={}", "a%22".repeat(17)), 400),
        ("q=%ff", 400),
        ("q=a&limit=x", 400),
        ("q=says&limit=0", 400),
        ("q=says&limit=5000", 200),
    ] {
        let answer = daemon.get(&format!("/skills/search?{query}"));
        assert_eq!(answer.status, status, "{query}: {answer:?}");
    }
}

/// Goal: texts that are one word from end to end are searched at once, and nobody else waits; what stands late in a long
/// text is shown.
#[test]
fn one_word_over_and_over_holds_nobody_up() {
    let home = Folder::new("search");
    for n in 0..3 {
        text_skill(&home, &format!("same-{n}"), "Repeats.", "odd", &"zq ".repeat(85_000));
    }
    text_skill(&home, "late", "Tells late.", "odd", &format!("{}Das ÜBERMUT tut selten gut.", "so ".repeat(10_000)));
    let daemon = Daemon::start_in(home.path());
    for words in ["zq", "Zq zq zq zq zq zq zq", "\"zq\"zq\""] {
        let hits = search(&daemon, words);
        assert_eq!(hits.len(), 3, "{words}: {hits:?}");
        assert!(hits.iter().all(|hit| hit["field"] == "body"), "{words}: {hits:?}");
    }
    let hits = search(&daemon, "übermut");
    let snippet = hits[0]["snippet"].as_str().expect("a snippet");
    assert!(snippet.starts_with('…') && snippet.contains("Das ÜBERMUT tut") && snippet.len() < 1000, "{snippet:?}");
}

/// Goal: the index follows what is loaded: changes, removals, and a restart.
#[test]
fn the_index_follows_the_files() {
    let home = Folder::new("search");
    text_skill(&home, "one", "About apples.", "", "");
    text_skill(&home, "two", "About pears.", "", "");
    let mut daemon = Daemon::start_in(home.path());
    text_skill(&home, "one", "About plums.", "", "");
    fs::remove_dir_all(home.path().join("skills/two")).expect("ours");
    daemon.post("/skills/reload", &json!({}));
    let counts = |daemon: &Daemon| ["apples", "plums", "pears"].map(|word| search(daemon, word).len());
    assert_eq!(counts(&daemon), [0, 1, 0]);
    daemon.kill();
    daemon.again();
    assert_eq!(counts(&daemon), [0, 1, 0]);
    let (code, out, _) = daemon.cli(&["db", "check"]);
    assert_eq!(code, 0, "{out}");
}

/// Goal: a model is told of what it may use, and where the text lies, and of nothing else.
#[test]
fn models_are_told_of_what_may_be_used() {
    let home = Folder::new("search");
    text_skill(&home, "shown", "Use it always.", "a b", "Do it.");
    text_skill(&home, "hidden", "Use it never.", "", "");
    let daemon = Daemon::start_in(home.path());
    assert_eq!(daemon.post("/skill/hidden/disable", &json!({})).status, 200);
    let told = daemon.get("/llm-skills").items();
    let one = told.iter().find(|one| one["name"] == "shown").expect("it may be used");
    assert_eq!(
        (&one["description"], &one["tags"], &one["kind"]),
        (&json!("Use it always."), &json!(["a", "b"]), &json!("instructions"))
    );
    let text = fs::read_to_string(one["location"].as_str().expect("a path")).expect("it is there");
    assert!(text.ends_with("Do it.\n"), "{text}");
    assert!(told.iter().all(|one| one["name"] != "hidden"), "{told:?}");
}
