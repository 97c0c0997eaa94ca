//! `aman token`: tokens for other programs, with no more rights than they need. `aman open`: the way into the page.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::Call;
use super::failure::{Failure, unexpected};
use super::out::{text, text_or_dash, time};
use super::{Context, Paging};

/// What can be done with tokens.
#[derive(Subcommand, Debug)]
pub enum TokenCommand {
    /// Mint a token; it is shown once
    Create(CreateArgs),
    /// List the minted tokens, without the tokens themselves
    List(ListArgs),
    /// End a token at once, with the sessions and streams that it opened
    Revoke(RevokeArgs),
}

/// Mints a token.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman token create phone --scope events:read
  aman token create ci --scope events:read,events:write --ttl 90d
  TOKEN=$(aman token create ci --scope events:write --quiet)

Scopes: events:read, events:write, chat, admin; admin includes all.")]
pub struct CreateArgs {
    /// The name that it acts under, in events and in the audit log
    name: String,
    /// What it may do, separated by commas
    #[arg(long, value_name = "SCOPES")]
    scope: String,
    /// How long it is good, such as 12h or 90d [default: 30d]
    #[arg(long, value_name = "TIME")]
    ttl: Option<String>,
    /// Print the token only
    #[arg(long, short)]
    quiet: bool,
}

/// Lists tokens.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  aman token list\n  aman token list --all --json")]
pub struct ListArgs {
    #[command(flatten)]
    paging: Paging,
}

/// Revokes a token.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  aman token revoke 0193…   # the id that `aman token list` shows")]
pub struct RevokeArgs {
    /// Its id
    id: String,
}

/// Prints a login URL.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman open
  xdg-open \"$(aman open)\"

It prints an address for a browser on this machine. It logs in once, within five minutes.")]
pub struct OpenArgs {}

/// Runs `aman token …`.
pub async fn run(context: &mut Context, command: TokenCommand) -> Result<(), Failure> {
    match command {
        TokenCommand::Create(args) => create(context, &args).await,
        TokenCommand::List(args) => list(context, &args).await,
        TokenCommand::Revoke(args) => revoke(context, &args).await,
    }
}

async fn create(context: &mut Context, args: &CreateArgs) -> Result<(), Failure> {
    let mut body = json!({ "sub": args.name, "scope": args.scope.replace(',', " ") });
    if let Some(ttl) = &args.ttl {
        body["ttl"] = ttl.as_str().into();
    }
    let call = Call::post("/auth/token").body("application/json", body.to_string());
    let Some(made) = context.answer(call).await? else { return Ok(()) };
    let token = made["token"].as_str().ok_or_else(|| unexpected("token", &made))?;
    if args.quiet {
        return context.out.line(token);
    }
    context.out.pairs(&[
        ("token", token.to_owned()),
        ("id", text(&made["id"])),
        ("name", text(&made["sub"])),
        ("scope", text(&made["scope"])),
        ("good until", time(&made["expires_at"])),
    ])?;
    context.out.line("It is not shown again. Send it as 'Authorization: Bearer <token>'.")
}

async fn list(context: &mut Context, args: &ListArgs) -> Result<(), Failure> {
    let call = Call::get("/auth/token");
    let Some(list) = context.list(call, args.paging.limit, args.paging.all).await? else { return Ok(()) };
    if list.items.is_empty() {
        return context.out.line("No token was made besides the daemon's own. `aman token create` makes one.");
    }
    let row = |token: &Value| {
        vec![
            text(&token["id"]),
            text(&token["sub"]),
            text(&token["scope"]),
            text(&token["status"]),
            time(&token["expires_at"]),
            text_or_dash(&token["minted_by"]),
        ]
    };
    context.rows(&["ID", "NAME", "SCOPE", "STATUS", "GOOD UNTIL", "MINTED BY"], &list, row)
}

async fn revoke(context: &mut Context, args: &RevokeArgs) -> Result<(), Failure> {
    let Some(_) = context.answer(Call::delete("/auth/token").query("id", &args.id)).await? else { return Ok(()) };
    context.out.line("Revoked. What it had opened is closed within seconds.")
}

/// Runs `aman open`.
pub async fn open(context: &mut Context, _args: &OpenArgs) -> Result<(), Failure> {
    let base = address(context)?;
    let Some(made) = context.answer(Call::post("/auth/open")).await? else { return Ok(()) };
    let path = made["path"].as_str().ok_or_else(|| unexpected("path", &made))?;
    context.out.line(&format!("{base}{path}"))
}

/// Where a browser finds the daemon, also when this program reaches it by its Unix socket.
fn address(context: &Context) -> Result<String, Failure> {
    let base = context.client()?.base().to_owned();
    if !base.starts_with("unix:") {
        return Ok(base);
    }
    let file = context.paths()?.address_file;
    let written = std::fs::read_to_string(&file);
    let written = written.map_err(|error| Failure::Failed(format!("{} cannot be read: {error}.", file.display())))?;
    Ok(written.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::fake::Fake;
    use crate::cli::out::tests::Printed;

    #[tokio::test]
    async fn scripts_get_the_token_alone() {
        let fake = Fake::answering(&[&Fake::json(201, r#"{"token":"a.b.c","id":"1"}"#)]).await;
        let printed = Printed::default();
        let mut context = Context::fake(&fake.base, printed.clone(), false);
        let (name, scope) = ("ci".to_owned(), "events:read,chat".to_owned());
        let args = CreateArgs { name, scope, ttl: Some("1h".to_owned()), quiet: true };
        run(&mut context, TokenCommand::Create(args)).await.expect("it is minted");
        assert_eq!(printed.text(), "a.b.c\n");
        let sent = &fake.requests()[0];
        assert!(sent.ends_with(r#"{"scope":"events:read chat","sub":"ci","ttl":"1h"}"#), "{sent}");
    }

    #[tokio::test]
    async fn the_login_url_is_whole() {
        let fake = Fake::answering(&[&Fake::json(201, r#"{"path":"/auth/open?code=12"}"#)]).await;
        let printed = Printed::default();
        let mut context = Context::fake(&fake.base, printed.clone(), false);
        open(&mut context, &OpenArgs {}).await.expect("it answers");
        assert_eq!(printed.text(), format!("{}/auth/open?code=12\n", fake.base));
    }
}
