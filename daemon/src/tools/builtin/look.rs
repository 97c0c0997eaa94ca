//! `read`, `list`, `find` and `grep`: looking at what lies in granted folders.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use globset::{GlobBuilder, GlobMatcher};
use nix::sys::stat::SFlag;
use regex::bytes::{Regex, RegexBuilder};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::reach::{self, Granted, Reach};
use super::{Shared, failed, number, said, text};
use crate::sandbox::Place;
use crate::tools::{Call, Output, Preview, ToolFailure};

/// Room of an answer, in bytes; what is over is left for the next call.
const ANSWER_BYTES_MAX: usize = 48 << 10;
/// Entries of one folder that are shown.
const ENTRIES_MAX: usize = 1000;
/// Entries that one search looks at, how deep, and for how long.
const SEEN_MAX: usize = 200_000;
const DEPTH_MAX: usize = 32;
const TIME_MAX: Duration = Duration::from_secs(10);
/// Results of a search unless it says how many.
const RESULTS: usize = 200;
/// Longest line that is searched and shown, in bytes.
const LINE_BYTES_MAX: usize = 16 << 10;
const SHOWN_BYTES_MAX: usize = 400;
/// What a regular expression may cost, in bytes of its compiled form.
const PATTERN_BYTES_MAX: usize = 256 << 10;

/// What a call would look at.
pub(super) fn preview(shared: &Shared, call: &Call) -> Result<Preview, ToolFailure> {
    let reach = Reach::new(shared, &call.caller.policy);
    let granted = reach.within(text(call, "path"), "path", false)?;
    let pattern = reach::pattern(&granted, call.tool != "read");
    Ok(Preview::about(granted.shown, pattern))
}

/// `read`
pub(super) fn read(shared: &Shared, call: &Call, _cancel: &CancellationToken) -> Result<Output, ToolFailure> {
    let reach = Reach::new(shared, &call.caller.policy);
    let granted = reach.within(text(call, "path"), "path", false)?;
    let (content, digest) = reach::content(&reach.there(&granted)?, &granted.shown)?;
    let (first, wanted) = (number(call, "offset").unwrap_or(1), number(call, "limit").unwrap_or(usize::MAX));
    let all = content.lines().count();
    let (mut shown, mut lines, mut cut) = (String::new(), 0, false);
    for line in content.split_inclusive('\n').skip(first - 1).take(wanted) {
        if shown.len() + line.len() > ANSWER_BYTES_MAX {
            cut = true;
            if lines == 0 {
                // One endless line: its beginning is better than nothing.
                let end =
                    (0..=ANSWER_BYTES_MAX.min(line.len())).rev().find(|at| line.is_char_boundary(*at)).unwrap_or(0);
                shown.push_str(&line[..end]);
                lines = 1;
            }
            break;
        }
        shown.push_str(line);
        lines += 1;
    }
    let last = first + lines.max(1) - 1;
    if cut || last < all {
        shown.push_str(&format!("\n[lines {first} to {last} of {all}; go on with offset {}]", last + 1));
    }
    let value =
        json!({ "path": granted.shown, "digest": digest, "lines": all, "bytes": content.len(), "content": shown });
    Ok(said(format!("{shown}\n[sha256 {digest}]"), Some(value)))
}

fn kind(place: &Place) -> &'static str {
    if place.is(SFlag::S_IFREG) {
        "file"
    } else if place.is(SFlag::S_IFDIR) {
        "folder"
    } else {
        "other"
    }
}

/// The names in a folder, sorted; at most so many.
fn names(folder: &Place, shown: &str, most: usize) -> Result<(Vec<OsString>, bool), ToolFailure> {
    let wrong = |error: std::io::Error| failed(format!("'{shown}' cannot be listed: {error}"));
    let mut names = Vec::new();
    for entry in folder.entries().map_err(wrong)? {
        if names.len() == most {
            names.sort();
            return Ok((names, true));
        }
        names.push(entry.map_err(wrong)?.file_name());
    }
    names.sort();
    Ok((names, false))
}

