use proptest::prelude::*;

use super::*;

const NAME: ArchiveName<'static> = ArchiveName {
    schedule: "#a 'b' ü",
    created_at: Timestamp::from_millis(1_795_401_000_000),
    run: 17,
    extension: "tar.gz",
};

fn segment(number: u32) -> String {
    SegmentName { archive: ArchiveName { run: 16, ..NAME }, number }.file_name()
}

fn example() -> Index {
    let mut index = Index::new(&NAME, 236, Cksum { sum: 4_294_967_295, bytes: 1_000_350 });
    index.push(&segment(1), 0, 300);
    index.push(&segment(1), 300, 0);
    index.push(&segment(2), 5, 50);
    index.push(&segment(1), 300, 1_000_000);
    index
}

fn text(index: &Index) -> String {
    let mut text = Vec::new();
    index.write(&mut text).unwrap();
    String::from_utf8(text).unwrap()
}

fn read(text: &[u8]) -> Result<Index> {
    Index::read(Path::new("x.index"), text)
}

/// Replaces the last line by the digest of the lines before it, so that only the change itself can be noticed.
fn with_digest(lines: &str) -> String {
    let body: String = lines.split_inclusive('\n').filter(|line| !line.starts_with(DIGEST_WORD)).collect();
    let digest = blake3::hash(body.as_bytes()).to_hex();
    format!("{body}{DIGEST_WORD}{digest}\n")
}

#[test]
fn the_text_is_as_documented() {
    let x = [
        r##"X='#a '\''b'\'' ü-20261123T023000Z-17.tar.gz.index'; grep -v '^#' "$X""##,
        r##" | while read -r o n f; do tail -c "+$o" "./$f" | head -c "$n"; done"##,
    ]
    .concat();
    let expected = format!(
        "# backup-manager index 1\n\
         # archive #a 'b' ü-20261123T023000Z-17.tar.gz\n\
         # run 17\n\
         # bytes 1000350\n\
         # members 236\n\
         # cksum 4294967295 1000350\n\
         # First check, in this folder: the next line must print the two numbers of the line above.\n\
         # {x} | cksum\n\
         # {x} | tar -xzf -\n\
         1 300 #a 'b' ü-20261123T023000Z-16.tar.gz.1.segment\n\
         6 50 #a 'b' ü-20261123T023000Z-16.tar.gz.2.segment\n\
         301 1000000 #a 'b' ü-20261123T023000Z-16.tar.gz.1.segment\n"
    );
    let text = text(&example());
    assert_eq!(text, with_digest(&expected));
    let of = |extension| {
        let mut index = Index::new(&ArchiveName { extension, ..NAME }, 1, Cksum { sum: 0, bytes: 1 });
        index.push(&segment(1), 0, 1);
        index.header()
    };
    assert!(of("tar").ends_with(" | tar -xf -\n") && of("tar.zst").ends_with(" | tar --zstd -xf -\n"));
}

#[test]
fn an_index_is_read_as_it_was_written() {
    let index = example();
    let again = read(text(&index).as_bytes()).unwrap();
    assert_eq!(again, index);
    assert_eq!(again.archive_name(), NAME);
    assert_eq!(again.segments(), [segment(1), segment(2)]);
    assert_eq!(again.ranges().len(), 3);
    let second = again.ranges().nth(1).unwrap();
    assert_eq!(second, IndexRange { segment: &segment(2), offset: 5, length: 50 });
    let mut short = example();
    short.push(&segment(3), 0, 1);
    let error = short.write(&mut Vec::new()).unwrap_err();
    assert_eq!(error.to_string(), "the ranges of an index are 1000351 bytes, and the archive has 1000350");
}

#[test]
fn every_changed_byte_and_every_missing_end_is_noticed() {
    let good = text(&example()).into_bytes();
    for at in 0..good.len() {
        for bit in [0x01, 0x20] {
            let mut changed = good.clone();
            changed[at] ^= bit;
            assert!(read(&changed).is_err(), "byte {at}");
        }
        let error = read(&good[..at]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damage, "cut to {at}");
    }
    let longer = [good.as_slice(), b"\n"].concat();
    assert!(read(&longer).unwrap_err().to_string().ends_with("other data follows it"));
    let twice = [good.as_slice(), good.as_slice()].concat();
    assert!(read(&twice).is_err());
}

