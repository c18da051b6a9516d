//! The scenario harness and the suites that run against a real and the embedded API
