//! Kubernetes quantities: exact to the nanounit, as in `k8s.io/apimachinery/pkg/api/resource`.

use std::cmp::Ordering;

use crate::schema::cel::value::{Fault, Outcome, Value};

const NANO: i128 = 1_000_000_000;
/// No quantity is larger: the real server rounds to it.
const MAX: i128 = (i64::MAX as i128) * NANO;

/// A quantity.
#[derive(Clone, Copy, Debug)]
pub(in crate::schema::cel) struct Quantity {
    nanos: i128,
    /// Written so that the real server takes it for an integer, which it does not do for `1.0` or `1.5Gi`.
    integral: bool,
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Quantity) -> bool {
        self.nanos == other.nanos
    }
}

impl Quantity {
    /// Reads `1.5Gi`, `100m`, `1e3`.
    fn parse(text: &str) -> Result<Quantity, Fault> {
        let wrong = || {
            Fault::other("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")
        };
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if text.is_empty() || fraction.contains('.') {
            return Err(wrong());
        }
        let (base, exponent) = scale(suffix).ok_or_else(wrong)?;
        // More digits than this are beyond every limit or below every nanounit.
        let whole = whole.trim_start_matches('0');
        let digits: String = whole.chars().chain(fraction.chars().take(18)).collect();
        let cut = fraction.chars().skip(18).any(|c| c != '0');
        let value = if digits.is_empty() {
            0
        } else if whole.len() > 19 {
            MAX
        } else {
            let mantissa: i128 = digits.parse().map_err(|_| wrong())?;
            nanos(mantissa, fraction.len().min(18) as u32, base, exponent, cut)
        };
        let nanos = value.min(MAX);
        let digits = (whole.len() + fraction.len()) as i32;
        let fits = if base == 2 {
            14 - digits - exponent * 3 / 10 >= 0
        } else {
            digits <= 18
        };
        Ok(Quantity {
            nanos: if negative { -nanos } else { nanos },
            integral: fits && fraction.is_empty() && exponent >= 0,
        })
    }

    fn whole(self) -> Option<i64> {
        self.integral.then(|| i64::try_from(self.nanos / NANO).ok()).flatten()
    }

    /// `self + sign * other`
    fn plus(self, sign: i128, other: Quantity) -> Outcome<'static> {
        let sum = other.nanos.checked_mul(sign).and_then(|n| self.nanos.checked_add(n));
        let nanos = sum.ok_or_else(|| Fault::other("quantity overflow"))?;
        Ok(Value::Quantity(Quantity {
            nanos,
            integral: self.integral && other.integral,
        }))
    }
}

impl From<i64> for Quantity {
    fn from(n: i64) -> Quantity {
        Quantity {
            nanos: i128::from(n) * NANO,
            integral: true,
        }
    }
}

/// Base and exponent of a suffix.
fn scale(suffix: &str) -> Option<(i128, i32)> {
    Some(match suffix {
        "" => (10, 0),
        "n" => (10, -9),
        "u" => (10, -6),
        "m" => (10, -3),
        "k" => (10, 3),
        "M" => (10, 6),
        "G" => (10, 9),
        "T" => (10, 12),
        "P" => (10, 15),
        "E" => (10, 18),
        "Ki" => (2, 10),
        "Mi" => (2, 20),
        "Gi" => (2, 30),
        "Ti" => (2, 40),
        "Pi" => (2, 50),
        "Ei" => (2, 60),
        _ => {
            let digits = suffix.strip_prefix(['e', 'E'])?;
            let signless = digits.strip_prefix(['+', '-']).unwrap_or(digits);
            if signless.is_empty() || signless.len() > 3 || !signless.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            (10, digits.parse().ok()?)
        }
    })
}

/// `mantissa / 10^decimals * base^exponent` in nanounits, rounded up; `cut` says that digits were left out.
fn nanos(mantissa: i128, decimals: u32, base: i128, exponent: i32, cut: bool) -> i128 {
    // Tens to multiply or divide by, and the binary factor.
    let binary = if base == 2 {
        2_i128.pow(exponent.unsigned_abs().min(60))
    } else {
        1
    };
    let tens = 9 - decimals as i32 + if base == 10 { exponent } else { 0 };
    let Some(scaled) = mantissa.checked_mul(binary) else {
        return MAX;
    };
    if tens >= 0 {
        let factor = 10_i128.checked_pow(tens.unsigned_abs());
        return factor
            .and_then(|f| scaled.checked_mul(f))
            .map_or(if scaled == 0 { 0 } else { MAX }, |n| n + i128::from(cut));
    }
    match 10_i128.checked_pow(tens.unsigned_abs()) {
        Some(divisor) => scaled / divisor + i128::from(scaled % divisor != 0 || cut),
        None => i128::from(scaled != 0),
    }
}

pub(super) fn call<'a>(name: &str, args: &[Value<'a>]) -> Option<Outcome<'a>> {
    Some(match (name, args) {
        ("quantity", [Value::String(text)]) => Quantity::parse(text).map(Value::Quantity),
        ("isQuantity", [Value::String(text)]) => Ok(Value::Bool(Quantity::parse(text).is_ok())),
        ("sign", [Value::Quantity(q)]) => Ok(Value::Int(q.nanos.signum() as i64)),
        ("isInteger", [Value::Quantity(q)]) => Ok(Value::Bool(q.whole().is_some())),
        ("asInteger", [Value::Quantity(q)]) => q
            .whole()
            .map(Value::Int)
            .ok_or_else(|| Fault::other("cannot convert value to integer")),
        ("asApproximateFloat", [Value::Quantity(q)]) => Ok(Value::Double(q.nanos as f64 / NANO as f64)),
        ("compareTo", [Value::Quantity(a), Value::Quantity(b)]) => Ok(Value::Int(match a.nanos.cmp(&b.nanos) {
            Ordering::Less => -1,
            Ordering::Equal => 0,
            Ordering::Greater => 1,
        })),
        ("isGreaterThan", [Value::Quantity(a), Value::Quantity(b)]) => Ok(Value::Bool(a.nanos > b.nanos)),
        ("isLessThan", [Value::Quantity(a), Value::Quantity(b)]) => Ok(Value::Bool(a.nanos < b.nanos)),
        ("add", [Value::Quantity(a), Value::Quantity(b)]) => a.plus(1, *b),
        ("add", [Value::Quantity(a), Value::Int(b)]) => a.plus(1, (*b).into()),
        ("sub", [Value::Quantity(a), Value::Quantity(b)]) => a.plus(-1, *b),
        ("sub", [Value::Quantity(a), Value::Int(b)]) => a.plus(-1, (*b).into()),
        _ => return None,
    })
}
