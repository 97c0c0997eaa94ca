//! `aman skill`: what reacts to events.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::{Call, segment};
use super::failure::Failure;
use super::out::{clean_lines, digest, size, text, text_or_dash, time};
use super::skill_author::{self, AuthorCommand};
use super::{Context, PAGE_MAX, Sure};

/// What can be done with skills.
#[derive(Subcommand, Debug)]
pub enum SkillCommand {
    /// List all skills
    List(ListArgs),
    /// Show one: what it waits for, what it may touch, how it did
    Show(NameArgs),
    /// Print its SKILL.md
    Content(ContentArgs),
    /// Let it react; also trusts a changed one by its digest
    Enable(EnableArgs),
    /// Keep it from reacting
    Disable(DisableArgs),
    /// List the contents it had, newest first
    Versions(NameArgs),
    /// Show what differs between two of them
    Diff(DiffArgs),
    /// Bring an earlier one back
    Rollback(RollbackArgs),
    /// Find skills by words
    Search(SearchArgs),
    /// Read all skill folders again
    Reload(ReloadArgs),
    /// For those who write skills; no daemon is needed
    #[command(flatten)]
    Author(AuthorCommand),
}

/// Lists skills.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  aman skill list\n  aman skill list --json | aman jq -r '.items[].name'")]
pub struct ListArgs {}

/// Names a skill.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  aman skill show inbox-triage")]
pub struct NameArgs {
    /// The skill
    name: String,
}

/// Names a skill whose text is wanted.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  aman skill content inbox-triage")]
pub struct ContentArgs {
    /// The skill
    name: String,
}

/// Enables a skill.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman skill enable folder-digest
  aman skill enable my-skill --digest 9f86d0…      trusts exactly this content; `skill show` prints the digest")]
pub struct EnableArgs {
    /// The skill
    name: String,
    /// The digest that was looked at; refused when the content is another one by now
    #[arg(long)]
    digest: Option<String>,
}

/// Disables a skill.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  aman skill disable inbox-triage")]
pub struct DisableArgs {
    /// The skill
    name: String,
}

/// Compares contents.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman skill diff my-skill                        what the last change was
  aman skill diff my-skill --from 1.0 --to 9f86d0")]
pub struct DiffArgs {
    /// The skill
    name: String,
    /// The older one: a version, or the beginning of a digest [default: the one before]
    #[arg(long, value_name = "VERSION|DIGEST")]
    from: Option<String>,
    /// The newer one [default: the present one]
    #[arg(long, value_name = "VERSION|DIGEST")]
    to: Option<String>,
}

/// Brings a content back.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman skill versions my-skill
  aman skill rollback my-skill 9f86d0
  aman skill rollback my-skill 1.0 --yes

All files become what they were; the present ones stay in the history. It asks first.")]
pub struct RollbackArgs {
    /// Show what would differ; change nothing
    #[arg(long)]
    dry_run: bool,
    /// The skill
    name: String,
    /// A version, or the beginning of a digest, from `skill versions`
    #[arg(value_name = "VERSION|DIGEST")]
    to: String,
    #[command(flatten)]
    sure: Sure,
}

/// Finds skills.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman skill search invoices
  aman skill search 'mail folder'

Every word must be there, or a word that begins so: in the name, the tags, the description or the text.")]
pub struct SearchArgs {
    /// What to look for
    #[arg(required = true)]
    words: Vec<String>,
    /// Show at most this many, best first
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=1000))]
    limit: u64,
}

/// Reads all again.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  aman skill reload")]
pub struct ReloadArgs {}

/// Runs `aman skill …`.
pub async fn run(context: &mut Context, command: SkillCommand) -> Result<(), Failure> {
    match command {
        SkillCommand::List(_) => list(context).await,
        SkillCommand::Show(args) => show(context, &args.name).await,
        SkillCommand::Content(args) => content(context, &args.name).await,
        SkillCommand::Enable(args) => {
            let body = args.digest.map_or_else(|| json!({}), |digest| json!({ "digest": digest }));
            switch(context, &args.name, "enable", &body).await
        }
        SkillCommand::Disable(args) => switch(context, &args.name, "disable", &json!({})).await,
        SkillCommand::Versions(args) => versions(context, &args.name).await,
        SkillCommand::Diff(args) => diff(context, &args).await,
        SkillCommand::Rollback(args) => rollback(context, &args).await,
        SkillCommand::Search(args) => search(context, &args).await,
        SkillCommand::Reload(_) => reload(context).await,
        SkillCommand::Author(command) => skill_author::run(context, command).await,
    }
}

