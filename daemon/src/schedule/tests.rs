use serde_json::{Value, json};

use super::*;
use crate::clock::{parse_rfc3339, rfc3339};

fn next(expression: &str, zone: &str, after: &str, count: usize) -> Vec<String> {
    let schedule = Schedule::parse(expression, zone).expect(expression);
    let after_ms = parse_rfc3339(after).expect(after);
    schedule.preview(after_ms, count).into_iter().map(|at| rfc3339(at)[..19].to_owned()).collect()
}

/// Goal: around every kind of zone transition a plan gives these UTC times.
///
/// Expected values are from the IANA rules of each zone: New York and Berlin move by an hour, Lord Howe by half an hour,
/// Apia left out 30 December 2011, Casablanca goes back for Ramadan and forward after it.
#[test]
fn zone_transitions() {
    let cases: &[(&str, &str, &str, &[&str])] = &[
        // New York, 8 March 2026: 02:00 EST becomes 03:00 EDT; 1 November: 02:00 EDT becomes 01:00 EST.
        ("30 2 * * *", "America/New_York", "2026-03-07T12:00:00Z", &["2026-03-08T07:00:00", "2026-03-09T06:30:00"]),
        ("30 1 * * *", "America/New_York", "2026-10-31T12:00:00Z", &["2026-11-01T05:30:00", "2026-11-02T06:30:00"]),
        ("30 * * * *", "America/New_York", "2026-03-08T06:00:00Z", &["2026-03-08T06:30:00", "2026-03-08T07:30:00"]),
        (
            "30 * * * *",
            "America/New_York",
            "2026-11-01T05:00:00Z",
            &["2026-11-01T05:30:00", "2026-11-01T06:30:00", "2026-11-01T07:30:00"],
        ),
        ("0 8 * * 1-5", "America/New_York", "2026-03-06T14:00:00Z", &["2026-03-09T12:00:00"]),
        // Berlin, 29 March 2026: 02:00 becomes 03:00; 25 October: 03:00 becomes 02:00.
        ("0 8 * * *", "Europe/Berlin", "2026-03-28T00:00:00Z", &["2026-03-28T07:00:00", "2026-03-29T06:00:00"]),
        ("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", &["2026-03-29T01:00:00", "2026-03-30T00:30:00"]),
        ("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", &["2026-10-25T00:30:00", "2026-10-26T01:30:00"]),
        (
            "*/30 2 * * *",
            "Europe/Berlin",
            "2026-10-24T12:00:00Z",
            &[
                "2026-10-25T00:00:00",
                "2026-10-25T00:30:00",
                "2026-10-25T01:00:00",
                "2026-10-25T01:30:00",
                "2026-10-26T01:00:00",
            ],
        ),
        // Lord Howe, 4 October 2026: 02:00 becomes 02:30 (+10:30 to +11); 5 April: 02:00 becomes 01:30.
        ("15 2 * * *", "Australia/Lord_Howe", "2026-10-03T00:00:00Z", &["2026-10-03T15:30:00", "2026-10-04T15:15:00"]),
        ("45 1 * * *", "Australia/Lord_Howe", "2026-04-04T00:00:00Z", &["2026-04-04T14:45:00", "2026-04-05T15:15:00"]),
        (
            "*/15 1 * * *",
            "Australia/Lord_Howe",
            "2026-04-04T14:10:00Z",
            &[
                "2026-04-04T14:15:00",
                "2026-04-04T14:30:00",
                "2026-04-04T14:45:00",
                "2026-04-04T15:00:00",
                "2026-04-04T15:15:00",
            ],
        ),
        // Apia had no 30 December 2011: -10 became +14 at the end of the 29th.
        (
            "0 12 * * *",
            "Pacific/Apia",
            "2011-12-29T00:00:00Z",
            &["2011-12-29T22:00:00", "2011-12-30T10:00:00", "2011-12-30T22:00:00"],
        ),
        // Casablanca, Ramadan 2026: 15 February 03:00 becomes 02:00, 22 March 02:00 becomes 03:00.
        ("30 2 * * *", "Africa/Casablanca", "2026-02-14T12:00:00Z", &["2026-02-15T01:30:00", "2026-02-16T02:30:00"]),
        ("30 2 * * *", "Africa/Casablanca", "2026-03-21T12:00:00Z", &["2026-03-22T02:00:00", "2026-03-23T01:30:00"]),
        // UTC has none of it.
        ("30 2 * * *", "UTC", "2026-03-28T12:00:00Z", &["2026-03-29T02:30:00", "2026-03-30T02:30:00"]),
        ("*/20 * * * * *", "UTC", "2026-03-29T00:59:50Z", &["2026-03-29T01:00:00", "2026-03-29T01:00:20"]),
    ];
    let mut wrong = Vec::new();
    for (expression, zone, after, expected) in cases {
        let found = next(expression, zone, after, expected.len());
        if found != *expected {
            wrong.push(format!("{expression} {zone} after {after}: {found:?}, expected {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Goal: slots only ever go forward, over a year of every zone's transitions, and none falls between two looks.
#[test]
fn slots_increase_and_do_not_depend_on_where_the_search_begins() {
    for zone in ["America/New_York", "Europe/Berlin", "Australia/Lord_Howe", "Pacific/Apia", "Africa/Casablanca", "UTC"]
    {
        for expression in ["*/7 * * * *", "30 2 * * *", "0 */5 * * *", "15,45 1-3 * * *", "0 0 1 * *"] {
            let schedule = Schedule::parse(expression, zone).expect(zone);
            // Across both transitions of the year, and the odd one of Apia.
            for start in
                ["2011-12-28T00:00:00Z", "2026-02-13T00:00:00Z", "2026-03-27T00:00:00Z", "2026-10-30T00:00:00Z"]
            {
                let start = parse_rfc3339(start).expect("a time");
                let slots = schedule.preview(start, 600);
                assert!(slots.windows(2).all(|pair| pair[0] < pair[1]), "{expression} {zone}");
                for pair in slots.windows(2) {
                    for between in [pair[0] + 1, i64::midpoint(pair[0], pair[1]), pair[1] - 1] {
                        assert_eq!(
                            schedule.next(between),
                            Some(pair[1]),
                            "{expression} {zone} after {}",
                            rfc3339(between)
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn days_follow_vixie_cron() {
    // Day of month and weekday both given: either will do; one of them a star: the other decides.
    assert_eq!(
        next("0 0 13 * 5", "UTC", "2026-11-10T00:00:00Z", 3),
        ["2026-11-13T00:00:00", "2026-11-20T00:00:00", "2026-11-27T00:00:00"]
    );
    assert_eq!(next("0 0 13 * *", "UTC", "2026-11-10T00:00:00Z", 2), ["2026-11-13T00:00:00", "2026-12-13T00:00:00"]);
    assert_eq!(next("0 0 * * 7", "UTC", "2026-11-10T00:00:00Z", 1), ["2026-11-15T00:00:00"]);
    assert_eq!(next("0 0 29 2 *", "UTC", "2026-11-10T00:00:00Z", 1), ["2028-02-29T00:00:00"]);
    assert_eq!(next("@daily", "UTC", "2026-11-10T00:00:00Z", 1), ["2026-11-11T00:00:00"]);
    assert_eq!(next("0 8 * * mon-fri", "UTC", "2026-11-13T09:00:00Z", 1), ["2026-11-16T08:00:00"]);
}

#[test]
fn bad_plans_and_zones_are_told_apart() {
    for (expression, zone, is_zone, said) in [
        ("", "UTC", false, "0 fields"),
        ("daily", "UTC", false, "1 field:"),
        ("* * * *", "UTC", false, "4 fields: write five"),
        ("* * * * * * *", "UTC", false, "7 fields"),
        ("60 * * * *", "UTC", false, "its minute '60' is wrong. That field holds 0-59"),
        ("0 0,25 * * *", "UTC", false, "its hour '25' is wrong"),
        ("0 0 * 13 *", "UTC", false, "its month '13' is wrong"),
        ("0 0 32 * *", "UTC", false, "its day of the month '32' is wrong"),
        ("0 0 * * mon-fry", "UTC", false, "its weekday 'mon-fry' is wrong"),
        ("61 0 0 * * *", "UTC", false, "its second '61' is wrong"),
        ("*/x * * * *", "UTC", false, "its minute '*/x' is wrong"),
        ("0 1,,2 * * *", "UTC", false, "in its hour '1,,2' a comma"),
        ("0 0 30 2 *", "UTC", false, "no year has the day of the month '30' in the month '2'"),
        ("@reboot", "UTC", false, "@daily"),
        ("* * * * *", "Europe/Berlun", true, "Is 'Europe/Berlin' meant?"),
        ("* * * * *", "berlin", true, "Is 'Europe/Berlin' meant?"),
        ("* * * * *", "", true, "IANA"),
        ("* * * * *", "+02", true, "IANA"),
    ] {
        match Schedule::parse(expression, zone) {
            Err((zone, reason)) => {
                assert_eq!(zone, is_zone, "{expression}: {reason}");
                assert!(reason.contains(said), "{expression}: {reason}");
            }
            Ok(schedule) => panic!("'{expression}' in '{zone}' was taken as {schedule:?}"),
        }
    }
}

fn read(definition: Value) -> Result<Job, String> {
    let fields = definition.as_object().cloned().expect("an object");
    Job::read(fields).map_err(|wrong| wrong.into_iter().map(|one| one.field).collect::<Vec<_>>().join(","))
}

#[test]
fn definitions_are_read_back_as_written() {
    let job = read(json!({ "expression": "0 8 * * 1-5" })).expect("the least there is");
    assert_eq!((job.timezone.as_str(), job.kind.as_str()), ("UTC", "cron.fired"));
    assert_eq!((job.misfire, job.overlap, job.enabled), (Misfire::RunOnce, Overlap::Skip, true));
    for misfire in [json!("skip"), json!("run_once"), json!({ "run_all": { "max": 3 } }), json!({ "within": "10m" })] {
        let given = json!({
            "expression": "*/5 * * * *", "timezone": "Europe/Berlin", "payload": { "a": [1] }, "type": "a.b",
            "agent_id": "x", "skill": "digest", "misfire": misfire, "overlap": "queue_one", "jitter_s": 7,
            "max_failures": 0, "enabled": false,
        });
        assert_eq!(read(given.clone()).expect("all of it").to_value(), given);
    }
}

#[test]
fn every_wrong_field_is_named() {
    let with = |name: &str, value: Value| {
        let mut definition = json!({ "expression": "* * * * *" });
        definition[name] = value;
        read(definition).err().unwrap_or_default()
    };
    for (name, value) in [
        ("expression", json!("nope")),
        ("expression", json!(5)),
        ("expression", Value::Null),
        ("timezone", json!("Mars/Base")),
        ("type", json!("a..b")),
        ("type", json!("aman.x")),
        ("workflow", json!(1)),
        ("misfire", json!("never")),
        ("misfire", json!({ "run_all": { "max": 0 } })),
        ("misfire", json!({ "run_all": { "max": 101 } })),
        ("misfire", json!({ "within": "0s" })),
        ("misfire", json!({ "within": "1m", "run_all": { "max": 1 } })),
        ("overlap", json!("both")),
        ("jitter_s", json!(-1)),
        ("jitter_s", json!(3601)),
        ("max_failures", json!(1.5)),
        ("enabled", json!("yes")),
        ("skill", json!("")),
        ("nonsense", json!(1)),
    ] {
        assert_eq!(with(name, value.clone()), name, "{name} = {value}");
    }
    assert_eq!(read(json!({ "skill": 1, "overlap": 2 })).err().as_deref(), Some("expression,skill,overlap"));
    for (id, good) in
        [("a", true), ("a-b_c.9", true), ("add", false), ("", false), ("A", false), ("a/b", false), (".a", false)]
    {
        assert_eq!(check_id(id).is_ok(), good, "{id}");
    }
}

/// Goal: a list with nothing in a place is refused at once; looking for no minute at all takes seconds.
#[test]
fn empty_items_of_lists_are_refused() {
    for plan in [", 8 * * *", "0, 8 * * *", "0 ,8 * * *", "0 8 * * 1,,5", "0 8 , * *", ",,,, * * * *"] {
        let (zone, reason) = Schedule::parse(plan, "UTC").expect_err(plan);
        assert!(!zone && reason.contains("comma"), "{plan}: {reason}");
    }
    assert!(Schedule::parse("0,30 8 * * 1,5", "UTC").is_ok());
}
