//! Amounts with suffixes (`500m`, `1.5Gi`, `2e3`), exact, as far as 38 digits go.

use std::cmp::Ordering;
use std::fmt;

/// A number of thousand-millionths: the smallest that an amount tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Quantity(i128);

/// Parts of one: nine digits behind the point.
const ONE: i128 = 1_000_000_000;

impl Quantity {
    pub(super) fn parse(text: &str) -> Option<Quantity> {
        let (negative, digits) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        let end = digits.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(digits.len());
        let (number, suffix) = digits.split_at(end);
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && part.is_empty()) || part.contains('.') {
            return None;
        }
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        // Digits in front of and behind the point, over a power of ten.
        let part = &part[..part.len().min(18)];
        let scale = 10i128.pow(u32::try_from(part.len()).ok()?);
        let mantissa = whole.checked_mul(scale)?.checked_add(if part.is_empty() { 0 } else { part.parse().ok()? })?;
        let (times, over): (i128, i128) = match suffix {
            "" => (ONE, 1),
            "n" => (1, 1),
            "u" => (1_000, 1),
            "m" => (1_000_000, 1),
            "k" => (ONE * 1_000, 1),
            "M" => (ONE * 1_000_000, 1),
            "G" => (ONE * ONE, 1),
            "T" => (ONE * ONE * 1_000, 1),
            "P" => (ONE * ONE * 1_000_000, 1),
            "E" => (ONE * ONE * ONE, 1),
            "Ki" => (ONE << 10, 1),
            "Mi" => (ONE << 20, 1),
            "Gi" => (ONE << 30, 1),
            "Ti" => (ONE << 40, 1),
            "Pi" => (ONE << 50, 1),
            "Ei" => (ONE << 60, 1),
            power => {
                let power: i32 = power.strip_prefix(['e', 'E'])?.parse().ok()?;
                let ten = 10i128.checked_pow(power.unsigned_abs())?;
                if power < 0 { (ONE, ten) } else { (ONE.checked_mul(ten)?, 1) }
            }
        };
        let exact = mantissa.checked_mul(times)?;
        // Rounded up: an amount is never taken for less than it is.
        let over = scale.checked_mul(over)?;
        let value = exact / over + i128::from(exact % over != 0);
        Some(Quantity(if negative { -value } else { value }))
    }

    pub(super) fn sign(self) -> i64 {
        self.0.signum() as i64
    }

    /// As a whole number, if it is one of 64 bits.
    pub(super) fn as_integer(self) -> Option<i64> {
        (self.0 % ONE == 0).then(|| i64::try_from(self.0 / ONE).ok()).flatten()
    }

    pub(super) fn as_float(self) -> f64 {
        self.0 as f64 / ONE as f64
    }

    pub(super) fn of(whole: i64) -> Quantity {
        Quantity(i128::from(whole) * ONE)
    }

    pub(super) fn add(self, other: Quantity) -> Option<Quantity> {
        self.0.checked_add(other.0).map(Quantity)
    }

    pub(super) fn sub(self, other: Quantity) -> Option<Quantity> {
        self.0.checked_sub(other.0).map(Quantity)
    }

    pub(super) fn compare(self, other: Quantity) -> Ordering {
        self.0.cmp(&other.0)
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, suffix) in [(ONE, ""), (1_000_000, "m"), (1_000, "u")] {
            if self.0 % unit == 0 {
                return write!(f, "{}{suffix}", self.0 / unit);
            }
        }
        write!(f, "{}n", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts() {
        let check = |text: &str, want: Option<&str>| {
            assert_eq!(Quantity::parse(text).map(|q| q.to_string()).as_deref(), want, "{text}");
        };
        check("1", Some("1"));
        check("1.5Gi", Some("1610612736"));
        check("500m", Some("500m"));
        check("-0.25", Some("-250m"));
        check("2e3", Some("2000"));
        check("1E", Some("1000000000000000000"));
        check("1e-3", Some("1m"));
        for wrong in ["", "x", "1x", "1.2.3", "Gi", "1 Gi"] {
            check(wrong, None);
        }
    }
}
