//! What a command prints, of which the end is kept.

use std::collections::VecDeque;

/// Bytes of output that are kept: the last ones.
pub const OUTPUT_LIMIT: usize = 64 << 10;
/// Bytes of the standard error that are kept to find its last line.
const ERROR_LIMIT: usize = 4 << 10;

/// The last bytes of a stream.
struct Tail {
    bytes: VecDeque<u8>,
    limit: usize,
}

impl Tail {
    fn new(limit: usize) -> Tail {
        Tail { bytes: VecDeque::new(), limit }
    }

    fn push(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(self.limit)..];
        let excess = (self.bytes.len() + bytes.len()).saturating_sub(self.limit);
        self.bytes.drain(..excess);
        self.bytes.extend(bytes);
    }

    fn into_vec(self) -> Vec<u8> {
        self.bytes.into()
    }
}

/// The end of what a command printed to its standard output and its standard error, in the order of arrival.
pub struct Output {
    both: Tail,
    error: Tail,
}

impl Default for Output {
    fn default() -> Self {
        Self::new()
    }
}

impl Output {
    /// Begins with nothing.
    pub fn new() -> Output {
        Output { both: Tail::new(OUTPUT_LIMIT), error: Tail::new(ERROR_LIMIT) }
    }

    /// Adds bytes of the standard output.
    pub fn push(&mut self, bytes: &[u8]) {
        self.both.push(bytes);
    }

    /// Adds bytes of the standard error.
    pub fn push_error(&mut self, bytes: &[u8]) {
        self.both.push(bytes);
        self.error.push(bytes);
    }

    /// Returns the output, and the last line of the standard error, else of all output, that is not blank.
    pub fn finish(self) -> (Vec<u8>, Option<String>) {
        let (both, error) = (self.both.into_vec(), self.error.into_vec());
        let line = last_line(&error).or_else(|| last_line(&both[both.len().saturating_sub(ERROR_LIMIT)..]));
        (both, line)
    }
}

fn last_line(bytes: &[u8]) -> Option<String> {
    let lines = bytes.rsplit(|&byte| byte == b'\n' || byte == b'\r');
    lines.map(|line| String::from_utf8_lossy(line.trim_ascii()).into_owned()).find(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_bytes_are_kept_whatever_the_pieces() {
        for piece in [1, 7, 1000, OUTPUT_LIMIT, OUTPUT_LIMIT + 1] {
            let all: Vec<u8> = (0..3 * OUTPUT_LIMIT).map(|n| (n % 251) as u8).collect();
            let mut output = Output::new();
            all.chunks(piece).for_each(|piece| output.push(piece));
            assert_eq!(output.finish().0, all[all.len() - OUTPUT_LIMIT..], "{piece}");
        }
    }

    #[test]
    fn the_last_line_is_that_of_the_standard_error_if_there_is_one() {
        let mut output = Output::new();
        output.push_error(b"first\nno such table\n\n");
        output.push(b"done\n");
        assert_eq!(output.finish().1.as_deref(), Some("no such table"));
        let mut output = Output::new();
        output.push(b"only this\n  \n");
        assert_eq!(output.finish().1.as_deref(), Some("only this"));
        assert_eq!(Output::new().finish().1, None);
    }
}
