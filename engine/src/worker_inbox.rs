//! What others leave for a step worker.
//!
//! Invariants:
//! - Nothing that was left is lost or taken twice, and what one thread leaves in one of the queues is taken in its order.
//! - A worker that sleeps is woken for what is left, after that is there. Frames are the exception: whoever leaves them tells
//!   the worker once for all of a poll.
//! - Frames that wait are bounded by their bytes. The bound is looked at before it is counted: one thread polls.
//! - What is left after the worker is gone is let go of, with whatever waits for it, by whoever comes second.

use crate::config::INBOX_BYTES_MAX;
use crate::notify::Notifier;
use crate::shared::{Command, InFrame, SlotRef};
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering};
use longboat_raft::plant;
use longboat_transport::Lane;
use std::sync::Arc;

/// The inbox of one step worker.
pub struct WorkerInbox {
    ready: Mutex<Vec<SlotRef>>,
    frames: Mutex<Vec<InFrame>>,
    frame_bytes: AtomicU64,
    commands: Mutex<Vec<Command>>,
    has_commands: AtomicBool,
    gone: AtomicBool,
    /// What of its batches is durable.
    pub durable: DurableMark,
    /// Wakes the worker.
    pub notifier: Arc<Notifier>,
}

impl WorkerInbox {
    /// An empty inbox.
    pub fn new(notifier: Arc<Notifier>) -> Self {
        Self {
            ready: Mutex::new(Vec::new()),
            frames: Mutex::new(Vec::new()),
            frame_bytes: AtomicU64::new(0),
            commands: Mutex::new(Vec::new()),
            has_commands: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            durable: DurableMark::default(),
            notifier,
        }
    }

    /// Lists a replica that became ready, and wakes the worker.
    pub fn ready(&self, at: SlotRef) {
        self.notifier.after(|| self.ready.lock().push(at));
    }

    /// Appends the replicas that are listed.
    pub fn take_ready(&self, out: &mut Vec<SlotRef>) {
        out.append(&mut self.ready.lock());
    }

    /// Leaves a command and wakes the worker. If that is gone, the command is let go of: what waits for it is told so.
    pub fn command(&self, command: Command) {
        let gone = plant::is("gone-asked-before-leaving").then(|| self.gone.load(Ordering::SeqCst));
        self.notifier.after(|| {
            self.commands.lock().push(command);
            self.has_commands.store(true, Ordering::SeqCst);
        });
        if gone.unwrap_or_else(|| self.gone.load(Ordering::SeqCst)) {
            drop(self.take_commands());
        }
    }

    /// Takes the commands.
    pub fn take_commands(&self) -> Vec<Command> {
        if plant::is("command-flag-cleared-late") && self.has_commands.load(Ordering::SeqCst) {
            let commands = std::mem::take(&mut *self.commands.lock());
            self.has_commands.store(false, Ordering::SeqCst);
            return commands;
        }
        // Cleared first: what is left after the look sets it again.
        if !self.has_commands.swap(false, Ordering::SeqCst) {
            return Vec::new();
        }
        std::mem::take(&mut *self.commands.lock())
    }

    /// The worker runs no round any more.
    pub fn worker_is_gone(&self) {
        self.gone.store(true, Ordering::SeqCst);
        drop(self.take_commands());
    }

    /// Leaves a frame, without waking; false when the worker has too much waiting and the frame was dropped.
    pub fn frame(&self, frame: InFrame) -> bool {
        let bytes = frame.frame.len() as u64;
        // Control frames have room of their own beyond what bulk may take.
        let room = if frame.lane == Lane::Bulk { INBOX_BYTES_MAX } else { 2 * INBOX_BYTES_MAX };
        if self.frame_bytes.load(Ordering::Relaxed) + bytes > room as u64 && !plant::is("frames-unbounded") {
            return false;
        }
        self.frame_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.frames.lock().push(frame);
        true
    }

    /// Swaps the waiting frames into `out`, which is empty. They count as waiting until [`WorkerInbox::frame_done`].
    pub fn take_frames(&self, out: &mut Vec<InFrame>) {
        std::mem::swap(&mut *self.frames.lock(), out);
    }

    /// A frame is about to be stepped.
    pub fn frame_done(&self, frame: &InFrame) {
        self.frame_bytes.fetch_sub(frame.frame.len() as u64, Ordering::Relaxed);
    }

    /// Lets go of room that nothing takes at the moment.
    pub fn shed(&self) {
        self.ready.lock().shrink_to_fit();
        self.frames.lock().shrink_to_fit();
    }
}

/// How much of what a worker has sealed is durable, and what of it the worker waits for.
///
/// Invariant: a worker that wants a batch and then looks finds it durable, or the log writer finds the wish when that is so:
/// each writes its own number before it reads the other's.
#[derive(Debug, Default)]
pub struct DurableMark {
    /// The worker's newest batch that is durable, with all before it.
    durable: AtomicU64,
    /// The worker does something as soon as its batches up to this one are durable: it is woken for each of them.
    wanted: AtomicU64,
}

impl DurableMark {
    /// The log writer: this batch is durable, and so are all before it. Returns whether the worker is to be woken.
    #[must_use]
    pub fn reached(&self, seq: u64) -> bool {
        let early = plant::is("wish-looked-for-too-early").then(|| self.wanted.load(Ordering::SeqCst));
        self.durable.store(seq, Ordering::SeqCst);
        seq <= early.unwrap_or_else(|| self.wanted.load(Ordering::SeqCst))
    }

    /// The newest batch that is durable.
    pub fn through(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// The worker: wants to be woken for its batches through this one.
    pub fn want(&self, seq: u64) {
        self.wanted.store(seq, Ordering::SeqCst);
    }

    /// The worker, before it sleeps: the newest batch that it wants and that is durable already.
    pub fn wanted_and_reached(&self) -> u64 {
        self.durable.load(Ordering::SeqCst).min(self.wanted.load(Ordering::Relaxed))
    }
}
