//! A queue that clients fill and one worker empties, until it closes.
//!
//! Invariants:
//! - Nothing that was left is lost or taken twice, and its order is kept, also where a worker puts some of it back.
//! - What is left beside the closing is taken by whoever comes second: the worker, which empties the queue after it has
//!   closed it, or the client, which looks for that after it has left something.
//! - An empty queue costs a pointer.

use crate::sync::{AtomicBool, Mutex, MutexGuard, Ordering};
use longboat_raft::plant;

/// What the queue has, `I`, and why it is closed, `E`.
#[derive(Debug)]
pub struct ClientQueue<I, E> {
    queue: Mutex<Option<Box<I>>>,
    error: Mutex<Option<Box<E>>>,
    /// Set after `error`; asked without a lock.
    closed: AtomicBool,
}

impl<I, E> Default for ClientQueue<I, E> {
    fn default() -> Self {
        Self { queue: Mutex::new(None), error: Mutex::new(None), closed: AtomicBool::new(false) }
    }
}

impl<I, E: Clone> ClientQueue<I, E> {
    /// The queue, to look into or to leave something in. Whoever leaves something tells the worker, and then asks for
    /// [`ClientQueue::abandoned`].
    pub fn lock(&self) -> MutexGuard<'_, Option<Box<I>>> {
        self.queue.lock()
    }

    /// Takes all.
    pub fn take(&self) -> Option<Box<I>> {
        self.queue.lock().take()
    }

    /// Puts back what was taken, in front of what was left meanwhile, which `join` appends.
    pub fn put_back(&self, mut taken: Box<I>, join: impl FnOnce(&mut I, I)) {
        let mut queue = self.queue.lock();
        if let Some(mut newer) = queue.take() {
            if plant::is("put-back-behind") {
                std::mem::swap(&mut taken, &mut newer);
            }
            join(&mut taken, *newer);
        }
        *queue = Some(taken);
    }

    /// Takes no more. The first reason counts.
    pub fn close(&self, error: E) {
        self.error.lock().get_or_insert_with(|| Box::new(error));
        self.closed.store(true, Ordering::SeqCst);
    }

    /// Whether it takes no more.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Why it takes no more, if so.
    pub fn refusal(&self) -> Option<E> {
        if self.is_closed() { self.error.lock().as_deref().cloned() } else { None }
    }

    /// What nobody may take any more, because the queue has closed, and why. To be resolved by who is given it.
    pub fn abandoned(&self) -> Option<(Box<I>, E)> {
        let error = self.refusal().filter(|_| !plant::is("left-in-a-closed-queue"))?;
        Some((self.take()?, error))
    }
}
