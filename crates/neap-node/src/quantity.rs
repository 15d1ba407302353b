//! Kubernetes quantities as exact numbers: thousandths are the smallest part that counts here.

use std::ops::{Add, AddAssign};

/// Thousandths of the unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Amount(i128);

impl Amount {
    pub(crate) const fn whole(n: i128) -> Self {
        Self(n * 1000)
    }

    /// Rounded up to whole units.
    pub(crate) fn units(self) -> i128 {
        self.0.div_euclid(1000) + i128::from(self.0.rem_euclid(1000) != 0)
    }

    pub(crate) fn thousandths(self) -> i128 {
        self.0
    }
}

impl Add for Amount {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

impl AddAssign for Amount {
    fn add_assign(&mut self, other: Self) {
        self.0 += other.0;
    }
}

/// `None` for what is no quantity.
pub(crate) fn parse(text: &str) -> Option<Amount> {
    let text = text.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '-' || c == '+')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let factor: i128 = match suffix {
        "n" | "u" => return small(number, if suffix == "n" { 1_000_000 } else { 1000 }),
        "m" => 1,
        "" => 1000,
        "k" => 1000 * 1000,
        "M" => 1000 * 1_000_000,
        "G" => 1000 * 1_000_000_000,
        "T" => 1000 * 1_000_000_000_000,
        "P" => 1000 * 1_000_000_000_000_000,
        "E" => 1000 * 1_000_000_000_000_000_000,
        "Ki" => 1000 << 10,
        "Mi" => 1000 << 20,
        "Gi" => 1000 << 30,
        "Ti" => 1000 << 40,
        "Pi" => 1000 << 50,
        "Ei" => 1000 << 60,
        exponent => {
            let power: u32 = exponent.strip_prefix(['e', 'E'])?.trim_start_matches('+').parse().ok()?;
            1000 * 10_i128.checked_pow(power)?
        }
    };
    scaled(number, factor)
}

/// Nano and micro: below a thousandth, rounded up.
fn small(number: &str, per_thousandth: i128) -> Option<Amount> {
    let n: i128 = number.parse().ok()?;
    Some(Amount(n.div_euclid(per_thousandth) + i128::from(n.rem_euclid(per_thousandth) != 0)))
}

fn scaled(number: &str, factor: i128) -> Option<Amount> {
    let negative = number.starts_with('-');
    let digits = number.trim_start_matches(['-', '+']);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let parse = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<i128>().ok() };
    let scale = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let value = parse(whole)?.checked_mul(factor)?;
    let part = parse(fraction)?.checked_mul(factor)?;
    let value = value + part.div_euclid(scale) + i128::from(part.rem_euclid(scale) != 0);
    Some(Amount(if negative { -value } else { value }))
}

/// In the form usual for the resource: cpu in thousandths when needed, bytes in the largest binary unit that fits.
pub(crate) fn print(resource: &str, amount: Amount) -> String {
    if amount.0 % 1000 != 0 {
        return format!("{}m", amount.0);
    }
    let units = amount.0 / 1000;
    if resource.ends_with("memory") || resource.ends_with("storage") {
        for (shift, suffix) in [(40, "Ti"), (30, "Gi"), (20, "Mi"), (10, "Ki")] {
            if units >= 1 << shift && units % (1 << shift) == 0 {
                return format!("{}{suffix}", units >> shift);
            }
        }
    }
    units.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_exact() {
        let rows: &[(&str, Option<i128>)] = &[
            ("1", Some(1000)),
            ("100m", Some(100)),
            ("0.5", Some(500)),
            ("1.5Gi", Some(1_610_612_736_000)),
            ("128Mi", Some(134_217_728_000)),
            ("1e3", Some(1_000_000)),
            ("2k", Some(2_000_000)),
            ("100n", Some(1)),
            ("-1", Some(-1000)),
            ("", None),
            ("abc", None),
            ("1Zi", None),
        ];
        for (text, want) in rows {
            assert_eq!(parse(text).map(Amount::thousandths), *want, "{text:?}");
        }
    }

    #[test]
    fn amounts_are_printed_as_people_write_them() {
        for (resource, text) in
            [("cpu", "250m"), ("cpu", "2"), ("memory", "128Mi"), ("requests.memory", "1Gi"), ("pods", "3")]
        {
            assert_eq!(print(resource, parse(text).expect("a quantity")), text);
        }
        assert_eq!(parse("1500m").expect("a quantity").units(), 2);
    }
}
