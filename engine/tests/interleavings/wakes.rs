//! A worker's sleep.

use crate::Case;
use crate::notify::Notifier;
use bytes::Bytes;
use longboat_raft::HostId;
use longboat_transport::{FrameSink, Lane, Sent, Transport, TransportStats};
use shuttle::sync::atomic::{AtomicU32, Ordering};
use shuttle::sync::{Condvar, Mutex};
use shuttle::thread;
use std::sync::Arc;
use std::time::Duration;

pub const CASES: &[Case] = &[
    (
        "a_sleeper_with_work_is_woken",
        a_sleeper_with_work_is_woken,
        &["looked-before-it-sleeps", "woken-before-it-is-left"],
    ),
    (
        "who_waits_for_sockets_is_woken",
        who_waits_for_sockets_is_woken,
        &["looked-before-it-sleeps", "woken-before-it-is-left"],
    ),
    ("who_takes_a_place_is_woken_in_it", who_takes_a_place_is_woken_in_it, &["looked-before-it-sleeps"]),
];

/// Longer than anything: only a wake ends a sleep.
pub const LONG: Duration = Duration::from_secs(3600);

/// Each of two threads leaves two things; the worker sleeps between, and has them all in the end.
fn takes_all(transport: Option<Arc<dyn Transport>>) {
    let (notifier, left) = (Notifier::new(), Arc::new(AtomicU32::new(0)));
    let others: Vec<_> = (0..2)
        .map(|_| {
            let (notifier, left) = (Arc::clone(&notifier), Arc::clone(&left));
            thread::spawn(move || {
                for _ in 0..2 {
                    notifier.after(|| left.fetch_add(1, Ordering::SeqCst));
                }
            })
        })
        .collect();
    notifier.attach(transport);
    let mut taken = 0;
    loop {
        notifier.take();
        taken += left.swap(0, Ordering::SeqCst);
        if taken == 4 {
            break;
        }
        notifier.park(LONG);
    }
    others.into_iter().for_each(|other| other.join().unwrap());
}

fn a_sleeper_with_work_is_woken() {
    takes_all(None);
}

fn who_waits_for_sockets_is_woken() {
    takes_all(Some(Arc::new(Sockets::default())));
}

/// A second thread takes the first one's place while others leave things, as a spare does of a thread that hangs.
fn who_takes_a_place_is_woken_in_it() {
    let (notifier, left) = (Notifier::new(), Arc::new(AtomicU32::new(0)));
    let (own, leaves) = (Arc::clone(&notifier), Arc::clone(&left));
    let other = thread::spawn(move || {
        for _ in 0..2 {
            own.after(|| leaves.fetch_add(1, Ordering::SeqCst));
        }
    });
    notifier.attach(None);
    notifier.take();
    let mut taken = left.swap(0, Ordering::SeqCst);
    // From here on it hangs.
    let spare = thread::spawn(move || {
        notifier.attach(None);
        loop {
            notifier.take();
            taken += left.swap(0, Ordering::SeqCst);
            if taken == 2 {
                return;
            }
            notifier.park(LONG);
        }
    });
    spare.join().unwrap();
    other.join().unwrap();
}

/// Sockets on which nothing ever comes: a wait ends by a wake, also by one that came before.
#[derive(Default)]
struct Sockets {
    woken: Mutex<bool>,
    condition: Condvar,
}

impl Transport for Sockets {
    fn send(&self, _: HostId, _: Lane, _: &[Bytes]) -> Sent {
        Sent::Unreachable
    }

    fn poll(&self, _: &mut dyn FrameSink) -> usize {
        0
    }

    fn wait(&self, _: Duration) {
        let mut woken = self.woken.lock().unwrap();
        while !*woken {
            woken = self.condition.wait(woken).unwrap();
        }
        *woken = false;
    }

    fn wake(&self) {
        *self.woken.lock().unwrap() = true;
        self.condition.notify_one();
    }

    fn stats(&self) -> TransportStats {
        TransportStats::default()
    }

    fn close(&self) {}
}
