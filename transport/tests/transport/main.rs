//! Transports from the outside: hosts that speak to each other over loopback, and strangers that speak to them.
//!
//! No test measures time. Waiting is polling, a bounded number of times, until something is seen.

#![allow(clippy::unwrap_used)]

mod support;

mod allocations;
mod lanes;
mod refusals;
mod restarts;
