//! What threads share and sleep on, in one place: `tests/interleavings` puts others there, and orders their every step.

pub(crate) use parking_lot::{Mutex, MutexGuard};
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
pub(crate) use std::thread::{Thread, current, park_timeout};
