//! `aman approve`: calls of tools that wait for an answer, and the rules that were made of answers.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::Context;
use super::client::Call;
use super::failure::Failure;
use super::out::{clean_lines, text, text_or_dash, time};

/// Shows what waits, or answers it.
#[derive(Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  aman approve                       what waits for an answer
  aman approve 0193…                 shows it, and asks
  aman approve 0193… --yes
  aman approve 0193… --yes --remember always
  aman approve 0193… --no
  aman approve rules

The first answer counts. What is shown is what runs: if anything of it changes before, it does not run. With
--remember, like calls pass without asking; the pattern says which, and `aman approve revoke` ends it."
)]
pub struct ApproveArgs {
    #[command(subcommand)]
    command: Option<ApproveCommand>,
    /// Its id, or a beginning of it; without one all are listed
    id: Option<String>,
    /// Let it run
    #[arg(long, requires = "id")]
    yes: bool,
    /// Refuse it
    #[arg(long, requires = "id", conflicts_with = "yes")]
    no: bool,
    /// For how long the yes holds
    #[arg(long, value_parser = ["once", "session", "always"], default_value = "once", conflicts_with = "no")]
    remember: String,
}

/// What can be done with rules.
#[derive(Subcommand, Debug)]
pub enum ApproveCommand {
    /// List what passes without asking
    #[command(after_help = "Example:\n  aman approve rules")]
    Rules,
    /// End a rule: like calls are asked about again
    Revoke(RevokeArgs),
}

/// Ends a rule.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  aman approve revoke 0193…")]
pub struct RevokeArgs {
    /// Its id, from `approve rules`
    id: String,
}

/// Runs `aman approve …`.
pub async fn run(context: &mut Context, args: ApproveArgs) -> Result<(), Failure> {
    match (args.command, args.id) {
        (Some(ApproveCommand::Rules), _) => rules(context).await,
        (Some(ApproveCommand::Revoke(args)), _) => revoke(context, &args.id).await,
        (None, None) => list(context).await,
        (None, Some(id)) => {
            let answer = if args.yes { Some(true) } else { args.no.then_some(false) };
            respond(context, &id, answer, &args.remember).await
        }
    }
}

async fn list(context: &mut Context) -> Result<(), Failure> {
    let Some(list) = context.list(Call::get("/tool-auth/pending"), 1000, false).await? else { return Ok(()) };
    if list.items.is_empty() {
        return context.out.line("Nothing waits for an answer. `aman approve rules` shows what passes without asking.");
    }
    let who = |one: &Value| text(if one["agent"].is_string() { &one["agent"] } else { &one["principal"] });
    let row = |one: &Value| {
        vec![text(&one["id"]), who(one), text(&one["pattern"]), text(&one["reason"]), time(&one["expires_at"])]
    };
    context.table(&["ID", "WHO", "CALL", "WHY IT IS ASKED", "EXPIRES"], &list.items, row)?;
    context.out.line("`aman approve ID` shows one, and asks.")
}

/// The one that waits whose id begins so.
async fn waiting(context: &Context, id: &str) -> Result<Value, Failure> {
    let items = context.every_item(Call::get("/tool-auth/pending")).await?;
    let mut found = items.into_iter().filter(|one| one["id"].as_str().is_some_and(|known| known.starts_with(id)));
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one),
        (Some(_), Some(_)) => Err(Failure::Usage(format!("Several ids begin with {id}. Give more of it."))),
        (None, _) => Err(Failure::Failed(format!(
            "No approval '{id}' waits. It may be answered or expired: `aman audit list --action approval.respond`."
        ))),
    }
}

