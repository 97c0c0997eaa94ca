//! `aman config`: what is set, and by whom; changes it in the file, whose comments stay, or in the running daemon.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use toml_edit::{DocumentMut, Item};

use super::client::Call;
use super::failure::{FAILED, Failure};
use super::out::{text, text_or_dash};
use super::{Context, editor};
use crate::config::{self, Config, FILE_BYTES_MAX, Flags, Origin, Overrides, References, SETTINGS};
use crate::error::Error;
use crate::plain;

/// What can be done with the configuration.
#[derive(Subcommand, Debug)]
pub enum ConfigCommand {
    /// Show every setting, or one, and where its value comes from
    Get(GetArgs),
    /// Change settings in the file, and in the running daemon where that works
    Set(SetArgs),
    /// Have the running daemon read its file again, and say what changed and what is wrong
    Reload(ReloadArgs),
    /// Open the file in an editor; it is replaced only by one that is good
    Edit(EditArgs),
    /// Check the file, or another one
    Check(CheckArgs),
    /// Print where the file is
    Path(PathArgs),
}

/// Shows settings.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman config get
  aman config get http.bind
  aman config get --json | aman jq '.items[] | select(.origin != \"default\")'

It asks the running daemon; without one it shows what the next start would use.")]
pub struct GetArgs {
    /// The setting, such as http.bind
    key: Option<String>,
}

/// Changes settings.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman config set log.level debug
  aman config set http.allowed_hosts '[\"aman.local\"]'
  aman config set sources.papers.kind=files sources.papers.path=~/papers   both, or neither
  aman config set sources.papers '{kind = \"files\", path = \"~/papers\"}'
  aman config set --unset log.level sources.papers
  aman config set --override --yes log.level debug   above the file, kept by the daemon, gone with --unset

All that one command sets becomes one change of the file, which is made only when the whole can be used: what needs several
settings, such as a source, is set with all of them at once. Values are TOML; what is no TOML is a text.")]
pub struct SetArgs {
    /// KEY VALUE, or any number of KEY=VALUE; with --unset any number of KEY
    #[arg(required = true, value_name = "SETTING")]
    settings: Vec<String>,
    /// Remove them, so that the layer below holds again
    #[arg(long)]
    unset: bool,
    /// Change the running daemon's overrides, above every other layer, instead of the file
    #[arg(long = "override")]
    overriding: bool,
    /// Do not ask, where the daemon wants a confirmation
    #[arg(long)]
    yes: bool,
}

/// Reads the file again.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman config reload
  aman config reload --dry-run

`aman config set` and `edit` do this by themselves; after a change with another program it is needed. Exit code 1 when
something could not be put in force, 3 when the file cannot be used: the daemon then goes on with what it had.")]
pub struct ReloadArgs {
    /// Say what would change; touch nothing
    #[arg(long)]
    dry_run: bool,
}

/// Edits the file.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  EDITOR=nano aman config edit")]
pub struct EditArgs {}

/// Checks a file.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman config check
  aman config check /tmp/new.toml && cp /tmp/new.toml \"$(aman config path)\"

Exit code 1 when the file cannot be used; what is odd only is told on standard error. Secrets are looked up as this shell can:
one that only the daemon may see, such as a variable of its service, counts as missing here.")]
pub struct CheckArgs {
    /// The file [default: the one that `aman config path` names]
    file: Option<PathBuf>,
}

/// Names the file.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  aman config path")]
pub struct PathArgs {}

/// Runs `aman config …`.
pub async fn run(context: &mut Context, command: ConfigCommand) -> Result<(), Failure> {
    match command {
        ConfigCommand::Get(args) => get(context, args.key.as_deref()).await,
        ConfigCommand::Set(args) if args.overriding => set_override(context, &args).await,
        ConfigCommand::Set(args) => set(context, &args).await,
        ConfigCommand::Reload(args) => reload(context, args.dry_run).await,
        ConfigCommand::Edit(_) => edit(context).await,
        ConfigCommand::Check(args) => check(context, args.file).await,
        ConfigCommand::Path(_) => {
            let file = file(context).await?.display().to_string();
            let shown = if context.out.json() { json!({ "config_file": file }).to_string() } else { file };
            context.out.line(&shown)
        }
    }
}

fn flags(context: &Context) -> Flags {
    Flags::of_client(context.global.home.as_deref())
}

