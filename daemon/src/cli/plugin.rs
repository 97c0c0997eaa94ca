//! `aman plugin`: components that add routes, events and tools.

use clap::Subcommand;

use super::failure::Failure;
use super::{Context, plugin_author};

/// What can be done with plugins.
#[derive(Subcommand, Debug)]
pub enum PluginCommand {
    /// What authors do.
    #[command(flatten)]
    Author(plugin_author::AuthorCommand),
}

/// Runs `aman plugin`.
pub async fn run(context: &mut Context, command: PluginCommand) -> Result<(), Failure> {
    match command {
        PluginCommand::Author(command) => plugin_author::run(context, command).await,
    }
}
