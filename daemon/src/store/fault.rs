//! Why nothing, or nothing new, can be stored: told to callers, watched by those who wait for its end.

use rusqlite::ErrorCode;
use serde::Serialize;
use tokio::sync::watch;

use crate::error::Error;

/// What stands in the way of writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// So little space is left that nothing new is taken; work that is under way is settled from what is left.
    LowSpace,
    /// The disk takes nothing more.
    DiskFull,
    /// The disk is mounted read-only.
    ReadOnly,
    /// The disk answers with errors.
    DiskError,
    /// A file of the database was removed, moved or replaced while it was open.
    Moved,
    /// A file of the database is shorter than it was left.
    CutShort,
    /// The database holds what no aman wrote.
    Damaged,
    /// SQLite refuses for another reason.
    Refused,
    /// The thread that writes has ended.
    Stopped,
}

impl Fault {
    /// What an error of SQLite comes of; `Refused` when of nothing in particular.
    pub(super) fn of(error: Option<&rusqlite::Error>) -> Fault {
        match error.and_then(rusqlite::Error::sqlite_error_code) {
            Some(ErrorCode::DiskFull) => Fault::DiskFull,
            Some(ErrorCode::ReadOnly) => Fault::ReadOnly,
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Fault::Damaged,
            Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen) => Fault::DiskError,
            _ => Fault::Refused,
        }
    }

    /// The problem's code, as in `schemas/errors.md`.
    pub fn code(self) -> &'static str {
        match self {
            Fault::LowSpace | Fault::DiskFull => "disk_full",
            Fault::ReadOnly => "disk_read_only",
            Fault::Moved => "database_moved",
            Fault::CutShort | Fault::Damaged => "database_damaged",
            Fault::DiskError | Fault::Refused | Fault::Stopped => "storage",
        }
    }

    /// What is wrong, as the middle of a sentence.
    pub fn what(self) -> &'static str {
        match self {
            Fault::LowSpace => "the disk is almost full",
            Fault::DiskFull => "the disk is full",
            Fault::ReadOnly => "the disk is read-only",
            Fault::DiskError => "the disk answers with errors",
            Fault::Moved => "a file of the database was removed, moved or replaced while aman runs",
            Fault::CutShort => "a file of the database was cut short while aman runs",
            Fault::Damaged => "the database is damaged",
            Fault::Refused => "the database refuses to be written",
            Fault::Stopped => "the part that writes has stopped",
        }
    }

    /// What the operator does about it.
    pub fn advice(self) -> &'static str {
        match self {
            Fault::LowSpace => "Free some space on the disk of the data folder; aman then goes on by itself.",
            Fault::DiskFull => {
                "Free some space on the disk of the data folder; aman then goes on by itself, and settles what ended \
                 meanwhile."
            }
            Fault::ReadOnly => "Look at the disk (dmesg), and mount it writable; aman then goes on by itself.",
            Fault::DiskError => {
                "Look at the disk (dmesg, smartctl) and make a copy of the data folder; aman goes on by itself once the \
                 disk does."
            }
            Fault::Moved => {
                "Put the files back as they were, and aman goes on by itself. If they are gone: the log names the copy \
                 that aman saved; stop aman and run `aman db restore` with it."
            }
            Fault::CutShort | Fault::Damaged => {
                "Stop aman, keep a copy of the data folder, run `aman db check`, and `aman db restore` with the last \
                 good backup."
            }
            Fault::Refused => "See aman's log; end other programs that hold the database open.",
            Fault::Stopped => "Restart aman; its log says why it stopped.",
        }
    }

    /// True when even work that is under way cannot be stored.
    pub fn blocks_all(self) -> bool {
        self != Fault::LowSpace
    }

    /// True when trying again cannot help until an operator acted and aman was started anew.
    pub fn is_final(self) -> bool {
        matches!(self, Fault::Damaged | Fault::Stopped)
    }

    /// The answer while it lasts.
    pub fn error(self) -> Error {
        Error::Busy {
            code: self.code(),
            what: format!("Nothing new can be stored: {}. {}", self.what(), self.advice()),
            retry_after_ms: if self.is_final() { 60_000 } else { 5_000 },
        }
    }
}

/// The present fault; whoever waits for its end is woken.
pub(super) struct Trouble(watch::Sender<Option<Fault>>);

impl Default for Trouble {
    fn default() -> Trouble {
        Trouble(watch::Sender::new(None))
    }
}

impl Trouble {
    /// Notes a fault, or its end. A final one stays. Says in the log what changed, and nothing while it lasts.
    pub fn set(&self, fault: Option<Fault>, detail: &str) {
        let mut before = None;
        let changed = self.0.send_if_modified(|now| {
            before = *now;
            let changes = *now != fault && !now.is_some_and(Fault::is_final);
            if changes {
                *now = fault;
            }
            changes
        });
        match (changed, fault) {
            (false, _) => {}
            (true, Some(fault)) if fault == Fault::Stopped && before.is_none() => {}
            (true, Some(fault)) => {
                let (why, what_to_do) = (fault.what(), fault.advice());
                tracing::error!(why, detail, what_to_do, "Nothing new can be stored; callers are told so.");
            }
            (true, None) => {
                tracing::info!(after = before.map(Fault::what), "The database can be written again.");
            }
        }
    }

    /// The present fault.
    pub fn now(&self) -> Option<Fault> {
        *self.0.borrow()
    }

    /// Hears of every change.
    pub fn watch(&self) -> watch::Receiver<Option<Fault>> {
        self.0.subscribe()
    }
}

/// Held by the thread that writes: its end is a fault.
pub(super) struct Ending(pub std::sync::Arc<Trouble>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.set(Some(Fault::Stopped), "");
    }
}
