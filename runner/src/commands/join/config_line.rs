//! Lines of a configuration file, split and quoted as Redis does.

use std::ffi::OsString;
use std::iter::{Copied, Peekable};
use std::os::unix::ffi::OsStringExt as _;
use std::slice;

/// Splits a line as Redis does (`sdssplitargs` in `sds.c`, the same from 6.2 to 8.0 and in Valkey): into
/// words between blanks. A word may contain a quote anywhere, and the closing quote ends the word. A line
/// that Redis would reject has no words.
#[must_use]
pub fn split(line: &[u8]) -> Vec<OsString> {
    let mut words = Vec::new();
    let mut rest = line.iter().copied().peekable();
    loop {
        while rest.next_if(|&byte| is_space(byte)).is_some() {}
        if rest.peek().is_none() {
            return words;
        }
        let Some(word) = word(&mut rest) else { return Vec::new() };
        words.push(OsString::from_vec(word));
    }
}

type Bytes<'a> = Peekable<Copied<slice::Iter<'a, u8>>>;

/// The next word. `None` if a quote is not closed, or if anything but a blank follows the closing quote.
fn word(rest: &mut Bytes) -> Option<Vec<u8>> {
    let mut word = Vec::new();
    while let Some(byte) = rest.next() {
        match byte {
            b' ' | b'\n' | b'\r' | b'\t' => break,
            quote @ (b'"' | b'\'') => {
                quoted(quote, rest, &mut word)?;
                return rest.peek().is_none_or(|&next| is_space(next)).then_some(word);
            }
            byte => word.push(byte),
        }
    }
    Some(word)
}

/// Reads what follows a quote, up to the closing quote.
fn quoted(quote: u8, rest: &mut Bytes, word: &mut Vec<u8>) -> Option<()> {
    loop {
        let byte = match rest.next()? {
            byte if byte == quote => return Some(()),
            b'\\' if quote == b'"' => escaped(rest)?,
            b'\\' => rest.next_if_eq(&b'\'').unwrap_or(b'\\'),
            byte => byte,
        };
        word.push(byte);
    }
}

/// Reads what follows a backslash between double quotes.
fn escaped(rest: &mut Bytes) -> Option<u8> {
    Some(match rest.next()? {
        b'x' => {
            // `CONFIG REWRITE` writes a byte outside of ASCII in this form.
            let digits: Vec<u8> = rest.clone().take(2).collect();
            let number = str::from_utf8(&digits).ok().filter(|digits| digits.len() == 2);
            // `from_str_radix` would accept a sign.
            let number = number.filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
            match number.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
                Some(byte) => {
                    rest.nth(1);
                    byte
                }
                None => b'x',
            }
        }
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'a' => 0x07,
        b'b' => 0x08,
        byte => byte,
    })
}

/// The same as `isspace` in C.
fn is_space(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == 0x0b
}

/// A word as a configuration file contains it, in quotes if it needs them.
#[must_use]
pub fn quote(word: &str) -> String {
    let plain = |char: char| char.is_ascii_graphic() && !matches!(char, '"' | '\'' | '\\' | '#');
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    let mut quoted = String::from("\"");
    for char in word.chars() {
        match char {
            '"' | '\\' => quoted.extend(['\\', char]),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            char => quoted.push(char),
        }
    }
    quoted.push('"');
    quoted
}

/// One line of a configuration file.
#[must_use]
pub fn line(words: &[&str]) -> String {
    words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_and_quoted_as_redis_does() {
        assert_eq!(split(br#"requirepass "a \"b\"\n" 'c d' e"#), ["requirepass", "a \"b\"\n", "c d", "e"]);
        assert_eq!(split(b"requirepass \"never closed"), [""; 0]);
        // As `CONFIG REWRITE` writes it.
        assert_eq!(split(br#"dir "/srv/donn\xc3\xa9e \x7""#), ["dir", "/srv/donnée x7"]);
        // A word may contain a quote anywhere. Behind the closing quote, the word has to end.
        assert_eq!(split(br#"dir /a/"b c"  x"#), ["dir", "/a/b c", "x"]);
        assert_eq!(split(br#"dir "/a/"b c"#), [""; 0]);
        assert_eq!(split(b"\x0bdir /a\x0bb"), ["dir", "/a\x0bb"]);
        for word in ["plain", "", "two words", "q\"uo\\te", "#5", "new\nline", "it's", "pässwort"] {
            assert_eq!(split(quote(word).as_bytes()), [word]);
        }
        assert_eq!(split(b"dir /a/\xff")[1].as_encoded_bytes(), b"/a/\xff");
    }
}
