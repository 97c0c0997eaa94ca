//! Every check by its id: the one list that the checks and their documentation are made of.

use serde::{Serialize, Serializer};

/// How bad it is when a check is not `ok`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing.
    Low,
    /// It costs protection or work.
    Medium,
    /// Somebody could get in, or the daemon cannot do its work.
    High,
}

/// Which command runs a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// `aman doctor`, and with `--security` as well.
    General,
    /// `aman doctor --security` only.
    Security,
}

/// What holds for a check whatever it finds.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    name: &'static str,
    part: Part,
    /// See [`Severity`].
    pub severity: Severity,
    looks: &'static str,
}

macro_rules! checks {
    ($($id:ident $name:literal $part:ident $severity:ident $looks:literal)*) => {
        /// A check.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Id {
            $(#[doc = $looks] $id,)*
        }

        impl Id {
            /// All of them, in the order of the documentation.
            pub const ALL: &[Id] = &[$(Id::$id),*];

            /// What holds for it.
            pub fn rule(self) -> Rule {
                match self {
                    $(Id::$id => Rule {
                        name: $name, part: Part::$part, severity: Severity::$severity, looks: $looks,
                    },)*
                }
            }
        }
    };
}

checks! {
    Version "version" General Low "The version of this program."
    Clock "clock" General High "The machine's clock shows a time that can be."
    DataFolder "data_folder" General High "The data folder is there, or can be made, and can be written."
    DiskSpace "disk_space" General High "There is room on the disk of the data folder."
    Config "config" General High "The configuration file can be read and holds nothing wrong or unknown."
    TokenFile "token_file" General High "The token file is there, holds something and is its owner's alone."
    Database "database" General Medium "The write-ahead log of the database is not overlong, and others cannot read either."
    DatabaseIntegrity "database_integrity" General High "The database begins as a database does and has the size that it says. (`aman db check` reads all of it.)"
    OpenFiles "open_files" General Medium "A process may open enough files."
    Inotify "inotify" General Medium "The kernel lets this user watch enough folders."
    Sandbox "sandbox" General Medium "The machine has what keeps scripts in bounds; found by trying."
    Daemon "daemon" General High "A daemon answers."
    Ready "ready" General High "Every check of the daemon's own is fine."
    SameVersion "same_version" General Low "Daemon and command line are of one version."
    Access "access" General High "The daemon accepts the token and is not in safe mode."
    EventTime "event_time" General Medium "The newest event is not ahead of the clock."
    Sources "sources" General Medium "Every source that is switched on works, tells something within its `expect_every`, and its host can be resolved."
    Sinks "sinks" General Medium "Every sink that is switched on works, gave nothing up, and its host can be resolved."
    Skills "skills" General Medium "Every skill's folder could be loaded."
    Workflows "workflows" General Medium "Every workflow's definition could be read."
    Plugins "plugins" General Medium "Every plugin that is switched on runs, is not at rest, waits for no consent, and listens where it should."
    Jobs "jobs" General Medium "No job was switched off because its runs failed."
    Models "models" General Medium "A language model answers, if one is configured or found on this machine."
    McpServers "mcp_servers" General Medium "Every MCP server that is switched on is connected."
    DeadLetters "dead_letters" General Medium "No dead letter waits for a decision."
    Backups "backups" General High "The copies of the database that `[backup]` asks for are made."
    TokenMode "token_mode" Security High "Token and signing key belong to the owner and are closed to others."
    DatabaseMode "database_mode" Security High "Others cannot read or write the database."
    ConfigMode "config_mode" Security High "Others cannot write the configuration, nor read it when it holds secrets."
    FolderMode "folder_mode" Security High "The folders of data, state and runtime are closed to others."
    ParentFolders "parent_folders" Security High "No other user can replace a folder above those of the daemon."
    LogMode "log_mode" Security Medium "Others cannot read the log."
    BackupMode "backup_mode" Security High "Others cannot read copies of the database in the data folder or its `backups`."
    SkillWritable "skill_writable" Security High "Others cannot change skills, which run as you."
    TlsKeyMode "tls_key_mode" Security High "The private key of `http.tls` is closed to others."
    PlainSecrets "plain_secrets" Security Medium "The configuration refers to its secrets (`env:`, `file:`, `keyring:`) instead of holding them."
    TokenAge "token_age" Security Low "The static token is younger than a year."
    Bind "bind" Security Medium "The daemon listens on loopback only."
    PluginBind "plugin_bind" Security Medium "Plugins with an address of their own listen on loopback only."
    RemoteTls "remote_tls" Security High "Beyond loopback the daemon speaks HTTPS."
    AllowRemote "allow_remote" Security Low "`http.allow_remote` is off while nothing needs it."
    AuthNone "auth_none" Security High "The daemon asks for a token."
    AllowedOrigins "allowed_origins" Security Medium "Web pages that may call the API come by HTTPS or from this machine, and are named."
    PublicStream "public_stream" Security Medium "Without a token the stream shows no data, and beyond loopback nothing."
    RateLimit "rate_limit" Security Low "Beyond loopback the requests of each principal are limited."
    DebugEndpoints "debug_endpoints" Security Medium "Test helpers are off."
    EgressPrivate "egress_private" Security Medium "Outgoing calls cannot reach loopback and private addresses."
    WebhookVerify "webhook_verify" Security Medium "Every webhook source checks signatures, and not with SHA-1."
    SourceTransport "source_transport" Security Medium "What is polled or subscribed beyond this machine comes encrypted."
    SinkTransport "sink_transport" Security High "What is sent beyond this machine goes encrypted."
    SourceCommands "source_commands" Security Medium "Command sources cannot write whole home or system folders."
    SkillPermissions "skill_permissions" Security Medium "No enabled skill may write everything, or both read your home and use the network. Needs the daemon."
    TokensAdmin "tokens_admin" Security Medium "No minted token has the scope `admin`. Needs the daemon."
    TokensLong "tokens_long" Security Low "No minted token is good for more than 100 further days. Needs the daemon."
    AuditChain "audit_chain" Security High "No record of the audit log was changed or removed. Needs the daemon."
    SandboxFilesystem "sandbox_filesystem" Security High "Scripts see only the files that they were granted (a root of their own, Landlock)."
    SandboxNetwork "sandbox_network" Security Medium "Scripts without `net:any` have no network (a network namespace, or no sockets at all)."
    SandboxProcesses "sandbox_processes" Security Medium "Scripts cannot see or outlive other processes (PID namespace)."
    Root "root" Security High "The daemon does not run as root."
    CoreDumps "core_dumps" Security Low "A crash writes no memory, which holds secrets, to the disk."
    Ptrace "ptrace" Security Low "Other programs of this user cannot read the daemon's memory (Yama)."
}

