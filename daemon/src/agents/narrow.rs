//! What somebody may make of an agent who is not its operator: nothing that reaches further than the agent does already.

use super::Definition;
use crate::error::Error;
use crate::event::Trust;

/// Refuses a definition that is trusted further than `most` (`Invalid`), or that gives the agent something to reach that it does
/// not have now, or something to use or to spend beyond the `limits` that its operator set last (`Forbidden`).
pub(super) fn check(
    before: Option<&Definition>,
    limits: Option<&Definition>,
    wanted: &Definition,
    most: Trust,
) -> Result<(), Error> {
    if wanted.trust > most {
        let reason = format!(
            "must be {} or less, or be left out: what a plugin says an agent is, is trusted no further than the plugin here.",
            most.name()
        );
        return Err(Error::invalid("trust", reason));
    }
    let more = reaches_more(before, wanted).or_else(|| limits.and_then(|limits| loosens(limits, wanted)));
    match more {
        None => Ok(()),
        Some(more) => {
            let reason = format!("{more}. A plugin may not give it that; its operator can, with `aman agent put`.");
            Err(Error::Forbidden { code: "plugin_denied", reason })
        }
    }
}

/// The first of `texts` that is not among `known`, in words.
fn added(key: &str, texts: &[String], known: &[String]) -> Option<String> {
    let new = texts.iter().find(|text| !known.contains(text))?;
    Some(format!("{key} names '{}', which the agent does not have", new.escape_debug()))
}

/// What it would reach besides: folders, hosts, commands, databases, events.
fn reaches_more(before: Option<&Definition>, wanted: &Definition) -> Option<String> {
    let reached = |of: &Definition| {
        let (tools, on) = (&of.tools, of.on.iter().map(|pattern| pattern.as_str().to_owned()).collect::<Vec<_>>());
        [
            ("tools.read", tools.read.clone()),
            ("tools.write", tools.write.clone()),
            ("tools.hosts", tools.hosts.clone()),
            ("tools.exec", tools.exec.clone()),
            ("tools.sqlite", tools.sqlite.clone()),
            ("on", on),
        ]
    };
    let known = before.map(reached).unwrap_or_default();
    let all = reached(wanted).into_iter().zip(known);
    let more = all.into_iter().find_map(|((key, texts), (_, known))| added(key, &texts, &known));
    let when = |of: &Definition| of.when.as_ref().map(|when| when.source().to_owned());
    let other = before.is_some_and(|before| !wanted.on.is_empty() && when(before) != when(wanted));
    more.or_else(|| other.then(|| "'when' would be another condition".to_owned()))
}

/// The limit that would be wider, or gone.
fn loosens(before: &Definition, wanted: &Definition) -> Option<String> {
    let (old, new) = (&before.tools, &wanted.tools);
    if !old.allow.is_empty() && new.allow.is_empty() {
        return Some("without tools.allow it would have all tools".to_owned());
    }
    let allowed = if old.allow.is_empty() { None } else { added("tools.allow", &new.allow, &old.allow) };
    let dropped = [("tools.deny", &old.deny, &new.deny), ("tools.approve", &old.approve, &new.approve)];
    let gone = dropped.into_iter().find_map(|(key, old, new)| {
        let gone = old.iter().find(|text| !new.contains(text))?;
        Some(format!("{key} would no longer name '{}'", gone.escape_debug()))
    });
    let told = if before.skills.iter().any(|pattern| pattern == "*") {
        None
    } else {
        added("skills", &wanted.skills, &before.skills)
    };
    let more = [
        (wanted.recall > before.recall, "recall would grow"),
        (wanted.trust > before.trust, "trust would grow"),
        (old.unattended && !new.unattended, "tools.unattended would be gone"),
    ];
    let more = more.into_iter().find(|(is_more, _)| *is_more).map(|(_, why)| why.to_owned());
    allowed.or(gone).or(told).or(more).or_else(|| spends_more(before, wanted))
}

