//! `aman plugin new | build | pack | sign | keygen | dev`: for those who write plugins. Nothing but `dev` needs a daemon.

mod build;
mod dev;
mod keys;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};

use super::Context;
use super::failure::Failure;
use super::out::size;
use crate::bundled::templates;
use crate::error::Error;
use crate::package::pack::Content;
use crate::package::{self, Package};

/// What an author of plugins can do.
#[derive(Subcommand, Debug)]
pub enum AuthorCommand {
    /// Make the folder of a new plugin
    New(NewArgs),
    /// Build the plugin's component
    Build(FolderArgs),
    /// Make a package of the plugin, ready to install
    Pack(PackArgs),
    /// Sign a package that is there
    Sign(SignArgs),
    /// Make a key to sign packages with
    Keygen(keys::KeygenArgs),
    /// Build, install and load the plugin anew whenever one of its files is saved
    Dev(dev::DevArgs),
}

/// Makes a folder.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman plugin new weather
  aman plugin new weather --language python
  aman plugin new weather --into ~/plugins/weather

The folder builds as it is: aman plugin build weather")]
pub struct NewArgs {
    /// The plugin's name: lower-case letters, digits and '-'
    name: String,
    /// What it is written in
    #[arg(long, value_enum, default_value_t = Language::Rust)]
    language: Language,
    /// The folder, which must not be there yet [default: the name]
    #[arg(long, value_name = "DIR")]
    into: Option<PathBuf>,
}

/// What a plugin can be written in.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum Language {
    Rust,
    Javascript,
    Python,
}

/// A plugin's folder.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman plugin build
  aman plugin build ~/plugins/weather

Rust is built with cargo for wasm32-wasip2, JavaScript by the script `build` of package.json (componentize-js), Python by
componentize-py. What is missing is fetched: by rustup for Rust, else by npm or pip into the folder, again when package.json
or requirements.txt change. A componentize-js or componentize-py in PATH serves where nothing else is wanted.")]
pub struct FolderArgs {
    /// The folder with plugin.toml
    #[arg(default_value = ".")]
    folder: PathBuf,
}

/// Packs.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman plugin pack
  aman plugin pack weather --key ~/.minisign/minisign.key

The same files give the same bytes. Into the package go plugin.toml, the component, README.md, LICENSE*, CHANGELOG.md and
the folders schemas/ and ui/.")]
pub struct PackArgs {
    /// The folder with plugin.toml
    #[arg(default_value = ".")]
    folder: PathBuf,
    /// The package [default: NAME-VERSION.tar.gz in the folder]
    #[arg(long, short = 'o', value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    signing: keys::Signing,
}

/// Signs.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman plugin sign weather-0.1.0.tar.gz
  aman plugin sign weather-0.1.0.tar.gz --key ~/keys/weather.key --password-file ~/keys/password

The manifest inside must name the key: publisher = \"RW…\", the line that keygen prints. The stock minisign does the same:
minisign -S -m SHA256SUMS.")]
pub struct SignArgs {
    /// The package; it is replaced by the signed one
    package: PathBuf,
    #[command(flatten)]
    signing: keys::Signing,
}

/// Runs one of them.
pub async fn run(context: &mut Context, command: AuthorCommand) -> Result<(), Failure> {
    match command {
        AuthorCommand::New(args) => new(context, &args),
        AuthorCommand::Build(args) => {
            let built = build::run(&args.folder)?;
            context.out.line(&format!("Built {} ({}).", built.component.display(), size(built.bytes)))
        }
        AuthorCommand::Pack(args) => pack(context, &args),
        AuthorCommand::Sign(args) => sign(context, &args),
        AuthorCommand::Keygen(args) => keys::generate(context, &args),
        AuthorCommand::Dev(args) => dev::run(context, &args).await,
    }
}

/// A package's own complaint in full; the call was wrong or the files are.
fn refused(error: &Error) -> Failure {
    Failure::Failed(error.chain().join(": "))
}

fn new(context: &mut Context, args: &NewArgs) -> Result<(), Failure> {
    package::check_name(&args.name).map_err(|reason| Failure::Usage(format!("The name '{}' {reason}", args.name)))?;
    let folder = args.into.clone().unwrap_or_else(|| PathBuf::from(&args.name));
    let (named, fixed): (_, &[_]) = match args.language {
        Language::Rust => (templates::RUST, &[templates::SDK, templates::SDK_WIT]),
        Language::Javascript => (templates::JAVASCRIPT, &[templates::WIT]),
        Language::Python => (templates::PYTHON, &[templates::WIT]),
    };
    let told = |error: io::Error| Failure::Failed(format!("{} cannot be made: {error}.", folder.display()));
    fs::create_dir(&folder).map_err(told)?;
    let write = |file: &str, text: &str| {
        let path = folder.join(file);
        fs::create_dir_all(path.parent().unwrap_or(&folder)).and_then(|()| fs::write(&path, text))
    };
    for (file, text) in named {
        write(file, &text.replace(templates::PLACEHOLDER, &args.name)).map_err(told)?;
    }
    for (file, text) in fixed.iter().copied().flatten() {
        write(file, text).map_err(told)?;
    }
    context.out.line(&format!("Made {}. Its README.md says how to go on.", folder.display()))
}

fn pack(context: &mut Context, args: &PackArgs) -> Result<(), Failure> {
    let mut content = Content::read(&args.folder).map_err(|error| refused(&error))?;
    let signer = args.signing.key_if_asked()?;
    if let Some(key) = &signer {
        keys::sign(&mut content, key)?;
    }
    let manifest = &content.manifest;
    let output = args
        .output
        .clone()
        .unwrap_or_else(|| args.folder.join(format!("{}-{}.tar.gz", manifest.name, manifest.version)));
    let bytes = write_package(&content, &output)?;
    let state = if signer.is_some() { "signed" } else { "not signed" };
    context.out.line(&format!("Packed {} ({}, {state}).", output.display(), size(bytes)))
}

fn sign(context: &mut Context, args: &SignArgs) -> Result<(), Failure> {
    let told = |error: io::Error| Failure::Failed(format!("{} cannot be signed: {error}.", args.package.display()));
    let packed = fs::File::open(&args.package).map_err(told)?;
    let key = args.signing.key()?;
    let name = args.package.file_name().unwrap_or_default().to_string_lossy();
    let work = args.package.with_file_name(format!(".{name}-{}", std::process::id()));
    fs::create_dir(&work).map_err(told)?;
    let signed = Package::open(packed, &work)
        .and_then(|_| Content::read(&work))
        .map_err(|error| refused(&error))
        .and_then(|mut content| keys::sign(&mut content, &key).map(|()| content));
    // Whatever became of it, what was unpacked for it goes.
    drop(fs::remove_dir_all(&work));
    write_package(&signed?, &args.package)?;
    context.out.line(&format!("Signed {} with key {}.", args.package.display(), keys::id(&key)))
}

/// Writes a package under its name when it is whole; its size in bytes.
fn write_package(content: &Content, output: &Path) -> Result<u64, Failure> {
    let told = |error: io::Error| Failure::Failed(format!("{} cannot be written: {error}.", output.display()));
    let mut name = output.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    let making = output.with_file_name(name);
    let written = fs::File::create(&making).and_then(|mut file| {
        content.write(io::BufWriter::new(&mut file))?;
        file.flush()?;
        file.sync_all()?;
        Ok(file.metadata()?.len())
    });
    written.and_then(|bytes| fs::rename(&making, output).map(|()| bytes)).map_err(|error| {
        // The half of a package is of no use.
        drop(fs::remove_file(&making));
        told(error)
    })
}
