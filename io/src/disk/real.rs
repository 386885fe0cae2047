//! The operating system's file system.

/// The operating system's file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;
