//! Sizes with suffixes, as `qemu-img create` and `-drive` take them, and as `qemu-img info` prints them.
//!
//! `12`, `12b`, `4k`, `1.5G`, `0x1000`. Suffixes are powers of 1024, in either case; a fraction needs one;
//! hexadecimal numbers take neither.

/// What is wrong with a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SizeError {
    /// Not a size at all.
    Malformed,
    /// Negative, or 2^64 and more.
    OutOfRange,
}

/// Reads a size in bytes.
///
/// # Errors
/// [`SizeError`]; the caller knows which words its users expect.
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    parse_size_in(text, 1)
}

/// Reads a size whose numbers without a suffix count `unit` bytes.
///
/// # Errors
/// As for [`parse_size`].
pub fn parse_size_in(text: &str, unit: u64) -> Result<u64, SizeError> {
    let text = text.trim_start_matches([' ', '\t', '\n', '\r']);
    if let Some(positive) = text.strip_prefix('-') {
        let number = !positive.is_empty() && positive.bytes().all(|byte| byte.is_ascii_digit());
        return Err(if number { SizeError::OutOfRange } else { SizeError::Malformed });
    }
    let text = text.strip_prefix('+').unwrap_or(text);
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return parse_digits(digits, 16);
    }
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    scale(number, suffix_unit(suffix, unit)?)
}

/// Reads a whole number as C does: decimal, hexadecimal after `0x`, octal after another zero; with a sign if one
/// likes, and no suffix.
///
/// # Errors
/// [`SizeError::Malformed`] for anything else, [`SizeError::OutOfRange`] for what 63 bits and a sign do not hold.
pub fn parse_integer(text: &str) -> Result<i64, SizeError> {
    let (negative, magnitude) = sign_and_magnitude(text)?;
    let number = if negative { -i128::from(magnitude) } else { i128::from(magnitude) };
    i64::try_from(number).map_err(|_| SizeError::OutOfRange)
}

/// Reads a whole number as [`parse_integer`] does, of 64 bits without a sign: negative ones count down from 2^64. What
/// comes out is those bits as a signed number, which is how qemu-img shows them.
///
/// # Errors
/// As for [`parse_integer`], with more room.
pub fn parse_wrapping(text: &str) -> Result<i64, SizeError> {
    let (negative, magnitude) = sign_and_magnitude(text)?;
    Ok(if negative { magnitude.wrapping_neg() } else { magnitude } as i64)
}

/// Whether a number has a minus in front, and the rest of it.
fn sign_and_magnitude(text: &str) -> Result<(bool, u64), SizeError> {
    let text = text.trim_start_matches([' ', '\t', '\n', '\r']);
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(digits) => parse_digits(digits, 16),
        None if digits.len() > 1 && digits.starts_with('0') => parse_digits(&digits[1..], 8),
        None => parse_digits(digits, 10),
    }
    .map(|magnitude| (negative, magnitude))
}

/// What a number is multiplied with.
fn suffix_unit(suffix: &str, default: u64) -> Result<u64, SizeError> {
    let power = match suffix {
        "" => return Ok(default),
        "b" | "B" => 0,
        "k" | "K" => 1,
        "m" | "M" => 2,
        "g" | "G" => 3,
        "t" | "T" => 4,
        "p" | "P" => 5,
        "e" | "E" => 6,
        _ => return Err(SizeError::Malformed),
    };
    Ok(1 << (10 * power))
}

/// `number` (digits with at most one point) times `unit`, rounded to whole bytes.
fn scale(number: &str, unit: u64) -> Result<u64, SizeError> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return Err(SizeError::Malformed);
    }
    let whole = if whole.is_empty() { 0 } else { parse_digits(whole, 10)? };
    let part = if fraction.is_empty() { 0.0 } else { parse_fraction(fraction)? };
    if part > 0.0 && unit == 1 {
        return Err(SizeError::Malformed);
    }
    // A part below one of at most 2^60 bytes: the cast cannot overflow.
    let part = (part * unit as f64 + 0.5) as u64;
    whole.checked_mul(unit).and_then(|bytes| bytes.checked_add(part)).ok_or(SizeError::OutOfRange)
}

fn parse_fraction(digits: &str) -> Result<f64, SizeError> {
    format!("0.{digits}").parse().map_err(|_| SizeError::Malformed)
}

fn parse_digits(digits: &str, radix: u32) -> Result<u64, SizeError> {
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return Err(SizeError::Malformed);
    }
    u64::from_str_radix(digits, radix).map_err(|_| SizeError::OutOfRange)
}

