//! Lines that a person types, while other things go on. A thread of its own reads them, since a terminal cannot be asked
//! without waiting.

use std::io::{self, BufRead, IsTerminal, Write};
use std::sync::Arc;

use tokio::sync::{Mutex, mpsc};

/// Lines that may wait; who pastes more waits.
const WAITING_MAX: usize = 256;

/// What is typed; cheap to clone.
#[derive(Clone)]
pub struct Lines {
    from: Arc<Mutex<mpsc::Receiver<String>>>,
}

impl Lines {
    /// The lines of the terminal; none when there is none.
    pub fn of_terminal() -> Option<Lines> {
        (io::stdin().is_terminal() && io::stdout().is_terminal()).then(Lines::read)
    }

    /// For answers to questions in between: they go to stderr, stdout may be anything.
    pub fn for_answers() -> Option<Lines> {
        (io::stdin().is_terminal() && io::stderr().is_terminal()).then(Lines::read)
    }

    fn read() -> Lines {
        let (to, from) = mpsc::channel(WAITING_MAX);
        // It ends with the process: nothing can wake it while it waits for a line.
        std::thread::spawn(move || {
            for line in io::stdin().lock().lines() {
                let Ok(line) = line else { return };
                if to.blocking_send(line).is_err() {
                    return;
                }
            }
        });
        Lines { from: Arc::new(Mutex::new(from)) }
    }

    /// Asks with `prompt`; none at the end of what is typed, and for Ctrl-C. A line that ends with a backslash goes on.
    pub async fn ask(&self, prompt: &str) -> Option<String> {
        let mut said = String::new();
        let mut prompt = prompt;
        loop {
            show(prompt);
            let line = tokio::select! {
                line = self.next() => line?,
                _ = tokio::signal::ctrl_c() => return None,
            };
            match line.strip_suffix('\\') {
                Some(part) => {
                    said.push_str(part);
                    said.push('\n');
                    prompt = "...> ";
                }
                None => {
                    said.push_str(&line);
                    return Some(said);
                }
            }
        }
    }

    /// Forgets what was typed already: an answer comes after its question.
    pub fn forget(&self) {
        if let Ok(mut from) = self.from.try_lock() {
            while from.try_recv().is_ok() {}
        }
    }

    /// The next line.
    pub async fn next(&self) -> Option<String> {
        self.from.lock().await.recv().await
    }
}

/// Shows a prompt: on the terminal, whatever stdout is.
pub fn show(prompt: &str) {
    let mut stderr = io::stderr().lock();
    // A terminal that is gone ends the lines, too.
    let _shown = write!(stderr, "{prompt}").and_then(|()| stderr.flush());
}
