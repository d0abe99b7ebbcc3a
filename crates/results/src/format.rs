//! Numbers, times and texts as people read them, in reports, pages, the terminal and studies. Pure.

pub use proto::clipped;
use serde::Serialize;
use time::OffsetDateTime;

pub const ABSENT: &str = "–";

/// An estimated or rough time in at most two units: `42 s`, `5 min`, `3 h 20 min`, `2 d 4 h`.
pub fn duration(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    match (seconds / 60, seconds / 3600) {
        (0, _) => format!("{seconds} s"),
        (minutes, 0) => format!("{minutes} min"),
        (minutes, hours @ ..48) => format!("{hours} h {} min", minutes % 60),
        (_, hours @ ..240_000) => format!("{} d {} h", hours / 24, hours % 24),
        _ => "years".into(),
    }
}

/// A measured time, to a tenth of a second where it is short: `1.2 s`, `1 min 01 s`, `1,234 h 05 min`.
pub fn exact_duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", count(whole / 3600), whole % 3600 / 60),
    }
}

/// A time in seconds since 1970, to the minute: `2026-03-01 00:00 UTC`. `None` after the year 9999.
pub fn utc(seconds: u64) -> Option<String> {
    let at = OffsetDateTime::from_unix_timestamp(seconds.try_into().ok()?).ok()?;
    let (month, day) = (u8::from(at.month()), at.day());
    Some(format!("{}-{month:02}-{day:02} {:02}:{:02} UTC", at.year(), at.hour(), at.minute()))
}

/// A time in seconds since 1970 as programs read it: `2026-03-01T00:00:00Z`. `None` after the year 9999.
pub fn rfc3339(seconds: u64) -> Option<String> {
    let at = OffsetDateTime::from_unix_timestamp(seconds.try_into().ok()?).ok()?;
    let ((hour, minute, second), month) = (at.to_hms(), u8::from(at.month()));
    Some(format!("{}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", at.year(), at.day()))
}

/// Seconds of a time such as `90m`, `12h`, `1.5h` or `30d`. An error is a sentence for people.
pub fn parse_duration(text: &str) -> Result<f64, String> {
    let wrong = || format!("{text:?} is not a time: give a number above 0 and its unit, such as 30s, 90m, 12h or 30d");
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let unit = match unit {
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return Err(wrong()),
    };
    let seconds = number.parse::<f64>().map_err(|_| wrong())? * unit;
    if seconds > 0.0 && seconds <= 1e10 { Ok(seconds) } else { Err(wrong()) }
}

/// Digits in groups of three: `1,234,567`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 image`, `1,200 images`.
pub fn counted(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", count(number), if number == 1 { "" } else { "s" })
}

/// `17.2 %`; nothing of nothing is `0.0 %`.
pub fn percent(part: u64, whole: u64) -> String {
    format!("{:.1} %", if whole == 0 { 0.0 } else { 100.0 * part as f64 / whole as f64 })
}

/// [`ABSENT`] without a finite number. The minus sign is as wide as a digit.
pub fn decimal(value: Option<f64>, decimals: usize) -> String {
    match value {
        Some(value) if value.is_finite() => minus(&format!("{value:.decimals$}")),
        _ => ABSENT.into(),
    }
}

/// As [`decimal`] with two decimals, and without the sign of a value that rounds to zero.
pub fn unsigned_zero(value: f64) -> String {
    match format!("{value:.2}").as_str() {
        "-0.00" => "0.00".into(),
        text => minus(text),
    }
}

/// A number with a minus sign as wide as its digits.
pub fn minus(number: &str) -> String {
    number.replace('-', "−")
}

/// A rate with about two digits: `0.4`, `9.9`, `12`.
pub fn short(number: f64) -> String {
    if number < 9.95 { format!("{number:.1}") } else { format!("{number:.0}") }
}

/// A size in decimal units: `1.5 GB`.
pub fn bytes(number: f64) -> String {
    match number {
        n if n >= 1e12 => format!("{:.1} TB", n / 1e12),
        n if n >= 1e9 => format!("{:.1} GB", n / 1e9),
        n if n >= 1e6 => format!("{:.1} MB", n / 1e6),
        n => format!("{:.1} kB", n / 1e3),
    }
}

/// A JSON file that people read, too: indented, and with a last line feed.
pub fn json(value: &impl Serialize) -> Vec<u8> {
    let mut json = serde_json::to_vec_pretty(value).expect("plain structs with string keys serialise");
    json.push(b'\n');
    json
}

/// A name of JSON as words: `bad_image` is `bad image`.
pub fn words(name: &str) -> String {
    name.replace('_', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([counted(1, "image"), counted(1200, "image")], ["1 image", "1,200 images"]);
        assert_eq!([None, Some(f64::NAN), Some(-0.5)].map(|v| decimal(v, 3)), ["–", "–", "−0.500"]);
        assert_eq!([-0.001, -0.25].map(unsigned_zero), ["0.00", "−0.25"]);
        assert_eq!([0.4, 9.94, 9.96].map(short), ["0.4", "9.9", "10"]);
        assert_eq!([percent(5, 29), percent(0, 0)], ["17.2 %", "0.0 %"]);
        assert_eq!([1500.0, 2.5e6, 1.5e9, 3e12].map(bytes), ["1.5 kB", "2.5 MB", "1.5 GB", "3.0 TB"]);
        assert_eq!([clipped("über", 1), clipped("über", 4)], ["ü…", "über"]);
    }

    #[test]
    fn durations_have_at_most_two_units() {
        let rough = [0.4, 59.4, 300.0, 12_000.0, 172_800.0, 1e12, f64::NAN].map(duration);
        assert_eq!(rough, ["0 s", "59 s", "5 min", "3 h 20 min", "2 d 0 h", "years", "0 s"]);
        assert_eq!([1.25, 61.0, 7260.0].map(exact_duration), ["1.2 s", "1 min 01 s", "2 h 01 min"]);
    }

    #[test]
    fn a_time_has_a_number_above_zero_and_a_unit() {
        let times = ["30s", "90m", "12h", "1.5h", "30d"].map(|text| parse_duration(text).expect(text));
        assert_eq!(times, [30.0, 5400.0, 43_200.0, 5400.0, 2_592_000.0]);
        for wrong in ["", "12", "h", "0h", "-1h", "NaNh", "infd", "1e300d", "12 hours", "12€"] {
            assert!(parse_duration(wrong).is_err_and(|why| why.contains("12h")), "{wrong}");
        }
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        // As `date -u -d @…` says.
        for (seconds, expected) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_399, "2000-02-28 23:59 UTC"),
            (951_782_400, "2000-02-29 00:00 UTC"),
            (1_735_689_599, "2024-12-31 23:59 UTC"),
            (1_772_323_200, "2026-03-01 00:00 UTC"),
            (4_107_542_399, "2100-02-28 23:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00 UTC"),
        ] {
            assert_eq!(utc(seconds).as_deref(), Some(expected));
            let exact = rfc3339(seconds).expect("before the year 10000");
            assert!(exact.replace('T', " ").starts_with(&expected[..16]) && exact.ends_with('Z'), "{exact}");
        }
        let known = [253_402_300_799, 253_402_300_800, u64::MAX].map(|seconds| utc(seconds).is_some());
        assert_eq!(known, [true, false, false]);
    }
}
