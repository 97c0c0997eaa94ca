//! `aman plugin`: what was installed, and what it may do.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::{Call, segment};
use super::failure::Failure;
use super::out::{digest, text, text_or_dash, time};
use super::{Context, PAGE_MAX, Sure, plugin_author};
use crate::package::PACKED_MAX;

/// What can be done with plugins.
#[derive(Subcommand, Debug)]
pub enum PluginCommand {
    /// Install a package, or a new version; shows what it may do, and asks
    Install(InstallArgs),
    /// List all plugins and how they stand
    List(ListArgs),
    /// Show one: what it may do, its routes, how it is
    Show(NameArgs),
    /// Agree to what a waiting version asks for
    Approve(ApproveArgs),
    /// Switch one on; ends the rest of one that failed too often
    Enable(EnableArgs),
    /// Switch one off: its routes are gone, what waits for it waits on
    Disable(DisableArgs),
    /// Go back to the version before
    Rollback(RollbackArgs),
    /// Remove one; its data stay unless --purge-data is given
    Uninstall(UninstallArgs),
    #[command(flatten)]
    Author(plugin_author::AuthorCommand),
}

/// Installs a package.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman plugin install feeds-1.2.0.tar.gz
  aman plugin install feeds-1.2.0.tar.gz --dry-run          only show what it would be and may do
  aman plugin install my-own.tar.gz --allow-unsigned --yes")]
pub struct InstallArgs {
    /// The package, a tar.gz
    file: PathBuf,
    /// Take a package that nobody signed
    #[arg(long)]
    allow_unsigned: bool,
    /// Take a version that is older than the present one
    #[arg(long)]
    allow_downgrade: bool,
    /// Only show what would be
    #[arg(long)]
    dry_run: bool,
    /// Agree to everything that it asks for, without asking
    #[arg(long, short)]
    yes: bool,
}

/// Lists plugins.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  aman plugin list\n  aman plugin list --json | aman jq -r '.items[].name'")]
pub struct ListArgs {}

/// Names a plugin.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  aman plugin show feeds")]
pub struct NameArgs {
    /// Its name
    name: String,
}

/// Agrees.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  aman plugin approve feeds")]
pub struct ApproveArgs {
    /// Its name
    name: String,
    #[command(flatten)]
    sure: Sure,
}

/// Switches on.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  aman plugin enable feeds")]
pub struct EnableArgs {
    /// Its name
    name: String,
}

/// Switches off.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  aman plugin disable feeds")]
pub struct DisableArgs {
    /// Its name
    name: String,
    #[command(flatten)]
    sure: Sure,
}

/// Goes back.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  aman plugin rollback feeds")]
pub struct RollbackArgs {
    /// Its name
    name: String,
    #[command(flatten)]
    sure: Sure,
}

/// Removes.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman plugin uninstall feeds
  aman plugin uninstall feeds --purge-data --yes")]
pub struct UninstallArgs {
    /// Its name
    name: String,
    /// Remove its keys, values and database, too, and forget the key of its publisher
    #[arg(long)]
    purge_data: bool,
    #[command(flatten)]
    sure: Sure,
}

