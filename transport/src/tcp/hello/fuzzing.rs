//! What a stranger says first on a connection: driven by a fuzzer, and by the tests with what it kept.

use super::{HELLO_BYTES_MAX, HELLO_ENVELOPE_BYTES, Hello};
use crate::Lane;
use crate::tcp::TcpConfig;
use bytes::BytesMut;
use longboat_raft::HostId;

/// Memory that a handshake may take, in bytes, besides what was received of it.
pub const BYTES_MAX: usize = 64 << 10;

fn config() -> TcpConfig {
    TcpConfig { deployment_id: 77, incarnation: 5, ..TcpConfig::new(HostId(2), "127.0.0.1:1".parse().expect("one")) }
}

/// Makes the envelope around what is there right, so that what it guards is looked at.
fn enveloped(message: &[u8]) -> Vec<u8> {
    let mut out = b"longboat".to_vec();
    out.extend_from_slice(&(message.len() as u32).to_le_bytes());
    out.extend_from_slice(&crc32fast::hash(message).to_le_bytes());
    out.extend_from_slice(message);
    out
}

/// The first byte says whether the envelope is to be right, the second where the bytes are cut in two.
pub fn handshake(data: &[u8]) {
    let [mode, cut, message @ ..] = data else { return };
    let bytes = if mode & 1 == 0 { enveloped(message) } else { message.to_vec() };
    let (front, back) = bytes.split_at(usize::from(*cut).min(bytes.len()));
    let mut received = BytesMut::from(front);
    let first = Hello::take(&mut received);
    if first == Ok(None) {
        received.extend_from_slice(back);
    }
    let taken = if first == Ok(None) { Hello::take(&mut received) } else { first };
    match taken {
        Ok(Some(hello)) => answered(&hello),
        Ok(None) => {
            assert!(received.len() < HELLO_ENVELOPE_BYTES + HELLO_BYTES_MAX, "it waits for more than there may be")
        }
        Err(error) => assert!(error.to_string().len() < HELLO_BYTES_MAX),
    }
}

fn answered(hello: &Hello) {
    let config = config();
    for lane in Lane::ALL {
        let _ = hello.check_answer(&config, HostId(1), lane);
    }
    let asked = hello.check_asker(&config, |host| host == HostId(1));
    let answer = Hello::answer(&config, hello, asked.as_ref().err());
    let mut wire = BytesMut::from(&answer.encode_enveloped()[..]);
    assert_eq!(Hello::take(&mut wire), Ok(Some(answer)), "what is answered can be read");
    if let Ok(greeting) = asked {
        assert_eq!(greeting.host, HostId(1));
    }
}

#[cfg(test)]
#[test]
fn the_fuzz_corpus_brings_refusals_at_worst() {
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/handshake");
    let mut files: Vec<_> = std::fs::read_dir(corpus).expect("kept inputs").map(|f| f.expect("one").path()).collect();
    files.sort();
    for file in files {
        eprintln!("{}", file.display());
        handshake(&std::fs::read(file).expect("readable"));
    }
}
