//! Reads server-sent events off a byte stream, as the HTML standard says ("Interpreting an event stream"). Pure.

/// Largest frame that is kept; a longer one is dropped, as no event may be that large.
const FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;

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

/// What has come of a frame so far.
#[derive(Debug, Default)]
pub struct Parser {
    line: Vec<u8>,
    frame: Frame,
    has_data: bool,
    after_cr: bool,
    retry_ms: Option<u64>,
    begun: bool,
}

impl Parser {
    /// Takes the next bytes and gives the frames that they complete.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Frame> {
        let mut frames = Vec::new();
        for &byte in bytes {
            match byte {
                b'\n' if self.after_cr => {}
                b'\n' | b'\r' => frames.extend(self.end_line()),
                _ if self.line.len() < FRAME_BYTES_MAX => self.line.push(byte),
                _ => {}
            }
            self.after_cr = byte == b'\r';
        }
        frames
    }

    /// How long the server asks a client to wait before it connects again, in milliseconds.
    pub fn retry_ms(&self) -> Option<u64> {
        self.retry_ms
    }

    fn end_line(&mut self) -> Option<Frame> {
        let line = std::mem::take(&mut self.line);
        let line = String::from_utf8_lossy(&line);
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
            "data" if self.frame.data.len() + value.len() < FRAME_BYTES_MAX => {
                if self.has_data {
                    self.frame.data.push('\n');
                }
                self.frame.data.push_str(value);
                self.has_data = true;
            }
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
            let mut parser = Parser::default();
            let frames: Vec<Frame> = text.as_bytes().chunks(size).flat_map(|part| parser.feed(part)).collect();
            assert_eq!(frames, [frame("7", "a.b", "{\"x\":1}"), frame("8", "c", "1\n2")], "in parts of {size}");
            assert_eq!(parser.retry_ms(), Some(1500));
        }
    }

    #[test]
    fn a_frame_without_data_is_none() {
        let mut parser = Parser::default();
        assert_eq!(parser.feed(b"id: 1\nevent: x\n\ndata\n\n"), [Frame::default()]);
    }
}
