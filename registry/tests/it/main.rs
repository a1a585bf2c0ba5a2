//! Tests of the crate from outside, against real programs where there are any.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod common;
mod docker_registry;
mod dripping;
mod endpoints;
mod environment;
mod failures;
mod keeping;
mod layouts;
mod logins;
mod mirrors;
mod redirects;
mod tls;
