//! What hosts, not groups, say to each other: beats, and what follows when two hosts differ about who is silent.
//!
//! One message a frame, on the control lane. All integers are little-endian.
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 4 | kind (4), version, kind of host message, side (silent lists: 0 led, 1 followed; else zero) |
//! | 4 | 4 | count of list items, else zero |
//! | 8 | 8 | zero |
//! | 16 | | beat: incarnation, interval, writing, starts, place, then count and sum of led, count and sum of followed (8 each) |
//! | | | digest: 64 sums of led, 64 sums of followed (8 each) |
//! | | | silent list: items of group, epoch, member, term, leader, lagging (8 each) |
//! | | | differing: items of group (8) |
//! | | | gone: items of group, epoch, replica, incarnation and starts of the sender (8 each) |
//! | | | asked: store (16), incarnation, place (8 each) |
//! | | | answered: incarnation and place of the question, incarnation, follows (8 each) |
//!
//! Must not know: when beats are sent, what a difference leads to.

use super::*;
use bytes::{BufMut, Bytes, BytesMut};
use longboat_raft::{GroupEpoch, GroupId, ReplicaId, StoreId, Term};

/// Sums in a digest: silent groups are spread over this many, so that a difference narrows down.
pub const DIGEST_BUCKETS: usize = 64;

/// The most items of a list in one frame.
pub const HOST_ITEMS_MAX: usize = 4 << 10;

/// How many silent groups, and the sum of their hashes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SilentSum {
    /// How many.
    pub count: u64,
    /// The wrapping sum of their hashes.
    pub sum: u64,
}

/// A host's sign of life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Beat {
    /// Greater with every start of the sender.
    pub incarnation: u64,
    /// Nanoseconds between the sender's beats.
    pub interval_nanos: u64,
    /// How long the sender's log writer has had a write outstanding, in nanoseconds; 0 without one.
    pub writing_nanos: u64,
    /// Replicas that the sender has started since its own start.
    pub starts: u64,
    /// How much the sender's store has ever made durable.
    pub place: u64,
    /// The sender's silent replicas that lead, with a member at the receiver.
    pub led: SilentSum,
    /// The sender's silent replicas that follow a leader at the receiver.
    pub followed: SilentSum,
}

/// The sums of a beat, by bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    /// Of the sender's silent replicas that lead.
    pub led: [u64; DIGEST_BUCKETS],
    /// Of the sender's silent replicas that follow.
    pub followed: [u64; DIGEST_BUCKETS],
}

/// Which of the sender's silent replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Side {
    /// Those that lead, with a member at the other host.
    Led = 0,
    /// Those that follow a leader at the other host.
    Followed = 1,
}

/// One group of two hosts whose replica at one of them is silent, and what that one believes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SilentGroup {
    /// The group.
    pub group: GroupId,
    /// The incarnation of its history.
    pub epoch: GroupEpoch,
    /// The following replica.
    pub member: ReplicaId,
    /// The term.
    pub term: Term,
    /// The leading replica.
    pub leader: ReplicaId,
    /// The leader fell silent without this member.
    pub lagging: bool,
}

/// How many replicas a host has started, and in which of its lives: greater whenever it has started another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Starts {
    /// Greater with every start of the host.
    pub incarnation: u64,
    /// Replicas started since then.
    pub count: u64,
}

/// A replica that does not run at the sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GoneReplica {
    /// The group.
    pub group: GroupId,
    /// The incarnation of its history.
    pub epoch: GroupEpoch,
    /// The replica.
    pub replica: ReplicaId,
    /// What the sender had started when it did not run there: it may be among what was started since.
    pub as_of: Starts,
}

/// What one host says to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostMessage {
    /// The sender lives.
    Beat(Beat),
    /// The sums by bucket, because those of beats differ.
    Digest(Box<Digest>),
    /// Silent replicas of buckets that differ, at most [`HOST_ITEMS_MAX`].
    Silent(Side, Vec<SilentGroup>),
    /// Groups of such a list that are otherwise at the sender, at most [`HOST_ITEMS_MAX`].
    Differing(Vec<GroupId>),
    /// Replicas that have stopped although their host lives, at most [`HOST_ITEMS_MAX`].
    Gone(Vec<GoneReplica>),
    /// Was this the receiver's store, and once in this incarnation, and came this far in it?
    Asked {
        /// The store.
        store: StoreId,
        /// The incarnation.
        incarnation: u64,
        /// How far.
        place: u64,
    },
    /// What was asked, and the answer.
    Answered {
        /// The incarnation that was asked about.
        asked: u64,
        /// The place that was asked about.
        place: u64,
        /// That of the answering host.
        incarnation: u64,
        /// It was, and did.
        follows: bool,
    },
}

const BEAT: u8 = 1;
const DIGEST: u8 = 2;
const SILENT: u8 = 3;
const DIFFERING: u8 = 4;
const GONE: u8 = 5;
const ASKED: u8 = 6;
const ANSWERED: u8 = 7;

