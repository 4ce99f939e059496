//! Archive files and the bytes in them: members, chunks, trailers, and the one way to put a file in place (I3).

pub mod place;
