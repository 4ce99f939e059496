//! Splits Rust sources into code and strings, so that each rule reads only what it is about.

/// A source text split in two: the code with comments and strings replaced by blanks, and the strings with their lines.
pub struct Lexed {
    pub code: String,
    pub strings: Vec<(usize, String)>,
}

/// Splits a Rust source. Line breaks are kept, so that line numbers in the code are those of the file.
pub fn lex(text: &str) -> Lexed {
    let chars: Vec<char> = text.chars().collect();
    let mut lexed = Lexed { code: String::with_capacity(text.len()), strings: Vec::new() };
    let (mut at, mut line) = (0, 1);
    while at < chars.len() {
        let end = match chars[at] {
            '/' if chars.get(at + 1) == Some(&'/') => end_of_line(&chars, at),
            '/' if chars.get(at + 1) == Some(&'*') => end_of_block_comment(&chars, at),
            '"' => end_of_string(&chars, at),
            'r' if !ends_a_word(&chars, at) && raw_hashes(&chars, at).is_some() => end_of_raw_string(&chars, at),
            '\'' => end_of_character(&chars, at),
            _ => at + 1,
        };
        let piece = &chars[at..end];
        if piece.len() == 1 {
            lexed.code.push(piece[0]);
        } else {
            if matches!(piece[0], '"' | 'r') {
                lexed.strings.push((line, piece.iter().collect()));
            }
            lexed.code.extend(piece.iter().map(|&c| if c == '\n' { '\n' } else { ' ' }));
        }
        line += piece.iter().filter(|&&c| c == '\n').count();
        at = end;
    }
    lexed
}

fn end_of_line(chars: &[char], at: usize) -> usize {
    chars[at..].iter().position(|&c| c == '\n').map_or(chars.len(), |length| at + length)
}

fn end_of_block_comment(chars: &[char], at: usize) -> usize {
    let (mut depth, mut at) = (0, at);
    while at < chars.len() {
        match (chars[at], chars.get(at + 1)) {
            ('/', Some('*')) => (depth, at) = (depth + 1, at + 2),
            ('*', Some('/')) => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn end_of_string(chars: &[char], at: usize) -> usize {
    let mut at = at + 1;
    while at < chars.len() && chars[at] != '"' {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(chars.len())
}

/// Returns whether there is a character and it may be part of an identifier.
pub fn is_word(c: Option<char>) -> bool {
    c.is_some_and(|c| c.is_alphanumeric() || c == '_')
}

/// Returns whether the `r` at `at` belongs to a longer word; `br"` and `cr"` begin raw strings, too.
fn ends_a_word(chars: &[char], at: usize) -> bool {
    let before = |back: usize| at.checked_sub(back).map(|at| chars[at]);
    match before(1) {
        Some('b' | 'c') => is_word(before(2)),
        other => is_word(other),
    }
}

/// Returns the number of `#` between the `r` at `at` and a quote, if a raw string begins there.
fn raw_hashes(chars: &[char], at: usize) -> Option<usize> {
    let hashes = chars[at + 1..].iter().take_while(|&&c| c == '#').count();
    (chars.get(at + 1 + hashes) == Some(&'"')).then_some(hashes)
}

fn end_of_raw_string(chars: &[char], at: usize) -> usize {
    let hashes = raw_hashes(chars, at).unwrap_or(0);
    let closing: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
    let start = at + hashes + 2;
    let length = chars[start..].windows(closing.len()).position(|window| window == closing);
    length.map_or(chars.len(), |length| start + length + closing.len())
}

/// Returns the end of a character literal, or the next character where the quote begins a lifetime.
fn end_of_character(chars: &[char], at: usize) -> usize {
    match (chars.get(at + 1), chars.get(at + 2)) {
        (Some('\\'), _) => {
            chars.iter().skip(at + 3).position(|&c| c == '\'').map_or(chars.len(), |length| at + 3 + length + 1)
        }
        (Some(_), Some('\'')) => at + 3,
        _ => at + 1,
    }
}

#[test]
fn sources_are_split_into_code_and_strings() {
    let text = "a = \"x // \\\" y\"; // c\nb = r#\"z \" z\"#; c = '\"'; d: &'a str = br\"q\"; '\\''; /* /* */ */ end";
    let lexed = lex(text);
    let strings: Vec<&str> = lexed.strings.iter().map(|(_, string)| string.as_str()).collect();
    assert_eq!(strings, ["\"x // \\\" y\"", "r#\"z \" z\"#", "r\"q\""]);
    assert!(lexed.code.ends_with(" end") && !lexed.code.contains(" c\n") && lexed.code.contains("&'a str"));
}
