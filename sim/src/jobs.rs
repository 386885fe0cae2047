//! Background jobs of a host: collected here, stepped by the driver in seeded order.

use longboat_io::{Job, Spawner};
use parking_lot::Mutex;
use std::sync::Arc;

/// Takes the jobs that a host spawns.
#[derive(Default)]
pub struct SimSpawner {
    new: Mutex<Vec<Box<dyn Job>>>,
}

impl SimSpawner {
    /// Without jobs.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Takes the jobs that were spawned since the last call.
    pub fn take_new(&self) -> Vec<Box<dyn Job>> {
        std::mem::take(&mut *self.new.lock())
    }
}

impl Spawner for SimSpawner {
    fn spawn(&self, job: Box<dyn Job>) {
        self.new.lock().push(job);
    }
}

impl std::fmt::Debug for SimSpawner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimSpawner").field("new", &self.new.lock().len()).finish()
    }
}
