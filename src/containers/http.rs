//! Requests and responses of HTTP/1.1, as far as the API of container engines needs them: one request a connection.

use std::fmt::Write as _;
use std::io::{self, Read, Write};

/// Most bytes of a status line and headers.
const MAX_HEAD: usize = 16 * 1024;
/// Most headers of a response.
const MAX_HEADERS: usize = 64;
/// Most bytes of the line before a chunk, with its extensions.
const MAX_CHUNK_LINE: usize = 1024;

/// A response: its status and headers, and the rest of the connection to read the body from.
#[derive(Debug)]
pub(super) struct Response<R> {
    pub(super) status: u16,
    /// Value of the header `Api-Version`.
    pub(super) api_version: Option<String>,
    pub(super) body: Body<R>,
}

/// The body of a response, without its framing. One that ends early is an error.
#[derive(Debug)]
pub(super) struct Body<R> {
    source: Buffered<R>,
    framing: Framing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    /// This many bytes are left.
    Length(u64),
    /// This many bytes of a chunk are left; after each chunk comes the line of the next one.
    Chunk { left: u64, is_first: bool },
    /// Everything until the connection ends.
    ToEnd,
}

/// What was read too far with the head, then the connection.
#[derive(Debug)]
struct Buffered<R> {
    read: Vec<u8>,
    at: usize,
    source: R,
}

impl<R: Read> Read for Buffered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let ready = &self.read[self.at..];
        if ready.is_empty() {
            return self.source.read(buffer);
        }
        let length = ready.len().min(buffer.len());
        buffer[..length].copy_from_slice(&ready[..length]);
        self.at += length;
        Ok(length)
    }
}

fn nonsense(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

/// Writes a request with an optional JSON body. `path` consists of characters that need no escaping.
pub(super) fn write_request(to: &mut impl Write, method: &str, path: &str, json: Option<&str>) -> io::Result<()> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n");
    let _ = write!(head, "User-Agent: backup-manager/{}\r\n", env!("CARGO_PKG_VERSION"));
    match json {
        Some(json) => {
            let _ = write!(head, "Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{json}", json.len());
        }
        // Proxies want a length with each POST.
        None if method == "POST" => head.push_str("Content-Length: 0\r\n\r\n"),
        None => head.push_str("\r\n"),
    }
    to.write_all(head.as_bytes())?;
    to.flush()
}

/// Reads the head of a response.
///
/// Errors: `InvalidData` if it is no HTTP, or too long; `UnexpectedEof` if it ends early.
pub(super) fn read_response<R: Read>(mut source: R) -> io::Result<Response<R>> {
    let mut read = Vec::new();
    loop {
        let mut piece = [0; 1024];
        let length = source.read(&mut piece)?;
        read.extend_from_slice(&piece[..length]);
        let head = parse_head(&read)?;
        if head.as_ref().map_or(read.len(), |head| head.length) > MAX_HEAD {
            return Err(nonsense("the headers of the answer are too long"));
        }
        if let Some(Head { status, api_version, framing, length }) = head {
            let body = Body { source: Buffered { read, at: length, source }, framing };
            return Ok(Response { status, api_version, body });
        }
        if length == 0 {
            return Err(if read.is_empty() {
                io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed without an answer")
            } else {
                io::Error::new(io::ErrorKind::UnexpectedEof, "the answer ends in its headers")
            });
        }
    }
}

/// The status line and headers of a response, and their length in bytes.
struct Head {
    status: u16,
    api_version: Option<String>,
    framing: Framing,
    length: usize,
}

/// Parses the head of a response; `None` if it is not complete yet.
fn parse_head(read: &[u8]) -> io::Result<Option<Head>> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Response::new(&mut headers);
    let parsed = head.parse(read).map_err(|error| nonsense(format!("the answer is not HTTP ({error})")))?;
    let (httparse::Status::Complete(length), Some(status)) = (parsed, head.code) else { return Ok(None) };
    let value = |name: &str| {
        let found = head.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        found.map(|header| String::from_utf8_lossy(header.value).trim().to_owned())
    };
    let framing = match (value("Transfer-Encoding"), value("Content-Length")) {
        _ if matches!(status, 100..=199 | 204 | 304) => Framing::Length(0),
        (Some(coding), None) if coding.eq_ignore_ascii_case("chunked") => Framing::Chunk { left: 0, is_first: true },
        (Some(coding), None) if coding.eq_ignore_ascii_case("identity") => Framing::ToEnd,
        (Some(_), _) => return Err(nonsense("the answer has an unknown transfer encoding")),
        (None, Some(digits)) if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            Framing::Length(digits.parse().map_err(|_| nonsense("the length of the answer is too high"))?)
        }
        (None, Some(_)) => return Err(nonsense("the length of the answer is not a number")),
        (None, None) => Framing::ToEnd,
    };
    Ok(Some(Head { status, api_version: value("Api-Version"), framing, length }))
}

