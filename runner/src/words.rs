//! How numbers and times are written.

use std::fmt::Display;
use std::time::Duration;

/// `1 key`, `2 keys`.
pub fn count(number: impl Display, one: &str) -> String {
    let number = number.to_string();
    let s = if number == "1" { "" } else { "s" };
    format!("{number} {one}{s}")
}

/// A duration: in milliseconds below ten seconds, in seconds from there on.
pub fn took(duration: Duration) -> String {
    if duration < Duration::from_secs(10) {
        format!("{} ms", duration.as_millis())
    } else {
        format!("{:.1} s", duration.as_secs_f64())
    }
}

/// A size: `512 B`, `3.00 MiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    #[expect(clippy::cast_precision_loss, reason = "two decimals are shown")]
    let mut size = bytes as f64 / 1024.0;
    let mut units = UNITS.iter();
    let mut unit = units.next().unwrap_or(&"");
    for larger in units {
        if size < 1024.0 {
            break;
        }
        size /= 1024.0;
        unit = larger;
    }
    format!("{size:.2} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_sizes_are_said_as_they_are() {
        assert_eq!([count(0, "key"), count(1, "key"), count(2, "key")], ["0 keys", "1 key", "2 keys"]);
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!([bytes(1024), bytes(3 << 20), bytes(5 << 29)], ["1.00 KiB", "3.00 MiB", "2.50 GiB"]);
        assert_eq!(bytes(u64::MAX), "16.00 EiB");
        assert_eq!(took(Duration::from_millis(9_999)), "9999 ms");
        assert_eq!(took(Duration::from_millis(12_340)), "12.3 s");
    }
}
