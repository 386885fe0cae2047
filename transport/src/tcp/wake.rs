//! Ends the polling thread's wait. Costs a system call only while that thread waits and was not told already.

use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

#[derive(Debug)]
pub(super) struct Waker {
    fd: OwnedFd,
    /// The polling thread waits, or is about to.
    parked: AtomicBool,
    /// The wait under way, or the next one, is to end.
    notified: AtomicBool,
}

impl Waker {
    pub(super) fn new() -> rustix::io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self { fd, parked: AtomicBool::new(false), notified: AtomicBool::new(false) })
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    pub(super) fn wake(&self) {
        if !self.notified.swap(true, SeqCst) && self.parked.load(SeqCst) {
            // It fails only when the counter is at its limit, and then the wait ends anyway.
            let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
        }
    }

    /// Before the wait. Returns whether it may block: a wake from here on writes to the descriptor.
    pub(super) fn park(&self) -> bool {
        self.parked.store(true, SeqCst);
        !self.notified.load(SeqCst)
    }

    /// After the wait. A wake that comes in between has ended the wait that is just over.
    pub(super) fn unpark(&self) {
        self.parked.store(false, SeqCst);
        self.notified.store(false, SeqCst);
    }

    /// Makes the descriptor unreadable again.
    pub(super) fn drain(&self) {
        let mut count = [0u8; 8];
        // Nothing to read is fine: the descriptor is drained then.
        let _ = rustix::io::read(&self.fd, &mut count);
    }
}
