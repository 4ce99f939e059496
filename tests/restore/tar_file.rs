//! Builds tar files block by block, also such that no tar program writes.

/// A tar file being built.
#[derive(Default)]
pub struct TarFile(pub Vec<u8>);

/// One header block, which can be changed before it is added.
pub struct Block(pub [u8; 512]);

impl Block {
    pub fn new(name: &[u8], flag: u8, size: u64) -> Block {
        let mut block = Block([0; 512]);
        let length = name.len().min(100);
        block.0[..length].copy_from_slice(&name[..length]);
        for (field, value) in [(100..108, 0o644), (108..116, 0), (116..124, 0), (136..148, 1_700_000_000)] {
            block.octal(field, value);
        }
        block.octal(124..136, size);
        block.0[156] = flag;
        block.0[257..265].copy_from_slice(b"ustar\x0000");
        block
    }

    pub fn octal(&mut self, field: std::ops::Range<usize>, value: u64) {
        let width = field.len() - 1;
        let text = format!("{value:0width$o}\0");
        self.0[field].copy_from_slice(text.as_bytes());
    }

    pub fn link(mut self, target: &[u8]) -> Block {
        self.0[157..157 + target.len()].copy_from_slice(target);
        self
    }

    pub fn mode(mut self, mode: u64) -> Block {
        self.octal(100..108, mode);
        self
    }

    pub fn with(mut self, change: impl FnOnce(&mut [u8; 512])) -> Block {
        change(&mut self.0);
        self
    }

    pub fn finished(mut self) -> [u8; 512] {
        self.0[148..156].fill(b' ');
        let sum: u64 = self.0.iter().map(|&b| u64::from(b)).sum();
        self.octal(148..155, sum);
        self.0
    }
}

impl TarFile {
    pub fn block(mut self, block: Block) -> TarFile {
        self.0.extend(block.finished());
        self
    }

    pub fn bytes(mut self, bytes: &[u8]) -> TarFile {
        self.0.extend(bytes);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, name: &str, content: &[u8]) -> TarFile {
        self.block(Block::new(name.as_bytes(), b'0', content.len() as u64)).bytes(content)
    }

    pub fn folder(self, name: &str) -> TarFile {
        self.block(Block::new(name.as_bytes(), b'5', 0).mode(0o755))
    }

    pub fn symlink(self, name: &str, target: &str) -> TarFile {
        self.block(Block::new(name.as_bytes(), b'2', 0).link(target.as_bytes()))
    }

    pub fn hard_link(self, name: &str, target: &str) -> TarFile {
        self.block(Block::new(name.as_bytes(), b'1', 0).link(target.as_bytes()))
    }

    /// Adds a pax header with these records, unchecked.
    pub fn raw_pax(self, flag: u8, records: &[u8]) -> TarFile {
        self.block(Block::new(b"PaxHeaders/x", flag, records.len() as u64)).bytes(records)
    }

    pub fn pax(self, records: &[(&str, &[u8])]) -> TarFile {
        self.raw_pax(b'x', &records.iter().flat_map(|(key, value)| record(key, value)).collect::<Vec<_>>())
    }

    pub fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

pub fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key.as_bytes(), b"=", value, b"\n"].concat()
}
