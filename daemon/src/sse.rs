//! Reads server-sent events off a byte stream, as the HTML standard says ("Interpreting an event stream"), and the lines
//! that they, or one JSON document each, come in. Pure.

/// One dispatched frame.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frame {
    /// The `id:` of this very frame.
    pub id: Option<String>,
    /// The `event:` name.
    pub event: Option<String>,
    /// The `data:` lines, joined by line breaks.
    pub data: String,
}

/// Cuts bytes into lines, wherever they were cut before; `\n`, `\r\n` and `\r` end one.
#[derive(Debug)]
pub struct Lines {
    line: Vec<u8>,
    after_cr: bool,
    bytes_max: usize,
    overlong: bool,
}

impl Lines {
    /// Lines of at most so many bytes; what a longer one has beyond that is dropped.
    pub fn new(bytes_max: usize) -> Lines {
        Lines { line: Vec::new(), after_cr: false, bytes_max, overlong: false }
    }

    /// Takes the next bytes and gives each line that they complete to `each`.
    pub fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(&[u8])) {
        for &byte in bytes {
            match byte {
                b'\n' if self.after_cr => {}
                b'\n' | b'\r' => {
                    each(&self.line);
                    self.line.clear();
                }
                _ if self.line.len() < self.bytes_max => self.line.push(byte),
                _ => self.overlong = true,
            }
            self.after_cr = byte == b'\r';
        }
    }

    /// What came after the last end of a line.
    pub fn rest(&self) -> &[u8] {
        &self.line
    }

    /// True once a line had more bytes than it may.
    pub fn is_overlong(&self) -> bool {
        self.overlong
    }
}

/// What has come of a frame so far.
#[derive(Debug)]
pub struct Parser {
    lines: Lines,
    coming: Coming,
}

#[derive(Debug)]
struct Coming {
    frame: Frame,
    has_data: bool,
    retry_ms: Option<u64>,
    begun: bool,
    bytes_max: usize,
    overlong: bool,
}

impl Parser {
    /// A parser of frames whose data have at most so many bytes; what one has beyond that is dropped.
    pub fn new(bytes_max: usize) -> Parser {
        let coming = Coming {
            frame: Frame::default(),
            has_data: false,
            retry_ms: None,
            begun: false,
            bytes_max,
            overlong: false,
        };
        Parser { lines: Lines::new(bytes_max), coming }
    }

    /// Takes the next bytes and gives the frames that they complete.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Frame> {
        let (mut frames, coming) = (Vec::new(), &mut self.coming);
        self.lines.feed(bytes, |line| frames.extend(coming.end_line(line)));
        frames
    }

    /// The frame that the end of the stream cut off before the empty line that would have ended it. The standard drops it;
    /// some servers end so.
    pub fn rest(mut self) -> Option<Frame> {
        let last = self.coming.end_line(self.lines.rest());
        last.or_else(|| self.coming.end_line(b""))
    }

    /// How long the server asks a client to wait before it connects again, in milliseconds.
    pub fn retry_ms(&self) -> Option<u64> {
        self.coming.retry_ms
    }

    /// True once a frame had more bytes than it may.
    pub fn is_overlong(&self) -> bool {
        self.coming.overlong || self.lines.is_overlong()
    }
}

impl Coming {
    fn end_line(&mut self, line: &[u8]) -> Option<Frame> {
        let line = String::from_utf8_lossy(line);
        let line = if self.begun { &line } else { line.trim_start_matches('\u{feff}') };
        self.begun = true;
        if line.is_empty() {
            let frame = std::mem::take(&mut self.frame);
            return std::mem::take(&mut self.has_data).then_some(frame);
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" if !value.contains('\0') => self.frame.id = Some(value.to_owned()),
            "event" => self.frame.event = Some(value.to_owned()),
            "retry" => self.retry_ms = value.parse().ok().or(self.retry_ms),
            "data" if self.frame.data.len() + value.len() < self.bytes_max => {
                if self.has_data {
                    self.frame.data.push('\n');
                }
                self.frame.data.push_str(value);
                self.has_data = true;
            }
            "data" => self.overlong = true,
            // A comment (empty field) or a field of a later version.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(id: &str, event: &str, data: &str) -> Frame {
        Frame { id: Some(id.into()), event: Some(event.into()), data: data.into() }
    }

    #[test]
    fn frames_however_they_are_cut() {
        let text = "\u{feff}retry: 1500\r\n:beat\r\n\r\nid: 7\r\nevent: a.b\r\ndata: {\"x\":1}\r\n\r\n\rid:8\nevent:c\ndata:1\ndata:2\n\nid: 9\n";
        for size in [1, 2, 3, 7, 1000] {
            let mut parser = Parser::new(1000);
            let frames: Vec<Frame> = text.as_bytes().chunks(size).flat_map(|part| parser.feed(part)).collect();
            assert_eq!(frames, [frame("7", "a.b", "{\"x\":1}"), frame("8", "c", "1\n2")], "in parts of {size}");
            assert_eq!(parser.retry_ms(), Some(1500));
        }
    }

    #[test]
    fn a_frame_without_data_is_none() {
        let mut parser = Parser::new(1000);
        assert_eq!(parser.feed(b"id: 1\nevent: x\n\ndata\n\n"), [Frame::default()]);
    }

    #[test]
    fn bounds_hold_and_the_last_frame_can_be_had() {
        let mut parser = Parser::new(8);
        assert_eq!(parser.feed(b"data: 1\n\ndata: 2").len(), 1);
        assert!(!parser.is_overlong());
        assert_eq!(parser.rest().map(|frame| frame.data), Some("2".to_owned()));
        let mut parser = Parser::new(8);
        parser.feed(b"data: 123456789");
        assert!(parser.is_overlong());
        let mut parser = Parser::new(8);
        parser.feed(b"data:123\ndata:456\ndata:789\n");
        assert!(parser.is_overlong());
        assert_eq!(Parser::new(8).rest(), None);
    }

    #[test]
    fn lines_however_they_are_cut() {
        let text = "{\"a\":\"ü€😀\"}\r\n\n{}\rrest".as_bytes();
        for size in 1..text.len() {
            let (mut lines, mut all) = (Lines::new(100), Vec::new());
            for part in text.chunks(size) {
                lines.feed(part, |line| all.push(String::from_utf8_lossy(line).into_owned()));
            }
            assert_eq!(all, ["{\"a\":\"ü€😀\"}", "", "{}"], "in parts of {size}");
            assert_eq!(lines.rest(), b"rest");
        }
    }
}
