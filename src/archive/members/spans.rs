//! The maps of sparse files as they stand in archives, and whether they can be true.

use super::block::{Block, number};
use super::pax::{Sparse, decimal};
use crate::archive::header::BLOCK;
use crate::member::Span;

/// A map of more spans is a trap for memory.
pub(super) const MOST_SPANS: usize = 1 << 21;

/// Reads the spans that an old GNU header holds itself; says whether blocks with more follow.
pub(super) fn of_header(block: &Block) -> Result<(Vec<Span>, bool), String> {
    let mut spans = Vec::new();
    add_entries(block.bytes(386..482), &mut spans)?;
    Ok((spans, block.bytes(482..483) != [0]))
}

/// Reads the spans of a block that follows an old GNU header; says whether there are more.
pub(super) fn of_extension(block: &[u8; BLOCK], spans: &mut Vec<Span>) -> Result<bool, String> {
    add_entries(&block[..504], spans)?;
    Ok(block[504] != 0)
}

fn add_entries(entries: &[u8], spans: &mut Vec<Span>) -> Result<(), String> {
    let (entries, _) = entries.as_chunks::<24>();
    for entry in entries {
        let part = |field: &[u8]| number(field).and_then(|n| u64::try_from(n).ok());
        if entry[0] == 0 {
            continue;
        }
        match (part(&entry[..12]), part(&entry[12..])) {
            (Some(offset), Some(length)) if spans.len() < MOST_SPANS => spans.push(Span { offset, length }),
            (Some(_), Some(_)) => return Err(format!("it has more than {MOST_SPANS} spans")),
            _ => return Err("its sparse map is broken".to_owned()),
        }
    }
    Ok(())
}

/// Returns the spans that pax records hold (forms 0.0 and 0.1).
pub(super) fn of_records(sparse: &Sparse) -> Result<Vec<Span>, String> {
    let (pairs, rest) = sparse.map.as_chunks::<2>();
    if !rest.is_empty() {
        return Err("its sparse map is broken".to_owned());
    }
    Ok(pairs.iter().map(|&[offset, length]| Span { offset, length }).collect())
}

/// Reads the map that stands before the data (form 1.0), block by block through `next_block`. Returns the spans and
/// how many bytes the map took.
pub(super) fn of_data(
    stored: u64,
    mut next_block: impl FnMut() -> Result<[u8; BLOCK], String>,
) -> Result<(Vec<Span>, u64), String> {
    let broken = || "its sparse map is broken".to_owned();
    let (mut block, mut at, mut taken) = ([0; BLOCK], BLOCK, 0);
    let mut number = || -> Result<u64, String> {
        let mut digits = Vec::new();
        loop {
            if at == BLOCK {
                taken += BLOCK as u64;
                if taken > stored {
                    return Err(broken());
                }
                (block, at) = (next_block()?, 0);
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
    let count = usize::try_from(number()?).ok().filter(|&count| count <= MOST_SPANS).ok_or_else(broken)?;
    let mut spans = Vec::new();
    for _ in 0..count {
        spans.push(Span { offset: number()?, length: number()? });
    }
    Ok((spans, taken))
}

/// Checks that spans lie in order within a file of `size` bytes and need exactly `data` bytes; drops empty ones.
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
        return Err("its sparse map tells of other data than there is".to_owned());
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
