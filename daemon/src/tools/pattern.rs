//! The patterns of rules and policies: few forms, so that whoever reads one knows what it allows.

use crate::text;

/// True when any of `patterns`, in which `*` stands for any characters, covers the name of a tool.
pub fn any(patterns: &[String], name: &str) -> bool {
    patterns.iter().any(|pattern| text::pattern::fits(pattern, name))
}

/// True when the pattern of a rule fits what a call is about: `*` fits everything, `git status *` that command with any
/// further words or none, `~/notes/**` that folder and everything below it, `*.example.org` every host below it; anything else
/// fits itself.
pub fn fits(pattern: &str, subject: &str) -> bool {
    if pattern == "*" {
        return true;
    }
    if let Some(folder) = pattern.strip_suffix("/**") {
        return subject
            .strip_prefix(folder)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') && rest.len() > 1);
    }
    if let Some(words) = pattern.strip_suffix(" *") {
        return subject.strip_prefix(words).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '));
    }
    if let Some(domain) = pattern.strip_prefix("*.") {
        return subject.strip_suffix(domain).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'));
    }
    pattern == subject
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_fit_what_they_say() {
        for (pattern, subject, wanted) in [
            ("*", "rm -rf /", true),
            ("git status *", "git status", true),
            ("git status *", "git status -s", true),
            ("git status *", "git statusx", false),
            ("git status *", "git -c a=b status", false),
            ("git log", "git log -p", false),
            ("~/notes/**", "~/notes/a/b.md", true),
            ("~/notes/**", "~/notes", true),
            ("~/notes/**", "~/notes/", false),
            ("~/notes/**", "~/notes2/a", false),
            ("example.org", "example.org", true),
            ("example.org", "www.example.org", false),
            ("*.example.org", "www.example.org", true),
            ("*.example.org", "example.org", false),
            ("*.example.org", "badexample.org", false),
        ] {
            assert_eq!(fits(pattern, subject), wanted, "{pattern} {subject}");
        }
    }
}
