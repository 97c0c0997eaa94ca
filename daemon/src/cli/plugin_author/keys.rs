//! Keys that sign packages.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use crate::cli::Context;
use crate::cli::failure::Failure;
use crate::config::Paths;
use crate::package::key::{self, SigningKey};
use crate::package::pack::Content;
use crate::package::signature;

/// Makes a key.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman plugin keygen
  aman plugin keygen --key ~/keys/weather.key --no-password

The files are minisign's, so the stock tool can use them. The public one gets the ending .pub. Keep the secret one: who
installed a plugin of yours takes its upgrades from this key only.")]
pub struct KeygenArgs {
    /// The secret key's file, which must not be there yet [default: ~/.minisign/minisign.key]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Do not encrypt it; only its file's mode protects it then
    #[arg(long)]
    no_password: bool,
    /// Take the password from the first line of this file instead of asking
    #[arg(long, value_name = "FILE", conflicts_with = "no_password")]
    password_file: Option<PathBuf>,
}

/// Which key signs.
#[derive(Args, Debug)]
pub struct Signing {
    /// Sign with this secret key [default of sign: ~/.minisign/minisign.key]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Take the key's password from the first line of this file instead of asking
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

impl Signing {
    /// The key if one is named, or a password for the stock tool's own.
    pub fn key_if_asked(&self) -> Result<Option<SigningKey>, Failure> {
        self.key.as_ref().or(self.password_file.as_ref()).map(|_| self.key()).transpose()
    }

    /// The key that is named, or the stock tool's own.
    pub fn key(&self) -> Result<SigningKey, Failure> {
        let file = self.key.clone().map_or_else(default_key, Ok)?;
        let password = || match &self.password_file {
            Some(file) => password_of(file),
            None => asked("Password: "),
        };
        SigningKey::read(&file, password).map_err(Failure::Failed)
    }
}

fn default_key() -> Result<PathBuf, Failure> {
    let paths = Paths::find(None).map_err(|error| Failure::Usage(error.to_string()))?;
    let home = paths.home_dir.ok_or_else(|| Failure::Usage("HOME is not set; name the key with --key.".to_owned()))?;
    Ok(home.join(".minisign").join("minisign.key"))
}

/// The first line of a file.
fn password_of(file: &Path) -> Result<String, String> {
    let told = |reason: String| format!("The password file {} {reason}", file.display());
    let text = fs::read_to_string(file).map_err(|error| told(format!("cannot be read: {error}.")))?;
    let line = text.lines().next().unwrap_or_default();
    if line.is_empty() { Err(told("has an empty first line.".to_owned())) } else { Ok(line.to_owned()) }
}

/// What a person types, unseen.
fn asked(prompt: &str) -> Result<String, String> {
    rpassword::prompt_password(prompt)
        .map_err(|error| format!("No password could be asked for ({error}). Without a terminal take --password-file."))
}

/// A new password: a slip in it would lock the key for ever.
fn asked_twice() -> Result<String, String> {
    let password = asked("Password for the new key: ")?;
    if password.is_empty() {
        return Err("The password is empty. For a key without one take --no-password.".to_owned());
    }
    if asked("Once more: ")? == password { Ok(password) } else { Err("The two passwords differ.".to_owned()) }
}

/// The key's name for people.
pub fn id(key: &SigningKey) -> String {
    signature::key_id(&key.public_key()).unwrap_or_default()
}

/// Signs what a package holds, if its manifest names this key.
pub fn sign(content: &mut Content, key: &SigningKey) -> Result<(), Failure> {
    let public = key.public_key();
    let line = format!("publisher = \"{public}\"");
    match content.manifest.publisher.as_deref().map(str::trim) {
        Some(publisher) if publisher == public => {}
        Some(_) => {
            let reason = format!("plugin.toml names another publisher than this key, whose line is:\n  {line}");
            return Err(Failure::Failed(reason));
        }
        None => {
            let reason = format!("plugin.toml names no publisher. Write this line into it and pack again:\n  {line}");
            return Err(Failure::Failed(reason));
        }
    }
    let told = format!("{} {}", content.manifest.name, content.manifest.version);
    let signature = key.sign(content.sums(), &told).map_err(Failure::Failed)?;
    content.sign(signature);
    Ok(())
}

/// Runs `aman plugin keygen`.
pub fn generate(context: &mut Context, args: &KeygenArgs) -> Result<(), Failure> {
    let file = args.key.clone().map_or_else(default_key, Ok)?;
    let public_file = file.with_extension("pub");
    if public_file == file {
        let reason = "--key names the secret key's file. The public one gets the ending .pub, so it needs another.";
        return Err(Failure::Usage(reason.to_owned()));
    }
    for there in [&file, &public_file] {
        // A key that is overwritten is lost, and with it every upgrade of what it signed.
        if fs::symlink_metadata(there).is_ok() {
            let reason = format!("{} is there already. Choose another file with --key.", there.display());
            return Err(Failure::Usage(reason));
        }
    }
    let password = match (&args.password_file, args.no_password) {
        (Some(file), _) => password_of(file).map(Some),
        (None, true) => Ok(None),
        (None, false) => asked_twice().map(Some),
    };
    let pair = password.and_then(key::generate).map_err(Failure::Failed)?;
    write(&file, &pair.secret_file, 0o600)?;
    write(&public_file, &pair.public_file, 0o644)?;
    if context.out.json() {
        let document = json!({
            "id": pair.id, "public_key": pair.public_key,
            "secret_file": file.to_string_lossy(), "public_file": public_file.to_string_lossy(),
        });
        return context.out.line(&document.to_string());
    }
    context.out.line(&format!("Made the key {}: {} and {}.", pair.id, file.display(), public_file.display()))?;
    context.out.line("Write this line into plugin.toml, then sign packages with it:")?;
    context.out.line(&format!("  publisher = \"{}\"", pair.public_key))
}

fn write(file: &Path, text: &str, mode: u32) -> Result<(), Failure> {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    let folder = parent.map_or(Ok(()), |parent| fs::DirBuilder::new().recursive(true).mode(0o700).create(parent));
    let written = folder.and_then(|()| {
        let mut out = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(file)?;
        out.write_all(text.as_bytes())?;
        out.sync_all()
    });
    written.map_err(|error| Failure::Failed(format!("{} cannot be written: {error}.", file.display())))
}
