//! How a schedule's archives are compressed.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;

/// Codec and level of an archive, which also determine its extension.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Compression {
    /// A plain `.tar`, as the old system wrote.
    #[default]
    None,
    /// `.tar.gz` with a level from 1 to 12 (libdeflate's scale).
    Gzip(u8),
    /// `.tar.zst` with a level from 1 to 19.
    Zstd(u8),
}

impl Compression {
    /// The gzip level if none is given: about as small as `gzip -6`, by measurement at most 2 % larger.
    pub const GZIP_DEFAULT: u8 = 4;
    /// The zstd level if none is given.
    pub const ZSTD_DEFAULT: u8 = 3;

    /// Returns the extension of archive files, without a leading dot.
    pub fn extension(self) -> &'static str {
        match self {
            Compression::None => "tar",
            Compression::Gzip(_) => "tar.gz",
            Compression::Zstd(_) => "tar.zst",
        }
    }

    /// Returns the name of the codec: `none`, `gzip` or `zstd`.
    pub fn codec(self) -> &'static str {
        match self {
            Compression::None => "none",
            Compression::Gzip(_) => "gzip",
            Compression::Zstd(_) => "zstd",
        }
    }

    /// Returns the level; zero without compression.
    pub fn level(self) -> u8 {
        match self {
            Compression::None => 0,
            Compression::Gzip(level) | Compression::Zstd(level) => level,
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Compression::None => f.write_str("none"),
            other => write!(f, "{}:{}", other.codec(), other.level()),
        }
    }
}

impl FromStr for Compression {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let refuse = |why: &str| {
            Error::usage(format!("\"{text}\" is not a compression: {why}"))
                .hint("write none, gzip, gzip:LEVEL (1 to 12), zstd or zstd:LEVEL (1 to 19)")
        };
        let (codec, level) = match text.split_once(':') {
            Some((codec, level)) => {
                (codec, Some(level.parse::<u8>().map_err(|_| refuse("the level is not a number"))?))
            }
            None => (text, None),
        };
        match (codec, level) {
            ("none", None) => Ok(Compression::None),
            ("none", Some(_)) => Err(refuse("none has no level")),
            ("gzip" | "gz", level) => match level.unwrap_or(Self::GZIP_DEFAULT) {
                level @ 1..=12 => Ok(Compression::Gzip(level)),
                _ => Err(refuse("gzip has the levels 1 to 12")),
            },
            ("zstd" | "zst", level) => match level.unwrap_or(Self::ZSTD_DEFAULT) {
                level @ 1..=19 => Ok(Compression::Zstd(level)),
                _ => Err(refuse("zstd has the levels 1 to 19")),
            },
            _ => Err(refuse("there is no such codec")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_compressions_are_parsed_back() {
        for text in ["none", "gzip:1", "gzip:12", "zstd:19"] {
            assert_eq!(text.parse::<Compression>().unwrap().to_string(), text);
        }
        assert_eq!("zstd".parse::<Compression>().unwrap(), Compression::Zstd(3));
        for bad in ["", "lzma", "gzip:0", "gzip:13", "zstd:20", "none:1", "gzip:x", "gzip:"] {
            assert!(bad.parse::<Compression>().is_err(), "{bad}");
        }
    }
}
