//! The handshake: each side says who it is before anything else. Its envelope never changes, so that any two versions can
//! tell each other why they do not get on.
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic, `longboat` |
//! | 8 | 4 | length of the message, at most [`HELLO_BYTES_MAX`] |
//! | 12 | 4 | CRC-32 of the message |
//! | 16 | | the message, see [`Hello`] |
//!
//! The side that connects speaks first and says which host it expects; the other answers, with a refusal where it has one.

#[cfg(any(test, feature = "fuzz"))]
pub mod fuzzing;

use crate::Lane;
use crate::tcp::TcpConfig;
use crate::wire::WIRE_VERSION;
use bytes::{Buf, BytesMut};
use longboat_raft::{HostId, StoreId};
use prost::Message as _;

/// The lowest wire version that this build speaks.
pub(super) const WIRE_VERSION_LOWEST: u8 = 1;

/// The most bytes of a handshake message; ours have less than 200.
pub(super) const HELLO_BYTES_MAX: usize = 1024;
pub(super) const HELLO_ENVELOPE_BYTES: usize = 16;
const MAGIC: [u8; 8] = *b"longboat";

/// What a host says of itself, as sent.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Hello {
    #[prost(uint32, tag = "1")]
    lowest_version: u32,
    #[prost(uint32, tag = "2")]
    highest_version: u32,
    #[prost(fixed64, tag = "3")]
    deployment_id: u64,
    #[prost(uint64, tag = "4")]
    host_id: u64,
    #[prost(fixed64, tag = "5")]
    store_id_high: u64,
    #[prost(fixed64, tag = "6")]
    store_id_low: u64,
    #[prost(uint64, tag = "7")]
    incarnation: u64,
    /// 0: control, 1: bulk, 2: snapshot.
    #[prost(uint32, tag = "8")]
    lane: u32,
    /// The host that the connecting side wants to reach; in an answer, the host that is answered.
    #[prost(uint64, tag = "9")]
    expected_host_id: u64,
    /// Why the answering side ends the connection; empty when it does not.
    #[prost(string, tag = "10")]
    refusal: String,
}

/// A handshake that was checked: who is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Greeting {
    pub(super) host: HostId,
    pub(super) store: StoreId,
    pub(super) incarnation: u64,
    pub(super) lane: Lane,
    /// The highest version that both sides speak.
    pub(super) version: u8,
}

/// Why a handshake failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum HelloError {
    #[error("not a longboat host: magic {0:02x?}")]
    Magic([u8; 8]),
    #[error("handshake of {0} bytes, the limit is {HELLO_BYTES_MAX}")]
    Oversized(usize),
    #[error("handshake checksum mismatch")]
    Checksum,
    #[error("handshake is malformed")]
    Malformed,
    #[error("handshake says more than it should: {0} bytes follow it")]
    Trailing(usize),
    #[error(
        "no common wire version: theirs are {theirs_lowest} to {theirs_highest}, ours {WIRE_VERSION_LOWEST} to {WIRE_VERSION}"
    )]
    Version { theirs_lowest: u32, theirs_highest: u32 },
    #[error("deployment id {theirs:#x} is not ours, {ours:#x}")]
    Deployment { theirs: u64, ours: u64 },
    #[error("host {expected} was expected, host {found} is here")]
    Host { expected: u64, found: u64 },
    #[error("host {0} is not in the registry")]
    UnknownHost(HostId),
    #[error("lane {0} is not known here")]
    Lane(u32),
    #[error("incarnation {theirs} of host {host} is older than {newest}, which is connected")]
    Stale { host: HostId, theirs: u64, newest: u64 },
    #[error("refused by the other side: {0}")]
    Refused(String),
}

impl Hello {
    /// What the host with this configuration says on a connection with `other`.
    pub(super) fn new(config: &TcpConfig, lane: Lane, other: HostId) -> Self {
        Self {
            lowest_version: u32::from(WIRE_VERSION_LOWEST),
            highest_version: u32::from(WIRE_VERSION),
            deployment_id: config.deployment_id,
            host_id: config.host_id.0,
            store_id_high: (config.store_id.0 >> 64) as u64,
            store_id_low: config.store_id.0 as u64,
            incarnation: config.incarnation,
            lane: lane as u32,
            expected_host_id: other.0,
            refusal: String::new(),
        }
    }

