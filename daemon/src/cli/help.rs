//! Help texts at the width of the reader: what is written in lines of the source flows anew.

use std::io;

use clap::Command;

use crate::config;

/// Lines longer than this are hard to read, however wide the terminal is.
const WIDTH_MAX: usize = 100;
/// Where the comment of an example goes that has no room beside it.
const COMMENT_INDENT: &str = "      ";

/// The command with all its subcommands, their texts flowing to the width of the terminal.
pub fn flowing(command: Command) -> Command {
    let measured = || terminal_size::terminal_size_of(io::stdout()).map(|(width, _)| width.0);
    let columns = config::client_env().columns.or_else(measured).map_or(WIDTH_MAX, usize::from);
    at_width(command, columns.min(WIDTH_MAX))
}

fn at_width(command: Command, width: usize) -> Command {
    let after = command.get_after_help().map(|text| flow(&text.to_string(), width));
    let command = command.term_width(width);
    let command = match after {
        Some(text) => command.after_help(text),
        None => command,
    };
    command.mut_subcommands(|sub| at_width(sub, width))
}

/// Joins the lines of each paragraph, for clap to wrap. What is indented stays line by line; the comment of an example that
/// would not fit goes to a line of its own.
fn flow(text: &str, width: usize) -> String {
    let is_prose = |line: &str| !line.is_empty() && !line.starts_with(' ') && !line.ends_with(':');
    let mut lines: Vec<String> = Vec::new();
    let mut in_paragraph = false;
    for line in text.lines() {
        match lines.last_mut() {
            Some(last) if in_paragraph && is_prose(line) => {
                last.push(' ');
                last.push_str(line);
            }
            _ if line.starts_with(' ') && line.chars().count() > width => lines.extend(broken(line)),
            _ => lines.push(line.to_owned()),
        }
        in_paragraph = is_prose(line);
    }
    lines.join("\n")
}

/// An example and its comment, which stands behind a gap of two spaces or more.
fn broken(line: &str) -> Vec<String> {
    let indent = line.len() - line.trim_start().len();
    match line[indent..].split_once("  ") {
        Some((example, comment)) => {
            vec![format!("{}{example}", &line[..indent]), format!("{COMMENT_INDENT}{}", comment.trim_start())]
        }
        None => vec![line.to_owned()],
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn paragraphs_flow_and_examples_stay() {
        let text = "Examples:\n  aman a\n  aman b --long x   what it does\n\nOne sentence that\ngoes on.\n\nAnother.";
        let wanted =
            "Examples:\n  aman a\n  aman b --long x\n      what it does\n\nOne sentence that goes on.\n\nAnother.";
        assert_eq!(flow(text, 20), wanted);
        assert!(flow(text, 80).contains("aman b --long x   what it does"));
    }

    /// Goal: no help text is wrapped in the middle of a line of the source, and none is wider than the terminal.
    #[test]
    fn every_help_text_fits() {
        fn check(command: &mut Command) {
            let name = command.get_name().to_owned();
            let help = command.render_long_help().to_string();
            for line in help.lines().filter(|line| !line.contains("aman ") && !line.contains("curl ")) {
                assert!(line.chars().count() <= 80, "{name}: {line}");
            }
            command.get_subcommands_mut().filter(|sub| sub.get_name() != "help").for_each(check);
        }
        let mut command = at_width(Cli::command(), 80);
        command.build();
        check(&mut command);
    }
}
