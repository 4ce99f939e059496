//! Numbers in words, and words for a shell.

use std::borrow::Cow;

/// Returns `1 thing` or `N things`.
pub fn count(number: u64, thing: &str) -> String {
    if number == 1 { format!("1 {thing}") } else { format!("{number} {thing}s") }
}

/// Returns a number of bytes in a unit that fits.
pub fn bytes(number: u64) -> String {
    indicatif::HumanBytes(number).to_string()
}

/// Returns a word as a shell takes it, quoted if necessary, for a command that is to be pasted.
pub fn shell_word(word: &str) -> Cow<'_, str> {
    let is_plain = |c: char| c.is_alphanumeric() || "-_./:@%+=,".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return Cow::Borrowed(word);
    }
    Cow::Owned(format!("'{}'", word.replace('\'', "'\\''")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_what_a_shell_makes_of_it() {
        let words = ["docs", "Büro", "Büro 2", "#a", "it's $(id)", "a*", "~", "", "!x", "a\\b", "x=1;y"];
        for word in words {
            let line = format!("printf %s {}", shell_word(word));
            let printed = std::process::Command::new("sh").args(["-c", &line]).output().unwrap().stdout;
            assert_eq!(String::from_utf8(printed).unwrap(), word);
        }
        assert_eq!(words.map(|word| shell_word(word) == word)[..3], [true, true, false]);
    }

    #[test]
    fn one_thing_is_singular_and_any_other_number_plural() {
        assert_eq!([0, 1, 2].map(|number| count(number, "file")), ["0 files", "1 file", "2 files"]);
        assert_eq!(bytes(6 << 10), "6.00 KiB");
    }
}
