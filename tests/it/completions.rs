//! `aman completions`: bash completes with it, zsh and fish read it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::harness::{Folder, command};

/// Where `scripts/setup test` unpacked the shells that are not there.
fn shells() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/shells")
}

fn script(shell: &str) -> Vec<u8> {
    let folder = Folder::new("completions");
    let output = command(folder.path()).args(["completions", shell]).output().expect("the binary starts");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0, "it needs no daemon and makes no file");
    output.stdout
}

/// What Tab offers after these words in bash; the last one is being written.
fn offered(words: &[&str]) -> Vec<String> {
    let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
    let (last, before) = (words.last().copied().unwrap_or_default(), words[words.len() - 2]);
    // What bash itself does on Tab: the words, the place, and the function that `complete -p` names.
    let ask = format!(
        "\nCOMP_WORDS=({}); COMP_CWORD={}; COMP_LINE='{}'; COMP_POINT=${{#COMP_LINE}}\n\
         how=$(complete -p aman); how=${{how#* -F }}; \"${{how%% *}}\" aman '{last}' '{before}'\n\
         printf '%s\\n' \"${{COMPREPLY[@]}}\"\n",
        quoted.join(" "),
        words.len() - 1,
        words.join(" "),
    );
    let mut bash = Command::new("bash")
        .args(["--norc", "--noprofile", "-s"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("bash is there");
    let mut input = bash.stdin.take().expect("stdin is piped");
    let text = [script("bash"), ask.into_bytes()].concat();
    let writing = std::thread::spawn(move || input.write_all(&text));
    let output = bash.wait_with_output().expect("bash ends");
    writing.join().expect("the writer does not panic").expect("bash reads it all");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

/// Goal: Tab in bash completes commands, their flags and the values of a fixed choice.
#[test]
fn bash_completes() {
    let cases: [(&[&str], &[&str], &[&str]); 6] = [
        (&["aman", "stat"], &["status"], &["serve"]),
        (&["aman", ""], &["serve", "doctor", "completions", "why"], &["list"]),
        (&["aman", "dlq", ""], &["list", "retry", "discard"], &["serve"]),
        (&["aman", "dlq", "retry", "--y"], &["--yes"], &["--limit"]),
        (&["aman", "serve", "--b"], &["--bind"], &["--log"]),
        (&["aman", "completions", ""], &["bash", "zsh", "fish"], &["powershell"]),
    ];
    for (words, wanted, unwanted) in cases {
        let found = offered(words);
        let has = |word: &&&str| found.iter().any(|offer| offer == **word);
        assert!(wanted.iter().all(|word| has(&word)), "{words:?} offers {found:?}, not all of {wanted:?}");
        assert!(!unwanted.iter().any(|word| has(&word)), "{words:?} offers {found:?}, some of {unwanted:?}");
    }
}

/// Goal: zsh and fish accept the scripts as theirs.
#[test]
fn zsh_and_fish_parse() {
    let folder = Folder::new("scripts");
    let libraries = ["usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu"];
    let libraries: Vec<String> = libraries.iter().map(|path| shells().join(path).display().to_string()).collect();
    for (name, program, check) in [("zsh", "bin/zsh-static", "-n"), ("fish", "usr/bin/fish", "--no-execute")] {
        let file = folder.path().join(name);
        std::fs::write(&file, script(name)).expect("a script");
        let run = |file: &Path| {
            let mut shell = Command::new(shells().join(program));
            shell.arg(check).arg(file).env("HOME", folder.path()).env("LD_LIBRARY_PATH", libraries.join(":"));
            shell.output().expect("scripts/setup test fetches the shell")
        };
        let output = run(&file);
        assert!(output.status.success() && output.stderr.is_empty(), "{name}: {output:?}");
        // It does find errors, so its silence means something.
        std::fs::write(&file, "if (").expect("a script");
        assert!(!run(&file).status.success(), "{name} accepts anything");
    }
}

/// Goal: a shell that is not known is a usage error that names those that are.
#[test]
fn unknown_shell() {
    let folder = Folder::new("completions");
    let output = command(folder.path()).args(["completions", "tcsh"]).output().expect("the binary starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("bash, zsh, fish"), "{output:?}");
}