/// `list`
pub(super) fn list(shared: &Shared, call: &Call, cancel: &CancellationToken) -> Result<Output, ToolFailure> {
    let reach = Reach::new(shared, &call.caller.policy);
    let granted = reach.within(text(call, "path"), "path", false)?;
    let folder = reach.there(&granted)?;
    if !folder.is(SFlag::S_IFDIR) {
        return Err(failed(format!("'{}' is no folder", granted.shown)));
    }
    let (names, more) = names(&folder, &granted.shown, ENTRIES_MAX)?;
    let (mut lines, mut items) = (String::new(), Vec::new());
    for name in names {
        if cancel.is_cancelled() {
            return Err(failed("it was stopped"));
        }
        let shown = name.to_string_lossy();
        // Links and what is the daemon's own are named, and nothing more.
        let found = reach.guard.find_in(&folder, &name, false).ok().flatten();
        let (kind, bytes) = found.as_ref().map_or(("not followed", 0), |place| (kind(place), place.status.st_size));
        match kind {
            "folder" => lines.push_str(&format!("{shown}/\n")),
            "file" => lines.push_str(&format!("{shown}  {bytes} bytes\n")),
            other => lines.push_str(&format!("{shown}  ({other})\n")),
        }
        items.push(json!({ "name": shown, "kind": kind, "bytes": bytes }));
    }
    if more {
        lines.push_str(&format!("[there are more than {ENTRIES_MAX}; find looks for some of them]\n"));
    }
    Ok(said(lines, Some(json!({ "path": granted.shown, "items": items, "more": more }))))
}

/// Goes through everything below a folder, in order of names.
struct Walk<'a> {
    reach: &'a Reach<'a>,
    cancel: &'a CancellationToken,
    until: Instant,
    seen: usize,
    /// Why it did not see everything.
    cut: Option<String>,
}

impl Walk<'_> {
    /// Calls `visit` with every plain file and its path below the folder, until that says false.
    fn go(&mut self, folder: &Place, below: &str, depth: usize, visit: &mut dyn FnMut(&Place, &str) -> bool) -> bool {
        let Ok((names, _)) = names(folder, below, SEEN_MAX) else { return true };
        for name in names {
            self.seen += 1;
            if self.cancel.is_cancelled() || self.seen > SEEN_MAX || Instant::now() > self.until {
                self.cut = Some(format!("stopped after {} entries; name a smaller folder", self.seen));
                return false;
            }
            let Ok(Some(place)) = self.reach.guard.find_in(folder, &name, false) else { continue };
            let inside = format!("{below}{}", name.to_string_lossy());
            let go_on = if place.is(SFlag::S_IFDIR) {
                depth >= DEPTH_MAX || self.go(&place, &format!("{inside}/"), depth + 1, visit)
            } else {
                !place.is(SFlag::S_IFREG) || visit(&place, &inside)
            };
            if !go_on {
                return false;
            }
        }
        true
    }
}

/// A glob; one without a slash is about names, wherever they are.
fn glob(call: &Call, name: &str) -> Result<Option<GlobMatcher>, ToolFailure> {
    let written = text(call, name);
    if written.is_empty() {
        return Ok(None);
    }
    let whole = if written.contains('/') { written.to_owned() } else { format!("**/{written}") };
    let built = GlobBuilder::new(&whole).literal_separator(true).build();
    let built = built.map_err(|error| ToolFailure::Arguments(format!("/{name}"), format!("is no glob: {error}")))?;
    Ok(Some(built.compile_matcher()))
}

fn searched<'a>(reach: &'a Reach<'a>, call: &Call) -> Result<(Granted, Place), ToolFailure> {
    let granted = reach.within(text(call, "path"), "path", false)?;
    let place = reach.there(&granted)?;
    Ok((granted, place))
}

fn walk<'a>(reach: &'a Reach<'a>, cancel: &'a CancellationToken) -> Walk<'a> {
    Walk { reach, cancel, until: Instant::now() + TIME_MAX, seen: 0, cut: None }
}