/// Runs `aman plugin …`.
pub async fn run(context: &mut Context, command: PluginCommand) -> Result<(), Failure> {
    match command {
        PluginCommand::Install(args) => install(context, &args).await,
        PluginCommand::List(_) => list(context).await,
        PluginCommand::Show(args) => show(context, &args.name).await,
        PluginCommand::Approve(args) => approve(context, &args).await,
        PluginCommand::Enable(args) => switch(context, &args.name, "enable", "is switched on").await,
        PluginCommand::Disable(args) => {
            context.confirm(args.sure.yes, &format!("Switch the plugin {} off?", args.name))?;
            switch(context, &args.name, "disable", "is switched off").await
        }
        PluginCommand::Rollback(args) => {
            context.confirm(args.sure.yes, &format!("Go back to the version of {} before this one?", args.name))?;
            switch(context, &args.name, "rollback", "is back at its version before").await
        }
        PluginCommand::Uninstall(args) => uninstall(context, &args).await,
        PluginCommand::Author(command) => plugin_author::run(context, command).await,
    }
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// What it may do, a line each.
fn grants(context: &mut Context, head: &str, grants: &Value) -> Result<(), Failure> {
    if items(grants).is_empty() {
        return Ok(());
    }
    context.out.line(head)?;
    items(grants).iter().try_for_each(|grant| context.out.line(&format!("  - {}", text(&grant["text"]))))
}

async fn install(context: &mut Context, args: &InstallArgs) -> Result<(), Failure> {
    let unread = |error: std::io::Error| Failure::Usage(format!("{} cannot be read: {error}.", args.file.display()));
    if std::fs::metadata(&args.file).map_err(unread)?.len() > PACKED_MAX {
        return Err(Failure::Usage(format!("{} has more than 64 MiB, so it is no plugin.", args.file.display())));
    }
    let package = bytes::Bytes::from(std::fs::read(&args.file).map_err(unread)?);
    let call = |dry_run: bool, approve: bool| {
        let call = Call::post("/plugin/install").body("application/gzip", package.clone()).lasting();
        call.header("x-aman-confirm", "yes")
            .query("allow_unsigned", args.allow_unsigned)
            .query("allow_downgrade", args.allow_downgrade)
            .query("dry_run", dry_run)
            .query("approve", approve)
    };
    if args.dry_run {
        let Some(planned) = context.answer(call(true, false)).await? else { return Ok(()) };
        return tell_planned(context, &planned);
    }
    if !args.yes {
        let planned = context.call(call(true, false)).await?.json()?;
        shown_before(context)?;
        tell_planned(context, &planned)?;
        let (name, version) = (text(&planned["name"]), text(&planned["version"]));
        let agreed = if items(&planned["added"]).is_empty() { "" } else { ", and let it do this" };
        context.confirm(false, &format!("Install {name} {version}{agreed}?"))?;
    }
    let Some(done) = context.answer(call(false, true)).await? else { return Ok(()) };
    context.out.line(&format!(
        "{} {} is installed ({}).",
        text(&done["name"]),
        text(&done["version"]),
        text(&done["status"])
    ))
}

/// Refuses to ask for consent to what programs are not shown.
fn shown_before(context: &Context) -> Result<(), Failure> {
    if !context.out.json() {
        return Ok(());
    }
    let why = "With --json nothing is shown to agree to. Look first (--dry-run, or plugin show), then add --yes.";
    Err(Failure::Usage(why.to_owned()))
}

fn tell_planned(context: &mut Context, planned: &Value) -> Result<(), Failure> {
    let signed = match planned["signed_by"].as_str() {
        Some(key) => format!("signed by {key}"),
        None => "not signed".to_owned(),
    };
    let digest = digest(&planned["digest"]);
    context.out.line(&format!(
        "{} {}, {signed}, digest {digest}",
        text(&planned["name"]),
        text(&planned["version"])
    ))?;
    if let Some(before) = planned["replaces"].as_str() {
        context.out.line(&format!("It takes the place of {before}."))?;
        grants(context, "Beyond what you agreed to, it may:", &planned["added"])?;
    } else {
        grants(context, "It may:", &planned["grants"])?;
    }
    if items(&planned["added"]).is_empty() {
        context.out.line("It asks for nothing that needs your consent.")?;
    }
    Ok(())
}

async fn list(context: &mut Context) -> Result<(), Failure> {
    let Some(list) = context.list(Call::get("/plugins"), PAGE_MAX, false).await? else { return Ok(()) };
    if list.items.is_empty() {
        return context
            .out
            .line("No plugin yet. `aman plugin install FILE` installs one, `aman plugin new` begins one of your own.");
    }
    let row = |plugin: &Value| {
        vec![
            text(&plugin["name"]),
            text(&plugin["state"]),
            text_or_dash(&plugin["version"]),
            text_or_dash(&plugin["signed_by"]),
            items(&plugin["routes"]).len().to_string(),
            text_or_dash(&plugin["description"]),
        ]
    };
    context.table(&["NAME", "STATE", "VERSION", "SIGNED BY", "ROUTES", "DESCRIPTION"], &list.items, row)
}

async fn show(context: &mut Context, name: &str) -> Result<(), Failure> {
    let Some(plugin) = context.answer(Call::get(format!("/plugin/{}", segment(name)))).await? else { return Ok(()) };
    let mut pairs = Vec::new();
    for key in ["name", "state", "reason", "version", "description", "digest", "signed_by"] {
        if plugin[key].as_str().is_some_and(|text| !text.is_empty()) {
            pairs.push((key, text(&plugin[key])));
        }
    }
    pairs.push(("changed", time(&plugin["changed_at"])));
    pairs.extend(items(&plugin["routes"]).iter().map(|route| ("route", text(route))));
    for (key, label) in [("url", "listens at"), ("error", "not listening")] {
        if plugin["listener"][key].is_string() {
            pairs.push((label, text(&plugin["listener"][key])));
        }
    }
    for (key, label) in [("pending", "waits"), ("previous", "before")] {
        if plugin[key].is_object() {
            let digest = digest(&plugin[key]["digest"]);
            pairs.push((label, format!("{} (digest {digest})", text(&plugin[key]["version"]))));
        }
    }
    let health = &plugin["health"];
    if health["rests_until"].is_string() {
        pairs.push(("rests until", time(&health["rests_until"])));
        pairs.push(("rests in a row", text(&health["rests"])));
    }
    if health["last_fault"].is_string() {
        pairs.push(("last fault", text(&health["last_fault"])));
    }
    context.out.pairs(&pairs)?;
    grants(context, "It may:", &plugin["granted"])?;
    grants(context, "What waits may besides:", &plugin["pending"]["added"])
}

async fn approve(context: &mut Context, args: &ApproveArgs) -> Result<(), Failure> {
    let plugin = context.call(Call::get(format!("/plugin/{}", segment(&args.name)))).await?.json()?;
    let pending = &plugin["pending"];
    if pending.is_object() && !args.sure.yes {
        shown_before(context)?;
        grants(context, &format!("{} {} may then:", args.name, text(&pending["version"])), &pending["added"])?;
        context.confirm(false, "Agree?")?;
    }
    // Only to what was shown.
    let body = pending["digest"].as_str().map_or_else(|| json!({}), |digest| json!({ "digest": digest }));
    let call = Call::post(format!("/plugin/{}/approve", segment(&args.name))).lasting();
    let call = call.body("application/json", body.to_string()).header("x-aman-confirm", "yes");
    let Some(done) = context.answer(call).await? else { return Ok(()) };
    context.out.line(&format!("{} is {} at {}.", args.name, text(&done["state"]), text(&done["version"])))
}

async fn switch(context: &mut Context, name: &str, action: &str, done: &str) -> Result<(), Failure> {
    let call = Call::post(format!("/plugin/{}/{action}", segment(name))).lasting();
    let Some(_) = context.answer(call.header("x-aman-confirm", "yes")).await? else { return Ok(()) };
    context.out.line(&format!("The plugin {name} {done}."))
}

async fn uninstall(context: &mut Context, args: &UninstallArgs) -> Result<(), Failure> {
    let data = if args.purge_data { " with all its data" } else { "; its data stay" };
    context.confirm(args.sure.yes, &format!("Remove the plugin {}{data}?", args.name))?;
    let call = Call::post(format!("/plugin/{}/uninstall", segment(&args.name))).lasting();
    let call = call.body("application/json", json!({ "purge_data": args.purge_data }).to_string());
    let Some(_) = context.answer(call.header("x-aman-confirm", "yes")).await? else { return Ok(()) };
    context.out.line(&format!("The plugin {} is removed{data}.", args.name))
}
