//! Leases.

use serde_json::Value;

use super::text;
use crate::schema::FieldError;

const STRATEGIES: [&str; 1] = ["OldestEmulationVersion"];

pub(super) fn validate(object: &Value) -> Vec<FieldError> {
    let spec = &object["spec"];
    let mut errors = Vec::new();
    if let Some(seconds) = spec["leaseDurationSeconds"].as_i64().filter(|n| *n <= 0) {
        errors.push(FieldError::invalid(
            "spec.leaseDurationSeconds",
            seconds,
            "must be greater than 0",
        ));
    }
    if let Some(times) = spec["leaseTransitions"].as_i64().filter(|n| *n < 0) {
        errors.push(FieldError::invalid(
            "spec.leaseTransitions",
            times,
            "must be greater than or equal to 0",
        ));
    }
    let strategy = spec["strategy"].as_str();
    // The real server names the field twice.
    let place = "spec.strategy.strategy";
    match strategy {
        Some(name) if name.contains('/') => {
            let problems = crate::names::qualified_name_problems(name).into_iter();
            errors.extend(problems.map(|p| FieldError::invalid(place, name, p)));
        }
        Some(name) if !STRATEGIES.contains(&name) => {
            errors.push(FieldError::not_supported(place, name, &STRATEGIES));
        }
        _ => {}
    }
    if !text(spec, "preferredHolder").is_empty() && strategy.is_none_or(str::is_empty) {
        let why = "may only be specified if `strategy` is defined";
        errors.push(FieldError::forbidden("spec.preferredHolder", why));
    }
    errors
}