    /// The answer to `asked`, which may be anything that could be decoded.
    pub(super) fn answer(config: &TcpConfig, asked: &Self, refusal: Option<&HelloError>) -> Self {
        let mut answer = Self::new(config, Lane::Control, HostId(asked.host_id));
        answer.lane = asked.lane;
        answer.refusal = refusal.map(ToString::to_string).unwrap_or_default();
        answer
    }

    pub(super) fn encode_enveloped(&self) -> Vec<u8> {
        let message = self.encode_to_vec();
        assert!(message.len() <= HELLO_BYTES_MAX, "handshake of {} bytes", message.len());
        let mut out = Vec::with_capacity(HELLO_ENVELOPE_BYTES + message.len());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&(message.len() as u32).to_le_bytes());
        out.extend_from_slice(&crc32fast::hash(&message).to_le_bytes());
        out.extend_from_slice(&message);
        out
    }

    /// Takes a handshake off the front of what was received; `None` when more must come.
    pub(super) fn take(received: &mut BytesMut) -> Result<Option<Self>, HelloError> {
        // Garbage is noticed at its first bytes, so that a stranger who sends few and waits is not waited for.
        let seen = received.len().min(MAGIC.len());
        if received[..seen] != MAGIC[..seen] {
            let mut magic = [0; 8];
            magic[..seen].copy_from_slice(&received[..seen]);
            return Err(HelloError::Magic(magic));
        }
        if received.len() < HELLO_ENVELOPE_BYTES {
            return Ok(None);
        }
        let le32 = |at: usize| u32::from_le_bytes(received[at..at + 4].try_into().expect("four bytes"));
        let (len, crc) = (le32(8) as usize, le32(12));
        if len > HELLO_BYTES_MAX {
            return Err(HelloError::Oversized(len));
        }
        let Some(message) = received.get(HELLO_ENVELOPE_BYTES..HELLO_ENVELOPE_BYTES + len) else {
            return Ok(None);
        };
        if crc32fast::hash(message) != crc {
            return Err(HelloError::Checksum);
        }
        let hello = Self::decode(message).map_err(|_| HelloError::Malformed)?;
        received.advance(HELLO_ENVELOPE_BYTES + len);
        Ok(Some(hello))
    }

    /// Checks what does not depend on which side connected.
    fn check(&self, config: &TcpConfig) -> Result<Greeting, HelloError> {
        let (ours_lowest, ours_highest) = (u32::from(WIRE_VERSION_LOWEST), u32::from(WIRE_VERSION));
        let version = self.highest_version.min(ours_highest);
        if version < self.lowest_version.max(ours_lowest) {
            return Err(HelloError::Version {
                theirs_lowest: self.lowest_version,
                theirs_highest: self.highest_version,
            });
        }
        if self.deployment_id != config.deployment_id {
            return Err(HelloError::Deployment { theirs: self.deployment_id, ours: config.deployment_id });
        }
        if self.expected_host_id != config.host_id.0 {
            return Err(HelloError::Host { expected: self.expected_host_id, found: config.host_id.0 });
        }
        let lane = *Lane::ALL.get(self.lane as usize).ok_or(HelloError::Lane(self.lane))?;
        Ok(Greeting {
            host: HostId(self.host_id),
            store: StoreId(u128::from(self.store_id_high) << 64 | u128::from(self.store_id_low)),
            incarnation: self.incarnation,
            lane,
            version: version as u8,
        })
    }

    /// Checks the words of a side that connected to us.
    pub(super) fn check_asker(
        &self,
        config: &TcpConfig,
        known: impl Fn(HostId) -> bool,
    ) -> Result<Greeting, HelloError> {
        let greeting = self.check(config)?;
        if greeting.host.is_zero() || greeting.host == config.host_id || !known(greeting.host) {
            return Err(HelloError::UnknownHost(greeting.host));
        }
        Ok(greeting)
    }

    /// Checks the answer of the side that we connected to.
    pub(super) fn check_answer(&self, config: &TcpConfig, host: HostId, lane: Lane) -> Result<Greeting, HelloError> {
        if !self.refusal.is_empty() {
            return Err(HelloError::Refused(self.refusal.clone()));
        }
        if self.host_id != host.0 {
            return Err(HelloError::Host { expected: host.0, found: self.host_id });
        }
        let greeting = self.check(config)?;
        if greeting.lane != lane {
            return Err(HelloError::Lane(self.lane));
        }
        Ok(greeting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn config(host: u64) -> TcpConfig {
        TcpConfig {
            deployment_id: 77,
            incarnation: 5,
            store_id: StoreId(u128::MAX - 3),
            ..TcpConfig::new(HostId(host), "127.0.0.1:0".parse().expect("an address"))
        }
    }

    fn sent(hello: &Hello) -> BytesMut {
        BytesMut::from(&hello.encode_enveloped()[..])
    }

    #[test]
    fn both_sides_learn_who_the_other_is() {
        let (one, two) = (config(1), config(2));
        let mut wire = sent(&Hello::new(&one, Lane::Bulk, HostId(2)));
        let asked = Hello::take(&mut wire).expect("valid").expect("whole");
        let asker = asked.check_asker(&two, |host| host == HostId(1)).expect("welcome");
        let store = StoreId(u128::MAX - 3);
        let expected = Greeting { host: HostId(1), store, incarnation: 5, lane: Lane::Bulk, version: WIRE_VERSION };
        assert_eq!(asker, expected);
        let answer = Hello::answer(&two, &asked, None);
        let answerer = answer.check_answer(&one, HostId(2), Lane::Bulk).expect("the host that was expected");
        assert_eq!(answerer, Greeting { host: HostId(2), ..expected });
    }

    #[test]
    fn each_mismatch_is_refused_by_name() {
        let (one, two) = (config(1), config(2));
        let good = Hello::new(&one, Lane::Control, HostId(2));
        let refused = |change: fn(&mut Hello)| {
            let mut hello = good.clone();
            change(&mut hello);
            hello.check_asker(&two, |host| host.0 < 10).expect_err("a mismatch")
        };
        assert_eq!(refused(|h| h.deployment_id = 78), HelloError::Deployment { theirs: 78, ours: 77 });
        assert_eq!(refused(|h| h.expected_host_id = 3), HelloError::Host { expected: 3, found: 2 });
        assert_eq!(refused(|h| h.host_id = 11), HelloError::UnknownHost(HostId(11)));
        assert_eq!(refused(|h| h.host_id = 2), HelloError::UnknownHost(HostId(2)));
        assert_eq!(refused(|h| h.host_id = 0), HelloError::UnknownHost(HostId(0)));
        assert_eq!(refused(|h| h.lane = 3), HelloError::Lane(3));
        let newer = refused(|h| (h.lowest_version, h.highest_version) = (200, 201));
        assert_eq!(newer, HelloError::Version { theirs_lowest: 200, theirs_highest: 201 });
        let refusal = Hello::answer(&two, &good, Some(&newer));
        assert!(matches!(refusal.check_answer(&one, HostId(2), Lane::Control), Err(HelloError::Refused(_))));
    }

    #[test]
    fn the_highest_common_version_is_taken() {
        let mut hello = Hello::new(&config(1), Lane::Control, HostId(2));
        hello.highest_version = 200;
        let greeting = hello.check_asker(&config(2), |_| true).expect("version 1 is common");
        assert_eq!(greeting.version, WIRE_VERSION);
    }

    #[test]
    fn a_handshake_that_arrives_in_pieces_is_waited_for() {
        let whole = Hello::new(&config(1), Lane::Control, HostId(2)).encode_enveloped();
        for len in 0..whole.len() {
            assert_eq!(Hello::take(&mut BytesMut::from(&whole[..len])), Ok(None), "{len} bytes");
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in vec(any::<u8>(), 0..200), flip in any::<usize>()) {
            let _ = Hello::take(&mut BytesMut::from(&bytes[..]));
            let mut wire = sent(&Hello::new(&config(1), Lane::Control, HostId(2)));
            let at = flip % wire.len();
            wire[at] ^= 1 + (flip >> 8) as u8 % 255;
            prop_assert!(!matches!(Hello::take(&mut wire), Ok(Some(_))), "damage at {at} went unnoticed");
            let mut enveloped = b"longboat".to_vec();
            enveloped.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
            enveloped.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
            enveloped.extend_from_slice(&bytes);
            if let Ok(Some(hello)) = Hello::take(&mut BytesMut::from(&enveloped[..])) {
                let _ = hello.check_asker(&config(2), |_| true);
                let _ = hello.check_answer(&config(2), HostId(1), Lane::Control);
            }
        }
    }
}