const BEAT_BYTES: usize = 72;
const DIGEST_BYTES: usize = 2 * DIGEST_BUCKETS * 8;
const SILENT_BYTES: usize = 48;
const DIFFERING_BYTES: usize = 8;
const GONE_BYTES: usize = 40;
const ASKED_BYTES: usize = 32;
const ANSWERED_BYTES: usize = 32;

impl HostMessage {
    /// Whether a frame's body is a host's message. Whether it is a good one, decoding tells.
    pub fn is_one(frame: &[u8]) -> bool {
        frame.first() == Some(&BODY_HOST)
    }

    /// The frame. Panics on a list of more than [`HOST_ITEMS_MAX`] items: a caller's mistake.
    pub fn encode(&self) -> Bytes {
        let (kind, side, count, item_bytes) = match self {
            Self::Beat(_) => (BEAT, 0, 0, BEAT_BYTES),
            Self::Digest(_) => (DIGEST, 0, 0, DIGEST_BYTES),
            Self::Silent(side, list) => (SILENT, *side as u8, list.len(), SILENT_BYTES),
            Self::Differing(list) => (DIFFERING, 0, list.len(), DIFFERING_BYTES),
            Self::Gone(list) => (GONE, 0, list.len(), GONE_BYTES),
            Self::Asked { .. } => (ASKED, 0, 0, ASKED_BYTES),
            Self::Answered { .. } => (ANSWERED, 0, 0, ANSWERED_BYTES),
        };
        assert!(count <= HOST_ITEMS_MAX, "list of {count} items");
        let mut out = BytesMut::with_capacity(BODY_HEADER_BYTES + count.max(1) * item_bytes);
        out.put_slice(&[BODY_HOST, WIRE_VERSION, kind, side]);
        out.put_u32_le(count as u32);
        out.put_u64_le(0);
        let mut put = |values: &[u64]| values.iter().for_each(|v| out.put_u64_le(*v));
        match self {
            Self::Beat(b) => {
                put(&[b.incarnation, b.interval_nanos, b.writing_nanos, b.starts, b.place]);
                put(&[b.led.count, b.led.sum, b.followed.count, b.followed.sum]);
            }
            Self::Digest(d) => {
                put(&d.led);
                put(&d.followed);
            }
            Self::Silent(_, list) => {
                for s in list {
                    put(&[s.group.0, s.epoch.0, s.member.0, s.term.0, s.leader.0, u64::from(s.lagging)]);
                }
            }
            Self::Differing(list) => list.iter().for_each(|group| put(&[group.0])),
            Self::Gone(list) => {
                for g in list {
                    put(&[g.group.0, g.epoch.0, g.replica.0, g.as_of.incarnation, g.as_of.count]);
                }
            }
            Self::Asked { store, incarnation, place } => {
                put(&[store.0 as u64, (store.0 >> 64) as u64, *incarnation, *place])
            }
            Self::Answered { asked, place, incarnation, follows } => {
                put(&[*asked, *place, *incarnation, u64::from(*follows)]);
            }
        }
        out.freeze()
    }

