//! The maps of sparse files as archives store them, and whether they can be true.

use super::blocks::BlockReader;
use super::error::HeaderError;
use super::header_block::{HeaderBlock, unsigned};
use super::pax::{Sparse, decimal};
use crate::archive::block::BLOCK_BYTES;
use crate::member::Span;

/// Largest number of spans in a map. A longer one could fill memory.
pub(super) const MAX_SPANS: usize = 1 << 21;

/// The map of a sparse file, and its sizes.
pub(super) struct SparseLayout {
    pub spans: Vec<Span>,
    /// Size of the file, holes included.
    pub size: u64,
    /// Bytes of data in the archive that the spans take.
    pub stored: u64,
}

/// Reads the map of a sparse file with `stored` bytes of data, from wherever its form has it. Returns `None` for a file
/// that is not sparse. An error carries no name.
pub(super) fn read_layout(
    blocks: &mut BlockReader,
    block: &HeaderBlock,
    sparse: &Sparse,
    mut stored: u64,
) -> Result<Option<SparseLayout>, HeaderError> {
    let refused = |reason: String| HeaderError::refused(Vec::new(), reason);
    let gnu_fields = block.gnu_fields().filter(|_| block.type_flag() == b'S');
    let (spans, size) = if let Some(fields) = gnu_fields {
        (read_gnu_map(blocks, fields)?, unsigned(&fields.realsize))
    } else if sparse.major == Some(1) {
        let (spans, map_bytes) = read_map_in_data(blocks, stored)?;
        stored = stored.saturating_sub(map_bytes);
        (spans, sparse.real_size)
    } else if sparse.has_map {
        (map_of_records(sparse).map_err(refused)?, sparse.real_size)
    } else {
        return Ok(None);
    };
    let size = size.filter(|&size| size <= i64::MAX as u64);
    let size = size.ok_or_else(|| refused("a sparse file without a valid size".to_owned()))?;
    let spans = check(spans, size, stored).map_err(refused)?;
    Ok(Some(SparseLayout { spans, size, stored }))
}

/// Reads the map of an old GNU sparse file: in the header itself, and in blocks between it and the data.
fn read_gnu_map(blocks: &mut BlockReader, fields: &tar::GnuHeader) -> Result<Vec<Span>, HeaderError> {
    let mut spans = Vec::new();
    add_gnu_spans(&fields.sparse, &mut spans).map_err(|reason| HeaderError::refused(Vec::new(), reason))?;
    let mut is_extended = fields.isextended != [0];
    while is_extended {
        let mut extension = tar::GnuExtSparseHeader::new();
        *extension.as_mut_bytes() = blocks.read_block()?;
        // The number of blocks before the data is unknown then.
        add_gnu_spans(&extension.sparse, &mut spans)
            .map_err(|reason| HeaderError::refused_without_size(Vec::new(), reason))?;
        is_extended = extension.isextended != [0];
    }
    Ok(spans)
}

fn add_gnu_spans(entries: &[tar::GnuSparseHeader], spans: &mut Vec<Span>) -> Result<(), String> {
    for entry in entries.iter().filter(|entry| entry.offset[0] != 0) {
        match (unsigned(&entry.offset), unsigned(&entry.numbytes)) {
            (Some(offset), Some(length)) if spans.len() < MAX_SPANS => spans.push(Span { offset, length }),
            (Some(_), Some(_)) => return Err(format!("it has more than {MAX_SPANS} spans")),
            _ => return Err(broken_map()),
        }
    }
    Ok(())
}

/// Returns the map that pax records hold (forms 0.0 and 0.1).
fn map_of_records(sparse: &Sparse) -> Result<Vec<Span>, String> {
    let (pairs, rest) = sparse.map.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(broken_map());
    }
    Ok(pairs.iter().map(|&[offset, length]| Span { offset, length }).collect())
}

/// Reads the map at the beginning of the data (form 1.0), which has `stored` bytes. Returns the map and the number of
/// bytes that it takes.
fn read_map_in_data(blocks: &mut BlockReader, stored: u64) -> Result<(Vec<Span>, u64), HeaderError> {
    let broken = || HeaderError::refused(Vec::new(), broken_map());
    let (mut block, mut at, mut map_bytes) = ([0; BLOCK_BYTES], BLOCK_BYTES, 0);
    let mut number = || -> Result<u64, HeaderError> {
        let mut digits = Vec::new();
        loop {
            if at == BLOCK_BYTES {
                map_bytes += BLOCK_BYTES as u64;
                if map_bytes > stored {
                    return Err(broken());
                }
                (block, at) = (blocks.read_data_block()?, 0);
            }
            let byte = block[at];
            at += 1;
            match byte {
                b'\n' => return decimal(&digits).ok_or_else(broken),
                b'0'..=b'9' if digits.len() < 20 => digits.push(byte),
                _ => return Err(broken()),
            }
        }
    };
    let count = usize::try_from(number()?).ok().filter(|&count| count <= MAX_SPANS).ok_or_else(broken)?;
    let mut spans = Vec::new();
    for _ in 0..count {
        spans.push(Span { offset: number()?, length: number()? });
    }
    Ok((spans, map_bytes))
}

fn broken_map() -> String {
    "its sparse map is broken".to_owned()
}

/// Checks that spans lie in order within a file of `size` bytes and take exactly `data` bytes. Returns them without
/// empty ones.
pub(super) fn check(mut spans: Vec<Span>, size: u64, data: u64) -> Result<Vec<Span>, String> {
    let (mut end, mut sum) = (0_u64, 0_u64);
    for span in &spans {
        let span_end = span.offset.checked_add(span.length).filter(|&span_end| span_end <= size);
        match span_end {
            Some(span_end) if span.offset >= end => (end, sum) = (span_end, sum + span.length),
            _ => return Err("its sparse map contradicts itself".to_owned()),
        }
    }
    if sum != data {
        return Err("its sparse map does not agree with the length of its data".to_owned());
    }
    spans.retain(|span| span.length > 0);
    Ok(spans)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_that_cannot_be_true_are_refused() {
        let span = |offset, length| Span { offset, length };
        assert_eq!(check(vec![span(0, 4), span(8, 0)], 8, 4).unwrap(), [span(0, 4)]);
        for (spans, size, data) in [
            (vec![span(0, 4)], 8, 5),
            (vec![span(0, 9)], 8, 9),
            (vec![span(4, 4), span(0, 4)], 8, 8),
            (vec![span(0, 4), span(3, 4)], 8, 8),
            (vec![span(u64::MAX, 1)], u64::MAX, 1),
        ] {
            assert!(check(spans.clone(), size, data).is_err(), "{spans:?}");
        }
    }
}
