//! Bytes that are to be a run: refused, or all that is done with runs works on it.

use bytes::{Bytes, BytesMut};
use longboat_raft::crc::crc32c;
use longboat_raft::run::RUN_HEADER_BYTES;
use longboat_raft::{Index, Run, Term};

/// Makes the checksums right of what the lengths at the front say, so that what they guard is looked at.
fn with_sums(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Ok((head, payload)) = Run::measure(&bytes)
        && bytes.len() >= head + payload
    {
        let sum = crc32c(0, &bytes[head..head + payload]);
        bytes[48..52].copy_from_slice(&sum.to_le_bytes());
        let sum = crc32c(crc32c(sum, &bytes[..48]), &bytes[RUN_HEADER_BYTES..head]);
        bytes[52..56].copy_from_slice(&sum.to_le_bytes());
    }
    bytes
}

/// The first byte says whether the checksums are to be right.
pub fn runs(data: &[u8]) {
    let Some((mode, bytes)) = data.split_first() else { return };
    let bytes = if mode & 1 == 0 { with_sums(bytes.to_vec()) } else { bytes.to_vec() };
    let mut input = Bytes::from(bytes.clone());
    let verified = Run::verify(&bytes);
    let Ok(run) = Run::decode(&mut input) else {
        assert!(verified.is_err(), "verified, and not read");
        return;
    };
    assert_eq!(verified, Ok(run.encoded_len()));
    assert_eq!(run.entries().count(), run.count());
    let mut again = BytesMut::new();
    run.encode(&mut again);
    assert_eq!(again[..], bytes[..run.encoded_len()]);
    let moved = run.rebase(Term(u64::MAX), Index(7));
    let stripped = run.strip();
    assert_eq!((moved.count(), stripped.count(), stripped.last()), (run.count(), run.count(), run.last()));
    for (at, entry) in run.entries().enumerate().take(64) {
        let part = run.slice(entry.index..=entry.index);
        let one = part.entries().next().expect("one entry");
        assert_eq!((one.index, one.kind, one.payload), (entry.index, entry.kind, entry.payload), "entry {at}");
        let (mut bytes, mut short) = (BytesMut::new(), BytesMut::new());
        part.encode(&mut bytes);
        part.strip().encode(&mut short);
        for bytes in [bytes, short] {
            Run::decode(&mut bytes.freeze()).expect("a part of a run is one");
        }
    }
}
