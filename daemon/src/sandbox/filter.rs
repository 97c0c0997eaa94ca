//! System calls that the command does not get: ways around its grants, and parts of the kernel that only attacks need.

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use super::wire::Network;

/// Refused whatever their arguments. Keys belong to the user's session and not to a namespace; with memory of others,
/// or rings that act without system calls, everything here could be got round.
const REFUSED: [libc::c_long; 14] = [
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
];

/// In the x32 mode of x86-64, calls have these numbers with this bit.
const X32: i64 = 0x4000_0000;

/// The same on every machine; the C library does not know it everywhere.
const FCHMODAT2: i64 = 452;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Filters the system calls of this process and all its future children for good; `false` where that is not possible.
pub(super) fn apply(net: Network, net_namespace: bool) -> bool {
    let mut refused: Rules = REFUSED.into_iter().map(|call| (call, Vec::new())).collect();
    let new_user = u64::try_from(libc::CLONE_NEWUSER).unwrap_or_default();
    for call in [libc::SYS_clone, libc::SYS_unshare] {
        refused.insert(call, rules([vec![(0, SeccompCmpOp::MaskedEq(new_user), new_user)]]));
    }
    if net == Network::None {
        refused.insert(libc::SYS_socket, sockets(net_namespace));
        // Datagrams of such a pair could still be addressed to any socket with a path.
        let datagram =
            [libc::SOCK_DGRAM, libc::SOCK_RAW].map(|kind| vec![(1, SeccompCmpOp::MaskedEq(0xf), number(kind))]);
        refused.insert(libc::SYS_socketpair, rules(datagram));
    }
    refused.extend(set_id_files());
    // Their arguments lie in memory, where a filter cannot look; C libraries then take `clone` and `openat`.
    let absent = BTreeMap::from([(libc::SYS_clone3, Vec::new()), (libc::SYS_openat2, Vec::new())]);
    install(refused, libc::EPERM) && install(absent, libc::ENOSYS)
}

/// The calls that give a file the set-user-ID or set-group-ID bit: whoever executes such a file outside has the rights
/// of the daemon's user, and those of root if that is root.
fn set_id_files() -> Rules {
    let (set_user, set_group) = (0o4000, 0o2000);
    // Opening a file takes a mode only when it may make one; else there is anything in its place.
    let makes = [number(libc::O_CREAT), number(libc::O_TMPFILE & !libc::O_DIRECTORY)];
    let with_mode = |index: u8| rules([set_user, set_group].map(|bit| vec![(index, SeccompCmpOp::MaskedEq(bit), bit)]));
    let opens = |flags: u8| {
        let made = [set_user, set_group].map(|bit| {
            makes.map(|make| {
                vec![(flags, SeccompCmpOp::MaskedEq(make), make), (flags + 1, SeccompCmpOp::MaskedEq(bit), bit)]
            })
        });
        made.into_iter().flat_map(rules).collect::<Vec<_>>()
    };
    let mut calls = Rules::from([
        (libc::SYS_fchmod, with_mode(1)),
        (libc::SYS_fchmodat, with_mode(2)),
        (FCHMODAT2, with_mode(2)),
        (libc::SYS_mknodat, with_mode(2)),
        (libc::SYS_openat, opens(2)),
    ]);
    #[cfg(target_arch = "x86_64")]
    calls.extend([
        (libc::SYS_chmod, with_mode(1)),
        (libc::SYS_mknod, with_mode(1)),
        (libc::SYS_creat, with_mode(1)),
        (libc::SYS_open, opens(1)),
    ]);
    calls
}

/// Which sockets are refused to a command without network: those with paths always, others unless a network namespace
/// keeps them from reaching anything.
fn sockets(net_namespace: bool) -> Vec<SeccompRule> {
    if !net_namespace {
        return Vec::new();
    }
    let families = [libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
    rules([families.map(|family| (0, SeccompCmpOp::Ne, number(family))).to_vec()])
}

fn number(value: libc::c_int) -> u64 {
    u64::try_from(value).unwrap_or_default()
}

/// Each rule holds when all its conditions (index of the argument, comparison, value) do.
fn rules<const N: usize>(all: [Vec<(u8, SeccompCmpOp, u64)>; N]) -> Vec<SeccompRule> {
    all.into_iter()
        .map(|conditions| {
            let conditions = conditions.into_iter().map(|(index, comparison, value)| {
                SeccompCondition::new(index, SeccompCmpArgLen::Dword, comparison, value)
                    .expect("system calls have more arguments than are looked at")
            });
            SeccompRule::new(conditions.collect()).expect("every rule has a condition")
        })
        .collect()
}

fn install(mut calls: Rules, errno: libc::c_int) -> bool {
    let Ok(arch) = TargetArch::try_from(std::env::consts::ARCH) else { return false };
    if arch == TargetArch::x86_64 {
        let again: Rules = calls.iter().map(|(call, rules)| (call | X32, rules.clone())).collect();
        calls.extend(again);
    }
    let errno = u32::try_from(errno).unwrap_or_default();
    SeccompFilter::new(calls, SeccompAction::Allow, SeccompAction::Errno(errno), arch)
        .and_then(BpfProgram::try_from)
        .is_ok_and(|program| seccompiler::apply_filter(&program).is_ok())
}