/// `find`
pub(super) fn find(shared: &Shared, call: &Call, cancel: &CancellationToken) -> Result<Output, ToolFailure> {
    let reach = Reach::new(shared, &call.caller.policy);
    let (granted, folder) = searched(&reach, call)?;
    let (Some(glob), limit) = (glob(call, "pattern")?, number(call, "limit").unwrap_or(RESULTS)) else {
        return Err(ToolFailure::Arguments("/pattern".to_owned(), "must not be empty".to_owned()));
    };
    if !folder.is(SFlag::S_IFDIR) {
        return Err(failed(format!("'{}' is no folder", granted.shown)));
    }
    let (mut found, mut more) = (Vec::new(), false);
    let mut walk = walk(&reach, cancel);
    walk.go(&folder, "", 0, &mut |place, below| {
        if !glob.is_match(below) {
            return true;
        }
        if found.len() == limit {
            more = true;
            return false;
        }
        found.push(reach.shown(&place.path));
        true
    });
    let mut lines: String = found.iter().map(|path| format!("{path}\n")).collect();
    if found.is_empty() {
        lines.push_str("[nothing fits]\n");
    }
    note(&mut lines, more, walk.cut.as_ref());
    Ok(said(lines, Some(json!({ "items": found, "more": more || walk.cut.is_some() }))))
}

fn note(lines: &mut String, more: bool, cut: Option<&String>) {
    if more {
        lines.push_str("[there are more; raise limit, or ask for less]\n");
    }
    if let Some(cut) = cut {
        lines.push_str(&format!("[{cut}]\n"));
    }
}

fn regex(call: &Call) -> Result<Regex, ToolFailure> {
    let mut builder = RegexBuilder::new(text(call, "pattern"));
    builder.size_limit(PATTERN_BYTES_MAX).dfa_size_limit(PATTERN_BYTES_MAX).nest_limit(32);
    if call.arguments["ignore_case"] == true {
        builder.case_insensitive(true);
    }
    builder.build().map_err(|error| ToolFailure::Arguments("/pattern".to_owned(), format!("is no pattern: {error}")))
}

/// `grep`
pub(super) fn grep(shared: &Shared, call: &Call, cancel: &CancellationToken) -> Result<Output, ToolFailure> {
    let reach = Reach::new(shared, &call.caller.policy);
    let (granted, place) = searched(&reach, call)?;
    let (regex, glob, limit) = (regex(call)?, glob(call, "glob")?, number(call, "limit").unwrap_or(RESULTS));
    let (mut lines, mut items, mut more) = (String::new(), Vec::new(), false);
    let until = Instant::now() + TIME_MAX;
    let mut look = |place: &Place, below: &str| {
        if glob.as_ref().is_some_and(|glob| !glob.is_match(below)) {
            return true;
        }
        let Ok(content) = reach::plain(place, below) else { return true };
        if content.iter().take(8192).any(|byte| *byte == 0) {
            // No text.
            return true;
        }
        for (n, line) in content.split(|byte| *byte == b'\n').enumerate() {
            if cancel.is_cancelled() || Instant::now() > until {
                more = true;
                return false;
            }
            let line = &line[..line.len().min(LINE_BYTES_MAX)];
            if !regex.is_match(line) {
                continue;
            }
            if items.len() == limit || lines.len() > ANSWER_BYTES_MAX {
                more = true;
                return false;
            }
            let shown = String::from_utf8_lossy(&line[..line.len().min(SHOWN_BYTES_MAX)]).trim_end().to_owned();
            let path = reach.shown(&place.path);
            lines.push_str(&format!("{path}:{}: {shown}\n", n + 1));
            items.push(json!({ "path": path, "line": n + 1, "text": shown }));
        }
        true
    };
    let mut cut = None;
    if place.is(SFlag::S_IFDIR) {
        let mut walk = walk(&reach, cancel);
        walk.go(&place, "", 0, &mut look);
        cut = walk.cut;
    } else {
        look(&place, &granted.shown);
    }
    if items.is_empty() {
        lines.push_str("[nothing matches]\n");
    }
    note(&mut lines, more, cut.as_ref());
    Ok(said(lines, Some(json!({ "items": Value::Array(items), "more": more || cut.is_some() }))))
}
