//! The program `aman`: arguments, configuration, start, wait for a signal, exit code; nothing else.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use aman::cli::{Cli, Command, Files, Running, ServeArgs, SkillFiles, Trial};
use aman::clock::Clock;
use aman::config::{self, Config, Flags, Paths};
use aman::error::Error;
use aman::plugins;
use aman::skills::{self, author};
use aman::start;
use aman::store::backup::{self, Place};
use aman::store::check;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

/// How long work that only reads may go on after the end.
const READERS_TIME_MAX: Duration = Duration::from_secs(2);

/// What the command line does with the database's files itself.
const FILES: Files = Files {
    backup: |paths, to, force| backup::make(place(paths), to, force).map(|made| json!(made)),
    restore: |from, to| {
        let paths = Paths::under(to.to_owned(), None);
        backup::restore(from, place(&paths), Clock::System.now_ms()).map(|made| json!(made))
    },
    check: |file| check::file(file).map(|report| json!(report)),
    skills: SkillFiles {
        make: |name, parent| author::make(name, parent).map(|made| json!(made)),
        check: |folder, paths| {
            let places = skills::Places { home: paths.home_dir.clone(), data: paths.data.clone() };
            Ok(json!(author::check(folder, &places)))
        },
        run: try_skill,
    },
};

fn try_skill(trial: Trial<'_>) -> Running<'_> {
    Box::pin(async move {
        let config = config::load(&Flags::of_client(trial.home))?;
        let settings = start::skill_settings(&config);
        let tried = author::run(trial.folder, trial.event.as_bytes(), trial.anyway, &settings).await?;
        Ok(json!(tried))
    })
}

fn place(paths: &Paths) -> Place<'_> {
    Place { db: &paths.db_file, plugins: &paths.plugin_data }
}

fn main() -> ExitCode {
    // First of all, before any thread: a confined command begins by running this program once more.
    if std::env::args_os().nth(1).is_some_and(|arg| arg == "__sandbox") {
        std::process::exit(aman::sandbox::child_main());
    }
    if let Some(output) = plugins::compiles() {
        std::process::exit(plugins::compile_main(&output));
    }
    let cli = Cli::read();
    match &cli.command {
        Command::Jq(args) => return aman::cli::run_jq(args),
        Command::Serve(args) => {
            let flags = flags(&cli, args);
            return match serve(&flags) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => fail(&error),
            };
        }
        _ => {}
    }
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(aman::cli::run(cli, FILES)),
        Err(error) => fail(&Error::internal("starting the runtime")(error)),
    }
}

fn flags(cli: &Cli, args: &ServeArgs) -> Flags {
    let (config, bind, log) = (args.config.clone(), args.bind.clone(), args.log.clone());
    Flags { home: cli.global.home.clone(), config, bind, log, ..Flags::default() }
}

fn serve(flags: &Flags) -> Result<(), Error> {
    let config = config::load_or_last_good(flags)?;
    aman::telemetry::init(&config.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_name("aman")
        .enable_all()
        .build()
        .map_err(Error::internal("starting the runtime"))?;
    let ended = runtime.block_on(run(config));
    // Everything is stored by now; what still reads, such as a copy of the database that is being made, is not waited for.
    runtime.shutdown_timeout(READERS_TIME_MAX);
    if let Err(error) = &ended {
        aman::telemetry::note("ERROR", "aman", &error.chain().join(": "));
    }
    aman::telemetry::flush();
    ended
}

async fn run(config: Config) -> Result<(), Error> {
    let catch = |kind| signal(kind).map_err(Error::internal("listening for signals"));
    let (mut terminate, mut interrupt) = (catch(SignalKind::terminate())?, catch(SignalKind::interrupt())?);
    // A terminal that closes, and its quit key, end the daemon as cleanly.
    let (mut hangup, mut quit) = (catch(SignalKind::hangup())?, catch(SignalKind::quit())?);
    // Their default would kill it; tools that mean other programs send them, as after the rotation of logs.
    let (mut user1, mut user2) = (catch(SignalKind::user_defined1())?, catch(SignalKind::user_defined2())?);
    let daemon = start::start(config).await?;
    let mut out = std::io::stdout().lock();
    // Whoever started it may have closed the other end; the daemon runs all the same.
    let _told = writeln!(out, "aman ready {}", daemon.url()).and_then(|()| out.flush());
    drop(out);
    let _told = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    loop {
        let ignored = tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => break,
            _ = quit.recv() => break,
            () = daemon.shutdown_asked() => break,
            _ = user1.recv() => "SIGUSR1",
            _ = user2.recv() => "SIGUSR2",
        };
        tracing::info!(signal = ignored, "The signal means nothing here and was ignored.");
    }
    let _told = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    daemon.stop().await;
    Ok(())
}

fn fail(error: &Error) -> ExitCode {
    let mut err = std::io::stderr().lock();
    let _told = writeln!(err, "aman: {}", aman::redact::text(&error.chain().join(": ")));
    match error {
        Error::Conflict { .. } => ExitCode::from(3),
        // EX_TEMPFAIL of sysexits.h: it may go well later, without any change.
        Error::Invalid { code: config::KEYRING_LOCKED, .. } => ExitCode::from(75),
        Error::Invalid { .. } => ExitCode::from(2),
        _ => ExitCode::FAILURE,
    }
}
