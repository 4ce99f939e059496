//! Archive files and the bytes in them: members, chunks, trailers, and the one way to put a file in place (I3).

mod acl;
pub mod buffer;
pub mod chunk;
pub mod codec;
pub mod content;
pub mod damage;
mod entries;
pub mod extract;
pub mod foreign;
pub mod header;
pub mod members;
pub mod proof;
pub mod reader;
pub mod record;
pub mod sparse;
pub mod trailer;
pub mod writer;
