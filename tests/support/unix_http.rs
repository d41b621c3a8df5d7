//! A client for HTTP over a Unix socket that knows nothing of the code under test: bytes out, bytes
//! in, as dockerd writes and reads them.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Longer than anything here should take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// One connection.
pub struct Client {
    stream: UnixStream,
    unread: Vec<u8>,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Lines as they came, without the status line.
    pub headers: Vec<String>,
    pub body: String,
    /// Whether the body ended as its framing says, not because the connection did.
    pub is_complete: bool,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The `Err` of an answer that must have one.
    #[track_caller]
    pub fn error(&self) -> String {
        let text = self.json()["Err"].as_str().unwrap_or_default().to_owned();
        assert!(!text.is_empty() && self.status >= 400, "{self:?}");
        text
    }
}

impl Client {
    #[track_caller]
    pub fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream, unread: Vec::new() }
    }

    /// Writes bytes as they are. A server that has closed already is not an error here: its answer
    /// may wait to be read.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref());
    }

    /// Sends a call as Docker 20.10 does: an empty Host, no Content-Type.
    pub fn send_call(&mut self, path: &str, body: impl AsRef<[u8]>) {
        let body = body.as_ref();
        let mut request = format!(
            "POST {path} HTTP/1.1\r\nHost: \r\nUser-Agent: Go-http-client/1.1\r\n\
             Content-Length: {}\r\nAccept: application/vnd.docker.plugins.v1.2+json\r\n\r\n",
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        self.send(request);
    }

    /// A call and its answer.
    #[track_caller]
    pub fn call(&mut self, path: &str, body: impl AsRef<[u8]>) -> Answer {
        self.send_call(path, body);
        self.answer()
    }

    /// Reads one answer.
    #[track_caller]
    pub fn answer(&mut self) -> Answer {
        let head_end = loop {
            if let Some(end) = self.unread.windows(4).position(|four| four == b"\r\n\r\n") {
                break end;
            }
            assert!(self.read_more(), "the connection ended before an answer");
        };
        let head: Vec<u8> = self.unread.drain(..head_end + 4).collect();
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.trim_end().split("\r\n").map(str::to_owned);
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let mut answer =
            Answer { status, headers: lines.collect(), body: String::new(), is_complete: true };
        let body = if let Some(length) = answer.header("content-length") {
            let length = length.parse().unwrap();
            self.take(length)
        } else if answer.header("transfer-encoding") == Some("chunked") {
            self.chunks()
        } else {
            while self.read_more() {}
            Ok(std::mem::take(&mut self.unread))
        };
        answer.is_complete = body.is_ok();
        answer.body = String::from_utf8(body.unwrap_or_else(|part| part)).unwrap();
        answer
    }

    /// Waits for the first bytes of an answer; false when the connection ends instead.
    pub fn starts_to_answer(&mut self) -> bool {
        !self.unread.is_empty() || self.read_more()
    }

    /// Waits until the server closes the connection; false when it sends something instead.
    pub fn is_closed_by_server(&mut self) -> bool {
        self.unread.is_empty() && !self.read_more()
    }

    /// Whether nothing has come and the connection is open, as far as can be seen now.
    pub fn is_idle(&mut self) -> bool {
        self.stream.set_nonblocking(true).unwrap();
        let result = self.stream.read(&mut [0; 16]);
        self.stream.set_nonblocking(false).unwrap();
        matches!(result, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    }

    /// The body so far is the error when the connection ends first.
    fn take(&mut self, length: usize) -> Result<Vec<u8>, Vec<u8>> {
        while self.unread.len() < length {
            if !self.read_more() {
                return Err(std::mem::take(&mut self.unread));
            }
        }
        Ok(self.unread.drain(..length).collect())
    }

    fn chunks(&mut self) -> Result<Vec<u8>, Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line_end = loop {
                if let Some(end) = self.unread.windows(2).position(|two| two == b"\r\n") {
                    break end;
                }
                if !self.read_more() {
                    return Err(body);
                }
            };
            let line: Vec<u8> = self.unread.drain(..line_end + 2).collect();
            let size = String::from_utf8(line).unwrap();
            let size = usize::from_str_radix(size.trim(), 16).unwrap();
            match self.take(size + 2) {
                Ok(chunk) => body.extend_from_slice(&chunk[..size]),
                Err(part) => {
                    body.extend(part);
                    return Err(body);
                }
            }
            if size == 0 {
                return Ok(body);
            }
        }
    }

    #[track_caller]
    fn read_more(&mut self) -> bool {
        let mut buffer = [0; 4096];
        match self.stream.read(&mut buffer) {
            Ok(0) => false,
            Ok(length) => {
                self.unread.extend_from_slice(&buffer[..length]);
                true
            }
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => false,
            Err(error) => panic!("no answer: {error}"),
        }
    }
}