/// The file that the daemon reads; one that runs may have been started with another than the default.
async fn file(context: &Context) -> Result<PathBuf, Failure> {
    let default = context.paths()?.config_file;
    // What --url names may be another machine's daemon, and its file another machine's.
    if context.global.url.is_some() {
        return Ok(default);
    }
    let shown = context.call(Call::get("/runtime/config")).await.and_then(|reply| reply.json());
    Ok(shown.ok().and_then(|shown| shown["config_file"].as_str().map(PathBuf::from)).unwrap_or(default))
}

fn failed(error: Error) -> Failure {
    Failure::Failed(error.chain().join(": "))
}

/// The configuration of the running daemon, else of its next start.
async fn shown(context: &Context) -> Result<Value, Failure> {
    match context.call(Call::get("/runtime/config")).await {
        Ok(reply) => reply.json(),
        Err(Failure::NoDaemon { .. }) => {
            let config = config::load(&flags(context)).map_err(failed)?;
            Ok(
                json!({ "items": config.effective, "warnings": config.warnings, "config_file": config.paths.config_file }),
            )
        }
        Err(other) => Err(other),
    }
}

async fn get(context: &mut Context, key: Option<&str>) -> Result<(), Failure> {
    let document = shown(context).await?;
    let items = document["items"].as_array().cloned().unwrap_or_default();
    let Some(key) = key else {
        if context.out.json() {
            return context.out.line(&document.to_string());
        }
        if let Some(error) = document["error"].as_str() {
            context.out.complain(&format!("Safe mode: {error}"));
        }
        let row = |item: &Value| vec![text(&item["key"]), value_text(&item["value"]), text_or_dash(&item["origin"])];
        return context.out.table(&["KEY", "VALUE", "FROM"], &items.iter().map(row).collect::<Vec<_>>());
    };
    let Some(item) = items.iter().find(|item| item["key"] == key) else {
        let near = config::nearest(key).map_or_else(String::new, |near| format!(" Is '{near}' meant?"));
        return Err(Failure::Usage(format!("There is no setting '{key}'.{near} `aman config get` lists them.")));
    };
    let line = if context.out.json() { item.to_string() } else { value_text(&item["value"]) };
    context.out.line(&line)
}

fn value_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Object(fields) if fields.contains_key("populated") => {
            if value["populated"] == true {
                "(set)".to_owned()
            } else {
                "-".to_owned()
            }
        }
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

/// `text` as the value of `key`: TOML where it is TOML and the setting is no text, else a text.
fn parse_value(key: &str, text: &str) -> toml_edit::Value {
    let setting = SETTINGS.iter().find(|setting| setting.key == key);
    let is_text = setting.is_some_and(|setting| setting.default.is_empty() || setting.default.starts_with('"'));
    let quoted = text.starts_with('"') || text.starts_with('\'');
    match text.parse::<toml_edit::Value>() {
        Ok(value) if !is_text || quoted => value.decorated(" ", ""),
        _ => toml_edit::Value::from(text).decorated(" ", ""),
    }
}

/// Puts `value` at the dotted `key` of a file, or removes it; everything else stays as it is written.
fn changed(file: &str, key: &str, value: Option<toml_edit::Value>) -> Result<String, String> {
    let mut document = file.parse::<DocumentMut>().map_err(|error| {
        let line = error.span().map_or(0, |span| file[..span.start.min(file.len())].matches('\n').count() + 1);
        format!("it is not TOML, line {line}: {}. `aman config edit` mends it.", error.message())
    })?;
    let mut parts: Vec<&str> = key.split('.').collect();
    if parts.len() < 2 || parts.iter().any(|part| part.is_empty()) {
        return Err(format!("'{key}' is no setting: it needs a section, as in http.bind."));
    }
    let last = parts.pop().unwrap_or_default();
    let mut place: &mut dyn toml_edit::TableLike = document.as_table_mut();
    for part in parts {
        if value.is_none() && !place.contains_key(part) {
            return Ok(file.to_owned());
        }
        let entry = place.entry(part).or_insert_with(|| {
            let mut table = toml_edit::Table::new();
            // A table that holds tables only needs no head of its own.
            table.set_implicit(true);
            Item::Table(table)
        });
        place = entry.as_table_like_mut().ok_or_else(|| format!("'{part}' in it is no section."))?;
    }
    match (value, place.get_mut(last)) {
        (None, _) => {
            place.remove(last);
        }
        (Some(mut value), Some(Item::Value(old))) => {
            *value.decor_mut() = old.decor().clone();
            *old = value;
        }
        (Some(value), _) => {
            place.insert(last, Item::Value(value));
        }
    }
    Ok(document.to_string())
}

