//! Where the results of requests appear, and how clients wait for them.
//!
//! Requests that travel together share one [`Completion`]: one allocation per chunk, one lock per batch of results.
//! Each [`Pending`] is a slot of it.
//!
//! Invariants: a slot is resolved once, the first outcome wins; a resolved slot never changes; whoever drops a
//! `Pending` unresolved leaves no trace; waiters are woken outside of the lock.

use crate::error::RequestError;
use crate::sync::{Condvar, Mutex};
use longboat_raft::plant;
use std::any::Any;
use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

enum Slot<T> {
    Waiting(Option<Waker>),
    Ready(Result<T, RequestError>),
    Taken,
}

impl<T> Slot<T> {
    fn take(&mut self) -> Result<T, RequestError> {
        match std::mem::replace(self, Self::Taken) {
            Self::Ready(result) => result,
            Self::Waiting(_) | Self::Taken => unreachable!("taken only after it was resolved, and once"),
        }
    }
}

struct Slots<T> {
    slots: Vec<Slot<T>>,
    /// Threads blocked in `wait`.
    blocked: u32,
}

impl<T> Slots<T> {
    fn range(&mut self, range: Range<u32>) -> &mut [Slot<T>] {
        if self.slots.len() < range.end as usize {
            self.slots.resize_with(range.end as usize, || Slot::Waiting(None));
        }
        &mut self.slots[range.start as usize..range.end as usize]
    }
}

/// The results of requests that travel together.
pub struct Completion<T> {
    inner: Mutex<Slots<T>>,
    ready: Condvar,
}

impl<T: Send + 'static> Completion<T> {
    /// A completion. Slots come to be when somebody first waits for them or resolves them, so that adding a request to a chunk costs no lock here.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { inner: Mutex::new(Slots { slots: Vec::new(), blocked: 0 }), ready: Condvar::new() })
    }

    /// Resolves the slots from `first` on with `results`, all under one lock. Slots that are resolved already keep their outcome.
    pub fn complete(&self, first: u32, results: impl ExactSizeIterator<Item = Result<T, RequestError>>) {
        let mut wakers: Vec<Waker> = Vec::new();
        let before = plant::is("waiters-counted-too-early").then(|| self.inner.lock().blocked > 0);
        let blocked = {
            let mut inner = self.inner.lock();
            for (slot, result) in inner.range(first..first + results.len() as u32).iter_mut().zip(results) {
                if plant::is("resolved-twice") && matches!(slot, Slot::Ready(_)) {
                    *slot = Slot::Waiting(None);
                }
                if let Slot::Waiting(waker) = slot {
                    if let Some(waker) = waker.take().filter(|_| !plant::is("waker-forgotten")) {
                        wakers.push(waker);
                    }
                    *slot = Slot::Ready(result);
                }
            }
            before.unwrap_or(inner.blocked > 0)
        };
        if blocked {
            self.ready.notify_all();
        }
        for waker in wakers {
            waker.wake();
        }
    }

    fn wait_ready(&self, range: Range<u32>, deadline: Option<Instant>) -> bool {
        let mut inner = self.inner.lock();
        loop {
            let waiting = |s: &Slot<T>| matches!(s, Slot::Waiting(_));
            if !inner.range(range.clone()).iter().any(waiting) {
                return true;
            }
            inner.blocked += 1;
            let timed_out = match deadline {
                Some(at) => self.ready.wait_until(&mut inner, at).timed_out(),
                None => {
                    self.ready.wait(&mut inner);
                    false
                }
            };
            inner.blocked -= 1;
            if timed_out {
                return false;
            }
        }
    }

    /// Registers `waker` on the first slot of `range` that is not resolved; false when all are.
    fn register(&self, range: Range<u32>, waker: &Waker) -> bool {
        let mut inner = self.inner.lock();
        for slot in inner.range(range) {
            if let Slot::Waiting(w) = slot {
                if !w.as_ref().is_some_and(|w| w.will_wake(waker)) {
                    *w = Some(waker.clone());
                }
                return true;
            }
        }
        false
    }

    fn take(&self, slot: u32) -> Result<T, RequestError> {
        self.inner.lock().slots[slot as usize].take()
    }

    fn take_many(&self, range: Range<u32>) -> Vec<Result<T, RequestError>> {
        let mut inner = self.inner.lock();
        inner.range(range).iter_mut().map(Slot::take).collect()
    }
}

impl<T> fmt::Debug for Completion<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completion").field("slots", &self.inner.lock().slots.len()).finish()
    }
}

/// A completion whose result type the engine does not know.
pub trait AnyCompletion: Send + Sync + fmt::Debug {
    /// Resolves `count` slots from `first` on with an error.
    fn fail(&self, first: u32, count: u32, error: &RequestError);

    /// For the typed side to find its type again.
    fn as_any(&self) -> &dyn Any;

