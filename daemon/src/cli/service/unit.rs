//! The unit that systemd reads. Pure.

use std::path::{Path, PathBuf};

use crate::cli::failure::Failure;
use crate::config::Paths;

/// How a unit of ours begins; any other is left alone.
pub const MARK: &str = "# Written by `aman service install`";
const NAME_CHARS_MAX: usize = 40;

/// True when `name` can be the name of a unit.
pub fn is_name(name: &str) -> bool {
    name.len() <= NAME_CHARS_MAX
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
}

/// What a unit starts.
pub struct Unit {
    program: PathBuf,
    /// `--home`, for a daemon with everything in one folder.
    home: Option<PathBuf>,
    /// XDG folders that are not where they are by default.
    variables: Vec<(&'static str, PathBuf)>,
}

impl Unit {
    /// Starts this program with these folders.
    pub fn of(paths: &Paths) -> Result<Unit, Failure> {
        let program = std::env::current_exe().and_then(std::fs::canonicalize);
        let program = program.map_err(|error| Failure::Failed(format!("This program cannot be found: {error}.")))?;
        let (mut home, mut variables) = (None, Vec::new());
        if paths.portable {
            home = Some(paths.data.clone());
        } else if let Some(person) = &paths.home_dir {
            let config = paths.config_file.parent().unwrap_or(Path::new("/")).to_owned();
            let all = [
                ("XDG_CONFIG_HOME", config, ".config"),
                ("XDG_DATA_HOME", paths.data.clone(), ".local/share"),
                ("XDG_STATE_HOME", paths.state.clone(), ".local/state"),
            ];
            // Each is the folder above ours.
            let set = all.into_iter().filter_map(|(name, ours, default)| {
                let above = ours.parent()?.to_owned();
                (above != person.join(default)).then_some((name, above))
            });
            variables = set.collect();
        }
        Ok(Unit { program, home, variables })
    }

    /// A line of crontab(5), where a percent sign would end the command.
    pub fn cron_line(&self) -> String {
        format!("@reboot {}", self.command_line().replace('%', "\\%"))
    }

    /// The same for a shell.
    pub fn command_line(&self) -> String {
        let mut words: Vec<String> =
            self.variables.iter().map(|(name, path)| format!("{name}={}", path.display())).collect();
        if !words.is_empty() {
            words.insert(0, "env".to_owned());
        }
        words.extend([self.program.display().to_string(), "serve".to_owned()]);
        if let Some(home) = &self.home {
            words.extend(["--home".to_owned(), home.display().to_string()]);
        }
        shell_words::join(words)
    }
}

/// `path` as one word of a unit's setting: quoted, with nothing left for systemd to expand.
///
/// Source: systemd.service(5), "Command lines", and systemd.unit(5), "Specifiers".
fn word(path: &str) -> Result<String, Failure> {
    if path.chars().any(char::is_control) {
        return Err(Failure::Usage(format!("{path:?} cannot stand in a unit: it holds a control character.")));
    }
    let escaped = path.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%");
    Ok(format!("\"{escaped}\""))
}

/// The unit.
///
/// What confines the daemon here must leave it able to confine scripts: no setting that forbids namespaces or mounts
/// (RestrictNamespaces, SystemCallFilter, PrivateUsers, ProtectSystem and their kin), and none that plugins, which are
/// compiled as they are loaded, cannot live with (MemoryDenyWriteExecute).
pub fn text(unit: &Unit) -> Result<String, Failure> {
    let utf8 = |path: &Path| {
        let unusable = || Failure::Usage(format!("{} cannot stand in a unit: it is no UTF-8.", path.display()));
        path.to_str().map(str::to_owned).ok_or_else(unusable)
    };
    // A dollar sign begins a variable in the arguments of a command line, and nowhere else.
    let argument = |path: &Path| Ok::<String, Failure>(word(&utf8(path)?)?.replace('$', "$$"));
    let mut command = format!("{} serve", word(&utf8(&unit.program)?)?);
    if let Some(home) = &unit.home {
        command.push_str(&format!(" --home {}", argument(home)?));
    }
    let mut variables = String::new();
    for (name, path) in &unit.variables {
        variables.push_str(&format!("Environment={}\n", word(&format!("{name}={}", utf8(path)?))?));
    }
    Ok(format!(
        "{MARK}; `aman service uninstall` removes it, `systemctl --user edit` adds to it.
[Unit]
Description=aman turns things that happen into things that get done
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
{variables}# Without an end: the disk may be full, or the keyring locked, for hours.
Restart=on-failure
RestartSec=5
# 2: the configuration is wrong; 3: another daemon has the folder. Neither gets better by itself.
RestartPreventExitStatus=2 3
# The daemon ends its scripts and drains its work (runtime.drain_timeout) before it ends.
KillMode=mixed
TimeoutStopSec=90
OOMPolicy=continue
LimitNOFILE=65536
LimitCORE=0
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native

[Install]
WantedBy=default.target
"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_quoted_for_systemd_and_for_a_shell() {
        let unit = Unit {
            program: "/opt/my $bin/100%/aman".into(),
            home: Some("/srv/a \"b\"\\c".into()),
            variables: vec![("XDG_DATA_HOME", "/data $x".into())],
        };
        let shown = text(&unit).expect("it can be written");
        let wanted = r#"ExecStart="/opt/my $bin/100%%/aman" serve --home "/srv/a \"b\"\\c""#;
        assert!(shown.lines().any(|line| line == wanted), "{shown}");
        assert!(shown.contains("Environment=\"XDG_DATA_HOME=/data $x\"\n"), "{shown}");
        let words = shell_words::split(&unit.command_line()).expect("a shell reads it");
        assert_eq!(
            words,
            ["env", "XDG_DATA_HOME=/data $x", "/opt/my $bin/100%/aman", "serve", "--home", "/srv/a \"b\"\\c"]
        );
        assert!(unit.cron_line().contains("100\\%/aman"), "{}", unit.cron_line());
        assert!(text(&Unit { home: Some("/a\nb".into()), ..unit }).is_err());
    }

    #[test]
    fn names() {
        for (name, good) in
            [("aman", true), ("aman-2_b", true), ("", false), ("a/b", false), ("../a", false), ("1", false)]
        {
            assert_eq!(is_name(name), good, "{name}");
        }
    }
}
