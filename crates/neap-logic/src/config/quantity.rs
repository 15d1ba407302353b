//! Kubernetes quantities: `500m`, `64Mi`, `1e3`. Only what rules need: whether one is well formed, and its
//! size for comparisons.

/// The size of a quantity in its base unit, or nothing when it is malformed.
pub fn parse(text: &str) -> Option<f64> {
    let end = text
        .char_indices()
        .find(|(i, c)| !(c.is_ascii_digit() || *c == '.' || *i == 0 && matches!(c, '+' | '-')))
        .map_or(text.len(), |(i, _)| i);
    let (number, suffix) = text.split_at(end);
    if !number.bytes().any(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(number.parse::<f64>().ok()? * multiplier(suffix)?)
}

fn multiplier(suffix: &str) -> Option<f64> {
    const KIBI: f64 = 1024.0;
    Some(match suffix {
        "" => 1.0,
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => KIBI,
        "Mi" => KIBI.powi(2),
        "Gi" => KIBI.powi(3),
        "Ti" => KIBI.powi(4),
        "Pi" => KIBI.powi(5),
        "Ei" => KIBI.powi(6),
        exponent => {
            let digits = exponent.strip_prefix(['e', 'E'])?;
            10f64.powi(digits.parse().ok()?)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn quantities() {
        let check = |text: &str, want: Option<f64>| assert_eq!(parse(text), want, "{text}");
        check("500m", Some(0.5));
        check("64Mi", Some(67_108_864.0));
        check("1e3", Some(1000.0));
        check("-1", Some(-1.0));
        check("300M", Some(3e8));
        for bad in ["", "m", "1 Mi", "1mi", "abc", "1e"] {
            check(bad, None);
        }
    }
}
