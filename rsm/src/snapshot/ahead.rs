//! A file that will be synced whole goes to the disk while it is written, so that the sync finds little left to do: the disk
//! and the processor work at the same time, and what one snapshot leaves dirty in memory is bounded.

use longboat_io::DiskFile;

/// Bytes that gather before the disk is told of them: enough for one long transfer, and little beside a snapshot.
const AHEAD_BYTES: u64 = 2 << 20;

/// How far the disk was told.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    told: u64,
}

impl Ahead {
    /// The file was written up to here.
    pub(crate) fn wrote(&mut self, file: &dyn DiskFile, end: u64) {
        if end >= self.told + AHEAD_BYTES {
            file.will_sync(self.told, end - self.told);
            self.told = end;
        }
    }
}
