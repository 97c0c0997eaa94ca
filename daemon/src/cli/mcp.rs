//! `aman mcp`: servers of the Model Context Protocol, whose tools the daemon offers.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::{Call, segment};
use super::failure::Failure;
use super::out::{text, text_or_dash, time};
use super::{Context, PAGE_MAX};

/// What can be done with MCP servers.
#[derive(Subcommand, Debug)]
pub enum McpCommand {
    /// List the configured servers and how they stand
    List(ListArgs),
    /// Show one: its settings, what is wrong with it, its tools
    Show(NameArgs),
    /// Connect to one anew, or start its program again, at once
    Reconnect(ReconnectArgs),
}

/// Lists servers.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman mcp list
  aman mcp list --json | aman jq -r '.items[].tools[].name'")]
pub struct ListArgs {}

/// Names a server.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  aman mcp show files")]
pub struct NameArgs {
    /// Its name, from `mcp list`
    name: String,
}

/// Connects anew.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  aman mcp reconnect files

Calls that are under way there are cut off. A server that ended is connected to again by itself; this does not wait for that.")]
pub struct ReconnectArgs {
    /// Its name, from `mcp list`
    name: String,
}

/// Runs `aman mcp …`.
pub async fn run(context: &mut Context, command: McpCommand) -> Result<(), Failure> {
    match command {
        McpCommand::List(_) => list(context).await,
        McpCommand::Show(args) => show(context, &args.name).await,
        McpCommand::Reconnect(args) => reconnect(context, &args.name).await,
    }
}

async fn list(context: &mut Context) -> Result<(), Failure> {
    let Some(list) = context.list(Call::get("/mcp-servers"), PAGE_MAX, false).await? else { return Ok(()) };
    if list.items.is_empty() {
        let how =
            "No MCP server yet. `aman config set mcp.NAME.command=…` adds a program, `mcp.NAME.url=…` a web service.";
        return context.out.line(how);
    }
    let row = |server: &Value| {
        vec![
            text(&server["name"]),
            text(&server["transport"]),
            text(&server["state"]),
            server["tools"].as_array().map_or(0, Vec::len).to_string(),
            text_or_dash(&server["server"]),
            text_or_dash(&server["protocol"]),
            text_or_dash(&server["detail"]),
        ]
    };
    context.table(&["NAME", "TRANSPORT", "STATE", "TOOLS", "SERVER", "PROTOCOL", "DETAIL"], &list.items, row)
}

async fn show(context: &mut Context, name: &str) -> Result<(), Failure> {
    let Some(server) = context.answer(Call::get(format!("/mcp-server/{}", segment(name)))).await? else {
        return Ok(());
    };
    let mut pairs = Vec::new();
    for key in ["name", "transport", "state", "detail", "server", "protocol", "trust", "pid", "calls", "failures"] {
        if !server[key].is_null() {
            pairs.push((key, text(&server[key])));
        }
    }
    for key in ["since", "next_try_at"] {
        if !server[key].is_null() {
            pairs.push((key, time(&server[key])));
        }
    }
    context.out.pairs(&pairs)?;
    let rows: Vec<Vec<String>> = server["tools"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|tool| vec![text(&tool["name"]), text(&tool["tool"]), text(&tool["repeatable"])])
        .collect();
    context.out.line("\nTools:")?;
    context.out.table(&["NAME", "AT THE SERVER", "REPEATABLE"], &rows)
}

async fn reconnect(context: &mut Context, name: &str) -> Result<(), Failure> {
    let call = Call::post(format!("/mcp-server/{}/reconnect", segment(name)));
    let Some(_) = context.answer(call.body("application/json", json!({}).to_string())).await? else { return Ok(()) };
    context.out.line(&format!("The MCP server {name} is connected to anew; `aman mcp show {name}` says how that goes."))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::fake::Fake;
    use crate::cli::out::tests::Printed;
    use crate::cli::{Cli, Command};

    #[tokio::test]
    async fn servers_are_listed_and_connected_to_anew() {
        let one = "{\"name\":\"a\",\"transport\":\"stdio\",\"state\":\"waiting\",\"detail\":\"it rains\",\"tools\":[{\"name\":\"a_b\"}]}";
        let list = format!("{{\"items\":[{one}],\"next_cursor\":null}}");
        let fake = Fake::answering(&[&Fake::json(200, &list), &Fake::json(200, one), &Fake::json(200, one)]).await;
        let cases =
            [(["list"].as_slice(), "it rains"), (&["show", "a"], "a_b"), (&["reconnect", "a"], "connected to anew")];
        for (words, wanted) in cases {
            let cli = Cli::try_parse_from([&["aman", "mcp"], words].concat()).expect("the words are a command");
            let Command::Mcp(command) = cli.command else { panic!("not an mcp command") };
            let printed = Printed::default();
            let mut context = Context::fake(&fake.base, printed.clone(), false);
            run(&mut context, command).await.expect("it answers");
            assert!(printed.text().contains(wanted), "{}", printed.text());
        }
        assert!(fake.requests()[2].starts_with("POST /mcp-server/a/reconnect "));
    }
}
