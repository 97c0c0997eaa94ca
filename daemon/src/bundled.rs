//! What comes inside the binary.

pub mod templates;

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::error::Error;

/// The page at `/`: one document, whose only style and only script its policy names by their digests.
pub const PAGE: &str = concat!(
    "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n",
    "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n",
    "<link rel=\"icon\" href=\"data:,\">\n<title>aman</title>\n<style>\n",
    include_str!("../console/page.css"),
    "</style>\n</head>\n",
    include_str!("../console/page.html"),
    "<script>\n\"use strict\";\n",
    include_str!("../console/approvals.js"),
    include_str!("../console/chat.js"),
    include_str!("../console/page.js"),
    "</script>\n</body>\n</html>\n"
);
/// The page that ends a login; the session's value goes in the place of `{{session}}`.
pub const LOGIN_PAGE: &str = include_str!("../console/login.html");
/// What a browser is shown whose login link is used up or too old.
pub const USED_PAGE: &str = include_str!("../console/used.html");

/// Who the assistant is until somebody writes another `SOUL.md`.
pub const SOUL: &str = include_str!("../../soul/SOUL.md");

/// A skill inside the binary: its name, and its files as paths from its folder with their texts.
struct Skill {
    name: &'static str,
    files: &'static [(&'static str, &'static str)],
}

macro_rules! skill {
    ($name:literal: $($file:literal),+) => {
        Skill { name: $name, files: &[$(($file, include_str!(concat!("../../skills/", $name, "/", $file)))),+] }
    };
}

macro_rules! workflow {
    ($name:literal) => {
        ($name, include_str!(concat!("../../workflows/", $name, ".yaml")))
    };
}

/// The workflows inside the binary: their names and definitions.
pub const WORKFLOWS: &[(&str, &str)] = &[
    workflow!("approve-incoming-file"),
    workflow!("daily-digest"),
    workflow!("explore"),
    workflow!("probe-until-healthy"),
    workflow!("webhook-fan-out"),
];

/// The agents inside the binary: their ids and definitions.
pub const AGENTS: &[(&str, &str)] = &[("aman", include_str!("../../soul/aman.toml"))];

const SKILLS: &[Skill] = &[
    skill!("dlq-summary": "SKILL.md", "scripts/summarize.sh"),
    skill!("folder-digest": "SKILL.md", "scripts/digest.sh"),
    skill!("inbox-triage": "SKILL.md", "rules.txt", "scripts/triage.sh"),
];

/// Makes `into` hold exactly the bundled skills: scripts need real files. What is right already is not touched; each
/// folder appears whole or not at all.
pub fn unpack_skills(into: &Path) -> Result<(), Error> {
    unpack(into).map_err(Error::internal("unpacking the bundled skills"))
}

fn unpack(into: &Path) -> io::Result<()> {
    fs::create_dir_all(into)?;
    for entry in fs::read_dir(into)? {
        let entry = entry?;
        let right = SKILLS.iter().any(|skill| entry.file_name() == skill.name && is_right(&entry.path(), skill));
        if !right {
            remove(&entry.path())?;
        }
    }
    for skill in SKILLS {
        let path = into.join(skill.name);
        if path.exists() {
            continue;
        }
        // A leftover of an unpacking that was cut off begins with a dot and was removed above.
        let making = into.join(format!(".{}", skill.name));
        for (file, text) in skill.files {
            let file = making.join(file);
            fs::create_dir_all(file.parent().unwrap_or(&making))?;
            fs::write(&file, text)?;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o644))?;
        }
        fs::rename(&making, &path)?;
    }
    Ok(())
}

/// True when the folder holds the files of `skill` and nothing else.
fn is_right(path: &Path, skill: &Skill) -> bool {
    let same = skill.files.iter().all(|(file, text)| fs::read(path.join(file)).is_ok_and(|now| now == text.as_bytes()));
    same && files(path).is_ok_and(|files| files.len() == skill.files.len())
}

fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (mut found, mut folders) = (Vec::new(), vec![path.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() { folders.push(entry.path()) } else { found.push(entry.path()) }
        }
    }
    Ok(found)
}

fn remove(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpacking_repairs_and_leaves_what_is_right() {
        let into = std::env::temp_dir().join(format!("aman-bundled-{}", std::process::id()));
        let _ = fs::remove_dir_all(&into);
        unpack_skills(&into).expect("unpacked");
        let file = |name: &str| into.join("inbox-triage").join(name);
        let before = fs::metadata(file("SKILL.md")).expect("there").modified().expect("a time");
        fs::write(into.join("dlq-summary/extra"), "x").expect("file");
        fs::write(into.join("folder-digest/SKILL.md"), "changed").expect("file");
        fs::create_dir_all(into.join("gone")).expect("folder");
        fs::create_dir_all(into.join(".dlq-summary/half")).expect("folder");
        unpack_skills(&into).expect("unpacked again");
        let mut names: Vec<_> =
            fs::read_dir(&into).expect("there").map(|e| e.expect("entry").file_name().into_string()).collect();
        names.sort();
        assert_eq!(names, ["dlq-summary", "folder-digest", "inbox-triage"].map(|name| Ok(name.to_owned())));
        assert_eq!(before, fs::metadata(file("SKILL.md")).expect("there").modified().expect("a time"));
        for skill in SKILLS {
            assert!(is_right(&into.join(skill.name), skill), "{}", skill.name);
        }
        let _ = fs::remove_dir_all(&into);
    }
}