    /// What a frame says.
    ///
    /// # Errors
    /// When the bytes are not a host's message.
    pub fn decode(frame: &[u8]) -> Result<Self, WireError> {
        let mut fields = Fields(frame);
        let (body, version) = (fields.u8()?, fields.u8()?);
        if version != WIRE_VERSION {
            return Err(WireError::Version { found: version });
        }
        if body != BODY_HOST {
            return Err(WireError::Kind { what: "body", kind: body });
        }
        let (kind, side, count) = (fields.u8()?, fields.u8()?, fields.u32()? as usize);
        fields.u64()?;
        let item_bytes = match kind {
            BEAT => BEAT_BYTES,
            DIGEST => DIGEST_BYTES,
            SILENT => SILENT_BYTES,
            DIFFERING => DIFFERING_BYTES,
            GONE => GONE_BYTES,
            ASKED => ASKED_BYTES,
            ANSWERED => ANSWERED_BYTES,
            kind => return Err(WireError::Kind { what: "host message", kind }),
        };
        let items = if matches!(kind, BEAT | DIGEST | ASKED | ANSWERED) { 1 } else { count };
        // Before anything is allocated: the count is bounded, and the bytes are there.
        if items > HOST_ITEMS_MAX {
            return Err(WireError::Malformed("list above its bound"));
        }
        if fields.0.len() != items * item_bytes {
            return Err(WireError::Truncated { needed: items * item_bytes, available: fields.0.len() });
        }
        let mut words = fields.0.chunks_exact(8).map(|w| u64::from_le_bytes(w.try_into().expect("eight bytes")));
        let mut word = || words.next().expect("as many as were checked");
        Ok(match kind {
            BEAT => Self::Beat(Beat {
                incarnation: word(),
                interval_nanos: word(),
                writing_nanos: word(),
                starts: word(),
                place: word(),
                led: SilentSum { count: word(), sum: word() },
                followed: SilentSum { count: word(), sum: word() },
            }),
            DIGEST => {
                let led = std::array::from_fn(|_| word());
                Self::Digest(Box::new(Digest { led, followed: std::array::from_fn(|_| word()) }))
            }
            SILENT => {
                let side = match side {
                    0 => Side::Led,
                    1 => Side::Followed,
                    _ => return Err(WireError::Malformed("side of a silent list")),
                };
                let item = |_| SilentGroup {
                    group: GroupId(word()),
                    epoch: GroupEpoch(word()),
                    member: ReplicaId(word()),
                    term: Term(word()),
                    leader: ReplicaId(word()),
                    lagging: word() != 0,
                };
                Self::Silent(side, (0..items).map(item).collect())
            }
            DIFFERING => Self::Differing((0..items).map(|_| GroupId(word())).collect()),
            ASKED => {
                let (low, high) = (word(), word());
                let store = StoreId(u128::from(high) << 64 | u128::from(low));
                Self::Asked { store, incarnation: word(), place: word() }
            }
            ANSWERED => Self::Answered { asked: word(), place: word(), incarnation: word(), follows: word() != 0 },
            _ => {
                let item = |_| GoneReplica {
                    group: GroupId(word()),
                    epoch: GroupEpoch(word()),
                    replica: ReplicaId(word()),
                    as_of: Starts { incarnation: word(), count: word() },
                };
                Self::Gone((0..items).map(item).collect())
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn any_sum() -> impl Strategy<Value = SilentSum> {
        any::<(u64, u64)>().prop_map(|(count, sum)| SilentSum { count, sum })
    }

    fn any_message() -> impl Strategy<Value = HostMessage> {
        let silent =
            any::<([u64; 5], bool)>().prop_map(|([group, epoch, member, term, leader], lagging)| SilentGroup {
                group: GroupId(group),
                epoch: GroupEpoch(epoch),
                member: ReplicaId(member),
                term: Term(term),
                leader: ReplicaId(leader),
                lagging,
            });
        let gone = any::<[u64; 5]>().prop_map(|[group, epoch, replica, incarnation, count]| GoneReplica {
            group: GroupId(group),
            epoch: GroupEpoch(epoch),
            replica: ReplicaId(replica),
            as_of: Starts { incarnation, count },
        });
        prop_oneof![
            (any::<[u64; 5]>(), any_sum(), any_sum()).prop_map(|(n, led, followed)| HostMessage::Beat(Beat {
                incarnation: n[0],
                interval_nanos: n[1],
                writing_nanos: n[2],
                starts: n[3],
                place: n[4],
                led,
                followed
            })),
            (vec(any::<u64>(), DIGEST_BUCKETS), vec(any::<u64>(), DIGEST_BUCKETS)).prop_map(|(led, followed)| {
                let array = |v: Vec<u64>| v.try_into().expect("as many as buckets");
                HostMessage::Digest(Box::new(Digest { led: array(led), followed: array(followed) }))
            }),
            (prop_oneof![Just(Side::Led), Just(Side::Followed)], vec(silent, 0..9))
                .prop_map(|(side, list)| HostMessage::Silent(side, list)),
            vec(any::<u64>().prop_map(GroupId), 0..9).prop_map(HostMessage::Differing),
            vec(gone, 0..9).prop_map(HostMessage::Gone),
            any::<(u128, [u64; 2])>().prop_map(|(store, [incarnation, place])| HostMessage::Asked {
                store: StoreId(store),
                incarnation,
                place
            }),
            any::<([u64; 3], bool)>().prop_map(|([asked, place, incarnation], follows)| HostMessage::Answered {
                asked,
                place,
                incarnation,
                follows
            }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(192))]

        #[test]
        fn host_messages_come_back_equal_and_no_truncation_does(message in any_message(), cut in any::<usize>()) {
            let frame = message.encode();
            prop_assert!(HostMessage::is_one(&frame));
            prop_assert_eq!(HostMessage::decode(&frame), Ok(message));
            prop_assert!(HostMessage::decode(&frame[..cut % frame.len()]).is_err());
            // Nobody takes one for a frame of another kind.
            prop_assert!(messages(frame.clone()).any(|m| m.is_err()));
            prop_assert!(for_each_group(&frame, |_| ()).is_err());
            prop_assert!(SnapshotFrame::decode(frame).is_err());
        }

        #[test]
        fn garbage_is_refused_or_read_and_never_panics(kind in 0u8..10, side in 0u8..4, count in 0u32..12, bytes in vec(any::<u8>(), 0..400)) {
            let mut frame = vec![BODY_HOST, WIRE_VERSION, kind, side];
            frame.extend_from_slice(&count.to_le_bytes());
            frame.extend_from_slice(&[0; 8]);
            frame.extend_from_slice(&bytes);
            let _ = HostMessage::decode(&frame);
            let _ = HostMessage::decode(&bytes);
        }
    }

    #[test]
    fn a_count_beyond_the_bound_is_refused_before_anything_is_taken() {
        let mut frame = HostMessage::Differing(vec![GroupId(1)]).encode().to_vec();
        frame[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(HostMessage::decode(&frame), Err(WireError::Malformed("list above its bound")));
        frame[4..8].copy_from_slice(&2u32.to_le_bytes());
        assert_eq!(HostMessage::decode(&frame), Err(WireError::Truncated { needed: 16, available: 8 }));
    }
}
