//! Parsers of bytes from strangers, fed with the seeds of `tests/fuzz` and with what mutations make of them: the same in
//! every run, as far as it comes. `cargo fuzz` runs the same targets for as long as one likes.

#[path = "../fuzz/entries.rs"]
mod entries;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::harness::say;

/// Mutations of each target; fewer on a machine that takes longer for them than [`TIME_MAX`].
const MUTATIONS: u32 = 20_000;
const TIME_MAX: Duration = Duration::from_secs(10);
/// So many in any case.
const MUTATIONS_MIN: u32 = 500;
/// Inputs grow to this many bytes.
const BYTES_MAX: usize = 4096;
/// Pieces that mean something to one of the parsers.
const WORDS: [&str; 28] = [
    "null",
    "true",
    "1e999",
    "-9223372036854775808",
    "18446744073709551616",
    "\\u0000",
    "\\ud800",
    "{",
    "}",
    "[",
    "]",
    "\"",
    "'",
    "\n",
    "\n\n",
    "---\n",
    ": ",
    "**",
    ".",
    "*/0",
    "L",
    "#",
    "%ff",
    "\u{0}",
    "\u{202e}",
    "t=",
    "v1,",
    " ",
];

fn seeds(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/seeds").join(name);
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(&folder).expect("seeds").map(|entry| entry.expect("a seed").path()).collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).expect("a seed")).collect()
}

/// One to eight changes of a seed: bits, bytes, pieces taken out, doubled, moved, or taken from another seed or a word.
fn mutated(rng: &mut fastrand::Rng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds[rng.usize(..seeds.len())].clone();
    for _ in 0..rng.usize(1..=8) {
        let at = rng.usize(..=bytes.len());
        let end = (at + rng.usize(0..16)).min(bytes.len());
        match rng.u8(0..7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << rng.u8(0..8),
            1 if at < bytes.len() => bytes[at] = rng.u8(..),
            2 => drop(bytes.drain(at..end)),
            3 => {
                let piece = bytes[at..end].repeat(rng.usize(1..20));
                bytes.splice(at..at, piece);
            }
            4 => {
                let other = &seeds[rng.usize(..seeds.len())];
                let from = rng.usize(..=other.len());
                bytes.splice(at..end, other[from..(from + 24).min(other.len())].to_vec());
            }
            _ => {
                bytes.splice(at..end, WORDS[rng.usize(..WORDS.len())].bytes());
            }
        }
    }
    bytes.truncate(BYTES_MAX);
    bytes
}

/// Runs one target over its seeds and mutations; panics with the input that breaks it.
fn run(name: &str) {
    let (_, entry) = entries::TARGETS.into_iter().find(|(known, _)| *known == name).expect("a target");
    let check = |bytes: &[u8]| {
        let held = catch_unwind(AssertUnwindSafe(|| entry(bytes)));
        assert!(held.is_ok(), "{name}: {:?}", String::from_utf8_lossy(bytes));
    };
    let seeds = seeds(name);
    seeds.iter().for_each(|seed| check(seed));
    let (mut rng, begun, mut done) = (fastrand::Rng::with_seed(1), Instant::now(), 0);
    while done < MUTATIONS_MIN || done < MUTATIONS && begun.elapsed() < TIME_MAX {
        check(&mutated(&mut rng, &seeds));
        done += 1;
    }
    say(&format!("{name}: {} seeds, {done} mutations", seeds.len()));
}

/// Goal: mutations begin at calls that are good, save those of a wrong time.
#[test]
fn seeds_of_webhooks_are_signed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/seeds/webhook");
    for entry in std::fs::read_dir(&folder).expect("seeds") {
        let file = entry.expect("a seed").path();
        let name = file.file_name().expect("a name").to_string_lossy().into_owned();
        let good = entries::is_signed(&std::fs::read(&file).expect("a seed"), "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        assert_eq!(good, !name.starts_with("before-time"), "{name}");
    }
}

macro_rules! targets {
    ($($name:ident)+) => {
        $(
            /// Goal: no bytes break it.
            #[test]
            fn $name() {
                run(stringify!($name));
            }
        )+

        /// Goal: each target is run here and by `cargo fuzz`.
        #[test]
        fn every_target_is_run() {
            let manifest = include_str!("../fuzz/Cargo.toml");
            let here = [$(stringify!($name)),+];
            assert_eq!(entries::TARGETS.map(|(name, _)| name), here);
            assert!(here.iter().all(|name| manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\""))));
        }
    };
}

targets!(envelope patterns cron manifest jq webhook config);