async fn list(context: &mut Context) -> Result<(), Failure> {
    let Some(list) = context.list(Call::get("/skills"), PAGE_MAX, false).await? else { return Ok(()) };
    if list.items.is_empty() {
        return context.out.line("No skill yet. `aman skill reload` reads the folders again and says what is wrong.");
    }
    let row = |skill: &Value| {
        vec![
            text(&skill["name"]),
            state(skill),
            text_or_dash(&skill["version"]),
            triggers(&skill["triggers"]),
            digest(&skill["digest"]),
            text(&skill["description"]),
        ]
    };
    context.table(&["NAME", "STATE", "VERSION", "REACTS TO", "DIGEST", "DESCRIPTION"], &list.items, row)
}

/// Active, disabled or untrusted.
fn state(skill: &Value) -> String {
    match (skill["standing"].as_str(), skill["enabled"].as_bool()) {
        (Some(_), _) => text(&skill["standing"]),
        (None, Some(true)) => "enabled".to_owned(),
        (None, Some(false)) => "disabled".to_owned(),
        (None, None) => "-".to_owned(),
    }
}

/// Triggers are texts, or objects with a type pattern or a schedule.
fn triggers(triggers: &Value) -> String {
    let one = |trigger: &Value| match trigger.as_object() {
        None => text(trigger),
        Some(parts) => {
            let known = ["on", "schedule"].iter().find_map(|name| parts.get(*name));
            known.map_or_else(|| text(trigger), text)
        }
    };
    match triggers {
        Value::Array(all) => all.iter().map(one).collect::<Vec<_>>().join(" "),
        other => one(other),
    }
}

async fn show(context: &mut Context, name: &str) -> Result<(), Failure> {
    let Some(skill) = context.answer(Call::get(format!("/skill/{}", segment(name)))).await? else { return Ok(()) };
    let mut pairs = vec![("name", text(&skill["name"])), ("state", state(&skill))];
    for key in ["reason", "description", "version", "kind", "digest", "path"] {
        if !skill[key].is_null() {
            pairs.push((key, text(&skill[key])));
        }
    }
    for trigger in skill["triggers"].as_array().map(Vec::as_slice).unwrap_or_default() {
        let when = text(&trigger["when"]);
        let when = if when.is_empty() { when } else { format!(" when {when}") };
        pairs.push(("reacts to", format!("{}{when}", triggers(trigger))));
    }
    const SHOWN: [&str; 11] = [
        "name",
        "standing",
        "enabled",
        "trusted",
        "reason",
        "description",
        "version",
        "kind",
        "digest",
        "path",
        "triggers",
    ];
    // The rest, permissions and counters among it, is shown under its own names.
    for (key, value) in skill.as_object().into_iter().flatten() {
        if !SHOWN.contains(&key.as_str()) && *value != json!([]) {
            pairs.push((key, listed(value)));
        }
    }
    context.out.pairs(&pairs)
}

/// A value of one or two levels as words: `read: /a /b, net: none`.
fn listed(value: &Value) -> String {
    match value {
        Value::Array(all) if all.is_empty() => "-".to_owned(),
        Value::Array(all) => all.iter().map(text).collect::<Vec<_>>().join(" "),
        Value::Object(parts) => {
            let parts = parts.iter().filter(|(_, value)| !value.is_null());
            parts.map(|(name, value)| format!("{name}: {}", listed(value))).collect::<Vec<_>>().join(", ")
        }
        other => text_or_dash(other),
    }
}

async fn content(context: &mut Context, name: &str) -> Result<(), Failure> {
    let call = Call::get(format!("/skill/{}/content", segment(name)));
    let Some(answer) = context.answer(call).await? else { return Ok(()) };
    let content = answer["content"].as_str().unwrap_or_default();
    context.out.raw(clean_lines(content).as_bytes())
}

async fn switch(context: &mut Context, name: &str, what: &str, body: &Value) -> Result<(), Failure> {
    let call = Call::post(format!("/skill/{}/{what}", segment(name))).body("application/json", body.to_string());
    let Some(answer) = context.answer(call).await? else { return Ok(()) };
    let digest = digest(&answer["digest"]);
    let at = if digest.is_empty() { String::new() } else { format!(" (digest {digest})") };
    context.out.line(&format!("Skill {name} is {what}d{at}."))
}

async fn versions(context: &mut Context, name: &str) -> Result<(), Failure> {
    let call = Call::get(format!("/skill/{}/versions", segment(name)));
    let Some(list) = context.list(call, PAGE_MAX, false).await? else { return Ok(()) };
    let row = |one: &Value| {
        let current = if one["current"] == true { "now" } else { "-" };
        let digest = digest(&one["digest"]);
        vec![text(&one["version"]), digest, time(&one["created_at"]), current.to_owned()]
    };
    context.table(&["VERSION", "DIGEST", "SINCE", "CURRENT"], &list.items, row)
}

