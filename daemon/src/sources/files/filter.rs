//! Which files of a folder matter: patterns, what is ignored, hidden names. Pure.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use crate::error::Error;

/// Most patterns of one list.
pub const PATTERNS_MAX: usize = 256;

/// Never reported, whatever the patterns: version control, and names of files that are not finished or not meant.
const IGNORED: [&str; 20] = [
    "**/.git/**",
    "**/.hg/**",
    "**/.svn/**",
    "**/.jj/**",
    "**/*.swp",
    "**/*.swpx",
    "**/.*.swo",
    "**/4913",
    "**/*~",
    "**/.#*",
    "**/#*#",
    "**/*.part",
    "**/*.partial",
    "**/*.crdownload",
    "**/*.download",
    "**/*.tmp",
    "**/*.temp",
    "**/.~lock.*#",
    "**/.goutputstream-*",
    "**/.nfs*",
];

/// Decides by a path relative to the root whether a file is reported and a folder is looked into.
///
/// A pattern is matched against the whole relative path: `*` stays within a folder, `**` crosses folders. What begins
/// with a dot is left out, unless a pattern has a part that begins with a dot and matches. A pattern to ignore that
/// matches a folder ignores everything below it.
#[derive(Debug, Clone)]
pub struct Filter {
    wanted: GlobSet,
    wanted_hidden: GlobSet,
    ignored: GlobSet,
    text: String,
}

impl Filter {
    /// Compiles the patterns; no pattern means every file. The error names the list and the pattern.
    pub fn new(patterns: &[String], ignore: &[String]) -> Result<Filter, Error> {
        let everything = ["**".to_owned()];
        let wanted = if patterns.is_empty() { &everything[..] } else { patterns };
        let hidden: Vec<&String> =
            wanted.iter().filter(|p| p.split('/').any(|part| part.starts_with('.') && part != ".")).collect();
        let built_in = IGNORED.iter().map(|pattern| (*pattern).to_owned());
        let ignored: Vec<String> = built_in.chain(ignore.iter().cloned()).flat_map(with_folder).collect();
        Ok(Filter {
            wanted: compile("patterns", wanted.iter())?,
            wanted_hidden: compile("patterns", hidden.into_iter())?,
            ignored: compile("ignore", ignored.iter())?,
            text: serde_json::json!({ "patterns": patterns, "ignore": ignore }).to_string(),
        })
    }

    /// Reads back what [`Filter::text`] wrote; none when it cannot be read.
    pub fn of_text(text: &str) -> Option<Filter> {
        let lists: serde_json::Value = serde_json::from_str(text).ok()?;
        let list = |name: &str| serde_json::from_value::<Vec<String>>(lists.get(name)?.clone()).ok();
        Filter::new(&list("patterns")?, &list("ignore")?).ok()
    }

    /// The patterns as JSON, equal for equal patterns.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// True when a regular file at this path is reported.
    pub fn takes_file(&self, path: &[u8]) -> bool {
        let wanted = if is_hidden(path) { &self.wanted_hidden } else { &self.wanted };
        wanted.is_match(as_path(path)) && !self.is_ignored(path)
    }

    /// True when files below a folder at this path may be reported.
    pub fn takes_folder(&self, path: &[u8]) -> bool {
        (!is_hidden(path) || !self.wanted_hidden.is_empty()) && !self.is_ignored(path)
    }

    fn is_ignored(&self, path: &[u8]) -> bool {
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        ends.chain([path.len()]).any(|end| self.ignored.is_match(as_path(&path[..end])))
    }
}

/// `a/**` also stands for `a`, so that the folder is not even opened.
fn with_folder(pattern: String) -> Vec<String> {
    match pattern.strip_suffix("/**") {
        Some(folder) if !folder.is_empty() && folder != "**" => vec![folder.to_owned(), pattern],
        _ => vec![pattern],
    }
}

fn is_hidden(path: &[u8]) -> bool {
    path.split(|byte| *byte == b'/').any(|part| part.first() == Some(&b'.'))
}

