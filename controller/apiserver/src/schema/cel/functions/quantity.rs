//! Kubernetes quantities: exact to the nanounit, as in `k8s.io/apimachinery/pkg/api/resource`.

use std::cmp::Ordering;

use crate::schema::cel::value::{Fault, Outcome, Value};

const NANO: i128 = 1_000_000_000;
/// No quantity is larger: the real server rounds to it.
const MAX: i128 = (i64::MAX as i128) * NANO;

/// A quantity in nanounits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::schema::cel) struct Quantity(i128);

impl Quantity {
    /// Reads `1.5Gi`, `100m`, `1e3`.
    fn parse(text: &str) -> Result<Quantity, Fault> {
        let wrong = || {
            Fault::other(
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            )
        };
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.len() + fraction.len() == 0 || fraction.contains('.') {
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
        let value = value.min(MAX);
        Ok(Quantity(if negative { -value } else { value }))
    }

    fn whole(self) -> Option<i64> {
        (self.0 % NANO == 0).then(|| i64::try_from(self.0 / NANO).ok()).flatten()
    }

    fn plus(self, nanos: Option<i128>) -> Outcome<'static> {
        let sum = nanos.and_then(|n| self.0.checked_add(n));
        sum.map(|n| Value::Quantity(Quantity(n)))
            .ok_or_else(|| Fault::other("quantity overflow"))
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
        return factor.and_then(|f| scaled.checked_mul(f)).map_or(
            if scaled == 0 { 0 } else { MAX },
            |n| n + i128::from(cut),
        );
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
        ("sign", [Value::Quantity(q)]) => Ok(Value::Int(q.0.signum() as i64)),
        ("isInteger", [Value::Quantity(q)]) => Ok(Value::Bool(q.whole().is_some())),
        ("asInteger", [Value::Quantity(q)]) => q
            .whole()
            .map(Value::Int)
            .ok_or_else(|| Fault::other("cannot convert value to integer")),
        ("asApproximateFloat", [Value::Quantity(q)]) => Ok(Value::Double(q.0 as f64 / NANO as f64)),
        ("compareTo", [Value::Quantity(a), Value::Quantity(b)]) => Ok(Value::Int(match a.cmp(b) {
            Ordering::Less => -1,
            Ordering::Equal => 0,
            Ordering::Greater => 1,
        })),
        ("isGreaterThan", [Value::Quantity(a), Value::Quantity(b)]) => Ok(Value::Bool(a > b)),
        ("isLessThan", [Value::Quantity(a), Value::Quantity(b)]) => Ok(Value::Bool(a < b)),
        ("add", [Value::Quantity(a), Value::Quantity(b)]) => a.plus(Some(b.0)),
        ("add", [Value::Quantity(a), Value::Int(b)]) => a.plus(i128::from(*b).checked_mul(NANO)),
        ("sub", [Value::Quantity(a), Value::Quantity(b)]) => a.plus(Some(-b.0)),
        ("sub", [Value::Quantity(a), Value::Int(b)]) => a.plus(i128::from(*b).checked_mul(-NANO)),
        _ => return None,
    })
}
