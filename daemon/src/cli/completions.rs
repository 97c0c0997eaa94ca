//! `aman completions`: what a shell needs to complete commands and flags by Tab.

use clap::{Args, CommandFactory, ValueEnum};
use clap_complete::Shell;

use super::failure::Failure;
use super::{Cli, Context};

/// Prints the completions of a shell.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  bash:  aman completions bash > ~/.local/share/bash-completion/completions/aman
  zsh:   aman completions zsh > ~/.zfunc/_aman      # with `fpath+=~/.zfunc` before compinit in ~/.zshrc
  fish:  aman completions fish > ~/.config/fish/completions/aman.fish

Make the folder first where it is missing; the next shell completes. For the running bash: source <(aman completions bash)")]
pub struct CompletionsArgs {
    /// Which shell
    #[arg(value_enum)]
    shell: Supported,
}

/// The shells that are tested.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum Supported {
    Bash,
    Zsh,
    Fish,
}

/// Runs `aman completions`.
pub fn run(context: &mut Context, args: &CompletionsArgs) -> Result<(), Failure> {
    let shell = match args.shell {
        Supported::Bash => Shell::Bash,
        Supported::Zsh => Shell::Zsh,
        Supported::Fish => Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "aman", &mut script);
    context.out.raw(&script)
}