impl<R: Read> Body<R> {
    /// Reads all of it; `InvalidData` if it has more than `limit` bytes.
    pub(super) fn read_all(&mut self, limit: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.take(limit + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > limit {
            return Err(nonsense(format!("the answer has more than {limit} bytes")));
        }
        Ok(bytes)
    }

    /// Reads the line before the next chunk, and returns the size of that; 0 at the end.
    fn next_chunk(&mut self, is_first: bool) -> io::Result<u64> {
        let mut line = Vec::new();
        // The end of the chunk before, then the size up to the next line feed.
        let skipped = if is_first { 0 } else { 2 };
        while line.len() < skipped + 2 || !line.ends_with(b"\n") {
            let mut byte = [0];
            self.source.read_exact(&mut byte).map_err(|error| cut_short(&error))?;
            line.extend_from_slice(&byte);
            if line.len() > MAX_CHUNK_LINE {
                return Err(nonsense("a chunk of the answer has no end"));
            }
        }
        if !b"\r\n".starts_with(&line[..skipped]) {
            return Err(nonsense("a chunk of the answer is longer than its size"));
        }
        match httparse::parse_chunk_size(&line[skipped..]) {
            Ok(httparse::Status::Complete((_, size))) => Ok(size),
            _ => Err(nonsense("the size of a chunk of the answer is not a number")),
        }
    }
}

/// Names an end in the middle; other errors stay as they are.
fn cut_short(error: &io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => io::Error::new(io::ErrorKind::UnexpectedEof, "the answer was cut off"),
        kind => io::Error::new(kind, error.to_string()),
    }
}

impl<R: Read> Read for Body<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Framing::Chunk { left: 0, is_first } = self.framing {
            self.framing = match self.next_chunk(is_first)? {
                0 => Framing::Length(0),
                left => Framing::Chunk { left, is_first: false },
            };
        }
        let left = match self.framing {
            Framing::Length(left) | Framing::Chunk { left, .. } => left,
            Framing::ToEnd => return self.source.read(buffer),
        };
        let wanted = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        let length = self.source.read(&mut buffer[..wanted])?;
        if length == 0 {
            return Err(cut_short(&io::ErrorKind::UnexpectedEof.into()));
        }
        match &mut self.framing {
            Framing::Length(left) | Framing::Chunk { left, .. } => *left -= length as u64,
            Framing::ToEnd => {}
        }
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns one byte a call.
    struct Drip<'a>(&'a [u8]);

    impl Read for Drip<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let length = self.0.len().min(buffer.len()).min(1);
            buffer[..length].copy_from_slice(&self.0[..length]);
            self.0 = &self.0[length..];
            Ok(length)
        }
    }

    fn read<R: Read>(source: R) -> io::Result<(u16, Vec<u8>)> {
        let mut response = read_response(source)?;
        Ok((response.status, response.body.read_all(100)?))
    }

    /// Reads a response at once and byte by byte, with the same result.
    fn status_and_body(text: &[u8]) -> io::Result<(u16, Vec<u8>)> {
        let at_once = read(text);
        assert_eq!(read(Drip(text)).ok(), at_once.as_ref().ok().cloned(), "{}", String::from_utf8_lossy(text));
        at_once
    }

    #[test]
    fn a_body_ends_by_its_length_its_last_chunk_or_the_connection() {
        for (text, status, body) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello, more", 200, "hello"),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n2;x=y\r\n..\r\n0\r\n\r\n",
                200,
                "hello..",
            ),
            ("HTTP/1.1 404 Not Found\r\n\r\nhello", 404, "hello"),
            ("HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", 304, ""),
            ("HTTP/1.0 204 No Content\r\n\r\n", 204, ""),
        ] {
            assert_eq!(status_and_body(text.as_bytes()).unwrap(), (status, body.as_bytes().to_owned()), "{text}");
        }
    }

    #[test]
    fn an_answer_that_is_cut_off_or_no_http_is_an_error() {
        let long_head = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(MAX_HEAD));
        for text in [
            "",
            "HTTP/1.1 200 OK\r\nContent-",
            "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\nhello\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n",
            "SSH-2.0-OpenSSH_9.2\r\n",
            &long_head,
        ] {
            assert!(status_and_body(text.as_bytes()).is_err(), "{text}");
        }
        let long = format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(101));
        assert!(status_and_body(long.as_bytes()).unwrap_err().to_string().contains("more than 100 bytes"));
    }

    #[test]
    fn a_request_has_a_length_and_closes_the_connection() {
        let mut sent = Vec::new();
        write_request(&mut sent, "POST", "/v1.41/exec/1/start", Some("{}")).unwrap();
        let sent = String::from_utf8(sent).unwrap();
        assert!(
            sent.starts_with("POST /v1.41/exec/1/start HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n"),
            "{sent}"
        );
        assert!(sent.ends_with("Content-Length: 2\r\n\r\n{}"), "{sent}");
    }
}
