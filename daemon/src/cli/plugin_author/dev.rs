//! `aman plugin dev`: build, pack, install; and again whenever a file is saved. A version that does not build or load leaves
//! the one before it running.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::Args;
use notify::{RecursiveMode, Watcher};
use tokio::sync::mpsc;

use super::build;
use crate::cli::Context;
use crate::cli::client::Call;
use crate::cli::failure::Failure;
use crate::cli::out::text;
use crate::package::pack::{Content, read_manifest};

/// Editors save in several steps: what follows a change within this time belongs to it.
const SETTLE: Duration = Duration::from_millis(300);
/// What tools make, not the author.
const MADE: [&str; 5] = ["target", "node_modules", "__pycache__", "Cargo.lock", "package-lock.json"];
/// Files that are looked at; a folder with more is not one of a plugin.
const FILES_MAX: usize = 10_000;

/// When each of the author's files was written, and its size.
type Seen = BTreeMap<PathBuf, (Option<SystemTime>, u64)>;

/// Builds and installs at each save.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman plugin dev
  aman plugin dev ~/plugins/weather --yes

It builds as `aman plugin build` does. Each version takes the place of the one before as soon as it loads; one that does not
build or load leaves that running. It may do what plugin.toml asks for as you save it, so that is for code of your own.")]
pub struct DevArgs {
    /// The folder with plugin.toml
    #[arg(default_value = ".")]
    folder: PathBuf,
    /// Do not ask first
    #[arg(long, short)]
    yes: bool,
}

/// Runs until it is ended.
pub async fn run(context: &mut Context, args: &DevArgs) -> Result<(), Failure> {
    let folder = args.folder.as_path();
    let name = read_manifest(folder).map_err(|error| super::refused(&error))?.name;
    let question = format!("Install {name} at each save, unsigned, and let it do all that its plugin.toml asks for?");
    context.confirm(args.yes, &question)?;
    let (hint, mut hints) = mpsc::channel(1);
    let told = |error: notify::Error| Failure::Failed(format!("{} cannot be watched: {error}.", folder.display()));
    let mut watcher = notify::recommended_watcher(move |_| {
        // One hint that waits is enough: what changed is found by looking.
        let _one_waits = hint.try_send(());
    })
    .map_err(told)?;
    loop {
        // Before it looks: what is saved from now on gives a hint, or is seen.
        watch(&mut watcher, folder).map_err(told)?;
        let seen = look(folder)?;
        match once(context, folder).await {
            Ok(()) => {}
            Err(failure @ Failure::PipeClosed) => return Err(failure),
            Err(failure) => context.out.complain(&format!("aman: {}", failure.message())),
        }
        context.out.flush()?;
        while look(folder)? == seen {
            if hints.recv().await.is_none() {
                return Ok(());
            }
            tokio::time::sleep(SETTLE).await;
            // A new folder is a hint without a file; its files give hints only once it is watched.
            watch(&mut watcher, folder).map_err(told)?;
        }
    }
}

/// Watches the folder and those of the author below it: the tools' own hold very many files.
fn watch(watcher: &mut impl Watcher, folder: &Path) -> notify::Result<()> {
    watcher.watch(folder, RecursiveMode::NonRecursive)?;
    for entry in fs::read_dir(folder)?.flatten() {
        if is_source(&entry.path()) && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            watcher.watch(&entry.path(), RecursiveMode::Recursive)?;
        }
    }
    Ok(())
}

/// Whether a file or folder is the author's.
fn is_source(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let made = name.starts_with('.') || MADE.contains(&name.as_ref());
    !made && ![".wasm", ".new", ".gz", "~"].iter().any(|end| name.ends_with(end))
}

/// The author's files as they are now.
fn look(folder: &Path) -> Result<Seen, Failure> {
    let (mut seen, mut folders) = (Seen::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        // A folder that goes away while it is read is a change like any other.
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            match entry.metadata() {
                Ok(found) if is_source(&path) && found.is_dir() => folders.push(path),
                Ok(found) if is_source(&path) => drop(seen.insert(path, (found.modified().ok(), found.len()))),
                _ => {}
            }
            if seen.len() > FILES_MAX {
                return Err(Failure::Usage(format!("{} holds more than {FILES_MAX} files.", folder.display())));
            }
        }
    }
    Ok(seen)
}

/// Builds, packs and installs; says what became of it, and what it may do that it could not before.
async fn once(context: &mut Context, folder: &Path) -> Result<(), Failure> {
    build::run(folder)?;
    let content = Content::read(folder).map_err(|error| super::refused(&error))?;
    let mut packed = Vec::new();
    content.write(&mut packed).map_err(|error| Failure::Failed(format!("The package cannot be made: {error}.")))?;
    let call = Call::post("/plugin/install").body("application/gzip", packed).lasting().header("x-aman-confirm", "yes");
    let call = ["approve", "allow_unsigned", "allow_downgrade"].iter().fold(call, |call, flag| call.query(flag, true));
    let Some(done) = context.answer(call).await? else { return Ok(()) };
    let (name, version) = (text(&done["name"]), text(&done["version"]));
    context.out.line(&format!("Installed {name} {version}: {}.", text(&done["status"])))?;
    let added = done["added"].as_array().into_iter().flatten();
    added.map(|grant| format!("  it may now {}", text(&grant["text"]))).try_for_each(|line| context.out.line(&line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_author_writes_is_watched() {
        for (path, source) in [
            ("plugin.toml", true),
            ("src/lib.rs", true),
            ("wit/deps", true),
            ("target", false),
            ("node_modules", false),
            (".venv", false),
            (".lib.rs.swp", false),
            ("plugin.wasm", false),
            ("weather-0.1.0.tar.gz", false),
            ("Cargo.lock", false),
        ] {
            assert_eq!(is_source(Path::new(path)), source, "{path}");
        }
    }
}
