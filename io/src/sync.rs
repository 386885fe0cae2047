//! What threads of the pool share, in one place: the engine's `tests/interleavings` puts others there, and orders their every step.

pub(crate) use parking_lot::Mutex;
