//! Archive files and the bytes in them: members, chunks, trailers, and the one way to put a file in place (I3).

mod acl;
pub mod block;
pub mod buffer;
pub mod check;
mod chunk_table;
pub mod codec;
pub mod content;
pub mod cutter;
pub mod damaged_members;
pub mod foreign;
pub mod header;
pub mod members;
pub mod reader;
pub mod rebuild;
pub mod sparse;
pub mod trailer;
pub mod writer;