/// Returns lines for the place of `range`, each with the reason why it is refused.
fn hostile_lines(range: &str) -> Vec<(String, &'static str)> {
    let name = segment(2);
    vec![
        (range.replace("6 50", "0 50"), "two numbers from 1"),
        (range.replace("6 50", "6 0"), "two numbers from 1"),
        (range.replace("6 50", "-6 50"), "two numbers from 1"),
        (range.replace("6 50", "+6 50"), "two numbers from 1"),
        (range.replace("6 50", "06 50"), "two numbers from 1"),
        (range.replace("6 50", "0x6 50"), "two numbers from 1"),
        (range.replace("6 50", "6  50"), "two numbers from 1"),
        (range.replace("6 50", " 6 50"), "two numbers from 1"),
        (range.replace("6 50", "6\t50"), "two numbers from 1"),
        (range.replace("6 50", "x[$(touch${IFS}x)] 50"), "two numbers from 1"),
        (range.replace("6 50", "18446744073709551616 50"), "two numbers from 1"),
        (range.replace("6 50", "18446744073709551615 50"), "no file is that large"),
        (range.replace("6 50", "9223372036854775759 50"), "no file is that large"),
        (range.replace("6 50", "6 18446744073709551615"), "no file is that large"),
        (range.replace("6 50", "6 51"), "its ranges are 1000351 bytes"),
        (range.replace("6 50", "6 49"), "its ranges are 1000349 bytes"),
        ("6 50".to_owned(), "the name of a segment"),
        (format!("6 50 ../{name}"), "the name of a segment"),
        (format!("6 50 /{name}"), "the name of a segment"),
        (format!("6 50 ./{name}"), "the name of a segment"),
        (format!("6 50  {name}"), "the name of a segment"),
        (format!("{range} "), "the name of a segment"),
        (format!("{range}\r"), "the name of a segment"),
        (format!("{range}\0"), "the name of a segment"),
        (range.replace(".2.segment", ".02.segment"), "the name of a segment"),
        (range.replace(".2.segment", ".index"), "the name of a segment"),
        (range.replace(".tar.gz.", ".tar."), "the name of a segment"),
        (range.replace("#a", "b"), "the name of a segment"),
        ("6 50 /etc/shadow".to_owned(), "the name of a segment"),
        ("6 50 $(id)".to_owned(), "the name of a segment"),
        (String::new(), "two numbers from 1"),
        (format!("301 50 {}", segment(1)), "continues the range before it"),
        (format!("# {range}"), "two numbers from 1"),
    ]
}

#[test]
fn a_hostile_index_is_refused_by_line_although_its_digest_is_right() {
    let good = text(&example());
    let range = format!("6 50 {}", segment(2));
    for (line, reason) in hostile_lines(&range) {
        let changed = with_digest(&good.replace(&range, &line));
        let error = read(changed.as_bytes()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damage, "{line:?}");
        let message = error.to_string();
        assert!(message.contains(reason), "{line:?}: {message}");
        assert!(message.starts_with("the index x.index is damaged in line 1"), "{line:?}: {message}");
    }
    let many = format!("1 9223372036854775807 {}\n", segment(3)).repeat(3) + &range;
    let many = many.replacen("1 9223372036854775807", "2 9223372036854775806", 1);
    let error = read(with_digest(&good.replace(&range, &many)).as_bytes()).unwrap_err();
    assert!(error.to_string().ends_with("no archive is that large"), "{error}");
}

#[test]
fn a_header_of_another_form_is_refused_although_its_digest_is_right() {
    let good = text(&example());
    for (from, to) in [
        ("# run 17", "# run 18"),
        ("# bytes 1000350", "# bytes 1000351"),
        ("# members 236", "# members -1"),
        ("# members 236", "# members 0236"),
        ("# cksum 4294967295", "# cksum 4294967296"),
        ("-17.tar.gz\n", "-17.tar.gz\r\n"),
        ("# archive #a", "# archive ../#a"),
        ("| tar -xzf -", "| sh"),
        ("grep -v", "grep  -v"),
        ("# run 17\n", ""),
        ("# run 17\n", "# run 17\n# run 17\n"),
    ] {
        let changed = with_digest(&good.replacen(from, to, 1));
        assert_ne!(changed, good);
        let error = read(changed.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("is damaged in line"), "{from:?}: {error}");
    }
    let windows = with_digest(&good.replace('\n', "\r\n"));
    assert_eq!(read(windows.as_bytes()).unwrap_err().kind(), ErrorKind::Damage);
    let newer = with_digest(&good.replacen("index 1", "index 2", 1));
    let error = read(newer.as_bytes()).unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (ErrorKind::Failed, "x.index was made by a newer version of this program")
    );
    assert!(read(b"").is_err() && read(&[0; 5000]).is_err() && read(&[b'#'; 5000]).is_err());
    let invalid = [b"# backup-manager index 1\n# archive \xff\xfe\n".as_slice(), good.as_bytes()].concat();
    assert!(read(&invalid).unwrap_err().to_string().ends_with("it is not text"));
}

#[test]
fn the_example_in_the_documentation_is_an_index() {
    let document = include_str!("../../../docs/archive-format.md");
    let text = document.split("```\n").find(|block| block.as_bytes().starts_with(MAGIC)).unwrap();
    let index = read(text.as_bytes()).unwrap();
    assert_eq!((index.bytes(), index.ranges().len()), (1_000_350, 3));
}

#[test]
fn the_number_of_ranges_grows_with_the_archive() {
    assert_eq!(Index::max_ranges(0), 10_000);
    assert_eq!(Index::max_ranges(10_000 * 32 * 1024 + 32 * 1024), 10_001);
}

proptest! {
    #[test]
    fn any_ranges_are_read_back(ranges in prop::collection::vec((1_u32..4, 0_u64..1 << 40, 0_u64..1 << 30), 0..50)) {
        let bytes = ranges.iter().map(|(_, _, length)| length).sum();
        let mut index = Index::new(&NAME, 1, Cksum { sum: 7, bytes });
        ranges.iter().for_each(|(number, offset, length)| index.push(&segment(*number), *offset, *length));
        prop_assert_eq!(read(text(&index).as_bytes()).unwrap(), index);
    }

    #[test]
    fn any_text_is_read_or_refused(text in ".{0,200}", bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(read(text.as_bytes()).is_err() && read(&bytes).is_err());
        let lines = format!("{}{text}\n", example().header());
        prop_assert!(read(with_digest(&lines).as_bytes()).is_err());
    }
}
