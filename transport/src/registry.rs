//! Where hosts live: addresses by [`HostId`]. Logs and snapshots name hosts only; addresses are never learnt from frames.

use longboat_raft::HostId;
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

/// Told of each change of a host's address. Returns whether it wants to be told again.
pub type AddressWatcher = Box<dyn Fn(HostId) -> bool + Send + Sync>;

/// Knows the addresses of hosts. A host without an address is not spoken to, and its connections are refused.
pub trait Registry: Send + Sync + 'static {
    /// Where this host listens.
    fn resolve(&self, host: HostId) -> Option<SocketAddr>;

    /// Asks to be told when an address has changed. A registry that never changes may do nothing; without being told,
    /// a transport asks again whenever it connects.
    fn watch(&self, watcher: AddressWatcher) {
        drop(watcher);
    }
}

/// A table of addresses that its owner may change at any time.
#[derive(Default)]
pub struct StaticRegistry {
    addresses: RwLock<BTreeMap<HostId, SocketAddr>>,
    watchers: Mutex<Vec<AddressWatcher>>,
}

impl StaticRegistry {
    /// A registry that knows these hosts.
    pub fn new(addresses: impl IntoIterator<Item = (HostId, SocketAddr)>) -> Self {
        Self { addresses: RwLock::new(addresses.into_iter().collect()), watchers: Mutex::default() }
    }

    /// Gives a host an address, known or not before. Connections to its former address move.
    pub fn set_peer_address(&self, host: HostId, address: SocketAddr) {
        let before = self.addresses.write().insert(host, address);
        if before != Some(address) {
            self.tell(host);
        }
    }

    /// Forgets a host. Connections to it end, and it is refused.
    pub fn remove_peer(&self, host: HostId) {
        if self.addresses.write().remove(&host).is_some() {
            self.tell(host);
        }
    }

    fn tell(&self, host: HostId) {
        self.watchers.lock().retain(|watcher| watcher(host));
    }
}

impl Registry for StaticRegistry {
    fn resolve(&self, host: HostId) -> Option<SocketAddr> {
        self.addresses.read().get(&host).copied()
    }

    fn watch(&self, watcher: AddressWatcher) {
        self.watchers.lock().push(watcher);
    }
}

impl fmt::Debug for StaticRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StaticRegistry").field(&*self.addresses.read()).finish()
    }
}
