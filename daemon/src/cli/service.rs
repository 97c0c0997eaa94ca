//! `aman service`: has systemd start the daemon when you log in, and again when it fails. Elsewhere it says what to do.

mod unit;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;

use self::unit::{Unit, is_name, text};
use super::Context;
use super::client::Call;
use super::failure::{FAILED, Failure};
use super::out::text as text_of;
use crate::config;

/// How long systemd may take: a start waits for the daemon to be ready, a stop for its work to end.
const SYSTEMCTL_TIME_MAX: Duration = Duration::from_secs(120);

/// What can be done with the service.
#[derive(Subcommand, Debug)]
pub enum ServiceCommand {
    /// Have systemd start the daemon now, at every login, and after a failure
    Install(InstallArgs),
    /// Undo that; what the daemon stored stays
    Uninstall(UninstallArgs),
    /// Tell whether it is installed and running
    Status(StatusArgs),
}

/// Installs the service.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman service install
  aman service install --dry-run
  aman service install --print > aman.service
  aman --home /srv/aman service install --name aman-work

It writes a unit of your own (`systemctl --user`), starts it and waits until it is ready; no root is needed. To have it run
while you are not logged in: loginctl enable-linger. Variables of this shell are not passed on, so that no secret gets into
the unit; add them with `systemctl --user edit aman`. Where there is no systemd, it says what to do instead.")]
pub struct InstallArgs {
    /// Print the unit and do nothing
    #[arg(long, conflicts_with = "dry_run")]
    print: bool,
    /// Say what would be done and do nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    named: Named,
}

/// Uninstalls the service.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  aman service uninstall   # events, skills and settings stay where they are")]
pub struct UninstallArgs {
    /// Say what would be done and do nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    named: Named,
}

/// Shows the service.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  aman service status\n  aman service status --json\n\nExit code 0 when it runs, else 1: also while it starts, or waits to be\nstarted again after a failure."
)]
pub struct StatusArgs {
    #[command(flatten)]
    named: Named,
}

#[derive(Args, Debug)]
struct Named {
    /// The unit's name, for several daemons with a folder each
    #[arg(long, value_name = "NAME", default_value = "aman")]
    name: String,
}

/// A unit, where it is or would be.
struct Service {
    /// As `aman.service`.
    unit: String,
    file: PathBuf,
}

/// How the service stands.
struct State {
    installed: bool,
    /// What systemd says; none where there is none.
    active: Option<String>,
}

impl State {
    fn name(&self) -> &'static str {
        match (self.installed, self.active.as_deref()) {
            (false, _) => "not_installed",
            (true, Some("active" | "reloading")) => "running",
            // Not ready yet, or waiting to be started again after a failure.
            (true, Some("activating")) => "starting",
            (true, _) => "not_running",
        }
    }
}

/// Runs `aman service …`.
pub async fn run(context: &mut Context, command: ServiceCommand) -> Result<(), Failure> {
    match command {
        ServiceCommand::Install(args) => install(context, &args).await,
        ServiceCommand::Uninstall(args) => uninstall(context, &args).await,
        ServiceCommand::Status(args) => status(context, &args).await,
    }
}

impl Service {
    fn find(context: &Context, named: &Named) -> Result<Service, Failure> {
        if !is_name(&named.name) {
            let reason = "--name: 1 to 40 lower-case letters, digits, '-' and '_', beginning with a letter.";
            return Err(Failure::Usage(reason.to_owned()));
        }
        let paths = context.paths()?;
        // Where XDG puts the person's configuration, which is where systemd looks for units.
        let config = match (paths.portable, config::client_env().config_home, &paths.home_dir) {
            (true, Some(config), _) => config,
            (true, None, Some(home)) => home.join(".config"),
            (true, None, None) => {
                return Err(Failure::Usage("HOME is not set; systemd looks for units there.".to_owned()));
            }
            (false, ..) => paths.config_file.ancestors().nth(2).unwrap_or(Path::new("/")).to_owned(),
        };
        let unit = format!("{}.service", named.name);
        Ok(Service { file: config.join("systemd/user").join(&unit), unit })
    }

