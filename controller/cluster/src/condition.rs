//! Conditions with a transition time that moves only when the status flips.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// A condition, dated from the one before when its status is the same.
pub(crate) fn condition(
    before: &[Condition],
    type_: &str,
    status: &str,
    reason: &str,
    message: &str,
    generation: Option<i64>,
) -> Condition {
    let last_transition_time = match before.iter().find(|c| c.type_ == type_ && c.status == status) {
        Some(before) => before.last_transition_time.clone(),
        None => Time(
            jiff::Timestamp::from_second(jiff::Timestamp::now().as_second()).unwrap_or(jiff::Timestamp::UNIX_EPOCH),
        ),
    };
    Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.chars().take(1000).collect(),
        observed_generation: generation,
        last_transition_time,
    }
}
