//! Numbers as a person reads them. It must never know what they count.

/// For a mark of an axis: short, and exact for round values.
pub(in crate::report) fn tick(value: f64) -> String {
    let size = value.abs();
    match size {
        0.0 => "0".into(),
        1e6.. => format!("{}M", trimmed(value / 1e6, 2)),
        1e3.. => format!("{}k", trimmed(value / 1e3, 2)),
        0.01.. => trimmed(value, 3),
        _ => scientific(value, 2),
    }
}

/// Five digits that count.
pub(in crate::report) fn short(value: f64) -> String {
    let size = value.abs();
    match size {
        _ if !value.is_finite() => "not finite".into(),
        0.0 => "0".into(),
        1e15.. => scientific(value, 4),
        1e4.. => trimmed(value, 0),
        0.01.. => trimmed(value, 4),
        _ => scientific(value, 3),
    }
}

/// A count, its thousands apart.
pub(in crate::report) fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A time: `8.4 s`, `3 min 20 s`, `2 h 05 min`.
pub(in crate::report) fn time(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match seconds {
        ..60.0 => format!("{seconds:.1} s"),
        ..3600.0 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole / 60 % 60),
    }
}

/// With so many decimals, but no zeros at the end.
fn trimmed(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').into(),
        false => text,
    }
}

fn scientific(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$e}");
    match text.split_once('e') {
        Some((digits, power)) => format!("{}e{power}", trimmed(digits.parse().unwrap_or(value), decimals)),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_right() {
        assert_eq!([0.0, 1.5, 2500.0, 2e6, 1e-3, 2.5e-4, 100.0].map(tick).join(" "), "0 1.5 2.5k 2M 1e-3 2.5e-4 100");
        assert_eq!([1.89312, 34567.8, 0.00099123].map(short).join(" "), "1.8931 34568 9.912e-4");
        assert_eq!([1, 999, 1000, 1234567].map(count).join(" "), "1 999 1,000 1,234,567");
        assert_eq!([8.42, 200.0, 7500.0].map(time).join("; "), "8.4 s; 3 min 20 s; 2 h 05 min");
    }
}