    /// The unit that is there; an error when somebody else wrote it.
    fn written(&self) -> Result<Option<String>, Failure> {
        match fs::read_to_string(&self.file) {
            Ok(text) if text.starts_with(unit::MARK) => Ok(Some(text)),
            Ok(_) => Err(Failure::Failed(format!(
                "{} was not written by aman and stays as it is. Move it away, or choose another --name.",
                self.file.display()
            ))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Failure::Failed(format!("{}: {error}.", self.file.display()))),
        }
    }

    async fn state(&self) -> Result<State, Failure> {
        let installed = self.written()?.is_some();
        let shown = systemctl(&["show", "--property=ActiveState", "--value", &self.unit]).await;
        let active = shown.ok().map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
        Ok(State { installed, active })
    }
}

/// Runs `systemctl --user`; the error is what it says, or why it could not be asked.
async fn systemctl(arguments: &[&str]) -> Result<Output, String> {
    let mut command = tokio::process::Command::new("systemctl");
    command.arg("--user").args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = match tokio::time::timeout(SYSTEMCTL_TIME_MAX, command.output()).await {
        Err(_) => return Err(format!("it did not answer within {} s", SYSTEMCTL_TIME_MAX.as_secs())),
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => return Err("there is no systemctl".to_owned()),
        Ok(Err(error)) => return Err(error.to_string()),
        Ok(Ok(output)) => output,
    };
    match output.status.success() {
        true => Ok(output),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ")),
    }
}

async fn tell(arguments: &[&str]) -> Result<(), Failure> {
    let failed = |why| Failure::Failed(format!("systemctl --user {} failed: {why}", arguments.join(" ")));
    systemctl(arguments).await.map(drop).map_err(failed)
}

async fn install(context: &mut Context, args: &InstallArgs) -> Result<(), Failure> {
    let service = Service::find(context, &args.named)?;
    let unit = Unit::of(&context.paths()?)?;
    let wanted = text(&unit)?;
    if args.print {
        return context.out.raw(wanted.as_bytes());
    }
    let there = service.written()?;
    let changed = there.as_deref() != Some(wanted.as_str());
    if let Err(why) = systemctl(&["show", "--property=Version"]).await {
        return without_systemd(context, &service, &unit, &why);
    }
    let state = service.state().await?.name();
    let (running, up) = (state == "running", state != "not_running" && state != "not_installed");
    if args.dry_run {
        let write = if changed { "write" } else { "leave as it is" };
        context.out.line(&format!("Would {write} {}", service.file.display()))?;
        let start = if up && changed { "restart" } else { "enable and start" };
        return context.out.line(&format!("Would {start} {}", service.unit));
    }
    let answers = version(context).await;
    if !up && answers.is_some() {
        let message = "A daemon of this folder runs already, outside the service. Stop it, then try again.";
        return Err(Failure::Failed(message.to_owned()));
    }
    if changed {
        write(&service.file, &wanted)?;
        tell(&["daemon-reload"]).await?;
    }
    tell(&["enable", &service.unit]).await?;
    // After an upgrade the unit is what it was, and the daemon is not what it would start.
    let old = running && answers.is_some_and(|version| version != env!("CARGO_PKG_VERSION"));
    tell(&[if (up && changed) || old { "restart" } else { "start" }, &service.unit]).await?;
    if context.out.json() {
        let shown = json!({ "state": "running", "unit": service.unit, "file": service.file, "changed": changed });
        return context.out.line(&shown.to_string());
    }
    context.out.line(&format!("{} runs, and starts again at every login.", service.unit))?;
    context.out.line("To have it run while you are not logged in: loginctl enable-linger")
}

/// The version of the daemon of this folder that answers; none when none does, or another program has its port.
async fn version(context: &Context) -> Option<String> {
    let client = context.client().ok()?;
    let health = client.call_any(Call::get("/health")).await.ok()?.json().ok()?;
    health["status"].is_string().then_some(())?;
    let status = client.call(Call::get("/runtime/status")).await.and_then(|reply| reply.json());
    Some(status.map_or_else(|_| env!("CARGO_PKG_VERSION").to_owned(), |status| text_of(&status["version"])))
}