    /// For the typed side to find its type again, owned.
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

impl<T: Send + 'static> AnyCompletion for Completion<T> {
    fn fail(&self, first: u32, count: u32, error: &RequestError) {
        self.complete(first, (0..count).map(|_| Err(error.clone())));
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

/// The result of one request, when it comes: a [`Future`] for any executor, or [`Pending::wait`] without one.
///
/// Every request is resolved in the end: with its result, or with an error at its deadline at the latest.
/// Dropping it cancels nothing.
#[must_use = "a request's outcome is known only to who waits for it"]
pub struct Pending<T> {
    completion: Arc<Completion<T>>,
    slot: u32,
}

impl<T: Send + 'static> Pending<T> {
    /// The pending result in `slot`.
    pub fn new(completion: Arc<Completion<T>>, slot: u32) -> Self {
        Self { completion, slot }
    }

    /// One request on its own, and where to complete it (slot 0).
    pub fn single() -> (Self, Arc<Completion<T>>) {
        let completion = Completion::new();
        (Self { completion: Arc::clone(&completion), slot: 0 }, completion)
    }

    /// Blocks until the request is resolved.
    ///
    /// # Errors
    /// Why the request did not complete.
    pub fn wait(self) -> Result<T, RequestError> {
        self.completion.wait_ready(self.slot..self.slot + 1, None);
        self.completion.take(self.slot)
    }

    /// Blocks for at most `timeout`; gives the pending result back when it is not there by then.
    ///
    /// # Errors
    /// `self`, when nothing came in time.
    pub fn wait_timeout(self, timeout: Duration) -> Result<Result<T, RequestError>, Self> {
        if self.completion.wait_ready(self.slot..self.slot + 1, Some(Instant::now() + timeout)) {
            Ok(self.completion.take(self.slot))
        } else {
            Err(self)
        }
    }
}

impl<T: Send + 'static> Future for Pending<T> {
    type Output = Result<T, RequestError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.completion.register(self.slot..self.slot + 1, cx.waker()) {
            return Poll::Pending;
        }
        Poll::Ready(self.completion.take(self.slot))
    }
}

impl<T> fmt::Debug for Pending<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").field("slot", &self.slot).finish_non_exhaustive()
    }
}

/// The results of a batch of requests, in the order in which they were given. See [`Pending`].
#[must_use = "a request's outcome is known only to who waits for it"]
pub struct PendingBatch<T> {
    /// A batch may have filled more than one chunk.
    parts: Vec<(Arc<Completion<T>>, Range<u32>)>,
}

impl<T: Send + 'static> PendingBatch<T> {
    /// The pending results in these ranges of slots.
    pub fn new(parts: Vec<(Arc<Completion<T>>, Range<u32>)>) -> Self {
        Self { parts }
    }

    /// The number of requests.
    pub fn len(&self) -> usize {
        self.parts.iter().map(|(_, range)| range.len()).sum()
    }

    /// Whether the batch has no requests.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Blocks until all are resolved.
    pub fn wait(self) -> Vec<Result<T, RequestError>> {
        for (completion, range) in &self.parts {
            completion.wait_ready(range.clone(), None);
        }
        self.take()
    }

    fn take(&self) -> Vec<Result<T, RequestError>> {
        match &self.parts[..] {
            [(completion, range)] => completion.take_many(range.clone()),
            parts => parts.iter().flat_map(|(completion, range)| completion.take_many(range.clone())).collect(),
        }
    }
}

impl<T: Send + 'static> Future for PendingBatch<T> {
    type Output = Vec<Result<T, RequestError>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        for (completion, range) in &self.parts {
            if completion.register(range.clone(), cx.waker()) {
                return Poll::Pending;
            }
        }
        Poll::Ready(self.take())
    }
}

impl<T> fmt::Debug for PendingBatch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingBatch").field("parts", &self.parts.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn the_first_outcome_of_a_slot_wins() {
        let (pending, completion) = Pending::<u32>::single();
        completion.complete(0, [Ok(1)].into_iter());
        completion.fail(0, 1, &RequestError::Dropped);
        assert_eq!(pending.wait(), Ok(1));
    }

    #[test]
    fn a_batch_wakes_its_future_when_the_last_slot_is_resolved() {
        let completion = Completion::<u32>::new();
        let mut batch = PendingBatch::new(vec![(Arc::clone(&completion), 0..3)]);
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&count));
        let mut cx = Context::from_waker(&waker);
        assert!(Pin::new(&mut batch).poll(&mut cx).is_pending());
        completion.complete(1, [Ok(11), Ok(12)].into_iter());
        assert_eq!(count.0.load(Ordering::SeqCst), 0, "the slot it waits on is still open");
        completion.complete(0, [Ok(10)].into_iter());
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert_eq!(Pin::new(&mut batch).poll(&mut cx), Poll::Ready(vec![Ok(10), Ok(11), Ok(12)]));
    }

    #[test]
    fn wait_returns_what_another_thread_completes() {
        let (pending, completion) = Pending::<u32>::single();
        let other = std::thread::spawn(move || completion.complete(0, [Ok(7)].into_iter()));
        assert_eq!(pending.wait(), Ok(7));
        other.join().expect("no panic");
    }

    #[test]
    fn wait_timeout_gives_the_request_back() {
        let (pending, completion) = Pending::<u32>::single();
        let pending = pending.wait_timeout(Duration::ZERO).expect_err("nothing completed it");
        completion.complete(0, [Ok(7)].into_iter());
        assert_eq!(pending.wait_timeout(Duration::ZERO).expect("resolved"), Ok(7));
    }
}
