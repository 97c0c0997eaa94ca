//! The disk itself: append 4 KiB, fdatasync, repeat.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::Res;
use crate::stats::percentile;

const PAGE: [u8; 4096] = [b'x'; 4096];

/// A file that is appended to and synced.
pub struct RawSync {
    file: File,
}

impl RawSync {
    pub fn open(folder: &Path) -> Res<RawSync> {
        let file = OpenOptions::new().create(true).append(true).open(folder.join("raw-sync"))?;
        Ok(RawSync { file })
    }

    /// Median of one append with fdatasync, in microseconds.
    pub fn p50_us(&mut self, duration: Duration) -> Res<f64> {
        let until = Instant::now() + duration;
        let mut times = Vec::new();
        while Instant::now() < until {
            let begun = Instant::now();
            self.file.write_all(&PAGE)?;
            self.file.sync_data()?;
            times.push(u32::try_from(begun.elapsed().as_micros()).unwrap_or(u32::MAX));
        }
        times.sort_unstable();
        Ok(f64::from(percentile(&times, 0.5)))
    }
}