fn as_path(path: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(path))
}

fn compile<'p>(field: &str, patterns: impl Iterator<Item = &'p String>) -> Result<GlobSet, Error> {
    let mut set = GlobSetBuilder::new();
    for (n, pattern) in patterns.enumerate() {
        if n >= PATTERNS_MAX {
            return Err(Error::invalid(field, format!("has more than {PATTERNS_MAX} patterns.")));
        }
        let relative = pattern.strip_prefix("./").unwrap_or(pattern);
        if relative.is_empty() || relative.starts_with('/') || relative.split('/').any(|part| part == "..") {
            let reason = format!("'{pattern}' must be relative to the folder, such as **/*.md.");
            return Err(Error::invalid(field, reason));
        }
        let glob = GlobBuilder::new(relative)
            .literal_separator(true)
            .build()
            .map_err(|error| Error::invalid(field, format!("'{pattern}' is no pattern: {error}.")))?;
        set.add(glob);
    }
    set.build().map_err(|error| Error::invalid(field, format!("cannot be compiled: {error}.")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(patterns: &[&str], ignore: &[&str]) -> Filter {
        let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        Filter::new(&owned(patterns), &owned(ignore)).expect("the patterns are good")
    }

    #[test]
    fn patterns_choose_files() {
        let cases: [(&[&str], &[&str], &str, bool); 21] = [
            (&[], &[], "a.txt", true),
            (&[], &[], "a/b/c", true),
            (&[], &[], ".hidden", false),
            (&[], &[], "a/.hidden/b", false),
            (&[], &[], "a/.git/config", false),
            (&[".git/**"], &[], ".git/config", false),
            (&[], &[], "a.txt~", false),
            (&[], &[], "movie.mkv.part", false),
            (&["**/*.md"], &[], "a.md", true),
            (&["**/*.md"], &[], "x/y/a.md", true),
            (&["**/*.md"], &[], "a.txt", false),
            (&["*.md"], &[], "x/a.md", false),
            (&["./*.md"], &[], "a.md", true),
            (&["*.{md,txt}"], &[], "a.txt", true),
            (&["**/.env"], &[], "x/.env", true),
            (&["**/.env"], &[], "x/.other", false),
            (&["**/*"], &[], "x/.env", false),
            (&[".config/**"], &[], ".config/a/b", true),
            (&[], &["build"], "x/build", true),
            (&[], &["**/build"], "x/build/y/z", false),
            (&[], &["node_modules/**"], "node_modules/y/z", false),
        ];
        for (patterns, ignore, path, expected) in cases {
            let filter = filter(patterns, ignore);
            assert_eq!(filter.takes_file(path.as_bytes()), expected, "{patterns:?} {ignore:?} {path}");
        }
    }

    #[test]
    fn folders_are_left_out_whole() {
        let plain = filter(&[], &["**/target/**"]);
        for (path, expected) in
            [("a", true), ("a/.b", false), (".git", false), ("a/target", false), ("a/targets", true)]
        {
            assert_eq!(plain.takes_folder(path.as_bytes()), expected, "{path}");
        }
        assert!(filter(&[".config/**"], &[]).takes_folder(b".config"));
        assert!(plain.takes_file(b"a/b\xFF\xFE.txt"), "names need not be UTF-8");
    }

    #[test]
    fn bad_patterns_name_their_list() {
        for (patterns, ignore, field) in [("[", "a", "patterns"), ("a", "/etc/*", "ignore"), ("../x", "a", "patterns")]
        {
            let error = Filter::new(&[patterns.to_owned()], &[ignore.to_owned()]).expect_err("refused");
            assert!(error.to_string().starts_with(field), "{error}");
        }
    }

    #[test]
    fn text_reads_back() {
        let one = filter(&["**/*.md"], &["x/**"]);
        let again = Filter::of_text(one.text()).expect("it was written by a filter");
        assert_eq!(again.text(), one.text());
        assert!(Filter::of_text("nonsense").is_none());
    }
}