fn write(file: &Path, text: &str) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::Failed(format!("{} cannot be written: {error}.", file.display()));
    fs::create_dir_all(file.parent().unwrap_or(Path::new("/"))).map_err(failed)?;
    let making = file.with_extension("service.new");
    fs::write(&making, text).and_then(|()| fs::rename(&making, file)).map_err(failed)
}

/// What to do on a machine whose systemd does not serve this user. Nothing is done, so it is a failure.
fn without_systemd(context: &mut Context, service: &Service, unit: &Unit, why: &str) -> Result<(), Failure> {
    let (command, cron) = (unit.command_line(), unit.cron_line());
    let reason = format!("systemd does not serve this user here ({why}), so no service was installed.");
    if context.out.json() {
        let state = if service.file.exists() { "not_running" } else { "not_installed" };
        let shown = json!({ "state": state, "reason": reason, "cron": cron, "command": command });
        context.out.line(&shown.to_string())?;
        return Err(Failure::Said(FAILED));
    }
    context.out.line(&reason)?;
    context.out.line("Instead, one of these:")?;
    let cron = shell_words::quote(&cron);
    context
        .out
        .line(&format!("  at every start of the machine, by cron:  (crontab -l; printf '%s\\n' {cron}) | crontab -"))?;
    context
        .out
        .line(&format!("  now, until the machine stops:            setsid {command} </dev/null >/dev/null 2>&1 &"))?;
    context.out.line(
        "  another service manager:                 run that command in the foreground; SIGTERM ends it cleanly",
    )?;
    context.out.line("`aman service install --print` prints the unit for a machine with systemd.")?;
    Err(Failure::Said(FAILED))
}

async fn uninstall(context: &mut Context, args: &UninstallArgs) -> Result<(), Failure> {
    let service = Service::find(context, &args.named)?;
    let installed = service.written()?.is_some();
    let data = context.paths()?.data;
    if installed && args.dry_run {
        return context.out.line(&format!(
            "Would stop and disable {}, and remove {}",
            service.unit,
            service.file.display()
        ));
    }
    if installed {
        let systemd = systemctl(&["show", "--property=Version"]).await.is_ok();
        if systemd {
            tell(&["disable", "--now", &service.unit]).await?;
        }
        fs::remove_file(&service.file)
            .map_err(|error| Failure::Failed(format!("{} cannot be removed: {error}.", service.file.display())))?;
        if systemd {
            tell(&["daemon-reload"]).await?;
        }
    }
    if context.out.json() {
        return context.out.line(&json!({ "state": "not_installed", "removed": installed, "data": data }).to_string());
    }
    let done = if installed { "is stopped and removed" } else { "was not installed" };
    context.out.line(&format!("{} {done}. What was stored stays in {}.", service.unit, data.display()))
}

async fn status(context: &mut Context, args: &StatusArgs) -> Result<(), Failure> {
    let service = Service::find(context, &args.named)?;
    let (state, daemon) = (service.state().await?, version(context).await.is_some());
    if context.out.json() {
        let shown = json!({ "state": state.name(), "unit": service.unit, "file": service.file, "systemd": state.active.is_some(),
            "active": state.active, "daemon_answers": daemon });
        context.out.line(&shown.to_string())?;
    } else {
        let shown = match state.name() {
            "running" => format!("{} is installed and running", service.unit),
            "starting" | "not_running" => {
                let active = state.active.as_deref().unwrap_or("systemd does not serve this user here");
                let see = format!("systemctl --user status {}, aman logs", service.unit);
                let how =
                    if state.name() == "starting" { "starts, or waits to be started again" } else { "not running" };
                format!("{} is installed, {how} ({active}). See: {see}", service.unit)
            }
            _ => format!("{} is not installed. `aman service install` does.", service.unit),
        };
        context.out.line(&shown)?;
        if daemon && !["running", "starting"].contains(&state.name()) {
            context.out.line("A daemon of this folder answers all the same; it was started by hand.")?;
        }
    }
    if state.name() == "running" { Ok(()) } else { Err(Failure::Said(FAILED)) }
}