fn read(file: &Path) -> Result<String, Failure> {
    match plain::read(file, FILE_BYTES_MAX) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(Failure::Failed(format!("{} cannot be read: {error}.", file.display()))),
    }
}

/// Replaces the file by `text`, which was checked.
fn write(file: &Path, text: &str) -> Result<(), Failure> {
    // What a link points to is replaced, not the link.
    let file = fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    let made = file.parent().map_or(Ok(()), fs::create_dir_all);
    made.and_then(|()| config::write_private(&file, text))
        .map_err(|error| Failure::Failed(format!("{} cannot be written: {error}.", file.display())))
}

/// A setting with what it is to be; none = it goes.
type Change = (String, Option<toml_edit::Value>);

impl SetArgs {
    /// What was asked for.
    fn changes(&self) -> Result<Vec<Change>, Failure> {
        if self.unset {
            return Ok(self.settings.iter().map(|key| (key.clone(), None)).collect());
        }
        if let [key, value] = self.settings.as_slice()
            && !key.contains('=')
        {
            return Ok(vec![(key.clone(), Some(parse_value(key, value)))]);
        }
        let pair = |text: &String| match text.split_once('=') {
            Some((key, value)) => Ok((key.trim().to_owned(), Some(parse_value(key.trim(), value)))),
            None => Err(Failure::Usage(format!(
                "'{text}' has no value. Write `aman config set KEY VALUE`, or KEY=VALUE as often as you like."
            ))),
        };
        self.settings.iter().map(pair).collect()
    }
}

async fn set(context: &mut Context, args: &SetArgs) -> Result<(), Failure> {
    let changes = args.changes()?;
    let file = file(context).await?;
    let unchanged = |reason: String| format!("{} was not changed: {reason}", file.display());
    let mut new = read(&file)?;
    for (key, value) in &changes {
        new = changed(&new, key, value.clone()).map_err(|reason| Failure::Failed(unchanged(reason)))?;
    }
    let good = config::check(&flags(context), &new)
        .map_err(|error| Failure::Failed(unchanged(incomplete(error, &changes))))?;
    let unknown = |warning: &&String| changes.iter().any(|(key, value)| value.is_some() && is_about(warning, key));
    if let Some(warning) = good.warnings.iter().find(unknown) {
        return Err(Failure::Usage(unchanged(warning.clone())));
    }
    warn(context, &good);
    write(&file, &new)?;
    for (key, _) in &changes {
        let hidden = good.effective.iter().find(|setting| setting.key == *key && setting.origin > Origin::File);
        if let Some(setting) = hidden {
            let by = if setting.origin == Origin::Env { "a variable" } else { "the command line" };
            context.out.complain(&format!("{key} is set by {by} as well, which wins."));
        }
    }
    let is_there = told(context, &file).await?;
    if !is_there {
        warn_of_secrets(context, &new, &changes);
    }
    Ok(())
}

/// What is wrong; and where a setting is missing beside one that is set, how both are set at once.
fn incomplete(error: Error, changes: &[Change]) -> String {
    let mut said = error.chain().join(": ");
    let Error::Invalid { fields, .. } = &error else { return said };
    let table = |key: &str| key.rsplit_once('.').map(|(table, _)| table.to_owned());
    let beside = |field: &str| changes.iter().any(|(key, _)| key != field && table(key) == table(field));
    if let Some(missing) = fields.iter().map(|one| one.field.as_str()).find(|field| beside(field))
        && let [(key, Some(value))] = changes
    {
        said.push_str(&format!(
            "\n  Set what belongs together at once: aman config set {key}={} {missing}=…",
            value.to_string().trim()
        ));
    }
    said
}

/// Says which of the secrets that the changes name are not there. Only whoever starts the daemon can tell for sure: it may
/// have variables and a keyring that this shell has not.
fn warn_of_secrets(context: &mut Context, text: &str, changes: &[Change]) {
    let named = |value: &toml_edit::Value| json_of(value).is_ok_and(|value| config::holds_reference(&value));
    if !changes.iter().any(|(_, value)| value.as_ref().is_some_and(named)) {
        return;
    }
    let flags = Flags { references: References::Followed, ..flags(context) };
    let Err(Error::Invalid { fields, .. }) = config::check(&flags, text) else { return };
    for one in fields.iter().filter(|one| changes.iter().any(|(key, _)| within(&one.field, key))) {
        let line = format!("{}: {} The daemon needs it to start.", one.field, one.reason);
        context.out.complain(&line);
    }
}

