//! Landlock: what the command may do with files, TCP ports, and processes outside.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use super::wire::{Filesystem, Job, Network};

/// The newest Landlock this was written for; older kernels enforce what they know of it.
const NEWEST: ABI = ABI::V9;

/// Where programs, libraries and their settings live.
const SYSTEM: [&str; 11] =
    ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/opt", "/nix/store", "/proc"];

/// Devices without state.
const DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];

/// What Landlock enforces from now on.
pub(super) struct Locked {
    pub filesystem: Filesystem,
    /// Whether TCP is refused.
    pub tcp: bool,
}

/// Restricts this process and all its future children for good, as far as the kernel can.
pub(super) fn restrict(job: &Job) -> Result<Locked, RulesetError> {
    let all = AccessFs::from_all(NEWEST);
    let mut ruleset = Ruleset::default().set_compatibility(CompatLevel::BestEffort).handle_access(all)?;
    if job.net == Network::None {
        ruleset = ruleset.handle_access(AccessNet::BindTcp | AccessNet::ConnectTcp)?;
    }
    let mut rules = ruleset.scope(Scope::from_all(NEWEST))?.create()?;
    let read = AccessFs::from_read(NEWEST);
    // Device files are for the administrator, whoever runs the daemon.
    let write = (read | AccessFs::from_write(NEWEST)) & !(AccessFs::MakeChar | AccessFs::MakeBlock);
    for path in SYSTEM.iter().map(Path::new).chain(job.read.iter().map(PathBuf::as_path)) {
        rules = allow(rules, path, read)?;
    }
    rules = allow(rules, &job.program, read)?;
    for path in DEVICES.iter().map(Path::new) {
        rules = allow(rules, path, AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate)?;
    }
    for path in &job.write {
        rules = allow(rules, path, write)?;
    }
    let status = rules.restrict_self()?;
    let abi = match status.landlock {
        LandlockStatus::Available { effective_abi, .. } if status.ruleset != RulesetStatus::NotEnforced => {
            effective_abi as u32
        }
        _ => 0,
    };
    Ok(Locked {
        filesystem: if abi == 0 { Filesystem::None } else { Filesystem::Landlock(abi) },
        tcp: job.net == Network::None && abi >= ABI::V4 as u32,
    })
}

fn allow(rules: RulesetCreated, path: &Path, access: BitFlags<AccessFs>) -> Result<RulesetCreated, RulesetError> {
    // What is missing, or hidden from this user, cannot be granted and need not be.
    let (Ok(opened), Ok(found)) = (PathFd::new(path), path.metadata()) else { return Ok(rules) };
    let access = if found.is_dir() { access } else { access & AccessFs::from_file(NEWEST) };
    rules.add_rule(PathBeneath::new(opened, access))
}
