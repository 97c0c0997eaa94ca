//! Landlock: what the command may do with files, TCP ports, and processes outside.

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible, LandlockStatus, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use super::grants::{Access, Grants};
use super::wire::Network;

/// The newest Landlock this was written for; older kernels enforce what they know of it.
const NEWEST: ABI = ABI::V9;

/// The command's own processes; it is mounted after the grants were found.
const PROC: &str = "/proc";

/// Restricts this process and all its future children for good, as far as the kernel can; says by which ABI, or 0.
pub(super) fn restrict(net: Network, grants: &Grants) -> Result<u32, RulesetError> {
    let all = AccessFs::from_all(NEWEST);
    let mut ruleset = Ruleset::default().set_compatibility(CompatLevel::BestEffort).handle_access(all)?;
    if net == Network::None {
        ruleset = ruleset.handle_access(AccessNet::BindTcp | AccessNet::ConnectTcp)?;
    }
    let mut rules = ruleset.scope(Scope::from_all(NEWEST))?.create()?;
    let read = AccessFs::from_read(NEWEST);
    // Device files are for the administrator, whoever runs the daemon.
    let write = (read | AccessFs::from_write(NEWEST)) & !(AccessFs::MakeChar | AccessFs::MakeBlock);
    for grant in &grants.all {
        let access = match grant.access {
            Access::Read => read,
            Access::Write => write,
            Access::Device => AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate,
        };
        let access = if grant.folder { access } else { access & AccessFs::from_file(NEWEST) };
        rules = rules.add_rule(PathBeneath::new(&grant.handle, access))?;
    }
    if let Ok(proc) = PathFd::new(PROC) {
        rules = rules.add_rule(PathBeneath::new(proc, read))?;
    }
    let status = rules.restrict_self()?;
    Ok(match status.landlock {
        LandlockStatus::Available { effective_abi, .. } if status.ruleset != RulesetStatus::NotEnforced => {
            effective_abi as u32
        }
        _ => 0,
    })
}

/// The first ABI that refuses TCP.
pub(super) const TCP: u32 = ABI::V4 as u32;

/// The first ABI that keeps signals, and sockets without a path, within the sandbox.
pub(super) const SCOPES: u32 = ABI::V6 as u32;

/// The first ABI that keeps sockets with a path to the grants.
pub(super) const SOCKETS: u32 = ABI::V9 as u32;
