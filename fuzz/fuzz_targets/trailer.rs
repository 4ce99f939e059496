//! The trailer of our archives: none that is false or damaged panics, fills the memory or is read without end. The
//! digests of the chunks and of the footer are made right, so that what they protect is reached.
//!
//! The first four bytes of the input: codec, number of chunks (2), bytes of facts. Then the stored bytes of the chunks,
//! the table of chunks (40 bytes for each) and the facts.
#![no_main]

mod memory_file;

use std::sync::Arc;

use backup_manager::archive::check::check_by_trailer;
use backup_manager::archive::reader::ArchiveReader;
use backup_manager::archive::rebuild::{read_comment, read_records};
use backup_manager::archive::padding::empty_member;
use backup_manager::cancel::CancelToken;
use backup_manager::clock::Timestamp;
use libfuzzer_sys::fuzz_target;
use memory_file::memory_file;

/// Sets the digests of the chunks that lie in `stored` whole.
fn set_digests(table: &mut [u8], stored: &[u8]) {
    let mut rest = stored;
    for entry in table.as_chunks_mut::<40>().0 {
        let length = u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]) as usize;
        let Some((chunk, behind)) = rest.split_at_checked(length) else { return };
        entry[8..].copy_from_slice(blake3::hash(chunk).as_bytes());
        rest = behind;
    }
}

fn footer(body: &[u8], chunks: u16, facts_bytes: u8) -> Vec<u8> {
    let mut footer = Vec::from(u64::from(chunks).to_le_bytes());
    footer.extend(u32::from(facts_bytes).to_le_bytes());
    footer.extend(1_u32.to_le_bytes());
    let digest = blake3::Hasher::new().update(body).update(&footer).finalize();
    footer.extend(digest.as_bytes());
    footer.extend([0; 8]);
    footer.extend(b"bkp-mgr\n");
    footer
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&[codec, low, high, facts_bytes], rest)) = bytes.split_first_chunk::<4>() else { return };
    let chunks = u16::from_le_bytes([low, high]) % 40;
    let table_bytes = usize::from(chunks) * 40;
    let body_bytes = (table_bytes + usize::from(facts_bytes)).min(rest.len());
    let (content, body) = rest.split_at(rest.len() - body_bytes);
    let magic: &[u8] = [b"", &b"\x1f\x8b"[..], b"\x28\xb5\x2f\xfd"][usize::from(codec % 3)];
    let stored = [magic, content].concat();
    let mut body = body.to_vec();
    let table_end = table_bytes.min(body.len());
    set_digests(&mut body[..table_end], &stored);
    let footer = footer(&body, chunks, facts_bytes);
    let (_file, path) = match codec % 3 {
        0 => memory_file(&[&stored, &body, &footer]),
        1 => memory_file(&[&stored, &empty_member(&body), &empty_member(&footer)]),
        _ => {
            let length = (body.len() + footer.len()) as u32;
            let frame = [0x184D_2A5B_u32.to_le_bytes(), length.to_le_bytes()].concat();
            let seek_table = [&[0x5e, 0x2a, 0x4d, 0x18, 9, 0, 0, 0, 0, 0, 0, 0, 0][..], &[0xb1, 0xea, 0x92, 0x8f]];
            memory_file(&[&stored, &frame, &body, &footer, &seek_table.concat()])
        }
    };
    let Ok(reader) = ArchiveReader::open(&path) else { return };
    let checked = check_by_trailer(&path, 1, &CancelToken::new());
    let Ok(Some(trailer)) = reader.trailer() else { return assert!(checked.is_err()) };
    let end = trailer.entries().map(|chunk| chunk.expect("a table that was read once").end()).last();
    assert_eq!(trailer.content_end(), end.unwrap_or(0));
    assert!(trailer.content_end() <= reader.size());
    let _comment = read_comment(&reader, &trailer);
    let read_started = Timestamp::from_millis(0);
    let records = read_records(Arc::new(reader), &trailer, read_started, 1, &mut |_| Ok(()));
    assert!(checked.is_ok() || records.is_err(), "a rebuild accepts what a verification refuses");
});
