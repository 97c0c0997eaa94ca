//! Lets go of the program's own pages that only a start needs.
//!
//! A start runs through a good half of the code once: the command line, the configuration, schemas, migrations. With
//! every first call the kernel maps the 64 KiB around it, and nothing unmaps them on a machine with memory to spare, so
//! the daemon would be shown for ever with twenty times the code that it runs. The pages stay in the page cache, where
//! other processes of the same program, such as the command line, find them.

use std::fs;
use std::io;
use std::ptr::{NonNull, with_exposed_provenance_mut};

use nix::sys::mman::{MmapAdvise, madvise};

/// A mapping of the program's code: where it begins and how long it is, both in bytes.
#[derive(Debug, PartialEq, Eq)]
struct Mapping {
    start: usize,
    len: usize,
}

/// Unmaps the pages of code; what runs next maps its own again. Returns how many bytes of mappings were looked through,
/// whether their pages were present or not.
///
/// # Errors
/// When the kernel does not tell the mappings or refuses the advice; nothing is lost then but memory.
pub fn let_go_of_code() -> io::Result<usize> {
    let program = fs::read_link("/proc/self/exe")?;
    let maps = fs::read_to_string("/proc/self/maps")?;
    let mut sum = 0;
    for Mapping { start, len } in code(&maps, &program.to_string_lossy()) {
        let Some(start) = NonNull::new(with_exposed_provenance_mut(start)) else { continue };
        #[allow(unsafe_code, reason = "the one way to say that pages are not needed now")]
        // SAFETY: the range is code of this program, which the linker made without relocations and nothing can write to,
        // so each page is what the file holds and the kernel reads it again when it is touched. The mapping stays.
        unsafe {
            madvise(start, len, MmapAdvise::MADV_DONTNEED)?;
        }
        sum += len;
    }
    Ok(sum)
}

/// The mappings of `maps` (proc_pid_maps(5)) that are code of `program`. Compiled code of plugins is none of it: that is
/// written to after it was mapped.
fn code(maps: &str, program: &str) -> Vec<Mapping> {
    maps.lines().filter(|line| line.ends_with(program)).filter_map(mapping).collect()
}

fn mapping(line: &str) -> Option<Mapping> {
    let mut words = line.split_ascii_whitespace();
    let (range, flags) = (words.next()?, words.next()?);
    if flags != "r-xp" {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    Some(Mapping { start, len: end.checked_sub(start)? })
}

#[cfg(test)]
mod tests {
    use super::{Mapping, code};

    #[test]
    fn only_code_of_the_program_counts() {
        let maps = "\
1000-2000 r--p 00000000 fe:00 7 /usr/bin/aman
2000-5000 r-xp 00001000 fe:00 7 /usr/bin/aman
5000-6000 r--p 00004000 fe:00 7 /usr/bin/aman
6000-7000 rw-p 00005000 fe:00 7 /usr/bin/aman
7000-8000 rw-p 00000000 00:00 0 [heap]
8000-9000 r-xp 00000000 00:00 0 [vdso]
9000-a000 r-xp 00000000 00:00 0
a000-c000 r-xp 00000000 fe:00 8 /home/me/.local/share/aman/plugins/.code/feeds
c000-d000 r-xp 00000000 fe:00 9 /lib/libc.so.6
";
        assert_eq!(code(maps, "/usr/bin/aman"), [Mapping { start: 0x2000, len: 0x3000 }]);
        assert_eq!(code(maps, "/usr/bin/aman (deleted)"), []);
    }
}
