//! Lines of a configuration file, split and quoted as Redis does.

/// Splits a line as Redis does (`sdssplitargs`): words between blanks, or in quotes. A line that it would not take has no
/// words.
#[must_use]
pub fn split(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = line.bytes().peekable();
    loop {
        while rest.next_if(u8::is_ascii_whitespace).is_some() {}
        let Some(&first) = rest.peek() else { return words };
        let mut word = Vec::new();
        if first == b'"' || first == b'\'' {
            rest.next();
            loop {
                match rest.next() {
                    None => return Vec::new(),
                    Some(byte) if byte == first => break,
                    Some(b'\\') if first == b'"' => match rest.next() {
                        None => return Vec::new(),
                        Some(b'x') => {
                            // What a character outside of ASCII is rewritten as.
                            let digits: Vec<u8> = rest.clone().take(2).collect();
                            let number = str::from_utf8(&digits).ok().filter(|digits| digits.len() == 2);
                            match number.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
                                Some(byte) => {
                                    rest.nth(1);
                                    word.push(byte);
                                }
                                None => word.push(b'x'),
                            }
                        }
                        Some(b'n') => word.push(b'\n'),
                        Some(b'r') => word.push(b'\r'),
                        Some(b't') => word.push(b'\t'),
                        Some(b'a') => word.push(0x07),
                        Some(b'b') => word.push(0x08),
                        Some(byte) => word.push(byte),
                    },
                    Some(b'\\') if rest.next_if_eq(&b'\'').is_some() => word.push(b'\''),
                    Some(byte) => word.push(byte),
                }
            }
        } else {
            while let Some(byte) = rest.next_if(|byte| !byte.is_ascii_whitespace()) {
                word.push(byte);
            }
        }
        words.push(String::from_utf8_lossy(&word).into_owned());
    }
}

/// A word as it stands in a configuration file, in quotes where it needs them.
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
        assert_eq!(split(r#"requirepass "a \"b\"\n" 'c d' e"#), ["requirepass", "a \"b\"\n", "c d", "e"]);
        assert_eq!(split("requirepass \"never closed"), [""; 0]);
        // As `CONFIG REWRITE` writes it.
        assert_eq!(split(r#"dir "/srv/donn\xc3\xa9e \x7""#), ["dir", "/srv/donnée x7"]);
        for word in ["plain", "", "two words", "q\"uo\\te", "#5", "new\nline", "it's", "pässwort"] {
            assert_eq!(split(&quote(word)), [word]);
        }
    }
}