impl Id {
    /// Its stable name.
    pub fn name(self) -> &'static str {
        self.rule().name
    }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.name())
    }
}

/// The table of all checks in `daemon/docs/doctor.md`.
pub fn table() -> String {
    let mut text = "| id | runs with | severity | what is wanted |\n|---|---|---|---|\n".to_owned();
    for rule in Id::ALL.iter().map(|id| id.rule()) {
        let part = if rule.part == Part::General { "`aman doctor`" } else { "`--security`" };
        let severity = format!("{:?}", rule.severity).to_lowercase();
        text.push_str(&format!("| `{}` | {part} | {severity} | {} |\n", rule.name, rule.looks));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_id_is_used_and_is_its_own() {
        let sources = [
            include_str!("daemon.rs"),
            include_str!("files.rs"),
            include_str!("machine.rs"),
            include_str!("parts.rs"),
            include_str!("security.rs"),
            include_str!("settings.rs"),
        ];
        for id in Id::ALL {
            let used = format!("Id::{id:?}");
            let goes_on = |rest: &str| rest.starts_with(|next: char| next.is_ascii_alphanumeric());
            // The tests below each file do not count, nor does the beginning of a longer name.
            let says = |source: &&str| {
                let code = source.split("mod tests").next().unwrap_or_default();
                code.split(used.as_str()).skip(1).any(|rest| !goes_on(rest))
            };
            assert!(sources.iter().any(says), "no check says {used}");
        }
        let names: BTreeSet<&str> = Id::ALL.iter().map(|id| id.name()).collect();
        assert_eq!(names.len(), Id::ALL.len());
    }
}
