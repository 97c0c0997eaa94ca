//! `aman model`: the language models that agents ask.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::Call;
use super::failure::Failure;
use super::out::{clean_lines, text};
use super::{Context, PAGE_MAX};

/// What can be done with models.
#[derive(Subcommand, Debug)]
pub enum ModelCommand {
    /// List the models that are known by name, and what they cost
    List(ListArgs),
    /// Ask one model, and see whether and how fast it answers
    Test(TestArgs),
}

/// Lists models.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman model list
  aman model list --json | aman jq -r '.items[].id'

Models come from [providers.<id>] in the configuration; without one, Ollama and llama.cpp are looked for on this machine.
A provider may have more models than it lists here. What answers from a script says so.")]
pub struct ListArgs {}

/// Tries a model.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman model test
  aman model test local/qwen3 --prompt 'What is 2 + 2?'

Asks once, with no retry and no other model in its place; the provider may charge for it. Exit code 1 when there is no
answer.")]
pub struct TestArgs {
    /// The model, as provider/model [default: the one that agents ask]
    model: Option<String>,
    /// What it is asked
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
}

/// Runs `aman model …`.
pub async fn run(context: &mut Context, command: ModelCommand) -> Result<(), Failure> {
    match command {
        ModelCommand::List(_) => list(context).await,
        ModelCommand::Test(args) => test(context, &args).await,
    }
}

async fn list(context: &mut Context) -> Result<(), Failure> {
    let Some(list) = context.list(Call::get("/models"), PAGE_MAX, false).await? else { return Ok(()) };
    if list.items.is_empty() {
        return context.out.line(
            "No model yet. Add a [providers.NAME] to aman.toml (`aman config edit`), or start Ollama or llama.cpp on this \
             machine; daemon/docs/models.md shows how.",
        );
    }
    context.table(&["MODEL", "KIND", "WINDOW", "PRICE", "ROLE", "NOTE"], &list.items, row)
}

fn row(model: &Value) -> Vec<String> {
    let price = &model["price"];
    let price = match (price["input_micros_per_mtok"].as_f64(), price["output_micros_per_mtok"].as_f64()) {
        (Some(input), Some(output)) => format!("{} / {}", input / 1e6, output / 1e6),
        _ => "-".to_owned(),
    };
    let roles: Vec<&str> = model["roles"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let note = match (model["scripted"] == true, model["found"] == true) {
        (true, _) => "scripted: no model thinks",
        (_, true) => "found on this machine",
        _ => "",
    };
    vec![
        text(&model["id"]),
        text(&model["kind"]),
        text(&model["window"]),
        price,
        if roles.is_empty() { "-".to_owned() } else { roles.join(", ") },
        note.to_owned(),
    ]
}

async fn test(context: &mut Context, args: &TestArgs) -> Result<(), Failure> {
    let body = json!({ "model": args.model, "prompt": args.prompt });
    let call = Call::post("/models/test").body("application/json", body.to_string()).lasting();
    let reply = context.call(call).await?;
    let (raw, answer) = (reply.body.clone(), reply.json()?);
    if context.out.json() {
        context.out.raw(&raw)?;
    }
    if answer["outcome"] != "answered" {
        return Err(Failure::Failed(answer["detail"].as_str().unwrap_or("There is no answer.").to_owned()));
    }
    if context.out.json() {
        return Ok(());
    }
    context.out.line(&clean_lines(answer["text"].as_str().unwrap_or_default()))?;
    let usage = &answer["usage"];
    let about = if usage["estimated"] == true { "about " } else { "" };
    let by = if answer["scripted"] == true { " (scripted: no model thinks)" } else { "" };
    context.out.line(&format!(
        "\n{}{by}: first token after {} ms, all of it after {} ms; {about}{} tokens in, {} out.",
        text(&answer["model"]),
        text(&answer["first_token_ms"]),
        text(&answer["total_ms"]),
        text(&usage["input"]),
        text(&usage["output"])
    ))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::fake::Fake;
    use crate::cli::out::tests::Printed;
    use crate::cli::{Cli, Command};

    #[tokio::test]
    async fn models_are_listed_and_tried() {
        let list = "{\"items\":[{\"id\":\"a/m\",\"kind\":\"openai\",\"window\":8192,\"roles\":[\"default\",\"cheap\"],\
                    \"price\":{\"input_micros_per_mtok\":1500000,\"output_micros_per_mtok\":2000000}},\
                    {\"id\":\"demo/script\",\"kind\":\"script\",\"scripted\":true,\"roles\":[]}],\"next_cursor\":null}";
        let good = "{\"model\":\"a/m\",\"outcome\":\"answered\",\"text\":\"ready\",\"first_token_ms\":5,\"total_ms\":9,\
                    \"usage\":{\"input\":3,\"output\":4}}";
        let bad = "{\"model\":\"a/m\",\"outcome\":\"failed\",\"kind\":\"auth\",\"detail\":\"a/m: refused\"}";
        let fake = Fake::answering(&[&Fake::json(200, list), &Fake::json(200, good), &Fake::json(200, bad)]).await;
        let printed = Printed::default();
        let mut context = Context::fake(&fake.base, printed.clone(), false);
        for (line, fails) in [("list", false), ("test a/m --prompt hi", false), ("test", true)] {
            let cli = Cli::parse_from(["aman", "model"].into_iter().chain(line.split(' ')));
            let Command::Model(command) = cli.command else { panic!("{line} is another command") };
            assert_eq!(run(&mut context, command).await.is_err(), fails, "{line}");
        }
        let text = printed.text();
        for wanted in ["1.5 / 2", "default, cheap", "scripted: no model thinks", "ready", "after 5 ms", "3 tokens in"] {
            assert!(text.contains(wanted), "{wanted} in {text}");
        }
    }
}