/// The budget that would grow, or be without end.
fn spends_more(before: &Definition, wanted: &Definition) -> Option<String> {
    let (old, new) = (&before.budget, &wanted.budget);
    let tokens = [
        ("day_tokens", old.day_tokens, new.day_tokens),
        ("session_tokens", old.session_tokens, new.session_tokens),
        ("job_tokens", old.job_tokens, new.job_tokens),
    ];
    let money = [
        ("day_money", old.day_money, new.day_money),
        ("session_money", old.session_money, new.session_money),
        ("job_money", old.job_money, new.job_money),
    ];
    let more = tokens.into_iter().find(|(_, old, new)| *old > 0 && (*new == 0 || new > old)).map(|(key, ..)| key);
    let more = more.or_else(|| {
        money.into_iter().find(|(_, old, new)| *old > 0.0 && (*new == 0.0 || new > old)).map(|(key, ..)| key)
    });
    more.map(|key| format!("budget.{key} would grow"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: each thing that would let an agent do more is refused by name, and everything else is not.
    #[test]
    fn nothing_is_added() {
        let parse = |text: &str| Definition::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        let refused = |before: Option<&str>, wanted: &str| {
            let before = before.map(parse);
            check(before.as_ref(), before.as_ref(), &parse(&format!("trust = \"plugin\"\n{wanted}")), Trust::Plugin)
                .err()
                .map(|error| error.to_string())
        };
        let has = "when = \".data.ok\"\non = [\"a.b\"]\nskills = [\"x-*\"]\n[tools]\nread = [\"~/a\"]\nallow = [\"read\", \"list\"]\n\
                   deny = [\"exec\"]\napprove = [\"list\"]\n[budget]\nday_tokens = 10\nday_money = 1.5\n";
        for (before, wanted, said) in [
            (None, "instructions = \"x\"\n[tools]\nallow = [\"read\"]", None),
            (None, "[tools]\nread = [\"~\"]", Some("tools.read")),
            (None, "[tools]\nhosts = [\"*\"]", Some("tools.hosts")),
            (None, "on = [\"**\"]", Some("on names")),
            (Some(has), has, None),
            (Some(has), &has.replace("\"read\", ", "").replace("10", "5"), None),
            (Some(has), &has.replace("~/a", "~"), Some("tools.read names '~'")),
            (Some(has), &has.replace(".data.ok", "true"), Some("'when'")),
            (Some(has), &has.replace("x-*", "*"), Some("skills")),
            (Some(has), &has.replace("\"list\"]\ndeny", "\"list\", \"*\"]\ndeny"), Some("tools.allow")),
            (Some(has), &has.replace("deny = [\"exec\"]\n", ""), Some("tools.deny")),
            (Some(has), &has.replace("approve = [\"list\"]\n", ""), Some("tools.approve")),
            (Some(has), &has.replace("10", "11"), Some("day_tokens")),
            (Some(has), &format!("recall = 20\n{has}"), Some("recall would grow")),
            (Some(has), &has.replace("day_money = 1.5\n", ""), Some("day_money")),
        ] {
            let why = refused(before, wanted);
            match (said, &why) {
                (None, None) => {}
                (Some(said), Some(why)) => assert!(why.contains(said), "{wanted}: {why}"),
                _ => panic!("{wanted}: {why:?}"),
            }
        }
        // What it has now may be less than what its operator gave, and counts for nothing then.
        let (now, operators) = (parse("trust = \"plugin\"\nrecall = 0"), parse("trust = \"plugin\"\nrecall = 3"));
        let wants = |recall: u32| parse(&format!("trust = \"plugin\"\nrecall = {recall}"));
        assert!(check(Some(&now), Some(&operators), &wants(3), Trust::Plugin).is_ok());
        assert!(check(Some(&operators), Some(&now), &wants(3), Trust::Plugin).is_err());
        let owners = parse("trust = \"owner\"");
        assert!(matches!(check(None, None, &owners, Trust::Plugin), Err(Error::Invalid { .. })));
    }
}