async fn respond(context: &mut Context, id: &str, answer: Option<bool>, remember: &str) -> Result<(), Failure> {
    let asked = waiting(context, id).await?;
    let approved = match answer {
        Some(answer) => answer,
        None if context.out.json() => {
            return Err(Failure::Usage(
                "With --json answer with --yes or --no; `aman approve --json` shows it.".to_owned(),
            ));
        }
        None => {
            show(context, &asked)?;
            match context.out.ask("May it?") {
                Some(answer) => answer,
                None => {
                    return Err(Failure::Usage(
                        "Answer with --yes or --no; no terminal is there to ask on.".to_owned(),
                    ));
                }
            }
        }
    };
    let body = json!({ "auth_id": asked["id"], "approved": approved, "remember": remember });
    let call = Call::post("/tool-auth/respond").body("application/json", body.to_string());
    let Some(answered) = context.answer(call).await? else { return Ok(()) };
    let id = text(&answered["id"]);
    match (approved, remember) {
        (false, _) => context.out.line(&format!("{id} is refused.")),
        (true, "once") => context.out.line(&format!("{id} may run, once.")),
        (true, "session") => {
            context.out.line(&format!("{id} may run; in this session so may {}.", text(&answered["pattern"])))
        }
        (true, _) => context.out.line(&format!("{id} may run; from now on so may {}.", text(&answered["pattern"]))),
    }
}

fn show(context: &mut Context, asked: &Value) -> Result<(), Failure> {
    let mut pairs: Vec<(&str, String)> = ["tool", "source", "agent", "session", "principal", "trust", "reason"]
        .iter()
        .map(|name| (*name, text_or_dash(&asked[*name])))
        .collect();
    pairs.push(("pattern", text(&asked["pattern"])));
    pairs.push(("expires", time(&asked["expires_at"])));
    context.out.pairs(&pairs)?;
    let arguments = serde_json::to_string_pretty(&asked["arguments"]).unwrap_or_default();
    context.out.line(&format!("arguments:\n{}", clean_lines(&arguments)))?;
    match asked["preview"].as_str() {
        Some(preview) => context.out.line(&format!("It {}", clean_lines(preview))),
        None => Ok(()),
    }
}

async fn rules(context: &mut Context) -> Result<(), Failure> {
    let Some(list) = context.list(Call::get("/tool-auth/rules"), 1000, false).await? else { return Ok(()) };
    if list.items.is_empty() {
        return context.out.line("There are no rules: everything that needs an approval is asked about.");
    }
    let row = |one: &Value| {
        vec![
            text(&one["id"]),
            text(&one["pattern"]),
            text(&one["source"]),
            text_or_dash(&one["agent"]),
            text_or_dash(&one["session"]),
            text(&one["uses"]),
            text(&one["principal"]),
            time(&one["created_at"]),
        ]
    };
    context.table(&["ID", "ALLOWS", "OF", "AGENT", "SESSION", "USES", "BY", "SINCE"], &list.items, row)
}

async fn revoke(context: &mut Context, id: &str) -> Result<(), Failure> {
    let Some(_) = context.answer(Call::delete("/tool-auth/rules").query("id", id)).await? else { return Ok(()) };
    context.out.line(&format!("{id} is revoked: like calls are asked about again."))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::fake::Fake;
    use crate::cli::out::tests::Printed;
    use crate::cli::{Cli, Command};

    #[tokio::test]
    async fn approvals_are_listed_answered_and_rules_revoked() {
        let one = "{\"id\":\"a-1\",\"tool\":\"exec\",\"pattern\":\"exec: git status *\",\"reason\":\"It runs a command.\",\
                   \"agent\":\"aman\",\"arguments\":{\"argv\":[\"git\"]}}";
        let list = format!("{{\"items\":[{one}],\"next_cursor\":null}}");
        let answers = [&list, &list, one, &list, "{\"deleted\":true}"].map(|body| Fake::json(200, body));
        let fake = Fake::answering(&answers.each_ref().map(String::as_str)).await;
        for (words, wanted) in [
            ([].as_slice(), "git status"),
            (&["a-", "--yes", "--remember", "always"], "so may exec: git status *"),
            (&["rules"], "exec: git status *"),
            (&["revoke", "r-1"], "r-1 is revoked"),
        ] {
            let cli = Cli::try_parse_from([&["aman", "approve"], words].concat()).expect("the words are a command");
            let Command::Approve(args) = cli.command else { panic!("not approve") };
            let printed = Printed::default();
            let mut context = Context::fake(&fake.base, printed.clone(), false);
            run(&mut context, args).await.expect("it works");
            assert!(printed.text().contains(wanted), "{}", printed.text());
        }
        let asked = fake.requests();
        assert!(asked[2].ends_with("{\"approved\":true,\"auth_id\":\"a-1\",\"remember\":\"always\"}"), "{}", asked[2]);
    }
}
