//! The patterns of rules and policies: few forms, so that whoever reads one knows what it allows.

/// True when `pattern`, in which `*` stands for any characters, covers the name of a tool.
pub fn covers(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = name.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let Some(last) = pattern.contains('*').then(|| parts.next_back().unwrap_or_default()) else {
        return rest.is_empty();
    };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// True when any of `patterns` covers the name.
pub fn any(patterns: &[String], name: &str) -> bool {
    patterns.iter().any(|pattern| covers(pattern, name))
}

/// True when the pattern of a rule fits what a call is about: `*` fits everything, `git status *` that command with any
/// further words or none, `~/notes/**` everything below that folder, `*.example.org` every host below it; anything else
/// fits itself.
pub fn fits(pattern: &str, subject: &str) -> bool {
    if pattern == "*" {
        return true;
    }
    if let Some(folder) = pattern.strip_suffix("/**") {
        return subject.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/') && rest.len() > 1);
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
    fn names_are_covered() {
        for (pattern, name, wanted) in [
            ("read", "read", true),
            ("read", "read_skill", false),
            ("read*", "read_skill", true),
            ("*", "anything", true),
            ("", "", true),
            ("", "a", false),
            ("github_*_issue", "github_create_issue", true),
            ("github_*_issue", "github_issue", false),
            ("*_issue", "github_create_issue", true),
            ("a*a", "a", false),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxcyyb", false),
        ] {
            assert_eq!(covers(pattern, name), wanted, "{pattern} {name}");
        }
    }

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
            ("~/notes/**", "~/notes", false),
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
