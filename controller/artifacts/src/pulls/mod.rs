//! Keyed pulls: at most one worker per key, whoever asks and however often.

pub mod work;
