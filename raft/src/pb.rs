//! The rare records as protobuf: memberships and membership changes, in snapshots, logs and on the wire.
//!
//! Written by hand as prost structs; field numbers are never given another meaning. The same records in `.proto` form
//! stand in `proto/longboat.proto`.

/// A member's place.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Member {
    #[prost(uint64, tag = "1")]
    pub(crate) replica: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) host: u64,
    /// Sixteen bytes, little-endian; empty while unknown.
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) store: Vec<u8>,
}

/// A membership.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Membership {
    #[prost(uint64, repeated, tag = "1")]
    pub(crate) voters: Vec<u64>,
    #[prost(uint64, repeated, tag = "2")]
    pub(crate) outgoing: Vec<u64>,
    #[prost(uint64, repeated, tag = "3")]
    pub(crate) learners: Vec<u64>,
    #[prost(uint64, repeated, tag = "4")]
    pub(crate) learners_next: Vec<u64>,
    #[prost(bool, tag = "5")]
    pub(crate) auto_leave: bool,
    #[prost(uint64, repeated, tag = "6")]
    pub(crate) witnesses: Vec<u64>,
    #[prost(message, repeated, tag = "7")]
    pub(crate) members: Vec<Member>,
    #[prost(uint64, repeated, tag = "8")]
    pub(crate) removed: Vec<u64>,
    #[prost(uint64, tag = "9")]
    pub(crate) change_id: u64,
    #[prost(message, repeated, tag = "10")]
    pub(crate) promotions: Vec<Promotion>,
}

/// A non-voting member that becomes a voter once it has caught up.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Promotion {
    #[prost(uint64, tag = "1")]
    pub(crate) learner: u64,
    /// The voter that it replaces; absent for none.
    #[prost(uint64, optional, tag = "2")]
    pub(crate) replaces: Option<u64>,
}

/// One step of a membership change.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Change {
    /// 1 add voter, 2 add learner, 3 remove, 4 update, 5 add witness.
    #[prost(uint32, tag = "1")]
    pub(crate) kind: u32,
    #[prost(message, optional, tag = "2")]
    pub(crate) member: Option<Member>,
    /// 0 never, 1 when caught up, 2 when caught up in place of `replaces`.
    #[prost(uint32, tag = "3")]
    pub(crate) promotion: u32,
    #[prost(uint64, tag = "4")]
    pub(crate) replaces: u64,
}

/// A membership change: the payload of a config entry.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct ConfigChange {
    /// 0 automatic, 1 joint and left automatically, 2 joint and left explicitly.
    #[prost(uint32, tag = "1")]
    pub(crate) transition: u32,
    #[prost(message, repeated, tag = "2")]
    pub(crate) changes: Vec<Change>,
    /// The change id that the membership must have; absent for any.
    #[prost(uint64, optional, tag = "3")]
    pub(crate) after: Option<u64>,
}
