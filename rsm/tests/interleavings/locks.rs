//! Locks of the form that the crate uses, over those of the checker, which decides after each step which thread goes on.

use std::ops::{Deref, DerefMut};
use std::time::Instant;

/// As the mutex of `parking_lot`.
#[derive(Debug, Default)]
pub struct Mutex<T>(shuttle::sync::Mutex<T>);

/// Holds the lock. It is away only while a condition is waited for.
#[derive(Debug)]
pub struct Guard<'a, T>(&'a Mutex<T>, Option<shuttle::sync::MutexGuard<'a, T>>);

impl<T> Mutex<T> {
    pub fn new(value: T) -> Self {
        Self(shuttle::sync::Mutex::new(value))
    }

    pub fn lock(&self) -> Guard<'_, T> {
        Guard(self, Some(self.0.lock().expect("nobody panics while holding it")))
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.1.as_ref().expect("held")
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.1.as_mut().expect("held")
    }
}

/// As the condition variable of `parking_lot`.
#[derive(Debug, Default)]
pub struct Condvar(shuttle::sync::Condvar);

/// Whether a wait ended by its time.
#[derive(Clone, Copy, Debug)]
pub struct Waited(bool);

impl Waited {
    pub fn timed_out(self) -> bool {
        self.0
    }
}

impl Condvar {
    pub fn new() -> Self {
        Self(shuttle::sync::Condvar::new())
    }

    pub fn notify_all(&self) {
        self.0.notify_all();
    }

    pub fn wait<T>(&self, guard: &mut Guard<'_, T>) {
        let held = guard.1.take().expect("held");
        guard.1 = Some(self.0.wait(held).expect("nobody panics while holding it"));
    }

    /// Time passes or does not, as chance has it: a wait either ends by a notification, or at once.
    pub fn wait_until<T>(&self, guard: &mut Guard<'_, T>, _: Instant) -> Waited {
        use shuttle::rand::Rng;
        if shuttle::rand::thread_rng().gen_bool(0.5) {
            self.wait(guard);
            return Waited(false);
        }
        guard.1 = None;
        shuttle::thread::yield_now();
        guard.1 = Some(guard.0.0.lock().expect("nobody panics while holding it"));
        Waited(true)
    }
}
