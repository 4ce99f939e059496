//! The format of archive files: tar members and their headers, chunks, and the trailer. Reads, writes and checks them.

mod acl;
pub mod block;
pub mod buffer;
pub mod check;
mod chunk_table;
pub mod cksum;
pub mod codec;
pub mod content;
pub mod cutter;
pub mod damaged_members;
mod direct;
pub mod expected_trailer;
pub mod foreign;
pub mod header;
pub mod index;
pub mod members;
pub mod padding;
pub mod reader;
pub mod rebuild;
mod refusals;
pub mod segment_writer;
mod segments;
pub mod sparse;
mod stored;
pub mod trailer;
pub mod writer;
