//! Ids in configuration files are plain numbers.

use longboat_raft::HostId;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::net::SocketAddr;

pub(crate) mod host {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(id: &HostId, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u64(id.0)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<HostId, D::Error> {
        u64::deserialize(d).map(HostId)
    }
}

pub(crate) mod peers {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(peers: &BTreeMap<HostId, SocketAddr>, s: S) -> Result<S::Ok, S::Error> {
        let plain: BTreeMap<u64, SocketAddr> = peers.iter().map(|(id, at)| (id.0, *at)).collect();
        plain.serialize(s)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<BTreeMap<HostId, SocketAddr>, D::Error> {
        let plain = BTreeMap::<u64, SocketAddr>::deserialize(d)?;
        Ok(plain.into_iter().map(|(id, at)| (HostId(id), at)).collect())
    }
}
