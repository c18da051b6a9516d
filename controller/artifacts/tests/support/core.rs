//! What the tests of the pure core of keyed pulls share: keys, askers and offers by number, and what effects say.

use std::time::Duration;

use vmlet_artifacts::error::{PullError, Reason};
use vmlet_artifacts::pulls::core::*;
use vmlet_artifacts::types::Interest;

pub type TestCore = Core<String, u32>;

pub const SLOTS: Slots = Slots { resolves: 1, pulls: 2 };

pub fn key(n: u8) -> Key {
    let name = n.to_string();
    match n % 4 {
        0 => Key::Resolve(name),
        3 => Key::Kernel(name),
        _ => Key::Image(name),
    }
}

pub fn asker(n: u8, key: &Key) -> Asker {
    let slot = if key.keeps_result() { Slot::Resolve } else { Slot::Image };
    Asker {
        interest: Interest(format!("uid{n}")),
        slot,
    }
}

pub fn offer(n: u8) -> Offer<String> {
    Offer {
        id: format!("offer{n}"),
        registry: Some(format!("registry{}", n % 2)),
        job: format!("job{n}"),
    }
}

pub fn ensure(who: u8, what: u8, how: u8) -> Input<String, u32> {
    let key = key(what);
    Input::Ensure {
        asker: asker(who, &key),
        key,
        offer: offer(how),
    }
}

pub fn starts(effects: &[Effect<String>]) -> Vec<(RunId, String)> {
    let start = |e: &Effect<String>| match e {
        Effect::Start { run, job, .. } => Some((*run, job.clone())),
        _ => None,
    };
    effects.iter().filter_map(start).collect()
}

pub fn wakes(effects: &[Effect<String>]) -> Vec<String> {
    let wake = |e: &Effect<String>| match e {
        Effect::Wake { interest } => Some(interest.0.clone()),
        _ => None,
    };
    effects.iter().filter_map(wake).collect()
}

pub fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub fn err(reason: Reason) -> Result<u32, PullError> {
    Err(PullError::new(reason, "scripted"))
}