/// Whether the key `inner` is `outer` or below it.
fn within(inner: &str, outer: &str) -> bool {
    inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Whether a warning says that there is no setting `key`, or no section of it.
fn is_about(warning: &str, key: &str) -> bool {
    warning.split_once(" is not a setting").is_some_and(|(shown, _)| within(shown, key) || within(key, shown))
}

fn warn(context: &mut Context, config: &Config) {
    for warning in &config.warnings {
        context.out.complain(warning);
    }
}

/// Says that the file was changed, and what the running daemon made of it; false when there is none.
async fn told(context: &mut Context, file: &Path) -> Result<bool, Failure> {
    let reloaded = match context.call(Call::post("/config/reload")).await {
        Ok(reply) => reply.json()?,
        Err(Failure::NoDaemon { .. }) => Value::Null,
        Err(other) => {
            let what = "the running daemon cannot use it and goes on with what it had. Mend it, or take it back:";
            context.out.complain(&format!("{} is changed; {what} `aman config edit`.", file.display()));
            return Err(other);
        }
    };
    if context.out.json() {
        context.out.line(&json!({ "config_file": file, "reloaded": reloaded }).to_string())?;
    } else {
        context.out.line(&format!("{} is changed.", file.display()))?;
        if reloaded.is_null() {
            context.out.line("No daemon runs; its next start will use it.")?;
        }
        outcome(context, &reloaded, "In force now")?;
    }
    whole(&reloaded)?;
    Ok(!reloaded.is_null())
}

/// A failure when the daemon could not put everything in force.
fn whole(reloaded: &Value) -> Result<(), Failure> {
    let is_whole = reloaded["failed"].as_array().is_none_or(Vec::is_empty);
    if is_whole { Ok(()) } else { Err(Failure::Said(FAILED)) }
}

/// What a reload came to; `applied` says what became of what holds at once.
fn outcome(context: &mut Context, reloaded: &Value, applied: &str) -> Result<(), Failure> {
    let names = |key: &str| {
        let names: Vec<String> = reloaded[key].as_array().into_iter().flatten().map(text).collect();
        names.join(", ")
    };
    for (said, names) in [
        (applied, names("applied")),
        ("In force after a restart", names("requires_restart")),
        ("Overridden by /config/set", names("overridden")),
    ] {
        if !names.is_empty() {
            context.out.line(&format!("{said}: {names}."))?;
        }
    }
    for failed in reloaded["failed"].as_array().into_iter().flatten() {
        let (key, why) = (text(&failed["field"]), text(&failed["reason"]));
        context.out.complain(&format!("{key} could not be put in force, and runs on as it was: {why}"));
    }
    Ok(())
}

async fn reload(context: &mut Context, dry_run: bool) -> Result<(), Failure> {
    let reply = context.call(Call::post("/config/reload").query("dry_run", dry_run)).await?;
    let reloaded = reply.json()?;
    if context.out.json() {
        context.out.raw(&reply.body)?;
        return whole(&reloaded);
    }
    for warning in reloaded["warnings"].as_array().into_iter().flatten() {
        context.out.complain(&text(warning));
    }
    let nothing = ["applied", "failed"].iter().all(|key| reloaded[*key].as_array().is_none_or(Vec::is_empty));
    if nothing {
        context.out.line("Nothing that takes effect now has changed in the file.")?;
    }
    outcome(context, &reloaded, if dry_run { "Would be in force" } else { "In force now" })?;
    whole(&reloaded)
}

async fn set_override(context: &mut Context, args: &SetArgs) -> Result<(), Failure> {
    let changes = args.changes()?;
    let keys: Vec<&str> = changes.iter().map(|(key, _)| key.as_str()).collect();
    context.confirm(args.yes, &format!("Change {} in the running daemon?", keys.join(", ")))?;
    let mut wanted = serde_json::Map::new();
    for (key, value) in &changes {
        wanted.insert(key.clone(), value.as_ref().map(json_of).transpose()?.unwrap_or(Value::Null));
    }
    let body = json!({ "changes": wanted }).to_string();
    let call = Call::post("/config/set").body("application/json", body).header("x-aman-confirm", "yes");
    let Some(answer) = context.answer(call).await? else { return Ok(()) };
    let waiting: Vec<String> = answer["requires_restart"].as_array().into_iter().flatten().map(text).collect();
    for item in answer["items"].as_array().into_iter().flatten() {
        let key = text(&item["key"]);
        let when = if waiting.contains(&key) { "after a restart" } else { "now" };
        context.out.line(&format!("{key} is {} {when}.", value_text(&item["value"])))?;
    }
    Ok(())
}

fn json_of(value: &toml_edit::Value) -> Result<Value, Failure> {
    let table = format!("x = {}", value.to_string().trim());
    let parsed: toml::Table = table.parse().map_err(|_| Failure::Usage("The value is no TOML.".to_owned()))?;
    serde_json::to_value(&parsed["x"]).map_err(|error| Failure::Usage(error.to_string()))
}

async fn edit(context: &mut Context) -> Result<(), Failure> {
    let file = file(context).await?;
    let before = read(&file)?;
    let copy = file.with_extension(format!("edit-{}.toml", std::process::id()));
    write(&copy, &before)?;
    let new = loop {
        let new = match editor::edited(&copy) {
            Ok(new) if new != before => new,
            other => {
                let _gone = fs::remove_file(&copy);
                other?;
                return context.out.line("Nothing was changed.");
            }
        };
        let error = match config::check(&flags(context), &new) {
            Ok(good) => {
                warn(context, &good);
                break new;
            }
            Err(error) => error,
        };
        context.out.complain(&error.to_string());
        if context.out.ask("It cannot be used so. Edit it again?") != Some(true) {
            return Err(editor::kept(&copy, "Nothing was changed"));
        }
    };
    if read(&file)? != before {
        return Err(editor::kept(
            &copy,
            &format!("{} was changed by somebody else meanwhile and was left so", file.display()),
        ));
    }
    write(&file, &new)?;
    let _gone = fs::remove_file(&copy);
    told(context, &file).await.map(drop)
}

async fn check(context: &mut Context, named: Option<PathBuf>) -> Result<(), Failure> {
    let default = context.paths()?.config_file;
    let file = match named {
        Some(file) => Some(file),
        None => Some(file(context).await?).filter(|file| *file != default),
    };
    // Whoever asks for a check wants to know of secrets as well.
    let flags = Flags { config: file, references: References::Followed, ..flags(context) };
    let config = config::load(&flags).map_err(failed)?;
    // A file that is good alone is what is asked for; overrides are the daemon's.
    let config = config.with_overrides(&Overrides::new()).map_err(failed)?;
    warn(context, &config);
    if context.out.json() {
        return context.out.line(&json!({ "ok": true, "warnings": config.warnings }).to_string());
    }
    context.out.line(&format!("{} can be used.", config.paths.config_file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(file: &str, key: &str, value: &str) -> String {
        changed(file, key, Some(parse_value(key, value))).expect("it can be changed")
    }

    #[test]
    fn comments_and_order_stay() {
        let file = "# mine\n[http] # head\n  bind = \"127.0.0.1:1\" # port\n\n# below\n[bus]\nmax_pending = 1\n";
        let new = set(file, "http.bind", "127.0.0.1:2");
        assert_eq!(new, file.replace("127.0.0.1:1", "127.0.0.1:2"));
        let new = set(&new, "bus.max_pending", "20");
        assert!(new.contains("max_pending = 20\n") && new.contains("# below"), "{new}");
        let new = set(&new, "http.strict_confirm", "true");
        assert!(new.contains("strict_confirm = true\n"), "{new}");
        let gone = changed(&new, "bus.max_pending", None).expect("it can be removed");
        assert!(!gone.contains("max_pending") && gone.contains("# mine"), "{gone}");
        assert_eq!(changed(file, "log.level", None).as_deref(), Ok(file));
    }

    #[test]
    fn sections_are_made_and_values_read() {
        let new = set("", "sources.inbox.path", "~/inbox");
        assert_eq!(new, "[sources.inbox]\npath = \"~/inbox\"\n");
        assert_eq!(set("", "log.level", "true"), "[log]\nlevel = \"true\"\n");
        assert_eq!(set("", "http.allowed_hosts", "[\"a\"]"), "[http]\nallowed_hosts = [\"a\"]\n");
        assert_eq!(set("", "bus.dedup_window", "2h"), "[bus]\ndedup_window = \"2h\"\n");
        for (file, key) in [("[http", "http.bind"), ("http = 1", "http.bind"), ("", "bind"), ("", "http..bind")] {
            assert!(changed(file, key, Some(1.into())).is_err(), "{file} {key}");
        }
    }
}