async fn diff(context: &mut Context, args: &DiffArgs) -> Result<(), Failure> {
    let call = Call::get(format!("/skill/{}/diff", segment(&args.name)))
        .query_some("from", args.from.as_ref())
        .query_some("to", args.to.as_ref());
    let Some(answer) = context.answer(call).await? else { return Ok(()) };
    show_diff(context, &answer)
}

fn show_diff(context: &mut Context, answer: &Value) -> Result<(), Failure> {
    let files = answer["files"].as_array().map(Vec::as_slice).unwrap_or_default();
    if files.is_empty() {
        return context.out.line("Nothing differs.");
    }
    for file in files {
        let what = format!("{}: {}", text(&file["change"]), text(&file["path"]));
        match file["diff"].as_str() {
            Some(diff) => {
                context.out.line(&what)?;
                context.out.raw(clean_lines(diff).as_bytes())?;
            }
            None => {
                let sizes: Vec<String> =
                    ["old_size", "new_size"].iter().filter_map(|key| file[key].as_u64()).map(size).collect();
                context.out.line(&format!("{what} (no text, or too long to compare: {})", sizes.join(" → ")))?;
            }
        }
    }
    Ok(())
}

async fn search(context: &mut Context, args: &SearchArgs) -> Result<(), Failure> {
    let call = Call::get("/skills/search").query("q", args.words.join(" "));
    let Some(list) = context.list(call, args.limit, false).await? else { return Ok(()) };
    if list.items.is_empty() {
        return context.out.line("No skill has all of these words.");
    }
    let row = |hit: &Value| vec![text(&hit["name"]), text(&hit["field"]), text(&hit["snippet"])];
    context.table(&["NAME", "FOUND IN", "TEXT"], &list.items, row)
}

async fn rollback(context: &mut Context, args: &RollbackArgs) -> Result<(), Failure> {
    let path = format!("/skill/{}/rollback", segment(&args.name));
    // What looks like a digest and is none is a version all the same: the daemon knows both by either name.
    let body = json!({ "digest": args.to });
    let call = Call::post(path).body("application/json", body.to_string()).header("x-aman-confirm", "yes");
    if args.dry_run {
        let Some(answer) = context.answer(call.query("dry_run", "true")).await? else { return Ok(()) };
        return show_diff(context, &answer);
    }
    context.confirm(args.sure.yes, &format!("Replace all files of {} by those of {}?", args.name, args.to))?;
    let Some(answer) = context.answer(call).await? else { return Ok(()) };
    let digest = digest(&answer["digest"]);
    context.out.line(&format!("{} is {} again (digest {digest}).", args.name, text_or_dash(&answer["version"])))
}

async fn reload(context: &mut Context) -> Result<(), Failure> {
    let reply = context.call(Call::post("/skills/reload")).await?;
    let answer = reply.json()?;
    let failed = answer["failed"].as_array().map(Vec::as_slice).unwrap_or_default();
    if context.out.json() {
        context.out.raw(&reply.body)?;
    } else {
        for key in ["added", "changed", "removed"] {
            let names = answer[key].as_array().map(Vec::as_slice).unwrap_or_default();
            let names: Vec<String> =
                names.iter().map(|one| if one.is_object() { text(&one["name"]) } else { text(one) }).collect();
            context
                .out
                .line(&format!("{key}: {}", if names.is_empty() { "-".to_owned() } else { names.join(", ") }))?;
        }
        for one in failed {
            context.out.line(&format!("failed: {}: {}", text(&one["path"]), text(&one["error"])))?;
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(Failure::Said(super::failure::FAILED)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::fake::Fake;
    use crate::cli::out::tests::Printed;

    #[tokio::test]
    async fn a_reload_with_a_broken_skill_fails_and_says_which() {
        let body = r#"{"added":["a"],"changed":[],"removed":[],"failed":[{"path":"/x/SKILL.md","error":"no name"}]}"#;
        let fake = Fake::answering(&[&Fake::json(200, body)]).await;
        let printed = Printed::default();
        let mut context = Context::fake(&fake.base, printed.clone(), false);
        let failure = run(&mut context, SkillCommand::Reload(ReloadArgs {})).await.expect_err("one is broken");
        assert_eq!(failure.code(), 1);
        assert_eq!(printed.text(), "added: a\nchanged: -\nremoved: -\nfailed: /x/SKILL.md: no name\n");
    }

    #[test]
    fn states_and_triggers() {
        assert_eq!(state(&json!({ "enabled": true })), "enabled");
        assert_eq!(state(&json!({ "enabled": true, "standing": "untrusted" })), "untrusted");
        assert_eq!(
            listed(&json!({ "read": ["/a", "/b"], "write": [], "net": "none" })),
            "net: none, read: /a /b, write: -"
        );
        assert_eq!(
            triggers(&json!(["a.*", { "on": "b.**", "when": ".x" }, { "schedule": "0 8 * * *" }])),
            "a.* b.** 0 8 * * *"
        );
    }
}
