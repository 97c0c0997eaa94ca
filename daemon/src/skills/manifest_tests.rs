//! Tests of the manifest, by table.

use super::*;

fn places() -> Places {
    Places { home: Some("/home/ada".into()), data: "/srv/aman".into() }
}

fn skill(metadata: &str) -> String {
    let metadata: String = metadata.lines().map(|line| format!("  {line}\n")).collect();
    let metadata = if metadata.is_empty() { String::new() } else { format!("metadata:\n{metadata}") };
    format!("---\nname: a-b\ndescription: Does it.\n{metadata}---\n# Title\n")
}

fn parse(text: &str) -> Result<Manifest, Vec<FieldError>> {
    match Manifest::parse(text, "a-b", &places()) {
        Ok(manifest) => Ok(manifest),
        Err(Error::Invalid { fields, .. }) => Err(fields),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn defaults_are_narrow() {
    let plain = parse(&skill("")).expect("good");
    assert_eq!((plain.kind(), plain.version.as_str(), plain.timeout.as_secs()), ("instructions", "0", 30));
    assert_eq!((plain.concurrency, plain.retry), (Concurrency::Serial, RetryPolicy::default()));
    assert_eq!(plain.permissions, Permissions::default());
    assert_eq!(plain.warnings, [""; 0]);
}

#[test]
fn everything_is_read() {
    let text = skill(
        "aman.version: 1.10\naman.on: \"file.changed file.created\"\naman.when: '.data.name | endswith(\".md\")'\n\
         aman.schedule: \"0 8 * * 1-5\"\naman.timezone: Europe/Berlin\naman.run: \"python3 'scripts/a b.py' --fast\"\n\
         aman.timeout: 90s\naman.concurrency: 4\naman.permissions: read:~/inbox write:$AMAN_DATA/filed net:any\n\
         aman.tags: idle_run work\naman.retry: attempts=3 backoff=fixed base=1s jitter=false",
    );
    let manifest = parse(&text).expect("good");
    let kinds: Vec<_> = manifest.rules.iter().map(|rule| rule.pattern.as_str()).collect();
    assert_eq!(kinds, ["file.changed", "file.created"]);
    assert_eq!(manifest.when.as_deref(), Some(".data.name | endswith(\".md\")"));
    assert!(manifest.rules.iter().all(|rule| rule.condition.is_some()));
    assert_eq!(manifest.version, "1.10");
    assert_eq!(manifest.run, Run::Script(["python3", "scripts/a b.py", "--fast"].map(str::to_owned).to_vec()));
    assert_eq!((manifest.timeout.as_secs(), manifest.concurrency), (90, Concurrency::Parallel(4)));
    let schedule = manifest.schedule.expect("a schedule");
    assert_eq!((schedule.schedule.as_str(), schedule.timezone.as_deref()), ("0 8 * * 1-5", Some("Europe/Berlin")));
    assert_eq!(manifest.permissions.write, ["/srv/aman/filed"].map(std::path::PathBuf::from));
    assert_eq!(manifest.tags, ["idle_run", "work"]);
    assert_eq!(
        (manifest.retry.max_attempts, manifest.retry.backoff, manifest.retry.jitter),
        (3, Backoff::Fixed, false)
    );
    assert_eq!(manifest.warnings, [""; 0]);
    assert_eq!(parse(&skill("aman.run: agent\naman.on: a.b")).expect("good").kind(), "agent");
}

#[test]
fn each_broken_field_is_named() {
    let cases = [
        ("aman.on: \"file.* a..b\"", "a..b"),
        ("aman.on: \"**.x\"", "**.x"),
        ("aman.when: '.data |'", ""),
        ("aman.run: \"sh 'x\"", "quote"),
        ("aman.run: \"../sh x\"", "leads out"),
        ("aman.run: \"''\"", "no command"),
        ("aman.timeout: 30", "'30'"),
        ("aman.timeout: 0s", "longer than nothing"),
        ("aman.timeout: 2h", "at most 3600 s"),
        ("aman.timeout: 99999999999999999999s", "no duration"),
        ("aman.concurrency: 0", "'0'"),
        ("aman.concurrency: many", "'many'"),
        ("aman.permissions: read:inbox", "read:inbox"),
        ("aman.schedule: daily", "'daily'"),
        ("aman.timezone: \"Europe Berlin\"", "Europe Berlin"),
        ("aman.retry: attempts=0", "attempts=0"),
        ("aman.retry: base=2m", "longer than max"),
        ("aman.retry: often", "'often'"),
        ("aman.tags: [a, b]", "text in quotes"),
    ];
    for (line, reason) in cases {
        let wrong = parse(&skill(line)).expect_err(line);
        let key = line.split(':').next().unwrap_or_default();
        assert_eq!(wrong.len(), 1, "{line}: {wrong:?}");
        assert_eq!(wrong[0].field, format!("metadata.{key}"), "{wrong:?}");
        assert!(wrong[0].reason.contains(reason), "{line}: {wrong:?}");
    }
    let many = parse("---\nname: A\nmetadata: {aman.timeout: x, aman.concurrency: y}\n---\n").expect_err("broken");
    let fields: Vec<_> = many.iter().map(|wrong| wrong.field.as_str()).collect();
    assert_eq!(fields, ["description", "metadata.aman.timeout", "metadata.aman.concurrency"]);
}

#[test]
fn names_follow_the_specification() {
    for good in ["a", "a-b", "7", "übung-1", "a1-b2-c3", &"x".repeat(64)] {
        assert_eq!(check_name(good), Ok(()), "{good}");
    }
    for bad in ["", "A", "a_b", "a b", "-a", "a-", "a--b", "a/b", "..", "a.b", "a\n", &"x".repeat(65)] {
        assert!(check_name(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn what_breaks_the_specification_is_loaded_and_told() {
    let long = "x".repeat(1025);
    let cases = [
        ("name: a-b\ndescription: d", "other", "a-b", "name"),
        ("name: A_B\ndescription: d", "a-b", "a-b", "name"),
        ("name: My Skill!\ndescription: d", "My Skill", "my-skill", "name"),
        ("description: d", "a-b", "a-b", "name"),
        ("name: ''\ndescription: d", "Ä b_c", "ä-b-c", "name"),
        (&format!("name: a-b\ndescription: {long}"), "a-b", "a-b", "description"),
        ("name: a-b\ndescription: When: always", "a-b", "a-b", "front matter"),
        ("name: a-b\ndescription: d\nallowed-tools: [Read]", "a-b", "a-b", "allowed-tools"),
        ("name: a-b\ndescription: d\nmetadata: {tags: [a]}", "a-b", "a-b", "metadata.tags"),
        ("name: a-b\ndescription: d\nmodel: x", "a-b", "a-b", "model"),
    ];
    for (front, folder, name, field) in cases {
        let manifest = Manifest::parse(&format!("---\n{front}\n---\n"), folder, &places()).expect(front);
        assert_eq!(manifest.name, name, "{front}");
        let fields: Vec<_> = manifest.breaks.iter().map(|one| one.field.as_str()).collect();
        assert_eq!(fields, [field], "{front}: {:?}", manifest.breaks);
    }
    let nameless = Manifest::parse("---\nname: '!'\ndescription: d\n---\n", "---", &places());
    assert!(nameless.expect_err("no name is left").to_string().contains("name:"));
}

#[test]
fn what_is_odd_is_a_warning() {
    let cases = [
        ("aman.permission: net:any", "Did you mean aman.permissions?"),
        ("aman.onn: a.b", "Did you mean aman.on?"),
        ("aman.colour: blue", "metadata.aman.colour is unknown and was left out."),
        ("aman.when: .data", "without aman.on"),
        ("aman.timezone: Europe/Berlin", "without aman.schedule"),
        ("aman.run: sh a.sh", "nothing triggers it"),
        ("aman.on: a.b", "no aman.run"),
    ];
    for (line, expected) in cases {
        let manifest = parse(&skill(line)).expect(line);
        assert_eq!(manifest.warnings.len(), 1, "{line}: {:?}", manifest.warnings);
        assert!(manifest.warnings[0].contains(expected), "{line}: {:?}", manifest.warnings);
    }
    let text = "---\nname: a-b\ndescription: d\nmodel: x\naman.on: a.b\n---\n";
    let manifest = parse(text).expect("good");
    assert_eq!(manifest.breaks.len(), 2);
    assert!(manifest.breaks[1].reason.contains("below 'metadata'"), "{:?}", manifest.breaks);
}