/// The nearest power of 1024 with three significant digits: `0 B`, `460 KiB`, `1.5 GiB`.
///
/// The unit changes at 1000, not at 1024, so that there are never four digits before it: 1000 KiB is
/// `0.977 MiB`.
pub fn human_size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let mut power = 0;
    while power < 6 && bytes as f64 / unit_bytes(power) >= 1000.0 {
        power += 1;
    }
    format!("{} {}B", three_digits(bytes as f64 / unit_bytes(power)), UNITS[power])
}

fn unit_bytes(power: usize) -> f64 {
    (1u64 << (10 * power)) as f64
}

/// As C's `%0.3g` prints a number from 0 up to 1000 (exponents included, where rounding reaches 1000).
fn three_digits(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    // The exponent after rounding to three digits decides about the form.
    let scientific = format!("{value:.2e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if exponent >= 3 {
        return format!("{}e+{exponent:02}", without_trailing_zeros(mantissa));
    }
    let decimals = usize::try_from(2 - exponent).unwrap_or(0);
    without_trailing_zeros(&format!("{value:.decimals$}")).to_owned()
}

fn without_trailing_zeros(number: &str) -> &str {
    if number.contains('.') { number.trim_end_matches('0').trim_end_matches('.') } else { number }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Expectations were read off `qemu-img create -f raw x SIZE`.
    #[test]
    fn sizes_read_as_qemu_img_reads_them() {
        let good = [
            ("1", 1),
            ("12b", 12),
            ("1.0b", 1),
            ("1.5k", 1536),
            (".5k", 512),
            ("5.k", 5120),
            ("5.", 5),
            ("0x10", 16),
            ("0x1B", 27),
            ("010", 10),
            ("+5", 5),
            (" 5", 5),
            ("1.1k", 1126),
            ("1.0015k", 1026),
            ("1.0005k", 1025),
            ("0.0005k", 1),
            ("0.3333333M", 349525),
            ("1.123456789012345678901234567890G", 1206302542),
            ("7.99999E", 9223360507639729792),
            ("1.5e", 1729382256910270464),
        ];
        for (text, bytes) in good {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_told_from_what_is_too_large() {
        let bad = [
            "", "k", ".", ".k", "1.5", "0.1b", "1kb", "1kk", "1.5.5k", "1e3", "5 ", "0x10k", "0x", "inf",
            "-", "-1k",
        ];
        for text in bad {
            assert_eq!(parse_size(text), Err(SizeError::Malformed), "{text}");
        }
        for text in ["-1", "-0", "16E", "18446744073709551616", "99999999999999999999G"] {
            assert_eq!(parse_size(text), Err(SizeError::OutOfRange), "{text}");
        }
    }

    // Expectations were read off `qemu-img bench -c COUNT`.
    #[test]
    fn whole_numbers_read_as_c_reads_them() {
        let good = [("12", 12), ("0x10", 16), ("010", 8), ("0", 0), ("+2", 2), (" 2", 2), ("-3", -3)];
        for (text, number) in good {
            assert_eq!(parse_integer(text), Ok(number), "{text}");
        }
        for text in ["", "-", "x", "08", "1k", "2.0", "0x", "1 ", "--1"] {
            assert_eq!(parse_integer(text), Err(SizeError::Malformed), "{text}");
        }
        for text in ["9223372036854775808", "99999999999999999999", "-99999999999999999999"] {
            assert_eq!(parse_integer(text), Err(SizeError::OutOfRange), "{text}");
        }
    }

    #[test]
    fn a_default_unit_counts_only_numbers_without_a_suffix() {
        assert_eq!(parse_size_in("512", 1 << 20), Ok(512 << 20));
        assert_eq!(parse_size_in("0.5", 1 << 20), Ok(512 << 10));
        assert_eq!(parse_size_in("512k", 1 << 20), Ok(512 << 10));
    }

    // Expectations were read off `qemu-img info`.
    #[test]
    fn sizes_print_as_qemu_img_prints_them() {
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "0.977 KiB"),
            (1024, "1 KiB"),
            (471040, "460 KiB"),
            (590336, "576 KiB"),
            (1023 << 10, "0.999 MiB"),
            (1536 << 20, "1.5 GiB"),
            (1048576 - 1, "1 MiB"),
            (8 << 60, "8 EiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(human_size(bytes), text, "{bytes}");
        }
    }
}
