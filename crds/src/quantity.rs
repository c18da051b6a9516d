//! Quantities as the schemas of this group allow them.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Bytes (or units) of a quantity such as "512Mi", "1.5Gi" or "2G". `None` when it is not of the form
/// that the CRDs allow, or does not fit; a fraction of a unit is rounded up.
pub fn quantity_value(quantity: &Quantity) -> Option<u64> {
    let text = quantity.0.trim();
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let factor: u128 = match suffix {
        "" => 1,
        "k" => 1000,
        "M" => 1000_u128.pow(2),
        "G" => 1000_u128.pow(3),
        "T" => 1000_u128.pow(4),
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.len() > 18 {
        return None;
    }
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    u64::try_from(digits.checked_mul(factor)?.div_ceil(scale)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        let value = |text: &str| quantity_value(&Quantity(text.to_owned()));
        assert_eq!(value("512Mi"), Some(512 << 20));
        assert_eq!(value("1.5Gi"), Some(3 << 29));
        assert_eq!(value("2G"), Some(2_000_000_000));
        assert_eq!(value("1"), Some(1));
        assert_eq!(value("0.1"), Some(1));
        for bad in ["", "Mi", "1Xi", ".5", "-1", "99999999999999Ti", "1e3"] {
            assert_eq!(value(bad), None, "{bad}");
        }
    }
}
