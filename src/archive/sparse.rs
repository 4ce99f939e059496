//! Maps of sparse files in the pax 1.0 form: the map comes first, then the data of its spans without the holes.

use super::block::padding;
use crate::member::Span;

/// Returns the map of a file of `size` bytes: decimal numbers, one a line, padded to whole blocks with zero bytes.
pub(super) fn encode_map(spans: &[Span], size: u64) -> Vec<u8> {
    // GNU tar ends the map of a file that ends in a hole with an empty span, from which readers learn the size.
    let ends_in_hole = spans.last().is_none_or(|span| span.end() < size);
    let mut map = format!("{}\n", spans.len() + usize::from(ends_in_hole));
    for span in spans {
        map.push_str(&format!("{}\n{}\n", span.offset, span.length));
    }
    if ends_in_hole {
        map.push_str(&format!("{size}\n0\n"));
    }
    let mut map = map.into_bytes();
    map.resize(map.len() + padding(map.len() as u64) as usize, 0);
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::block::BLOCK_BYTES;

    #[test]
    fn a_hole_at_the_end_is_an_empty_span() {
        let text = |spans: &[Span], size| {
            let map = encode_map(spans, size);
            assert_eq!(map.len() % BLOCK_BYTES, 0);
            String::from_utf8(map).unwrap().trim_end_matches('\0').replace('\n', " ")
        };
        assert_eq!(text(&[], 9), "1 9 0 ");
        assert_eq!(text(&[Span { offset: 4, length: 5 }], 9), "1 4 5 ");
        assert_eq!(text(&[Span { offset: 0, length: 5 }], 9), "2 0 5 9 0 ");
    }
}
