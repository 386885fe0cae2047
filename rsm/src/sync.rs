//! The locks of what several threads share, in one place: `tests/interleavings.rs` puts others there, which try every order.

pub(crate) use parking_lot::{Condvar, Mutex};
