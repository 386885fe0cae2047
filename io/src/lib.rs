//! The outside world of Longboat as small traits with their real forms: disk, clock, jobs.
//!
//! Everything above this crate reaches files, time and pools only through these traits, so that the simulator
//! can drive the shipped code over a world of its own. Nothing here knows of raft logs, groups or hosts.

pub mod clock;
pub mod disk;
pub mod heap;
pub mod job;
mod job_pool;
mod line;
#[cfg(feature = "sim")]
pub mod sim;
mod sync;
pub mod throttle;

pub use clock::{Clock, MonotonicClock};
pub use disk::{Disk, DiskFile, DiskLock, RealDisk, SharedDisk, is_lost_on_disk};
pub use job::{Job, JobState, Progress, Replaced, Spawner};
pub use job_pool::{RayonSpawner, SPARES_MAX, STEP_BYTES};
pub use throttle::Throttle;
