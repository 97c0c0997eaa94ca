//! The options.

use std::io::Write;
use std::path::PathBuf;

use crate::Res;

const HELP: &str = "\
Measures the daemon against references in the same run and prints ratios.

scripts/bench [--only 1,2,8] [--rounds 3] [--quick] [--full] [--peers] [--json FILE]

  --only LIST   targets to run: 1 push, 2 latency, 3 relaxed durability, 4 http, 5 streams, 6 start, 7 growth, 8 settle, 9 disk,
                10 plugin routes, 11 plugin events, 12 plugin memory and start, 13 guests that spin, 14 journal of workflows, 15 workflows that wait,
                16 first word of a model, 17 many streams of models, 18 stop in the middle of a command;
                0 = the references alone, which needs no daemon and is not in the default
  --rounds N    rounds of each measurement, medians are shown (default 3; 1 with --quick)
  --quick       short and rough, for seeing that it works: below three minutes
  --peers       only what is compared with other servers: targets 1, 3 and 5, against NATS JetStream, Redis Streams and
                nginx with nchan
  --full        growth up to 5,000,000 stored events instead of 1,000,000
  --json FILE   every figure of every round
";

/// What can be asked for; 0 is the references alone.
const KNOWN: [u8; 19] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18];

/// What was asked for.
pub struct Args {
    pub only: Vec<u8>,
    pub rounds: usize,
    pub quick: bool,
    pub full: bool,
    pub json: Option<PathBuf>,
}

/// Reads the options; none when only help was wanted.
pub fn parse(args: &[String]) -> Res<Option<Args>> {
    let mut parsed = Args { only: KNOWN[1..].to_vec(), rounds: 0, quick: false, full: false, json: None };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--only" => parsed.only = targets(value()?)?,
            "--rounds" => parsed.rounds = value()?.parse().map_err(|_| "--rounds needs a number")?,
            "--json" => parsed.json = Some(PathBuf::from(value()?)),
            "--quick" => parsed.quick = true,
            "--peers" => parsed.only = vec![1, 3, 5],
            "--full" => parsed.full = true,
            // Cargo says this to every benchmark.
            "--bench" => {}
            "--help" | "-h" => {
                write!(std::io::stdout().lock(), "{HELP}")?;
                return Ok(None);
            }
            _ => return Err(format!("no option {arg}; --help lists them").into()),
        }
    }
    if parsed.rounds == 0 {
        parsed.rounds = if parsed.quick { 1 } else { 3 };
    }
    Ok(Some(parsed))
}

fn targets(list: &str) -> Res<Vec<u8>> {
    let one = |item: &str| {
        let known = item.trim().parse().ok().filter(|n| KNOWN.contains(n));
        known.ok_or_else(|| format!("no target {item}; known are {KNOWN:?}").into())
    };
    list.split(',').map(one).collect()
}
