//! `write` and `edit`: a file is replaced as a whole, at once or not at all.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;

use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::{Mode, SFlag, fchmod};
use nix::unistd::{UnlinkatFlags, unlinkat};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::reach::{self, FILE_BYTES_MAX, Granted, Reach};
use super::{Shared, failed, said, text};
use crate::id::{fresh, sha256_hex};
use crate::sandbox::{Place, make_folder};
use crate::tools::{Call, Output, Preview, ToolFailure};

/// What a call would change, so that an approval holds for just that.
pub(super) fn preview(shared: &Shared, call: &Call) -> Result<Preview, ToolFailure> {
    let reach = Reach::new(shared, &call.caller.policy);
    let granted = reach.within(text(call, "path"), "path", true)?;
    let before = match reach.find(&granted, true)? {
        Some(place) => Some(reach::bytes(&place, &granted.shown)?),
        None => None,
    };
    let what = match (&before, call.tool.as_str()) {
        (None, "write") => format!("makes {} with {} bytes", granted.shown, text(call, "content").len()),
        (None, _) => format!("changes {}, which is not there", granted.shown),
        (Some((bytes, digest)), "write") => format!(
            "replaces {} ({} bytes, sha256 {digest}) by {} bytes",
            granted.shown,
            bytes.len(),
            text(call, "content").len()
        ),
        (Some((bytes, digest)), _) => format!("changes {} ({} bytes, sha256 {digest})", granted.shown, bytes.len()),
    };
    let pattern = reach::pattern(&granted, false);
    Ok(Preview { text: Some(what), ..Preview::about(granted.shown, pattern) })
}

/// `write`
pub(super) fn write(shared: &Shared, call: &Call, _cancel: &CancellationToken) -> Result<Output, ToolFailure> {
    let reach = Reach::new(shared, &call.caller.policy);
    let granted = reach.within(text(call, "path"), "path", true)?;
    let before = reach.find(&granted, true)?;
    if let Some(expected) = call.arguments["expected_digest"].as_str() {
        let now = before.as_ref().map(|place| reach::bytes(place, &granted.shown)).transpose()?;
        check(expected, now.as_ref().map(|(_, digest)| digest.as_str()), &granted)?;
    }
    put(&reach, &granted, before.as_ref(), text(call, "content"))
}

/// `edit`
pub(super) fn edit(shared: &Shared, call: &Call, _cancel: &CancellationToken) -> Result<Output, ToolFailure> {
    let reach = Reach::new(shared, &call.caller.policy);
    let granted = reach.within(text(call, "path"), "path", true)?;
    let Some(place) = reach.find(&granted, true)? else {
        return Err(failed(format!("there is no '{}'; write makes it", granted.shown)));
    };
    let (content, digest) = reach::content(&place, &granted.shown)?;
    if let Some(expected) = call.arguments["expected_digest"].as_str() {
        check(expected, Some(&digest), &granted)?;
    }
    let (old, new) = (text(call, "old"), text(call, "new"));
    let times = content.matches(old).count();
    if times == 0 {
        return Err(failed(format!("the old text is not in '{}'; read it again", granted.shown)));
    }
    if times > 1 && call.arguments["all"] != true {
        let what =
            format!("the old text is in '{}' {times} times; give more of what is around it, or all", granted.shown);
        return Err(failed(what));
    }
    // Room for the new content is not taken before it is known to be small.
    let added = new.len().checked_mul(times);
    let bytes =
        added.and_then(|added| added.checked_add(content.len().saturating_sub(old.len().saturating_mul(times))));
    sized(bytes, &granted.shown)?;
    put(&reach, &granted, Some(&place), &content.replace(old, new))
}

fn check(expected: &str, now: Option<&str>, granted: &Granted) -> Result<(), ToolFailure> {
    match now {
        Some(now) if now == expected => Ok(()),
        Some(now) => Err(failed(format!("'{}' was changed: its sha256 is {now}. Read it again", granted.shown))),
        None => Err(failed(format!("there is no '{}' with that digest", granted.shown))),
    }
}

/// Refuses a content of more bytes than a file may have.
fn sized(bytes: Option<usize>, shown: &str) -> Result<(), ToolFailure> {
    if bytes.is_some_and(|bytes| bytes as u64 <= FILE_BYTES_MAX) {
        return Ok(());
    }
    Err(failed(format!("'{shown}' would have more than {FILE_BYTES_MAX} bytes")))
}

/// Puts `content` in place of what was there.
fn put(reach: &Reach<'_>, granted: &Granted, before: Option<&Place>, content: &str) -> Result<Output, ToolFailure> {
    let shown = &granted.shown;
    sized(Some(content.len()), shown)?;
    if before.is_some_and(|place| !place.is(SFlag::S_IFREG)) {
        return Err(ToolFailure::Refused(
            "path_not_granted",
            format!("'{shown}' cannot be used: it is no plain file."),
        ));
    }
    let (Some(folder), Some(name)) = (granted.path.parent(), granted.path.file_name()) else {
        return Err(ToolFailure::Arguments("/path".to_owned(), "names no file".to_owned()));
    };
    let refused = |why: String| ToolFailure::Refused("path_not_granted", format!("'{shown}' cannot be used: {why}."));
    if folder.starts_with(&granted.grant) {
        // Nothing is made in what is the daemon's own.
        for above in folder.ancestors().take_while(|above| above.starts_with(&granted.grant)) {
            if reach.guard.find(above, true).map_err(refused)?.is_some() {
                break;
            }
        }
        make_folder(&granted.grant, folder).map_err(refused)?;
    }
    let folder = reach.guard.find(folder, true).map_err(refused)?;
    let folder = folder.ok_or_else(|| failed(format!("the folder of '{shown}' is not there")))?;
    let mode = before.map_or(0o644, |place| place.status.st_mode & 0o777);
    replace(&folder, name.as_bytes(), content.as_bytes(), mode)
        .map_err(|error| failed(format!("'{shown}' could not be written, and is as it was: {error}")))?;
    let digest = sha256_hex(content.as_bytes());
    let value = json!({ "path": shown, "digest": digest, "bytes": content.len(), "made": before.is_none() });
    Ok(said(format!("Wrote {} bytes to {shown} [sha256 {digest}]", content.len()), Some(value)))
}

/// Writes beside the file, then takes its place; both on disk when this returns.
fn replace(folder: &Place, name: &[u8], content: &[u8], mode: u32) -> std::io::Result<()> {
    let beside = OsString::from(format!(".aman-{}.tmp", fresh()));
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let handle = openat(&folder.handle, beside.as_os_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
    let written = || {
        let mut file = File::from(handle);
        file.write_all(content)?;
        fchmod(&file, Mode::from_bits_truncate(mode))?;
        file.sync_all()?;
        renameat(&folder.handle, beside.as_os_str(), &folder.handle, name)?;
        let folder =
            openat(&folder.handle, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        File::from(folder).sync_all()
    };
    written().inspect_err(|_| {
        // What could not take its place is in nobody's way.
        let _gone = unlinkat(&folder.handle, beside.as_os_str(), UnlinkatFlags::NoRemoveDir);
    })
}
