//! Header blocks and the data between them, read from the content of an archive.

use super::header_block::HeaderBlock;
use crate::archive::block::{BLOCK_BYTES, padding};
use crate::archive::content::{Content, ReadError};

/// Reads header blocks and the data that follows each.
pub(super) struct BlockReader<'c> {
    pub content: Content<'c>,
    /// Bytes of data after the last header that were not read yet.
    data_left: u64,
    /// Bytes that fill up the data to whole blocks.
    padding: u64,
    /// The archive is known to be a tar archive, because a header was read or its parts come from the catalog.
    has_begun: bool,
    /// Only parts of the archive are read, so no end marks are expected.
    is_partial: bool,
    /// A damaged header was met, and every block up to the next valid header is skipped.
    is_searching: bool,
    /// The first valid header, found after damage at the beginning, which is reported before it.
    found: Option<Box<HeaderBlock>>,
}

impl<'c> BlockReader<'c> {
    pub fn new(content: Content<'c>, is_partial: bool) -> Self {
        BlockReader {
            content,
            data_left: 0,
            padding: 0,
            has_begun: is_partial,
            is_partial,
            is_searching: false,
            found: None,
        }
    }

    pub fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Continues after bytes that are missing, at the next position where a header can begin.
    pub fn resynchronise(&mut self) {
        // Behind a header that was found and not taken yet lies its data, and not the damage.
        if self.found.is_none() {
            self.content.resynchronise();
        }
    }

    /// Reads the next header block. Returns `None` at the end marks.
    pub fn next_header(&mut self) -> Result<Option<HeaderBlock>, ReadError> {
        if let Some(found) = self.found.take() {
            return Ok(Some(*found));
        }
        let mut bytes = [0; BLOCK_BYTES];
        loop {
            match self.content.read_exact(&mut bytes) {
                Ok(()) => {}
                Err(ReadError::End) if self.pass_jump() => continue,
                Err(ReadError::End) if self.is_partial || self.is_searching => return Ok(None),
                Err(ReadError::End) => {
                    let reason = match self.has_begun {
                        true => "it ends without end marks: it was cut off",
                        false if self.content.is_empty() => "it is empty",
                        false => "none of its members can be read",
                    };
                    return Err(ReadError::Broken(reason.to_owned()));
                }
                Err(error) => return Err(error),
            }
            if let Some(block) = HeaderBlock::parse(&bytes) {
                self.is_searching = false;
                self.has_begun = true;
                return Ok(Some(block));
            }
            let is_zero = bytes == [0; BLOCK_BYTES];
            if !self.has_begun && !is_zero && !self.content.is_chunked() {
                return Err(self.find_first_header());
            }
            match (self.is_searching, is_zero) {
                (false, true) => return Ok(None),
                (false, false) => {
                    self.is_searching = true;
                    return Err(ReadError::Gap("a header is damaged".to_owned()));
                }
                (true, _) => {
                    self.content.check_cancelled()?;
                    self.content.resynchronise();
                }
            }
        }
    }

    /// Searches for the first valid header after a block that is none. Returns the damage before it, or that there is
    /// none, in which case the file is no tar archive.
    fn find_first_header(&mut self) -> ReadError {
        let mut bytes = [0; BLOCK_BYTES];
        loop {
            if let Err(error) = self.content.check_cancelled() {
                return error;
            }
            match self.content.read_exact(&mut bytes) {
                Ok(()) => {}
                // Where the search goes on is a whole number of blocks from the beginning.
                Err(ReadError::Gap(_)) => self.content.resynchronise(),
                Err(_) => return ReadError::Broken("it does not begin with a header, and none follows".to_owned()),
            }
            if let Some(block) = HeaderBlock::parse(&bytes) {
                self.has_begun = true;
                self.found = Some(Box::new(block));
                return ReadError::Gap("its first header is damaged".to_owned());
            }
        }
    }

    /// Reads a block that lies between a header and its data.
    pub fn read_block(&mut self) -> Result<[u8; BLOCK_BYTES], ReadError> {
        let mut bytes = [0; BLOCK_BYTES];
        self.content.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads a block of the current data.
    pub fn read_data_block(&mut self) -> Result<[u8; BLOCK_BYTES], ReadError> {
        let bytes = self.read_block()?;
        self.data_left = self.data_left.saturating_sub(BLOCK_BYTES as u64);
        Ok(bytes)
    }

    /// Reads `size` bytes of data that follow a header, whole.
    pub fn read_whole_data(&mut self, size: u64) -> Result<Vec<u8>, ReadError> {
        let mut bytes = vec![0; size as usize];
        self.content.read_exact(&mut bytes)?;
        self.padding = padding(size);
        Ok(bytes)
    }

    /// Announces that `size` bytes of data follow.
    pub fn begin_data(&mut self, size: u64) {
        self.data_left = size;
        self.padding = padding(size);
    }

    pub fn is_in_data(&self) -> bool {
        self.data_left > 0
    }

    /// Reads up to `out.len()` bytes of the current data. Returns 0 at its end.
    pub fn read_data(&mut self, out: &mut [u8]) -> Result<usize, ReadError> {
        let count = usize::try_from(self.data_left).map_or(out.len(), |left| left.min(out.len()));
        if count == 0 {
            return Ok(0);
        }
        let count = self.content.read(&mut out[..count])?;
        self.data_left -= count as u64;
        Ok(count)
    }

    /// Skips what is left of the current data and its padding.
    pub fn skip_data(&mut self) -> Result<(), ReadError> {
        let count = self.data_left + self.padding;
        self.forget_data();
        self.content.skip(count)
    }

    /// Continues after a jump, where a member begins. Returns whether there was one.
    pub fn pass_jump(&mut self) -> bool {
        let is_jump = self.content.pass_jump();
        self.is_searching &= !is_jump;
        is_jump
    }

    /// Takes the next byte for the beginning of a header.
    pub fn forget_data(&mut self) {
        (self.data_left, self.padding) = (0, 0);
    }
}
